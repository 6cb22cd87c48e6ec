//! Maps: what each range of a machine's disks reads as after a stretch of its stream, so that a position opens without
//! the record tables of all that came before.
//!
//! ```text
//! │ header │ sealed index │ sealed page │ sealed page │ …
//!             disks, pages by disk and range, and what the map is made of: segments (a leaf) or eight maps (a merge)
//! ```
//! A map covers the records behind its `first_seq - 1` up to its head and says only what they changed: below it lie the
//! maps of what came before. Zeros are runs like any other, for they cover what lies below.
//!
//! A [`Node`] names a map, and with it the whole stretch of history that the map covers. Nodes form a tree: a leaf is
//! made of segments, a merge of [`FANOUT`] nodes of the level below. So the manifest names a handful of nodes however
//! long the history, and the way to a position goes from one of them down to a leaf.

mod page;
mod read;
#[cfg(test)]
mod tests;
mod write;

use model::{DiskId, DiskName, Extent, MachineName};
use serde::{Deserialize, Serialize};

use crate::manifest::Promoted;
use crate::object::ObjectId;
use crate::segment::FrameInfo;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use page::{decode as decode_page, encode as encode_page};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use read::decode_index;
pub(crate) use read::node_is_sound;
pub use read::{index_of, open_index, open_page, page_range};
pub use write::{MapFacts, MapTooLarge, MapWriter, SealedMap};

/// Versions of index and page bodies, newest first.
pub const VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// Nodes that a merge is made of.
pub const FANOUT: usize = 8;

/// Highest level of a node: eight to the twentieth leaves are more than there will ever be.
pub const LEVEL_MAX: u8 = 20;

/// Runs in one page at most.
pub const PAGE_RUNS_MAX: usize = 4096;

/// Largest plain page in bytes: each run takes at most some 60.
pub const PAGE_PLAIN_BYTES_MAX: usize = 512 << 10;

/// First bytes of a segment's id: with epoch and slot they tell it from any other that ever lay in its place.
pub type Tag = [u8; 8];

/// The tag of an id.
pub fn tag(id: &ObjectId) -> Tag {
    id.0[..8].try_into().expect("an id is longer than its tag")
}

/// Whose segment it is, as maps name machines: 0 for the map's own, else eight bytes of BLAKE3 of the name, which the index
/// of the map spells out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Owner(pub u64);

impl Owner {
    /// The machine of the map.
    pub const SELF: Owner = Owner(0);

    /// Another machine.
    pub fn of(machine: &MachineName) -> Self {
        let hash = *blake3::hash(machine.as_str().as_bytes()).as_bytes();
        let first: [u8; 8] = hash[..8].try_into().expect("a hash is longer than eight bytes");
        Owner(u64::from_le_bytes(first).max(1))
    }
}

/// A segment, as maps name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentName {
    /// Whose.
    pub owner: Owner,
    /// Where it lies.
    pub epoch: u64,
    /// Slot.
    pub slot: u64,
    /// Which it is.
    pub tag: Tag,
}

/// Where the bytes of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapSource {
    /// Nowhere: zeros.
    Zero,
    /// In a frame of a segment.
    Data {
        /// The segment.
        segment: SegmentName,
        /// Frame number.
        frame: u32,
        /// Offset in the frame's plain bytes.
        offset: u32,
    },
}

/// A range of a disk and where its bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRun {
    /// The range.
    pub extent: Extent,
    /// Its bytes.
    pub source: MapSource,
}

/// A disk at the end of a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDisk {
    /// Its identity in records.
    pub id: DiskId,
    /// Its name.
    pub name: DiskName,
    /// Its size in bytes.
    pub size: u64,
}

/// Where a map lies: in the namespace of the manifest epoch whose owner made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MapName {
    /// Manifest epoch of its maker.
    pub epoch: u64,
    /// Its number there, from 1.
    pub number: u64,
}

/// A stretch of history and its map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// 0 for a leaf; a merge is one above what it is made of.
    pub level: u8,
    /// The map.
    pub map: MapName,
    /// Sealed bytes of the map's index, so that header and index are one read.
    pub index_bytes: u32,
    /// Bytes of the whole map.
    pub bytes: u64,
    /// The last segment in it.
    pub end: Promoted,
}

/// A page of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageInfo {
    /// Disk.
    pub disk: DiskId,
    /// Offset of its first run.
    pub start: u64,
    /// End of its last run.
    pub end: u64,
    /// Where it lies and how it is sealed.
    pub frame: FrameInfo,
}

/// The index of a map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapIndex {
    /// The disks at its end, by id.
    pub disks: Vec<MapDisk>,
    /// What a merge is made of, oldest first; empty for a leaf.
    pub children: Vec<Node>,
    /// What a leaf is made of, in log order; empty for a merge.
    pub segments: Vec<Promoted>,
    /// Other machines from whose segments runs read, in order of name.
    pub machines: Vec<MachineName>,
    /// Pages by disk and offset, none overlapping.
    pub pages: Vec<PageInfo>,
}
