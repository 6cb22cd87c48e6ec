//! What the objects of the vault's two lists say (docs/rfcs/0010-sharing.md): which stream epochs are condemned, and which machines
//! may refer to segments of others.

use model::MachineName;
use serde::{Deserialize, Serialize};

use crate::{FormatError, versioned};

/// Versions of both bodies, newest first.
pub const LIST_VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// An epoch of a machine's stream: the unit in which segments are shared and condemned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamEpoch {
    /// Whose stream.
    pub machine: MachineName,
    /// Its number.
    pub epoch: u64,
}

/// Body of `condemn/<n>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CondemnList {
    /// What it condemns, in order.
    pub epochs: Vec<StreamEpoch>,
}

impl CondemnList {
    /// Bytes of the body.
    pub fn encode(&self) -> Vec<u8> {
        versioned::encode(LIST_VERSIONS[0].0, self)
    }

    /// Reads the body. Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let read: Self = versioned::decode("condemn list", LIST_VERSIONS[0].0, bytes)?;
        match read.epochs.is_sorted_by(|a, b| a < b) {
            true => Ok(read),
            false => Err(FormatError::Invalid { what: "order within a condemn list" }),
        }
    }
}

/// Body of `registry/<n>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryEntry {
    /// The machine that is entered.
    pub machine: MachineName,
}

impl RegistryEntry {
    /// Bytes of the body.
    pub fn encode(&self) -> Vec<u8> {
        versioned::encode(LIST_VERSIONS[0].0, self)
    }

    /// Reads the body. Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        versioned::decode("registry entry", LIST_VERSIONS[0].0, bytes)
    }
}
