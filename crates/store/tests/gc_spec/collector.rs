//! A collection: list → mark → publish a condemn list → wait for every log → mark again → delete.
//!
//! It takes no lock and keeps no time. It may stand still anywhere for as long as it likes, beside others of its kind, and
//! what it deletes may go much later.

use crate::world::{Objects, Request, Rule, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Candidates are what exists now.
    List,
    Mark(Mark),
    Publish {
        needed: Objects,
    },
    ReadRegistry,
    /// Waits for one log after the other: the stream of machine 0, its manifest log, the stream of machine 1, ….
    Wait {
        log: usize,
    },
    MarkAgain(Mark),
    Delete {
        needed: Objects,
    },
}

/// A walk through all machines, and what it has found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    machine: usize,
    /// Where to walk this machine's stream from, once its manifest was read; `from` heeds cursors, `folded` does not.
    from: Option<u8>,
    needed: Objects,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Collector {
    pub stage: Stage,
    candidates: Objects,
    machines: usize,
    list: u8,
    /// What it wanted to condemn.
    condemns: Objects,
}

enum Walked {
    On(Mark),
    Done(Objects),
    Stop,
}

const BEGIN: Mark = Mark { machine: 0, from: None, needed: Objects::NONE };

impl Collector {
    pub fn new() -> Self {
        Self { stage: Stage::List, candidates: Objects::NONE, machines: 0, list: 0, condemns: Objects::NONE }
    }

    pub fn blocked(&self, world: &World) -> bool {
        match self.stage {
            Stage::Mark(mark) | Stage::MarkAgain(mark) => {
                let machine = &world.machines[mark.machine];
                let settled = if mark.from.is_none() { machine.manifest.settled() } else { machine.stream.settled() };
                !settled && !machine.damaged
            }
            Stage::Wait { log } => !self.has_seen(world, log),
            _ => false,
        }
    }

    /// Whether the head of this log says that it has seen the list, and nobody is about to open another epoch.
    fn has_seen(&self, world: &World, log: usize) -> bool {
        let machine = &world.machines[log / 2];
        match log % 2 {
            0 if !world.holds(Rule::WaitForStreams) => true,
            1 if !world.holds(Rule::WaitForManifests) => true,
            _ if machine.damaged => false,
            0 => machine.stream.settled() && machine.stream.head().seen >= self.list,
            _ => machine.manifest.settled() && machine.manifest.head().seen >= self.list,
        }
    }

    /// False when it is done, or has to stop.
    pub fn step(&mut self, world: &mut World) -> bool {
        self.stage = match self.stage {
            Stage::List => {
                self.candidates = world.exists;
                self.machines = world.registered;
                Stage::Mark(BEGIN)
            }
            Stage::Mark(mark) => match self.walk(world, mark) {
                Walked::On(mark) => Stage::Mark(mark),
                Walked::Done(needed) => Stage::Publish { needed },
                Walked::Stop => return false,
            },
            Stage::Publish { needed } => return self.publish(world, self.candidates - needed),
            Stage::ReadRegistry => {
                if world.holds(Rule::RegistryAfterList) {
                    self.machines = world.registered;
                }
                Stage::Wait { log: 0 }
            }
            Stage::Wait { log } if log + 1 < 2 * self.machines => Stage::Wait { log: log + 1 },
            Stage::Wait { .. } if !world.holds(Rule::MarkAgain) => Stage::Delete { needed: Objects::NONE },
            Stage::Wait { .. } => Stage::MarkAgain(BEGIN),
            Stage::MarkAgain(mark) => match self.walk(world, mark) {
                Walked::On(mark) => Stage::MarkAgain(mark),
                Walked::Done(needed) => Stage::Delete { needed },
                Walked::Stop => return false,
            },
            Stage::Delete { needed } => {
                (self.condemns - needed).iter().for_each(|object| world.send(Request::Delete { object }));
                return false;
            }
        };
        true
    }

    /// Creates list n. Somebody else may have won the number since it was chosen: then this collection ends.
    fn publish(&mut self, world: &mut World, condemns: Objects) -> bool {
        if condemns.is_empty() {
            return false;
        }
        self.condemns = condemns;
        if self.list == 0 {
            // Chooses its number, and creates it in the next step.
            self.list = world.newest_list() + 1;
            return true;
        }
        if world.newest_list() < self.list {
            world.lists.push(condemns);
        } else if world.holds(Rule::CompareList) {
            return false;
        }
        self.stage = Stage::ReadRegistry;
        true
    }

    /// Reads one machine's manifest, or its stream from there.
    fn walk(&self, world: &World, mut mark: Mark) -> Walked {
        let machine = &world.machines[mark.machine];
        let manifest = machine.manifest.head().says;
        if machine.damaged {
            if world.holds(Rule::StopUnlessWalked) {
                return Walked::Stop;
            }
            return self.next_machine(mark);
        }
        let from = if world.holds(Rule::MarkCursors) { manifest.needed_from() } else { manifest.folded };
        let Some(marked_from) = mark.from else {
            mark.needed |= manifest.names;
            if world.holds(Rule::MarkPins) {
                mark.needed |= manifest.pinned();
            }
            return Walked::On(Mark { from: Some(from), ..mark });
        };
        let from = if world.holds(Rule::WalkFromMarked) { marked_from } else { from };
        if machine.trimmed > from {
            return match world.holds(Rule::HoleRepeats) {
                true => Walked::On(Mark { from: None, ..mark }),
                false => self.next_machine(mark),
            };
        }
        if world.holds(Rule::MarkPending) {
            let pending = machine.stream.accepted();
            pending.iter().skip(usize::from(from)).for_each(|segment| mark.needed |= segment.says);
        }
        self.next_machine(mark)
    }

    fn next_machine(&self, mark: Mark) -> Walked {
        let next = Mark { machine: mark.machine + 1, from: None, ..mark };
        if next.machine == self.machines { Walked::Done(next.needed) } else { Walked::On(next) }
    }
}

/// For schedules: what makes a race.
impl Collector {
    pub fn unborn(&self) -> bool {
        self.stage == Stage::List
    }

    /// Has read a manifest and not yet the stream behind it.
    pub fn walks(&self) -> bool {
        matches!(self.stage, Stage::Mark(Mark { from: Some(_), .. }) | Stage::MarkAgain(Mark { from: Some(_), .. }))
    }

    /// Has marked for the first time.
    pub fn publishes(&self) -> bool {
        matches!(self.stage, Stage::Publish { .. })
    }

    pub fn deletes(&self) -> bool {
        matches!(self.stage, Stage::Delete { .. })
    }
}
