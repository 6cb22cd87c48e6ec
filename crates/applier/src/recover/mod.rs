//! Recovery: any valid position of a machine's stream, opened from the store and the vault key alone.
//!
//! [`History`] reads the manifest and the records behind what it names. A selector resolves to a position, and a position
//! opens as a [`PointReader`]: maps of what came before, the records of one stretch over them, bytes fetched on demand.
//! Restore, serve, verify and compare all stand on that.

mod ahead;
mod cache;
mod compare;
mod digest;
mod error;
mod frames;
mod history;
mod hold;
mod map;
mod overlay;
mod plain;
mod point;
mod progress;
mod records;
mod restore;
mod sealed;
mod selection;
mod state;
mod trace;
mod validity;
mod verify;
mod walk;

pub use cache::{CACHE_BYTES_MIN, ReadCache, ReadCacheStats};
pub use compare::{CompareReport, compare};
pub use error::{ErrorKind, RecoverError};
pub use history::{History, LoadOptions};
pub use hold::{HoldAnswer, PositionHold};
pub use overlay::OverlayExport;
pub use point::{PointDisk, PointDiskInfo, PointReader};
pub use progress::{Progress, ProgressFn, Stage};
pub use restore::{RestoreOptions, RestoreReport, RestoredDisk, restore};
pub use selection::{PointView, PointsView, Resolved, StateView, ValidRange};
pub use verify::{
    AtReport, Coverage, Damage, Sample, SeqRange, Share, StateFile, VerifyOptions, VerifyReport, Witness, WrongPoint,
    verify,
};

pub use crate::replica::processed;

#[cfg(test)]
pub(crate) use ahead::ReadAhead;
pub(crate) use digest::Reckoned;
pub(crate) use frames::{Frames, Layout, ObjectPlace};
pub(crate) use history::{stream_log, stream_log_with, unknown};
pub(crate) use map::Source;
pub(crate) use point::{piece_of, source_of};
pub(crate) use sealed::Sealed;
pub(crate) use state::Disks;
pub(crate) use validity::Validity;
