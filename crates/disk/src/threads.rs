//! Threads that run a disk's operations, each of which may block.
//!
//! An operation on cached pages takes a few microseconds, less than to wake a thread for it. So at most one thread at a time is
//! called to the queue, and calls the next when it found work and leaves some. On a busy disk a wake-up then brings in many
//! operations, on a slow one as many run at once as wait, up to [`THREADS_MAX`]. Each disk has its own threads: one that hangs
//! takes nothing from the others.
//!
//! What must hold: while operations wait, a thread is on its way to them, or all [`THREADS_MAX`] are at work.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::sync::{Condvar, Mutex, MutexGuard, thread};

/// Most operations of one disk that run at once.
pub(crate) const THREADS_MAX: usize = 64;

/// A thread without work for this long ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one disk. They end when it is dropped, behind the operations that were given.
#[derive(Debug)]
pub(crate) struct DiskThreads {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    call: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    asleep: usize,
    /// A thread is on its way to the queue.
    looking: bool,
    /// One of those asleep is to look.
    called: bool,
    ended: bool,
}

impl DiskThreads {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(State::default()), call: Condvar::new() }) }
    }

    /// Runs a job to its end, even if the caller does not wait for it; `None` when it panicked.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        // Whoever waited may be gone.
        self.give(move || _ = done.send(job()));
        result.await.ok()
    }

    /// Has a job run, whoever waits for it.
    pub(crate) fn give(&self, job: impl FnOnce() + Send + 'static) {
        self.shared.push(Box::new(job));
    }
}

impl Drop for DiskThreads {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.call.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, job: Job) {
        let mut state = self.lock();
        state.jobs.push_back(job);
        self.call_one(state);
    }

    /// Has a thread come to the queue, unless one does already or nothing waits.
    fn call_one(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.looking || state.jobs.is_empty() {
            return;
        }
        if state.asleep > 0 {
            (state.looking, state.called) = (true, true);
            drop(state);
            self.call.notify_one();
        } else if state.threads < THREADS_MAX {
            (state.looking, state.threads) = (true, state.threads + 1);
            drop(state);
            self.start();
        }
    }

    fn start(self: &Arc<Self>) {
        let this = self.clone();
        if thread::Builder::new().name("disk".into()).spawn(move || this.work()).is_ok() {
            return;
        }
        let mut state = self.lock();
        (state.looking, state.threads) = (false, state.threads - 1);
        // With no thread at all the caller does the work itself: it waits, but nothing is lost.
        while state.threads == 0 {
            let Some(job) = state.jobs.pop_front() else { return };
            drop(state);
            run(job);
            state = self.lock();
        }
    }

    /// The life of a thread, which is called to the queue when it begins.
    fn work(self: &Arc<Self>) {
        let mut called = true;
        loop {
            let mut state = self.lock();
            state.looking &= !called;
            if let Some(job) = state.jobs.pop_front() {
                called = false;
                self.call_one(state);
                run(job);
            } else if self.sleep(state) {
                called = true;
            } else {
                return;
            }
        }
    }

    /// Sleeps until called; false when the thread is to end.
    fn sleep(&self, mut state: MutexGuard<'_, State>) -> bool {
        while !state.called {
            if state.ended {
                state.threads -= 1;
                return false;
            }
            state.asleep += 1;
            let woken = self.call.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken.0;
            state.asleep -= 1;
            if woken.1.timed_out() && !state.called {
                state.threads -= 1;
                return false;
            }
        }
        state.called = false;
        true
    }
}

/// A panic costs the job, whose caller hears of it, and not the thread.
fn run(job: Job) {
    let _costs_the_job = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
}
