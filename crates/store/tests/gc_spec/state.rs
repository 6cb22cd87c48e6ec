//! A whole: the world and its parties, and what may happen next.

use crate::applier::{self, Applier};
use crate::collector::Collector;
use crate::explore::Model;
use crate::export::Export;
use crate::oracle;
use crate::world::{Bounds, EXPORTS, Request, Rule, World};
use crate::writer::{self, Writer};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    Writer(Writer),
    Applier(Applier),
    Export(Export),
    Collector(Collector),
    /// Done, fenced, or told to stop.
    Gone,
}

/// Who lives in a world, beside the process server and the applier that the first machine has at the start. Everybody may
/// stop for ever at any step, so a crash needs no step of its own; whoever restarts is one more life.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cast {
    pub machines: usize,
    /// Lives to come, on each machine.
    pub writers: [usize; 2],
    pub appliers: [usize; 2],
    pub exports: usize,
    pub collectors: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Write {
        party: usize,
        chosen: writer::Move,
    },
    Apply {
        party: usize,
        chosen: applier::Move,
    },
    Step {
        party: usize,
        choice: usize,
    },
    Arrive {
        flight: usize,
        again: bool,
    },
    /// A machine's logs can no longer be walked, or again.
    Damage {
        machine: usize,
    },
}

impl Action {
    pub fn party(self) -> Option<usize> {
        match self {
            Action::Write { party, .. } | Action::Apply { party, .. } | Action::Step { party, .. } => Some(party),
            Action::Arrive { .. } | Action::Damage { .. } => None,
        }
    }
}

#[derive(Debug, Clone, Hash)]
pub struct State {
    pub world: World,
    pub parties: Vec<Party>,
}

impl State {
    pub fn new(cast: Cast, bounds: Bounds, removed: Option<Rule>) -> Self {
        let world = World::new(cast.machines, removed, bounds);
        let mut parties = vec![Party::Writer(Writer::serving(0)), Party::Applier(Applier::applying(0, &world))];
        for machine in 0..cast.machines {
            parties.extend((0..cast.writers[machine]).map(|_| Party::Writer(Writer::new(machine))));
            parties.extend((0..cast.appliers[machine]).map(|_| Party::Applier(Applier::new(machine))));
        }
        assert!(cast.exports <= EXPORTS, "each export has its pin");
        parties.extend((0..cast.exports).map(|number| Party::Export(Export::new(number))));
        parties.extend((0..cast.collectors).map(|_| Party::Collector(Collector::new())));
        Self { world, parties }
    }

    fn exports(&self) -> impl Iterator<Item = &Export> {
        self.parties.iter().filter_map(|party| match party {
            Party::Export(export) => Some(export),
            _ => None,
        })
    }

    /// Lives that have not begun are alike when they are of one kind: only the first of them begins.
    fn begins_later(&self, i: usize) -> bool {
        self.parties[i].unborn() && self.parties[..i].iter().any(|other| *other == self.parties[i])
    }
}

impl Party {
    pub fn unborn(&self) -> bool {
        match self {
            Party::Writer(writer) => writer.unborn(),
            Party::Applier(applier) => applier.unborn(),
            Party::Export(export) => export.unborn(),
            Party::Collector(collector) => collector.unborn(),
            Party::Gone => false,
        }
    }

    fn actions(&self, party: usize, world: &World, into: &mut Vec<Action>) {
        match self {
            Party::Writer(writer) => {
                into.extend(writer.moves(world).into_iter().map(|chosen| Action::Write { party, chosen }));
            }
            Party::Applier(applier) => {
                into.extend(applier.moves(world).into_iter().map(|chosen| Action::Apply { party, chosen }));
            }
            Party::Export(export) => {
                into.extend((0..export.choices(world)).map(|choice| Action::Step { party, choice }));
            }
            Party::Collector(collector) if collector.blocked(world) => {}
            Party::Collector(_) => into.push(Action::Step { party, choice: 0 }),
            Party::Gone => {}
        }
    }

    fn step(&mut self, world: &mut World, action: Action) {
        let lives = match (&mut *self, action) {
            (Party::Writer(writer), Action::Write { chosen, .. }) => writer.step(world, chosen),
            (Party::Applier(applier), Action::Apply { chosen, .. }) => applier.step(world, chosen),
            (Party::Export(export), Action::Step { choice, .. }) => export.step(world, choice),
            (Party::Collector(collector), Action::Step { .. }) => collector.step(world),
            _ => unreachable!("actions are those of the party"),
        };
        if !lives {
            *self = Party::Gone;
        }
    }
}

impl Model for State {
    type Action = Action;

    fn actions(&self, into: &mut Vec<Action>) {
        for (i, party) in self.parties.iter().enumerate().filter(|(i, _)| !self.begins_later(*i)) {
            party.actions(i, &self.world, into);
        }
        for (flight, request) in self.world.flights.iter().enumerate() {
            if flight > 0 && self.world.flights[flight - 1] == *request {
                continue;
            }
            into.push(Action::Arrive { flight, again: false });
            if self.world.bounds.duplicates > 0 && matches!(request, Request::Put { .. }) {
                into.push(Action::Arrive { flight, again: true });
            }
        }
        let registered = self.world.machines.iter().enumerate().take(self.world.registered);
        let may = registered.filter(|(_, machine)| machine.damaged || self.world.bounds.damages > 0);
        into.extend(may.map(|(machine, _)| Action::Damage { machine }));
    }

    fn apply(&mut self, action: Action) {
        self.world.touched = false;
        match action {
            Action::Arrive { flight, again } => self.world.arrive(flight, again),
            Action::Damage { machine } => {
                let damaged = &mut self.world.machines[machine].damaged;
                self.world.bounds.damages -= u8::from(!*damaged);
                *damaged = !*damaged;
            }
            Action::Write { party, .. } | Action::Apply { party, .. } | Action::Step { party, .. } => {
                self.parties[party].step(&mut self.world, action);
            }
        }
    }

    fn judge(&self) -> Result<(), &'static str> {
        if self.world.touched { oracle::judge(&self.world, self.exports()) } else { Ok(()) }
    }
}
