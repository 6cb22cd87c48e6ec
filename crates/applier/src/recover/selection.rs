//! Selectors resolved, and what an operator may choose from.

use format::manifest::{DiskState, Point};
use model::{DiskName, MarkKind, Position, RecordDigest, Selector, Seq, Timestamp};
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
    /// `crash`, as if the power had been cut there, or `application`, where applications were quiesced.
    pub consistency: &'static str,
    /// What the user called it; empty for none.
    pub label: String,
    /// When the applier made it, RFC 3339: everything up to it was stored and processed by then. None while only the
    /// stream knows of it.
    pub made: Option<String>,
    /// Digest over record headers up to it, as `verify --head` takes it behind its seq.
    pub digest: String,
    /// Chain hash of the segment that holds its last record, in hexadecimal; none while only the stream knows of it.
    pub chain: Option<String>,
    /// State digests of its disks: what each holds; empty until they are reckoned.
    pub states: Vec<StateView>,
    /// Whether it is held whatever the policy says.
    pub pinned: bool,
}

/// What a disk holds at a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateView {
    /// The disk.
    pub disk: DiskName,
    /// Its state digest, in hexadecimal: equal for equal contents, whatever the way to them.
    pub digest: String,
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
    /// Up to it only the points above open; 0 while every valid position does.
    pub horizon: Seq,
    /// Runs of positions that all open, by position. Before the first of them only points do.
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
    /// Recovery points and valid ranges. Errors: whatever stops the reading of records at the ends of ranges.
    pub async fn points(&self) -> Result<PointsView, RecoverError> {
        let points = self.recorded_points().iter().map(|point| PointView {
            id: point.id.to_string(),
            seq: point.position.seq,
            time: point.time.to_string(),
            kind: kind_text(point.kind),
            consistency: match point.mark.as_ref().map(|mark| mark.kind) {
                Some(MarkKind::Application) => "application",
                Some(MarkKind::Crash) | None => "crash",
            },
            label: point.mark.as_ref().map(|mark| mark.label.clone()).unwrap_or_default(),
            made: point.made.map(|made| made.at.to_string()),
            digest: point.digest.to_string(),
            chain: point.made.map(|made| made.chain.to_string()),
            states: point.states.iter().map(|state| self.state_view(state)).collect(),
            pinned: self.is_pinned(point),
        });
        let points = points.collect();
        let mut ranges = Vec::with_capacity(self.validity().runs().len());
        for run in self.validity().runs().iter().filter(|run| run.to > self.horizon_seq()) {
            let (from_seq, to_seq) = (run.from.max(self.horizon_seq().next()), run.to);
            let (from, to) = (self.time_of(from_seq).await?, self.time_of(to_seq).await?);
            ranges.push(ValidRange { from_seq, to_seq, from_time: from.to_string(), to_time: to.to_string() });
        }
        Ok(PointsView { points, horizon: self.horizon_seq(), ranges, draining: self.draining() })
    }

    fn state_view(&self, state: &DiskState) -> StateView {
        StateView { disk: state.disk.clone(), digest: state.sum.digest(self.keys()).to_string() }
    }

    async fn time_of(&self, seq: Seq) -> Result<Timestamp, RecoverError> {
        if seq <= self.horizon_seq() {
            return Ok(self.kept_at_or_before(seq).map(|point| point.time).unwrap_or_default());
        }
        Ok(self.records_of(seq).await?.time_of(seq).unwrap_or_default())
    }

    /// The position a selector means. `processed` is where the replica stands, if one is known.
    /// Up to the horizon a time means the last point not after it.
    /// Errors: `NotAPoint`, `BeforeHorizon`, `OutOfRange`, `UnknownPoint`, `NotProcessed`, `NoPoint`, and whatever stops
    /// the reading.
    pub async fn resolve(&self, selector: &Selector, processed: Option<Seq>) -> Result<Resolved, RecoverError> {
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
            // Times never go back along a stream, so nothing valid lies between.
            Selector::Time(time) => match self.floor_of_time(*time).await? {
                Some(seq) => seq,
                None => return Err(self.out_of_range(selector).await?),
            },
        };
        match valid.contains(seq) {
            true => self.resolved(seq).await,
            false => Err(self.not_valid(selector, seq).await?),
        }
    }

    /// The last position that opens and is not later than `time`.
    async fn floor_of_time(&self, time: Timestamp) -> Result<Option<Seq>, RecoverError> {
        if time >= self.horizon().1 {
            let seq = self.last_not_after(time).await?;
            return Ok(self.floor(seq));
        }
        let kept = |point: &&Point| point.position.seq <= self.horizon_seq() && point.time <= time;
        Ok(self.recorded_points().iter().rev().find(kept).map(|point| point.position.seq))
    }

    /// The last position that opens and is not after `seq`.
    fn floor(&self, seq: Seq) -> Option<Seq> {
        let valid = self.validity().floor(seq)?;
        match valid > self.horizon_seq() {
            true => Some(valid),
            false => self.kept_at_or_before(valid).map(|point| point.position.seq),
        }
    }

    /// The first position that opens and is not before `seq`.
    fn ceil(&self, seq: Seq) -> Option<Seq> {
        let kept = self.recorded_points().iter().map(|point| point.position.seq);
        let mut kept = kept.filter(|kept| *kept >= seq && *kept <= self.horizon_seq());
        kept.next().or_else(|| self.validity().ceil(seq.max(self.horizon_seq().next())))
    }

    async fn resolved(&self, seq: Seq) -> Result<Resolved, RecoverError> {
        if seq <= self.horizon_seq() {
            return match self.kept_at_or_before(seq).filter(|point| point.position.seq == seq) {
                Some(Point { position, time, digest, .. }) => {
                    Ok(Resolved { position: *position, time: *time, digest: *digest })
                }
                None => {
                    let before = self.spell(self.floor(seq)).await?;
                    let (asked, after) = (format!("seq:{seq}"), self.spell(self.ceil(seq)).await?);
                    Err(RecoverError::BeforeHorizon { asked, horizon: self.horizon_seq(), before, after })
                }
            };
        }
        let gone = || RecoverError::Foreign { seq };
        let records = self.records_of(seq).await?;
        let time = records.time_of(seq).ok_or_else(gone)?;
        let (incarnation, digest) = records.state_after(seq).ok_or_else(gone)?;
        Ok(Resolved { position: Position { incarnation, seq }, time, digest })
    }

    async fn spell(&self, seq: Option<Seq>) -> Result<String, RecoverError> {
        match seq {
            None => Ok("none".to_owned()),
            Some(seq) => Ok(format!("seq:{seq} ({})", self.time_of(seq).await?)),
        }
    }

    /// The error for a position that is no point.
    async fn not_valid(&self, selector: &Selector, seq: Seq) -> Result<RecoverError, RecoverError> {
        if seq > self.head().position.seq || seq == Seq::ZERO {
            return self.out_of_range(selector).await;
        }
        let (before, after) = (self.floor(seq), self.ceil(seq));
        let asked = match selector {
            Selector::LatestProcessed => format!("the replica's position seq:{seq}"),
            other => other.to_string(),
        };
        Ok(RecoverError::NotAPoint { asked, before: self.spell(before).await?, after: self.spell(after).await? })
    }

    /// The error for a position outside of what is there.
    async fn out_of_range(&self, selector: &Selector) -> Result<RecoverError, RecoverError> {
        let (from, to) = (self.spell(self.ceil(Seq(1))).await?, self.spell(self.validity().last()).await?);
        Ok(RecoverError::OutOfRange { asked: selector.to_string(), from, to })
    }
}
