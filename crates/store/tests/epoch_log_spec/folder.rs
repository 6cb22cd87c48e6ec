//! A folder (in the product: the applier): owns an epoch of the manifest log, follows the stream, commits what is folded
//! and deletes it. Rules 1, 2, 3 and 6.

use crate::reader::Reader;
use crate::walks::{Attach, Attached, ReadNewest};
use crate::world::{At, Landed, Log, Object, Point, Request, Rule, SLOTS, World};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Folder {
    by: u8,
    /// Commits numbers instead of following a stream: the manifest log by itself.
    counts: bool,
    /// Last slot put in our epoch of the manifest log, and what it folds.
    at: At,
    folds: Point,
    phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Attach(Attach),
    Read(ReadNewest),
    /// A manifest object is under way: the opening (slot 0) or a commit.
    Put(Object, Reader),
    /// It landed: the look that acknowledges it.
    Look(Reader),
    /// Deleting what it made needless, from `from` on, in the log it is about.
    Delete {
        log: Log,
        from: At,
        reader: Reader,
    },
    Follow(Reader),
}

impl Folder {
    pub fn new(by: u8, counts: bool) -> Self {
        let phase = Phase::Attach(Attach::START);
        Self { by, counts, at: At::default(), folds: Point::default(), phase }
    }

    pub fn unborn(&self) -> bool {
        self.phase == Phase::Attach(Attach::START)
    }

    /// How many ways there are to go on; none while a request is awaited or when nothing is left to do.
    pub fn choices(&self, world: &World) -> u8 {
        match &self.phase {
            Phase::Attach(attach) => u8::from(!attach.blocked(world, Log::Manifest)),
            Phase::Put(object, _) => u8::from(world.landed(Log::Manifest, self.at, *object).is_some()),
            Phase::Delete { .. } => 1 + u8::from(world.bounds.late_deletes > 0),
            Phase::Follow(_) if self.at.slot >= world.bounds.commits => 0,
            Phase::Follow(_) if self.counts => 1,
            Phase::Follow(reader) => 1 + u8::from(reader.at() > self.folds && reader.at().at.slot > 0),
            Phase::Read(_) | Phase::Look(_) => 1,
        }
    }

    /// One step; false when this life is over.
    pub fn step(&mut self, world: &mut World, choice: u8) -> bool {
        match &mut self.phase {
            Phase::Attach(attach) => match attach.step(world, Log::Manifest, self.by) {
                Attached::Epoch(epoch) => {
                    self.at = At { epoch, slot: 0 };
                    self.phase = Phase::Read(ReadNewest::new(world));
                }
                Attached::NoRoom => return false,
                Attached::NotYet => {}
            },
            Phase::Read(read) => {
                let Some(newest) = read.step(world) else { return true };
                if newest.at.epoch >= self.at.epoch {
                    return false; // a later folder is at work already
                }
                self.put(world, self.at, newest.at, newest.folds, Reader::behind(newest.folds));
            }
            Phase::Put(object, reader) => match world.landed(Log::Manifest, self.at, *object) {
                Some(Landed::Ours) => self.phase = Phase::Look(reader.clone()),
                Some(Landed::Other) => return false,
                None => {}
            },
            Phase::Look(reader) => {
                if world.holds(Rule::AckBeforeDelete) && world.manifest.highest(self.at.epoch) > self.at.epoch {
                    return false;
                }
                world.acknowledge_manifest(self.folds);
                // An opening is self-contained: older epochs may go. A commit folds a prefix of the stream.
                let log = if self.at.slot == 0 { Log::Manifest } else { Log::Stream };
                self.phase = Phase::Delete { log, from: At::default(), reader: reader.clone() };
            }
            Phase::Delete { log, from, reader } => {
                let through = match log {
                    Log::Manifest => At { epoch: self.at.epoch - 1, slot: SLOTS as u8 - 1 },
                    Log::Stream => self.folds.at,
                };
                let log = *log;
                let Some(at) = world.log(log).lowest_present(*from, through) else {
                    self.phase = Phase::Follow(reader.clone());
                    return true;
                };
                *from = at.next();
                match choice {
                    0 => world.delete(log, at),
                    _ => {
                        world.bounds.late_deletes -= 1;
                        world.send(Request::Delete { log, at });
                    }
                }
            }
            Phase::Follow(_) if self.counts => {
                let record = self.folds.record + 1;
                let at = At { epoch: record / SLOTS as u8, slot: record % SLOTS as u8 };
                self.put(world, self.at.next(), At::default(), Point { at, record }, Reader::new());
            }
            Phase::Follow(reader) if choice == 0 => _ = reader.step(world),
            Phase::Follow(reader) => {
                let reader = reader.clone();
                self.put(world, self.at.next(), At::default(), reader.at(), reader);
            }
        }
        true
    }

    fn put(&mut self, world: &mut World, at: At, continues: At, folds: Point, reader: Reader) {
        (self.at, self.folds) = (at, folds);
        let object = Object { by: self.by, continues, says: folds };
        world.send(Request::Put { log: Log::Manifest, at, object });
        self.phase = Phase::Put(object, reader);
    }

    pub fn creates_epoch(&self) -> bool {
        matches!(self.phase, Phase::Attach(Attach::Wait { .. }))
    }

    pub fn acknowledges(&self) -> bool {
        matches!(self.phase, Phase::Look(_) | Phase::Put(..))
    }

    pub fn deletes(&self) -> bool {
        matches!(self.phase, Phase::Delete { .. })
    }

    /// The walks that this folder makes now.
    pub fn reader(&self) -> Option<&Reader> {
        match &self.phase {
            Phase::Follow(reader) => Some(reader),
            _ => None,
        }
    }

    pub fn reads_up(&self) -> bool {
        matches!(self.phase, Phase::Read(read) if read.reads_up()) || self.reader().is_some_and(Reader::reads_up)
    }

    pub fn concludes(&self) -> bool {
        matches!(self.phase, Phase::Read(read) if read.concludes()) || self.reader().is_some_and(Reader::concludes)
    }
}
