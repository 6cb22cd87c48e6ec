//! Who still needs a machine's stream in its cache store, and up to which epoch it may be gone (docs/rfcs/0011-consumers.md).
//!
//! A state is a small object under `consumer/<n>` of its machine in the cache store, numbered from 1 without gaps and made if
//! absent: each says everything, and the newest counts. So whoever makes number n + 1 has seen what n says.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use model::{Seq, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{FormatError, versioned};

/// Versions of the body, newest first.
pub const VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// Most consumers of one stream.
pub const CONSUMERS_MAX: usize = 64;

/// Longest name of a vault store, in bytes.
pub const VAULT_BYTES_MAX: usize = 1024;

/// Names a consumer: drawn from the first epoch of the manifest log in its vault store, so that another vault store is another
/// consumer, whatever its configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConsumerId(pub [u8; 8]);

impl fmt::Display for ConsumerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text is no name of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("16 hexadecimal digits are a consumer's name, as `farshore consumers` shows it")]
pub struct NoConsumerId;

impl FromStr for ConsumerId {
    type Err = NoConsumerId;

    fn from_str(text: &str) -> Result<Self, NoConsumerId> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten().ok_or(NoConsumerId)?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// How far a consumer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consumer {
    /// Epoch of the last segment that it has promoted; 0 for none. It needs everything from this epoch on.
    pub epoch: u64,
    /// Slot of that segment.
    pub slot: u64,
    /// Last record of it.
    pub seq: Seq,
    /// When it said so, by its clock.
    pub stated: Timestamp,
    /// Its vault store, for people.
    pub vault: String,
}

/// A state of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consumers {
    /// Whatever lies in epochs of the stream up to this one may be gone; 0 for none.
    pub trimmed: u64,
    /// Those that count.
    pub consumers: BTreeMap<ConsumerId, Consumer>,
}

impl Consumers {
    /// The first epoch that some consumer still needs; none when there is no consumer.
    pub fn lowest(&self) -> Option<u64> {
        self.consumers.values().map(|consumer| consumer.epoch).min()
    }

    /// Bytes of a state.
    pub fn encode(&self) -> Vec<u8> {
        versioned::encode(VERSIONS[0].0, self)
    }

    /// Reads a state. Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (_, rest) = versioned::version("state of consumers", VERSIONS[0].0, bytes)?;
        let read: Self = versioned::postcard("state of consumers", rest)?;
        if read.consumers.len() > CONSUMERS_MAX {
            return Err(FormatError::Invalid { what: "number of consumers" });
        }
        match read.consumers.values().all(|consumer| consumer.vault.len() <= VAULT_BYTES_MAX) {
            true => Ok(read),
            false => Err(FormatError::Invalid { what: "name of a vault store (over 1024 bytes)" }),
        }
    }
}
