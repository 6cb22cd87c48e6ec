//! Rule 6: what the store may lose once a manifest is acknowledged, found and deleted by the manifest log's owner.
//!
//! ```text
//!  manifest log   seg/1/…  seg/2/…  │ seg/3/0 seg/3/1 …    ours: opened and looked at, so older epochs may go
//!  stream         seg/1/0 seg/1/1 seg/1/2 ┊ seg/1/3        1/1 and 1/2 are named; 1/3 is void
//!                 seg/2/0 ┊                                an epoch that holds nothing
//!                 seg/3/0 seg/3/1 seg/3/2 ▲ seg/3/3 …      folded up to 3/2: nothing of epoch 3 or above is touched
//! ```
//! Garbage are the slots of manifest epochs below ours, and, in stream epochs below the folded one, every slot that the
//! manifest does not name: openings, voids, and what a late PUT brought back of either. Up to the manifest's horizon
//! (docs/rfcs/0006-horizon.md) names do not hold a segment: there whoever reads maps says what is [`Needed`], and the rest is
//! garbage too, as are maps of older manifest epochs that are not needed, and packs (docs/rfcs/0009-packs.md) of older manifest
//! epochs that the manifest does not name. A segment for which a named pack stands is not needed. What must hold:
//!
//! - Nothing is deleted before a look, made after reading our own epoch of the manifest log, found no newer owner: then
//!   every later manifest begins with what was read, so what is garbage now stays garbage. A zombie does no harm.
//! - Epoch objects are never deleted, nor named segments behind the horizon, nor needed ones before it, nor anything in the
//!   folded epoch or behind it. Its opening
//!   stays too: a writer that attaches looks for the highest opened epoch, finds that one or a higher one, and never
//!   sees what is gone. So replication needs no manifest, and damage in the manifest log does not stop it.
//! - Of two stores the vault store alone is collected (docs/rfcs/0008-two-stores.md). With one store consumers elsewhere may need what is
//!   garbage here: whoever deletes it asks their list first (docs/rfcs/0011-consumers.md), and what waits is [`Plan::held`].
//! - LIST only finds what to judge. What it leaves out stays until it is found; what it makes up is judged by its place.
//! - Any subset of the deletions may have happened when the process dies. The next pass finds the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use format::manifest::{Manifest, SharedRun};
use format::object::LogKind;
use format::pack::{PackRef, covering};
use futures::stream::{self, TryStreamExt};
use model::MachineName;

use super::entry::Extent;
use super::{EpochLog, LogPosition, LogWriter};
use crate::vault::{log_prefix, map_prefix, pack_prefix};
use crate::{Store, StoreError};

/// Deletions between two looks.
const BATCH_OBJECTS: usize = 64;

/// Deletions in flight at once.
const DELETES_INFLIGHT: usize = 16;

/// Why an object is garbage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It lies behind the end of its epoch, or in an epoch that the stream leaves out.
    Void,
    /// The opening of a stream epoch below the folded one.
    FoldedOpening,
    /// A slot of a manifest epoch that a later opening has replaced.
    OldManifest,
    /// A segment up to the horizon from which no point, nor anything behind the horizon, reads a byte.
    Unneeded,
    /// A segment up to the horizon whose needed frames a pack holds.
    Packed,
    /// A map through which nothing opens.
    UnneededMap,
    /// A pack that no manifest names, nor ever will.
    UnnamedPack,
}

/// What is needed of a machine's vault up to its horizon, as whoever reads maps has marked it. It stays right for every
/// later manifest with the same horizon: points only go, and maps made since lie in `manifest_epoch` or above.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needed {
    /// The horizon of the manifest that was marked.
    pub horizon: LogPosition,
    /// Segments up to it that are needed.
    pub segments: BTreeSet<LogPosition>,
    /// Maps that are needed: manifest epoch and number.
    pub maps: BTreeSet<(u64, u64)>,
    /// Manifest epoch of the manifest that was marked: maps of it, and of later ones, are not judged.
    pub manifest_epoch: u64,
    /// Segments of other machines from which something up to the horizon, or at it, reads.
    pub foreign: BTreeSet<(MachineName, LogPosition)>,
    /// Segments that other stream epochs may refer to: they are not deleted here (docs/rfcs/0010-sharing.md).
    pub shared: Vec<SharedRun>,
}

impl Needed {
    /// Whether other stream epochs may refer to the segment.
    pub fn is_shared(&self, at: &LogPosition) -> bool {
        SharedRun::any_holds(&self.shared, at.epoch, at.slot)
    }

    /// Whether there is such a segment between these two.
    pub fn shares_between(&self, behind: &LogPosition, before: &LogPosition) -> bool {
        SharedRun::any_between(&self.shared, (behind.epoch, behind.slot), (before.epoch, before.slot))
    }
}

/// An object that may be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// Its path.
    pub path: String,
    /// Its size, as listed.
    pub bytes: u64,
    /// Why.
    pub why: Why,
    /// Epoch of the stream that it lies in; 0 for what is of no stream.
    pub epoch: u64,
}

/// Nothing is deleted: something is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The store failed, the manifest cannot be read, or a newer owner has taken over.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object that cannot be placed: nobody knows whether it is needed.
    #[error("{path} is no object of a log: look at it, and take it away if nothing needs it")]
    Stray {
        /// Its path.
        path: String,
    },
    /// A segment that recovery rests on is not listed.
    #[error("{path} is named by the manifest and not listed: run verify")]
    NotListed {
        /// Its path.
        path: String,
    },
    /// The manifest's list is not in the stream's order.
    #[error("the manifest names {path} out of order: run verify")]
    Disordered {
        /// Path of the segment.
        path: String,
    },
}

/// What an acknowledged manifest says is needed.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The last slot of the manifest log that was read for it.
    manifest: LogPosition,
    /// The last segment named.
    folded: LogPosition,
    /// Its horizon; zeros for none.
    horizon: LogPosition,
    /// Packs named, in order.
    packs: Vec<PackRef>,
    /// Last named slot of each epoch behind the horizon; slots 1 to it are named.
    ends: BTreeMap<u64, u64>,
    /// What is needed up to the horizon; none when nobody has said it of this very horizon: then nothing up to it goes.
    needed: Option<Needed>,
}

impl Proof {
    fn new(
        at: LogPosition,
        stream: &EpochLog,
        manifest: &Manifest,
        needed: Option<Needed>,
    ) -> Result<Self, CollectError> {
        let horizon = manifest.horizon.as_ref();
        let horizon =
            horizon.map_or_else(LogPosition::default, |last| LogPosition { epoch: last.epoch, slot: last.slot });
        let mut folded = horizon;
        for end in &manifest.ends {
            let position = LogPosition { epoch: end.epoch, slot: end.slot };
            if position.epoch <= folded.epoch || position.slot == 0 {
                return Err(CollectError::Disordered { path: stream.slot_path(position) });
            }
            folded = position;
        }
        let (epoch, slot) = manifest.folded();
        if folded != (LogPosition { epoch, slot }) {
            return Err(CollectError::Disordered { path: stream.slot_path(folded) });
        }
        let ends = manifest.ends.iter().map(|end| (end.epoch, end.slot)).collect();
        let needed = needed.filter(|needed| needed.horizon == horizon && needed.manifest_epoch <= at.epoch);
        let packs = manifest.packs.clone();
        Ok(Self { manifest: at, folded, horizon, packs, ends, needed })
    }

    /// Whether the manifest names the segment.
    fn names(&self, position: &LogPosition) -> bool {
        self.ends.get(&position.epoch).is_some_and(|end| (1..=*end).contains(&position.slot))
    }

    /// Whether a pack stands for the segment.
    fn is_packed(&self, position: &LogPosition) -> bool {
        covering(&self.packs, position.epoch, position.slot).is_some()
    }

    /// Every segment that must be there.
    fn expected(&self) -> BTreeSet<LogPosition> {
        let slots = |(epoch, end): (&u64, &u64)| {
            let epoch = *epoch;
            (1..=*end).map(move |slot| LogPosition { epoch, slot })
        };
        let needed = self.needed.iter().flat_map(|needed| &needed.segments).copied();
        let needed = needed.filter(|position| !self.is_packed(position));
        self.ends.iter().flat_map(slots).chain(needed).collect()
    }

    /// Why the slot is garbage; none when it is needed or may be.
    pub fn judge(&self, log: LogKind, position: LogPosition) -> Option<Why> {
        match log {
            LogKind::Manifest => (position.epoch < self.manifest.epoch).then_some(Why::OldManifest),
            LogKind::Stream if position.epoch >= self.folded.epoch || self.names(&position) => None,
            LogKind::Stream if position.epoch <= self.horizon.epoch => {
                let needed = self.needed.as_ref()?;
                match position.slot {
                    0 => Some(Why::FoldedOpening),
                    _ if needed.is_shared(&position) => None,
                    _ if !needed.segments.contains(&position) => Some(Why::Unneeded),
                    _ => self.is_packed(&position).then_some(Why::Packed),
                }
            }
            LogKind::Stream if position.slot == 0 => Some(Why::FoldedOpening),
            LogKind::Stream => Some(Why::Void),
        }
    }

    /// The same of the pack with that number of a manifest epoch. An owner names only packs of its own epoch.
    pub fn judge_pack(&self, epoch: u64, number: u64) -> Option<Why> {
        let named = self.packs.iter().any(|pack| (pack.name.epoch, pack.name.number) == (epoch, number));
        (epoch < self.manifest.epoch && !named).then_some(Why::UnnamedPack)
    }

    /// The same of the map with that number of a manifest epoch.
    pub fn judge_map(&self, epoch: u64, number: u64) -> Option<Why> {
        let needed = self.needed.as_ref()?;
        (epoch < needed.manifest_epoch && !needed.maps.contains(&(epoch, number))).then_some(Why::UnneededMap)
    }
}

/// What may be deleted, in order of path, and the proof that it may.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The proof.
    pub proof: Proof,
    /// The objects.
    pub garbage: Vec<Garbage>,
    /// Needed segments up to the horizon that lie there as such, with their bytes as listed.
    pub kept: BTreeMap<LogPosition, u64>,
    /// Garbage that waits until consumers of the stream need it no more.
    pub held: Vec<Garbage>,
}

impl Plan {
    /// The last epoch of the stream in which something is garbage; 0 for none.
    pub fn last_epoch(&self) -> u64 {
        self.garbage.iter().map(|garbage| garbage.epoch).max().unwrap_or_default()
    }

    /// What lies in epochs of the stream above this one waits.
    pub fn hold_behind(&mut self, epoch: u64) {
        self.held.extend(self.garbage.extract_if(.., |garbage| garbage.epoch > epoch));
    }

    /// Says of one object why it may go.
    pub fn explain(&self, garbage: &Garbage) -> String {
        let Proof { manifest, folded, .. } = &self.proof;
        let manifest = format!("manifest epoch {} slot {}", manifest.epoch, manifest.slot);
        let (path, folded) = (&garbage.path, format!("epoch {} slot {}", folded.epoch, folded.slot));
        match garbage.why {
            Why::Void => format!("{path}: void, {manifest} names every segment up to {folded} and not this one"),
            Why::FoldedOpening => format!("{path}: opening below {folded}, where {manifest} has named every segment"),
            Why::OldManifest => format!("{path}: replaced by the opening of the epoch of {manifest}"),
            Why::Unneeded => format!("{path}: before the horizon, and no point of {manifest} reads a byte of it"),
            Why::Packed => format!("{path}: before the horizon, and a pack of {manifest} holds what points read of it"),
            Why::UnnamedPack => format!("{path}: {manifest} names other packs"),
            Why::UnneededMap => format!("{path}: no position that {manifest} promises opens through it"),
        }
    }
}

/// What a pass has deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Void slots.
    pub void: u64,
    /// Openings of the stream.
    pub openings: u64,
    /// Slots of older manifest epochs.
    pub manifests: u64,
    /// Segments up to the horizon.
    pub segments: u64,
    /// Maps.
    pub maps: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of them all.
    pub bytes: u64,
    /// Objects of the plan that the pass did not come to.
    pub left: u64,
}

impl Collected {
    /// Objects deleted.
    pub fn objects(&self) -> u64 {
        self.void + self.openings + self.manifests + self.segments + self.maps + self.packs
    }

    fn count(&mut self, garbage: &Garbage) {
        match garbage.why {
            Why::Void => self.void += 1,
            Why::FoldedOpening => self.openings += 1,
            Why::OldManifest => self.manifests += 1,
            Why::Unneeded | Why::Packed => self.segments += 1,
            Why::UnneededMap => self.maps += 1,
            Why::UnnamedPack => self.packs += 1,
        }
        self.bytes += garbage.bytes;
        self.left -= 1;
    }
}

impl fmt::Display for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { void, openings, manifests, segments, maps, packs, bytes, left } = self;
        write!(
            f,
            "{segments} segments, {packs} packs, {maps} maps, {void} void slots, {openings} openings and {manifests} old "
        )?;
        write!(f, "manifest slots deleted, {bytes} bytes")?;
        if *left > 0 {
            write!(f, "; {left} are left for the next pass")?;
        }
        Ok(())
    }
}

impl Proof {
    /// What of a machine's logs and maps is garbage by this proof, found by LIST. Errors: a doubt, or the store.
    async fn plan(self, manifests: &EpochLog, stream: &EpochLog) -> Result<Plan, CollectError> {
        let (mut garbage, mut kept) = (Vec::new(), BTreeMap::new());
        for log in [manifests, stream] {
            let mut missing = match log.kind {
                LogKind::Stream => self.expected(),
                LogKind::Manifest => BTreeSet::new(),
            };
            let prefix = log_prefix(&log.machine, log.kind);
            for (path, bytes) in log.store.vault().list(&prefix).await? {
                match place_of(&prefix, &path) {
                    Place::Unknown => return Err(CollectError::Stray { path }),
                    Place::Epoch => {}
                    Place::Slot(position) => {
                        let expected = missing.remove(&position);
                        if expected && position <= self.horizon {
                            kept.insert(position, bytes);
                        }
                        let epoch = if log.kind == LogKind::Stream { position.epoch } else { 0 };
                        garbage.extend(self.judge(log.kind, position).map(|why| Garbage { path, bytes, why, epoch }));
                    }
                }
            }
            if let Some(position) = missing.first() {
                return Err(CollectError::NotListed { path: stream.slot_path(*position) });
            }
        }
        garbage.extend(self.unneeded_maps(stream).await?);
        garbage.extend(self.unnamed_packs(stream).await?);
        Ok(Plan { proof: self, garbage, kept, held: Vec::new() })
    }

    async fn unnamed_packs(&self, stream: &EpochLog) -> Result<Vec<Garbage>, CollectError> {
        let prefix = pack_prefix(&stream.machine);
        let named = self.packs.iter().map(|pack| (pack.name.epoch, pack.name.number));
        let (mut missing, mut garbage) = (named.collect::<BTreeSet<_>>(), Vec::new());
        for (path, bytes) in stream.store.list(&prefix).await? {
            let Some((epoch, number)) = numbered_of(&prefix, &path) else { return Err(CollectError::Stray { path }) };
            missing.remove(&(epoch, number));
            garbage.extend(self.judge_pack(epoch, number).map(|why| Garbage { path, bytes, why, epoch: 0 }));
        }
        match missing.first() {
            None => Ok(garbage),
            Some((epoch, number)) => {
                Err(CollectError::NotListed { path: format!("{prefix}/{epoch:016x}/{number:016x}") })
            }
        }
    }

    async fn unneeded_maps(&self, stream: &EpochLog) -> Result<Vec<Garbage>, CollectError> {
        let Some(needed) = &self.needed else { return Ok(Vec::new()) };
        let prefix = map_prefix(&stream.machine);
        let (mut missing, mut garbage) = (needed.maps.clone(), Vec::new());
        for (path, bytes) in stream.store.vault().list(&prefix).await? {
            let Some((epoch, number)) = numbered_of(&prefix, &path) else { return Err(CollectError::Stray { path }) };
            missing.remove(&(epoch, number));
            garbage.extend(self.judge_map(epoch, number).map(|why| Garbage { path, bytes, why, epoch: 0 }));
        }
        match missing.first() {
            None => Ok(garbage),
            Some((epoch, number)) => {
                Err(CollectError::NotListed { path: format!("{prefix}/{epoch:016x}/{number:016x}") })
            }
        }
    }
}

/// What the owner of a manifest log would delete by the newest manifest: for who only wants to know, and owns nothing.
/// Errors: a doubt, or the store.
pub async fn preview_collection(
    manifests: &EpochLog,
    stream: &EpochLog,
    needed: Option<Needed>,
) -> Result<Plan, CollectError> {
    let newest = manifests.read_newest().await?;
    let manifest = manifests.manifest_of(&newest.entries)?;
    Proof::new(newest.end.position, stream, &manifest, needed)?.plan(manifests, stream).await
}

impl LogWriter {
    /// What may be deleted now of both logs of our machine, and of its maps where somebody says what is needed. We own its
    /// manifest log; `stream` is its stream. Deletes nothing. Errors: a doubt, or the store; `Fenced` when we are not the
    /// owner any more.
    pub async fn plan_collection(&self, stream: &EpochLog, needed: Option<Needed>) -> Result<Plan, CollectError> {
        self.proof(stream, needed).await?.plan(self.log(), stream).await
    }

    /// Deletes up to `objects_max` objects of a plan that this owner made. May be run again after any error.
    /// Errors: `Fenced`, `Unavailable`; what is left of the plan stays.
    pub async fn collect(&self, plan: &Plan, objects_max: usize) -> Result<Collected, StoreError> {
        assert_eq!(plan.proof.manifest.epoch, self.epoch(), "an owner collects by its own plan");
        let store = &self.log().store;
        let mut collected = Collected { left: plan.garbage.len() as u64, ..Collected::default() };
        let now = &plan.garbage[..objects_max.min(plan.garbage.len())];
        for batch in now.chunks(BATCH_OBJECTS) {
            // Not needed for safety: the proof holds for ever. An owner that was replaced leaves the work to the new one.
            self.look_before_deleting().await?;
            let deletions = stream::iter(batch.iter().map(Ok));
            probe::failpoint!("applier-collect-before");
            deletions.try_for_each_concurrent(DELETES_INFLIGHT, |garbage| delete(store, &garbage.path)).await?;
            probe::failpoint!("applier-collect-after");
            batch.iter().for_each(|garbage| collected.count(garbage));
        }
        Ok(collected)
    }

    /// Reads what our own epoch of the manifest log says, and makes sure that it is acknowledged.
    async fn proof(&self, stream: &EpochLog, needed: Option<Needed>) -> Result<Proof, CollectError> {
        let (log, epoch) = (self.log(), self.epoch());
        let Some((opening, _)) = log.read_opening(epoch).await? else {
            // A newer owner may have deleted it.
            self.look_before_deleting().await?;
            let path = log.slot_path(LogPosition { epoch, slot: 0 });
            let because = "its epoch is the newest of the manifest log".to_owned();
            return Err(StoreError::Missing { path, because }.into());
        };
        let mut entries = vec![opening];
        let opened = entries[0].end();
        let end = log.scan(opened, Extent::Whole, |entry| entries.push(entry)).await?;
        // Rule 3: all that was read was put before this look. Only we write here, so it is what we have put.
        self.look_before_deleting().await?;
        Proof::new(end.position, stream, &log.manifest_of(&entries)?, needed)
    }
}

/// Deletes one of several objects.
async fn delete(store: &Store, path: &str) -> Result<(), StoreError> {
    store.delete(path).await?;
    probe::failpoint!("applier-collect-between");
    Ok(())
}

/// What a path below a log's prefix is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Epoch,
    Slot(LogPosition),
    Unknown,
}

/// A number as paths spell it.
fn number(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// Manifest epoch and number of the map or pack at a path below the prefix of all of them.
fn numbered_of(prefix: &str, path: &str) -> Option<(u64, u64)> {
    let (epoch, name) = path.strip_prefix(prefix)?.strip_prefix('/')?.split_once('/')?;
    number(epoch).zip(number(name))
}

fn place_of(prefix: &str, path: &str) -> Place {
    let name = path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
    let parts: Vec<_> = name.unwrap_or_default().split('/').collect();
    match parts[..] {
        ["epoch", epoch] if number(epoch).is_some() => Place::Epoch,
        ["seg", epoch, slot] => match number(epoch).zip(number(slot)) {
            Some((epoch, slot)) if epoch > 0 => Place::Slot(LogPosition { epoch, slot }),
            _ => Place::Unknown,
        },
        _ => Place::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use format::pack::PackName;

    use super::*;

    fn at(epoch: u64, slot: u64) -> LogPosition {
        LogPosition { epoch, slot }
    }

    #[test]
    fn only_what_the_manifest_makes_needless_is_judged_garbage() {
        let named = [at(1, 1), at(1, 2), at(3, 1), at(3, 2)];
        let (horizon, ends) = (at(0, 0), [(1, 2), (3, 2)].into());
        let proof = Proof { manifest: at(4, 7), folded: at(3, 2), horizon, packs: Vec::new(), ends, needed: None };
        let check = |log, position, expected| assert_eq!(proof.judge(log, position), expected, "{log:?} {position:?}");
        check(LogKind::Stream, at(1, 0), Some(Why::FoldedOpening));
        check(LogKind::Stream, at(1, 3), Some(Why::Void));
        check(LogKind::Stream, at(2, 0), Some(Why::FoldedOpening));
        check(LogKind::Stream, at(2, 1), Some(Why::Void));
        named.into_iter().for_each(|position| check(LogKind::Stream, position, None));
        // The folded epoch and what follows: its opening stays, and behind the folded slot nothing is decided.
        for position in [at(3, 0), at(3, 3), at(4, 0), at(4, 1), at(u64::MAX, 0)] {
            check(LogKind::Stream, position, None);
        }
        check(LogKind::Manifest, at(3, 0), Some(Why::OldManifest));
        check(LogKind::Manifest, at(3, 9), Some(Why::OldManifest));
        check(LogKind::Manifest, at(4, 0), None);
        check(LogKind::Manifest, at(4, 9), None);
        check(LogKind::Manifest, at(5, 0), None);
    }

    #[test]
    fn a_manifest_that_names_nothing_condemns_nothing_of_the_stream() {
        let ends = BTreeMap::new();
        let proof =
            Proof { manifest: at(1, 0), folded: at(0, 0), horizon: at(0, 0), packs: Vec::new(), ends, needed: None };
        for position in [at(1, 0), at(1, 1), at(9, 9)] {
            assert_eq!(proof.judge(LogKind::Stream, position), None);
        }
    }

    #[test]
    fn up_to_the_horizon_only_what_is_needed_stays() {
        let (horizon, ends) = (at(2, 5), BTreeMap::from([(3, 4), (5, 1)]));
        let shared = vec![SharedRun { epoch: 1, first: 4, last: 6 }, SharedRun { epoch: 2, first: 1, last: 1 }];
        let (segments, maps) = ([at(1, 2)].into(), [(1, 7)].into());
        let needed = Needed { horizon, segments, maps, manifest_epoch: 4, shared, ..Needed::default() };
        let known =
            Proof { manifest: at(4, 1), folded: at(5, 1), horizon, packs: Vec::new(), ends, needed: Some(needed) };
        let unknown = Proof { needed: None, ..known.clone() };
        for (position, why) in [
            (at(1, 2), None),
            (at(1, 1), Some(Why::Unneeded)),
            (at(2, 5), Some(Why::Unneeded)),
            (at(1, 3), Some(Why::Unneeded)),
            (at(1, 4), None),
            (at(1, 6), None),
            (at(1, 7), Some(Why::Unneeded)),
            (at(2, 1), None),
            (at(2, 0), Some(Why::FoldedOpening)),
        ] {
            assert_eq!(known.judge(LogKind::Stream, position), why, "{position:?}");
            assert_eq!(unknown.judge(LogKind::Stream, position), None, "nobody said what is needed: {position:?}");
        }
        for proof in [&known, &unknown] {
            assert_eq!(proof.judge(LogKind::Stream, at(3, 4)), None, "named");
            assert_eq!(proof.judge(LogKind::Stream, at(3, 5)), Some(Why::Void));
            assert_eq!(proof.judge(LogKind::Stream, at(5, 9)), None, "the folded epoch");
        }
        assert_eq!(known.judge_map(1, 7), None);
        assert_eq!(known.judge_map(1, 8), Some(Why::UnneededMap));
        assert_eq!(known.judge_map(4, 8), None, "it may be named by the next commit");
        assert_eq!(unknown.judge_map(1, 8), None);
        assert_eq!(known.expected(), [at(1, 2), at(3, 1), at(3, 2), at(3, 3), at(3, 4), at(5, 1)].into());
    }

    #[test]
    fn a_segment_goes_when_a_named_pack_stands_for_it_and_a_pack_that_is_not_named_goes_later() {
        let (horizon, ends) = (at(2, 5), BTreeMap::from([(3, 4), (5, 1)]));
        let segments = [at(1, 2), at(1, 4), at(2, 5)].into();
        let needed = Needed { horizon, segments, maps: BTreeSet::new(), manifest_epoch: 4, ..Needed::default() };
        let name = PackName { epoch: 3, number: 1 };
        let packs = vec![PackRef { name, first: (1, 2), last: (1, 9), index_bytes: 9, bytes: 9 }];
        let named = Proof { manifest: at(4, 1), folded: at(5, 1), horizon, packs, ends, needed: Some(needed) };
        let before = Proof { packs: Vec::new(), ..named.clone() };
        let unknown = Proof { needed: None, ..named.clone() };
        for (position, why, why_before) in [
            (at(1, 2), Some(Why::Packed), None),
            (at(1, 4), Some(Why::Packed), None),
            (at(1, 3), Some(Why::Unneeded), Some(Why::Unneeded)),
            (at(2, 5), None, None),
            (at(3, 1), None, None),
        ] {
            assert_eq!(named.judge(LogKind::Stream, position), why, "{position:?}");
            assert_eq!(before.judge(LogKind::Stream, position), why_before, "not named yet: {position:?}");
        }
        assert_eq!(unknown.judge(LogKind::Stream, at(1, 2)), None);
        assert!(named.expected().contains(&at(2, 5)) && !named.expected().contains(&at(1, 4)));
        assert!(before.expected().contains(&at(1, 4)));
        assert_eq!(named.judge_pack(3, 1), None);
        assert_eq!(named.judge_pack(3, 2), Some(Why::UnnamedPack));
        assert_eq!(before.judge_pack(3, 1), Some(Why::UnnamedPack));
        assert_eq!(named.judge_pack(4, 9), None, "it may be named by the next commit");
    }

    #[test]
    fn a_path_is_placed_exactly_or_not_at_all() {
        let n = "000000000000000a";
        assert_eq!(place_of("m/stream", &format!("m/stream/epoch/{n}")), Place::Epoch);
        assert_eq!(place_of("m/stream", &format!("m/stream/seg/{n}/{n}")), Place::Slot(at(10, 10)));
        for path in [
            format!("m/manifest/seg/{n}/{n}"),
            format!("m/streams/seg/{n}/{n}"),
            format!("m/stream/seg/{n}"),
            format!("m/stream/seg/{n}/{n}/{n}"),
            format!("m/stream/seg/a/{n}"),
            format!("m/stream/seg/+00000000000000a/{n}"),
            format!("m/stream/seg/000000000000000A/{n}"),
            format!("m/stream/seg/0000000000000000/{n}"),
            format!("m/stream/other/{n}"),
        ] {
            assert_eq!(place_of("m/stream", &path), Place::Unknown, "{path}");
        }
    }
}
