//! Records: what a stream is made of.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{DiskId, DiskName, Extent, Incarnation, Seq, Timestamp};

/// One entry of a machine's stream. `data` is whatever carries the payload of a write where the record is at that
/// moment: bytes on the agent and the wire ([`Bytes`]), chunk references in a segment's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<D = Bytes> {
    /// Number in the stream.
    pub seq: Seq,
    /// The agent's clock when the source disk had completed the write; never goes back along a stream.
    pub time: Timestamp,
    /// Version of the dirty map in force.
    pub map_version: u64,
    /// What happened.
    pub body: RecordBody<D>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordBody<D = Bytes> {
    /// Bytes were written. `data` stands for exactly `extent.len()` bytes.
    Write {
        /// Where.
        disk: DiskId,
        /// Which range.
        extent: Extent,
        /// The bytes, or what stands for them.
        data: D,
    },
    /// A range now reads as zeros.
    Zero {
        /// Where.
        disk: DiskId,
        /// Which range.
        extent: Extent,
    },
    /// Names this position.
    Mark(Mark),
    /// From here to the matching [`RecordBody::DrainEnd`] no position is a point.
    DrainBegin {
        /// Why a drain was needed.
        cause: DrainCause,
        /// The life that drains.
        incarnation: Incarnation,
        /// Last position of the stream that was a point; what came after it on the source was not all recorded.
        lost_after: Seq,
    },
    /// Every region that was to drain has been sent: this position is a point again.
    DrainEnd(Mark),
    /// A disk of the machine appeared, changed size or left.
    Disk {
        /// Its identity in records.
        disk: DiskId,
        /// Its name.
        name: DiskName,
        /// Its size in bytes.
        size: u64,
        /// What changed.
        change: DiskChange,
    },
}

/// A name for a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// How consistent the position is.
    pub kind: MarkKind,
    /// 128 random bits.
    pub id: [u8; 16],
    /// What the user called it; at most 200 bytes, empty for none.
    pub label: String,
}

/// How consistent a marked position is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MarkKind {
    /// As if the power had been cut there.
    Crash,
    /// Applications were quiesced.
    Application,
}

/// Why a drain began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DrainCause {
    /// The disk was never replicated before.
    Initial,
    /// The agent started after a stop that may have lost unsent records.
    UncleanStop,
    /// Queue and spool were full, or no process server took data for too long.
    Overflow,
    /// A source write or flush failed, or was left undecided.
    SourceError,
    /// A disk was added or grew.
    DiskChange,
    /// A compare found differences, or stood in for a lost dirty map.
    Compare,
    /// The agent lost its own state: the spool could not be read back.
    AgentState,
}

/// What happened to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskChange {
    /// It is protected from here on.
    Added,
    /// Its size is new.
    Resized,
    /// It is no longer protected.
    Removed,
}

impl<D> RecordBody<D> {
    /// Whether a drain is open after it, where one was, or was not, before.
    pub fn drains_after(&self, before: bool) -> bool {
        match self {
            RecordBody::DrainBegin { .. } => true,
            RecordBody::DrainEnd(_) => false,
            _ => before,
        }
    }

    /// kind, disk, offset, len for the running digest; fixed for ever. A drain end digests as its own kind.
    pub(crate) fn digest_fields(&self) -> (u8, u32, u64, u64) {
        match self {
            RecordBody::Write { disk, extent, .. } => (1, disk.0, extent.offset(), extent.len()),
            RecordBody::Zero { disk, extent } => (2, disk.0, extent.offset(), extent.len()),
            RecordBody::Mark(_) => (3, 0, 0, 0),
            RecordBody::DrainBegin { lost_after, .. } => (4, 0, lost_after.0, 0),
            RecordBody::DrainEnd(_) => (5, 0, 0, 0),
            RecordBody::Disk { disk, size, .. } => (6, disk.0, 0, *size),
        }
    }

    /// The range a write or zero covers.
    pub fn extent(&self) -> Option<(DiskId, Extent)> {
        match self {
            RecordBody::Write { disk, extent, .. } | RecordBody::Zero { disk, extent } => Some((*disk, *extent)),
            _ => None,
        }
    }

    /// The same body with its payload exchanged.
    pub fn map_data<E>(self, f: impl FnOnce(Extent, D) -> E) -> RecordBody<E> {
        match self {
            RecordBody::Write { disk, extent, data } => RecordBody::Write { disk, extent, data: f(extent, data) },
            RecordBody::Zero { disk, extent } => RecordBody::Zero { disk, extent },
            RecordBody::Mark(mark) => RecordBody::Mark(mark),
            RecordBody::DrainBegin { cause, incarnation, lost_after } => {
                RecordBody::DrainBegin { cause, incarnation, lost_after }
            }
            RecordBody::DrainEnd(mark) => RecordBody::DrainEnd(mark),
            RecordBody::Disk { disk, name, size, change } => RecordBody::Disk { disk, name, size, change },
        }
    }
}
