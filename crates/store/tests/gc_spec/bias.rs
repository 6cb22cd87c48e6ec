//! Schedules that make each rule's race likely.
//!
//! What makes X and its like needed again is rare, or nothing would ever be collected; lives begin now and then; and who
//! comes to the place where a rule's race is, is often held there for a while, as anybody is anywhere now and then.

use store::SplitMix64;

use crate::applier;
use crate::explore::Schedule;
use crate::state::{Action, Party, State};
use crate::world::{Request, Rule};
use crate::writer;

/// Steps of the whole for which a party is held.
const HELD_STEPS: u64 = 60;

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

    /// How readily this is done when its turn comes.
    fn readiness(&self, state: &State, action: Action) -> f64 {
        match action {
            Action::Damage { .. } => 0.01,
            Action::Arrive { flight, .. } => match state.world.flights[flight] {
                Request::Delete { .. } => 0.5,
                _ => 1.0,
            },
            Action::Write { party, chosen } => match chosen {
                writer::Move::Refer { .. } => 0.05,
                writer::Move::Refresh => 0.3,
                writer::Move::Seal { place } => self.seals(state, party, place),
                _ => 1.0,
            },
            Action::Apply { party, chosen: applier::Move::Fold } if self.folds_early(state, party) => 0.01,
            Action::Apply { chosen, .. } => self.applies(chosen),
            Action::Step { .. } => 1.0,
        }
    }

    /// What was chosen long ago is what races.
    fn seals(&self, state: &State, party: usize, place: usize) -> f64 {
        let late = matches!(
            self.rule,
            Some(
                Rule::SeenIsOldest
                    | Rule::SeenNeverFalls
                    | Rule::CheckOldAgain
                    | Rule::MarkAgain
                    | Rule::WaitForStreams
                    | Rule::CompareList
                    | Rule::WalkFromMarked
                    | Rule::HoleRepeats
            )
        );
        match &state.parties[party] {
            Party::Writer(writer) if late && writer.refers_at(place) => 0.02,
            _ => 1.0,
        }
    }

    /// For whom a reference must not be folded before a collection walks past it.
    fn folds_early(&self, state: &State, party: usize) -> bool {
        let walks = |party: &Party| matches!(party, Party::Collector(collector) if collector.walks());
        let refers = |party: &Party| matches!(party, Party::Applier(applier) if applier.folds_reference(&state.world));
        let rule = matches!(self.rule, Some(Rule::WalkFromMarked | Rule::HoleRepeats));
        rule && refers(&state.parties[party]) && !state.parties.iter().any(walks)
    }

    fn applies(&self, chosen: applier::Move) -> f64 {
        use applier::Move::*;
        match (chosen, self.rule) {
            (Fold, Some(Rule::MarkPending | Rule::SeenIsOldest | Rule::SeenNeverFalls | Rule::CheckOldAgain)) => 0.02,
            (ExpirePin { .. } | AdvanceCursor, Some(Rule::MarkPins | Rule::MarkCursors)) => 0.02,
            (Thin { .. }, Some(Rule::MarkPins | Rule::MarkCursors | Rule::OpenAfterPin)) => 1.0,
            (Compact, Some(Rule::CommitNamesNoCondemned | Rule::WaitForManifests | Rule::CompareList)) => 0.5,
            (AnswerPin { .. }, Some(Rule::OpenAfterPin)) => 0.02,
            (Thin { .. } | Compact, _) => 0.05,
            (SetCursor, _) => 0.1,
            (ExpirePin { .. } | AdvanceCursor, _) => 0.2,
            _ => 1.0,
        }
    }

    fn birth(&self) -> f64 {
        match self.rule {
            Some(Rule::RegistryAfterList | Rule::OpeningReadsList) => 0.05,
            _ => 0.02,
        }
    }

    /// Where the rule's race is.
    fn races(&self, party: &Party) -> bool {
        let Some(rule) = self.rule else { return false };
        match party {
            Party::Writer(writer) => match rule {
                Rule::OpeningReadsList | Rule::RegistryAfterList => writer.attaches(),
                _ => false,
            },
            Party::Applier(applier) => match rule {
                Rule::OpeningReadsList => applier.attaches(),
                Rule::CommitNamesNoCondemned | Rule::WaitForManifests | Rule::CompareList => applier.compacts(),
                _ => false,
            },
            Party::Export(export) => match rule {
                Rule::CommitNamesNoCondemned | Rule::OpenAfterPin => export.asks(),
                _ => false,
            },
            Party::Collector(collector) => match rule {
                Rule::WalkFromMarked | Rule::HoleRepeats => collector.walks(),
                Rule::CompareList | Rule::RegistryAfterList => collector.publishes(),
                Rule::WaitForManifests | Rule::WaitForStreams => collector.deletes(),
                _ => false,
            },
            Party::Gone => false,
        }
    }
}

impl Schedule<State> for Biased {
    fn choose(&mut self, state: &State, actions: &[Action], rng: &mut SplitMix64) -> usize {
        self.now += 1;
        self.held.resize(state.parties.len(), 0);
        for _ in 0..12 {
            let index = rng.below(actions.len() as u64) as usize;
            if !rng.chance(self.readiness(state, actions[index])) {
                continue;
            }
            let Some(party) = actions[index].party() else { return index };
            if self.held[party] > self.now || state.parties[party].unborn() && !rng.chance(self.birth()) {
                continue;
            }
            if !rng.chance(if self.races(&state.parties[party]) { 0.2 } else { 0.01 }) {
                return index;
            }
            self.held[party] = self.now + rng.below(HELD_STEPS);
        }
        rng.below(actions.len() as u64) as usize
    }
}
