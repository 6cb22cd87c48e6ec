//! Requests to hold a position: who reads one for long asks the owner of the manifest log not to let it go.
//!
//! A request is a small object under `hold/<n>` of its machine, numbered from 1 without gaps and made if absent, so that who has
//! store and key can ask wherever they are. The owner reads them in order and answers by the manifest ([`crate::manifest::Hold`]).

use std::fmt;

use model::Seq;
use serde::{Deserialize, Serialize};

use crate::{FormatError, versioned};

/// Versions of the body, newest first.
pub const VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// Longest time a request may ask for, in seconds: a week. Who needs a position longer asks again.
pub const LASTS_SECONDS_MAX: u32 = 7 * 24 * 3600;

/// Names a hold: random, of whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HoldId(pub [u8; 16]);

impl HoldId {
    /// A fresh one, from the operating system's randomness.
    pub fn random() -> Self {
        Self(crate::keys::random_bytes())
    }
}

impl fmt::Display for HoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRequest {
    /// Whose hold; one that exists is replaced.
    pub id: HoldId,
    /// The position to hold.
    pub seq: Seq,
    /// For how long from when it is read, in seconds; 0 ends the hold.
    pub lasts_seconds: u32,
}

impl HoldRequest {
    /// Bytes of a request.
    pub fn encode(&self) -> Vec<u8> {
        versioned::encode(VERSIONS[0].0, self)
    }

    /// Reads a request. Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (_, rest) = versioned::version("hold request", VERSIONS[0].0, bytes)?;
        let read: Self = versioned::postcard("hold request", rest)?;
        match read.lasts_seconds <= LASTS_SECONDS_MAX {
            true => Ok(read),
            false => Err(FormatError::Invalid { what: "time of a hold request (over a week)" }),
        }
    }
}
