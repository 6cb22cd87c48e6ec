//! The applier: follows the log, makes recovery points, keeps replica disks, and opens any position for recovery.
//!
//! ```text
//!   stream (segments) ──► follow ──► manifest log (promoted segments, recovery points)
//!                            │
//!                            └─ committed ─► replica: intent → apply → fsync → at
//!
//!   stream + manifest log ──► recover: history → point → restore, serve, verify, compare
//! ```
//! The log is the truth and disks are views of it: nothing here is needed to recover but the store and the vault key.
//! A replica disk is touched only after everything up to the position it goes to is promoted and the manifest that says
//! so is acknowledged. If the process dies at any moment, the next start finds either the old position or an intent
//! that is applied again to the same end.

mod applier;
mod clock;
mod collect;
mod consumers;
mod error;
mod files;
mod follow;
mod holds;
mod horizon;
mod manifest;
mod maps;
mod needed;
mod packs;
mod pins;
mod points;
mod promote;
mod reckon;
pub mod recover;
mod replica;
mod segments;
mod sharing;
mod stages;
mod status;
mod stream;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod thin;
mod unprotect;

#[doc(hidden)]
pub use applier::ApplierRules;
pub use applier::{Applier, ApplierConfig};
pub use clock::{Clock, SystemClock};
pub use collect::preview_collection;
pub use consumers::{consumers, preview_trimming};
pub use error::ApplierError;
pub use replica::ReplicaConfig;
pub use sharing::{SharedCondemned, SharedGarbage, SharedOptions, SharedReport, collect_shared};
pub use status::{ApplierStatus, MachineStatus, ReplicaStatus, TaskStatus};
pub use unprotect::{UnprotectReport, unprotect};
