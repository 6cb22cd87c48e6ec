//! The threads of a disk under chosen schedules: the shipping source, compiled once more with shuttle's locks and threads.
//!
//! Nothing that was given may stay undone: with all threads asleep and an operation waiting, a schedule ends in a deadlock, which
//! shuttle reports. The control is a queue that calls a thread without looking at it under the lock. Weak memory is not
//! modelled, nor do waits end by time.

use std::sync::Arc;

use schedules::{caught, explore};
use shuttle::future::block_on;
use shuttle::sync::atomic::{AtomicUsize, Ordering};

use threads::DiskThreads;

/// What the source below finds as `super::sync`.
mod sync {
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use shuttle::thread;
}

#[allow(clippy::duplicate_mod, dead_code, reason = "the point: the same source under another scheduler")]
#[path = "threads.rs"]
mod threads;

const CLIENTS: usize = 3;
const ROUNDS: usize = 2;

#[test]
fn every_operation_runs_whatever_threads_are_called_and_when() {
    explore(|| {
        let (threads, ran) = (Arc::new(DiskThreads::new()), Arc::new(AtomicUsize::new(0)));
        let client = || {
            let (threads, ran) = (threads.clone(), ran.clone());
            shuttle::thread::spawn(move || {
                for _ in 0..ROUNDS {
                    let ran = ran.clone();
                    // SeqCst: its partner is the load behind the joins.
                    let done = block_on(threads.run(move || ran.fetch_add(1, Ordering::SeqCst)));
                    assert!(done.is_some());
                }
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| client()).collect();
        clients.into_iter().for_each(|client| client.join().expect("a client ends"));
        // SeqCst: its partners are the additions of all clients.
        assert_eq!(ran.load(Ordering::SeqCst), CLIENTS * ROUNDS);
    });
}

/// A thread that looked and found nothing goes to sleep under the lock; this one lets go of it in between.
#[test]
fn a_call_to_a_thread_that_is_about_to_sleep_is_noticed_as_lost() {
    let careless = || {
        let queue = Arc::new((sync::Mutex::new(0_u32), sync::Condvar::new()));
        let theirs = queue.clone();
        let worker = shuttle::thread::spawn(move || {
            let (jobs, call) = &*theirs;
            let waits = *jobs.lock().expect("not poisoned") == 0;
            if waits {
                let _woken = call.wait(jobs.lock().expect("not poisoned"));
            }
        });
        *queue.0.lock().expect("not poisoned") += 1;
        queue.1.notify_one();
        worker.join().expect("the worker ends");
    };
    let text = caught(careless);
    assert!(text.contains("deadlock"), "{text}");
}
