//! How the vault's garbage collection may delete an object that several streams could refer to: the condemn protocol.
//!
//! One object X is needless; while GC makes sure of that, somebody may come to refer to it again. GC marks, publishes a
//! condemn list, waits until every log's accepted head says that it has seen the list, marks again, and deletes. What a
//! log's head says must therefore mean that no older choice of X can still come. Three rules see to that. (The collection
//! itself is not built yet: this is its specification.)

use store::SplitMix64;

use crate::explore::{Model, Schedule};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcRule {
    /// Whoever opens an epoch reads the newest list after creating it.
    OpeningReadsList,
    /// A segment says it has seen the list that was in force when its oldest reference was chosen; a reference chosen
    /// under an older list than the log's head has seen is given up.
    SeenIsOldest,
    /// Manifest logs say what they have seen too, and GC waits for them.
    ManifestsTakePart,
}

/// A process server with an epoch (or about to have one), an applier about to commit a compacted segment, or GC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Party {
    /// Has read the condemn list, has no epoch yet.
    Attach {
        list: u8,
    },
    /// Owns the epoch; the list it will use was read before.
    Opened {
        epoch: u8,
        list: u8,
    },
    /// In its index X is there to be referred to, unless its list condemns it. Builds two segments at once.
    Serve {
        epoch: u8,
        list: u8,
        building: [Option<Building>; 2],
    },
    Compact {
        list: u8,
    },
    Mark,
    Publish,
    WaitForStream,
    WaitForManifest,
    MarkAgain,
    Delete,
    Gone,
}

/// A segment that is not sealed yet, and the list under which its references were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Building {
    chosen_under: u8,
    refers: bool,
}

/// What a process server may do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Choose { place: usize, refers: bool },
    Refresh,
    Seal { place: usize },
}

fn moves(newest: u8, list: u8, building: [Option<Building>; 2]) -> impl Iterator<Item = Move> {
    let refresh = (newest > list).then_some(Move::Refresh);
    let places = building.map(|segment| segment.is_some()).into_iter().enumerate();
    let each = places.flat_map(move |(place, busy)| match busy {
        true => [Some(Move::Seal { place }), None],
        false => [false, true].map(|refers| (!refers || list < 1).then_some(Move::Choose { place, refers })),
    });
    refresh.into_iter().chain(each.flatten())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Step { party: usize, choice: u8 },
    Attach,
    Compact,
}

#[derive(Debug, Clone, Hash)]
pub struct Vault {
    removed: [bool; 3],
    /// Number of the newest condemn list; list 1 condemns X.
    list: u8,
    exists: bool,
    /// The stream: its highest epoch, what its head has seen, the most any of it has seen, and whether it refers to X.
    epoch: u8,
    head_seen: Option<u8>,
    most_seen: u8,
    seen_fell: bool,
    stream_refers: bool,
    manifest_seen: u8,
    manifest_refers: bool,
    parties: Vec<Party>,
    attaches_left: u8,
    compactions_left: u8,
}

impl Vault {
    pub fn new(attaches: u8, compactions: u8, removed: &[GcRule]) -> Self {
        Self {
            removed: [GcRule::OpeningReadsList, GcRule::SeenIsOldest, GcRule::ManifestsTakePart]
                .map(|rule| removed.contains(&rule)),
            list: 0,
            exists: true,
            epoch: 0,
            head_seen: None,
            most_seen: 0,
            seen_fell: false,
            stream_refers: false,
            manifest_seen: 0,
            manifest_refers: false,
            parties: vec![Party::Serve { epoch: 0, list: 0, building: [None; 2] }, Party::Mark],
            attaches_left: attaches,
            compactions_left: compactions,
        }
    }

    pub fn exists(&self) -> bool {
        self.exists
    }

    fn holds(&self, rule: GcRule) -> bool {
        !self.removed[rule as usize]
    }

    fn referred(&self) -> bool {
        self.stream_refers || self.manifest_refers
    }

    fn choices(&self, party: Party) -> u8 {
        match party {
            Party::Gone => 0,
            Party::WaitForStream => u8::from(self.head_seen >= Some(1)),
            Party::Serve { list, building, .. } => moves(self.list, list, building).count() as u8,
            _ => 1,
        }
    }

    fn step(&mut self, party: Party, choice: u8) -> Party {
        match party {
            Party::Attach { list } => {
                self.epoch += 1;
                Party::Opened { epoch: self.epoch, list }
            }
            Party::Opened { epoch, list } => {
                let list = if self.holds(GcRule::OpeningReadsList) { self.list } else { list };
                Party::Serve { epoch, list, building: [None; 2] }
            }
            Party::Serve { epoch, mut list, mut building } => {
                match moves(self.list, list, building).nth(usize::from(choice)).expect("counted by `choices`") {
                    Move::Refresh => list = self.list,
                    Move::Choose { place, refers } => building[place] = Some(Building { chosen_under: list, refers }),
                    Move::Seal { place } => {
                        let segment = building[place].take().expect("only what is being built is sealed");
                        if !self.seal(epoch, list, segment) {
                            return Party::Gone;
                        }
                    }
                }
                Party::Serve { epoch, list, building }
            }
            Party::Compact { list } => {
                let fenced = self.manifest_seen > list || list >= 1;
                if !(self.holds(GcRule::ManifestsTakePart) && fenced) {
                    self.manifest_refers = true;
                    self.manifest_seen = self.manifest_seen.max(list);
                }
                Party::Gone
            }
            Party::Mark | Party::MarkAgain if self.referred() => Party::Gone,
            Party::Mark => Party::Publish,
            Party::Publish => {
                self.list = 1;
                Party::WaitForStream
            }
            Party::WaitForStream => Party::WaitForManifest,
            Party::WaitForManifest => {
                if self.holds(GcRule::ManifestsTakePart) {
                    self.manifest_seen = 1;
                }
                Party::MarkAgain
            }
            Party::MarkAgain => Party::Delete,
            Party::Delete => {
                self.exists = false;
                Party::Gone
            }
            Party::Gone => Party::Gone,
        }
    }

    /// Puts a segment and has it accepted; false when a later epoch fences its writer.
    fn seal(&mut self, epoch: u8, list: u8, segment: Building) -> bool {
        let Building { chosen_under, mut refers } = segment;
        let mut seen = list;
        if self.holds(GcRule::SeenIsOldest) {
            seen = chosen_under;
            if seen < self.most_seen {
                (seen, refers) = (list, false);
            }
        }
        if self.epoch != epoch {
            return false;
        }
        self.seen_fell |= seen < self.most_seen;
        (self.head_seen, self.most_seen) = (Some(seen), self.most_seen.max(seen));
        self.stream_refers |= refers;
        true
    }
}

impl Model for Vault {
    type Action = Action;

    fn actions(&self, into: &mut Vec<Action>) {
        for (i, party) in self.parties.iter().enumerate() {
            into.extend((0..self.choices(*party)).map(|choice| Action::Step { party: i, choice }));
        }
        if self.attaches_left > 0 {
            into.push(Action::Attach);
        }
        if self.compactions_left > 0 {
            into.push(Action::Compact);
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Step { party, choice } => self.parties[party] = self.step(self.parties[party], choice),
            Action::Attach => {
                self.attaches_left -= 1;
                self.parties.push(Party::Attach { list: self.list });
            }
            Action::Compact => {
                self.compactions_left -= 1;
                self.parties.push(Party::Compact { list: self.list });
            }
        }
    }

    fn judge(&self) -> Result<(), &'static str> {
        match (self.exists, self.stream_refers, self.manifest_refers) {
            (false, true, _) => Err("dangling: the stream refers to a deleted object"),
            (false, _, true) => Err("dangling: a manifest refers to a deleted object"),
            // GC asks the head alone what a whole log has seen.
            _ if self.seen_fell => Err("falling: a log's head has seen less than what lies before it"),
            _ => Ok(()),
        }
    }
}

/// X is needless: it is seldom referred to, and who does so dawdles. Lives begin now and then.
pub struct Seldom;

impl Schedule<Vault> for Seldom {
    fn choose(&mut self, state: &Vault, actions: &[Action], rng: &mut SplitMix64) -> usize {
        let seldom = |action: Action| match action {
            Action::Attach | Action::Compact => true,
            Action::Step { party, choice } => match state.parties[party] {
                Party::Attach { .. } | Party::Compact { .. } => true,
                Party::Serve { list, building, .. } => {
                    match moves(state.list, list, building).nth(usize::from(choice)) {
                        Some(Move::Choose { refers, .. }) => refers,
                        Some(Move::Seal { place }) => building[place].is_some_and(|segment| segment.refers),
                        Some(Move::Refresh) | None => false,
                    }
                }
                _ => false,
            },
        };
        loop {
            let index = rng.below(actions.len() as u64) as usize;
            if !seldom(actions[index]) || rng.chance(0.05) {
                return index;
            }
        }
    }
}
