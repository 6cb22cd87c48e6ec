//! Manifests: what the applier knows of a machine, kept in the machine's manifest log.
//!
//! Slot 0 of each manifest epoch holds a whole [`Manifest`] (in [`crate::object::Opening::state`]); slots 1 and up hold
//! [`ManifestCommit`]s to apply to it in order. Cache and vault are one store, so promotion is the act of naming segments
//! here. Segments are named one by one until a map takes them in; from then on the map's node stands for them, so that a
//! manifest grows with the logarithm of the history, with its points, its drains and its writers' epochs.

use std::collections::{BTreeMap, BTreeSet};

use model::{DiskName, LogHead, Mark, PointId, Position, RecordBody, Seq, Timestamp};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

use crate::hold::HoldId;
use crate::map::{FANOUT, Node, node_is_sound};
use crate::object::{ObjectHash, ObjectId};
use crate::pack::{PackName, PackRef, packs_are_sound};
use crate::state::StateSum;
use crate::{FormatError, check, versioned};

/// Versions of manifest and commit bodies, newest first.
pub const VERSIONS: &[(u16, &str)] =
    &[(2, "maps, drains, epoch ends and horizon; version 1 was never released and is refused")];

/// Oldest version that is read.
const VERSION_OLDEST: u16 = 2;

/// A segment promoted: from here on recovery may rest on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    /// Its id.
    pub id: ObjectId,
    /// Where it lies in the stream.
    pub epoch: u64,
    /// Slot.
    pub slot: u64,
    /// Its chain hash.
    pub hash: ObjectHash,
    /// Stream state after it.
    pub head: LogHead,
    /// Size of the object in bytes.
    pub bytes: u64,
    /// Whether its chunks were offered to other stream epochs: then the shared collection alone deletes it.
    pub shared: bool,
}

/// How a recovery point came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointKind {
    /// By the crash-point schedule.
    Crash,
    /// A mark asked for by an operator.
    Marked,
    /// A drain ended here.
    DrainEnd,
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its name.
    pub id: PointId,
    /// The position it is.
    pub position: Position,
    /// Time of the last record in it.
    pub time: Timestamp,
    /// How it came about.
    pub kind: PointKind,
    /// The mark, when there is one.
    pub mark: Option<Mark>,
    /// Digest over record headers up to it.
    pub digest: model::RecordDigest,
    /// The making of it; none for a point that only the stream knows of.
    pub made: Option<Made>,
    /// What its disks hold; empty until that is reckoned.
    pub states: Vec<DiskState>,
}

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// The disk.
    pub disk: DiskName,
    /// The sum over its sectors.
    pub sum: StateSum,
}

/// What the disks of a point hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointStates {
    /// The point.
    pub point: PointId,
    /// Its disks.
    pub disks: Vec<DiskState>,
}

/// When a recovery point was made and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The applier's clock: everything up to the point was stored and processed by then.
    pub at: Timestamp,
    /// Chain hash of the segment that holds its last record: it stands for every byte of the stream up to there.
    pub chain: ObjectHash,
}

/// A drain of a stream, as far as it decides which positions are points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The record.
    pub seq: Seq,
    /// What it says.
    pub step: DrainStep,
}

/// Beginning or end of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainStep {
    /// It begins: positions behind `lost_after` are no points.
    Begin {
        /// The last position before it that stays one.
        lost_after: Seq,
    },
    /// It ends: this position is a point again.
    End,
}

impl Drain {
    /// What a record says of drains.
    pub fn of<D>(seq: Seq, body: &RecordBody<D>) -> Option<Self> {
        let step = match body {
            RecordBody::DrainBegin { lost_after, .. } => DrainStep::Begin { lost_after: *lost_after },
            RecordBody::DrainEnd(_) => DrainStep::End,
            _ => return None,
        };
        Some(Self { seq, step })
    }
}

/// The accepted end of an epoch of the stream: its segments are slots 1 to `slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// Epoch.
    pub epoch: u64,
    /// Last promoted slot.
    pub slot: u64,
}

/// Shared segments that follow one another in an epoch of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedRun {
    /// Epoch.
    pub epoch: u64,
    /// First slot.
    pub first: u64,
    /// Last slot.
    pub last: u64,
}

impl SharedRun {
    /// Whether a slot lies in one of these runs, which ascend.
    pub fn any_holds(runs: &[SharedRun], epoch: u64, slot: u64) -> bool {
        let run = runs.get(runs.partition_point(|run| (run.epoch, run.last) < (epoch, slot)));
        run.is_some_and(|run| run.epoch == epoch && run.first <= slot)
    }

    /// Whether some slot between two places, each of an epoch and a slot, lies in one of these runs, which ascend.
    pub fn any_between(runs: &[SharedRun], behind: (u64, u64), before: (u64, u64)) -> bool {
        let run = runs.get(runs.partition_point(|run| (run.epoch, run.last) <= behind));
        run.is_some_and(|run| (run.epoch, run.first) < before)
    }
}

/// Everything known of a machine up to `folded`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Maps of the history up to the last leaf, oldest first; each continues the one before.
    pub nodes: Vec<Node>,
    /// Segments promoted behind the last node, in log order.
    pub segments: Vec<Promoted>,
    /// The history is whole behind this segment: every position there opens. Up to it only points do, each through its
    /// map in `point_maps`, and segments may be gone. It is the last of a leaf and of its epoch; none while all is whole.
    pub horizon: Option<Promoted>,
    /// Ends of all epochs behind the horizon that hold promoted segments, by epoch.
    pub ends: Vec<EpochEnd>,
    /// Drains by position.
    pub drains: Vec<Drain>,
    /// Points by position.
    pub points: Vec<Point>,
    /// Points that are held whatever the policy says, in order of id.
    pub pins: BTreeSet<PointId>,
    /// For each point up to the horizon a map of its leaf's records up to it: with the nodes before that leaf it opens
    /// without any record table.
    pub point_maps: BTreeMap<PointId, Node>,
    /// Packs in the order of the stream, all up to the horizon: for the segments that one covers it stands, and their own
    /// objects may be gone.
    pub packs: Vec<PackRef>,
    /// Positions that readers hold. At most [`HOLDS_MAX`].
    pub holds: BTreeMap<HoldId, Hold>,
    /// Requests up to this number are answered: `holds` has what was granted.
    pub holds_read: u64,
    /// Every promoted segment that is shared, in log order, before the horizon too.
    pub shared: Vec<SharedRun>,
}

/// A position that is not let go while somebody reads it: a point is kept, and the horizon does not pass any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The position.
    pub seq: Seq,
    /// Until when, by the clock of the manifest's owner.
    pub until: Timestamp,
}

/// Holds of one machine at once: more are refused.
pub const HOLDS_MAX: usize = 1024;

/// One step of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestCommit {
    /// Segments promoted by it.
    pub segments: Vec<Promoted>,
    /// Drains in them.
    pub drains: Vec<Drain>,
    /// Points added by it.
    pub points: Vec<Point>,
    /// Points that the policy keeps no longer.
    pub dropped: Vec<PointId>,
    /// Points that are held from here on.
    pub pinned: Vec<PointId>,
    /// Points that are held no longer.
    pub unpinned: Vec<PointId>,
    /// Maps added by it, in order: a leaf takes the first of the segments, a merge the nodes it is made of.
    pub nodes: Vec<Node>,
    /// The horizon moves here.
    pub horizon: Option<Promoted>,
    /// Maps of the points that it passes.
    pub point_maps: Vec<(PointId, Node)>,
    /// What the disks of points hold, reckoned since.
    pub states: Vec<PointStates>,
    /// Packs added by it.
    pub packs: Vec<PackRef>,
    /// Packs for which these stand, or of which nothing is needed any more.
    pub unpacked: Vec<PackName>,
    /// Holds granted.
    pub held: Vec<(HoldId, Hold)>,
    /// Holds that ended.
    pub released: Vec<HoldId>,
    /// Requests up to this number are answered; 0 when none was read.
    pub holds_read: u64,
}

impl Manifest {
    /// Bytes of a whole manifest.
    pub fn encode(&self) -> Vec<u8> {
        versioned::encode(VERSIONS[0].0, self)
    }

    /// Reads a whole manifest. Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let read: Self = decode("manifest", bytes)?;
        check_parts(&read.segments, &read.drains, &read.points, &read.nodes)?;
        let end = read.nodes.last().map_or((0, 0), |node| place(&node.end));
        let behind = read.segments.first().is_none_or(|first| end < place(first));
        let ascend = read.nodes.is_sorted_by(|a, b| place(&a.end) < place(&b.end));
        let passed = read.horizon.as_ref().map_or(0, |horizon| horizon.epoch);
        let ends = read.ends.is_sorted_by(|a, b| a.epoch < b.epoch) && read.ends.iter().all(|end| end.epoch > passed);
        check_point_maps(read.point_maps.values())?;
        check_packs(&read.packs, read.horizon.as_ref())?;
        let runs = read.shared.is_sorted_by(|a, b| (a.epoch, a.last) < (b.epoch, b.first));
        let shared = runs && read.shared.iter().all(|run| (1..=run.last).contains(&run.first) && run.last < u64::MAX);
        match behind && ascend && ends && shared {
            true => Ok(read),
            false => Err(FormatError::Invalid { what: "order within a manifest" }),
        }
    }

    /// Applies the next commit. Errors: `Invalid` when a map takes in what is not there.
    pub fn apply(&mut self, commit: ManifestCommit) -> Result<(), FormatError> {
        for segment in commit.segments {
            self.note_shared(&segment);
            match self.ends.last_mut() {
                Some(end) if end.epoch == segment.epoch => end.slot = segment.slot,
                _ => self.ends.push(EpochEnd { epoch: segment.epoch, slot: segment.slot }),
            }
            self.segments.push(segment);
        }
        self.drains.extend(commit.drains);
        if !commit.dropped.is_empty() {
            let dropped: BTreeSet<_> = commit.dropped.into_iter().collect();
            self.points.retain(|point| !dropped.contains(&point.id));
            self.point_maps.retain(|id, _| !dropped.contains(id));
        }
        self.points.extend(commit.points);
        for PointStates { point, disks } in commit.states {
            // Points keep their order; those reckoned last are the newest.
            if let Some(known) = self.points.iter_mut().rev().find(|known| known.id == point) {
                known.states = disks;
            }
        }
        commit.unpinned.iter().for_each(|id| _ = self.pins.remove(id));
        self.pins.extend(commit.pinned);
        commit.released.iter().for_each(|id| _ = self.holds.remove(id));
        self.holds.extend(commit.held);
        self.holds_read = self.holds_read.max(commit.holds_read);
        commit.nodes.into_iter().try_for_each(|node| self.take(node))?;
        self.point_maps.extend(commit.point_maps);
        commit.horizon.map_or(Ok(()), |horizon| self.pass(horizon))?;
        if !commit.packs.is_empty() || !commit.unpacked.is_empty() {
            self.packs.retain(|pack| !commit.unpacked.contains(&pack.name));
            self.packs.extend(commit.packs);
            self.packs.sort_unstable_by_key(|pack| pack.first);
            check_packs(&self.packs, self.horizon.as_ref())?;
        }
        Ok(())
    }

    fn note_shared(&mut self, segment: &Promoted) {
        if !segment.shared {
            return;
        }
        let (epoch, slot) = place(segment);
        match self.shared.last_mut() {
            Some(run) if (run.epoch, run.last + 1) == (epoch, slot) => run.last = slot,
            _ => self.shared.push(SharedRun { epoch, first: slot, last: slot }),
        }
    }

    /// The horizon moves up to the end of an epoch that maps hold to its end.
    fn pass(&mut self, horizon: Promoted) -> Result<(), FormatError> {
        const BAD: FormatError = FormatError::Invalid { what: "horizon in a manifest (it is not behind the last one)" };
        let ahead = self.horizon.as_ref().is_none_or(|last| last.epoch < horizon.epoch);
        let mapped = self.nodes.last().is_some_and(|node| place(&node.end) >= place(&horizon));
        if !(ahead && mapped && self.ends.last().is_some_and(|end| end.epoch > horizon.epoch)) {
            return Err(BAD);
        }
        self.ends.retain(|end| end.epoch > horizon.epoch);
        self.horizon = Some(horizon);
        Ok(())
    }

    fn take(&mut self, node: Node) -> Result<(), FormatError> {
        const BAD: FormatError =
            FormatError::Invalid { what: "map in a manifest (it does not continue what is there)" };
        match node.level.checked_sub(1) {
            None => {
                let last = self.segments.iter().position(|segment| *segment == node.end).ok_or(BAD)?;
                self.segments.drain(..=last);
                self.nodes.push(node);
            }
            Some(below) => {
                let last = self.nodes.iter().rposition(|child| child.end == node.end).ok_or(BAD)?;
                let first = (last + 1).checked_sub(FANOUT).ok_or(BAD)?;
                if self.nodes[first..=last].iter().any(|child| child.level != below) {
                    return Err(BAD);
                }
                self.nodes.splice(first..=last, [node]);
            }
        }
        Ok(())
    }

    /// Whether the segment in that place is promoted and shared.
    pub fn shares(&self, epoch: u64, slot: u64) -> bool {
        SharedRun::any_holds(&self.shared, epoch, slot)
    }

    /// The last segment promoted.
    pub fn last(&self) -> Option<&Promoted> {
        self.segments.last().or(self.nodes.last().map(|node| &node.end))
    }

    /// (epoch, slot) up to which the stream is folded in; (0, 0) at the start.
    pub fn folded(&self) -> (u64, u64) {
        self.last().map_or((0, 0), place)
    }
}

impl ManifestCommit {
    /// Bytes of a commit.
    pub fn encode(&self) -> Vec<u8> {
        versioned::encode(VERSIONS[0].0, self)
    }

    /// Reads a commit. Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let read: Self = decode("manifest commit", bytes)?;
        check_parts(&read.segments, &read.drains, &read.points, &read.nodes)?;
        check_point_maps(read.point_maps.iter().map(|(_, node)| node))?;
        match packs_are_sound(&read.packs) {
            true => Ok(read),
            false => Err(FormatError::Invalid { what: "pack of a manifest" }),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        let Self { segments, drains, points, dropped, pinned, unpinned, nodes, horizon, point_maps, .. } = self;
        let Self { states, packs, unpacked, held, released, holds_read, .. } = self;
        let points = points.is_empty() && dropped.is_empty() && pinned.is_empty() && unpinned.is_empty();
        let maps = nodes.is_empty() && horizon.is_none() && point_maps.is_empty();
        let packs = packs.is_empty() && unpacked.is_empty();
        let holds = held.is_empty() && released.is_empty() && *holds_read == 0;
        segments.is_empty() && drains.is_empty() && points && maps && packs && states.is_empty() && holds
    }
}

fn decode<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    let newest = VERSIONS[0].0;
    match versioned::version(what, newest, bytes)? {
        (found, _) if found < VERSION_OLDEST => {
            Err(FormatError::Version { what, found: found.into(), newest: newest.into() })
        }
        (_, rest) => versioned::postcard(what, rest),
    }
}

fn place(segment: &Promoted) -> (u64, u64) {
    (segment.epoch, segment.slot)
}

/// Maps of points are like those of leaves.
fn check_point_maps<'a>(mut nodes: impl Iterator<Item = &'a Node>) -> Result<(), FormatError> {
    match nodes.all(|node| node.level == 0 && node_is_sound(node)) {
        true => Ok(()),
        false => Err(FormatError::Invalid { what: "map of a point in a manifest" }),
    }
}

/// Packs are in order and hold nothing behind the horizon.
fn check_packs(packs: &[PackRef], horizon: Option<&Promoted>) -> Result<(), FormatError> {
    let horizon = horizon.map_or((0, 0), place);
    match packs_are_sound(packs) && packs.last().is_none_or(|last| last.last <= horizon) {
        true => Ok(()),
        false => Err(FormatError::Invalid { what: "pack of a manifest" }),
    }
}

/// Segments and drains are in log order, nodes can be read, and labels are short.
fn check_parts(segments: &[Promoted], drains: &[Drain], points: &[Point], nodes: &[Node]) -> Result<(), FormatError> {
    if !segments.is_sorted_by(|a, b| place(a) < place(b)) {
        return Err(FormatError::Invalid { what: "segment list of a manifest (not in log order)" });
    }
    if !drains.is_sorted_by(|a, b| a.seq < b.seq) {
        return Err(FormatError::Invalid { what: "drain list of a manifest (not in log order)" });
    }
    if !nodes.iter().all(node_is_sound) {
        return Err(FormatError::Invalid { what: "node of a manifest" });
    }
    points.iter().filter_map(|point| point.mark.as_ref()).try_for_each(check::mark)
}
