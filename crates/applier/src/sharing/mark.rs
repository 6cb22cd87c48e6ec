//! Marking: to which epochs of other streams, or other epochs of its own, a machine refers.
//!
//! Up to the horizon of its newest manifest that is what the maps of its points read from; behind it, what any accepted
//! segment refers to, up to the head. What must hold: both come from one manifest. A walk that meets a hole began at a manifest
//! that another has replaced: then all is done again.

use std::collections::BTreeSet;
use std::sync::Arc;

use format::keys::Keys;
use format::object::StreamEpoch;
use model::MachineName;
use probe::Rules;
use store::{EpochLog, LogRules, Store};

use super::{Marked, epochs_of};
use crate::maps::{Maps, end_of};
use crate::needed::needed;
use crate::stream::{Found, StreamReader};
use crate::{ApplierError, manifest, recover, segments};

/// Times a machine is marked again because its manifest moved on meanwhile.
const TRIES_MAX: u32 = 20;

/// Marks a machine; none when nothing of it is in the store. Errors: its stream, its manifest or its maps cannot be read to their
/// ends, and then nobody knows what it needs.
pub(super) async fn mark(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
) -> Result<Option<Marked>, ApplierError> {
    let log = recover::stream_log(store, keys, machine);
    if !log.exists().await? {
        // One that was entered and never began, or was purged. Anything else has lost its beginning.
        return match store.list(&segments::machine_prefix(machine)).await?.first() {
            None => Ok(None),
            Some(_) => {
                Err(segments::missing(segments::epoch_path(machine, log.kind, 1), "its machine has objects").into())
            }
        };
    }
    let manifests = manifest::log(store, keys, machine);
    let mut tries = 0;
    loop {
        let newest = manifests.read_newest().await?;
        let read = manifests.manifest_of(&newest.entries)?;
        let maps = Arc::new(Maps::new(store.clone(), keys.clone(), machine.clone()));
        let marked = async {
            let marks = needed(&maps, newest.end.position.epoch, &read, Rules::ALL).await?;
            let needed = marks.map(|marks| marks.needed);
            let mut refers = walk(&log, &read).await?;
            let foreign = needed.iter().flat_map(|needed| &needed.foreign);
            refers.extend(foreign.map(|(machine, at)| StreamEpoch { machine: machine.clone(), epoch: at.epoch }));
            Ok::<_, ApplierError>((needed, refers))
        };
        tries += 1;
        match marked.await {
            Ok((needed, refers)) => return Ok(Some(Marked { refers, manifest: read, needed })),
            Err(error) => {
                let moved = manifests.read_newest().await?.end.position != newest.end.position;
                if !moved || tries == TRIES_MAX {
                    return Err(error);
                }
            }
        }
    }
}

/// What accepted segments behind the horizon refer to.
async fn walk(log: &EpochLog, read: &format::manifest::Manifest) -> Result<BTreeSet<StreamEpoch>, ApplierError> {
    let start = read.horizon.as_ref().map(end_of).unwrap_or_default();
    let mut reader = StreamReader::behind(log.clone(), start, LogRules::ALL);
    let mut refers = BTreeSet::new();
    loop {
        let entry = match reader.next().await? {
            Found::Entry(entry) => entry,
            Found::End => return Ok(refers),
            // Nothing was read yet of what the undecided epoch continues.
            Found::Unopened { .. } => return Err(ApplierError::Undecided { machine: log.machine.clone() }),
        };
        if entry.position.slot == 0 {
            continue;
        }
        let table = segments::table(&log.keys, &entry.header, &entry.bytes)
            .map_err(|source| ApplierError::damaged(log.slot_path(entry.position), source))?;
        refers.extend(epochs_of(&log.machine, entry.position, &table));
    }
}
