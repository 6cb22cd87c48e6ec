//! What the applier tells about itself, as a snapshot that can be printed as JSON.

use std::collections::VecDeque;

use model::{Event, EventKind, MachineName, Seq, Severity, StageStatus, Timestamp};
use serde::Serialize;

/// Newest events kept for each machine; older ones are in the log output.
const EVENTS_MAX: usize = 32;

/// The state of every machine an applier follows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ApplierStatus {
    /// One entry for each machine, in order of name.
    pub machines: Vec<MachineStatus>,
}

/// How far one machine is processed.
#[derive(Debug, Clone, Serialize)]
pub struct MachineStatus {
    /// Which.
    pub machine: MachineName,
    /// Last record of the last promoted segment.
    pub processed_seq: Seq,
    /// Its time.
    pub processed_time: Timestamp,
    /// Seconds by which the promoted end trails: 0 when everything in the log is promoted.
    pub lag_seconds: f64,
    /// Recovery points in the manifest.
    pub points: u64,
    /// Every position behind this one opens, up to it only points do; 0 while all do.
    pub horizon_seq: Seq,
    /// Segments behind the horizon that are promoted.
    pub segments: u64,
    /// Our epoch in the manifest log; 0 while we do not own it.
    pub manifest_epoch: u64,
    /// Whether the end of what is processed lies inside a drain.
    pub draining: bool,
    /// The replica; none when none is kept by policy.
    pub replica: Option<ReplicaStatus>,
    /// What its tasks and their stages have done: the follower, the replica where there is one, state digests where they are reckoned.
    pub tasks: Vec<TaskStatus>,
    /// What failed last and has not succeeded since.
    pub last_error: Option<String>,
    /// Newest events, oldest first.
    pub events: VecDeque<Event>,
}

/// Where a machine's replica disks stand.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReplicaStatus {
    /// The position they stand at, or stood at before they were moved; 0 before the first.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// Where they are being moved to, while they are.
    pub moving_to: Option<Seq>,
    /// Whether they are being rebuilt from `seq` to `moving_to` out of maps: meanwhile they stand nowhere.
    pub rebuilding: bool,
    /// What failed last and has not succeeded since.
    pub last_error: Option<String>,
}

/// What one task of a machine has done.
#[derive(Debug, Clone, Serialize)]
pub struct TaskStatus {
    /// Its name.
    pub task: &'static str,
    /// Seconds since the applier started in which at least one of its stages was at work.
    pub busy_seconds_total: f64,
    /// Its stages, in the order a byte meets them.
    pub stages: Vec<StageStatus>,
}

impl MachineStatus {
    /// Nothing processed yet.
    pub(crate) fn new(machine: MachineName, replica: bool) -> Self {
        Self {
            machine,
            processed_seq: Seq::ZERO,
            processed_time: Timestamp::default(),
            lag_seconds: 0.0,
            points: 0,
            horizon_seq: Seq::ZERO,
            segments: 0,
            manifest_epoch: 0,
            draining: true,
            replica: replica.then(ReplicaStatus::default),
            tasks: Vec::new(),
            last_error: None,
            events: VecDeque::new(),
        }
    }

    /// Adds an event, dropping the oldest when full.
    pub(crate) fn event(&mut self, time: Timestamp, severity: Severity, kind: EventKind, message: String) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Event { time, severity, kind, message });
    }
}
