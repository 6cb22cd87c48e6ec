//! What a stage of a role has done so far: how many bytes, and for how long something was at work on them. Whoever looks twice can
//! say how busy a stage was in between, and which of them bounds the others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// What one stage has done. Relaxed throughout: sums order nothing, and no memory is published through them.
#[derive(Debug, Default)]
pub struct StageWork {
    bytes: AtomicU64,
    busy_micros: AtomicU64,
}

/// State of one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageStatus {
    /// Its name.
    pub stage: &'static str,
    /// How many things it can work on at once.
    pub places: usize,
    /// Things being worked on.
    pub busy: usize,
    /// Things waiting.
    pub queued: usize,
    /// Bytes worked on since the role started.
    pub bytes_total: u64,
    /// Seconds of work since then, added up over all places.
    pub busy_seconds_total: f64,
}

impl StageWork {
    /// So many bytes were worked on for so long.
    pub fn worked(&self, bytes: u64, took: Duration) {
        // Relaxed: sums.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.busy_micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// With its name, and what is known of this moment.
    pub fn status(&self, stage: &'static str, places: usize, busy: usize, queued: usize) -> StageStatus {
        // Relaxed: sums.
        let (bytes_total, micros) = (self.bytes.load(Ordering::Relaxed), self.busy_micros.load(Ordering::Relaxed));
        let busy_seconds_total = Duration::from_micros(micros).as_secs_f64();
        StageStatus { stage, places, busy, queued, bytes_total, busy_seconds_total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_sums_its_bytes_and_its_time() {
        let (upload, idle) = (StageWork::default(), StageWork::default());
        upload.worked(7, Duration::from_secs(1));
        upload.worked(3, Duration::from_millis(2250));
        let wanted =
            StageStatus { stage: "upload", places: 4, busy: 1, queued: 2, bytes_total: 10, busy_seconds_total: 3.25 };
        assert_eq!(upload.status("upload", 4, 1, 2), wanted);
        let idle = idle.status("ingest", 1, 0, 0);
        assert_eq!((idle.bytes_total, idle.busy_seconds_total), (0, 0.0));
    }
}
