//! Reading back: every image, from the medium, compared with the digests of what was written.
//!
//! All of the disk is looked at, holes too, and whatever else is in the file. What an earlier life wrote is read like the
//! rest, so a piece that was changed while nobody looked is found.

use std::sync::Arc;

use futures::StreamExt;

use super::job::Job;
use super::journal::{Journal, Sum};
use super::{Meter, PIECE_BYTES, PIECES_INFLIGHT};
use crate::files::failed;
use crate::recover::RecoverError;

/// Reads back all images. Errors: `Altered` names the first part found that is not as it was written.
pub(super) async fn all(jobs: &[Arc<Job>], journal: &Journal, meter: Meter) -> Result<(), RecoverError> {
    for job in jobs {
        let frame = job.image.altered_frame().await.map_err(failed("read back", job.image.path()))?;
        if let Some(offset) = frame {
            return Err(RecoverError::Altered { path: job.image.path().to_owned(), of: "file", offset });
        }
        disk(job, journal, &meter).await?;
    }
    Ok(())
}

async fn disk(job: &Arc<Job>, journal: &Journal, meter: &Meter) -> Result<(), RecoverError> {
    let sums = journal.sums(job.number);
    let mut pieces = futures::stream::iter(0..job.plan.disk.size().div_ceil(PIECE_BYTES))
        .map(|number| {
            let (job, sum) = (job.clone(), sums.get(&number).copied());
            let path = job.image.path().to_owned();
            async move {
                let same = tokio::spawn(async move { is_as_written(&job, number, sum).await }).await;
                let same = same.unwrap_or_else(|join| Err(std::io::Error::other(join)));
                (number, same.map_err(failed("read back", &path)))
            }
        })
        .buffered(PIECES_INFLIGHT);
    while let Some((number, same)) = pieces.next().await {
        if !same? {
            let offset = job.piece(number).offset();
            return Err(RecoverError::Altered { path: job.image.path().to_owned(), of: "disk", offset });
        }
        meter.add(job.plan.pieces.get(&number).copied().unwrap_or(0));
    }
    Ok(())
}

async fn is_as_written(job: &Job, number: u64, sum: Option<Sum>) -> std::io::Result<bool> {
    let piece = job.piece(number);
    if let Some(sum) = sum {
        return Ok(blake3::hash(&job.image.read_back(piece).await?) == sum);
    }
    for part in job.image.allocated(piece).await? {
        if job.image.read_back(part).await?.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}
