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

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::{Receiver, Sender, bounded};
use format::Level;
use format::keys::Keys;
use format::segment::{Commit, FrameSealer, SealedSegment};
use model::Record;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

pub use assemble::assemble_segment;
pub use chunk::{FRAME_PLAIN_BYTES, JOBS_PER_SEGMENT_MAX, JobOutput, JobStats, RecordWorker, SegmentContext};

use crate::ProcessServerError;
use crate::status::StageStatus;

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

/// A result, addressed to the epoch and slot its job was given.
pub(crate) struct JobResult {
    /// Epoch of the stream; a result of an epoch that has ended is void.
    pub epoch: u64,
    /// Slot.
    pub slot: u64,
    /// What became of the job.
    pub done: Done,
    /// Frees the job's place when the result is taken in.
    pub _permit: OwnedSemaphorePermit,
}

/// A job on its way.
pub(crate) struct Job {
    /// Epoch of the stream.
    pub epoch: u64,
    /// Slot.
    pub slot: u64,
    /// What to do.
    pub work: Work,
    /// Where the result goes; has as many places as there are permits.
    pub reply: mpsc::Sender<JobResult>,
    /// Its place in the pipeline.
    pub permit: OwnedSemaphorePermit,
}

/// The workers and their queue.
pub(crate) struct Pipeline {
    /// None once closed.
    queue: Mutex<Option<Sender<Job>>>,
    /// Runs jobs where they are submitted, when there are no threads.
    inline: Option<Mutex<RecordWorker>>,
    keys: Arc<Keys>,
    permits: Arc<Semaphore>,
    jobs_max: usize,
    busy: Arc<AtomicUsize>,
    queued: Arc<AtomicUsize>,
}

impl Pipeline {
    /// Starts the threads; they end when the pipeline is closed or dropped.
    pub(crate) fn start(workers: usize, keys: Arc<Keys>) -> Result<Self, ProcessServerError> {
        let jobs_max = (workers * JOBS_PER_WORKER).max(JOBS_MIN);
        let (sender, receiver) = bounded(jobs_max);
        let (busy, queued) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for index in 0..workers {
            let (jobs, keys) = (receiver.clone(), keys.clone());
            let (busy, queued) = (busy.clone(), queued.clone());
            std::thread::Builder::new()
                .name(format!("pipeline-{index}"))
                .spawn(move || work_until_closed(&jobs, &keys, &busy, &queued))
                .map_err(|source| ProcessServerError::Thread { index, source })?;
        }
        Ok(Pipeline {
            queue: Mutex::new(Some(sender)),
            inline: (workers == 0).then(|| Mutex::new(RecordWorker::new(keys.clone()))),
            keys,
            permits: Arc::new(Semaphore::new(jobs_max)),
            jobs_max,
            busy,
            queued,
        })
    }

    /// Places in the pipeline, and what a result channel must hold.
    pub(crate) fn jobs_max(&self) -> usize {
        self.jobs_max
    }

    /// Where places are given out.
    pub(crate) fn permits(&self) -> Arc<Semaphore> {
        self.permits.clone()
    }

    /// Hands a job in. Never blocks: the permit is its place. Dropped without a result once the pipeline is closed.
    pub(crate) fn submit(&self, job: Job) {
        if let Some(worker) = &self.inline {
            let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
            return run(&mut worker, &self.keys, job, Level::Normal);
        }
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queue.as_ref() {
            // Relaxed: a gauge, it orders nothing.
            self.queued.fetch_add(1, Ordering::Relaxed);
            let sent = queue.try_send(job);
            assert!(sent.is_ok(), "a place is free for every permit, and threads outlive the sender");
        }
    }

    /// Ends the threads once the queue is empty.
    pub(crate) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Busy workers and waiting jobs.
    pub(crate) fn status(&self) -> StageStatus {
        let (busy, queued) = (self.busy.load(Ordering::Relaxed), self.queued.load(Ordering::Relaxed));
        StageStatus { stage: "pipeline", busy, queued }
    }
}

fn work_until_closed(jobs: &Receiver<Job>, keys: &Arc<Keys>, busy: &AtomicUsize, queued: &AtomicUsize) {
    let mut worker = RecordWorker::new(keys.clone());
    let capacity = jobs.capacity().unwrap_or(JOBS_MIN);
    while let Ok(job) = jobs.recv() {
        queued.fetch_sub(1, Ordering::Relaxed);
        busy.fetch_add(1, Ordering::Relaxed);
        crate::metrics::queue_depth(jobs.len());
        let level = if jobs.len() * 2 > capacity { Level::Fast } else { Level::Normal };
        run(&mut worker, keys, job, level);
        busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs one job and sends its result. A panic costs the job, not the thread; the worker is made anew.
fn run(worker: &mut RecordWorker, keys: &Arc<Keys>, job: Job, level: Level) {
    let Job { epoch, slot, work, reply, permit } = job;
    let begun = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| carry(worker, keys, work, level))).unwrap_or_else(|_| {
        tracing::error!(epoch, slot, "a pipeline worker panicked; the stream starts a new epoch");
        *worker = RecordWorker::new(keys.clone());
        Done::Failed
    });
    crate::metrics::job_done(&done, begun.elapsed(), level);
    // A stream that is gone needs no result; a full channel cannot be, it has a place for every permit.
    let _ = reply.try_send(JobResult { epoch, slot, done, _permit: permit });
}

fn carry(worker: &mut RecordWorker, keys: &Keys, work: Work, level: Level) -> Done {
    match work {
        Work::Records { segment, ordinal, records } => {
            let output = worker.process(&segment, ordinal, records, level);
            Done::Records { ordinal, output }
        }
        Work::Assemble { sealer, commit, outputs } => {
            Done::Assembled(Box::new(assemble_segment(keys, &sealer, *commit, outputs)))
        }
    }
}
