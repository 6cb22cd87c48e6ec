//! Consumers of a stream (docs/rfcs/0011-consumers.md): this applier as one, and what nobody needs of the cache store any more.
//!
//! An applier with a vault store of its own states up to where it has promoted, in the cache store: when it starts, when it comes
//! to another epoch, and once a day. What must hold: it states only what an acknowledged manifest names, so what lies there is durable
//! in its vault store; and nothing goes from the cache store that the list has not given up before (`store::ConsumerList`). An
//! applier without a vault store has its history in the cache store: it is no consumer, its manifest log there says that nothing is
//! trimmed, and its own collection asks the list.

use std::sync::Arc;
use std::time::Duration;

use format::consumers::{Consumer, ConsumerId, VAULT_BYTES_MAX};
use format::keys::Keys;
use format::manifest::Manifest;
use format::object::{LogKind, ObjectHeader};
use futures::TryStreamExt;
use model::{EventKind, MachineName, Severity};
use probe::{Rule, Rules};
use store::{ConsumerList, Refused, Store, StoreError};
use tokio::time::Instant;

use crate::applier::Shared;
use crate::manifest::ManifestOwner;
use crate::recover::{stream_log, unknown};
use crate::{ApplierError, manifest, segments};

/// How often a consumer says that it is there although it came to no other epoch.
const STATED_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Time between two tries to say so.
const TRIED_EVERY: Duration = Duration::from_secs(5);

/// Deletions in flight at once.
const DELETES_INFLIGHT: usize = 16;

/// This applier, and the list of its machine.
pub(crate) struct Consuming {
    list: ConsumerList,
    /// Who we are; none with one store.
    id: Option<ConsumerId>,
    /// The epoch stated last, and when.
    stated: Option<(u64, Instant)>,
    /// When the last try, which failed, was made.
    tried: Option<Instant>,
    /// That there is other history in the cache store was told.
    told: bool,
}

impl Consuming {
    /// The owner of a manifest log. Nothing is stated yet.
    pub async fn new(shared: &Shared, owner: &ManifestOwner) -> Result<Self, ApplierError> {
        debug_assert!(owner.epoch() > 0);
        let list = ConsumerList::new(&shared.store, shared.keys.clone(), shared.machine.clone());
        let id = match shared.store.cache() {
            None => None,
            Some(_) => Some(identity(&shared.store.vault(), &shared.machine).await?),
        };
        Ok(Self { list, id, stated: None, tried: None, told: false })
    }

    /// States how far the acknowledged manifest is, if there is something new to say. Whether there was. Errors: `NotConsumed` when
    /// something that is needed may be gone; the store's, after which nothing is tried for a while.
    pub async fn state(&mut self, shared: &Shared, manifest: &Manifest) -> Result<bool, ApplierError> {
        let (epoch, slot) = manifest.folded();
        let fresh = |(stated, at): (u64, Instant)| stated == epoch && at.elapsed() < STATED_EVERY;
        let waits = self.tried.is_some_and(|at: Instant| at.elapsed() < TRIED_EVERY);
        if self.stated.is_some_and(fresh) || waits {
            return Ok(false);
        }
        self.tried = Some(Instant::now());
        let Some(id) = self.id else {
            // Whoever trims looks for our manifest log after it has said so; we look behind our opening.
            refuse_if_trimmed(&self.list, epoch).await?;
            (self.stated, self.tried) = (Some((epoch, Instant::now())), None);
            return Ok(true);
        };
        let mut vault = shared.store.vault().name();
        vault.truncate((0..=VAULT_BYTES_MAX).rev().find(|end| vault.is_char_boundary(*end)).unwrap_or(0));
        let seq = manifest.last().map(|last| last.head.position.seq).unwrap_or_default();
        let consumer = Consumer { epoch, slot, seq, stated: shared.clock.now(), vault };
        match self.list.state(id, &consumer).await? {
            Ok(()) => (self.stated, self.tried) = (Some((epoch, Instant::now())), None),
            Err(refused) => return Err(not_consumed(&self.list, refused, epoch)),
        }
        Ok(true)
    }

    /// As [`agree`].
    pub async fn agree(&self, wanted: u64, rules: Rules) -> Result<u64, StoreError> {
        agree(&self.list, wanted, rules).await
    }

    /// Deletes from the cache store up to `objects_max` objects of epochs that every consumer has left behind. Gives how many are left.
    pub async fn trim_cache(
        &mut self,
        shared: &Shared,
        manifest: &Manifest,
        objects_max: usize,
    ) -> Result<u64, ApplierError> {
        let Some(cache) = shared.store.cache() else { return Ok(0) };
        let through = match has_history(cache, &shared.machine).await? {
            true => None,
            false => Some(self.agree(manifest.folded().0.saturating_sub(1), shared.rules.applier).await?),
        };
        // An applier that begins a manifest log there behind this look finds the state by which it is trimmed.
        let Some(through) = through.filter(|through| *through > 0) else {
            self.tell_of_history(shared, through.is_none());
            return Ok(0);
        };
        if has_history(cache, &shared.machine).await? {
            self.tell_of_history(shared, true);
            return Ok(0);
        }
        let garbage = trimmable(cache, &shared.machine, through).await?;
        let now = &garbage[..objects_max.min(garbage.len())];
        let deletions = futures::stream::iter(now.iter().map(Ok::<_, StoreError>));
        deletions.try_for_each_concurrent(DELETES_INFLIGHT, |(path, _)| cache.delete(path)).await?;
        if !now.is_empty() {
            let bytes: u64 = now.iter().map(|(_, bytes)| bytes).sum();
            let machine = shared.machine.to_string();
            metrics::counter!("applier_trimmed_objects_total", "machine" => machine.clone())
                .increment(now.len() as u64);
            metrics::counter!("applier_trimmed_bytes_total", "machine" => machine).increment(bytes);
            let text = format!(
                "{} objects, {bytes} bytes, of epochs up to {through} deleted from the cache store: every consumer has them",
                now.len()
            );
            shared.event(Severity::Info, EventKind::Collection, text);
        }
        Ok((garbage.len() - now.len()) as u64)
    }

    fn tell_of_history(&mut self, shared: &Shared, there: bool) {
        if there && !std::mem::replace(&mut self.told, true) {
            let text = "the cache store is not trimmed: an applier without a vault store has its history there";
            shared.event(Severity::Info, EventKind::Collection, text.to_owned());
        }
    }
}

/// Asks for epochs of the stream up to `wanted` to be given up. Gives the last one of which anything may be deleted.
pub(crate) async fn agree(list: &ConsumerList, wanted: u64, rules: Rules) -> Result<u64, StoreError> {
    // Careless: the list is read, and not told.
    if !rules.hold(Rule::TrimmedBeforeDeleted) {
        let state = list.read().await?;
        return Ok(state.lowest().map_or(wanted, |lowest| wanted.min(lowest.saturating_sub(1))));
    }
    match wanted {
        0 => Ok(0),
        _ => list.trim(wanted, rules).await,
    }
}

/// Before an epoch of the manifest log is spent: whether what our manifest does not name is still there.
pub(crate) async fn look(shared: &Shared) -> Result<(), ApplierError> {
    let list = ConsumerList::new(&shared.store, shared.keys.clone(), shared.machine.clone());
    if list.read().await?.trimmed == 0 {
        return Ok(());
    }
    let log = manifest::log(&shared.store, &shared.keys, &shared.machine);
    refuse_if_trimmed(&list, manifest::read(&log, shared.rules.log).await?.folded().0).await
}

async fn refuse_if_trimmed(list: &ConsumerList, epoch: u64) -> Result<(), ApplierError> {
    match list.read().await?.trimmed {
        trimmed if trimmed > 0 && epoch <= trimmed => Err(not_consumed(list, Refused::Trimmed(trimmed), epoch)),
        _ => Ok(()),
    }
}

fn not_consumed(list: &ConsumerList, refused: Refused, epoch: u64) -> ApplierError {
    ApplierError::NotConsumed { machine: list.machine().clone(), store: list.store().name(), epoch, refused }
}

/// A vault store is known by the first epoch of the manifest log in it, which is random and never deleted.
async fn identity(vault: &Store, machine: &MachineName) -> Result<ConsumerId, ApplierError> {
    let path = segments::epoch_path(machine, LogKind::Manifest, 1);
    let Some(object) = vault.get(&path).await? else {
        return Err(segments::missing(path, "the manifest log has later ones").into());
    };
    let hash = ObjectHeader::hash(&object).map_err(|source| ApplierError::damaged(path, source))?;
    let (id, _) = hash.0.split_first_chunk().expect("a hash is longer");
    Ok(ConsumerId(*id))
}

/// Whether the cache store is somebody's vault store.
pub(crate) async fn has_history(cache: &Store, machine: &MachineName) -> Result<bool, StoreError> {
    Ok(cache.get_range(&segments::epoch_path(machine, LogKind::Manifest, 1), 0..1).await?.is_some())
}

/// Slots of epochs up to `through` in the cache store, with their bytes, in order.
pub(crate) async fn trimmable(
    cache: &Store,
    machine: &MachineName,
    through: u64,
) -> Result<Vec<(String, u64)>, StoreError> {
    let prefix = format!("{}seg", segments::log_prefix(machine, LogKind::Stream));
    let mut listed = cache.list(&prefix).await?;
    let epoch_of = |path: &str| {
        let (epoch, _) = path.strip_prefix(&prefix)?.strip_prefix('/')?.split_once('/')?;
        u64::from_str_radix(epoch, 16).ok()
    };
    listed.retain(|(path, _)| epoch_of(path).is_some_and(|epoch| epoch <= through));
    Ok(listed)
}

/// The list of a machine's consumers. Errors: `UnknownMachine`, and the store's.
pub async fn consumers(store: &Store, keys: &Arc<Keys>, machine: &MachineName) -> Result<ConsumerList, ApplierError> {
    if !stream_log(store, keys, machine).exists().await? {
        return Err(unknown(store, machine).await?.into());
    }
    Ok(ConsumerList::new(store, keys.clone(), machine.clone()))
}

/// What an applier with a vault store would delete from the cache store now with `gc` on: the last epoch that may go, and the objects
/// with their bytes. Nothing with one store, or where there is history in the cache store.
pub async fn preview_trimming(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
) -> Result<(u64, Vec<(String, u64)>), ApplierError> {
    let list = consumers(store, keys, machine).await?;
    let Some(cache) = store.cache() else { return Ok((0, Vec::new())) };
    if has_history(cache, machine).await? {
        return Ok((0, Vec::new()));
    }
    let state = list.read().await?;
    let through = state.lowest().map_or(state.trimmed, |lowest| state.trimmed.max(lowest.saturating_sub(1)));
    Ok((through, trimmable(cache, machine, through).await?))
}
