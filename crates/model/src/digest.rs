//! The running digest over record headers, by which agent and log prove to each other that they speak of the same past.
//!
//! `d(n) = BLAKE3(d(n-1) | seq | kind | disk | offset | len | time)`, all little-endian, 8 bytes each but the kind (1) and
//! the disk (4). `d(0)` is zero. Payloads are not covered: segments authenticate those.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Record;

/// The digest after some record; all zero before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct RecordDigest(pub [u8; 32]);

impl fmt::Display for RecordDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Folds record headers into a [`RecordDigest`].
#[derive(Debug, Clone, Copy, Default)]
pub struct RecordDigester {
    digest: RecordDigest,
}

impl RecordDigester {
    /// Continues after the record whose digest is given.
    pub fn resume(digest: RecordDigest) -> Self {
        Self { digest }
    }

    /// Folds one record in and returns the digest after it.
    pub fn push<D>(&mut self, record: &Record<D>) -> RecordDigest {
        let (kind, disk, offset, len) = record.body.digest_fields();
        let mut input = [0u8; 69];
        input[..32].copy_from_slice(&self.digest.0);
        input[32..40].copy_from_slice(&record.seq.0.to_le_bytes());
        input[40] = kind;
        input[41..45].copy_from_slice(&disk.to_le_bytes());
        input[45..53].copy_from_slice(&offset.to_le_bytes());
        input[53..61].copy_from_slice(&len.to_le_bytes());
        input[61..69].copy_from_slice(&record.time.0.to_le_bytes());
        self.digest = RecordDigest(*blake3::hash(&input).as_bytes());
        self.digest
    }

    /// The digest so far.
    pub fn digest(&self) -> RecordDigest {
        self.digest
    }
}
