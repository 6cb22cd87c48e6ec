//! Writing: pieces of all disks go from the store to their images side by side, and into the journal behind every sync.
//!
//! The syncs set their own pace: while one runs, written pieces gather for the next. On an error no new piece is begun,
//! those in work come to their end, and what was written goes into the journal all the same.

use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use super::job::Job;
use super::journal::{Journal, Written};
use super::{Meter, PIECES_INFLIGHT};
use crate::files::failed;
use crate::recover::RecoverError;

/// Writes every piece that is not durable yet. Afterwards all are, and the journal says so.
pub(super) async fn all(jobs: &[Arc<Job>], journal: &Journal, meter: Meter) -> Result<(), RecoverError> {
    let mut missing: Vec<(u64, Arc<Job>)> = Vec::new();
    for job in jobs {
        missing.extend(job.missing(journal).into_iter().map(|piece| (piece, job.clone())));
    }
    // All disks go on side by side.
    missing.sort_by_key(|(piece, _)| *piece);
    // Bounded by the number of pieces, at some 50 bytes for each of 4 MiB.
    let (done, written) = unbounded_channel();
    let (copied, kept) = tokio::join!(copy(missing, done, meter), keep(jobs, journal, written));
    copied.and(kept)
}

async fn copy(missing: Vec<(u64, Arc<Job>)>, done: UnboundedSender<Written>, meter: Meter) -> Result<(), RecoverError> {
    let stop = CancellationToken::new();
    let pieces = futures::stream::iter(missing)
        .take_until(stop.cancelled())
        .map(|(piece, job)| async move {
            let bytes = job.plan.pieces[&piece];
            let path = job.image.path().to_owned();
            let copied = tokio::spawn(async move { copy_piece(&job, piece).await }).await;
            copied.unwrap_or_else(|join| Err(failed("write", &path)(std::io::Error::other(join)))).map(|w| (w, bytes))
        })
        .buffer_unordered(PIECES_INFLIGHT);
    let (mut pieces, mut failed) = (std::pin::pin!(pieces), None);
    while let Some(copied) = pieces.next().await {
        match copied {
            Ok((written, bytes)) => {
                meter.add(bytes);
                // Whoever keeps the journal is gone, and says why.
                if done.send(written).is_err() {
                    stop.cancel();
                }
            }
            Err(error) => {
                stop.cancel();
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Brings one piece into its image. Its digest is over all of its bytes, holes as zeros.
async fn copy_piece(job: &Job, number: u64) -> Result<Written, RecoverError> {
    let piece = job.piece(number);
    let bytes = job.plan.disk.read(piece).await?;
    let sum = blake3::hash(&bytes).into();
    for part in job.plan.data_in(piece) {
        let start = (part.offset() - piece.offset()) as usize;
        let data = bytes.slice(start..start + part.len() as usize);
        job.image.write(part.offset(), data).await.map_err(failed("write", job.image.path()))?;
    }
    Ok(Written { disk: job.number, piece: number, sum })
}

/// Says of written pieces that they are durable, once they are.
async fn keep(
    jobs: &[Arc<Job>],
    journal: &Journal,
    mut written: UnboundedReceiver<Written>,
) -> Result<(), RecoverError> {
    let mut batch = Vec::new();
    while written.recv_many(&mut batch, PIECES_INFLIGHT * jobs.len()).await > 0 {
        for job in jobs.iter().filter(|job| batch.iter().any(|piece| piece.disk == job.number)) {
            job.image.sync().await.map_err(failed("sync", job.image.path()))?;
        }
        probe::failpoint!("restore-pieces-synced");
        journal.durable(std::mem::take(&mut batch)).await?;
        probe::failpoint!("restore-pieces-durable");
    }
    Ok(())
}
