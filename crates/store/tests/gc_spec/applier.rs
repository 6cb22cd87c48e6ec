//! An applier's life on a manifest log: it promotes segments, thins points, compacts, and grants pins and cursors.
//!
//! Its commits go out one by one, and what a commit says holds for others once it was acknowledged: it landed, and a look
//! found no later epoch. It goes on as a zombie until then. Compaction puts an object under a new id first and commits a
//! manifest that names it afterwards, possibly much later.

use crate::log::{Entry, Opening};
use crate::world::{Manifest, ObjectId, Objects, Pin, Request, Rule, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    Unborn,
    Attach { list: u8 },
    Owns { epoch: u8, list: u8 },
    Opens { epoch: u8, list: u8 },
    AwaitsOpening { epoch: u8, list: u8, manifest: Manifest },
    Applies(Office),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Office {
    epoch: u8,
    list: u8,
    /// As last acknowledged.
    manifest: Manifest,
    slot: u8,
    /// The commit that is under way.
    commit: Option<Commit>,
    /// The object that compaction has put, not named yet.
    compacted: Option<ObjectId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Commit {
    manifest: Manifest,
    /// The export whose pin it grants.
    grants: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Applier {
    pub machine: usize,
    pub stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The only step there is.
    Next,
    Acknowledge,
    Refresh,
    /// Promotes the next segment.
    Fold,
    /// Points that needed this object are thinned away.
    Thin {
        object: ObjectId,
    },
    /// Puts an object that shall replace what the manifest names.
    Compact,
    /// Names it.
    NameCompacted,
    AnswerPin {
        export: usize,
    },
    ExpirePin {
        export: usize,
    },
    SetCursor,
    AdvanceCursor,
    /// Deletes what is folded and behind the cursor from the stream.
    Trim,
}

impl Applier {
    pub fn new(machine: usize) -> Self {
        Self { machine, stage: Stage::Unborn }
    }

    /// One that owns epoch 0.
    pub fn applying(machine: usize, world: &World) -> Self {
        let manifest = world.machines[machine].manifest.head().says;
        let office = Office { epoch: 0, list: 0, manifest, slot: 0, commit: None, compacted: None };
        Self { machine, stage: Stage::Applies(office) }
    }

    pub fn moves(&self, world: &World) -> Vec<Move> {
        let log = &world.machines[self.machine].manifest;
        match &self.stage {
            Stage::Unborn if world.registered <= self.machine => Vec::new(),
            Stage::AwaitsOpening { epoch, .. } if !log.opened(*epoch) => Vec::new(),
            Stage::Applies(office) => office.moves(world, self.machine),
            _ => vec![Move::Next],
        }
    }

    /// False when there is no more to do.
    pub fn step(&mut self, world: &mut World, chosen: Move) -> bool {
        let newest = world.newest_list();
        let log = &mut world.machines[self.machine].manifest;
        self.stage = match self.stage {
            Stage::Unborn => Stage::Attach { list: newest },
            Stage::Attach { list } => Stage::Owns { epoch: log.create_epoch(), list },
            Stage::Owns { epoch, list } => {
                Stage::Opens { epoch, list: if world.holds(Rule::OpeningReadsList) { newest } else { list } }
            }
            Stage::Opens { epoch, list } => {
                let continues = log.scan_below(epoch);
                let manifest = log.up_to(continues).last().expect("epoch 0 is opened").says;
                let opening = Opening { continues, entry: Entry { seen: list, says: manifest } };
                world.send(Request::OpenManifest { machine: self.machine, epoch, opening });
                Stage::AwaitsOpening { epoch, list, manifest }
            }
            Stage::AwaitsOpening { epoch, list, manifest } => {
                // The look that follows an opening.
                if log.highest() != epoch {
                    return false;
                }
                Stage::Applies(Office { epoch, list, manifest, slot: 0, commit: None, compacted: None })
            }
            Stage::Applies(mut office) => {
                if !office.step(world, self.machine, chosen) {
                    return false;
                }
                Stage::Applies(office)
            }
        };
        true
    }
}

impl Office {
    fn moves(&self, world: &World, machine: usize) -> Vec<Move> {
        let log = &world.machines[machine].manifest;
        if self.commit.is_some() {
            return if log.has_landed(self.epoch, self.slot) { vec![Move::Acknowledge] } else { Vec::new() };
        }
        let mut moves = Vec::new();
        if world.newest_list() > self.list {
            moves.push(Move::Refresh);
        }
        if self.manifest.needed_from() > world.machines[machine].trimmed {
            moves.push(Move::Trim);
        }
        if self.slot == world.bounds.commits {
            return moves;
        }
        moves.extend(self.commits(world, machine));
        moves
    }

    fn commits(&self, world: &World, machine: usize) -> Vec<Move> {
        let (mut moves, stream) = (Vec::new(), &world.machines[machine].stream);
        if stream.settled() && stream.accepted().len() > usize::from(self.manifest.folded) {
            moves.push(Move::Fold);
        }
        moves.extend(self.manifest.names.iter().map(|object| Move::Thin { object }));
        match self.compacted {
            Some(object) if world.landed.has(object) => moves.push(Move::NameCompacted),
            None if world.bounds.compactions > 0 && !self.manifest.names.is_empty() => moves.push(Move::Compact),
            _ => {}
        }
        for export in 0..self.manifest.pins.len() {
            match (world.pins[export], self.manifest.pins[export]) {
                (Pin::Asked { machine: asked, .. }, _) if asked == machine => moves.push(Move::AnswerPin { export }),
                (_, Some(_)) => moves.push(Move::ExpirePin { export }),
                _ => {}
            }
        }
        match self.manifest.cursor {
            None => moves.push(Move::SetCursor),
            Some(cursor) if cursor < self.manifest.folded => moves.push(Move::AdvanceCursor),
            Some(_) => {}
        }
        moves
    }

    /// False when a later epoch fences it.
    fn step(&mut self, world: &mut World, machine: usize, chosen: Move) -> bool {
        let mut next = self.manifest;
        match chosen {
            Move::Next => unreachable!("an office has better to do"),
            Move::Acknowledge => return self.acknowledge(world, machine),
            Move::Refresh => self.list = world.newest_list(),
            Move::Trim => {
                let trimmed = &mut world.machines[machine].trimmed;
                *trimmed = self.manifest.needed_from().max(*trimmed);
                world.touched = true;
            }
            Move::Compact => {
                let object = world.new_object();
                self.compacted = Some(object);
                world.send(Request::Put { object });
            }
            Move::NameCompacted => {
                let object = self.compacted.take().expect("something was compacted");
                let replaced = next.names.iter().next().map_or(Objects::NONE, Objects::of);
                if self.may_name(world, object) {
                    next.names = (next.names - replaced) | Objects::of(object);
                    self.commit(world, machine, next, None);
                }
            }
            Move::Fold => {
                let entry = world.machines[machine].stream.accepted()[usize::from(next.folded)];
                next.folded += 1;
                next.names |= entry.says;
                self.commit(world, machine, next, None);
            }
            Move::Thin { object } => {
                next.names = next.names - Objects::of(object);
                self.commit(world, machine, next, None);
            }
            Move::AnswerPin { export } => self.answer_pin(world, machine, export),
            Move::ExpirePin { export } => {
                next.pins[export] = None;
                world.pins[export] = Pin::Ended;
                self.commit(world, machine, next, None);
            }
            Move::SetCursor => {
                next.cursor = Some(next.folded);
                self.commit(world, machine, next, None);
            }
            Move::AdvanceCursor => {
                next.cursor = next.cursor.map(|cursor| cursor + 1);
                self.commit(world, machine, next, None);
            }
        }
        true
    }

    /// Whether a commit may name this object, which the manifest may not name yet.
    fn may_name(&self, world: &World, object: ObjectId) -> bool {
        !world.holds(Rule::CommitNamesNoCondemned) || !world.condemned(self.list).has(object)
    }

    /// A point that was thinned since may be pinned all the same, if what it needs is not condemned.
    fn answer_pin(&mut self, world: &mut World, machine: usize, export: usize) {
        let Pin::Asked { object, .. } = world.pins[export] else { unreachable!("only who asks is answered") };
        let mut next = self.manifest;
        let held = next.names | next.pinned();
        if held.has(object) || self.may_name(world, object) {
            next.pins[export] = Some(object);
            self.commit(world, machine, next, Some(export));
        } else {
            world.pins[export] = Pin::Ended;
            world.touched = true;
        }
    }

    fn commit(&mut self, world: &mut World, machine: usize, manifest: Manifest, grants: Option<usize>) {
        let entry = Entry { seen: self.list, says: manifest };
        world.send(Request::Commit { machine, epoch: self.epoch, slot: self.slot, entry });
        self.slot += 1;
        self.commit = Some(Commit { manifest, grants });
    }

    fn acknowledge(&mut self, world: &mut World, machine: usize) -> bool {
        let Commit { manifest, grants } = self.commit.take().expect("a commit was under way");
        if world.machines[machine].manifest.highest() != self.epoch {
            return false;
        }
        self.manifest = manifest;
        // Other machines may refer to what is acknowledged in the vault.
        world.known |= manifest.names;
        if let Some(export) = grants.filter(|export| matches!(world.pins[*export], Pin::Asked { .. })) {
            world.pins[export] = Pin::Acknowledged;
        }
        world.touched = true;
        true
    }
}

/// For schedules: what makes a race.
impl Applier {
    pub fn unborn(&self) -> bool {
        self.stage == Stage::Unborn
    }

    pub fn attaches(&self) -> bool {
        matches!(self.stage, Stage::Attach { .. } | Stage::Owns { .. })
    }

    /// The segment that it promotes next refers to something.
    pub fn folds_reference(&self, world: &World) -> bool {
        let Stage::Applies(office) = &self.stage else { return false };
        let accepted = world.machines[self.machine].stream.accepted();
        accepted.get(usize::from(office.manifest.folded)).is_some_and(|segment| !segment.says.is_empty())
    }

    /// Has put an object that no manifest names yet.
    pub fn compacts(&self) -> bool {
        matches!(&self.stage, Stage::Applies(office) if office.compacted.is_some())
    }
}
