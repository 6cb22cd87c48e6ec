//! What the outside may look at while a stream's actor runs: a few values behind a lock, formatted only when asked.

use std::sync::{Mutex, MutexGuard, PoisonError};

use model::LogHead;
use tokio::time::Instant;

use crate::pipeline::JobStats;
use crate::status::MachineStatus;

/// Live values of a stream.
#[derive(Debug, Default, Clone)]
pub(crate) struct Live {
    /// Address of the agent that is welcome.
    pub address: Option<String>,
    /// Epoch owned.
    pub epoch: Option<u64>,
    /// Acknowledged slot.
    pub slot: u64,
    /// Last record received.
    pub received_seq: u64,
    /// Acknowledged head.
    pub acked: LogHead,
    /// When the oldest record not acknowledged arrived.
    pub oldest: Option<Instant>,
    /// Segments not acknowledged.
    pub segments: usize,
    /// PUTs in flight.
    pub uploads: usize,
    /// Bytes received and not stored.
    pub in_flight: u64,
    /// Batches that wait for a worker.
    pub waiting: usize,
    bytes_in: u64,
    bytes_out: u64,
    dedup_hits: u64,
    dedup_bytes: u64,
    store_error: Option<String>,
}

/// [`Live`], shared.
#[derive(Debug)]
pub(crate) struct StreamShared {
    machine: String,
    live: Mutex<Live>,
}

impl StreamShared {
    /// Nothing has happened yet.
    pub(crate) fn new(machine: String) -> Self {
        StreamShared { machine, live: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the values.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Live)) {
        change(&mut self.lock());
    }

    /// Records came in.
    pub(crate) fn received(&self, bytes: u64, seq: u64) {
        let mut live = self.lock();
        live.bytes_in += bytes;
        live.received_seq = seq;
    }

    /// An object was acknowledged.
    pub(crate) fn acknowledged(&self, object_bytes: u64) {
        self.lock().bytes_out += object_bytes;
    }

    /// A job came back.
    pub(crate) fn job_done(&self, stats: &JobStats) {
        let mut live = self.lock();
        live.dedup_hits += stats.dedup_hits;
        live.dedup_bytes += stats.dedup_bytes;
    }

    /// The store answered, or did not. Logged when that changes.
    pub(crate) fn store_answered(&self, error: Option<String>) {
        let mut live = self.lock();
        match (&live.store_error, &error) {
            (None, Some(error)) => {
                tracing::warn!(machine = self.machine, error, "the store does not answer; trying again until it does");
            }
            (Some(_), None) => tracing::info!(machine = self.machine, "the store answers again"),
            _ => {}
        }
        live.store_error = error;
    }

    /// PUTs in flight and batches that wait.
    pub(crate) fn stage_counts(&self) -> (usize, usize) {
        let live = self.lock();
        (live.uploads, live.waiting)
    }

    /// For display.
    pub(crate) fn status(&self, now: Instant) -> MachineStatus {
        let live = self.lock().clone();
        MachineStatus {
            machine: self.machine.clone(),
            connected: live.address.is_some(),
            address: live.address,
            epoch: live.epoch,
            slot: live.slot,
            received_seq: live.received_seq,
            stored_seq: live.acked.position.seq.0,
            digest: live.acked.digest.to_string(),
            lag_seconds: live.oldest.map_or(0.0, |oldest| now.duration_since(oldest).as_secs_f64()),
            bytes_in: live.bytes_in,
            bytes_out: live.bytes_out,
            dedup_hits: live.dedup_hits,
            dedup_bytes: live.dedup_bytes,
            in_flight_bytes: live.in_flight,
            segments_pending: live.segments,
            store_error: live.store_error,
        }
    }
}
