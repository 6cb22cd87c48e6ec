//! What stays and what goes: a pure function of the points that are left, the tiers, the journal window and the time.
//!
//! A tier with interval I cuts time since 1970 into buckets of length I and keeps the **first good point of each bucket**,
//! until the whole bucket is older than the tier's age. A tier of `all` keeps every point until it is older than the tier's
//! age, and so does the journal window: every point in it is kept, since every position in it is. Pinned points are kept, good
//! or not, and the **floor** is kept, however old: the last good point that is older than what is kept in full. Everything else
//! goes, invalid points at once.
//!
//! Why in this way:
//!
//! - **Buckets do not move with time.** What a bucket chose it chose for good, so thinning at every step never thins more
//!   than it should, as it does where buckets slide: there each step finds another first.
//! - **The first point, not the newest:** the choice is made when the point comes, and later ones do not undo it.
//! - **Coarse choices are fine choices.** Where intervals divide each other the first point of a long bucket is also the
//!   first of the short one it lies in. Where they do not, nothing is lost either: each tier holds its choices from
//!   their first day, not only once they are too old for the tier before.
//! - **A bucket expires as a whole,** not point by point. So a point that is missing because it was dropped is never missed:
//!   the first good point of a bucket is dropped only when its bucket has expired, and then no later point of it
//!   can be chosen in its place. Hence thinning step by step keeps what thinning once, at the end, would keep.
//! - **The floor lies behind what is kept in full,** not at the last good point, which such a thing keeps anyway: a drain may take
//!   back all that is kept in full at once, and then the floor is the last good point, and still there.
//! - **Coverage.** A point made at t and not older than a tier's age lies in a bucket that has not expired; the bucket's
//!   first point is there, at or before t by less than I. Moments without points are as far from one as the gap is long.
//!
//! All that assumes what a stream gives: times that never go back along a stream, and drains that take back the newest points,
//! none of them older than what is kept in full. A drain that reaches further still leaves the last good point of those that
//! are left. Deliberately absent: which segments a kept point or the window needs. This says what must stay recoverable;
//! deletion has rules of its own.

use std::time::Duration;

use super::Retention;
use crate::{PointId, Seq, Timestamp};

/// What the policy must know of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub id: PointId,
    /// Time of its last record.
    pub time: Timestamp,
    /// Its last record.
    pub seq: Seq,
    /// Somebody holds it.
    pub pinned: bool,
    /// It is still valid: no drain has taken it back.
    pub good: bool,
}

/// Why a point is kept. The first that applies, in this order: pin and floor are named where nothing else keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It lies in the journal window.
    Window,
    /// This tier keeps it, counted from 0; the first of them.
    Tier(usize),
    /// It is pinned.
    Pinned,
    /// It is the last good point older than what is kept in full.
    Floor,
}

/// A point that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub id: PointId,
    /// Why.
    pub reason: Reason,
}

/// What becomes of every point, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// These stay.
    pub kept: Vec<Kept>,
    /// These may go.
    pub dropped: Vec<PointId>,
}

impl Retention {
    /// Decides on the points of one machine, which must be in order of their seq. `window` is the journal window; points
    /// of a time after `now` count as made now.
    pub fn plan(&self, points: &[Candidate], window: Duration, now: Timestamp) -> Plan {
        debug_assert!(points.is_sorted_by_key(|point| point.seq), "points are in order");
        let in_full = self.kept_in_full(window);
        let floor = points.iter().rposition(|point| point.good && now.since(point.time) > in_full);
        let mut buckets: Vec<_> = self.tiers.iter().map(|tier| Buckets::new(tier, now)).collect();
        let mut plan = Plan::default();
        for (i, point) in points.iter().enumerate() {
            // Every tier sees every good point, whoever else keeps it: hence the least, not the first.
            let tier = buckets.iter_mut().enumerate().filter(|_| point.good);
            let tier = tier.filter_map(|(n, buckets)| buckets.keep(point.time).then_some(n)).min();
            let reason = (point.good && now.since(point.time) <= window)
                .then_some(Reason::Window)
                .or(tier.map(Reason::Tier))
                .or(point.pinned.then_some(Reason::Pinned))
                .or((floor == Some(i)).then_some(Reason::Floor));
            match reason {
                Some(reason) => plan.kept.push(Kept { id: point.id, reason }),
                None => plan.dropped.push(point.id),
            }
        }
        plan
    }

    /// Up to this age every good point is kept, by the journal window or by a first tier of `all`.
    fn kept_in_full(&self, window: Duration) -> Duration {
        match self.tiers.first() {
            Some(super::Tier { age, every: None }) => window.max(age.duration()),
            _ => window,
        }
    }
}

/// One tier while it goes through the points.
struct Buckets {
    age: Duration,
    /// Microseconds; none for a tier that keeps all.
    every: Option<u64>,
    now: Timestamp,
    /// The bucket that chose last.
    last: Option<u64>,
}

impl Buckets {
    fn new(tier: &super::Tier, now: Timestamp) -> Self {
        let micros = |span: super::Span| span.duration().as_secs() * 1_000_000;
        Self { age: tier.age.duration(), every: tier.every.map(micros), now, last: None }
    }

    /// Whether the tier keeps the next good point, made at `time`.
    fn keep(&mut self, time: Timestamp) -> bool {
        let Some(every) = self.every else { return self.now.since(time) <= self.age };
        let bucket = time.0 / every;
        let end = Timestamp((bucket * every).saturating_add(every - 1));
        self.last.replace(bucket) != Some(bucket) && self.now.since(end) <= self.age
    }
}
