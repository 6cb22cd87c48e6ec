//! From stream tasks to worker threads and back: no permit is lost, and every job comes out once.
//!
//! Whoever submits holds one of as many permits as the queue has places, and the permit travels with the job until its
//! result has been taken in. A job that panics comes out as failed; one that is submitted once the queue is closed is
//! dropped, and its permit with it. `scheduled` tries this source under many schedules.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::sync::channel::{Receiver, Sender, bounded};
use super::sync::{AtomicUsize, Mutex, Ordering, PoisonError, thread};

/// A job on its way.
pub(crate) struct Job<W, D> {
    /// Epoch of the stream.
    pub epoch: u64,
    /// Slot.
    pub slot: u64,
    /// What to do.
    pub work: W,
    /// Where the result goes; has as many places as there are permits.
    pub reply: mpsc::Sender<JobResult<D>>,
    /// Its place in the pipeline.
    pub permit: OwnedSemaphorePermit,
}

/// A result, addressed to the epoch and slot its job was given.
pub(crate) struct JobResult<D> {
    /// Epoch of the stream; a result of an epoch that has ended is void.
    pub epoch: u64,
    /// Slot.
    pub slot: u64,
    /// What became of the job.
    pub done: D,
    /// Frees the job's place when the result is taken in.
    pub _permit: OwnedSemaphorePermit,
}

impl<W, D> Job<W, D> {
    /// Does the work and sends its result. A panic costs the job, not the thread.
    pub(crate) fn carry_out(self, work: impl FnOnce(W) -> D, failed: impl FnOnce() -> D) {
        let Job { epoch, slot, work: todo, reply, permit } = self;
        let done = catch_unwind(AssertUnwindSafe(|| work(todo))).unwrap_or_else(|_| failed());
        // A stream that is gone needs no result; a full channel cannot be, it has a place for every permit.
        let _ = reply.try_send(JobResult { epoch, slot, done, _permit: permit });
    }
}

/// What is shown; relaxed throughout: gauges order nothing, and no memory is published through them.
#[derive(Default)]
struct Gauges {
    busy: AtomicUsize,
    queued: AtomicUsize,
}

/// The queue and its threads.
pub(crate) struct Handover<J> {
    /// None once closed.
    queue: Mutex<Option<Sender<J>>>,
    permits: Arc<Semaphore>,
    gauges: Arc<Gauges>,
}

impl<J: Send + 'static> Handover<J> {
    /// Starts the threads, each with a worker of its own that is given jobs and how many wait behind them. They end when
    /// the handover is closed or dropped. An error names the thread that could not be started.
    pub(crate) fn start<W>(threads: usize, jobs_max: usize, worker: impl Fn() -> W) -> Result<Self, (usize, io::Error)>
    where
        W: FnMut(J, usize) + Send + 'static,
    {
        let (sender, receiver) = bounded(jobs_max);
        let gauges = Arc::new(Gauges::default());
        for index in 0..threads {
            let (jobs, worker, gauges) = (receiver.clone(), worker(), gauges.clone());
            thread::Builder::new()
                .name(format!("pipeline-{index}"))
                .spawn(move || work_until_closed(&jobs, worker, &gauges))
                .map_err(|source| (index, source))?;
        }
        let permits = Arc::new(Semaphore::new(jobs_max));
        Ok(Handover { queue: Mutex::new(Some(sender)), permits, gauges })
    }

    /// Where places are given out.
    pub(crate) fn permits(&self) -> Arc<Semaphore> {
        self.permits.clone()
    }

    /// Hands a job in. Never blocks: the permit is its place. Dropped without a result once closed.
    pub(crate) fn submit(&self, job: J) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queue.as_ref() {
            // Relaxed: a gauge.
            self.gauges.queued.fetch_add(1, Ordering::Relaxed);
            let sent = queue.try_send(job);
            assert!(sent.is_ok(), "a place is free for every permit, and threads outlive the sender");
        }
    }

    /// Ends the threads once the queue is empty.
    pub(crate) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Busy workers and waiting jobs.
    pub(crate) fn counts(&self) -> (usize, usize) {
        // Relaxed: gauges.
        (self.gauges.busy.load(Ordering::Relaxed), self.gauges.queued.load(Ordering::Relaxed))
    }
}

fn work_until_closed<J>(jobs: &Receiver<J>, mut worker: impl FnMut(J, usize), gauges: &Gauges) {
    while let Ok(job) = jobs.recv() {
        // Relaxed, here and below: gauges.
        gauges.queued.fetch_sub(1, Ordering::Relaxed);
        gauges.busy.fetch_add(1, Ordering::Relaxed);
        worker(job, jobs.len());
        // Relaxed: a gauge.
        gauges.busy.fetch_sub(1, Ordering::Relaxed);
    }
}
