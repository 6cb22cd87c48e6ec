//! What a purge must know first: that no other machine refers to the one that is purged, and that none will.

use std::collections::BTreeSet;
use std::sync::Arc;

use format::keys::Keys;
use format::object::StreamEpoch;
use model::MachineName;
use store::{Store, VaultLists};

use super::collect::{await_heads, mark_all};
use crate::{ApplierError, recover};

/// Makes sure that nobody refers to a machine's stream, now or later. The machine must not be written any more. A machine that
/// is not in the registry never offered anything. The streams of others that have not seen the list get a new epoch.
/// Errors: `Referenced` names who refers to it; `NotWalked`, `Waits`.
pub(crate) async fn release(store: &Store, keys: &Arc<Keys>, machine: &MachineName) -> Result<(), ApplierError> {
    let lists = VaultLists::new(store.clone(), keys.clone());
    if !lists.machines().await?.contains(machine) {
        return Ok(());
    }
    refuse_if_referenced(store, keys, &lists, machine).await?;
    // From here on its process server is fenced: no later epoch of it is ours to condemn.
    let log = recover::stream_log(store, keys, machine);
    if let Err(error) = log.attach().await {
        tracing::warn!(%machine, %error, "stream could not be fenced before its deletion");
    }
    let epochs = 1..=log.highest().await?;
    let epochs = epochs.map(|epoch| StreamEpoch { machine: machine.clone(), epoch }).collect();
    let n = lists.condemn(epochs).await?.lists();
    let others = others(&lists, machine).await?;
    let waits_for = await_heads(store, keys, &others, n, true).await?;
    if !waits_for.is_empty() {
        return Err(ApplierError::Waits { machine: machine.clone(), for_: waits_for });
    }
    refuse_if_referenced(store, keys, &lists, machine).await
}

async fn others(lists: &VaultLists, machine: &MachineName) -> Result<BTreeSet<MachineName>, ApplierError> {
    let mut machines = lists.machines().await?;
    machines.remove(machine);
    Ok(machines)
}

async fn refuse_if_referenced(
    store: &Store,
    keys: &Arc<Keys>,
    lists: &VaultLists,
    machine: &MachineName,
) -> Result<(), ApplierError> {
    let marked = mark_all(store, keys, &others(lists, machine).await?).await?;
    let refers = |refers: &BTreeSet<StreamEpoch>| refers.iter().any(|epoch| epoch.machine == *machine);
    let by: Vec<_> = marked.into_iter().filter(|(_, other)| refers(&other.refers)).map(|(name, _)| name).collect();
    match by.is_empty() {
        true => Ok(()),
        false => Err(ApplierError::Referenced { machine: machine.clone(), by }),
    }
}
