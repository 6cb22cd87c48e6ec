//! A whole: the world and its parties, and what may happen next.

use crate::explore::Model;
use crate::folder::Folder;
use crate::oracle;
use crate::reader::{Reader, User};
use crate::world::{Bounds, Request, Rule, World};
use crate::writer::Writer;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    Writer(Writer),
    Folder(Folder),
    Reader(Reader),
    User(User),
    /// Fenced, refused, or out of room.
    Gone,
}

/// Who lives in a world. Everybody may stop for ever at any step (each state is judged as if it were the last), so a crash
/// needs no step of its own; whoever restarts is one more life.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cast {
    pub writers: u8,
    pub folders: u8,
    pub readers: u8,
    /// Owners of the manifest log that commit numbers and know no stream.
    pub owners: u8,
    /// Who reads the newest manifest only, from the start each time, and from where they were.
    pub users: u8,
    pub followers: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Step { party: usize, choice: u8 },
    Arrive { flight: usize, again: bool },
}

#[derive(Debug, Clone, Hash)]
pub struct State {
    pub world: World,
    pub parties: Vec<Party>,
}

impl State {
    pub fn new(cast: Cast, bounds: Bounds, removed: Option<Rule>) -> Self {
        let mut parties = Vec::new();
        parties.extend((0..cast.writers).map(|i| Party::Writer(Writer::new(i + 1))));
        parties.extend((0..cast.folders).map(|i| Party::Folder(Folder::new(i + 1, false))));
        parties.extend((0..cast.owners).map(|i| Party::Folder(Folder::new(i + 1, true))));
        parties.extend((0..cast.readers).map(|_| Party::Reader(Reader::new())));
        parties.extend((0..cast.users).map(|_| Party::User(User::new(false))));
        parties.extend((0..cast.followers).map(|_| Party::User(User::new(true))));
        Self { world: World::new(removed, bounds), parties }
    }

    fn choices(&self, party: &Party) -> u8 {
        match party {
            Party::Writer(writer) => u8::from(!writer.blocked(&self.world)),
            Party::Folder(folder) => folder.choices(&self.world),
            Party::Reader(_) | Party::User(_) => 1,
            Party::Gone => 0,
        }
    }
}

impl Party {
    pub fn unborn(&self) -> bool {
        match self {
            Party::Writer(writer) => writer.unborn(),
            Party::Folder(folder) => folder.unborn(),
            _ => false,
        }
    }

    fn step(&mut self, world: &mut World, choice: u8) {
        let lives = match self {
            Party::Writer(writer) => writer.step(world),
            Party::Folder(folder) => folder.step(world, choice),
            Party::Reader(reader) => {
                reader.step(world);
                true
            }
            Party::User(user) => {
                user.step(world);
                true
            }
            Party::Gone => false,
        };
        if !lives {
            *self = Party::Gone;
        }
    }
}

impl Model for State {
    type Action = Action;

    fn actions(&self, into: &mut Vec<Action>) {
        let mut unborn = [false; 2];
        for (i, party) in self.parties.iter().enumerate() {
            // Of lives that have not begun all are alike: the first goes first.
            if party.unborn() {
                let waiting = &mut unborn[usize::from(matches!(party, Party::Folder(_)))];
                if std::mem::replace(waiting, true) {
                    continue;
                }
            }
            into.extend((0..self.choices(party)).map(|choice| Action::Step { party: i, choice }));
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
    }

    fn apply(&mut self, action: Action) {
        self.world.touched = false;
        match action {
            Action::Arrive { flight, again } => self.world.arrive(flight, again),
            Action::Step { party, choice } => self.parties[party].step(&mut self.world, choice),
        }
    }

    fn judge(&self) -> Result<(), &'static str> {
        if !self.world.touched {
            return Ok(());
        }
        let counts = self.parties.iter().any(|party| matches!(party, Party::User(_)));
        oracle::judge(&self.world, !counts)
    }
}
