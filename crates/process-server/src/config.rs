//! What a process server runs on. Every bound it keeps is named here or beside the loop that keeps it.

use std::collections::BTreeSet;
use std::time::Duration;

use format::wire::DATA_BYTES_MAX;
use model::MachineName;

use crate::ProcessServerError;

/// A segment is never sealed for size before it holds this much: below it the header and the PUT would dominate.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// No segment aims higher: with one largest job on top it still stays below the largest object a reader takes.
const SEGMENT_BYTES_MAX: u64 = 128 << 20;

/// Credit that one largest frame needs: its bytes, and the fixed cost of its record.
const CREDIT_BYTES_MIN: u64 = DATA_BYTES_MAX as u64 + 64;

/// More parallel uploads of one stream than this only queue at the store.
const UPLOADS_MAX: usize = 64;

/// More threads than this are a typing error.
const WORKERS_MAX: usize = 1024;

/// Settings of a process server.
#[derive(Debug, Clone)]
pub struct ProcessServerConfig {
    /// Its name, as in its certificate.
    pub name: MachineName,
    /// A segment is sealed when it holds about this many sealed bytes.
    pub segment_bytes: u64,
    /// A segment is sealed this long after its first record at the latest: the knob of the recovery point objective.
    pub segment_age: Duration,
    /// A stream goes on in a new epoch after this time: what is stored is deleted by whole epochs, and chunks are found again
    /// within one epoch only.
    pub epoch_life: Duration,
    /// Bytes of one machine that may be received and not yet stored; raised to one largest frame.
    pub credit_bytes: u64,
    /// Bytes of all machines together that may be received and not yet stored, beside the 2 MiB that each is sure of.
    pub in_flight_bytes: u64,
    /// Threads that chunk, compress and seal; 0 runs that work inline, for simulations.
    pub workers: usize,
    /// PUTs of one stream in flight.
    pub uploads_max: usize,
    /// Chunks that the dedup index remembers, of all streams together; 0 turns dedup off.
    pub dedup_entries_max: usize,
    /// Chunks of drains of all streams that the shared index remembers; 0 shares nothing between streams and epochs.
    pub share_entries_max: usize,
    /// Machines that are taken; none means every machine the CA vouches for.
    pub machines: Option<BTreeSet<MachineName>>,
}

impl ProcessServerConfig {
    /// The defaults: 8 MiB or 1 s segments, 6 h epochs, credit of 64 MiB and 96 MiB for all, a worker for each core, 4 uploads, 2^18 chunks.
    pub fn new(name: MachineName) -> Self {
        Self {
            name,
            segment_bytes: 8 << 20,
            segment_age: Duration::from_secs(1),
            epoch_life: Duration::from_secs(6 * 3600),
            credit_bytes: 64 << 20,
            in_flight_bytes: 96 << 20,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            uploads_max: 4,
            dedup_entries_max: 1 << 18,
            share_entries_max: 0,
            machines: None,
        }
    }

    /// Checks the ranges and raises the credit to what the protocol needs.
    pub(crate) fn validated(mut self) -> Result<Self, ProcessServerError> {
        let bad = |setting, rule| Err(ProcessServerError::Config { setting, rule });
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            return bad("segment_bytes", "set it to 64KiB up to 128MiB");
        }
        if self.segment_age < Duration::from_millis(1) || self.segment_age > Duration::from_secs(3600) {
            return bad("segment_age", "set it to 1ms up to 1h");
        }
        if self.epoch_life < Duration::from_secs(1) {
            return bad("epoch_life", "set it to 1s or more");
        }
        if !(1..=UPLOADS_MAX).contains(&self.uploads_max) {
            return bad("uploads_max", "set it to 1 up to 64");
        }
        if self.workers > WORKERS_MAX {
            return bad("workers", "set it to at most 1024");
        }
        self.credit_bytes = self.credit_bytes.max(CREDIT_BYTES_MIN);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ProcessServerConfig {
        ProcessServerConfig::new("ps".parse().expect("a name"))
    }

    #[test]
    fn credit_always_holds_one_largest_frame() {
        let small = ProcessServerConfig { credit_bytes: 1, ..config() };
        assert!(small.validated().expect("valid").credit_bytes >= DATA_BYTES_MAX as u64);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let cases = [
            (ProcessServerConfig { segment_bytes: 1, ..config() }, "segment_bytes"),
            (ProcessServerConfig { segment_bytes: 1 << 40, ..config() }, "segment_bytes"),
            (ProcessServerConfig { segment_age: Duration::ZERO, ..config() }, "segment_age"),
            (ProcessServerConfig { epoch_life: Duration::ZERO, ..config() }, "epoch_life"),
            (ProcessServerConfig { uploads_max: 0, ..config() }, "uploads_max"),
            (ProcessServerConfig { workers: 1 << 20, ..config() }, "workers"),
        ];
        for (config, setting) in cases {
            let error = config.validated().expect_err(setting).to_string();
            assert!(error.contains(setting), "{error}");
        }
        config().validated().expect("defaults are valid");
    }
}
