//! What callers get back from an agent: plain values, apart from the machinery that makes them.

use model::{PointId, Seq, Timestamp};
use serde::Serialize;

/// A mark that is stored: a recovery point with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Marked {
    /// The point's name.
    pub id: PointId,
    /// Its position.
    pub seq: Seq,
    /// Its time on the agent's clock.
    pub time: Timestamp,
}

/// How a stop ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopOutcome {
    /// Everything is stored, the sources are flushed, and the next start goes on in the same incarnation.
    Clean {
        /// The last record.
        seq: Seq,
    },
    /// Nothing is lost, but the next start opens with a drain of the regions still set.
    Unclean {
        /// Why it could not be clean.
        reason: String,
    },
}
