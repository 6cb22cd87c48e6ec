//! The agent: the write-splitter in front of a machine's disks, and everything that brings what it saw to the store.
//!
//! ```text
//!  client ─NBD─► splitter ─► source disk          dirty map (durable, before the write is submitted)
//!                   │
//!                   ▼ completed, in order
//!               sequencer ─► queue ─► (spool) ─► sender ─► process server
//!                   ▲                                         │ stored
//!               drainer ◄── regions to drain ◄────────────────┘
//! ```
//! What must hold stands in `ARCHITECTURE.md` (promises P1 to P5, agent rules). Two rules shape every file here: the
//! application never waits for replication but for the one map sync of a cold region, and the agent never dies of its
//! own disk, because it *is* somebody's disk.

mod agent;
mod api;
mod bits;
mod config;
mod core;
mod drainer;
mod error;
mod flush;
mod flush_group;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod locks;
mod map;
mod metric;
mod queue;
mod regions;
mod seams;
mod sender;
mod sequencer;
mod shared;
mod splitter;
mod spool;
mod spooler;
mod state_dir;
mod status;
mod sync;
mod watched;
mod watchman;

pub use agent::{Agent, AgentParts, LABEL_BYTES_MAX};
pub use api::{Marked, StopOutcome};
pub use config::{AgentConfig, AgentDisk};
pub use error::AgentError;
pub use seams::{Clock, Dialer, Random, SystemClock, SystemRandom};
pub use state_dir::{StateDir, StateFile};
pub use status::{AgentStatus, Counters, DrainProgress, RefusalStatus};

#[cfg(test)]
mod locks_tests;
#[cfg(test)]
mod scheduled;
#[cfg(test)]
mod tests;
