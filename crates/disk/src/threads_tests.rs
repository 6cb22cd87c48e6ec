//! Threads of a disk: what they run, and how much of it at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use futures::future::join_all;

use super::threads::{DiskThreads, THREADS_MAX};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_job_returns_what_it_found_and_a_panic_costs_it_alone() {
    let threads = DiskThreads::new();
    assert_eq!(threads.run(|| 7).await, Some(7));
    assert_eq!(threads.run(|| panic!("a fault")).await, None::<()>);
    assert_eq!(threads.run(|| 8).await, Some(8));
}

/// They wait for one another, so all must run at once.
#[tokio::test]
async fn as_many_run_at_once_as_there_are_up_to_the_most() {
    let threads = DiskThreads::new();
    let all = Arc::new(Barrier::new(THREADS_MAX));
    let waiting = (0..THREADS_MAX).map(|_| {
        let all = all.clone();
        threads.run(move || all.wait().is_leader())
    });
    let led = tokio::time::timeout(PATIENCE, join_all(waiting)).await.expect("all run at once");
    assert_eq!(led.iter().filter(|led| **led == Some(true)).count(), 1);
}

/// A disk that hangs takes so many threads of the process, and no more.
#[tokio::test]
async fn no_more_than_the_most_run_at_once() {
    let threads = DiskThreads::new();
    let (begun, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let jobs = (0..4 * THREADS_MAX).map(|_| {
        let (begun, most) = (begun.clone(), most.clone());
        threads.run(move || {
            most.fetch_max(begun.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::yield_now();
            begun.fetch_sub(1, Ordering::SeqCst);
        })
    });
    join_all(jobs).await;
    assert!((1..=THREADS_MAX).contains(&most.load(Ordering::SeqCst)));
}

#[test]
fn what_was_given_runs_though_nobody_waits_and_the_disk_is_gone() {
    let (hold, held) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let threads = DiskThreads::new();
    let first = tell.clone();
    threads.give(move || {
        let _released = held.recv();
        let _ = first.send(1);
    });
    threads.give(move || {
        let _ = tell.send(2);
    });
    drop(threads);
    drop(hold);
    let mut ran: Vec<i32> = told.iter().collect();
    ran.sort_unstable();
    assert_eq!(ran, [1, 2]);
}
