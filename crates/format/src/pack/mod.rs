//! Packs: frames of segments before the horizon, copied verbatim out of segments of which little is needed any more.
//!
//! ```text
//! │ header │ sealed index │ frames of one segment │ frames of the next │ …
//!             for each segment its place, its id and its frames
//! ```
//! A frame is sealed under the key of its own segment, and what authenticates it names that segment's id and its number
//! there, not where it lies. So it opens out of a pack as it opened out of its segment, and nothing is sealed twice.
//!
//! A [`PackRef`] names a pack, and with it a run of the stream: of all segments from its first to its last, the pack holds
//! whatever any promised position reads.

mod read;
#[cfg(test)]
mod tests;
mod write;

use serde::{Deserialize, Serialize};

use crate::object::ObjectId;
use crate::segment::FrameInfo;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use read::decode_index;
pub(crate) use read::packs_are_sound;
pub use read::{index_of, open_index};
pub use write::{PackTooLarge, PackWriter, SealedPack};

/// Versions of the index, newest first.
pub const VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// Where a pack lies: in the namespace of the manifest epoch whose owner made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackName {
    /// Manifest epoch of its maker.
    pub epoch: u64,
    /// Its number there, from 1.
    pub number: u64,
}

/// A pack as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRef {
    /// The pack.
    pub name: PackName,
    /// Epoch and slot of the first segment in it.
    pub first: (u64, u64),
    /// Epoch and slot of the last.
    pub last: (u64, u64),
    /// Sealed bytes of its index, so that header and index are one read.
    pub index_bytes: u32,
    /// Bytes of the whole pack.
    pub bytes: u64,
}

impl PackRef {
    /// Whether a segment there is read from this pack.
    pub fn covers(&self, epoch: u64, slot: u64) -> bool {
        self.first <= (epoch, slot) && (epoch, slot) <= self.last
    }
}

/// The one of these packs, which are in order, that stands for a segment.
pub fn covering(packs: &[PackRef], epoch: u64, slot: u64) -> Option<&PackRef> {
    let at = packs.partition_point(|pack| pack.last < (epoch, slot));
    packs.get(at).filter(|pack| pack.covers(epoch, slot))
}

/// What a pack holds of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedSegment {
    /// Where the segment lay.
    pub epoch: u64,
    /// Slot.
    pub slot: u64,
    /// Its id: the frames are sealed under it.
    pub id: ObjectId,
    /// Frames by number, ascending; offsets are in the pack.
    pub frames: Vec<FrameInfo>,
}

/// The index of a pack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackIndex {
    /// Segments by epoch and slot, ascending.
    pub segments: Vec<PackedSegment>,
}

impl PackIndex {
    /// What it holds of a segment.
    pub fn segment(&self, epoch: u64, slot: u64) -> Option<&PackedSegment> {
        let at = self.segments.binary_search_by_key(&(epoch, slot), |held| (held.epoch, held.slot)).ok()?;
        self.segments.get(at)
    }
}
