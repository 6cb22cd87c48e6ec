//! Schedules that make each rule's race likely.
//!
//! A race needs somebody to stand still at one place (between a look and what rests on it, say) while others go on. So a
//! party that comes to such a place is often held there for a while. Which places, is each rule's own; besides, anybody is
//! held anywhere now and then, and requests are late more or less.

use store::SplitMix64;

use crate::explore::Schedule;
use crate::reader::Reader;
use crate::state::{Action, Party, State};
use crate::world::{At, EPOCHS, Log, Request, Rule};

/// Steps of the whole for which a party is held.
const HELD_STEPS: u64 = 60;

/// How readily a request that had better be late arrives all the same.
const DAWDLE: f64 = 0.1;

pub struct Biased {
    rule: Option<Rule>,
    /// Until which step each party is held.
    held: Vec<u64>,
    now: u64,
}

impl Biased {
    pub fn towards(rule: Option<Rule>) -> Self {
        Self { rule, held: Vec::new(), now: 0 }
    }

    /// Whether a request that is under way had better arrive late.
    fn dawdles(&self, state: &State, request: &Request) -> bool {
        match self.rule {
            Some(Rule::NeverSkip | Rule::CompareDoubt) => matches!(request, Request::Own { .. }),
            // What lands when the end of its epoch has been named already.
            Some(Rule::LookAfterRead) => {
                matches!(request, Request::Put { log: Log::Stream, at, .. } if at.slot > 0 && !continued(state, at.epoch))
            }
            // An opening that comes when a later writer did not find it.
            Some(Rule::LookAtTop) => {
                matches!(request, Request::Put { log: Log::Stream, at, .. } if at.slot == 0 && !continued(state, at.epoch))
            }
            Some(Rule::AckInOrder) => matches!(request, Request::Put { at, .. } if at.slot % 2 == 1),
            _ => false,
        }
    }

    /// How readily a life begins: lives should follow each other, with some overlap.
    fn birth(&self) -> f64 {
        match self.rule {
            Some(Rule::LookAtTop | Rule::SecondLookUp) => 0.05,
            _ => 0.02,
        }
    }

    /// How readily a party is held where the race is.
    fn hold(&self) -> f64 {
        if self.rule == Some(Rule::SecondLookUp) { 0.4 } else { 0.2 }
    }

    /// Where the rule's race is.
    fn races(&self, party: &Party) -> bool {
        let Some(rule) = self.rule else { return false };
        match party {
            Party::Writer(writer) => match rule {
                Rule::NeverSkip | Rule::CompareDoubt => writer.creates_epoch(),
                Rule::LookBeforeAck | Rule::AckInOrder => writer.appends(),
                Rule::LookAtTop => writer.owns_unopened(),
                Rule::RecheckHole => writer.scans(),
                _ => false,
            },
            Party::Folder(folder) => match rule {
                Rule::AckBeforeDelete => folder.acknowledges() || folder.deletes(),
                Rule::RecheckManifestHole => folder.concludes(),
                Rule::SecondLookUp => folder.reads_up(),
                Rule::NeverSkip | Rule::CompareDoubt => folder.creates_epoch(),
                _ => folder.reader().is_some_and(|reader| Self::reader_races(rule, reader)),
            },
            Party::Reader(reader) => Self::reader_races(rule, reader),
            Party::User(user) => match rule {
                Rule::SecondLookUp => user.reads_up(),
                Rule::RecheckManifestHole => user.concludes(),
                _ => false,
            },
            Party::Gone => false,
        }
    }

    fn reader_races(rule: Rule, reader: &Reader) -> bool {
        match rule {
            Rule::LookAtTop => reader.looks_at_top(),
            Rule::RecheckManifestHole => reader.concludes(),
            Rule::SecondLookUp => reader.reads_up(),
            _ => false,
        }
    }
}

/// Whether a later opening exists or is under way.
fn continued(state: &State, epoch: u8) -> bool {
    let opens = |request: &Request| matches!(request, Request::Put { log: Log::Stream, at, .. } if at.slot == 0 && at.epoch > epoch);
    let opened = |epoch| state.world.stream.ever(At { epoch, slot: 0 }).is_some();
    state.world.flights.iter().any(opens) || (epoch + 1..EPOCHS as u8).any(opened)
}

impl Schedule<State> for Biased {
    fn choose(&mut self, state: &State, actions: &[Action], rng: &mut SplitMix64) -> usize {
        self.now += 1;
        self.held.resize(state.parties.len(), 0);
        for _ in 0..8 {
            let index = rng.below(actions.len() as u64) as usize;
            match actions[index] {
                Action::Arrive { flight, .. }
                    if self.dawdles(state, &state.world.flights[flight]) && !rng.chance(DAWDLE) => {}
                Action::Step { party, .. } if self.held[party] > self.now => {}
                Action::Step { party, .. } if state.parties[party].unborn() && !rng.chance(self.birth()) => {}
                Action::Step { party, .. } => {
                    let held = if self.races(&state.parties[party]) { self.hold() } else { 0.01 };
                    if !rng.chance(held) {
                        return index;
                    }
                    self.held[party] = self.now + rng.below(HELD_STEPS);
                }
                Action::Arrive { .. } => return index,
            }
        }
        rng.below(actions.len() as u64) as usize
    }
}
