//! Replica disks: one raw file for each disk of a machine, at the latest processed position.
//!
//! ```text
//!   promoted and committed up to `to` ─► durable intent {at, to} ─► apply records ─► fsync disks ─► durable `at` = to
//! ```
//! Only valid positions are ever gone to, so a replica with a good point is untouched while a drain lasts. A process that
//! dies in between finds the intent and applies the same records again from `at`; it must reach at least `to`, because
//! records up to `to` may be on the disks already. A failed fsync is answered the same way: everything since the last
//! good one is written again. A full disk is reported and tried again; the position never claims more than is durable.
//!
//! `replica/<machine>/state` says where the replica stands; a state that is missing or damaged, or a disk
//! file that is, means that the replica is built anew from the log. A whole state of a position that the log does not
//! have is an error, not a reason to build anew: when a store lost its tail, the replica may be all that is left of it.
//! `replica/<machine>/lock` is held by the replica's keeper.

mod apply;
mod disks;
mod run;
mod state;

pub(crate) use apply::Replica;
pub(crate) use run::{describe, run};
pub(crate) use state::{directory, remove};

use std::path::Path;

use model::{MachineName, Seq};

/// Where the replica of a machine stands, from its state file; none when there is none.
pub async fn processed(data_dir: &Path, machine: &MachineName) -> Option<Seq> {
    let directory = directory(data_dir, machine);
    let machine = machine.clone();
    let loaded = tokio::task::spawn_blocking(move || state::load(&directory, &machine)).await.ok()?;
    loaded.ok().flatten().map(|state| state.position.seq).filter(|seq| *seq > Seq::ZERO)
}
