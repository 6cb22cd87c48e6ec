//! The horizon: behind it every position opens, up to it only points do (docs/rfcs/0006-horizon.md).
//!
//! It moves by whole epochs of the stream, for a segment refers to segments of its own epoch alone: once the journal window
//! has left an epoch, nothing that comes can refer to it, and its manifest alone decides what of it is needed. Before the
//! horizon passes a point, the point gets a map of its own, which says what the records of its leaf up to it say; then it
//! opens without any record table. What must hold: the maps are put before the commit that moves the horizon, and nothing is
//! deleted before that commit is acknowledged. If the process dies in between, the maps are never named.

use std::time::Duration;

use format::manifest::{Manifest, Point, Promoted};
use format::map::Node;
use format::segment::Table;
use model::{EventKind, PointId, RecordDigester, Seq, Severity, Timestamp};
use probe::{Rule, Rules};
use store::{EpochLog, LogEntry, ReadMode};
use tokio::time::Instant;

use crate::applier::Shared;
use crate::maps::{Leaf, Mapping, Maps, Stretch, nodes_before_epoch, stretch_of_seq, stretch_of_time};
use crate::points::incarnation_after;
use crate::recover::RecoverError;
use crate::replica::describe;
use crate::{ApplierConfig, ApplierError, segments};

/// Points that get their maps before the applier looks after other things.
const POINTS_AT_ONCE: usize = 64;

/// When it was looked last, and what stood in the way.
#[derive(Default)]
pub(crate) struct Moving {
    looked_at: Option<Instant>,
    /// There may be a step forward as soon as the replica is further.
    waits_for_replica: bool,
    trouble: Option<String>,
}

impl Moving {
    /// Whether it is time to look again; says so once.
    pub fn is_due(&mut self, config: &ApplierConfig) -> bool {
        let every = if self.waits_for_replica { config.commit_every } else { config.tidy_every };
        let due = self.looked_at.is_none_or(|at| at.elapsed() >= every);
        if due {
            (self.looked_at, self.waits_for_replica) = (Some(Instant::now()), false);
        }
        due
    }

    /// There was no step forward, and the replica may be why.
    pub fn waits_for_replica(&mut self, catching_up: bool) {
        self.waits_for_replica = catching_up;
    }

    /// There is more to do at once.
    pub fn go_on(&mut self) {
        self.looked_at = None;
    }

    /// What came of a step; damage is told once and keeps the horizon where it is. Errors: what ends the following.
    pub fn hear<T>(&mut self, shared: &Shared, step: Result<T, ApplierError>) -> Result<Option<T>, ApplierError> {
        let error = match step {
            Ok(done) => {
                self.trouble = None;
                return Ok(Some(done));
            }
            Err(error) if error.fenced() || !error.is_damage() => return Err(error),
            Err(error) => error,
        };
        let text = format!("the horizon stays where it is, and store usage grows: {}", describe(&error));
        if self.trouble.as_ref() != Some(&text) {
            shared.event(Severity::Warning, EventKind::Collection, text.clone());
        }
        self.trouble = Some(text);
        Ok(None)
    }
}

/// Where the horizon may move: in front of the epoch that holds the first position of the journal window, and not past
/// what a replica reads next (`behind` is what it holds). None when that is no step forward.
pub(crate) async fn next(
    maps: &Maps,
    manifest: &Manifest,
    window: Duration,
    now: Timestamp,
    behind: Option<Seq>,
    rules: Rules,
) -> Result<Option<Promoted>, RecoverError> {
    let nodes = &manifest.nodes;
    let passed = manifest.horizon.as_ref().map(|last| last.head).unwrap_or_default();
    let begin = Timestamp(now.0.saturating_sub(u64::try_from(window.as_micros()).unwrap_or(u64::MAX)));
    // A window made longer does not bring back what has gone.
    if begin <= passed.time {
        return Ok(None);
    }
    // The window begins with the state of its first moment: with the last record that is not later, which may be the last one
    // of the leaf before.
    // Careless: all that maps hold lies behind it.
    let begin = if rules.hold(Rule::HorizonBehindWindow) { begin } else { now };
    let first = stretch_of_time(maps, nodes, begin).await?;
    let Some(epoch) = first.before.last().map(|node| node.end.epoch) else { return Ok(None) };
    // A replica that stands before the horizon is built anew, and reads nothing there.
    let epoch = match behind.map(|seq| seq.max(passed.position.seq)) {
        None => epoch,
        Some(seq) => epoch_of(manifest, stretch_of_seq(maps, nodes, seq.next()).await?).unwrap_or(epoch).min(epoch),
    };
    let before = nodes_before_epoch(maps, nodes, epoch).await?;
    let reached = manifest.horizon.as_ref().map_or(0, |horizon| horizon.epoch);
    Ok(before.last().map(|node| node.end.clone()).filter(|end| end.epoch > reached))
}

/// The epoch of a stretch: that of the tail's first segment, or of the last node, behind the last node.
fn epoch_of(manifest: &Manifest, stretch: Stretch) -> Option<u64> {
    let tail = || manifest.segments.first().or(manifest.nodes.last().map(|node| &node.end));
    stretch.segments.first().or_else(tail).map(|first| first.epoch)
}

/// Puts maps for the first points up to `horizon` that have none, in order of position: at most [`POINTS_AT_ONCE`] and those that
/// share the last one's leaf. Gives them, and whether all have one now.
pub(crate) async fn map_points(
    log: &EpochLog,
    mapping: &mut Mapping,
    epoch: u64,
    manifest: &Manifest,
    horizon: &Promoted,
) -> Result<(Vec<(PointId, Node)>, bool), ApplierError> {
    let passed = |point: &&Point| {
        point.position.seq <= horizon.head.position.seq && !manifest.point_maps.contains_key(&point.id)
    };
    let points: Vec<_> = manifest.points.iter().filter(passed).collect();
    let (mut made, mut left) = (Vec::new(), points.as_slice());
    while let Some(first) = left.first().filter(|_| made.len() < POINTS_AT_ONCE) {
        let stretch = stretch_of_seq(mapping.maps(), &manifest.nodes, first.position.seq).await?;
        let end = stretch.segments.last().map(|last| last.head.position.seq);
        let Some(end) = end else {
            let what = format!("point {} lies behind all maps and before the horizon", first.id);
            return Err(RecoverError::Damage { path: segments::machine_prefix(&log.machine), what }.into());
        };
        let within = left.partition_point(|point| point.position.seq <= end);
        made.extend(map_points_of(log, mapping, epoch, &stretch, &left[..within]).await?);
        left = &left[within..];
    }
    Ok((made, left.is_empty()))
}

/// The maps of points that lie in one leaf.
async fn map_points_of(
    log: &EpochLog,
    mapping: &mut Mapping,
    epoch: u64,
    stretch: &Stretch,
    points: &[&Point],
) -> Result<Vec<(PointId, Node)>, ApplierError> {
    let disks = match stretch.before.last() {
        Some(node) => mapping.maps().open(node).await?.index.disks.clone(),
        None => Vec::new(),
    };
    let mut leaf = Leaf::behind(log.machine.clone(), &disks);
    let (mut made, mut points) = (Vec::new(), points.iter().peekable());
    let (mut end, mut left) = (stretch.start(), stretch.segments.as_slice());
    while !left.is_empty() && points.peek().is_some() {
        let read = log.read_promoted(end, left, ReadMode::Table).await?;
        for (segment, entry) in left.iter().zip(&read) {
            let mut parts = Parts::of(log, segment, entry, end)?;
            while let Some(point) = points.next_if(|point| point.position.seq <= segment.head.position.seq) {
                parts.lay_up_to(&mut leaf, Some(point.position.seq))?;
                if leaf.segments().last().is_none_or(|last| last.head.digest != point.digest) {
                    let what = format!("point {} is of other records than it holds", point.id);
                    return Err(RecoverError::Damage { path: parts.path, what }.into());
                }
                made.push((point.id, mapping.put_for_point(epoch, &leaf).await?));
            }
            parts.lay_up_to(&mut leaf, None)?;
            end = entry.end();
        }
        left = &left[read.len()..];
    }
    Ok(made)
}

/// A segment's records, given to a leaf in several parts.
struct Parts {
    path: String,
    table: Table,
    /// As the manifest names it, with the stream state after what was laid.
    laid: Promoted,
    digester: RecordDigester,
}

impl Parts {
    fn of(log: &EpochLog, segment: &Promoted, entry: &LogEntry, before: store::LogEnd) -> Result<Self, RecoverError> {
        let path = log.slot_path(entry.position);
        let table = segments::table(&log.keys, &entry.header, &entry.bytes)
            .map_err(|source| RecoverError::damaged(path.clone(), source))?;
        let laid = Promoted { head: before.head, ..segment.clone() };
        Ok(Self { path, table, laid, digester: RecordDigester::resume(before.head.digest) })
    }

    /// Lays the records up to `seq`, or all that are left.
    fn lay_up_to(&mut self, leaf: &mut Leaf, seq: Option<Seq>) -> Result<(), RecoverError> {
        let count = self.table.records.partition_point(|record| seq.is_none_or(|seq| record.seq <= seq));
        if count == 0 {
            return Ok(());
        }
        let records: Vec<_> = self.table.records.drain(..count).collect();
        let head = &mut self.laid.head;
        for record in &records {
            head.position.incarnation = incarnation_after(head.position.incarnation, record);
            (head.position.seq, head.time, head.map_version) = (record.seq, record.time, record.map_version);
            head.digest = self.digester.push(record);
        }
        let references = self.table.references.clone();
        let part = Table { records, references, frames: Vec::new() };
        let damage = |what| RecoverError::Damage { path: self.path.clone(), what };
        leaf.take(self.laid.clone(), &part, 0).map_err(damage)
    }
}
