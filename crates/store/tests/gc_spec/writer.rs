//! A process server's life on a stream: it refers to objects that its index knows and its condemn list allows.
//!
//! Two segments may be in the making at once, their references chosen under different lists. It goes on as a zombie after
//! a later epoch was created; what it puts then counts only if it lands before that epoch's scan.

use crate::log::{Entry, Opening};
use crate::world::{ObjectId, Objects, Request, Rule, World};

/// A segment that is not sealed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Assembly {
    /// The list under which its oldest reference was chosen.
    pub oldest: u8,
    pub refers: Objects,
}

/// Segments that may be in the making at once, at most.
const ASSEMBLIES: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    Unborn,
    /// Has read the newest list, has no epoch yet.
    Attach {
        list: u8,
    },
    /// Owns the epoch; the list was read before.
    Owns {
        epoch: u8,
        list: u8,
    },
    /// Has read the list that counts.
    Opens {
        epoch: u8,
        list: u8,
    },
    AwaitsOpening {
        epoch: u8,
        list: u8,
    },
    Serves(Service),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Service {
    epoch: u8,
    list: u8,
    /// The newest list that anything sealed so far has seen.
    most_seen: u8,
    slot: u8,
    assemblies: [Option<Assembly>; ASSEMBLIES],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Writer {
    pub machine: usize,
    pub stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The only step there is.
    Next,
    Refresh,
    /// Begins a segment.
    Begin {
        place: usize,
    },
    /// Adds a reference to one.
    Refer {
        place: usize,
        object: ObjectId,
    },
    Seal {
        place: usize,
    },
}

impl Writer {
    pub fn new(machine: usize) -> Self {
        Self { machine, stage: Stage::Unborn }
    }

    /// One that serves epoch 0.
    pub fn serving(machine: usize) -> Self {
        let service = Service { epoch: 0, list: 0, most_seen: 0, slot: 0, assemblies: [None; ASSEMBLIES] };
        Self { machine, stage: Stage::Serves(service) }
    }

    pub fn moves(&self, world: &World) -> Vec<Move> {
        match &self.stage {
            Stage::AwaitsOpening { epoch, .. } if !world.machines[self.machine].stream.opened(*epoch) => Vec::new(),
            Stage::Serves(service) => service.moves(world),
            _ => vec![Move::Next],
        }
    }

    /// False when there is no more to do.
    pub fn step(&mut self, world: &mut World, chosen: Move) -> bool {
        let newest = world.newest_list();
        self.stage = match self.stage {
            Stage::Unborn => Stage::Attach { list: newest },
            Stage::Attach { list } => {
                // A machine is in the registry before its stream begins.
                world.registered = world.registered.max(self.machine + 1);
                Stage::Owns { epoch: world.machines[self.machine].stream.create_epoch(), list }
            }
            Stage::Owns { epoch, list } => {
                Stage::Opens { epoch, list: if world.holds(Rule::OpeningReadsList) { newest } else { list } }
            }
            Stage::Opens { epoch, list } => {
                let continues = world.machines[self.machine].stream.scan_below(epoch);
                let opening = Opening { continues, entry: Entry { seen: list, says: Objects::NONE } };
                world.send(Request::OpenStream { machine: self.machine, epoch, opening });
                Stage::AwaitsOpening { epoch, list }
            }
            Stage::AwaitsOpening { epoch, list } => {
                let assemblies = [None; ASSEMBLIES];
                Stage::Serves(Service { epoch, list, most_seen: list, slot: 0, assemblies })
            }
            Stage::Serves(mut service) => {
                service.step(world, self.machine, chosen);
                Stage::Serves(service)
            }
        };
        !matches!(self.stage, Stage::Serves(Service { slot, .. }) if slot == world.bounds.slots)
    }
}

impl Service {
    fn moves(&self, world: &World) -> Vec<Move> {
        let mut moves = Vec::new();
        if world.newest_list() > self.list && !world.bounds.one_list {
            moves.push(Move::Refresh);
        }
        for (place, assembly) in self.assemblies.iter().enumerate().take(world.bounds.assembles) {
            let Some(assembly) = assembly else {
                moves.push(Move::Begin { place });
                continue;
            };
            moves.push(Move::Seal { place });
            let allowed = world.known - world.condemned(self.list) - assembly.refers;
            moves.extend(allowed.iter().map(|object| Move::Refer { place, object }));
        }
        moves
    }

    fn step(&mut self, world: &mut World, machine: usize, chosen: Move) {
        match chosen {
            Move::Next => unreachable!("a service has better to do"),
            Move::Refresh => self.list = world.newest_list(),
            Move::Begin { place } => {
                self.assemblies[place] = Some(Assembly { oldest: self.list, refers: Objects::NONE });
            }
            Move::Refer { place, object } => {
                let assembly = self.assemblies[place].as_mut().expect("only what was begun goes on");
                // Without an older reference in it, this one is the oldest.
                if assembly.refers.is_empty() {
                    assembly.oldest = self.list;
                }
                assembly.refers |= Objects::of(object);
            }
            Move::Seal { place } => {
                let assembly = self.assemblies[place].take().expect("only what was begun is sealed");
                let entry = self.seal(world, assembly);
                self.most_seen = self.most_seen.max(entry.seen);
                world.send(Request::Segment { machine, epoch: self.epoch, slot: self.slot, entry });
                self.slot += 1;
            }
        }
    }

    /// What a segment says it has seen, and what it refers to in the end.
    fn seal(&self, world: &World, assembly: Assembly) -> Entry<Objects> {
        let Assembly { oldest, refers } = assembly;
        if !world.holds(Rule::SeenIsOldest) || refers.is_empty() {
            return Entry { seen: self.list, says: refers };
        }
        if oldest >= self.most_seen || !world.holds(Rule::SeenNeverFalls) {
            return Entry { seen: oldest, says: refers };
        }
        if !world.holds(Rule::CheckOldAgain) {
            return Entry { seen: self.most_seen, says: refers };
        }
        // What the list in force condemns is stored anew.
        Entry { seen: self.list, says: refers - world.condemned(self.list) }
    }
}

/// For schedules: what makes a race.
impl Writer {
    pub fn unborn(&self) -> bool {
        self.stage == Stage::Unborn
    }

    /// Between a list and the epoch under which it is used.
    pub fn attaches(&self) -> bool {
        matches!(self.stage, Stage::Attach { .. } | Stage::Owns { .. })
    }

    /// Assembles a segment there that refers to something.
    pub fn refers_at(&self, place: usize) -> bool {
        let Stage::Serves(service) = &self.stage else { return false };
        service.assemblies[place].is_some_and(|assembly| !assembly.refers.is_empty())
    }
}
