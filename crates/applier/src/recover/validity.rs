//! Which positions of a stream are points. Pure: fed with records in order, it knows the valid ranges so far.
//!
//! A stream begins invalid (its first drain is the initial replication). A drain end is valid, and so is every position
//! after it, until a drain begins: from then on every position after the drain's `lost_after` is invalid, also those that
//! had seemed valid, up to but without the next drain end. Positions at or before `lost_after` stay as they were.

use format::manifest::{Drain, DrainStep};
use model::{RecordBody, Seq};
use probe::{Rule, Rules};

/// A closed run of valid positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeqRun {
    /// First.
    pub from: Seq,
    /// Last.
    pub to: Seq,
}

/// The valid positions of a stream so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Validity {
    runs: Vec<SeqRun>,
    draining: bool,
    /// The safety rules in force.
    rules: Rules,
}

impl Default for Validity {
    fn default() -> Self {
        Self { runs: Vec::new(), draining: true, rules: Rules::ALL }
    }
}

impl Validity {
    /// Nothing known yet, under these safety rules.
    pub fn with_rules(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// As of record `to`, of a stream with these drains.
    pub fn replay(drains: &[Drain], to: Seq, rules: Rules) -> Self {
        let mut validity = Self::with_rules(rules);
        for drain in drains.iter().take_while(|drain| drain.seq <= to) {
            validity.reach(Seq(drain.seq.0.saturating_sub(1)));
            validity.step(drain.seq, Some(drain.step));
        }
        validity.reach(to);
        validity
    }

    /// Takes the next record in.
    pub fn push<D>(&mut self, seq: Seq, body: &RecordBody<D>) {
        self.step(seq, Drain::of(seq, body).map(|drain| drain.step));
    }

    /// Every record up to `seq` is in, and no other drains.
    fn reach(&mut self, seq: Seq) {
        if seq > Seq::ZERO {
            self.step(seq, None);
        }
    }

    fn step(&mut self, seq: Seq, drain: Option<DrainStep>) {
        if !self.rules.hold(Rule::DrainIsNoPoint) {
            return self.push_careless(seq);
        }
        match drain {
            Some(DrainStep::Begin { lost_after }) => {
                self.retract(lost_after);
                self.draining = true;
            }
            Some(DrainStep::End) if self.draining => {
                self.draining = false;
                self.runs.push(SeqRun { from: seq, to: seq });
            }
            _ if self.draining => {}
            _ => self.runs.last_mut().expect("a stream that does not drain has an open run").to = seq,
        }
    }

    /// Careless: records are in order, so what stands behind each of them is a state of the disks.
    fn push_careless(&mut self, seq: Seq) {
        self.draining = false;
        match self.runs.last_mut() {
            Some(run) => run.to = seq,
            None => self.runs.push(SeqRun { from: seq, to: seq }),
        }
    }

    fn retract(&mut self, last_good: Seq) {
        while self.runs.last().is_some_and(|run| run.from > last_good) {
            self.runs.pop();
        }
        if let Some(run) = self.runs.last_mut() {
            run.to = run.to.min(last_good);
        }
    }

    /// Whether the end lies inside a drain.
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// All valid runs in order.
    pub fn runs(&self) -> &[SeqRun] {
        &self.runs
    }

    /// Whether the position is a point.
    pub fn contains(&self, seq: Seq) -> bool {
        self.floor(seq) == Some(seq)
    }

    /// The last valid position not after `seq`.
    pub fn floor(&self, seq: Seq) -> Option<Seq> {
        let before = self.runs.partition_point(|run| run.from <= seq);
        before.checked_sub(1).map(|i| self.runs[i].to.min(seq))
    }

    /// The first valid position not before `seq`.
    pub fn ceil(&self, seq: Seq) -> Option<Seq> {
        let at = self.runs.partition_point(|run| run.to < seq);
        self.runs.get(at).map(|run| run.from.max(seq))
    }

    /// The last valid position of all.
    pub fn last(&self) -> Option<Seq> {
        self.runs.last().map(|run| run.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{DrainCause, Incarnation, Mark, MarkKind};
    use proptest::prelude::*;

    fn begin(lost_after: u64) -> RecordBody<()> {
        RecordBody::DrainBegin {
            cause: DrainCause::Overflow,
            incarnation: Incarnation::default(),
            lost_after: Seq(lost_after),
        }
    }

    fn mark() -> Mark {
        Mark { kind: MarkKind::Crash, id: [0; 16], label: String::new() }
    }

    #[test]
    fn nothing_is_valid_before_the_first_drain_end() {
        let mut validity = Validity::default();
        validity.push(Seq(1), &begin(0));
        validity.push(Seq(2), &RecordBody::<()>::Mark(mark()));
        assert_eq!(validity.last(), None);
        validity.push(Seq(3), &RecordBody::<()>::DrainEnd(mark()));
        assert_eq!(
            (validity.floor(Seq(2)), validity.ceil(Seq(1)), validity.last()),
            (None, Some(Seq(3)), Some(Seq(3)))
        );
    }

    #[test]
    fn without_its_rule_a_drain_is_taken_for_points() {
        let of = |rules| {
            let mut validity = Validity::with_rules(rules);
            validity.push(Seq(1), &begin(0));
            validity.push(Seq(2), &RecordBody::<()>::DrainEnd(mark()));
            validity.push(Seq(3), &begin(2));
            validity.push(Seq(4), &RecordBody::<()>::Mark(mark()));
            (1..=4).filter(|seq| validity.contains(Seq(*seq))).collect::<Vec<_>>()
        };
        assert_eq!(of(Rules::ALL), [2]);
        assert_eq!(of(Rules::without(Rule::DrainIsNoPoint)), [1, 2, 3, 4]);
    }

    proptest! {
        /// The runs equal one flag for each position, worked out record by record.
        #[test]
        fn runs_equal_a_flag_for_each_position(kinds in proptest::collection::vec((0u8..6, 0u64..12), 1..80)) {
            let mut validity = Validity::default();
            let mut flags = vec![false];
            let mut draining = true;
            for (i, (kind, back)) in kinds.into_iter().enumerate() {
                let seq = i as u64 + 1;
                let body = match kind {
                    0 => {
                        let lost_after = (seq - 1).saturating_sub(back);
                        draining = true;
                        flags.iter_mut().skip(lost_after as usize + 1).for_each(|f| *f = false);
                        begin(lost_after)
                    }
                    1 => {
                        draining = false;
                        RecordBody::DrainEnd(mark())
                    }
                    _ => RecordBody::Mark(mark()),
                };
                flags.push(!draining);
                validity.push(Seq(seq), &body);
            }
            for (seq, flag) in flags.iter().enumerate() {
                let seq = Seq(seq as u64);
                prop_assert_eq!(validity.contains(seq), *flag);
                let floor = (0..=seq.0).rev().find(|s| flags[*s as usize]).map(Seq);
                let ceil = (seq.0..flags.len() as u64).find(|s| flags[*s as usize]).map(Seq);
                prop_assert_eq!((validity.floor(seq), validity.ceil(seq)), (floor, ceil));
            }
        }
    }
}
