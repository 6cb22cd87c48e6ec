//! The pipeline: jobs in, worker threads, results out. Streams share it; it knows none of them.
//!
//! ```text
//! stream task ── permit, job ──► crossbeam queue ──► worker thread ── result, permit ──► stream task
//! ```
//! Threads block on crossbeam, tasks never do: whoever submits holds one of as many permits as the queue has places,
//! and the permit travels with the job until its result has been taken in. So neither the queue nor any stream's
//! result channel is ever full, and results that wait are bounded too. Permits are given in the order asked for, which
//! shares the workers fairly between streams.
//!
//! A job that panics is reported as failed: its slot can never be filled, so its stream ends its epoch.

mod assemble;
mod chunk;
mod handover;

use std::sync::{Arc, Mutex, PoisonError};

use format::Level;
use format::keys::Keys;
use format::segment::{Commit, FrameSealer, SealedSegment};
use model::{Record, StageStatus};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use handover::Handover;

pub use assemble::assemble_segment;
pub use chunk::{FRAME_PLAIN_BYTES, JOBS_PER_SEGMENT_MAX, JobOutput, JobStats, RecordWorker, SegmentContext};

use crate::ProcessServerError;
use crate::stages::Stages;
use crate::sync;

/// Jobs in the pipeline for each worker: one at work, the others so that it never waits for a stream task.
const JOBS_PER_WORKER: usize = 4;

/// Fewest jobs in the pipeline, so that a single worker is kept busy too.
const JOBS_MIN: usize = 8;

/// What a worker is to do.
pub(crate) enum Work {
    /// Chunk, dedup, compress and seal records.
    Records {
        /// The segment they belong to.
        segment: SegmentContext,
        /// The job's number there.
        ordinal: u32,
        /// The records.
        records: Vec<Record>,
        /// Whether a drain is open before the first of them.
        draining: bool,
    },
    /// Put a segment together.
    Assemble {
        /// Its sealer.
        sealer: Arc<FrameSealer>,
        /// Its commit header.
        commit: Box<Commit>,
        /// Its jobs, in order.
        outputs: Vec<JobOutput>,
    },
}

/// What became of it.
pub(crate) enum Done {
    /// Records are sealed.
    Records {
        /// The job's number.
        ordinal: u32,
        /// What it made.
        output: JobOutput,
    },
    /// A segment is ready for its PUT.
    Assembled(Box<SealedSegment>),
    /// The worker panicked; the slot can never be filled.
    Failed,
}

/// A result on its way back.
pub(crate) type JobResult = handover::JobResult<Done>;

/// A job on its way.
pub(crate) type Job = handover::Job<Work, Done>;

/// The workers and their queue.
pub(crate) struct Pipeline {
    handover: Handover<Job>,
    /// Runs jobs where they are submitted, when there are no threads.
    inline: Option<Mutex<RecordWorker>>,
    keys: Arc<Keys>,
    jobs_max: usize,
    workers: usize,
    stages: Arc<Stages>,
}

impl Pipeline {
    /// Starts the threads; they end when the pipeline is closed or dropped.
    pub(crate) fn start(workers: usize, keys: Arc<Keys>, stages: Arc<Stages>) -> Result<Self, ProcessServerError> {
        let jobs_max = (workers * JOBS_PER_WORKER).max(JOBS_MIN);
        let worker = || {
            let (mut worker, keys, stages) = (RecordWorker::new(keys.clone()), keys.clone(), stages.clone());
            move |job, waiting| {
                crate::metrics::queue_depth(waiting);
                let level = if waiting * 2 > jobs_max { Level::Fast } else { Level::Normal };
                run(&mut worker, &keys, &stages, job, level);
            }
        };
        let handover = Handover::start(workers, jobs_max, worker)
            .map_err(|(index, source)| ProcessServerError::Thread { index, source })?;
        let inline = (workers == 0).then(|| Mutex::new(RecordWorker::new(keys.clone())));
        Ok(Pipeline { handover, inline, keys, jobs_max, workers: workers.max(1), stages })
    }

    /// Places in the pipeline, and what a result channel must hold.
    pub(crate) fn jobs_max(&self) -> usize {
        self.jobs_max
    }

    /// Where places are given out.
    pub(crate) fn permits(&self) -> Arc<Semaphore> {
        self.handover.permits()
    }

    /// Hands a job in. Never blocks: the permit is its place. Dropped without a result once the pipeline is closed.
    pub(crate) fn submit(&self, job: Job) {
        if let Some(worker) = &self.inline {
            let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
            return run(&mut worker, &self.keys, &self.stages, job, Level::Normal);
        }
        self.handover.submit(job);
    }

    /// Ends the threads once the queue is empty.
    pub(crate) fn close(&self) {
        self.handover.close();
    }

    /// Busy workers and waiting jobs.
    pub(crate) fn status(&self) -> StageStatus {
        let (busy, queued) = self.handover.counts();
        self.stages.pipeline.status("pipeline", self.workers, busy, queued)
    }
}

/// Runs one job and sends its result. After a panic the worker is made anew.
fn run(worker: &mut RecordWorker, keys: &Arc<Keys>, stages: &Stages, job: Job, level: Level) {
    let (epoch, slot, begun) = (job.epoch, job.slot, Instant::now());
    let told = |done: Done| {
        crate::metrics::job_done(&done, begun.elapsed(), level);
        // Putting together works on what was counted before.
        let bytes = if let Done::Records { output, .. } = &done { output.stats.plain_bytes } else { 0 };
        stages.pipeline.worked(bytes, begun.elapsed());
        done
    };
    let mut panicked = false;
    job.carry_out(
        |work| told(carry(worker, keys, work, level)),
        || {
            panicked = true;
            tracing::error!(epoch, slot, "a pipeline worker panicked; the stream starts a new epoch");
            told(Done::Failed)
        },
    );
    if panicked {
        *worker = RecordWorker::new(keys.clone());
    }
}

fn carry(worker: &mut RecordWorker, keys: &Keys, work: Work, level: Level) -> Done {
    match work {
        Work::Records { segment, ordinal, records, draining } => {
            let output = worker.process(&segment, ordinal, records, draining, level);
            Done::Records { ordinal, output }
        }
        Work::Assemble { sealer, commit, outputs } => {
            Done::Assembled(Box::new(assemble_segment(keys, &sealer, *commit, outputs)))
        }
    }
}
