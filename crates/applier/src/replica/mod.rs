//! Replica disks: each disk of a machine, at the latest processed position, as a file or on a block device.
//!
//! ```text
//!   promoted and committed up to `to` ─► durable intent {at, to} ─► apply records ─► fsync disks ─► durable `at` = to
//! ```
//! Only valid positions are ever gone to, so a replica with a good point is untouched while a drain lasts. A process that
//! dies in between finds the intent and applies the same records again from `at`; it must reach at least `to`, because
//! records up to `to` may be on the disks already. A failed fsync is answered the same way: everything since the last
//! good one is written again. A full disk is reported and tried again; the position never claims more than is durable.
//! A replica past its lag limit does not apply every record: `rebuild` lays what differs, out of maps. `target` is where the
//! bytes of a disk go, `device` which block devices may be written.
//!
//! `replica/<machine>/state` says where the replica stands; a state that is missing or damaged, or a disk
//! file that is, means that the replica is built anew from the log. A whole state of a position that the log does not
//! have is an error, not a reason to build anew: when a store lost its tail, the replica may be all that is left of it.
//! `replica/<machine>/lock` is held by the replica's keeper.

mod apply;
mod device;
mod disks;
mod read;
mod rebuild;
mod run;
mod state;
mod target;

pub(crate) use apply::Replica;
pub(crate) use run::{describe, run};
pub(crate) use state::{directory, remove};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use disk::ImageFormat;
use model::{DiskName, MachineName, Seq};

/// How the replica of a machine is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// Format of the disk files.
    pub format: ImageFormat,
    /// Block devices of the disks that are kept on one, raw, and not in a file.
    pub devices: BTreeMap<DiskName, PathBuf>,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        Self { format: ImageFormat::Raw, devices: BTreeMap::new() }
    }
}

/// Where the replica of a machine stands, from its state file; none when there is none, or it is being rebuilt.
pub async fn processed(data_dir: &Path, machine: &MachineName) -> Option<Seq> {
    let directory = directory(data_dir, machine);
    let machine = machine.clone();
    let loaded = tokio::task::spawn_blocking(move || state::load(&directory, &machine)).await.ok()?;
    loaded.ok().flatten().and_then(|state| state.claim())
}
