//! Selectors resolved, and what an operator may choose from.

use model::{Position, RecordDigest, Selector, Seq, Timestamp};
use serde::Serialize;

use super::{History, RecoverError};

/// A position that is a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// Which.
    pub position: Position,
    /// Time of its last record.
    pub time: Timestamp,
    /// Digest over record headers up to it.
    pub digest: RecordDigest,
}

/// A recovery point as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointView {
    /// Its id as `id:` takes it.
    pub id: String,
    /// Its position.
    pub seq: Seq,
    /// Time of its last record, RFC 3339.
    pub time: String,
    /// `crash`, `marked` or `drain-end`.
    pub kind: &'static str,
    /// What the user called it; empty for none.
    pub label: String,
}

/// A run of positions each of which can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ValidRange {
    /// First position.
    pub from_seq: Seq,
    /// Last position.
    pub to_seq: Seq,
    /// Time of the first, RFC 3339.
    pub from_time: String,
    /// Time of the last, RFC 3339.
    pub to_time: String,
}

/// Everything an operator may choose from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointsView {
    /// Recovery points by position.
    pub points: Vec<PointView>,
    /// Valid ranges by position.
    pub ranges: Vec<ValidRange>,
    /// Whether the stream ends inside a drain.
    pub draining: bool,
}

fn kind_text(kind: format::manifest::PointKind) -> &'static str {
    match kind {
        format::manifest::PointKind::Crash => "crash",
        format::manifest::PointKind::Marked => "marked",
        format::manifest::PointKind::DrainEnd => "drain-end",
    }
}

impl History {
    /// Recovery points and valid ranges.
    pub fn points(&self) -> PointsView {
        let time = |seq| self.time_of(seq).unwrap_or_default().to_string();
        let points = self.recorded_points().iter().map(|point| PointView {
            id: point.id.to_string(),
            seq: point.position.seq,
            time: point.time.to_string(),
            kind: kind_text(point.kind),
            label: point.mark.as_ref().map(|mark| mark.label.clone()).unwrap_or_default(),
        });
        let ranges = self.validity().runs().iter().map(|run| ValidRange {
            from_seq: run.from,
            to_seq: run.to,
            from_time: time(run.from),
            to_time: time(run.to),
        });
        PointsView { points: points.collect(), ranges: ranges.collect(), draining: self.draining() }
    }

    /// The position a selector means. `processed` is where the replica stands, if one is known.
    /// Errors: `NotAPoint`, `OutOfRange`, `UnknownPoint`, `NotProcessed`, `NoPoint`.
    pub fn resolve(&self, selector: &Selector, processed: Option<Seq>) -> Result<Resolved, RecoverError> {
        let valid = self.validity();
        let Some(last) = valid.last() else {
            return Err(RecoverError::NoPoint { machine: self.machine().clone() });
        };
        let seq = match selector {
            Selector::Latest => last,
            Selector::LatestProcessed => processed.filter(|seq| *seq > Seq::ZERO).ok_or(RecoverError::NotProcessed)?,
            Selector::Seq(seq) => *seq,
            Selector::Id(id) => {
                let point = self.recorded_points().iter().find(|point| point.id == *id);
                point.ok_or(RecoverError::UnknownPoint { id: *id })?.position.seq
            }
            Selector::Time(time) => self.last_not_after(*time).ok_or_else(|| self.out_of_range(selector))?,
        };
        match valid.contains(seq) {
            true => self.resolved(seq),
            false => Err(self.not_valid(selector, seq)),
        }
    }

    fn resolved(&self, seq: Seq) -> Result<Resolved, RecoverError> {
        let gone = || RecoverError::Foreign { seq };
        let time = self.time_of(seq).ok_or_else(gone)?;
        let (incarnation, digest) = self.state_after(seq).ok_or_else(gone)?;
        Ok(Resolved { position: Position { incarnation, seq }, time, digest })
    }

    /// The last valid position whose record's time is not after `time`. Times never go back along a stream.
    fn last_not_after(&self, time: Timestamp) -> Option<Seq> {
        let not_after = |seq: u64| self.time_of(Seq(seq)).is_some_and(|of| of <= time);
        let run = self.validity().runs().iter().rev().find(|run| not_after(run.from.0))?;
        let (mut low, mut high) = (run.from.0, run.to.0);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if not_after(middle) { low = middle } else { high = middle - 1 }
        }
        Some(Seq(low))
    }

    fn spell(&self, seq: Seq) -> String {
        format!("seq:{seq} ({})", self.time_of(seq).unwrap_or_default())
    }

    fn not_valid(&self, selector: &Selector, seq: Seq) -> RecoverError {
        if seq > self.head().position.seq || seq == Seq::ZERO {
            return self.out_of_range(selector);
        }
        let spell = |seq: Option<Seq>| seq.map_or_else(|| "none".to_owned(), |seq| self.spell(seq));
        let (before, after) = (self.validity().floor(seq), self.validity().ceil(seq));
        let asked = match selector {
            Selector::LatestProcessed => format!("the replica's position seq:{seq}"),
            other => other.to_string(),
        };
        RecoverError::NotAPoint { asked, before: spell(before), after: spell(after) }
    }

    fn out_of_range(&self, selector: &Selector) -> RecoverError {
        let spell = |seq: Option<Seq>| seq.map_or_else(|| "none".to_owned(), |seq| self.spell(seq));
        let first = self.validity().runs().first().map(|run| run.from);
        RecoverError::OutOfRange { asked: selector.to_string(), from: spell(first), to: spell(self.validity().last()) }
    }
}
