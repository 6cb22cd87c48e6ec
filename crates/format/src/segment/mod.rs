//! Segments: the only data objects. Sealed frames of chunks, and a sealed table that says which record is where.
//!
//! A worker seals frames while their bytes are hot ([`FrameSealer`]); the assembler, later and in order, adds table and
//! commit header ([`assemble`]). Frame numbers only have to be unique within the segment; the table lists them.

mod assemble;
mod read;
#[cfg(test)]
mod tests;
mod validate;

use bytes::Bytes;
use model::{LogHead, MachineName, Record};
use serde::{Deserialize, Serialize};

use crate::Codec;
use crate::object::{ObjectHash, ObjectHeader, ObjectId, Place};

#[cfg(test)]
pub(crate) use assemble::assemble_with;
pub use assemble::{FrameSealer, assemble};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use read::decode_table;
pub use read::{
    FrameOpener, SegmentReader, frame_range, open_frame, open_segment, open_table, recompute_digest, table_range,
};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use validate::table as check_table;

/// Versions of the record table, newest first.
pub const TABLE_VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// Largest record table before compression, in bytes: a segment of eight million bytes has a table of some hundred
/// kilobytes, so this is far off, and it bounds what a reader allocates.
pub const TABLE_PLAIN_BYTES_MAX: usize = 64 << 20;

/// Largest chunk in bytes; chunks are multiples of 512 and never cross a multiple of this offset on their disk.
pub const CHUNK_BYTES_MAX: u64 = 64 << 10;

/// Where a chunk's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkAt {
    /// Nowhere: all zeros.
    Zero,
    /// In a frame of this segment, `offset` bytes into its plaintext.
    Here {
        /// Frame number.
        frame: u32,
        /// Offset in the frame's plaintext.
        offset: u32,
    },
    /// In a frame of an earlier segment.
    Other {
        /// Index into [`Table::references`].
        reference: u32,
        /// Frame number there.
        frame: u32,
        /// Offset in the frame's plaintext.
        offset: u32,
    },
}

/// A run of a record's bytes. A write's pieces sum to its extent's length, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Bytes; at most [`CHUNK_BYTES_MAX`], except that a run of zeros may be longer.
    pub len: u64,
    /// Where they are.
    pub at: ChunkAt,
}

/// Names an earlier segment, and says where it was when it was named (a hint checked by the id).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SegmentRef {
    /// The segment's id.
    pub id: ObjectId,
    /// Whose stream.
    pub machine: MachineName,
    /// Epoch and slot there.
    pub epoch: u64,
    /// Slot.
    pub slot: u64,
}

/// Where a frame lies in its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameInfo {
    /// Its number, which is its nonce.
    pub number: u32,
    /// Bytes from the end of the table to the frame's first byte.
    pub offset: u64,
    /// Sealed bytes, tag included.
    pub sealed_bytes: u32,
    /// Plain bytes.
    pub plain_bytes: u32,
    /// How it was compressed.
    pub codec: u8,
}

/// The record table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Earlier segments named by records.
    pub references: Vec<SegmentRef>,
    /// Frames by number, ascending.
    pub frames: Vec<FrameInfo>,
    /// Records in order of seq, without gaps.
    pub records: Vec<Record<Vec<Piece>>>,
}

/// A frame sealed under a segment's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedFrame {
    /// Its number.
    pub number: u32,
    /// How it was compressed.
    pub codec: Codec,
    /// Plain bytes.
    pub plain_bytes: u32,
    /// Ciphertext and tag.
    pub bytes: Bytes,
}

/// What the assembler states about a segment.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Where it goes.
    pub place: Place,
    /// Hash of the object before it in the log.
    pub prev_hash: ObjectHash,
    /// Stream state after its last record.
    pub head: LogHead,
    /// Newest condemn list that the epoch answers for, as its opening says.
    pub gc_seen: u64,
    /// Whether its chunks are offered to other stream epochs.
    pub shared: bool,
}

/// A segment ready for its single PUT.
#[derive(Debug, Clone)]
pub struct SealedSegment {
    /// Header.
    pub header: ObjectHeader,
    /// Its chain link.
    pub hash: ObjectHash,
    /// The object's bytes, in order, uncopied.
    pub parts: Vec<Bytes>,
}
