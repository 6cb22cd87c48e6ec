//! The NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md): a server for any [`Export`], and a client.
//!
//! The server speaks fixed newstyle, simple and structured replies, GO, INFO, LIST, ABORT, STARTTLS, block sizes,
//! BLOCK_STATUS with base:allocation, FLUSH, FUA, TRIM, WRITE_ZEROES and multi-conn, on Unix and TCP sockets, with many
//! requests in flight on each connection. NBD_CMD_CACHE, resizing and extended headers are not offered.
//!
//! ```text
//!   address · stream        where, and over what bytes
//!   protocol · error        numbers, the request header, why a connection ends
//!   server/                 listener → handshake (negotiation, meta_context) → transmission (requests, replies)
//!   client/                 handshake → requests → replies
//!   export · memory         what is served; a disk in memory for tests
//! ```

mod address;
mod client;
mod error;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod memory;
mod protocol;
mod server;
mod stream;
mod to_the_end;

pub use address::ListenAddress;
pub use client::Client;
pub use error::Error;
pub use export::{BlockStatus, Errno, Export, ZeroFlags};
pub use server::{Lapsed, Server, ServerConfig, ServerTls, Threads};
