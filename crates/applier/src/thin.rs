//! Thinning: which recovery points the policy keeps no longer.
//!
//! The rules are pure and stand in [`model::retention`]; here is when they are asked. What must hold: neither the last good point
//! nor one that is held is ever dropped, and a drop is part of a commit, so that an owner that dies leaves it done or not done. Dropped is the
//! point's name: no segment goes, and its position can still be opened by time or seq.

use format::manifest::Manifest;
use model::retention::Candidate;
use model::{PointId, Timestamp};
use tokio::time::Instant;

use crate::ApplierConfig;
use crate::holds::is_held;
use crate::recover::Validity;

/// When the policy was asked last.
#[derive(Default)]
pub(crate) struct Thinning {
    looked_at: Option<Instant>,
}

impl Thinning {
    /// The points to drop now; none before it is time to look again. `validity` knows of every point in the manifest.
    pub fn due(
        &mut self,
        config: &ApplierConfig,
        manifest: &Manifest,
        validity: &Validity,
        now: Timestamp,
    ) -> Vec<PointId> {
        if self.looked_at.is_some_and(|at| at.elapsed() < config.tidy_every) {
            return Vec::new();
        }
        self.looked_at = Some(Instant::now());
        let candidate = |point: &format::manifest::Point| Candidate {
            id: point.id,
            time: point.time,
            seq: point.position.seq,
            pinned: manifest.pins.contains(&point.id) || is_held(manifest, point.position.seq),
            good: validity.contains(point.position.seq),
        };
        let points: Vec<_> = manifest.points.iter().map(candidate).collect();
        config.retention.plan(&points, config.journal_window, now).dropped
    }
}
