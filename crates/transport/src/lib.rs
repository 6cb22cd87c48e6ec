//! Mutually authenticated connections that carry wire frames: TLS 1.3 over TCP, and QUIC, behind one type.
//!
//! Identity is the certificate's: a URI SAN `farshore:<role>:<name>` signed by the site's CA. Frames never name a peer.
//! Under TLS 1.3 a client learns of its rejection only at its first read: HELLO/WELCOME precede any state.

mod authority;
mod clock;
mod connection;
mod error;
mod failure;
mod files;
mod frame;
mod listener;
mod nbd;
mod path;
mod payload;
mod quic;
mod revoked;
mod tls;
mod verifiers;

#[cfg(test)]
mod tests;

pub use authority::{Authority, IssuedCertificate};
pub use connection::{ByteStream, Connection, TransportKind, connect, connect_auto};
pub use error::TransportError;
pub use frame::{FrameReader, FrameWriter};
pub use listener::{Listener, ListenerLimits};
pub use nbd::{NbdServerTls, nbd_server_config};
pub use path::Carrier;
pub use revoked::{CUT_WITHIN, Issued, RevocationList, Serial};
pub use tls::{Identity, Peer, Role};
