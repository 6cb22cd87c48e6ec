//! What can be wrong with bytes.

/// Bytes were refused. Each variant says what is wrong with them; the caller says which object or peer they came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the structure needs.
    #[error("truncated: {need} bytes needed, {have} there")]
    Truncated {
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// More bytes than the structure has.
    #[error("{extra} bytes left over behind the end")]
    TrailingBytes {
        /// Bytes too many.
        extra: u64,
    },
    /// The first bytes are not ours.
    #[error("not a Farshore {what}: the magic number is wrong")]
    Magic {
        /// What was expected.
        what: &'static str,
    },
    /// A newer (or unknown) version wrote it.
    #[error("{what} version {found} is not known to this program: newest known is {newest}")]
    Version {
        /// What it is.
        what: &'static str,
        /// Version found.
        found: u32,
        /// Newest version known.
        newest: u32,
    },
    /// A field holds what it may not.
    #[error("{what} is out of range or malformed")]
    Invalid {
        /// Which field.
        what: &'static str,
    },
    /// A checksum is wrong: bytes changed on the way.
    #[error("{what} checksum does not match: the bytes were damaged")]
    Checksum {
        /// Of what.
        what: &'static str,
    },
    /// Authentication failed: altered, transplanted, or sealed with another key.
    #[error("{what} does not authenticate: it was altered, moved from elsewhere, or sealed under another vault key")]
    Authentication {
        /// Of what.
        what: &'static str,
    },
    /// The object is of another vault.
    #[error("object belongs to vault {found}, the key given is of vault {expected}")]
    OtherVault {
        /// Vault named in the object.
        found: String,
        /// Vault of the key.
        expected: String,
    },
    /// The object is intact but is not the one that belongs here.
    #[error("object says it is {found}, but it lies where {expected} belongs")]
    Misplaced {
        /// What the object says it is.
        found: String,
        /// What belongs there.
        expected: String,
    },
}
