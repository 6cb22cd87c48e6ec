//! Manifests: what the applier knows of a machine, kept in the machine's manifest log.
//!
//! Slot 0 of each manifest epoch holds a whole [`Manifest`] (in [`crate::object::Opening::state`]); slots 1 and up hold
//! [`ManifestCommit`]s to apply to it in order. First form: cache and vault are one store, so promotion is the act of
//! naming segments here, and nothing is folded away.

use model::{LogHead, Mark, PointId, Position, Timestamp};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

use crate::object::{ObjectHash, ObjectId};
use crate::{FormatError, check, versioned};

/// Versions of manifest and commit bodies, newest first.
pub const VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// A segment promoted: from here on recovery may rest on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    /// Its id.
    pub id: ObjectId,
    /// Where it lies in the stream.
    pub epoch: u64,
    /// Slot.
    pub slot: u64,
    /// Its chain hash.
    pub hash: ObjectHash,
    /// Stream state after it.
    pub head: LogHead,
    /// Size of the object in bytes.
    pub bytes: u64,
}

/// How a recovery point came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointKind {
    /// By the crash-point schedule.
    Crash,
    /// A mark asked for by an operator.
    Marked,
    /// A drain ended here.
    DrainEnd,
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its name.
    pub id: PointId,
    /// The position it is.
    pub position: Position,
    /// Time of the last record in it.
    pub time: Timestamp,
    /// How it came about.
    pub kind: PointKind,
    /// The mark, when there is one.
    pub mark: Option<Mark>,
    /// Digest over record headers up to it.
    pub digest: model::RecordDigest,
}

/// Everything known of a machine up to `folded`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Promoted segments in log order.
    pub segments: Vec<Promoted>,
    /// Points by position.
    pub points: Vec<Point>,
}

/// One step of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestCommit {
    /// Segments promoted by it.
    pub segments: Vec<Promoted>,
    /// Points added by it.
    pub points: Vec<Point>,
}

impl Manifest {
    /// Bytes of a whole manifest.
    pub fn encode(&self) -> Vec<u8> {
        versioned::encode(VERSIONS[0].0, self)
    }

    /// Reads a whole manifest. Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let read: Self = versioned::decode("manifest", VERSIONS[0].0, bytes)?;
        check_parts(&read.segments, &read.points)?;
        Ok(read)
    }

    /// Applies the next commit.
    pub fn apply(&mut self, commit: ManifestCommit) {
        self.segments.extend(commit.segments);
        self.points.extend(commit.points);
    }

    /// (epoch, slot) up to which the stream is folded in; (0, 0) at the start.
    pub fn folded(&self) -> (u64, u64) {
        self.segments.last().map_or((0, 0), |s| (s.epoch, s.slot))
    }
}

impl ManifestCommit {
    /// Bytes of a commit.
    pub fn encode(&self) -> Vec<u8> {
        versioned::encode(VERSIONS[0].0, self)
    }

    /// Reads a commit. Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let read: Self = versioned::decode("manifest commit", VERSIONS[0].0, bytes)?;
        check_parts(&read.segments, &read.points)?;
        Ok(read)
    }
}

/// Segments are in log order, and labels are short.
fn check_parts(segments: &[Promoted], points: &[Point]) -> Result<(), FormatError> {
    let place = |segment: &Promoted| (segment.epoch, segment.slot);
    if !segments.is_sorted_by(|a, b| place(a) < place(b)) {
        return Err(FormatError::Invalid { what: "segment list of a manifest (not in log order)" });
    }
    points.iter().filter_map(|point| point.mark.as_ref()).try_for_each(check::mark)
}
