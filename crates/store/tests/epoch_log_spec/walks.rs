//! What several parties do in the same way: owning an epoch (rule 1), reading the newest manifest (rule 5), finding the
//! end of the stream (rules 2 and 5). Each step makes one request, and anything may happen between two steps.

use crate::world::{At, Log, Point, Request, Rule, World};

/// Rule 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attach {
    Look {
        skipped: u8,
    },
    /// The create is under way, for as long as it takes: a party that gives up is one that never moves again.
    Wait {
        epoch: u8,
        skipped: u8,
    },
}

pub enum Attached {
    Epoch(u8),
    /// The model has no more epochs: this party's life is not told.
    NoRoom,
    NotYet,
}

impl Attach {
    pub const START: Attach = Attach::Look { skipped: 0 };

    pub fn blocked(&self, world: &World, log: Log) -> bool {
        let Attach::Wait { epoch, .. } = *self else { return false };
        world.holds(Rule::NeverSkip) && world.holds(Rule::CompareDoubt) && world.log(log).owner(epoch).is_none()
    }

    pub fn step(&mut self, world: &mut World, log: Log, by: u8) -> Attached {
        match *self {
            Attach::Look { skipped } => {
                let epoch = world.log(log).highest(0) + 1 + skipped;
                if usize::from(epoch) >= crate::world::EPOCHS {
                    return Attached::NoRoom;
                }
                world.send(Request::Own { log, epoch, by });
                *self = Attach::Wait { epoch, skipped };
            }
            Attach::Wait { epoch, skipped } => match world.log(log).owner(epoch) {
                Some(owner) if owner == by => return Attached::Epoch(epoch),
                // Whatever the answer was: it must have been our own create.
                _ if !world.holds(Rule::CompareDoubt) => return Attached::Epoch(epoch),
                Some(_) => *self = Attach::Look { skipped },
                // Only without rule 1: a create in doubt is passed over.
                None => *self = Attach::Look { skipped: skipped + 1 },
            },
        }
        Attached::NotYet
    }
}

/// The newest state of the manifest log: its last slot, and what that folds of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Newest {
    pub at: At,
    pub folds: Point,
}

/// Rule 5 for manifest logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReadNewest {
    /// What was acknowledged when this reading began: for the observer alone.
    acknowledged: At,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Top,
    /// Seeking the highest opened epoch at or below `epoch`.
    Down {
        top: u8,
        epoch: u8,
    },
    /// Following the slots of an opened epoch to its hole.
    Slots {
        top: u8,
        found: Newest,
    },
    /// The hole was seen. Openings below `next` are known not to be there.
    Look {
        found: Newest,
        next: u8,
        top: u8,
    },
    /// Reading the openings above, upwards: one that is deleted was replaced by a higher one.
    Up {
        found: Newest,
        next: u8,
        top: u8,
    },
}

impl ReadNewest {
    pub fn new(world: &World) -> Self {
        Self { acknowledged: world.observed.newest_folded.at, stage: Stage::Top }
    }

    /// Goes on from what was read before.
    pub fn go_on(world: &World, found: Newest) -> Self {
        Self { stage: Stage::Slots { top: found.at.epoch, found }, ..Self::new(world) }
    }

    pub fn step(&mut self, world: &mut World) -> Option<Newest> {
        let manifest = &world.manifest;
        self.stage = match self.stage {
            Stage::Top => {
                let top = manifest.highest(0);
                Stage::Down { top, epoch: top }
            }
            Stage::Down { top, epoch: 0 } => Stage::Look { found: Newest::default(), next: 1, top },
            Stage::Down { top, epoch } => match manifest.read(At { epoch, slot: 0 }) {
                Some(opening) => Stage::Slots { top, found: Newest { at: At { epoch, slot: 0 }, folds: opening.says } },
                None => Stage::Down { top, epoch: epoch - 1 },
            },
            Stage::Slots { top, found } => match manifest.read(found.at.next()) {
                Some(commit) => Stage::Slots { top, found: Newest { at: found.at.next(), folds: commit.says } },
                None if !world.holds(Rule::RecheckManifestHole) => return self.done(world, found),
                None => Stage::Look { found, next: found.at.epoch + 1, top },
            },
            Stage::Look { found, next, top } => {
                let top = manifest.highest(top);
                if next > top {
                    return self.done(world, found);
                }
                Stage::Up { found, next, top }
            }
            Stage::Up { next, top, found } => match manifest.read(At { epoch: next, slot: 0 }) {
                Some(_) => Stage::Top,
                None if next < top => Stage::Up { found, next: next + 1, top },
                None if !world.holds(Rule::SecondLookUp) => return self.done(world, found),
                None => Stage::Look { found, next: next + 1, top },
            },
        };
        None
    }

    fn done(&self, world: &mut World, found: Newest) -> Option<Newest> {
        if found.folds.at < self.acknowledged {
            world.wrong("stale: an old manifest passed for the newest");
        }
        Some(found)
    }

    /// Between a look and what is read because of it: where a pause hurts most.
    pub fn concludes(&self) -> bool {
        matches!(self.stage, Stage::Slots { .. } | Stage::Look { .. } | Stage::Up { .. })
    }

    pub fn reads_up(&self) -> bool {
        matches!(self.stage, Stage::Up { .. })
    }
}

/// Rules 2 and 5: what an epoch of the stream continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FindEnd {
    Base(ReadNewest),
    /// Seeking the highest opened epoch at or below `epoch`; the base's own counts as opened.
    Below {
        base: Point,
        epoch: u8,
    },
    Scan {
        end: Point,
    },
    /// The hole was seen: does the base still lie before it?
    Again {
        end: Point,
        read: ReadNewest,
    },
}

impl FindEnd {
    pub fn new(world: &World) -> Self {
        FindEnd::Base(ReadNewest::new(world))
    }

    pub fn step(&mut self, world: &mut World, ours: u8) -> Option<Point> {
        match self {
            FindEnd::Base(read) => {
                if let Some(newest) = read.step(world) {
                    *self = FindEnd::Below { base: newest.folds, epoch: ours - 1 };
                }
            }
            FindEnd::Below { base, epoch } => {
                if *epoch <= base.at.epoch {
                    *self = FindEnd::Scan { end: *base };
                    return self.step(world, ours);
                }
                match world.stream.read(At { epoch: *epoch, slot: 0 }) {
                    Some(opening) => *self = FindEnd::Scan { end: opening.says },
                    None => *epoch -= 1,
                }
            }
            FindEnd::Scan { end } => match world.stream.read(end.at.next()) {
                Some(segment) => *end = segment.says,
                None if !world.holds(Rule::RecheckHole) => return Some(*end),
                None => *self = FindEnd::Again { end: *end, read: ReadNewest::new(world) },
            },
            FindEnd::Again { end, read } => {
                let newest = read.step(world)?;
                if newest.folds.at <= end.at {
                    return Some(*end);
                }
                // The hole was made by deletion: what was scanned is folded.
                *self = FindEnd::Below { base: newest.folds, epoch: ours - 1 };
            }
        }
        None
    }
}
