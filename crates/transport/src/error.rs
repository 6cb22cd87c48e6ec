//! What can go wrong between two roles, grouped by what to do.

/// A connection failed.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A certificate, key or CA file cannot be used: fix the configuration.
    #[error("{file}: {why}")]
    Credentials {
        /// Which file.
        file: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The peer could not be reached: try again.
    #[error("cannot reach {peer}")]
    Unreachable {
        /// Address.
        peer: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A listener could not be opened: fix the address, or free it.
    #[error("cannot listen on {address}: another process may hold it, or the address is not this host's")]
    Listen {
        /// Address.
        address: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// One side did not accept the other's certificate.
    #[error("{peer} and we do not trust each other: {why}")]
    Untrusted {
        /// Address.
        peer: String,
        /// What the TLS library said.
        why: String,
    },
    /// The peer broke the protocol.
    #[error("{peer} sent what cannot be read")]
    Protocol {
        /// Address or name.
        peer: String,
        /// What was wrong.
        #[source]
        source: format::FormatError,
    },
    /// The connection ended.
    #[error("connection to {peer} ended")]
    Closed {
        /// Address or name.
        peer: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The peer was silent for too long.
    #[error("{peer} did not answer within {seconds} s")]
    Timeout {
        /// Address or name.
        peer: String,
        /// The deadline.
        seconds: u64,
    },
}
