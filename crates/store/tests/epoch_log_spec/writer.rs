//! A writer of the stream: rules 1, 2 and 3.

use crate::walks::{Attach, Attached, FindEnd};
use crate::world::{At, Landed, Log, Object, Point, Request, Rule, World};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Writer {
    by: u8,
    phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Attach(Attach),
    FindEnd { epoch: u8, find: FindEnd },
    Opening { at: At, object: Object },
    OpeningLook(Life),
    Append(Life),
}

/// An opened epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Life {
    opening: Point,
    /// Slots put so far, and which of them are acknowledged, as bits.
    put: u8,
    acknowledged: u8,
}

impl Life {
    fn segment(&self, by: u8, slot: u8) -> (At, Object) {
        let at = At { slot, ..self.opening.at };
        (at, Object { by, continues: At::default(), says: Point { at, record: self.opening.record + slot } })
    }

    /// Slots known to be put and not acknowledged yet: the contiguous ones, or any if order is no matter.
    fn ready(&self, world: &World, by: u8) -> Vec<u8> {
        let mut ready = Vec::new();
        for slot in (1..=self.put).filter(|slot| self.acknowledged & (1 << slot) == 0) {
            let (at, object) = self.segment(by, slot);
            match world.landed(Log::Stream, at, object) {
                Some(Landed::Ours) => ready.push(slot),
                _ if world.holds(Rule::AckInOrder) => break,
                _ => {}
            }
        }
        ready
    }

    /// Sends what the window has room for.
    fn fill_window(&mut self, world: &mut World, by: u8) {
        let in_flight = |life: &Life| u32::from(life.put) - life.acknowledged.count_ones();
        while self.put < world.bounds.slots && in_flight(self) < u32::from(world.bounds.window) {
            self.put += 1;
            let (at, object) = self.segment(by, self.put);
            world.send(Request::Put { log: Log::Stream, at, object });
        }
    }
}

impl Writer {
    pub fn new(by: u8) -> Self {
        Self { by, phase: Phase::Attach(Attach::START) }
    }

    pub fn unborn(&self) -> bool {
        self.phase == Phase::Attach(Attach::START)
    }

    /// Waits for a request, or has nothing left to do.
    pub fn blocked(&self, world: &World) -> bool {
        match &self.phase {
            Phase::Attach(attach) => attach.blocked(world, Log::Stream),
            Phase::Opening { at, object } => world.landed(Log::Stream, *at, *object).is_none(),
            Phase::Append(life) => life.ready(world, self.by).is_empty(),
            Phase::FindEnd { .. } | Phase::OpeningLook(_) => false,
        }
    }

    /// One step; false when this life is over.
    pub fn step(&mut self, world: &mut World) -> bool {
        match &mut self.phase {
            Phase::Attach(attach) => match attach.step(world, Log::Stream, self.by) {
                Attached::Epoch(epoch) => self.phase = Phase::FindEnd { epoch, find: FindEnd::new(world) },
                Attached::NoRoom => return false,
                Attached::NotYet => {}
            },
            Phase::FindEnd { epoch, find } => {
                let epoch = *epoch;
                let Some(end) = find.step(world, epoch) else { return true };
                if end.at.epoch >= epoch {
                    return false; // a later writer is at work already
                }
                let at = At { epoch, slot: 0 };
                let object = Object { by: self.by, continues: end.at, says: Point { at, record: end.record } };
                world.send(Request::Put { log: Log::Stream, at, object });
                self.phase = Phase::Opening { at, object };
            }
            Phase::Opening { at, object } => match world.landed(Log::Stream, *at, *object) {
                Some(Landed::Ours) => {
                    self.phase = Phase::OpeningLook(Life { opening: object.says, put: 0, acknowledged: 0 });
                }
                Some(Landed::Other) => return false,
                None => {}
            },
            Phase::OpeningLook(life) => {
                if fenced(world, life.opening.at.epoch) {
                    return false;
                }
                life.fill_window(world, self.by);
                self.phase = Phase::Append(*life);
            }
            // What is known to be put, the look, and the acknowledgement: a look that came later than the knowledge would
            // acknowledge less, and what is known is known at the look as well.
            Phase::Append(life) => {
                let ready = life.ready(world, self.by);
                if fenced(world, life.opening.at.epoch) {
                    return false;
                }
                for slot in ready {
                    life.acknowledged |= 1 << slot;
                    world.acknowledge(At { slot, ..life.opening.at });
                }
                life.fill_window(world, self.by);
            }
        }
        true
    }

    pub fn owns_unopened(&self) -> bool {
        matches!(self.phase, Phase::FindEnd { .. } | Phase::Opening { .. })
    }

    pub fn creates_epoch(&self) -> bool {
        matches!(self.phase, Phase::Attach(Attach::Wait { .. }))
    }

    pub fn scans(&self) -> bool {
        matches!(self.phase, Phase::FindEnd { find: FindEnd::Scan { .. } | FindEnd::Below { .. }, .. })
    }

    pub fn appends(&self) -> bool {
        matches!(self.phase, Phase::Append(_) | Phase::OpeningLook(_))
    }
}

fn fenced(world: &World, epoch: u8) -> bool {
    world.holds(Rule::LookBeforeAck) && world.stream.highest(epoch) > epoch
}
