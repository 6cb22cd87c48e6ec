//! What the stages of an applier have done, for each machine: bytes, and time in which a stage was at work.
//!
//! ```text
//!   follower   read → promote → map, collect         into the manifest
//!   replica    fetch → open → write → flush          onto the replica disks
//!   digests    digest                                state digests of points
//! ```
//! The three tasks of a machine run beside one another, and none waits for another's work once there is something to do. Within a
//! task one stage waits for the one before it. So a task that is at work all the time bounds what it makes, and the stage in which
//! it is longest is what bounds the task.
//!
//! Time is wall time in which at least one piece of work is in the stage, counted once however many are. What is under way counts up
//! to the moment of asking: a collection or a digest may take longer than anybody looks. Time is tokio's, so that under paused time
//! the same happens again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use metrics::{Counter, Histogram};
use model::{MachineName, StageWork};
use tokio::time::Instant;

use crate::status::TaskStatus;

/// What works on one machine beside the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Follower,
    Replica,
    Digests,
}

/// The stages, task by task, in the order a byte meets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Tables of the stream are read, checked and taken in.
    Read,
    /// Segments are copied into a vault store of its own, and the manifest that names them is put.
    Promote,
    /// Maps are made and put.
    Map,
    /// The horizon moves, garbage is found and deleted, packs are made.
    Collect,
    /// Segments, frames and maps are read from the store for the replica.
    Fetch,
    /// Tables and frames are checked, decrypted and decompressed, and records laid over one another.
    Open,
    /// Replica disks are made, resized and written.
    Write,
    /// Replica disks and the state file are synced.
    Flush,
    /// What was written is read again, as it was and as it is, and hashed.
    Digest,
}

const TASKS: [(Task, &str); 3] = [(Task::Follower, "follower"), (Task::Replica, "replica"), (Task::Digests, "digests")];

const STAGES: [(Stage, Task, &str); 9] = [
    (Stage::Read, Task::Follower, "read"),
    (Stage::Promote, Task::Follower, "promote"),
    (Stage::Map, Task::Follower, "map"),
    (Stage::Collect, Task::Follower, "collect"),
    (Stage::Fetch, Task::Replica, "fetch"),
    (Stage::Open, Task::Replica, "open"),
    (Stage::Write, Task::Replica, "write"),
    (Stage::Flush, Task::Replica, "flush"),
    (Stage::Digest, Task::Digests, "digest"),
];

/// Work under way.
struct Span {
    holders: usize,
    entered: Instant,
    /// Up to here it is in the sums.
    counted: Instant,
}

/// Of one stage, or of a whole task.
struct Meter {
    work: StageWork,
    /// None while nothing is under way.
    span: Mutex<Option<Span>>,
    /// Things that wait for the stage. Relaxed: for display.
    queued: AtomicUsize,
    seconds: Histogram,
    bytes: Counter,
}

impl Meter {
    fn new(seconds: Histogram, bytes: Counter) -> Self {
        Self { work: StageWork::default(), span: Mutex::new(None), queued: AtomicUsize::new(0), seconds, bytes }
    }

    /// The span, with all of it so far in the sums.
    fn counted(&self) -> MutexGuard<'_, Option<Span>> {
        let mut span = self.span.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(span) = span.as_mut() {
            let now = Instant::now();
            self.work.worked(0, now - span.counted);
            span.counted = now;
        }
        span
    }

    fn enter(&self) {
        let mut span = self.span.lock().unwrap_or_else(PoisonError::into_inner);
        match span.as_mut() {
            Some(span) => span.holders += 1,
            None => {
                let now = Instant::now();
                *span = Some(Span { holders: 1, entered: now, counted: now });
            }
        }
    }

    fn leave(&self) {
        let mut span = self.counted();
        if let Some(held) = span.as_mut() {
            held.holders -= 1;
            if held.holders == 0 {
                self.seconds.record((held.counted - held.entered).as_secs_f64());
                *span = None;
            }
        }
    }

    fn worked(&self, bytes: u64, begun: Instant) {
        let took = begun.elapsed();
        self.work.worked(bytes, took);
        self.seconds.record(took.as_secs_f64());
        self.bytes.increment(bytes);
    }
}

/// Of all stages of one machine.
pub(crate) struct Stages {
    tasks: [Meter; TASKS.len()],
    stages: [Meter; STAGES.len()],
}

impl Default for Stages {
    /// Shown nowhere.
    fn default() -> Self {
        let meter = |_| Meter::new(Histogram::noop(), Counter::noop());
        Self { tasks: [(); TASKS.len()].map(meter), stages: [(); STAGES.len()].map(meter) }
    }
}

impl Stages {
    /// Of this machine, as metrics too.
    pub fn of(machine: &MachineName) -> Self {
        let meter = |(_, _, name): (Stage, Task, &str)| {
            let seconds = metrics::histogram!(format!("applier_{name}_seconds"), "machine" => machine.to_string());
            let bytes = metrics::counter!(format!("applier_{name}_bytes_total"), "machine" => machine.to_string());
            Meter::new(seconds, bytes)
        };
        Self { stages: STAGES.map(meter), ..Self::default() }
    }

    fn meters(&self, stage: Stage) -> [&Meter; 2] {
        [&self.tasks[STAGES[stage as usize].1 as usize], &self.stages[stage as usize]]
    }

    /// The stage is at work until the result goes.
    pub fn at(&self, stage: Stage) -> At<'_> {
        self.meters(stage).into_iter().for_each(Meter::enter);
        At { stages: self, stage }
    }

    /// The stage was at work from `begun` until now. For what is known to be work only when it is done.
    pub fn worked(&self, stage: Stage, bytes: u64, begun: Instant) {
        self.meters(stage).into_iter().for_each(|meter| meter.worked(bytes, begun));
    }

    /// So many things wait for the stage.
    pub fn queued(&self, stage: Stage, things: usize) {
        // Relaxed: for display.
        self.stages[stage as usize].queued.store(things, Ordering::Relaxed);
    }

    /// What a task has done so far.
    pub fn status(&self, task: Task) -> TaskStatus {
        let status = |meter: &Meter, name| {
            let busy = usize::from(meter.counted().is_some());
            // Relaxed: for display.
            meter.work.status(name, 1, busy, meter.queued.load(Ordering::Relaxed))
        };
        let of_task = STAGES.iter().zip(&self.stages).filter(|((_, of, _), _)| *of == task);
        let (_, name) = TASKS[task as usize];
        TaskStatus {
            task: name,
            busy_seconds_total: status(&self.tasks[task as usize], name).busy_seconds_total,
            stages: of_task.map(|((_, _, name), meter)| status(meter, *name)).collect(),
        }
    }
}

/// A stage at work.
pub(crate) struct At<'a> {
    stages: &'a Stages,
    stage: Stage,
}

impl At<'_> {
    /// So many bytes were worked on.
    pub fn moved(&self, bytes: u64) {
        let meter = &self.stages.stages[self.stage as usize];
        meter.work.worked(bytes, std::time::Duration::ZERO);
        meter.bytes.increment(bytes);
    }
}

impl Drop for At<'_> {
    fn drop(&mut self) {
        self.stages.meters(self.stage).into_iter().for_each(Meter::leave);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::StageStatus;

    use super::*;

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    fn of(stages: &Stages, stage: Stage) -> StageStatus {
        let (_, task, name) = STAGES[stage as usize];
        stages.status(task).stages.into_iter().find(|found| found.stage == name).expect("a stage of its task")
    }

    #[test]
    fn the_tables_are_in_the_order_of_their_enums() {
        assert!(TASKS.iter().enumerate().all(|(n, (task, _))| *task as usize == n));
        assert!(STAGES.iter().enumerate().all(|(n, (stage, ..))| *stage as usize == n));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_is_busy_while_at_least_one_is_at_it() {
        let stages = Stages::default();
        let first = stages.at(Stage::Fetch);
        pass(1).await;
        let second = stages.at(Stage::Fetch);
        first.moved(10);
        pass(1).await;
        drop(first);
        pass(1).await;
        second.moved(5);
        drop(second);
        pass(10).await;
        let fetch = of(&stages, Stage::Fetch);
        assert_eq!((fetch.busy_seconds_total, fetch.bytes_total, fetch.busy), (3.0, 15, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn work_under_way_counts_up_to_now_and_once() {
        let stages = Stages::default();
        let flush = stages.at(Stage::Flush);
        for seconds in 1..=3 {
            pass(1).await;
            let now = of(&stages, Stage::Flush);
            assert_eq!((now.busy_seconds_total, now.busy), (f64::from(seconds), 1));
        }
        drop(flush);
        assert_eq!(of(&stages, Stage::Flush).busy_seconds_total, 3.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_busy_while_any_of_its_stages_is_and_no_other_is_for_it() {
        let stages = Stages::default();
        let write = stages.at(Stage::Write);
        pass(1).await;
        let fetch = stages.at(Stage::Fetch);
        pass(1).await;
        drop((write, fetch));
        let begun = Instant::now();
        pass(2).await;
        stages.worked(Stage::Read, 7, begun);
        stages.queued(Stage::Promote, 4);
        let replica = stages.status(Task::Replica);
        let busy: Vec<_> = replica.stages.iter().map(|stage| (stage.stage, stage.busy_seconds_total)).collect();
        assert_eq!((replica.task, replica.busy_seconds_total), ("replica", 2.0));
        assert_eq!(busy, [("fetch", 1.0), ("open", 0.0), ("write", 2.0), ("flush", 0.0)]);
        let follower = stages.status(Task::Follower);
        assert_eq!((follower.busy_seconds_total, follower.stages[0].bytes_total), (2.0, 7));
        assert_eq!(follower.stages[1].queued, 4);
        assert_eq!(stages.status(Task::Digests).busy_seconds_total, 0.0);
    }
}
