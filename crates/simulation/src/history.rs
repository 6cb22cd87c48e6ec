//! What the clients of one machine did and saw, and whether an image is a prefix of it.
//!
//! The oracle knows when operations were issued and acknowledged, and what they wrote; nothing of records, numbers or
//! maps. An **era** is the time from one start of the agent to the next: it begins with what the disks hold then, whatever
//! a crash, a power cut or a revert has left there. A recovery point belongs to the era of its incarnation and must be that
//! beginning with a prefix of the era's operations on top: no sector shows something that was overwritten by an operation
//! acknowledged before any operation shown anywhere was issued, and no operation is shown in part.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{Extent, Incarnation, Position, Seq};

use crate::stamp::{Found, MACHINES_MAX, SECTOR, Stamp};

/// One operation as its client saw it.
#[derive(Debug, Clone)]
pub struct Op {
    /// Which disk of the machine.
    pub disk: usize,
    /// Where.
    pub extent: Extent,
    /// It left zeros.
    pub zero: bool,
    /// When it was issued.
    pub issued: u64,
    /// When it was acknowledged; never, if it failed or its client died.
    pub acknowledged: Option<u64>,
    /// It failed, or a flush behind it did: it may be there, in part, or not.
    pub undecided: bool,
    /// What it had seen of every machine.
    pub seen: [u64; MACHINES_MAX],
}

impl Op {
    fn sectors(&self) -> std::ops::Range<usize> {
        let sector = |bytes: u64| usize::try_from(bytes).expect("a simulated disk is small") / SECTOR;
        sector(self.extent.offset())..sector(self.extent.end())
    }
}

/// From one start of the agent to the next.
#[derive(Debug, Clone)]
pub struct Era {
    /// What each disk held at its beginning.
    pub base: Arc<Vec<Vec<u8>>>,
    /// Index of its first operation.
    pub first_op: usize,
    /// Index behind its last one; none while it goes on.
    pub end_op: Option<usize>,
    /// Disks on which a flush failed: what an earlier era wrote and never flushed may be gone from them.
    pub shaken: BTreeSet<usize>,
}

/// The history of one machine.
#[derive(Debug, Default)]
pub struct History {
    machine: usize,
    ops: Vec<Op>,
    order: u64,
    eras: Vec<Era>,
    /// The era that goes on.
    current: Option<usize>,
    /// From which number on an incarnation belongs to which era.
    incarnations: BTreeMap<Incarnation, Vec<(Seq, usize)>>,
    /// Bytes acknowledged.
    pub acknowledged_ops: u64,
}

/// What a sector of an image shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Base,
    Zero { base: bool },
    Op(usize),
}

/// An image taken apart, ready to be asked.
#[derive(Debug)]
pub struct Judged {
    era: usize,
    shown: Vec<Vec<Shown>>,
    /// Operations of the era that left zeros.
    zeroes: Vec<usize>,
}

impl History {
    /// Of machine number `machine`, with no era yet.
    pub fn new(machine: usize) -> Self {
        Self { machine, ..Self::default() }
    }

    fn tick(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// The agent starts on disks that hold this. Whoever was in flight will never be answered.
    pub fn begin_era(&mut self, base: Vec<Vec<u8>>) -> usize {
        let first_op = self.ops.len();
        if let Some(current) = self.current {
            self.eras[current].end_op = Some(first_op);
        }
        // The page cache outlives the agent, and so does what it hides.
        let shaken = self.current.map(|current| self.eras[current].shaken.clone()).unwrap_or_default();
        self.eras.push(Era { base: Arc::new(base), first_op, end_op: None, shaken });
        self.current = Some(self.eras.len() - 1);
        tracing::info!(machine = self.machine, era = self.eras.len() - 1, first_op, "era begins");
        self.eras.len() - 1
    }

    /// A copy of the machine starts beside it, on disks that hold this and that nobody writes.
    pub fn side_era(&mut self, base: Vec<Vec<u8>>) -> usize {
        let first_op = self.ops.len();
        self.eras.push(Era { base: Arc::new(base), first_op, end_op: Some(first_op), shaken: BTreeSet::new() });
        self.eras.len() - 1
    }

    /// The era that goes on.
    pub fn era_now(&self) -> usize {
        self.current.expect("the agent has started")
    }

    /// An incarnation numbers records of an era from this number on. What an earlier life had numbered from there on under
    /// the same name never reached the log, or the log would not have taken this one.
    pub fn incarnation(&mut self, incarnation: Incarnation, from: Seq, era: usize) {
        let parts = self.incarnations.entry(incarnation).or_default();
        parts.retain(|(first, _)| *first < from);
        parts.push((from, era));
    }

    /// The era that a position belongs to.
    pub fn era_of(&self, position: Position) -> Option<usize> {
        let parts = self.incarnations.get(&position.incarnation)?;
        parts.iter().rev().find(|(from, _)| *from <= position.seq).map(|(_, era)| *era)
    }

    /// An operation is issued. Returns its number, from 1.
    pub fn issue(&mut self, disk: usize, extent: Extent, zero: bool, seen: [u64; MACHINES_MAX]) -> u64 {
        let issued = self.tick();
        self.ops.push(Op { disk, extent, zero, issued, acknowledged: None, undecided: false, seen });
        self.ops.len() as u64
    }

    /// It was answered.
    pub fn answer(&mut self, number: u64, ok: bool) {
        let now = self.tick();
        let op = &mut self.ops[usize::try_from(number).expect("an index") - 1];
        if ok {
            op.acknowledged = Some(now);
            self.acknowledged_ops += 1;
        } else {
            op.undecided = true;
        }
    }

    /// A moment, to be compared with when operations were acknowledged.
    pub fn moment(&mut self) -> u64 {
        self.tick()
    }

    /// A flush of a disk failed: what was not acknowledged before the last good one was issued may or may not be there.
    pub fn flush_failed(&mut self, disk: usize, last_good: u64) {
        let covered = |op: &Op| op.acknowledged.is_some_and(|done| done < last_good);
        self.ops.iter_mut().filter(|op| op.disk == disk && !covered(op)).for_each(|op| op.undecided = true);
        let era = self.era_now();
        self.eras[era].shaken.insert(disk);
    }

    /// Operations so far.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether nothing was done yet.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    fn before(&self, a: usize, b: usize) -> bool {
        self.ops[a].acknowledged.is_some_and(|done| done < self.ops[b].issued)
    }

    fn ops_of(&self, era: usize) -> std::ops::Range<usize> {
        self.eras[era].first_op..self.eras[era].end_op.unwrap_or(self.ops.len())
    }

    /// Takes an image apart. Errors: a sector that nothing explains.
    fn take_apart(&self, era: usize, images: &[Vec<u8>]) -> Result<Judged, String> {
        let base = &self.eras[era].base;
        let ours = self.ops_of(era);
        let mut shown = Vec::new();
        for (disk, image) in images.iter().enumerate() {
            let sectors = image.chunks(SECTOR).enumerate().map(|(sector, bytes)| {
                let under = &base[disk][sector * SECTOR..(sector + 1) * SECTOR];
                let unexplained = |why: &str| {
                    let machine = self.machine;
                    Err(format!("machine {machine} disk {disk} sector {sector} {why} (era {era}, operations {ours:?})"))
                };
                match Stamp::read(bytes) {
                    Found::Zero => Ok(Shown::Zero { base: under.iter().all(|byte| *byte == 0) }),
                    Found::Garbage => unexplained("holds what nobody wrote"),
                    Found::Stamp(stamp) => {
                        let place = (stamp.machine as usize, stamp.disk as usize, stamp.sector as usize);
                        if place != (self.machine, disk, sector) {
                            return unexplained("holds what was written for another place");
                        }
                        let op = usize::try_from(stamp.op).expect("an index");
                        let writer = op.checked_sub(1).filter(|op| ours.contains(op));
                        match writer {
                            Some(op) if self.ops[op].disk == disk && self.ops[op].sectors().contains(&sector) => {
                                Ok(Shown::Op(op))
                            }
                            Some(op) => unexplained(&format!("shows operation {op}, which never wrote it")),
                            None if bytes == under => Ok(Shown::Base),
                            None if op < ours.start && self.eras[era].shaken.contains(&disk) => Ok(Shown::Base),
                            None => unexplained(&format!("shows operation {op}, which is not of this era")),
                        }
                    }
                }
            });
            shown.push(sectors.collect::<Result<Vec<_>, _>>()?);
        }
        let zeroes = ours.filter(|op| self.ops[*op].zero).collect();
        Ok(Judged { era, shown, zeroes })
    }

    /// Whether what a sector shows can stand although `over` covers it and is included.
    fn may_stand(&self, judged: &Judged, disk: usize, sector: usize, over: usize) -> bool {
        match judged.shown[disk][sector] {
            Shown::Base => false,
            Shown::Op(writer) => writer == over || !self.before(writer, over),
            Shown::Zero { .. } => {
                let covers = |op: usize| self.ops[op].disk == disk && self.ops[op].sectors().contains(&sector);
                self.ops[over].zero
                    || judged.zeroes.iter().any(|&zero| zero != over && !self.before(zero, over) && covers(zero))
            }
        }
    }

    fn included_whole(&self, judged: &Judged, op: usize) -> Result<(), usize> {
        let disk = self.ops[op].disk;
        self.ops[op].sectors().find(|sector| !self.may_stand(judged, disk, *sector, op)).map_or(Ok(()), Err)
    }

    /// Judges the images of all disks at one point of an era. Errors: what is wrong with it, in one sentence.
    pub fn judge(&self, era: usize, images: &[Vec<u8>]) -> Result<Judged, String> {
        let judged = self.take_apart(era, images)?;
        let shown: BTreeSet<usize> = judged
            .shown
            .iter()
            .flatten()
            .filter_map(|shown| if let Shown::Op(op) = shown { Some(*op) } else { None })
            .collect();
        let latest_issue = shown.iter().map(|op| self.ops[*op].issued).max().unwrap_or(0);
        for index in self.ops_of(era) {
            let op = &self.ops[index];
            let owed = op.acknowledged.is_some_and(|done| done < latest_issue);
            if op.undecided || !(owed || shown.contains(&index)) {
                continue;
            }
            if let Err(sector) = self.included_whole(&judged, index) {
                let why = if owed { "acknowledged before something shown was issued" } else { "shown in part" };
                return Err(format!(
                    "machine {} disk {} sector {sector} shows {:?} and not operation {index} ({why})",
                    self.machine, op.disk, judged.shown[op.disk][sector]
                ));
            }
        }
        Ok(judged)
    }

    /// What the operations shown in an image had seen of another machine: the highest number.
    pub fn has_seen(&self, judged: &Judged, machine: usize) -> u64 {
        let ops = judged.shown.iter().flatten();
        ops.filter_map(|shown| if let Shown::Op(op) = shown { Some(self.ops[*op].seen[machine]) } else { None })
            .max()
            .unwrap_or(0)
    }

    /// Whether an image includes operation `number` and all that was acknowledged before it was.
    pub fn includes(&self, judged: &Judged, number: u64) -> Result<(), String> {
        let Some(last) = usize::try_from(number).ok().and_then(|number| number.checked_sub(1)) else { return Ok(()) };
        let Some(bound) = self.ops.get(last).and_then(|op| op.acknowledged) else { return Ok(()) };
        for index in self.ops_of(judged.era) {
            let op = &self.ops[index];
            let owed = op.acknowledged.is_some_and(|done| done <= bound) && !op.undecided;
            if owed && let Err(sector) = self.included_whole(judged, index) {
                return Err(format!(
                    "machine {} disk {} sector {sector} lacks operation {index}, which another machine had seen",
                    self.machine, op.disk
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTORS: usize = 8;

    fn blank() -> Vec<Vec<u8>> {
        vec![vec![0; SECTORS * SECTOR]]
    }

    fn write(image: &mut [Vec<u8>], op: u64, sectors: std::ops::Range<u64>) {
        for sector in sectors {
            let mut bytes = Vec::new();
            Stamp { op, machine: 0, disk: 0, sector, seen: [0; MACHINES_MAX] }.write(&mut bytes);
            let at = sector as usize * SECTOR;
            image[0][at..at + SECTOR].copy_from_slice(&bytes);
        }
    }

    fn sectors(first: u64, count: u64) -> Extent {
        Extent::new(first * 512, count * 512).expect("aligned")
    }

    /// Three operations one after the other: 0..4, 2..6, 0..1.
    fn three() -> History {
        let mut history = History::new(0);
        history.begin_era(blank());
        for extent in [sectors(0, 4), sectors(2, 4), sectors(0, 1)] {
            let op = history.issue(0, extent, false, [0; MACHINES_MAX]);
            history.answer(op, true);
        }
        history
    }

    #[test]
    fn every_prefix_passes_and_anything_else_does_not() {
        let history = three();
        let steps = [(1, 0..4), (2, 2..6), (3, 0..1)];
        let mut image = blank();
        history.judge(0, &image).expect("nothing yet");
        for (op, range) in steps.clone() {
            write(&mut image, op, range);
            history.judge(0, &image).expect("a prefix");
        }
        let mut hole = blank();
        write(&mut hole, 1, 0..4);
        write(&mut hole, 3, 0..1);
        assert!(history.judge(0, &hole).is_err(), "the second is missing, the third is there");
        let mut part = blank();
        write(&mut part, 1, 0..3);
        assert!(history.judge(0, &part).is_err(), "the first is there in part");
        let mut swapped = blank();
        write(&mut swapped, 2, 2..6);
        write(&mut swapped, 1, 0..4);
        write(&mut swapped, 3, 0..1);
        assert!(history.judge(0, &swapped).is_err(), "the first two in the wrong order");
    }

    #[test]
    fn what_a_new_era_does_not_begin_with_is_not_explained() {
        let mut history = three();
        history.begin_era(blank());
        let mut image = blank();
        history.judge(1, &image).expect("the beginning of the second era");
        write(&mut image, 1, 0..4);
        assert!(history.judge(0, &image).is_ok());
        assert!(history.judge(1, &image).is_err());
    }

    #[test]
    fn operations_in_flight_together_may_be_shown_in_any_order() {
        let mut history = History::new(0);
        history.begin_era(blank());
        let a = history.issue(0, sectors(0, 2), false, [0; MACHINES_MAX]);
        let b = history.issue(0, sectors(1, 2), false, [0; MACHINES_MAX]);
        history.answer(a, true);
        history.answer(b, true);
        for order in [[a, b], [b, a]] {
            let mut image = blank();
            order.iter().for_each(|op| write(&mut image, *op, if *op == a { 0..2 } else { 1..3 }));
            history.judge(0, &image).expect("either order");
        }
    }

    #[test]
    fn an_effect_without_its_cause_is_found() {
        let history = three();
        let mut image = blank();
        write(&mut image, 1, 0..4);
        let judged = history.judge(0, &image).expect("a prefix");
        history.includes(&judged, 1).expect("the first is there");
        assert!(history.includes(&judged, 2).is_err(), "the second was seen elsewhere and is not here");
    }
}
