//! How long work tells how far it is.

use std::sync::Arc;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading record tables; counted in records, the total is not known.
    Loading,
    /// Writing disks; counted in bytes.
    Restoring,
    /// Reading written disks back from the medium; counted in bytes.
    ReadingBack,
    /// Re-reading objects; counted in bytes, and about.
    Verifying,
    /// Reckoning state digests again; counted in points.
    Reckoning,
    /// Comparing; counted in bytes.
    Comparing,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Units done.
    pub done: u64,
    /// Units in all; 0 when not known.
    pub total: u64,
}

/// Is called with the progress made, often: it must be quick.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// Tells `progress`, if anybody listens.
pub(crate) fn tell(progress: &Option<ProgressFn>, stage: Stage, done: u64, total: u64) {
    if let Some(progress) = progress {
        progress(Progress { stage, done, total });
    }
}
