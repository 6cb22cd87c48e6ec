//! The epoch log's executable model, on the real writer and reader (docs/rfcs/0001-epoch-log.md).
//!
//! Goal: under every rule nothing acknowledged is lost, nothing void is read, nothing needed is deleted; and with any one
//! rule taken away, something is. Method: writers, appliers and readers run as tasks of one thread with paused time over
//! a store in memory whose every request takes a seeded random time, so that any interleaving can happen and the same
//! seed gives the same one. PUTs may land after their writer was told of a timeout or died, may land twice, and may bring
//! back what was deleted; deletes may be late; tasks are killed in mid-request and others stall for a long time. The
//! oracle knows everything that was ever written and asks neither the reader nor the writer under test.

mod actors;
mod bias;
mod oracle;
mod sim;

use std::collections::BTreeMap;

use bias::Bias;
use sim::Removed;

/// Seeds that must be clean with all rules; about ten seconds on one core. `FARSHORE_MODEL_SEEDS` asks for more.
const CLEAN_SEEDS: u64 = 200;

/// Seeds within which each removed rule must have failed.
const BROKEN_SEEDS_MAX: u64 = 1000;

fn asked_seeds() -> Option<u64> {
    let asked = std::env::var("FARSHORE_MODEL_SEEDS").ok()?;
    Some(asked.parse().expect("FARSHORE_MODEL_SEEDS is a number"))
}

fn clean_seeds() -> u64 {
    asked_seeds().unwrap_or(CLEAN_SEEDS)
}

fn assert_clean(window: usize, bias: Bias) {
    let (mut total, mut bad) = (sim::Stats::default(), BTreeMap::<String, Vec<u64>>::new());
    for seed in 0..clean_seeds() {
        let outcome = sim::run(seed, window, bias, Removed::Nothing);
        total.add(&outcome.stats);
        if let Err(verdict) = outcome.verdict {
            bad.entry(verdict).or_default().push(seed);
        }
    }
    println!("window {window}, {bias:?}: {} seeds, {total:?}", clean_seeds());
    assert!(bad.is_empty(), "with every rule in force these seeds fail: {bad:?}");
    // The runs are about something: each had takeovers, folding, deletion and late writes on average.
    let runs = clean_seeds();
    let enough = [
        ("epochs", total.epochs, 4),
        ("acknowledged", total.acked, 10),
        ("read", total.consumed, 20),
        ("manifests", total.manifests, 1),
        ("deleted", total.deleted, 4),
        ("late", total.late, 5),
        ("resurrected", total.resurrected, 0),
        ("killed", total.killed, 1),
    ];
    for (what, count, at_least) in enough {
        assert!(count > at_least * runs, "only {count} {what} in {runs} runs: the oracle would see nothing");
    }
}

#[test]
fn all_rules_hold_with_one_slot_in_flight() {
    assert_clean(1, Bias::Even);
}

#[test]
fn all_rules_hold_with_four_slots_in_flight() {
    assert_clean(4, Bias::Even);
}

#[test]
fn all_rules_hold_when_reads_stall() {
    assert_clean(4, Bias::StalledReads);
}

#[test]
fn all_rules_hold_when_puts_are_late() {
    assert_clean(4, Bias::LatePuts);
}

/// Seeds are run until one notices that the rule is gone; when more seeds are asked for, all of them.
fn assert_needed(removed: Removed) {
    let asked = asked_seeds().unwrap_or(1);
    let (mut first, mut verdicts) = (None, BTreeMap::<String, u64>::new());
    for seed in 0..BROKEN_SEEDS_MAX.max(asked) {
        if first.is_some() && seed >= asked {
            break;
        }
        if let Err(verdict) = sim::run(seed, 4, Bias::Race(removed), removed).verdict {
            first.get_or_insert(seed + 1);
            *verdicts.entry(verdict).or_default() += 1;
        }
    }
    let first = first.unwrap_or(u64::MAX);
    println!("without {removed:?}: caught after {first} seeds; in all fail {verdicts:?}");
    assert!(first <= BROKEN_SEEDS_MAX, "no seed notices that {removed:?} is gone: the oracle is blind to it");
}

#[test]
fn skipping_an_epoch_number_fails() {
    assert_needed(Removed::NeverSkip);
}

#[test]
fn trusting_an_unclear_create_fails() {
    assert_needed(Removed::ComparesDoubt);
}

#[test]
fn acknowledging_without_a_look_fails() {
    assert_needed(Removed::WriterLooks);
}

#[test]
fn acknowledging_out_of_order_fails() {
    assert_needed(Removed::AcksInOrder);
}

#[test]
fn reading_without_a_look_fails() {
    assert_needed(Removed::ReaderLooks);
}

#[test]
fn trusting_the_highest_opening_without_a_look_fails() {
    assert_needed(Removed::ReaderLooksAtTop);
}

#[test]
fn taking_a_hole_for_the_end_fails() {
    assert_needed(Removed::RecheckHole);
}

#[test]
fn taking_a_hole_in_the_manifest_log_for_the_end_fails() {
    assert_needed(Removed::RecheckManifestHole);
}

#[test]
fn concluding_without_a_second_look_upward_fails() {
    assert_needed(Removed::SecondLookUp);
}

#[test]
fn deleting_behind_an_unacknowledged_manifest_fails() {
    assert_needed(Removed::ManifestLooks);
}

/// With every rule in force, none of the races does harm.
#[test]
fn all_rules_hold_in_every_race() {
    for rule in Removed::RULES {
        for seed in 0..clean_seeds().div_ceil(5) {
            let verdict = sim::run(seed, 4, Bias::Race(rule), Removed::Nothing).verdict;
            assert_eq!(verdict, Ok(()), "with every rule in force, biased towards {rule:?}, seed {seed} fails");
        }
    }
}

/// What makes a failing seed worth printing: it fails again.
#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in 0..5 {
        let (one, two) =
            (sim::run(seed, 4, Bias::Even, Removed::Nothing), sim::run(seed, 4, Bias::Even, Removed::Nothing));
        assert_eq!(one.trace, two.trace, "seed {seed}");
        assert_eq!(one.stats, two.stats, "seed {seed}");
    }
    let other = sim::run(5, 4, Bias::Even, Removed::Nothing).trace;
    assert_ne!(other, sim::run(6, 4, Bias::Even, Removed::Nothing).trace, "the trace tells runs apart");
}
