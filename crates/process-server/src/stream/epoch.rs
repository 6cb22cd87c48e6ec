//! One epoch of a stream that this server owns: jobs out, results in, PUTs, looks, acknowledgements.
//!
//! What must hold: `acked` moves only over slots that were all put before a look began that found no newer epoch
//! (docs/rfcs/0001-epoch-log.md). When the epoch is lost, by another writer or a worker's panic, this value is dropped:
//! uploads in flight are given up, and what they may still write is void or identical.

use std::sync::Arc;

use format::object::ObjectId;
use format::segment::FrameSealer;
use futures::future::BoxFuture;
use model::LogHead;
use store::{LogWriter, StoreError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::StreamContext;
use super::segments::{Acknowledged, SegmentLimits, Segments};
use super::upload::{self, StoreWatch};
use crate::dedup::DedupIndex;
use crate::pipeline::{Done, Job, JobResult, JobStats, SegmentContext, Work};
use crate::session::Batch;
use crate::share::{EpochShare, Opened};

/// The share of the largest credit window one segment may hold, so that others fill while it is on its way.
const SEGMENTS_PER_WINDOW_MAX: u64 = 4;

/// The same of the window that there is, which may be small while others are loud.
const SEGMENTS_PER_WINDOW: u64 = 2;

/// No segment holds records of more than this and one job, so that even if nothing compresses, and whatever was
/// estimated, it stays below the largest object a reader takes.
const SEGMENT_COST_MAX: u64 = 128 << 20;

fn segment_cost_max(context: &StreamContext) -> u64 {
    (context.config.credit_bytes / SEGMENTS_PER_WINDOW_MAX).min(SEGMENT_COST_MAX)
}

/// Something that moves an epoch on.
pub(crate) enum EpochEvent {
    /// A PUT ended.
    Put(Result<u64, StoreError>),
    /// A look ended that lets us acknowledge up to this slot.
    Looked(u64, Result<(), StoreError>),
}

/// Why an epoch ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EpochOver {
    /// Another writer, or damage in our own place.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A slot can never be filled.
    #[error("a pipeline worker failed")]
    Failed,
}

/// An open epoch.
pub(crate) struct OpenEpoch {
    context: Arc<StreamContext>,
    writer: Arc<LogWriter>,
    segments: Segments,
    dedup: Arc<DedupIndex>,
    share: Option<EpochShare>,
    results: mpsc::Sender<JobResult>,
    uploads: JoinSet<Result<u64, StoreError>>,
    look: Option<BoxFuture<'static, (u64, Result<(), StoreError>)>>,
    acked: LogHead,
    acked_slot: u64,
    watch: StoreWatch,
}

impl OpenEpoch {
    /// Behind its opening.
    pub(crate) fn new(context: Arc<StreamContext>, opened: Opened, results: mpsc::Sender<JobResult>) -> Self {
        let Opened { writer, share } = opened;
        let end = writer.opening_end();
        let limits = SegmentLimits {
            sealed_bytes: context.config.segment_bytes,
            cost_bytes: segment_cost_max(&context),
            age: context.config.segment_age,
        };
        let shared = context.shared.clone();
        OpenEpoch {
            segments: Segments::new(context.machine.clone(), writer.epoch(), end.hash, limits)
                .seeing(writer.gc_seen())
                .with_rules(context.rules.server),
            dedup: Arc::new(DedupIndex::within(&context.dedup)),
            share,
            writer: Arc::new(writer),
            results,
            uploads: JoinSet::new(),
            look: None,
            acked: end.head,
            acked_slot: 0,
            watch: Arc::new(move |error| shared.store_answered(error)),
            context,
        }
    }

    /// Our epoch.
    pub(crate) fn number(&self) -> u64 {
        self.writer.epoch()
    }

    /// The log's head: all of it is acknowledged or was accepted at the opening.
    pub(crate) fn acked(&self) -> (u64, LogHead) {
        (self.acked_slot, self.acked)
    }

    /// Whether everything given a slot is acknowledged.
    pub(crate) fn is_drained(&self) -> bool {
        self.segments.is_empty()
    }

    /// Segments on their way.
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// The writer, for looks of others.
    pub(crate) fn writer(&self) -> Arc<LogWriter> {
        self.writer.clone()
    }

    /// Closes the open segment.
    pub(crate) fn close_segment(&mut self) {
        self.segments.close();
    }

    /// Lets go of what is not sealed yet. Only without the rule that a slot given is filled.
    pub(crate) fn abandon(&mut self) {
        self.segments.abandon();
    }

    /// Closes the open segment if it is old enough.
    pub(crate) fn close_aged(&mut self, now: Instant) {
        if self.segments.close_at().is_some_and(|at| at <= now) {
            self.segments.close();
        }
    }

    /// Gives a batch its slot and sends it to the workers. A segment with something awaited takes nothing more in. `window` is
    /// the session's: credit comes back only when segments are stored.
    pub(crate) fn dispatch(&mut self, batch: Batch, window: u64, permit: OwnedSemaphorePermit) {
        self.segments.limit_cost((window / SEGMENTS_PER_WINDOW).min(segment_cost_max(&self.context)));
        let keys = &self.context.keys;
        let assigned = self.segments.assign(&batch, || FrameSealer::new(keys, ObjectId::random()));
        let segment = SegmentContext {
            sealer: assigned.sealer,
            machine: self.context.machine.clone(),
            epoch: self.number(),
            slot: assigned.slot,
            dedup: self.dedup.clone(),
            share: self.share.clone(),
        };
        let awaited = batch.is_awaited();
        let Batch { records, draining, .. } = batch;
        let work = Work::Records { segment, ordinal: assigned.ordinal, records, draining };
        self.submit(assigned.slot, work, permit);
        if awaited {
            self.segments.close();
        }
    }

    /// Sends the next complete segment to be put together; false when there is none.
    pub(crate) fn assemble(&mut self, permit: OwnedSemaphorePermit) -> bool {
        let Some(complete) = self.segments.next_to_assemble() else { return false };
        let work = Work::Assemble { sealer: complete.sealer, commit: complete.commit, outputs: complete.outputs };
        self.submit(complete.slot, work, permit);
        true
    }

    fn submit(&self, slot: u64, work: Work, permit: OwnedSemaphorePermit) {
        let job = Job { epoch: self.number(), slot, work, reply: self.results.clone(), permit };
        self.context.pipeline.submit(job);
    }

    /// Takes a result of this epoch in.
    pub(crate) fn take(&mut self, slot: u64, done: Done) -> Result<JobStats, EpochOver> {
        match done {
            Done::Records { ordinal, output } => {
                let stats = output.stats;
                self.segments.job_done(slot, ordinal, output);
                Ok(stats)
            }
            Done::Assembled(sealed) => {
                self.segments.assembled(slot, *sealed);
                Ok(JobStats::default())
            }
            Done::Failed => Err(EpochOver::Failed),
        }
    }

    /// Starts the PUTs and the look that are due.
    pub(crate) fn advance(&mut self) {
        while self.uploads.len() < self.context.config.uploads_max {
            let Some((slot, parts)) = self.segments.next_to_upload() else { break };
            let stages = self.context.stages.clone();
            self.uploads.spawn(upload::put(self.writer.clone(), slot, parts, self.watch.clone(), stages));
        }
        if self.look.is_none()
            && let Some(slot) = self.segments.put_up_to()
        {
            let look = upload::look(self.writer.clone(), self.watch.clone());
            self.look = Some(Box::pin(async move { (slot, look.await) }));
        }
    }

    /// PUTs in flight.
    pub(crate) fn uploads(&self) -> usize {
        self.uploads.len()
    }

    /// What happens next. Cancel-safe.
    pub(crate) async fn next(&mut self) -> EpochEvent {
        let look = async {
            match &mut self.look {
                Some(look) => look.await,
                None => std::future::pending().await,
            }
        };
        let put = async {
            match self.uploads.join_next().await {
                Some(done) => done,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            (slot, result) = look => {
                self.look = None;
                EpochEvent::Looked(slot, result)
            }
            put = put => EpochEvent::Put(put.unwrap_or_else(|error| Err(StoreError::Unclear {
                path: format!("slot in epoch {}: its upload task ended: {error}", self.writer.epoch()),
            }))),
        }
    }

    /// Takes an event in; returns what may be acknowledged now.
    pub(crate) fn handle(&mut self, event: EpochEvent) -> Result<Vec<Acknowledged>, EpochOver> {
        match event {
            EpochEvent::Put(put) => {
                self.segments.put(put?);
                Ok(Vec::new())
            }
            EpochEvent::Looked(slot, result) => {
                result?;
                let acknowledged = self.segments.acknowledge(slot);
                if let Some(share) = &self.share {
                    acknowledged.iter().for_each(|done| share.stored(done.id, done.slot, &done.offers));
                }
                if let Some(last) = acknowledged.last() {
                    (self.acked_slot, self.acked) = (last.slot, last.head);
                }
                Ok(acknowledged)
            }
        }
    }
}
