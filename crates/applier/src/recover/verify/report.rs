//! What a verify says in the end.

use model::{MachineName, Seq};
use serde::Serialize;

use super::SeqRange;

/// An object that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its path in the store.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
    /// Positions that cannot be recovered whole because of it.
    pub ranges: Vec<SeqRange>,
    /// Recovery points among them, by id.
    pub points: Vec<String>,
}

/// A recovery point that is not what the manifest says it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WrongPoint {
    /// Its id.
    pub id: String,
    /// Its position.
    pub seq: Seq,
    /// What is wrong.
    pub problem: &'static str,
}

/// What a witness says about the tail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Witness {
    /// None was given: loss of the newest tail cannot be excluded.
    None,
    /// The store holds what the witness saw.
    Confirmed {
        /// Up to where.
        seq: Seq,
    },
    /// The witness saw more than the store holds: the tail is lost.
    TailLost {
        /// What the witness saw.
        witnessed: Seq,
        /// Where the store ends.
        stored: Seq,
    },
    /// The store holds other records than the witness saw, or damage hides them.
    Differs {
        /// Where they differ at the latest.
        seq: Seq,
    },
}

/// Whether one position can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AtReport {
    /// The position.
    pub seq: Seq,
    /// Whether no damage hits it.
    pub recoverable: bool,
}

/// How many of some objects were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// In all.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Read whole, now or by an earlier life of this verify. Of the others only header and table (or index) were.
    pub whole_objects: u64,
    /// Their bytes.
    pub whole_bytes: u64,
    /// Of these, read by an earlier life.
    pub earlier_objects: u64,
}

/// The share that was to be read whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// How much.
    pub share: String,
    /// What draws the same again.
    pub seed: u32,
}

/// What verify found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Whose store.
    pub machine: MachineName,
    /// Objects read, whole or in part.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// The share of segments, packs and maps that was read whole; none for all.
    pub sample: Option<Sample>,
    /// Of the segments.
    pub segments: Coverage,
    /// Of the maps.
    pub maps: Coverage,
    /// Of the packs.
    pub packs: Coverage,
    /// Last record found.
    pub head_seq: Seq,
    /// Digest over record headers up to it, as `--head` takes it.
    pub head_digest: String,
    /// Everything that is wrong.
    pub damages: Vec<Damage>,
    /// Points of the manifest that the stream does not bear out.
    pub wrong_points: Vec<WrongPoint>,
    /// Points whose state digests were reckoned again, now or by an earlier life of this verify.
    pub states_reckoned: u64,
    /// What the witness says.
    pub witness: Witness,
    /// The position asked about.
    pub at: Option<AtReport>,
    /// What is not wrong but worth knowing.
    pub notes: Vec<String>,
}

impl VerifyReport {
    /// Nothing is wrong: no damage, every point as stated, and the witness (if there is one) agrees.
    pub fn clean(&self) -> bool {
        let sound = self.damages.is_empty() && self.wrong_points.is_empty();
        sound && matches!(self.witness, Witness::None | Witness::Confirmed { .. })
    }

    /// 0 when clean, else 3.
    pub fn exit_code(&self) -> u8 {
        if self.clean() { 0 } else { 3 }
    }
}
