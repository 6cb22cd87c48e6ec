//! Segments that several streams refer to: who refers to what, and how what nobody refers to is deleted
//! (docs/rfcs/0010-sharing.md).
//!
//! The unit is an epoch of a stream. `mark` says to which other epochs a machine refers; `collect` condemns epochs that nobody
//! needs, waits until every stream has seen the list, marks again and deletes; `release` does the same for a machine that is
//! purged. Nothing is kept between two passes but the condemn lists in the store. What must hold: a shared segment is deleted
//! by these alone, and only by what was marked after every stream's head answered for the list that condemns it.

mod collect;
mod mark;
mod release;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use format::keys::Keys;
use format::manifest::Manifest;
use format::object::{SEES_ALL, StreamEpoch};
use format::segment::Table;
use model::MachineName;
use probe::Rules;
use store::{Condemned, EpochLog, LogEntry, LogPosition, Needed, Store, VaultLists};
use tokio_util::sync::CancellationToken;

use crate::ApplierError;
use crate::recover::RecoverError;
use crate::replica::describe;

pub(crate) use collect::collect_shared_with;
pub use collect::{SharedCondemned, SharedGarbage, SharedOptions, SharedReport, collect_shared};
pub(crate) use release::release;

/// Passes of the shared collection until stopped. A pass that fails has deleted nothing that it must not, and comes again.
pub(crate) async fn run(store: Store, keys: Arc<Keys>, every: Duration, stop: CancellationToken, rules: Rules) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        match collect_shared_with(&store, &keys, SharedOptions::default(), rules).await {
            Ok(report) => {
                let (lists, deleted, condemned) = (report.lists, report.deleted.len(), report.condemned.len());
                let waits_for = report.waits_for.len();
                tracing::info!(lists, deleted, condemned, waits_for, "shared collection");
                metrics::counter!("applier_shared_collected_objects_total").increment(deleted as u64);
            }
            Err(error) => {
                let error = describe(&error);
                tracing::warn!(error, "shared collection stopped; it deletes no more until this is settled");
            }
        }
    }
}

/// Other epochs of streams from which a segment's records read. Whoever copies a segment to another store must copy these
/// segments too, or it does not open there.
pub(crate) fn epochs_of<'a>(
    machine: &'a MachineName,
    at: LogPosition,
    table: &'a Table,
) -> impl Iterator<Item = StreamEpoch> + 'a {
    let others = table.references.iter().filter(move |r| r.machine != *machine || r.epoch != at.epoch);
    others.map(|r| StreamEpoch { machine: r.machine.clone(), epoch: r.epoch })
}

/// What a machine has to do with segments that are shared.
pub(crate) struct Marked {
    /// Other epochs to which it refers.
    pub refers: BTreeSet<StreamEpoch>,
    /// Its manifest.
    pub manifest: Manifest,
    /// What of its own that manifest needs up to its horizon; none while there is no horizon.
    pub needed: Option<Needed>,
}

/// Checks that segments refer to nothing that their epoch must not refer to.
pub(crate) struct Referring {
    machine: MachineName,
    lists: VaultLists,
    condemned: Arc<Condemned>,
}

impl Referring {
    /// Of this stream.
    pub fn new(log: &EpochLog) -> Self {
        let lists = VaultLists::new(log.store.clone(), log.keys.clone());
        Self { machine: log.machine.clone(), lists, condemned: Arc::default() }
    }

    /// A segment that refers to what its own epoch answers for as condemned is damage: it may be gone any moment.
    pub async fn check(&mut self, path: &str, entry: &LogEntry, table: &Table) -> Result<(), ApplierError> {
        let seen = entry.header.gc_seen;
        let damage = |what: String| Err(RecoverError::Damage { path: path.to_owned(), what }.into());
        for other in epochs_of(&self.machine, entry.position, table) {
            let StreamEpoch { machine, epoch } = &other;
            if seen == SEES_ALL {
                return damage(format!(
                    "it refers to epoch {epoch} of {machine}; its epoch says it refers to no other"
                ));
            }
            if self.condemned.lists() < seen {
                self.condemned = self.lists.condemned().await?;
            }
            if self.condemned.lists() < seen {
                return damage(format!("it answers for condemn list {seen}, and there are {}", self.condemned.lists()));
            }
            if self.condemned.contains_up_to(&other, seen) {
                return damage(format!("it refers to epoch {epoch} of {machine}, condemned before list {}", seen + 1));
            }
        }
        Ok(())
    }
}
