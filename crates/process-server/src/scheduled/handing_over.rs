//! The pipeline's hand-over: no permit is lost, every job comes out once, and a stream can put its jobs in sequence.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;

use futures::future::{Either, select};
use shuttle::future::{block_on, spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::handover::{Handover, Job, JobResult};
use schedules::{caught, explore};

const THREADS: usize = 2;
const JOBS_MAX: usize = 3;
const STREAMS: u64 = 3;
const JOBS_PER_STREAM: u64 = 4;

/// Of so many jobs of a stream, the last panics.
const PANIC_EVERY: u64 = 3;

fn panics(number: Work) -> bool {
    number % PANIC_EVERY == PANIC_EVERY - 1
}

type Work = u64;
type Done = Option<u64>;
type TestJob = Job<Work, Done>;

/// Mistakes that must be noticed.
#[derive(Clone, Copy, PartialEq)]
enum Mistake {
    None,
    /// The permit is given back when the job is handed in, not when its result is taken in.
    PermitStaysBehind,
    /// A worker keeps the permit of a job whose stream it does not care for.
    PermitKept,
    /// A worker sends its result twice.
    ResultTwice,
    /// A worker drops a job that panicked.
    PanicSwallowed,
}

/// Panics without a report: the hook would print each of many thousands.
fn work(number: Work) -> Done {
    if panics(number) {
        resume_unwind(Box::new("this job panics"));
    }
    Some(number)
}

fn worker(mistake: Mistake) -> impl FnMut(TestJob, usize) + Send + 'static {
    move |mut job: TestJob, _waiting| {
        let number = job.work;
        match mistake {
            Mistake::PermitKept if number == 1 => std::mem::forget(std::mem::replace(&mut job.permit, spare_permit())),
            Mistake::ResultTwice if number == 1 => {
                let (epoch, slot) = (job.epoch, job.slot);
                let _ = job.reply.try_send(JobResult { epoch, slot, done: Some(number), _permit: spare_permit() });
            }
            Mistake::PanicSwallowed if panics(number) => return,
            _ => {}
        }
        job.carry_out(work, || None);
    }
}

/// A permit of nothing, to put in place of a real one.
fn spare_permit() -> OwnedSemaphorePermit {
    Arc::new(Semaphore::new(1)).try_acquire_owned().expect("one is free")
}

/// Hands jobs in and takes results as a stream's actor does, and puts them in sequence.
async fn stream(handover: Arc<Handover<TestJob>>, epoch: u64, mistake: Mistake) {
    let (reply, mut results) = mpsc::channel::<JobResult<Done>>(JOBS_MAX);
    let permits = handover.permits();
    let (mut next, mut taken) = (0, 0);
    let mut out_of_turn = BTreeMap::new();
    while taken < JOBS_PER_STREAM {
        let (more, permits) = (next < JOBS_PER_STREAM, permits.clone());
        let permit = async move { if more { permits.acquire_owned().await } else { std::future::pending().await } };
        let result = match select(Box::pin(results.recv()), Box::pin(permit)).await {
            Either::Left((result, _)) => result.expect("this task holds a sender"),
            Either::Right((permit, _)) => {
                let mut permit = permit.expect("never closed");
                if mistake == Mistake::PermitStaysBehind {
                    permit = spare_permit();
                }
                handover.submit(Job { epoch, slot: next, work: next, reply: reply.clone(), permit });
                next += 1;
                continue;
            }
        };
        assert_eq!(result.epoch, epoch, "a result of another stream");
        let expected = (!panics(result.slot)).then_some(result.slot);
        assert_eq!(result.done, expected, "another job's result");
        assert!(out_of_turn.insert(result.slot, ()).is_none(), "a job came out twice");
        while out_of_turn.contains_key(&taken) {
            taken += 1;
        }
        assert_eq!(out_of_turn.range(taken..).count() + taken as usize, out_of_turn.len(), "out of sequence");
    }
    yield_now().await;
    assert!(results.try_recv().is_err(), "a job came out twice");
}

fn contend(mistake: Mistake) {
    let handover = Arc::new(Handover::start(THREADS, JOBS_MAX, || worker(mistake)).expect("threads start"));
    let streams: Vec<_> = (0..STREAMS).map(|n| spawn(stream(handover.clone(), n, mistake))).collect();
    block_on(async {
        for stream in streams {
            stream.await.expect("a stream panicked");
        }
    });
    assert_eq!(handover.permits().available_permits(), JOBS_MAX, "a permit was lost");
    handover.close();
}

#[test]
fn every_job_comes_out_once_and_no_permit_is_lost() {
    explore(|| contend(Mistake::None));
}

#[test]
fn streams_that_leave_and_a_handover_that_closes_lose_no_permit() {
    explore(|| {
        let handover = Arc::new(Handover::start(THREADS, JOBS_MAX, || worker(Mistake::None)).expect("start"));
        let leaver = |epoch: u64| {
            let handover = handover.clone();
            spawn(async move {
                // Its results are never taken: they go with the channel.
                let (reply, _results) = mpsc::channel(JOBS_MAX);
                let permit = handover.permits().acquire_owned().await.expect("never closed");
                let slot = thread_rng().gen_range(0..PANIC_EVERY);
                handover.submit(Job { epoch, slot, work: slot, reply, permit });
            })
        };
        let leavers: Vec<_> = (0..2 * STREAMS).map(leaver).collect();
        let closing = handover.clone();
        let closer = spawn(async move { closing.close() });
        block_on(async {
            for leaver in leavers {
                leaver.await.expect("a stream panicked");
            }
            closer.await.expect("closing panicked");
            // The threads may still be at work. That a permit never comes back is noticed as a loop without an end.
            while handover.permits().available_permits() < JOBS_MAX || handover.counts() != (0, 0) {
                yield_now().await;
            }
        });
    });
}

fn caught_with(mistake: Mistake) -> String {
    caught(move || contend(mistake))
}

#[test]
fn control_a_permit_given_back_too_early_is_caught() {
    let why = caught_with(Mistake::PermitStaysBehind);
    assert!(why.contains("a place is free for every permit") || why.contains("deadlock"), "{why}");
}

#[test]
fn control_a_lost_permit_is_caught() {
    let why = caught_with(Mistake::PermitKept);
    assert!(why.contains("a permit was lost") || why.contains("deadlock"), "{why}");
}

#[test]
fn control_a_job_that_comes_out_twice_is_caught() {
    let why = caught_with(Mistake::ResultTwice);
    assert!(why.contains("a job came out twice") || why.contains("deadlock"), "{why}");
}

#[test]
fn control_a_job_that_never_comes_out_is_caught() {
    let why = caught_with(Mistake::PanicSwallowed);
    assert!(why.contains("deadlock"), "{why}");
}
