//! The vault's garbage collection as a specification (docs/rfcs/0004-vault-gc.md): plain states and steps, no store, no time.
//!
//! Read it in this order: `log` (what the epoch log gives), `world` (what is shared), `collector`, `writer`, `applier`,
//! `export` (the rules, from each side), `oracle` (the promise). The collection itself is not built yet. Goal: nothing that
//! anybody may still ask for is deleted in any order of events, and each rule is needed. Method: as in `epoch_log_spec`,
//! whose explorer it uses: small casts are visited state by state, larger ones run through seeded schedules that are biased
//! towards each rule's race, and every rule is taken away in turn. `FARSHORE_MODEL_SEEDS` asks for more seeds,
//! `FARSHORE_MODEL_STATES` for larger casts up to that many states.

mod applier;
mod bias;
mod collector;
#[path = "../epoch_log_spec/explore.rs"]
mod explore;
mod export;
mod log;
mod oracle;
mod state;
mod world;
mod writer;

use std::time::Instant;

use bias::Biased;
use explore::{Even, asked, assert_sound, exhaustive, random, schedules};
use state::{Cast, Party, State};
use world::{Bounds, Rule};

/// Seeds within which each removed rule must have failed.
const BROKEN_SEEDS_MAX: u64 = 2000;

/// Seeds for which nobody aims at a race.
const EVEN_SEEDS_MAX: u64 = 500;

/// Steps of one schedule.
const STEPS: usize = 500;

/// States of the largest cast that every run visits in full.
const STATES_MAX: u64 = 300_000;

const LARGE: Bounds =
    Bounds { slots: 8, assembles: 2, commits: 12, compactions: 3, damages: 2, duplicates: 2, one_list: false };
const CROWD: Cast = Cast { machines: 2, writers: [3, 3], appliers: [3, 3], exports: 2, collectors: 3 };

/// Where a second machine would only be waited for.
const ALONE: Cast = Cast { machines: 1, ..CROWD };

const RULES: [Rule; 17] = [
    Rule::MarkPending,
    Rule::MarkCursors,
    Rule::MarkPins,
    Rule::WalkFromMarked,
    Rule::HoleRepeats,
    Rule::StopUnlessWalked,
    Rule::CompareList,
    Rule::RegistryAfterList,
    Rule::WaitForStreams,
    Rule::WaitForManifests,
    Rule::MarkAgain,
    Rule::OpeningReadsList,
    Rule::SeenIsOldest,
    Rule::SeenNeverFalls,
    Rule::CheckOldAgain,
    Rule::CommitNamesNoCondemned,
    Rule::OpenAfterPin,
];

/// A process server, an applier and a collection.
const NOBODY: Cast = Cast { machines: 1, writers: [0, 0], appliers: [0, 0], exports: 0, collectors: 1 };
const SMALL: Bounds =
    Bounds { slots: 1, assembles: 1, commits: 1, compactions: 0, damages: 0, duplicates: 0, one_list: false };

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

#[test]
fn every_state_of_process_servers_and_a_collection_is_sound() {
    let two = Bounds { slots: 2, assembles: 2, ..SMALL };
    let another = Cast { writers: [1, 0], ..NOBODY };
    assert_all_sound(&[
        Small { what: "a process server that assembles two segments", cast: NOBODY, bounds: two, thousands: 124 },
        Small { what: "two process servers", cast: another, bounds: SMALL, thousands: 201 },
        Small {
            what: "a process server that assembles two segments; two commits",
            cast: NOBODY,
            bounds: Bounds { commits: 2, ..two },
            thousands: 463,
        },
        Small {
            what: "two process servers; compaction",
            cast: another,
            bounds: Bounds { compactions: 1, ..SMALL },
            thousands: 1163,
        },
    ]);
}

#[test]
fn every_state_of_appliers_and_a_collection_is_sound() {
    let another = Cast { appliers: [1, 0], ..NOBODY };
    let compacts = Bounds { commits: 2, compactions: 1, ..SMALL };
    assert_all_sound(&[
        Small { what: "two appliers", cast: another, bounds: SMALL, thousands: 158 },
        Small { what: "an applier that compacts", cast: NOBODY, bounds: compacts, thousands: 91 },
        Small {
            what: "an applier that compacts; a PUT that comes twice",
            cast: NOBODY,
            bounds: Bounds { duplicates: 1, ..compacts },
            thousands: 226,
        },
        Small {
            what: "two appliers; compaction",
            cast: another,
            bounds: Bounds { compactions: 1, ..SMALL },
            thousands: 1206,
        },
    ]);
}

#[test]
fn every_state_of_consumers_exports_and_collections_is_sound() {
    let export = Cast { exports: 1, ..NOBODY };
    let collections = Cast { collectors: 2, ..NOBODY };
    let commits = |commits| Bounds { commits, ..SMALL };
    assert_all_sound(&[
        Small { what: "a consumer", cast: NOBODY, bounds: commits(4), thousands: 39 },
        Small { what: "an export", cast: export, bounds: commits(3), thousands: 206 },
        Small {
            what: "logs that cannot be walked",
            cast: NOBODY,
            bounds: Bounds { damages: 1, ..commits(2) },
            thousands: 36,
        },
        Small { what: "two collections", cast: collections, bounds: SMALL, thousands: 79 },
        Small { what: "two collections; two commits", cast: collections, bounds: commits(2), thousands: 357 },
        Small {
            what: "two collections; two segments",
            cast: collections,
            bounds: Bounds { slots: 2, ..SMALL },
            thousands: 902,
        },
    ]);
}

/// What is built (docs/rfcs/0010-sharing.md): one list for an epoch. Three rules cannot be broken then.
#[test]
fn every_state_with_one_list_for_an_epoch_is_sound_and_needs_three_rules_less() {
    let two = Bounds { slots: 2, assembles: 2, one_list: true, ..SMALL };
    let another = Cast { writers: [1, 0], ..NOBODY };
    for removed in [None, Some(Rule::SeenIsOldest), Some(Rule::SeenNeverFalls), Some(Rule::CheckOldAgain)] {
        assert_sound("one list; two segments", State::new(NOBODY, two, removed), STATES_MAX);
        let one = Bounds { one_list: true, ..SMALL };
        assert_sound("one list; two process servers", State::new(another, one, removed), STATES_MAX);
    }
    for rule in [Rule::MarkAgain, Rule::WaitForStreams, Rule::MarkPending] {
        // The second process server is the one that has seen the list.
        let broken = Bounds { one_list: true, ..SMALL };
        let broken = exhaustive(State::new(another, broken, Some(rule)), STATES_MAX);
        println!("one list, without {rule:?}: {}", broken.expect_err("the others are needed").verdict);
    }
}

/// Who can best run into a rule's race.
fn cast_for(rule: Option<Rule>) -> Cast {
    match rule {
        None
        | Some(Rule::OpeningReadsList | Rule::RegistryAfterList | Rule::StopUnlessWalked | Rule::WaitForStreams) => {
            CROWD
        }
        Some(_) => ALONE,
    }
}

/// With every rule in force no schedule fails, towards whichever race it leans; and the schedules are about something.
#[test]
fn all_rules_hold_in_seeded_schedules() {
    let seeds = asked("FARSHORE_MODEL_SEEDS").unwrap_or(700);
    let (begun, mut runs) = (Instant::now(), 0);
    let [mut lists, mut deleted, mut segments, mut referring, mut commits, mut reading, mut fell] = [0; 7];
    for towards in [None].into_iter().chain(RULES.map(Some)) {
        let start = State::new(cast_for(towards), LARGE, None);
        let count = |end: &State| {
            runs += 1;
            lists += end.world.lists.len() as u64;
            deleted += u64::from(end.world.deleted);
            for machine in &end.world.machines {
                let accepted = machine.stream.accepted();
                segments += accepted.len() as u64;
                referring += accepted.iter().filter(|entry| !entry.says.is_empty()).count() as u64;
                fell += u64::from(!accepted.is_sorted_by_key(|entry| entry.seen));
                commits += machine.manifest.accepted().len() as u64;
            }
            let reads = |party: &&Party| matches!(party, Party::Export(export) if export.needs(&end.world).is_some());
            reading += end.parties.iter().filter(reads).count() as u64;
        };
        let (verdicts, first) = schedules(&start, || Biased::towards(towards), seeds, STEPS, false, count);
        assert!(verdicts.is_empty(), "towards {towards:?}: seed {first:?} fails: {verdicts:?}");
    }
    let rate = runs as f64 / begun.elapsed().as_secs_f64();
    println!(
        "{runs} schedules ({rate:.0} a second): {lists} condemn lists, {deleted} objects deleted, {segments} segments of which \
         {referring} refer to others, {commits} commits, {reading} exports reading at the end; gc_seen fell at an opening in {fell} streams"
    );
    assert!(lists > runs / 2 && deleted > runs / 2 && referring > runs && reading > runs / 20, "nothing to judge");
}

/// Every removed rule is noticed within the bound, by schedules biased towards its race.
#[test]
fn each_removed_rule_fails_in_seeded_schedules() {
    let all = asked("FARSHORE_MODEL_SEEDS");
    println!("{:24} {:>8} {:>8}  how", "removed", "biased", "even");
    let mut missed = Vec::new();
    for rule in RULES {
        let start = State::new(cast_for(Some(rule)), LARGE, Some(rule));
        let seeds = all.unwrap_or(BROKEN_SEEDS_MAX).max(BROKEN_SEEDS_MAX);
        let (verdicts, biased) = schedules(&start, || Biased::towards(Some(rule)), seeds, STEPS, all.is_some(), |_| ());
        let (_, even) = schedules(&start, || Even, EVEN_SEEDS_MAX, STEPS, false, |_| ());
        let show = |first: Option<u64>, most: u64| first.map_or(format!(">{most}"), |n| n.to_string());
        println!(
            "{:24} {:>8} {:>8}  {verdicts:?}",
            format!("{rule:?}"),
            show(biased, seeds),
            show(even, EVEN_SEEDS_MAX)
        );
        missed.extend(biased.is_none().then_some(rule));
    }
    assert!(missed.is_empty(), "no seed notices that one of these is gone: {missed:?}");
}

/// The smallest cast that shows why a rule is needed; none where more states are needed than can be visited.
fn small_cast_for(rule: Rule) -> Option<(Cast, Bounds)> {
    let segments = |slots, assembles| Bounds { slots, assembles, ..SMALL };
    Some(match rule {
        Rule::CompareList => return None,
        Rule::MarkPending | Rule::WaitForStreams | Rule::MarkAgain => (NOBODY, segments(2, 1)),
        Rule::SeenIsOldest | Rule::SeenNeverFalls | Rule::CheckOldAgain => (NOBODY, segments(2, 2)),
        Rule::WalkFromMarked | Rule::HoleRepeats => (NOBODY, Bounds { commits: 2, ..segments(2, 1) }),
        Rule::MarkCursors => (NOBODY, Bounds { commits: 4, ..segments(2, 1) }),
        Rule::StopUnlessWalked => (NOBODY, Bounds { damages: 2, ..segments(2, 1) }),
        Rule::WaitForManifests | Rule::CommitNamesNoCondemned => {
            (NOBODY, Bounds { commits: 2, compactions: 1, ..SMALL })
        }
        Rule::OpeningReadsList => (Cast { writers: [1, 0], ..NOBODY }, SMALL),
        Rule::RegistryAfterList => (Cast { machines: 2, writers: [0, 1], ..NOBODY }, SMALL),
        Rule::MarkPins => (Cast { exports: 1, ..NOBODY }, Bounds { commits: 3, ..SMALL }),
        Rule::OpenAfterPin => (Cast { exports: 1, ..NOBODY }, Bounds { commits: 2, ..SMALL }),
    })
}

#[test]
fn each_removed_rule_fails_in_some_state_of_a_small_cast() {
    for rule in RULES {
        let Some((cast, bounds)) = small_cast_for(rule) else { continue };
        let broken = exhaustive(State::new(cast, bounds, Some(rule)), STATES_MAX);
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
