//! The one container of everything in the store: a fixed header that authenticates itself, and sealed frames behind it.
//!
//! ```text
//! 0            384                          384 + table          total
//! │ header+MAC │ sealed table (segments)    │ sealed frame 0, 1, …  │
//! ```
//! The header's keyed BLAKE3 covers the header, and the header holds a digest of every byte behind it, so
//! [`ObjectHeader::hash`] stands for the whole object: the hash chain of a log is walked by reading headers alone.
//! Frames are sealed under a key that depends on the object id only, so they may be copied verbatim into another slot.

mod header;
mod lists;
mod small;
#[cfg(test)]
mod tests;

use std::fmt;

use model::{LogHead, MachineName, Seq, Timestamp};

use crate::FormatError;
use crate::keys::VaultId;
use crate::versioned;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use header::offset as header_offset;
pub use lists::{CondemnList, LIST_VERSIONS, RegistryEntry, StreamEpoch};
pub(crate) use small::open_body;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use small::seal_small_with;
pub use small::{SmallObject, open_small, seal_small};

/// Versions of the object container, newest first.
pub const VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// Versions of the opening body, newest first.
pub const OPENING_VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// Bytes of the header; a ranged read of this many opens any object.
pub const HEADER_BYTES: usize = 384;

/// No object is larger: a reader may refuse more without reading it.
pub const OBJECT_BYTES_MAX: u64 = 256 << 20;

/// `gc_seen` of an epoch of a stream that refers to segments of no other epoch: it answers for every list.
pub const SEES_ALL: u64 = u64::MAX;

/// No frame holds more plain bytes.
pub const FRAME_PLAIN_BYTES_MAX: usize = 64 << 20;

/// 256 random bits that name an object and derive its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct ObjectId(pub [u8; 32]);

impl ObjectId {
    /// A fresh id from the operating system's randomness.
    pub fn random() -> Self {
        ObjectId(crate::keys::random_bytes())
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// BLAKE3 of a header (which covers the whole object): the link of the hash chain. All zero before the first object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct ObjectHash(pub [u8; 32]);

impl fmt::Display for ObjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What an object is; the number is part of the format, and each kind has its own magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ObjectKind {
    /// The one object at the root that names the vault.
    Vault = 1,
    /// `epoch/<n>`: somebody owns epoch n.
    Epoch = 2,
    /// Slot 0 of an epoch.
    Opening = 3,
    /// Slot 1 and up of a machine's stream.
    Segment = 4,
    /// Slot 1 and up of a machine's manifest log.
    Manifest = 5,
    /// A map of a machine's history, made by the owner of a manifest epoch and numbered by it.
    Map = 6,
    /// `condemn/<n>`: stream epochs to which nothing new refers.
    Condemn = 7,
    /// `registry/<n>`: a machine that may refer to segments of others.
    Registry = 8,
    /// Frames of segments before the horizon, put together by the owner of a manifest epoch and numbered by it.
    Pack = 9,
    /// A request to hold a position: see [`crate::hold`].
    Hold = 10,
    /// A state of the list of a stream's consumers: see [`crate::consumers`].
    Consumer = 11,
}

impl ObjectKind {
    /// Every kind, by number.
    pub const ALL: [ObjectKind; 11] = [
        ObjectKind::Vault,
        ObjectKind::Epoch,
        ObjectKind::Opening,
        ObjectKind::Segment,
        ObjectKind::Manifest,
        ObjectKind::Map,
        ObjectKind::Condemn,
        ObjectKind::Registry,
        ObjectKind::Pack,
        ObjectKind::Hold,
        ObjectKind::Consumer,
    ];

    /// The kind's name: what messages show and what its magic is made of.
    pub fn name(self) -> &'static str {
        match self {
            ObjectKind::Vault => "vault",
            ObjectKind::Epoch => "epoch",
            ObjectKind::Opening => "opening",
            ObjectKind::Segment => "segment",
            ObjectKind::Manifest => "manifest",
            ObjectKind::Map => "map",
            ObjectKind::Condemn => "condemn",
            ObjectKind::Registry => "registry",
            ObjectKind::Pack => "pack",
            ObjectKind::Hold => "hold",
            ObjectKind::Consumer => "consumer",
        }
    }

    /// First 8 bytes of BLAKE3 of `farshore object <name>`.
    pub fn magic(self) -> [u8; 8] {
        match self {
            ObjectKind::Vault => MAGICS[0],
            ObjectKind::Epoch => MAGICS[1],
            ObjectKind::Opening => MAGICS[2],
            ObjectKind::Segment => MAGICS[3],
            ObjectKind::Manifest => MAGICS[4],
            ObjectKind::Map => MAGICS[5],
            ObjectKind::Condemn => MAGICS[6],
            ObjectKind::Registry => MAGICS[7],
            ObjectKind::Pack => MAGICS[8],
            ObjectKind::Hold => MAGICS[9],
            ObjectKind::Consumer => MAGICS[10],
        }
    }

    /// Whether a sealed table and any number of frames follow the header; else one sealed body does.
    pub fn has_table(self) -> bool {
        self.has_records() || self == ObjectKind::Pack
    }

    /// Whether the header says which records it holds.
    pub fn has_records(self) -> bool {
        matches!(self, ObjectKind::Segment | ObjectKind::Map)
    }
}

/// Magics by kind number, from 1.
const MAGICS: [[u8; 8]; 11] = [
    [0xf1, 0x60, 0xb2, 0x7a, 0xf6, 0xfb, 0x21, 0x33],
    [0x7b, 0x5e, 0xe8, 0x9b, 0xfd, 0xb2, 0x98, 0x9f],
    [0x3b, 0xae, 0xc2, 0x76, 0xd4, 0x70, 0x85, 0x87],
    [0x5e, 0xf2, 0xd3, 0x86, 0x72, 0x39, 0xdf, 0x92],
    [0x64, 0x0d, 0xf5, 0xb6, 0x66, 0x16, 0x09, 0x1e],
    [0xa6, 0x07, 0xb1, 0x24, 0xb9, 0xf0, 0x13, 0x53],
    [0x22, 0x31, 0xd6, 0xd1, 0x9c, 0x20, 0xa9, 0xd5],
    [0x69, 0x51, 0x60, 0x97, 0x36, 0xad, 0xde, 0x79],
    [0x72, 0x73, 0x6b, 0x77, 0x6d, 0xca, 0xbf, 0xa6],
    [0xd8, 0x58, 0x32, 0x1c, 0x87, 0x6d, 0xb6, 0xb1],
    [0x75, 0xab, 0x14, 0xec, 0x13, 0x03, 0x37, 0xcf],
];

/// Which log of a machine an object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogKind {
    /// The stream: segments.
    Stream = 1,
    /// The manifest log.
    Manifest = 2,
}

/// Where an object belongs: checked on reading against where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whose object; none for the vault object and those of its lists.
    pub machine: Option<MachineName>,
    /// Which log; none likewise.
    pub log: Option<LogKind>,
    /// Epoch; 0 for the vault object, and the number of an object of a list.
    pub epoch: u64,
    /// Slot; 0 for all that lie in no slot.
    pub slot: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.machine {
            Some(machine) => write!(f, "{machine}/")?,
            None => f.write_str("vault root/")?,
        }
        match self.log {
            Some(LogKind::Stream) => f.write_str("stream/")?,
            Some(LogKind::Manifest) => f.write_str("manifest/")?,
            None => {}
        }
        write!(f, "epoch {} slot {}", self.epoch, self.slot)
    }
}

/// The commit header. `head` is the end of the stream after this object: for a segment its last record, for an opening
/// what it continues; zero for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHeader {
    /// What it is.
    pub kind: ObjectKind,
    /// Header and all that follows, in bytes.
    pub total_bytes: u64,
    /// Vault it belongs to.
    pub vault: VaultId,
    /// Its random id.
    pub id: ObjectId,
    /// Where it belongs.
    pub place: Place,
    /// Hash of the object before it in the log.
    pub prev_hash: ObjectHash,
    /// First record number; `head.position.seq + 1` when it holds none.
    pub first_seq: Seq,
    /// Time of the first record.
    pub first_time: Timestamp,
    /// Stream state after it.
    pub head: LogHead,
    /// Newest condemn list that its epoch answers for: the same in the opening and in all segments of an epoch of a stream.
    /// [`SEES_ALL`] where the epoch refers to no other.
    pub gc_seen: u64,
    /// Whether a segment's chunks were offered to other stream epochs.
    pub shared: bool,
    /// Number of data frames behind the table.
    pub frame_count: u32,
    /// Sealed bytes of the table that follows the header; 0 when there is none.
    pub table_sealed_bytes: u32,
    /// Plain bytes of the table after decompression.
    pub table_plain_bytes: u32,
    /// BLAKE3 of every byte behind the header.
    pub body_digest: [u8; 32],
}

/// Body of slot 0: what an epoch continues. `state` is empty for a stream and a full manifest for a manifest log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Opening {
    /// Epoch it continues.
    pub prev_epoch: u64,
    /// Last accepted slot there; whatever lies behind it is void.
    pub prev_end: u64,
    /// Self-contained state for logs whose older epochs may go.
    pub state: Vec<u8>,
}

/// Bytes of an opening before its state: version, previous epoch, previous end.
const OPENING_HEAD_BYTES: usize = 18;

impl Opening {
    /// Bytes of the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(OPENING_HEAD_BYTES + self.state.len());
        bytes.extend_from_slice(&OPENING_VERSIONS[0].0.to_le_bytes());
        bytes.extend_from_slice(&self.prev_epoch.to_le_bytes());
        bytes.extend_from_slice(&self.prev_end.to_le_bytes());
        bytes.extend_from_slice(&self.state);
        bytes
    }

    /// Reads the body. Errors: `Truncated`, `Version`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (_, rest) = versioned::version("opening", OPENING_VERSIONS[0].0, bytes)?;
        let truncated = FormatError::Truncated { need: OPENING_HEAD_BYTES as u64, have: bytes.len() as u64 };
        let (prev_epoch, rest) = rest.split_first_chunk::<8>().ok_or(truncated.clone())?;
        let (prev_end, state) = rest.split_first_chunk::<8>().ok_or(truncated)?;
        Ok(Self {
            prev_epoch: u64::from_le_bytes(*prev_epoch),
            prev_end: u64::from_le_bytes(*prev_end),
            state: state.to_vec(),
        })
    }
}
