//! Names that users give and that end up in object paths, socket paths and certificates.
//!
//! One parser decides: `[a-z0-9][a-z0-9-]{0,62}`. A name that passes can never climb out of a directory or an object
//! prefix, whatever it is joined to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name in bytes; also the longest DNS label, so a name may become a host name.
const NAME_BYTES_MAX: usize = 63;

/// A name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a valid name: use 1 to 63 of a-z, 0-9 and '-', not starting with '-'")]
pub struct NameError {
    /// What was given, cut to a printable length.
    pub name: String,
}

fn check(text: &str) -> Result<(), NameError> {
    let lower_or_digit = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ok = !bytes.is_empty()
        && bytes.len() <= NAME_BYTES_MAX
        && lower_or_digit(bytes[0])
        && bytes.iter().all(|&b| lower_or_digit(b) || b == b'-');
    if ok { Ok(()) } else { Err(NameError { name: text.chars().take(80).collect() }) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type! {
    /// The name of a machine: a protected source. It names its stream in the store.
    MachineName
}
name_type! {
    /// The name of a disk, unique within its machine.
    DiskName
}

impl DiskName {
    /// The identity of the disk in records. A function of the name alone, so that no agent, however much of its own
    /// state it lost, can give one disk the identity of another. Configuration refuses two names of one machine that
    /// share an id.
    pub fn id(&self) -> DiskId {
        let hash = blake3::derive_key("farshore 2026 disk id", self.0.as_bytes());
        DiskId(u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]))
    }
}

/// A disk within a machine's stream: the first four bytes of a hash of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskId(pub u32);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for bad in ["", "-a", "..", "a/b", "a.b", "A", "a\0", "a%2f", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad:?}");
        }
        for good in ["a", "0", "db-01", &"a".repeat(63)] {
            assert_eq!(good.parse::<MachineName>().expect(good).as_str(), good);
        }
    }

    #[test]
    fn disk_id_depends_on_the_name_alone() {
        let id = |s: &str| s.parse::<DiskName>().expect(s).id();
        assert_eq!(id("root"), id("root"));
        assert_ne!(id("root"), id("data"));
    }
}
