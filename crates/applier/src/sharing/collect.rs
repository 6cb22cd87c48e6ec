//! The shared collection: condemns what nobody needs, and deletes what was condemned and is still needed by nobody.
//!
//! ```text
//!  lists 1…n read ─► registry read ─► heads of all streams answer for n? ─ no ─► wait, or open new epochs for them
//!                                             │ yes
//!                                          mark all ─► delete of what lists 1…n name what was not found
//!                                             └─────► publish n+1: what else was not found
//! ```
//! It keeps no state: each pass goes on from what the store says. A pass may stop anywhere; several may run at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use format::keys::Keys;
use format::object::{LogKind, StreamEpoch};
use futures::TryStreamExt;
use model::MachineName;
use probe::{Rule, Rules};
use serde::Serialize;
use store::{ConsumerList, LogPosition, Store, StoreError, VaultLists};

use super::Marked;
use super::mark::mark;
use crate::consumers::agree;
use crate::{ApplierError, recover, segments};

/// Deletions in flight at once.
const DELETES_INFLIGHT: usize = 16;

/// How a pass is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct SharedOptions {
    /// Streams that have not seen the newest list get a new epoch: their agents connect again.
    pub fence: bool,
    /// Says what would be done, and does nothing.
    pub dry_run: bool,
}

/// A shared segment that was deleted, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SharedGarbage {
    /// Its path.
    pub path: String,
    /// Its size, as listed.
    pub bytes: u64,
}

/// An epoch that a list condemns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SharedCondemned {
    /// Whose stream.
    pub machine: MachineName,
    /// Its number.
    pub epoch: u64,
    /// Machines that still refer to it.
    pub needed_by: Vec<MachineName>,
}

/// What a pass did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct SharedReport {
    /// The newest condemn list when the pass began.
    pub lists: u64,
    /// Machines whose streams have not seen it yet: until they have, nothing is deleted.
    pub waits_for: Vec<MachineName>,
    /// What was deleted.
    pub deleted: Vec<SharedGarbage>,
    /// Epochs that the next list condemns.
    pub condemned: Vec<SharedCondemned>,
    /// Epochs that are condemned and still needed.
    pub kept: Vec<SharedCondemned>,
}

/// One pass over a vault. Errors: `NotWalked` names a machine of which nobody knows what it needs: nothing is deleted then.
pub async fn collect_shared(
    store: &Store,
    keys: &Arc<Keys>,
    options: SharedOptions,
) -> Result<SharedReport, ApplierError> {
    collect_shared_with(store, keys, options, Rules::ALL).await
}

/// The same under these safety rules.
pub(crate) async fn collect_shared_with(
    store: &Store,
    keys: &Arc<Keys>,
    options: SharedOptions,
    rules: Rules,
) -> Result<SharedReport, ApplierError> {
    store::open_vault(store, keys).await?;
    let lists = VaultLists::new(store.clone(), keys.clone());
    let condemned = lists.condemned().await?;
    // Who is entered later creates its epochs later, and reads this list before it refers to anything.
    let machines = lists.machines().await?;
    let mut report = SharedReport { lists: condemned.lists(), ..SharedReport::default() };
    // Careless: process servers have long read the list.
    if rules.hold(Rule::HeadsAwaited) {
        let fence = options.fence && !options.dry_run;
        report.waits_for = await_heads(store, keys, &machines, condemned.lists(), fence).await?;
    }
    let marked = match report.waits_for.is_empty() {
        true => mark_all(store, keys, &machines).await?,
        false => return Ok(report),
    };
    for epoch in condemned.epochs() {
        let needed_by = needed_by(&marked, epoch);
        // Careless: the list was made of what nobody needed.
        if !needed_by.is_empty() && rules.hold(Rule::MarkedAgain) {
            report.kept.push(SharedCondemned { machine: epoch.machine.clone(), epoch: epoch.epoch, needed_by });
        } else if let Some(own) = marked.get(&epoch.machine) {
            // Consumers elsewhere may need it to go on.
            let list = ConsumerList::new(store, keys.clone(), epoch.machine.clone());
            let through = match options.dry_run {
                true => list.read().await?.lowest().map_or(u64::MAX, |lowest| lowest.saturating_sub(1)),
                false => agree(&list, epoch.epoch, rules).await?,
            };
            if epoch.epoch <= through {
                report.deleted.extend(garbage(store, own, epoch).await?);
            }
        }
    }
    let mut next = BTreeSet::new();
    for (machine, own) in &marked {
        let epochs: BTreeSet<_> = own.manifest.shared.iter().map(|run| run.epoch).collect();
        for epoch in epochs.into_iter().map(|epoch| StreamEpoch { machine: machine.clone(), epoch }) {
            let new = !condemned.contains(&epoch) && needed_by(&marked, &epoch).is_empty();
            if new && !garbage(store, own, &epoch).await?.is_empty() {
                next.insert(epoch);
            }
        }
    }
    let show = |e: &StreamEpoch| SharedCondemned { machine: e.machine.clone(), epoch: e.epoch, needed_by: Vec::new() };
    report.condemned = next.iter().map(show).collect();
    if !options.dry_run {
        let deletions = futures::stream::iter(report.deleted.iter().map(Ok::<_, StoreError>));
        deletions.try_for_each_concurrent(DELETES_INFLIGHT, |garbage| store.delete(&garbage.path)).await?;
        lists.condemn(next).await?;
    }
    Ok(report)
}

/// Machines whose accepted head does not answer for list `n`. With `fence` they get a new epoch, which does.
pub(super) async fn await_heads(
    store: &Store,
    keys: &Arc<Keys>,
    machines: &BTreeSet<MachineName>,
    n: u64,
    fence: bool,
) -> Result<Vec<MachineName>, ApplierError> {
    let mut waits_for = Vec::new();
    for machine in machines.iter().filter(|_| n > 0) {
        let log = recover::stream_log(store, keys, machine);
        let answers = |seen: Option<u64>| seen.is_some_and(|seen| seen >= n);
        if answers(log.head_seen().await?) {
            continue;
        }
        if fence {
            // It will hold nothing, so it answers for all lists. Whoever serves the stream finds it at the next look, and the
            // agent goes on in an epoch whose opening has seen the newest one.
            match log.attach().await {
                Ok(attached) => _ = attached.open(Vec::new()).await,
                Err(StoreError::Fenced { .. }) => {}
                Err(error) => return Err(not_walked(machine, error.into())),
            }
            if answers(log.head_seen().await?) {
                continue;
            }
        }
        waits_for.push(machine.clone());
    }
    Ok(waits_for)
}

/// What every machine refers to and needs.
pub(super) async fn mark_all(
    store: &Store,
    keys: &Arc<Keys>,
    machines: &BTreeSet<MachineName>,
) -> Result<BTreeMap<MachineName, Marked>, ApplierError> {
    let mut all = BTreeMap::new();
    for machine in machines {
        let marked = mark(store, keys, machine).await.map_err(|error| not_walked(machine, error))?;
        all.extend(marked.map(|marked| (machine.clone(), marked)));
    }
    Ok(all)
}

fn not_walked(machine: &MachineName, error: ApplierError) -> ApplierError {
    ApplierError::NotWalked { machine: machine.clone(), source: Box::new(error) }
}

/// Machines that refer to an epoch.
fn needed_by(marked: &BTreeMap<MachineName, Marked>, epoch: &StreamEpoch) -> Vec<MachineName> {
    let refers = marked.iter().filter(|(_, marked)| marked.refers.contains(epoch));
    refers.map(|(machine, _)| machine.clone()).collect()
}

/// Shared segments of an epoch that its own machine needs no more: they lie before its horizon, and no point reads from them.
async fn garbage(store: &Store, own: &Marked, epoch: &StreamEpoch) -> Result<Vec<SharedGarbage>, ApplierError> {
    let Some(needed) = own.needed.as_ref().filter(|needed| epoch.epoch <= needed.horizon.epoch) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}seg/{:016x}", segments::log_prefix(&epoch.machine, LogKind::Stream), epoch.epoch);
    let mut garbage = Vec::new();
    for (path, bytes) in store.list(&prefix).await? {
        let slot = path.rsplit('/').next().and_then(|slot| u64::from_str_radix(slot, 16).ok());
        let Some(at) = slot.map(|slot| LogPosition { epoch: epoch.epoch, slot }) else { continue };
        if own.manifest.shares(at.epoch, at.slot) && !needed.segments.contains(&at) {
            garbage.push(SharedGarbage { path, bytes });
        }
    }
    Ok(garbage)
}
