//! The process server: ingest, order, dedup, compress, seal, segment, upload, acknowledge.
//!
//! ```text
//! agent ──► session ──► stream ──► pipeline (threads) ──► stream ──► store
//!           checks      orders     chunk, dedup,          segments,    │
//!           credit                 compress, seal         PUT, look    │
//! agent ◄── STORED, CREDIT ◄─────────────────────────────── acknowledge ┘
//! ```
//! It keeps nothing outside memory. `stored` is said only for what can be read back from the store whoever dies next;
//! what is not stored the agent still has. Two process servers never both extend one stream: the epoch log sees to
//! that (docs/rfcs/0001-epoch-log.md), not any lease or assignment.

mod config;
mod dedup;
mod error;
mod metrics;
pub mod pipeline;
mod server;
mod session;
mod share;
mod stages;
mod status;
mod stream;
mod sync;

#[cfg(test)]
mod scheduled;
#[cfg(test)]
mod tests;

pub use config::ProcessServerConfig;
pub use dedup::{Dedup, DedupEntry, DedupIndex};
pub use error::ProcessServerError;
pub use server::ProcessServer;
#[doc(hidden)]
pub use server::ServerRules;
pub use share::{EpochShare, Offer, Opened, SharedChunk, Sharing, open_stream};
pub use status::{MachineStatus, ProcessServerStatus};
#[doc(hidden)]
pub use stream::admit_with;
pub use stream::{Admitted, admit};
