//! What each stage has done so far: how many bytes, and for how long something was at work on them. Whoever looks twice can say
//! how busy a stage was in between, and which of them bounds the others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::status::StageStatus;

/// The stages, in the order a byte meets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Records of a session are checked and put in order.
    Ingest,
    /// They are cut, found again, compressed, sealed and put together.
    Pipeline,
    /// Segments are put.
    Upload,
}

/// Of one stage. Relaxed throughout: sums order nothing, and no memory is published through them.
#[derive(Default)]
struct Work {
    bytes: AtomicU64,
    busy_micros: AtomicU64,
}

/// Of all.
#[derive(Default)]
pub(crate) struct Stages([Work; 3]);

impl Stages {
    /// So many bytes were worked on for so long.
    pub(crate) fn worked(&self, stage: Stage, bytes: u64, took: Duration) {
        let work = &self.0[stage as usize];
        // Relaxed: sums.
        work.bytes.fetch_add(bytes, Ordering::Relaxed);
        work.busy_micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// With what is known of this moment.
    pub(crate) fn status(&self, stage: Stage, places: usize, busy: usize, queued: usize) -> StageStatus {
        let work = &self.0[stage as usize];
        // Relaxed: sums.
        let (bytes, micros) = (work.bytes.load(Ordering::Relaxed), work.busy_micros.load(Ordering::Relaxed));
        let name = match stage {
            Stage::Ingest => "ingest",
            Stage::Pipeline => "pipeline",
            Stage::Upload => "upload",
        };
        let busy_seconds = Duration::from_micros(micros).as_secs_f64();
        StageStatus { stage: name, places, busy, queued, bytes_total: bytes, busy_seconds_total: busy_seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_sums_its_own_work() {
        let stages = Stages::default();
        stages.worked(Stage::Ingest, 10, Duration::from_millis(250));
        stages.worked(Stage::Upload, 7, Duration::from_secs(1));
        stages.worked(Stage::Upload, 3, Duration::from_secs(2));
        let upload = stages.status(Stage::Upload, 4, 1, 2);
        assert_eq!((upload.stage, upload.bytes_total, upload.busy_seconds_total), ("upload", 10, 3.0));
        assert_eq!((upload.places, upload.busy, upload.queued), (4, 1, 2));
        assert_eq!(stages.status(Stage::Pipeline, 1, 0, 0).bytes_total, 0);
        assert_eq!(stages.status(Stage::Ingest, 1, 0, 0).busy_seconds_total, 0.25);
    }
}
