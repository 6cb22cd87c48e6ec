//! Recovery points: which positions get a name. Pure: fed with records in order and with the time, it says which points
//! to add.
//!
//! Every mark outside a drain is a point, and so is the end of a drain. A crash point is due `crash_every` after the last
//! crash point or drain end. While records flow their own times decide, so that an applier that catches up makes the
//! points it would have made; when they stop flowing, the clock does. A crash point's id is a function of its position:
//! an applier that died before its commit was acknowledged makes the same point again, not another one.

use std::time::Duration;

use format::manifest::{Made, Point, PointKind};
use format::object::ObjectHash;
use model::{MachineName, PointId, Position, Record, RecordBody, RecordDigest, Seq, Timestamp};

use store::LogEnd;

use crate::recover::Validity;

/// The state after some record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct After {
    /// The record.
    pub position: Position,
    /// Its time.
    pub time: Timestamp,
    /// Digest up to it.
    pub digest: RecordDigest,
    /// Chain hash of the segment that holds it.
    pub chain: ObjectHash,
}

/// Decides on points.
pub(crate) struct PointSchedule {
    machine: MachineName,
    crash_every: Duration,
    validity: Validity,
    /// The last valid position, unless a drain took it back.
    last_valid: Option<After>,
    /// When the last crash point or drain end was; none before the first.
    last_crash: Option<Timestamp>,
    last_point: Seq,
}

impl PointSchedule {
    /// For what follows `start`; `validity` says which positions up to there are valid.
    pub fn behind(
        machine: MachineName,
        crash_every: Duration,
        start: &LogEnd,
        validity: impl FnOnce(Seq) -> Validity,
    ) -> Self {
        let LogEnd { head, hash: chain, .. } = *start;
        let validity = validity(head.position.seq);
        let here = After { position: head.position, time: head.time, digest: head.digest, chain };
        let last_valid = Some(here).filter(|here| validity.contains(here.position.seq));
        Self { machine, crash_every, validity, last_valid, last_crash: None, last_point: Seq::ZERO }
    }

    /// Takes in a point that is in the manifest already.
    pub fn known(&mut self, point: &Point) {
        self.last_point = self.last_point.max(point.position.seq);
        if point.kind != PointKind::Marked {
            self.last_crash = self.last_crash.max(Some(point.time));
        }
    }

    /// The valid positions so far.
    pub fn validity(&self) -> &Validity {
        &self.validity
    }

    /// Takes the next record in; `new` gives the time when its points are not in the manifest yet.
    pub fn push<D>(&mut self, record: &Record<D>, after: After, new: Option<Timestamp>) -> Option<Point> {
        self.validity.push(record.seq, &record.body);
        if self.validity.draining() {
            self.last_valid = self.last_valid.filter(|last| self.validity.contains(last.position.seq));
            return None;
        }
        self.last_valid = Some(after);
        let now = new?;
        match &record.body {
            RecordBody::Mark(mark) => Some(self.point(PointKind::Marked, after, Some(mark.clone()), now)),
            // A drain end while nothing drains is an ordinary mark.
            RecordBody::DrainEnd(mark) => Some(self.point(PointKind::DrainEnd, after, Some(mark.clone()), now)),
            _ if self.due(after.time) => Some(self.point(PointKind::Crash, after, None, now)),
            _ => None,
        }
    }

    /// Records have stopped flowing and the clock says `now`.
    pub fn idle(&mut self, now: Timestamp) -> Option<Point> {
        let last = self.last_valid.filter(|_| !self.validity.draining())?;
        (last.position.seq > self.last_point && self.due(now)).then(|| self.point(PointKind::Crash, last, None, now))
    }

    fn due(&self, time: Timestamp) -> bool {
        self.last_crash.is_none_or(|last| time >= last.plus(self.crash_every))
    }

    fn point(&mut self, kind: PointKind, after: After, mark: Option<model::Mark>, now: Timestamp) -> Point {
        let id = match &mark {
            Some(mark) => PointId(mark.id),
            None => crash_point_id(&self.machine, after),
        };
        let After { position, time, digest, chain } = after;
        let point =
            Point { id, position, time, kind, mark, digest, made: Some(Made { at: now, chain }), states: Vec::new() };
        self.known(&point);
        point
    }
}

fn crash_point_id(machine: &MachineName, after: After) -> PointId {
    let mut hasher = blake3::Hasher::new_derive_key("farshore 2026 crash point id");
    hasher.update(machine.as_str().as_bytes()).update(&[0]);
    hasher.update(&after.position.incarnation.0).update(&after.position.seq.0.to_le_bytes());
    hasher.update(&after.digest.0);
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    PointId(id)
}

/// The incarnation of each record of a segment: that of the record before it, until the drain that opens another.
pub(crate) fn incarnation_after<D>(before: model::Incarnation, record: &Record<D>) -> model::Incarnation {
    match &record.body {
        RecordBody::DrainBegin { incarnation, .. } => *incarnation,
        _ => before,
    }
}
