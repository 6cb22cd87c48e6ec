//! Which objects of a log must be there, worked out so that damage in one of them hides as little as possible.
//!
//! A reader stops at the first thing that is wrong; verify must go on behind it. The skeleton comes from a LIST, the
//! openings from the newest downwards, and the manifest: an epoch below the newest goes on up to the end that the opening
//! above it names. Where an opening cannot be read, its epoch is taken to continue the epoch below it at the end of what
//! lies there; but below the folded epoch openings may be collected, and there the manifest alone says what the log holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use format::FormatError;
use format::keys::Keys;
use format::object::{LogKind, ObjectKind, Opening, Place, open_small};
use model::MachineName;
use store::{LogPosition, Store, StoreError};

use crate::segments;

/// What lies in a log and what must lie there.
#[derive(Default)]
pub(super) struct Skeleton {
    /// Slots of the accepted chain, in order.
    pub slots: Vec<LogPosition>,
    /// Epoch objects that must exist.
    pub epochs: Vec<u64>,
    /// The first epoch of a stream that was begun in this store and not finished: epoch objects from it on are not all there,
    /// and nothing but openings is. A copy into a vault store leaves this when it is cut short; nothing rests on it.
    pub begun: Option<u64>,
    /// An epoch that is owned and not opened.
    pub unopened: Option<u64>,
    /// Slots behind an end: void.
    pub void: u64,
    /// Paths that are none of ours.
    pub stray: Vec<String>,
}

/// What a LIST found.
#[derive(Default)]
struct Listed {
    epochs: BTreeSet<u64>,
    slots: BTreeMap<u64, BTreeSet<u64>>,
    stray: Vec<String>,
}

impl Listed {
    fn take(&mut self, name: &str, path: &str) {
        let number = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
        let parts: Vec<_> = name.split('/').collect();
        let known = match parts[..] {
            ["epoch", epoch] => number(epoch).map(|epoch| {
                self.epochs.insert(epoch);
            }),
            ["seg", epoch, slot] => number(epoch).zip(number(slot)).map(|(epoch, slot)| {
                self.slots.entry(epoch).or_default().insert(slot);
            }),
            _ => None,
        };
        if known.is_none() {
            self.stray.push(path.to_owned());
        }
    }

    /// Last slot of an epoch before the first hole; none when not even the opening is there.
    fn contiguous_end(&self, epoch: u64) -> Option<u64> {
        let slots = self.slots.get(&epoch)?;
        slots.iter().enumerate().take_while(|(i, slot)| *i as u64 == **slot).map(|(_, slot)| *slot).last()
    }
}

/// Works out the skeleton behind the epoch `passed`. `promoted` are the slots there that the manifest names: the log reaches
/// at least that far. Of `passed` and the epochs before it nothing but epoch objects must be there.
pub(super) async fn skeleton(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    log: LogKind,
    passed: u64,
    promoted: &BTreeMap<u64, u64>,
) -> Result<Skeleton, StoreError> {
    let prefix = segments::log_prefix(machine, log);
    let mut listed = Listed::default();
    for (path, _) in store.list(prefix.trim_end_matches('/')).await? {
        listed.take(path.strip_prefix(&prefix).unwrap_or(&path), &path);
    }
    listed.slots.retain(|epoch, _| *epoch > passed);
    let highest = listed.epochs.iter().chain(listed.slots.keys()).chain(promoted.keys()).max().copied().unwrap_or(0);
    let occupied = |epoch: &u64| listed.slots.contains_key(epoch) || promoted.contains_key(epoch);
    let top = (passed + 1..=highest).rev().find(occupied);
    let counted = (1..).take_while(|epoch| listed.epochs.contains(epoch)).last().unwrap_or(0);
    let empty = listed.slots.range(counted + 1..).all(|(_, slots)| slots.iter().eq([&0]));
    let named = promoted.keys().next_back().copied().unwrap_or(passed);
    let begun = (log == LogKind::Stream && counted < highest && counted >= named && empty).then_some(counted + 1);
    let mut skeleton = Skeleton {
        epochs: (1..begun.unwrap_or(highest.saturating_add(1))).collect(),
        begun,
        unopened: (highest > top.unwrap_or(passed)).then_some(highest),
        ..Skeleton::default()
    };
    let above = Above { epoch: passed, top };
    let ends = ends(store, keys, machine, log, &listed, promoted, above).await?;
    for (epoch, end) in &ends {
        skeleton.slots.extend((0..=*end).map(|slot| LogPosition { epoch: *epoch, slot }));
    }
    let is_void = |epoch: &u64, slot: &u64| ends.get(epoch).is_none_or(|end| slot > end);
    let lying = listed.slots.iter().flat_map(|(epoch, slots)| slots.iter().map(move |slot| (epoch, slot)));
    skeleton.void = lying.filter(|(epoch, slot)| is_void(epoch, slot)).count() as u64;
    skeleton.stray = listed.stray;
    Ok(skeleton)
}

/// The epochs looked at.
struct Above {
    /// Those behind this one.
    epoch: u64,
    /// The newest that holds anything.
    top: Option<u64>,
}

/// The accepted end of every epoch of the chain.
async fn ends(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    log: LogKind,
    listed: &Listed,
    promoted: &BTreeMap<u64, u64>,
    above: Above,
) -> Result<BTreeMap<u64, u64>, StoreError> {
    let reached = |epoch: u64| {
        let lying = listed.contiguous_end(epoch).unwrap_or(0);
        lying.max(promoted.get(&epoch).copied().unwrap_or(0))
    };
    let folded = promoted.keys().next_back().copied();
    let mut ends = BTreeMap::new();
    let Some(top) = above.top else { return Ok(ends) };
    let (mut epoch, mut end) = (top, reached(top));
    loop {
        ends.insert(epoch, end);
        let below = || listed.slots.keys().chain(promoted.keys()).filter(|e| **e < epoch).max().copied();
        let opening = read_opening(store, keys, machine, log, epoch).await?;
        let promoted_below = || promoted.range(..epoch).next_back().map(|(epoch, end)| (*epoch, *end));
        (epoch, end) = match opening.filter(|opening| opening.prev_epoch < epoch) {
            Some(opening) if opening.prev_epoch <= above.epoch => return Ok(ends),
            Some(opening) => (opening.prev_epoch, opening.prev_end),
            // Whatever else lies there is void, or was brought back by a late PUT.
            None if folded.is_some_and(|folded| epoch < folded) => match promoted_below() {
                Some(below) => below,
                None => return Ok(ends),
            },
            None => match below() {
                Some(below) => (below, reached(below)),
                None => return Ok(ends),
            },
        };
    }
}

/// The opening of an epoch if it is there and whole.
async fn read_opening(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    log: LogKind,
    epoch: u64,
) -> Result<Option<Opening>, StoreError> {
    let position = LogPosition { epoch, slot: 0 };
    let place = place(machine, log, position);
    let Some(object) = store.get(&segments::path(machine, log, position)).await? else { return Ok(None) };
    let opened = || -> Result<Opening, FormatError> {
        let (_, body) = open_small(keys, ObjectKind::Opening, &place, &object)?;
        Opening::decode(&body)
    };
    Ok(opened().ok())
}

/// Where an object of a log belongs.
pub(super) fn place(machine: &MachineName, log: LogKind, position: LogPosition) -> Place {
    Place { machine: Some(machine.clone()), log: Some(log), epoch: position.epoch, slot: position.slot }
}
