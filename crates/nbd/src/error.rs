//! Why a connection ended otherwise than by a goodbye.
//!
//! A server logs these and goes on with its other connections; a client turns them into `std::io::Error`. Failures of
//! single requests are not here: they travel as [`crate::Errno`] in replies and leave the connection usable.

use std::io;

/// A connection that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side is gone, or the network failed.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// The two sides could not agree on TLS: most often one does not trust the other's certificate.
    #[error("TLS failed: {0}")]
    Tls(#[source] io::Error),
    /// The client's certificate was good when it came, and is not any more.
    #[error("the client's certificate was revoked, and it did not finish in time")]
    Revoked,
    /// The bytes received are not the protocol's.
    #[error("expected {what}, received {found:#x}: the other side does not speak NBD or lost its place")]
    Magic {
        /// What should have been there.
        what: &'static str,
        /// What was there.
        found: u64,
    },
    /// The client asked for handshake behaviour that does not exist.
    #[error("unknown client flags {0:#x} in the handshake")]
    ClientFlags(u32),
    /// An option longer than any real one.
    #[error("option {option} carries {len} bytes, more than allowed")]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// Its length in bytes.
        len: u32,
    },
    /// A negotiation that does not come to an end.
    #[error("the negotiation took more than {0} options")]
    TooManyOptions(usize),
    /// The handshake took longer than allowed.
    #[error("the handshake did not finish in {0:?}")]
    HandshakeTimeout(std::time::Duration),
    /// An export asked for with the old option that has no error reply.
    #[error("the client asked for an export that is not here")]
    UnknownExport,
    /// An option that the client's side of the handshake does not allow.
    #[error("option {0} is not allowed at this point of the handshake")]
    OptionNotAllowed(u32),
    /// A write so large that even throwing it away would be a burden.
    #[error("a write of {0} bytes is larger than any payload allowed")]
    PayloadTooLong(u32),
    /// The server refused an option.
    #[error("server refused {what}: {reason}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its reason, in words.
        reason: String,
    },
    /// A reply that breaks the protocol.
    #[error("server broke the protocol: {0}")]
    Reply(&'static str),
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(error) | Error::Tls(error) => error,
            Error::HandshakeTimeout(_) => Self::new(io::ErrorKind::TimedOut, error),
            Error::Refused { .. } => Self::new(io::ErrorKind::ConnectionRefused, error),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}
