//! Where in a stream something is: sequence numbers, incarnations, heads.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{RecordDigest, Timestamp};

/// A record's number in its machine's stream. The first record is 1; 0 means "before the first". Numbers of one stream
/// have no gaps: the record after `n` is `n + 1`, across incarnations too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first record.
    pub const ZERO: Seq = Seq(0);

    /// The next number.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One unbroken life of an agent's sequence: 128 random bits. All zero before the first record of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation(pub [u8; 16]);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Incarnation and number: the identity of a record, and the name of the state after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The life in which the record was numbered.
    pub incarnation: Incarnation,
    /// The record's number.
    pub seq: Seq,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.incarnation, self.seq)
    }
}

/// The end of a stream as one party knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogHead {
    /// The last record.
    pub position: Position,
    /// Digest over the headers of every record up to it.
    pub digest: RecordDigest,
    /// Highest dirty-map version any record up to it carried.
    pub map_version: u64,
    /// Time of the last record.
    pub time: Timestamp,
}
