//! The epoch log's specification (docs/rfcs/0001-epoch-log.md): plain states and steps, no store, no time, no keys.
//!
//! Read it in this order: `world` (what is shared), `walks` (rules 1, 2, 5), `writer` (rule 3), `reader` (rule 4), `folder`
//! (rule 6), `oracle` (the promises). Goal: the rules keep the promises in every order of events, and each rule is needed.
//! Method: every state that a small cast can reach is visited and judged as if it were the last one; larger casts run
//! through seeded schedules that are biased towards each rule's race; and every rule is taken away in turn. The real
//! writer and reader run beside it under the same oracles in `epoch_log_model`. `FARSHORE_MODEL_SEEDS` asks for more seeds,
//! `FARSHORE_MODEL_STATES` for larger casts up to that many states.

mod bias;
mod explore;
mod folder;
mod oracle;
mod reader;
mod state;
mod walks;
mod world;
mod writer;

use std::time::Instant;

use bias::Biased;
use explore::{Even, asked, assert_sound, exhaustive, random, schedules};
use state::{Cast, State};
use world::{Bounds, Rule};

/// Seeds within which each removed rule must have failed.
const BROKEN_SEEDS_MAX: u64 = 1000;

/// Steps of one schedule.
const STEPS: usize = 400;

/// States of the largest cast that every run visits in full.
const STATES_MAX: u64 = 500_000;

const SMALL: Bounds = Bounds { slots: 2, window: 2, commits: 1, duplicates: 0, late_deletes: 0 };
const LARGE: Bounds = Bounds { slots: 5, window: 3, commits: 4, duplicates: 6, late_deletes: 4 };
const NOBODY: Cast = Cast { writers: 0, folders: 0, readers: 0, owners: 0, users: 0, followers: 0 };

/// Lives for a long schedule: there are as many as there are epochs.
const CROWD: Cast = Cast { writers: 7, folders: 5, readers: 2, ..NOBODY };
const READERS: Cast = Cast { writers: 4, readers: 2, ..NOBODY };
const FOLDING: Cast = Cast { writers: 4, folders: 2, ..NOBODY };
const OWNERS: Cast = Cast { owners: 7, users: 2, followers: 2, ..NOBODY };

const RULES: [Rule; 10] = [
    Rule::NeverSkip,
    Rule::CompareDoubt,
    Rule::LookBeforeAck,
    Rule::AckInOrder,
    Rule::LookAfterRead,
    Rule::LookAtTop,
    Rule::RecheckHole,
    Rule::RecheckManifestHole,
    Rule::SecondLookUp,
    Rule::AckBeforeDelete,
];

/// A small world, and about how many thousands of states it has.
struct Small {
    what: &'static str,
    cast: Cast,
    bounds: Bounds,
    thousands: u64,
}

/// Visits every state of these worlds; those with more states than asked for are left out, never the first.
fn assert_all_sound(worlds: &[Small]) {
    let most = asked("FARSHORE_MODEL_STATES").unwrap_or(STATES_MAX);
    let fits = |world: &Small| world.thousands * 1000 <= most;
    assert!(fits(&worlds[0]), "the first world is always visited");
    for Small { what, cast, bounds, thousands } in worlds.iter().filter(|world| fits(world)) {
        assert_sound(what, State::new(*cast, *bounds, None), (thousands + 1) * 1000);
    }
}

const ONE_SLOT: Bounds = Bounds { slots: 1, window: 1, ..SMALL };
const MISCHIEF: Bounds = Bounds { duplicates: 1, late_deletes: 1, ..SMALL };

#[test]
fn every_state_of_writers_and_a_reader_is_sound() {
    let cast = Cast { writers: 2, readers: 1, ..NOBODY };
    let bounds = Bounds { slots: 3, window: 3, ..SMALL };
    assert_all_sound(&[Small { what: "two writers of 3 slots, a reader", cast, bounds, thousands: 178 }]);
}

#[test]
fn every_state_of_a_writer_a_folder_and_a_reader_is_sound() {
    let cast = Cast { writers: 1, folders: 1, readers: 1, ..NOBODY };
    let twice = Bounds { commits: 2, ..SMALL };
    let late = Bounds { late_deletes: 1, ..twice };
    assert_all_sound(&[
        Small { what: "a writer, a folder, a reader", cast, bounds: twice, thousands: 228 },
        Small { what: "a writer, a folder, a reader; late deletes", cast, bounds: late, thousands: 772 },
    ]);
}

#[test]
fn every_state_of_writers_and_folders_is_sound() {
    let cast = Cast { writers: 2, folders: 1, ..NOBODY };
    let two_folders = Cast { writers: 1, folders: 2, ..NOBODY };
    assert_all_sound(&[
        Small { what: "two writers of 1 slot, a folder", cast, bounds: ONE_SLOT, thousands: 227 },
        Small { what: "two writers of 2 slots, a folder", cast, bounds: SMALL, thousands: 837 },
        Small { what: "a writer of 1 slot, two folders", cast: two_folders, bounds: ONE_SLOT, thousands: 905 },
    ]);
}

#[test]
fn every_state_of_the_manifest_log_is_sound() {
    let cast = Cast { owners: 2, users: 1, ..NOBODY };
    let follower = Cast { owners: 2, followers: 1, ..NOBODY };
    let late = Bounds { late_deletes: 1, ..SMALL };
    let twice = Bounds { duplicates: 1, ..SMALL };
    assert_all_sound(&[
        Small { what: "two owners, a user; late deletes", cast, bounds: late, thousands: 110 },
        Small { what: "two owners, a follower; duplicates", cast: follower, bounds: twice, thousands: 405 },
        Small { what: "two owners, a follower; mischief", cast: follower, bounds: MISCHIEF, thousands: 960 },
    ]);
}

/// Who can best run into a rule's race.
fn cast_for(rule: Rule) -> Cast {
    match rule {
        Rule::RecheckManifestHole | Rule::SecondLookUp => OWNERS,
        Rule::LookAfterRead | Rule::LookAtTop => READERS,
        Rule::RecheckHole => FOLDING,
        _ => CROWD,
    }
}

/// With every rule in force no schedule fails, towards whichever race it leans; and the schedules are about something.
#[test]
fn all_rules_hold_in_seeded_schedules() {
    let seeds = asked("FARSHORE_MODEL_SEEDS").unwrap_or(2000);
    let (begun, mut runs) = (Instant::now(), 0);
    let [mut acknowledged, mut read, mut folded, mut opened] = [0; 4];
    for (cast, towards) in
        [(CROWD, None), (OWNERS, None)].into_iter().chain(RULES.map(|rule| (cast_for(rule), Some(rule))))
    {
        let start = State::new(cast, LARGE, None);
        let count = |end: &State| {
            runs += 1;
            let bits = |set: &world::Slots| u64::from(set.iter().map(|slots| slots.count_ones()).sum::<u32>());
            let observed = &end.world.observed;
            acknowledged += bits(&observed.acknowledged);
            read += bits(&observed.read);
            folded += bits(&observed.folded);
            opened += u64::from(end.world.stream.highest(0));
        };
        let (verdicts, first) = schedules(&start, || Biased::towards(towards), seeds, STEPS, false, count);
        assert!(verdicts.is_empty(), "{cast:?} towards {towards:?}: seed {first:?} fails: {verdicts:?}");
    }
    let rate = runs as f64 / begun.elapsed().as_secs_f64();
    println!(
        "{runs} schedules ({rate:.0} a second): {opened} epochs, {acknowledged} segments acknowledged, {read} read, {folded} manifests"
    );
    assert!(acknowledged > 2 * runs && read > 2 * runs && folded > runs / 2 && opened > 2 * runs, "nothing to judge");
}

/// Every removed rule is noticed within the bound, by schedules biased towards its race.
#[test]
fn each_removed_rule_fails_in_seeded_schedules() {
    let all = asked("FARSHORE_MODEL_SEEDS");
    println!("{:22} {:>8} {:>12}  how", "removed", "biased", "even");
    for rule in RULES {
        let start = State::new(cast_for(rule), LARGE, Some(rule));
        let seeds = all.unwrap_or(BROKEN_SEEDS_MAX).max(BROKEN_SEEDS_MAX);
        let (verdicts, biased) = schedules(&start, || Biased::towards(Some(rule)), seeds, STEPS, all.is_some(), |_| ());
        let (_, even) = schedules(&start, || Even, BROKEN_SEEDS_MAX, STEPS, false, |_| ());
        let show = |first: Option<u64>| first.map_or(format!(">{BROKEN_SEEDS_MAX}"), |n| n.to_string());
        println!("{:22} {:>8} {:>12}  {verdicts:?}", format!("{rule:?}"), show(biased), show(even));
        assert!(biased.is_some_and(|n| n <= BROKEN_SEEDS_MAX), "no seed notices that {rule:?} is gone");
    }
}

/// The smallest cast that shows why a rule is needed, and the number of steps of a story that shows it.
#[test]
fn each_removed_rule_fails_in_some_state_of_a_small_cast() {
    let two_writers = Cast { writers: 2, readers: 1, ..NOBODY };
    let owners = Cast { owners: 3, followers: 1, ..NOBODY };
    let folding = Cast { writers: 2, folders: 1, ..NOBODY };
    for rule in RULES {
        let cast = match rule {
            Rule::RecheckManifestHole | Rule::SecondLookUp | Rule::AckBeforeDelete => owners,
            Rule::RecheckHole => folding,
            Rule::NeverSkip => Cast { writers: 2, ..NOBODY },
            _ => two_writers,
        };
        let broken = exhaustive(State::new(cast, SMALL, Some(rule)), STATES_MAX);
        let broken = broken.expect_err("a removed rule must be missed");
        println!("{rule:?}: {} ({} steps)", broken.verdict, broken.path.len());
    }
}

/// What makes a failing seed worth printing: it fails again.
#[test]
fn a_seed_gives_the_same_schedule_every_time() {
    let start = State::new(CROWD, LARGE, None);
    let run = |seed| format!("{:?}", random(start.clone(), &mut Biased::towards(None), seed, STEPS).expect("sound"));
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
