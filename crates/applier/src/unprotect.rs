//! The end of a machine's protection: what is kept, or, with purge, the deletion of everything of it.
//!
//! Before anything is deleted two things happen. It is proven that no other machine refers to data in this machine's segments,
//! now or later (`sharing`); else nothing is deleted. Then both logs of the machine get a new epoch, so that whoever still writes
//! them sees it at the next look and stops. Slots go first and epoch objects last, the newest at the very end: as long as
//! anything is left, a process server that comes back is refused or starts behind it. A purge that died half-way is
//! simply run again. Of two stores both are emptied.

use std::path::Path;
use std::sync::Arc;

use format::keys::Keys;
use format::object::LogKind;
use futures::TryStreamExt;
use model::MachineName;
use serde::Serialize;
use store::Store;

use crate::{ApplierError, manifest, recover, replica, segments, sharing};

/// Lists of what is left before giving up: a live agent makes new objects all the time.
const PURGE_ROUNDS_MAX: u32 = 20;

/// Deletions in flight at once.
const DELETES_INFLIGHT: usize = 16;

/// What was kept or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnprotectReport {
    /// Whose.
    pub machine: MachineName,
    /// Whether it was deleted; else all of it is kept.
    pub purged: bool,
    /// Objects in the store, or in both.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files of the replica (kept, or deleted with purge).
    pub replica_files: u64,
}

/// Says what is kept of a machine or, with `purge`, deletes it: its objects in the store, and its replica under
/// `data_dir`. The machine's agent, and the applier for this machine, must be stopped before.
/// Errors: `Referenced`, `Waits`, `NotWalked`, `StillWritten`, `Recover(UnknownMachine)`; with any error what was not deleted is intact.
pub async fn unprotect(
    store: &Store,
    keys: Arc<Keys>,
    data_dir: Option<&Path>,
    machine: &MachineName,
    purge: bool,
) -> Result<UnprotectReport, ApplierError> {
    store::open_vault(store, &keys).await?;
    let mut found = Vec::new();
    for one in each(store) {
        found.extend(one.list(&segments::machine_prefix(machine)).await?);
    }
    let replica_files = data_dir.map_or(0, |data_dir| count_files(&replica::directory(data_dir, machine)));
    if found.is_empty() && replica_files == 0 {
        return Err(recover::unknown(store, machine).await?.into());
    }
    let mut report = UnprotectReport {
        machine: machine.clone(),
        purged: purge,
        objects: found.len() as u64,
        bytes: found.iter().map(|(_, bytes)| bytes).sum(),
        replica_files,
    };
    if !purge {
        return Ok(report);
    }
    sharing::release(store, &keys, machine).await?;
    fence(store, &keys, machine).await;
    report.objects = 0;
    for one in each(store) {
        report.objects += delete_all(&one, machine).await?;
    }
    if let Some(data_dir) = data_dir {
        report.replica_files = remove_replica(data_dir, machine).await?;
    }
    Ok(report)
}

/// Of two stores the vault store, then the cache store: what process servers see goes last.
fn each(store: &Store) -> impl Iterator<Item = Store> {
    [Some(store.vault()), store.cache().cloned()].into_iter().flatten()
}

fn count_files(directory: &Path) -> u64 {
    std::fs::read_dir(directory).map_or(0, |entries| entries.count() as u64)
}

async fn remove_replica(data_dir: &Path, machine: &MachineName) -> Result<u64, ApplierError> {
    let path = replica::directory(data_dir, machine);
    let (data_dir, machine) = (data_dir.to_owned(), machine.clone());
    let removed = tokio::task::spawn_blocking(move || replica::remove(&data_dir, &machine)).await;
    let removed = removed.expect("removing files does not panic and is not cancelled");
    removed.map_err(|source| ApplierError::File { operation: "remove", path, source })
}

/// Makes whoever still writes the machine's logs stop. A log too damaged to be attached to has no writer either.
async fn fence(store: &Store, keys: &Arc<Keys>, machine: &MachineName) {
    for log in [recover::stream_log(store, keys, machine), manifest::log(store, keys, machine)] {
        if let Err(error) = log.attach().await {
            tracing::warn!(%machine, log = ?log.kind, %error, "log could not be fenced before its deletion");
        }
    }
}

async fn delete_all(store: &Store, machine: &MachineName) -> Result<u64, ApplierError> {
    let prefix = segments::machine_prefix(machine);
    let mut deleted = 0;
    for _ in 0..PURGE_ROUNDS_MAX {
        let paths: Vec<_> = store.list(&prefix).await?.into_iter().map(|(path, _)| path).collect();
        if paths.is_empty() {
            return Ok(deleted);
        }
        deleted += paths.len() as u64;
        let (epochs, slots): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| is_epoch(machine, path));
        futures::stream::iter(slots.iter().map(Ok))
            .try_for_each_concurrent(DELETES_INFLIGHT, |path| store.delete(path))
            .await?;
        // One after the other, in order of number: the newest goes last.
        for path in epochs {
            store.delete(&path).await?;
        }
    }
    Err(ApplierError::StillWritten { machine: machine.clone() })
}

fn is_epoch(machine: &MachineName, path: &str) -> bool {
    [LogKind::Stream, LogKind::Manifest]
        .into_iter()
        .any(|log| path.starts_with(&format!("{}epoch/", segments::log_prefix(machine, log))))
}
