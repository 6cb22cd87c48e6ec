//! Which positions a damage hits. Pure.
//!
//! A damaged frame hits every position at which some disk still reads from it: from the record that refers to it until
//! later records have laid all of it over. A segment whose table cannot be read hits every position from its first
//! record on, because nobody knows what it wrote.

use std::collections::BTreeMap;

use model::{DiskId, Extent, ExtentSet, Seq};
use serde::Serialize;

/// A closed run of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SeqRange {
    /// First.
    pub from: Seq,
    /// Last.
    pub to: Seq,
}

/// What one damage makes unreadable while records are laid over one another.
#[derive(Debug, Default)]
pub(super) struct Hits {
    lost: BTreeMap<DiskId, ExtentSet>,
    /// From here on everything is hit.
    unknown_from: Option<Seq>,
    ranges: Vec<SeqRange>,
}

impl Hits {
    /// Nobody knows what happened from this record on.
    pub fn unknown_from(&mut self, seq: Seq) {
        self.unknown_from = Some(self.unknown_from.map_or(seq, |from| from.min(seq)));
    }

    /// A record made the range read from what is damaged.
    pub fn lose(&mut self, disk: DiskId, extent: Extent) {
        self.lost.entry(disk).or_default().insert(extent);
    }

    /// A record laid something over the range.
    pub fn lay_over(&mut self, disk: DiskId, extent: Extent) {
        if let Some(lost) = self.lost.get_mut(&disk) {
            lost.remove(extent);
            if lost.is_empty() {
                self.lost.remove(&disk);
            }
        }
    }

    /// A disk left, or ends at `size` from here on.
    pub fn cut(&mut self, disk: DiskId, size: u64) {
        let rest = (u64::MAX - size) / model::SECTOR_BYTES * model::SECTOR_BYTES;
        if let Ok(rest) = Extent::new(size, rest) {
            self.lay_over(disk, rest);
        }
    }

    /// This position is hit, which lies behind all that were.
    pub fn hit(&mut self, seq: Seq) {
        match self.ranges.last_mut() {
            Some(last) if last.to.next() >= seq => last.to = last.to.max(seq),
            _ => self.ranges.push(SeqRange { from: seq, to: seq }),
        }
    }

    /// The record is taken in: whether its position is hit.
    pub fn after(&mut self, seq: Seq) {
        if self.lost.is_empty() {
            return;
        }
        self.hit(seq);
    }

    /// The positions hit, up to the end of the log.
    pub fn finish(mut self, end: Seq) -> Vec<SeqRange> {
        if let Some(from) = self.unknown_from {
            self.ranges.retain(|range| range.from < from);
            if let Some(last) = self.ranges.last_mut() {
                last.to = last.to.min(Seq(from.0.saturating_sub(1)));
            }
            self.ranges.push(SeqRange { from, to: end.max(from) });
        }
        self.ranges
    }
}
