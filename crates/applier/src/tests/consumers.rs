//! Consumers of a stream (docs/rfcs/0011-consumers.md): nothing of a cache store goes that an applier with a vault store elsewhere
//! still needs, whoever deletes; who comes too late is told; and what all have goes.
//!
//! Directed tests of each race, and random lives: appliers with and without a vault store, which run, collect, die and come
//! late. The oracle is that every consumer comes to promote everything, and that its vault store alone reads as the model says.

use std::collections::BTreeSet;
use std::time::Duration;

use format::consumers::{Consumer, Consumers};
use model::{Seq, Timestamp};
use probe::{Rule, Rules};
use store::{ConsumerList, LogRules, Refused, Store};
use waiting::Deadline;

use super::horizon;
use super::two_stores::{begin, die_at, ends_with, judge, memory, promote, promoted_seq};
use crate::consumers::agree;
use crate::recover::{History, LoadOptions, RecoverError, VerifyOptions, verify};
use crate::testing::{Rng, TestLog};
use crate::{Applier, ApplierConfig, ApplierRules, manifest, preview_collection, preview_trimming};

/// Random lives; `FARSHORE_CONSUMERS_SEEDS` asks for more.
const SEEDS: u64 = 16;

const GIVEN_UP: &str = "given up";

fn collecting() -> ApplierConfig {
    ApplierConfig { state_digests: false, ..horizon::settings() }
}

fn promoting() -> ApplierConfig {
    ApplierConfig { gc: false, ..collecting() }
}

fn without(rule: Rule) -> ApplierRules {
    ApplierRules { applier: Rules::without(rule), log: LogRules::ALL }
}

fn list(log: &TestLog) -> ConsumerList {
    ConsumerList::new(&log.store, log.keys.clone(), log.machine.clone())
}

async fn state(log: &TestLog) -> Consumers {
    list(log).read().await.expect("read")
}

async fn lowest(log: &TestLog) -> u64 {
    state(log).await.lowest().expect("there are consumers")
}

/// The stream goes on for some epochs.
async fn epochs(log: &mut TestLog, count: u32) {
    for _ in 0..count {
        log.live(3).await;
        log.reattach_blind().await;
        log.random();
        log.commit().await;
    }
}

/// Epochs and paths of what lies in the cache store of the stream.
async fn slots(log: &TestLog) -> BTreeSet<(u64, String)> {
    let listed = log.store.list("machine/db/stream/seg").await.expect("listed");
    let epoch = |path: &str| u64::from_str_radix(path.split('/').nth(4).expect("an epoch"), 16).expect("a number");
    listed.into_iter().map(|(path, _)| (epoch(&path), path)).collect()
}

/// Runs an applier until it has taken everything in and changes nothing any more. Errors: what it says that it cannot.
async fn run(log: &TestLog, store: &Store, settings: ApplierConfig, rules: ApplierRules) -> Result<(), String> {
    let collects = settings.gc;
    let applier = horizon::start_on(settings, log, store.clone(), rules).await;
    let ended = rest(log, store, collects, &applier).await;
    applier.stop().await;
    ended
}

async fn rest(log: &TestLog, store: &Store, collects: bool, applier: &Applier) -> Result<(), String> {
    let (deadline, mut before, mut same) = (Deadline::after(Duration::from_secs(60)), None, 0);
    while same < 8 {
        deadline.look_again(format_args!("rest: {:?}", applier.status())).await;
        let status = applier.status().machines.remove(0);
        if let Some(error) = status.last_error {
            return Err(error);
        }
        let (vault, cache) = (store.vault().list("machine").await, log.store.list("machine").await);
        let now = (vault.expect("listed"), cache.expect("listed"));
        let settled = status.processed_seq == log.last() && before.as_ref() == Some(&now);
        same = if settled { same + 1 } else { 0 };
        before = Some(now);
        if collects && same == 8 && has_garbage(log, store).await {
            same = 0;
        }
    }
    Ok(())
}

/// Whether something of the stream is left that a collection would take.
async fn has_garbage(log: &TestLog, store: &Store) -> bool {
    let plan = preview_collection(store, &log.keys, &log.machine).await.expect("no doubt");
    let (_, trimmed) = preview_trimming(store, &log.keys, &log.machine).await.expect("read");
    !trimmed.is_empty() || plan.garbage.iter().any(|garbage| garbage.epoch > 0)
}

fn both(log: &TestLog, vault: &Store) -> Store {
    vault.clone().with_cache(log.store.clone())
}

async fn empty_vault(log: &TestLog) -> Store {
    let vault = memory();
    store::create_vault(&vault, &log.keys).await.expect("vault");
    vault
}

#[tokio::test]
async fn an_applier_without_a_vault_store_collects_nothing_that_a_consumer_needs() {
    let (mut log, far) = begin(31).await;
    epochs(&mut log, 3).await;
    promote(&log, &far).await;
    let cursor = lowest(&log).await;
    epochs(&mut log, 6).await;
    let before = slots(&log).await;
    run(&log, &log.store, collecting(), ApplierRules::ALL).await.expect("collects");
    let after = slots(&log).await;
    assert!(before.iter().filter(|(epoch, _)| *epoch >= cursor).all(|slot| after.contains(slot)), "needed: {after:?}");
    assert!(before.iter().filter(|(epoch, _)| *epoch < cursor).any(|slot| !after.contains(slot)), "others go");
    assert_eq!(state(&log).await.trimmed, cursor - 1);
    let plan = preview_collection(&log.store, &log.keys, &log.machine).await.expect("no doubt");
    let held: Vec<_> = plan.held.iter().map(|garbage| plan.explain(garbage)).collect();
    assert!(held.iter().any(|text| text.contains("/stream/seg/")), "{held:?}");
    promote(&log, &far).await;
    assert_eq!(judge(&log, &far).await, Ok(log.last()));
    // It has caught up: what was held goes.
    let held = plan.held.iter().map(|garbage| garbage.path.clone()).collect::<BTreeSet<_>>();
    run(&log, &log.store, collecting(), ApplierRules::ALL).await.expect("collects");
    assert!(slots(&log).await.iter().all(|(epoch, path)| *epoch == lowest_after(&log) || !held.contains(path)));
    horizon::everything_is_right(&log).await;
    // The control: without asking, the next thing that the consumer needs is gone, and it says so.
    epochs(&mut log, 6).await;
    run(&log, &log.store, collecting(), without(Rule::ConsumersHoldSegments)).await.expect("collects");
    epochs(&mut log, 1).await;
    ends_with(&log, &far, GIVEN_UP).await;
}

fn lowest_after(log: &TestLog) -> u64 {
    log.next_place().epoch
}

#[tokio::test]
async fn the_cache_store_is_trimmed_up_to_the_lowest_cursor_and_no_further() {
    let (mut log, far) = begin(33).await;
    let near = empty_vault(&log).await;
    epochs(&mut log, 3).await;
    promote(&log, &far).await;
    let cursor = lowest(&log).await;
    epochs(&mut log, 4).await;
    let before = slots(&log).await;
    run(&log, &both(&log, &near), collecting(), ApplierRules::ALL).await.expect("trims");
    let after = slots(&log).await;
    let needed: BTreeSet<_> = before.iter().filter(|(epoch, _)| *epoch >= cursor).cloned().collect();
    assert!(cursor > 1 && after == needed, "{cursor}: {after:?}");
    // The one that was away catches up, and then the other one trims on, up to the epoch that both are in.
    promote(&log, &far).await;
    run(&log, &both(&log, &near), collecting(), ApplierRules::ALL).await.expect("trims");
    assert_eq!(slots(&log).await.iter().map(|(epoch, _)| *epoch).min(), Some(log.next_place().epoch));
    assert_eq!(judge(&log, &far).await, Ok(log.last()));
    let report = verify(&both(&log, &near), log.keys.clone(), &log.machine, VerifyOptions::default()).await;
    assert!(report.expect("verified").clean());
    // A process server goes on, and so do both.
    epochs(&mut log, 2).await;
    promote(&log, &far).await;
    run(&log, &both(&log, &near), collecting(), ApplierRules::ALL).await.expect("trims");
    assert_eq!(judge(&log, &far).await, Ok(log.last()));
    // The cache store alone is no history any more, nor one to begin with, and says so.
    let options = LoadOptions { settle: Duration::ZERO, ..LoadOptions::default() };
    let alone = History::load(&log.store, log.keys.clone(), &log.machine, options).await.err().expect("trimmed");
    assert!(matches!(alone, RecoverError::Trimmed { .. }), "{alone}");
    let late = empty_vault(&log).await;
    ends_with(&log, &late, GIVEN_UP).await;
    let epochs_left = late.list("machine").await.expect("listed");
    assert!(epochs_left.is_empty(), "no epoch is spent: {epochs_left:?}");
}

#[tokio::test]
async fn a_consumer_that_is_forgotten_holds_nothing_and_is_told_when_it_comes_back() {
    let (mut log, far) = begin(35).await;
    let near = empty_vault(&log).await;
    epochs(&mut log, 3).await;
    promote(&log, &far).await;
    let (name, had) = (*state(&log).await.consumers.keys().next().expect("one"), log.last());
    epochs(&mut log, 4).await;
    run(&log, &both(&log, &near), collecting(), ApplierRules::ALL).await.expect("trims");
    assert!(list(&log).forget(name).await.expect("forgotten") && !list(&log).forget(name).await.expect("gone"));
    run(&log, &both(&log, &near), collecting(), ApplierRules::ALL).await.expect("trims");
    assert_eq!(state(&log).await.trimmed, log.next_place().epoch - 1);
    ends_with(&log, &far, GIVEN_UP).await;
    assert_eq!(judge(&log, &far).await, Ok(had), "what it has it keeps");
    assert_eq!(state(&log).await.consumers.len(), 1);
    // One that is forgotten and needs nothing that was given up states itself again.
    let name = *state(&log).await.consumers.keys().next().expect("one");
    assert!(list(&log).forget(name).await.expect("forgotten"));
    run(&log, &both(&log, &near), promoting(), ApplierRules::ALL).await.expect("promotes");
    assert_eq!(state(&log).await.consumers.keys().collect::<Vec<_>>(), [&name]);
}

fn consumer(epoch: u64) -> Consumer {
    Consumer { epoch, slot: 1, seq: Seq(1), stated: Timestamp(1), vault: "memory".to_owned() }
}

/// A collector has asked, and deletes later; a consumer comes in between. Whoever is first in the list decides.
#[tokio::test]
async fn whoever_comes_between_asking_and_deleting_is_told() {
    for (asks_first, rules) in
        [(true, Rules::ALL), (false, Rules::ALL), (true, Rules::without(Rule::TrimmedBeforeDeleted))]
    {
        let (mut log, far) = begin(37).await;
        epochs(&mut log, 3).await;
        let (collector, wanted) = (list(&log), log.next_place().epoch - 1);
        let comes = async |log: &TestLog| {
            list(log).state(format::consumers::ConsumerId([1; 8]), &consumer(0)).await.expect("answered")
        };
        let (through, answer) = match asks_first {
            true => {
                let through = agree(&collector, wanted, rules).await.expect("asked");
                (through, comes(&log).await)
            }
            false => {
                let answer = comes(&log).await;
                (agree(&collector, wanted, rules).await.expect("asked"), answer)
            }
        };
        let lies_there: BTreeSet<_> = slots(&log).await;
        assert!(lies_there.iter().any(|(epoch, _)| *epoch == 1), "everything is still there");
        for (_, path) in lies_there.iter().filter(|(epoch, _)| *epoch <= through) {
            log.store.delete(path).await.expect("deleted");
        }
        let kept = slots(&log).await == lies_there;
        match (rules.hold(Rule::TrimmedBeforeDeleted), asks_first) {
            (true, true) => {
                assert_eq!((answer, kept), (Err(Refused::Trimmed(wanted)), false));
                ends_with(&log, &far, GIVEN_UP).await;
            }
            (true, false) => {
                assert_eq!((answer, through, kept), (Ok(()), 0, true));
                promote(&log, &far).await;
                assert_eq!(judge(&log, &far).await, Ok(log.last()));
            }
            // Careless: who was taken for a consumer misses what it needs.
            (false, _) => assert_eq!((answer, kept), (Ok(()), false)),
        }
    }
}

/// An applier without a vault store has its history where the stream is.
#[tokio::test]
async fn nothing_is_trimmed_where_there_is_history_and_no_history_begins_where_something_was_trimmed() {
    let (mut log, far) = begin(39).await;
    epochs(&mut log, 3).await;
    run(&log, &log.store, promoting(), ApplierRules::ALL).await.expect("promotes");
    let before = slots(&log).await;
    run(&log, &both(&log, &far), collecting(), ApplierRules::ALL).await.expect("promotes");
    assert_eq!((slots(&log).await, state(&log).await.trimmed), (before, 0));
    horizon::everything_is_right(&log).await;

    // The other way round: trimmed, and a manifest log begins before anything is deleted.
    let (mut log, far) = begin(41).await;
    epochs(&mut log, 3).await;
    run(&log, &both(&log, &far), promoting(), ApplierRules::ALL).await.expect("promotes");
    let (before, wanted) = (slots(&log).await, log.next_place().epoch - 1);
    assert_eq!(agree(&list(&log), wanted, Rules::ALL).await.expect("asked"), wanted);
    let refused = run(&log, &log.store, promoting(), ApplierRules::ALL).await.expect_err("it may be gone");
    assert!(refused.contains(GIVEN_UP), "{refused}");
    assert!(log.store.list("machine/db/manifest").await.expect("listed").is_empty(), "no epoch is spent");
    // It was faster than the look before its own epoch.
    let owner = manifest::ManifestOwner::attach(&log.store, &log.keys, &log.machine, LogRules::ALL).await;
    drop(owner.expect("attached"));
    run(&log, &both(&log, &far), collecting(), ApplierRules::ALL).await.expect("promotes");
    assert_eq!(slots(&log).await, before, "it may have promoted what it found");
}

/// One random life. `history` says whether an applier without a vault store lives there, too. Gives how many came too late, and the last
/// epoch that was given up. Errors: what a consumer cannot promote, or what is wrong with its vault store.
async fn random_life(seed: u64, history: bool, rules: ApplierRules) -> Result<(u64, u64), String> {
    let (mut log, first) = begin(seed).await;
    let (mut rng, mut vaults, mut refused) = (Rng(seed ^ 0xc0), vec![both(&log, &first)], 0);
    run(&log, &vaults[0], promoting(), rules).await?;
    if history {
        run(&log, &log.store, promoting(), rules).await?;
    }
    for _ in 0..14 {
        let one = &vaults[rng.below(vaults.len() as u64) as usize];
        match rng.below(8) {
            0..=2 => epochs(&mut log, 1 + rng.below(2) as u32).await,
            // One that comes late is taken or told.
            3 => {
                let late = both(&log, &empty_vault(&log).await);
                match run(&log, &late, promoting(), rules).await {
                    Ok(()) => vaults.push(late),
                    Err(error) if error.contains(GIVEN_UP) && state(&log).await.trimmed > 0 => refused += 1,
                    Err(error) => return Err(error),
                }
            }
            4 if history => run(&log, &log.store, collecting(), rules).await?,
            4 | 5 => run(&log, one, collecting(), rules).await?,
            6 => run(&log, one, promoting(), rules).await?,
            _ => dies(&log, one, rng.below(12), rules).await?,
        }
    }
    for store in &vaults {
        run(&log, store, promoting(), rules).await?;
        let report = verify(store, log.keys.clone(), &log.machine, VerifyOptions::default()).await;
        let report = report.map_err(|error| error.to_string())?;
        if promoted_seq(&log, &store.vault()).await != log.last() || !report.clean() {
            return Err(format!("not everything is promoted, or {:?}", report.damages));
        }
    }
    if history {
        run(&log, &log.store, promoting(), rules).await?;
        horizon::everything_is_right(&log).await;
    }
    Ok((refused, state(&log).await.trimmed))
}

/// An applier collects, and dies somewhere on its way.
async fn dies(log: &TestLog, store: &Store, passed: u64, rules: ApplierRules) -> Result<(), String> {
    let dead = die_at(&["applier-promote-", "applier-commit-", "applier-collect-"], passed);
    let applier = horizon::start_on(collecting(), log, store.clone(), rules).await;
    let ended = tokio::select! {
        biased;
        () = dead.notified() => Ok(()),
        ended = rest(log, store, true, &applier) => ended,
    };
    probe::on_this_thread(None);
    ended
}

#[tokio::test]
async fn whatever_happens_no_consumer_misses_anything() {
    let asked = std::env::var("FARSHORE_CONSUMERS_SEEDS").ok();
    let seeds = asked.map_or(SEEDS, |n| n.parse().expect("FARSHORE_CONSUMERS_SEEDS is a number"));
    for history in [false, true] {
        let (mut refused, mut trimmed) = (0, 0);
        for seed in 0..seeds {
            let life = random_life(seed, history, ApplierRules::ALL).await;
            let (late, last) = life.unwrap_or_else(|error| panic!("seed {seed}, history {history}: {error}"));
            (refused, trimmed) = (refused + late, trimmed + last);
        }
        assert!(refused > 0 && trimmed > 0, "history {history}: {refused}, {trimmed}: the test shows little");
    }
}

/// The control: the same lives with collectors that do not ask for cursors.
#[tokio::test]
async fn without_cursors_some_consumer_misses_something() {
    for history in [false, true] {
        let mut caught = 0;
        for seed in 0..SEEDS {
            caught += u32::from(random_life(seed, history, without(Rule::ConsumersHoldSegments)).await.is_err());
        }
        assert!(caught > 0, "history {history}: nothing is noticed");
    }
}
