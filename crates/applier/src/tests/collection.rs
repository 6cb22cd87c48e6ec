//! Prefix GC (rule 6 of the epoch log): random lives with voids, dead epochs and late PUTs; a crash after any deletion;
//! zombies on both logs; and what is caught when the rule, or what it keeps, is taken away.
//!
//! The oracle is the model of [`TestLog`]: every position reads the same bytes before, during and after, `verify` is clean,
//! and a writer finds the log's end with and without a manifest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use format::manifest::{Drain, ManifestCommit, Promoted};
use format::object::LogKind;
use model::{Selector, Seq};
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use store::{
    CollectError, Fault, FaultStore, Faults, LogEnd, LogPosition, LogRules, Plan, Request, Store, StoreError, Why,
};

use super::{contents, load, open};
use crate::ApplierError;
use crate::manifest::{self, ManifestOwner};
use crate::recover::{RecoverError, VerifyOptions, VerifyReport, stream_log, verify};
use crate::segments;
use crate::stream::{Found, StreamReader};
use crate::testing::{Rng, TestLog, vault, vault_in};

/// Random lives, well under a second; `FARSHORE_COLLECTION_SEEDS` asks for more.
const SEEDS: u64 = 40;

fn seeds() -> u64 {
    let asked = std::env::var("FARSHORE_COLLECTION_SEEDS").ok();
    asked.map_or(SEEDS, |n| n.parse().expect("FARSHORE_COLLECTION_SEEDS is a number"))
}

/// Every object that a test deletes at most in one pass.
const ALL: usize = 1 << 20;

/// Opens epochs that are empty, dead, or opened too late, and leaves slots of fenced writers behind their ends.
async fn live_hard(log: &mut TestLog, epochs: u32) {
    for _ in 0..epochs {
        let segments = 1 + log.rng.below(3) as u32;
        log.live(segments).await;
        let voids = log.rng.below(3);
        let leftovers: Vec<_> = (0..voids).map(|_| log.void_segment()).collect();
        let late = match log.rng.below(3) {
            0 => Some(log.stream().attach().await.expect("attached")),
            _ => None,
        };
        match log.rng.below(2) {
            0 => log.reattach().await,
            _ => log.reattach_blind().await,
        }
        // Two segments for one slot: the second PUT finds other bytes there, as it would for a real writer.
        for (path, parts) in leftovers {
            log.store.create(&path, parts).await.expect("lands late");
        }
        if let Some(late) = late {
            assert!(matches!(late.open(Vec::new()).await, Err(StoreError::Fenced { .. })));
        }
    }
    log.random();
    log.commit().await;
}

async fn own(log: &TestLog) -> ManifestOwner {
    ManifestOwner::attach(&log.store, &log.keys, &log.machine, LogRules::ALL).await.expect("attached")
}

fn position_of(segment: &Promoted) -> LogPosition {
    LogPosition { epoch: segment.epoch, slot: segment.slot }
}

/// The next segments behind what the owner has folded, at most `count`.
async fn next_commit(owner: &ManifestOwner, log: &TestLog, count: usize) -> ManifestCommit {
    let (epoch, slot) = owner.manifest().folded();
    let mut reader = StreamReader::behind(log.stream(), LogEnd::default(), LogRules::ALL);
    let mut commit = ManifestCommit::default();
    while let Found::Entry(entry) = reader.next().await.expect("read") {
        if entry.position.slot == 0 || entry.position <= (LogPosition { epoch, slot }) || commit.segments.len() == count
        {
            continue;
        }
        let table = segments::table(&log.keys, &entry.header, &entry.bytes).expect("whole");
        commit.drains.extend(table.records.iter().filter_map(|record| Drain::of(record.seq, &record.body)));
        commit.segments.push(Promoted {
            id: entry.header.id,
            epoch: entry.position.epoch,
            slot: entry.position.slot,
            hash: entry.hash,
            head: entry.header.head,
            bytes: entry.header.total_bytes,
            shared: entry.header.shared,
        });
    }
    commit
}

/// Promotes everything but the last `but` segments, in commits of a few.
async fn promote(owner: &mut ManifestOwner, log: &TestLog, but: usize) {
    let ManifestCommit { segments: mut left, mut drains, .. } = next_commit(owner, log, ALL).await;
    left.truncate(left.len().saturating_sub(but));
    for segments in left.chunks(4) {
        let end = segments.last().expect("not empty").head.position.seq;
        let later = drains.split_off(drains.partition_point(|drain| drain.seq <= end));
        let segments = segments.to_vec();
        owner.begin(ManifestCommit { segments, drains, ..ManifestCommit::default() });
        drains = later;
        owner.finish().await.expect("acknowledged");
    }
}

async fn plan(owner: &ManifestOwner, log: &TestLog) -> Plan {
    owner.writer().plan_collection(&log.stream(), None).await.expect("no doubt")
}

async fn report(log: &TestLog) -> VerifyReport {
    verify(&log.store, log.keys.clone(), &log.machine, VerifyOptions::default()).await.expect("verified")
}

/// The oracle; looks at about `samples` positions.
async fn assert_intact(log: &TestLog, samples: u64, what: &str) {
    let history = load(log).await;
    assert_eq!(history.head().position.seq, log.last(), "{what}");
    let step = 1 + log.last().0 / samples;
    let valid = |seq: &u64| log.model.valid[*seq as usize];
    for seq in (0..=log.last().0).rev().step_by(step as usize).filter(valid) {
        let found = contents(&open(&history, Seq(seq)).await).await;
        assert!(found == log.model.at[seq as usize], "{what}: seq {seq}");
    }
    let report = report(log).await;
    assert!(report.clean(), "{what}: {:?}", report.damages);
}

/// Takes the object away and keeps what it was.
async fn take(store: &Store, path: &str, gone: &mut Vec<(String, Bytes)>) {
    gone.push((path.to_owned(), store.get(path).await.expect("read").expect("listed a moment ago")));
    store.delete(path).await.expect("deleted");
}

fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i as u64 + 1) as usize);
    }
}

/// Every accepted segment, in order, as far as the reader comes.
async fn read_on(reader: &mut StreamReader, count: u64, seen: &mut Vec<LogPosition>) {
    for _ in 0..count {
        let Found::Entry(entry) = reader.next().await.expect("read") else { return };
        if entry.position.slot > 0 {
            seen.push(entry.position);
        }
    }
}

#[tokio::test]
async fn every_position_reads_the_same_whatever_part_of_a_collection_was_done() {
    let mut deleted = [0u64; 3];
    for seed in 0..seeds() {
        let (store, keys) = vault().await;
        let mut log = TestLog::begin(&store, &keys, "db", seed).await;
        let mut rng = Rng(seed ^ 0x9c);
        live_hard(&mut log, 5).await;
        // An applier that died, with its commits, and the one that goes on.
        promote(&mut own(&log).await, &log, 6).await;
        let mut owner = own(&log).await;
        promote(&mut owner, &log, rng.below(3) as usize).await;
        let mut plan = plan(&owner, &log).await;
        let (mut reader, mut seen) = (StreamReader::behind(log.stream(), LogEnd::default(), LogRules::ALL), Vec::new());
        read_on(&mut reader, rng.below(9), &mut seen).await;
        shuffle(&mut plan.garbage, &mut rng);
        let mut gone = Vec::new();
        for (done, garbage) in plan.garbage.iter().enumerate() {
            take(&store, &garbage.path, &mut gone).await;
            deleted[garbage.why as usize] += 1;
            read_on(&mut reader, rng.below(2), &mut seen).await;
            if done % 3 == 0 {
                let what = format!("seed {seed}, after {done}: {}", plan.explain(garbage));
                assert_intact(&log, 3, &what).await;
                if rng.below(2) == 0 {
                    log.reattach_blind().await;
                } else {
                    log.reattach().await;
                }
                log.random();
                log.commit().await;
            }
        }
        assert_intact(&log, 1000, &format!("seed {seed}, all gone")).await;
        read_on(&mut reader, u64::MAX, &mut seen).await;
        promote(&mut owner, &log, 0).await;
        let all: Vec<_> = owner.manifest().segments.iter().map(position_of).collect();
        assert_eq!(seen, all, "seed {seed}: a reader that was under way");
        // PUTs that land once more bring back what was there, or void bytes: swept by whoever owns the log then.
        shuffle(&mut gone, &mut rng);
        let (back, _) = gone.split_at(gone.len() / 2);
        for (path, bytes) in back {
            log.store.create(path, vec![bytes.clone()]).await.expect("lands late");
        }
        assert_intact(&log, 3, &format!("seed {seed}, half is back")).await;
        let owner = own(&log).await;
        let again = super::collection::plan(&owner, &log).await;
        let found: BTreeSet<_> = again.garbage.iter().map(|garbage| garbage.path.as_str()).collect();
        assert!(back.iter().all(|(path, _)| found.contains(path.as_str())), "seed {seed}: late PUTs are found");
        let first = owner.writer().collect(&again, 2).await.expect("collected");
        assert_eq!((first.objects(), first.left), (2, again.garbage.len() as u64 - 2));
        let rest = owner.writer().collect(&again, ALL).await.expect("again, over what is gone");
        assert_eq!((rest.objects(), rest.left), (again.garbage.len() as u64, 0));
        assert_eq!(super::collection::plan(&owner, &log).await.garbage, []);
        assert_intact(&log, 1000, &format!("seed {seed}, swept")).await;
        log.reattach_blind().await;
        log.reattach().await;
    }
    println!("{} lives: {} voids, {} openings, {} manifest slots deleted", seeds(), deleted[0], deleted[1], deleted[2]);
    assert!(deleted.iter().all(|count| *count > seeds()), "voids, openings and manifests were all there: {deleted:?}");
}

#[tokio::test]
async fn epoch_objects_and_named_segments_are_never_in_a_plan_and_each_deletion_is_explained() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 40).await;
    live_hard(&mut log, 6).await;
    promote(&mut own(&log).await, &log, 3).await;
    let mut owner = own(&log).await;
    promote(&mut owner, &log, 1).await;
    let plan = plan(&owner, &log).await;
    let named: BTreeSet<_> =
        owner.manifest().segments.iter().map(|segment| manifest::promoted_path(&log.machine, segment)).collect();
    let (folded, _) = owner.manifest().folded();
    let bound = segments::path(&log.machine, LogKind::Stream, LogPosition { epoch: folded, slot: 0 });
    for garbage in &plan.garbage {
        assert!(!garbage.path.contains("/epoch/") && !named.contains(&garbage.path), "{garbage:?}");
        assert!(garbage.why == Why::OldManifest || garbage.path < bound, "{garbage:?} is not below epoch {folded}");
        assert!(plan.explain(garbage).starts_with(&format!("{}: ", garbage.path)));
    }
    let of = |why| plan.garbage.iter().filter(|garbage| garbage.why == why).count();
    assert!(of(Why::Void) > 0 && of(Why::FoldedOpening) > 0 && of(Why::OldManifest) > 0);
    assert_eq!(store.list("machine/db").await.expect("listed").len() - plan.garbage.len(), {
        owner.writer().collect(&plan, ALL).await.expect("collected");
        store.list("machine/db").await.expect("listed").len()
    });
}

#[tokio::test]
async fn a_fenced_owner_deletes_nothing_and_what_it_had_planned_is_still_garbage() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 50).await;
    live_hard(&mut log, 5).await;
    promote(&mut own(&log).await, &log, 8).await;
    let mut zombie = own(&log).await;
    promote(&mut zombie, &log, 4).await;
    let stale = plan(&zombie, &log).await;
    let mut owner = own(&log).await;
    live_hard(&mut log, 2).await;
    promote(&mut owner, &log, 0).await;
    let before = store.list("machine/db").await.expect("listed");
    let refused = zombie.writer().collect(&stale, ALL).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    let refused = zombie.writer().plan_collection(&log.stream(), None).await;
    assert!(matches!(refused, Err(CollectError::Store(StoreError::Fenced { .. }))), "{refused:?}");
    assert_eq!(store.list("machine/db").await.expect("listed"), before);
    let fresh = plan(&owner, &log).await;
    let fresh: BTreeSet<_> = fresh.garbage.iter().map(|garbage| &garbage.path).collect();
    for garbage in &stale.garbage {
        assert!(fresh.contains(&garbage.path), "{garbage:?}");
        // A delete of the zombie that was under way.
        store.delete(&garbage.path).await.expect("deleted");
    }
    assert_intact(&log, 50, "after the zombie").await;
    log.reattach_blind().await;
}

/// Two owners, one of them replaced in the middle of its collection, and a reader and a writer beside them; every
/// request takes a random time.
#[tokio::test]
async fn an_owner_replaced_while_it_collects_does_no_harm() {
    let mut fenced = 0;
    for seed in 60..66 {
        let (store, keys) = vault().await;
        let mut log = TestLog::begin(&store, &keys, "db", seed).await;
        live_hard(&mut log, 3).await;
        for slot in 100..250 {
            let path = segments::path(&log.machine, LogKind::Stream, LogPosition { epoch: 1, slot });
            store.create(&path, vec![Bytes::from_static(b"void")]).await.expect("put");
        }
        promote(&mut own(&log).await, &log, 5).await;
        let faults = Faults::new(seed);
        faults.set_delay(Duration::ZERO, Duration::from_micros(1500));
        let slow = Store::from_object_store(std::sync::Arc::new(FaultStore::new(store.object_store().clone(), faults)));
        let stream = stream_log(&slow, &keys, &log.machine);
        let mut first = ManifestOwner::attach(&slow, &keys, &log.machine, LogRules::ALL).await.expect("attached");
        promote(&mut first, &log, 3).await;
        let old = async {
            let plan = first.writer().plan_collection(&stream, None).await?;
            Ok::<_, CollectError>(first.writer().collect(&plan, ALL).await?)
        };
        let new = async {
            let mut second = ManifestOwner::attach(&slow, &keys, &log.machine, LogRules::ALL).await.expect("attached");
            promote(&mut second, &log, 0).await;
            let plan = second.writer().plan_collection(&stream, None).await.expect("no doubt");
            second.writer().collect(&plan, ALL).await.expect("collected")
        };
        let reading = async {
            let mut seen = Vec::new();
            read_on(&mut StreamReader::behind(stream.clone(), LogEnd::default(), LogRules::ALL), u64::MAX, &mut seen)
                .await;
            seen
        };
        let (old, _, seen) = tokio::join!(old, new, reading);
        match old {
            Ok(_) => {}
            Err(CollectError::Store(StoreError::Fenced { .. })) => fenced += 1,
            Err(error) => panic!("seed {seed}: {error}"),
        }
        let newest = manifest::read(&manifest::log(&store, &keys, &log.machine), LogRules::ALL).await.expect("read");
        assert_eq!(seen, newest.segments.iter().map(position_of).collect::<Vec<_>>(), "seed {seed}");
        assert_intact(&log, 20, &format!("seed {seed}")).await;
        log.reattach_blind().await;
    }
    assert!(fenced > 0, "no owner was replaced in time: the test shows little");
}

/// The zombie has put a commit that the next owner never saw: its manifest folds more than anything acknowledged.
async fn collect_by_an_unacknowledged_commit(rules: LogRules) -> (TestLog, Result<Plan, CollectError>) {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 70).await;
    live_hard(&mut log, 5).await;
    let mut zombie = ManifestOwner::attach(&store, &keys, &log.machine, rules).await.expect("attached");
    let first = next_commit(&zombie, &log, 1).await;
    zombie.begin(first);
    zombie.finish().await.expect("acknowledged");
    own(&log).await;
    let rest = next_commit(&zombie, &log, ALL).await;
    zombie.begin(rest);
    zombie.put_pending().await.expect("put");
    let planned = zombie.writer().plan_collection(&log.stream(), None).await;
    if let Ok(plan) = &planned {
        zombie.writer().collect(plan, ALL).await.expect("collected");
    }
    (log, planned)
}

#[tokio::test]
async fn deleting_before_the_manifest_is_acknowledged_is_refused_and_without_the_rule_loses_the_stream() {
    let (log, planned) = collect_by_an_unacknowledged_commit(LogRules::ALL).await;
    assert!(matches!(planned, Err(CollectError::Store(StoreError::Fenced { .. }))), "{planned:?}");
    assert_intact(&log, 20, "with the rule").await;

    let rules = LogRules { acknowledged_before_deleting: false, ..LogRules::ALL };
    let (log, planned) = collect_by_an_unacknowledged_commit(rules).await;
    assert!(planned.expect("planned").garbage.iter().any(|garbage| garbage.why == Why::FoldedOpening));
    let options = crate::recover::LoadOptions { settle: Duration::ZERO, ..Default::default() };
    let lost = crate::recover::History::load(&log.store, log.keys.clone(), &log.machine, options).await;
    assert!(matches!(lost, Err(RecoverError::Store(StoreError::Missing { .. }))), "the loss is noticed");
    assert!(!report(&log).await.clean());
}

/// Why a collection leaves the folded epoch's opening: a process server finds the log's end by it.
#[tokio::test]
#[should_panic(expected = "everything put is accepted")]
async fn without_the_opening_of_the_folded_epoch_a_writer_without_a_manifest_is_lost() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 75).await;
    log.reattach().await;
    log.random();
    let path = log.commit().await;
    promote(&mut own(&log).await, &log, 0).await;
    let opening = format!("{}{:016x}", &path[..path.len() - 16], 0);
    assert!(store.get(&opening).await.expect("read").is_some());
    store.delete(&opening).await.expect("deleted");
    log.reattach_blind().await;
}

#[tokio::test]
async fn a_doubt_stops_a_collection_before_its_first_deletion() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 80).await;
    live_hard(&mut log, 4).await;
    let mut owner = own(&log).await;
    promote(&mut owner, &log, 0).await;
    let doubt = async || owner.writer().plan_collection(&log.stream(), None).await.expect_err("a doubt").to_string();
    let put = async |path: &str, bytes: Vec<u8>| {
        store.object_store().put(&Path::from(path), bytes.into()).await.expect("put");
    };

    put("machine/db/stream/seg/readme", b"?".to_vec()).await;
    assert!(doubt().await.starts_with("machine/db/stream/seg/readme is no object of a log"));
    store.delete("machine/db/stream/seg/readme").await.expect("deleted");

    let named = manifest::promoted_path(&log.machine, &owner.manifest().segments[1]);
    let whole = store.get(&named).await.expect("read").expect("there").to_vec();
    store.delete(&named).await.expect("deleted");
    assert_eq!(doubt().await, format!("{named} is named by the manifest and not listed: run verify"));
    put(&named, whole).await;

    let at = LogPosition { epoch: owner.epoch(), slot: 1 };
    let commit = segments::path(&log.machine, LogKind::Manifest, at);
    let mut flipped = store.get(&commit).await.expect("read").expect("there").to_vec();
    flipped[500] ^= 1;
    let whole = store.get(&commit).await.expect("read").expect("there").to_vec();
    put(&commit, flipped).await;
    assert_eq!(doubt().await, format!("damaged object {commit}"));
    put(&commit, whole).await;
    assert!(!plan(&owner, &log).await.garbage.is_empty());
}

#[tokio::test]
async fn missing_and_swapped_segments_of_a_collected_prefix_are_named() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 90).await;
    live_hard(&mut log, 5).await;
    let mut owner = own(&log).await;
    promote(&mut owner, &log, 0).await;
    let plan = plan(&owner, &log).await;
    owner.writer().collect(&plan, ALL).await.expect("collected");
    assert_intact(&log, 20, "collected").await;
    let (folded, _) = owner.manifest().folded();
    let paths: Vec<_> = owner.manifest().segments.iter().filter(|segment| segment.epoch < folded).collect();
    let paths: Vec<_> = paths.iter().map(|segment| manifest::promoted_path(&log.machine, segment)).collect();
    let options = || crate::recover::LoadOptions { settle: Duration::ZERO, ..Default::default() };
    let stopped_by = async || {
        let loaded = crate::recover::History::load(&store, keys.clone(), &log.machine, options()).await;
        let opened = loaded.expect("loaded").resolve(&Selector::Latest, None).await;
        opened.expect_err("stopped").to_string()
    };
    let put = async |path: &str, bytes: Bytes| {
        store.object_store().put(&Path::from(path), bytes.into()).await.expect("put");
    };
    for path in &paths {
        let whole = store.get(path).await.expect("read").expect("there");
        store.delete(path).await.expect("deleted");
        assert_eq!(stopped_by().await, format!("object {path} is missing, though the manifest has promoted it"));
        let named: Vec<_> = report(&log).await.damages.into_iter().map(|damage| damage.path).collect();
        assert_eq!(named, std::slice::from_ref(path));
        put(path, whole).await;
    }
    let (a, b) = (&paths[0], &paths[paths.len() - 1]);
    let (first, second) = (store.get(a).await.expect("read"), store.get(b).await.expect("read"));
    put(a, second.expect("there")).await;
    put(b, first.expect("there")).await;
    assert_eq!(stopped_by().await, format!("damaged object {a}"));
    let named: Vec<_> = report(&log).await.damages.into_iter().map(|damage| damage.path).collect();
    assert_eq!(named, [a.clone(), b.clone()]);
}

/// A segment sealed anew in its old place, by somebody who has the key: its place, its records and its links are right,
/// and it is not the one that was promoted.
#[tokio::test]
async fn another_segment_in_the_place_of_a_promoted_one_is_refused() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 95).await;
    let (path, parts) = log.void_segment();
    log.random();
    assert_eq!(log.commit().await, path);
    log.reattach().await;
    log.random();
    log.commit().await;
    let mut owner = own(&log).await;
    promote(&mut owner, &log, 0).await;
    let plan = plan(&owner, &log).await;
    owner.writer().collect(&plan, ALL).await.expect("collected");
    let other: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
    store.object_store().put(&Path::from(path.as_str()), other.into()).await.expect("put");
    let mut reader = StreamReader::behind(log.stream(), LogEnd::default(), LogRules::ALL);
    let refused = loop {
        match reader.next().await {
            Ok(Found::Entry(_)) => {}
            Ok(_) => panic!("it was taken in"),
            Err(error) => break error,
        }
    };
    assert!(matches!(&refused, ApplierError::Store(StoreError::Damaged { path: found, .. }) if *found == path));
    assert!(report(&log).await.damages.iter().any(|damage| damage.path == path));
}

#[tokio::test]
async fn an_owner_that_renews_its_epoch_notices_who_came_in_between() {
    // The seed decides whether its epoch object lands before or after the other's.
    for seed in 0..8 {
        renew_and_be_overtaken(seed).await;
    }
}

async fn renew_and_be_overtaken(seed: u64) {
    let objects = Arc::new(InMemory::new());
    let faults = Faults::new(seed);
    let (store, keys) = vault_in(objects.clone()).await;
    let mut log = TestLog::begin(&store, &keys, "db", 4).await;
    let slow = Store::from_object_store(Arc::new(FaultStore::new(objects, faults.clone())));
    let mut first = ManifestOwner::attach(&slow, &keys, &log.machine, LogRules::ALL).await.expect("attached");
    first.renew().await.expect("nobody else is there");
    log.random();
    log.commit().await;
    // It has looked, and its epoch object is under way, when another owner comes and promotes.
    faults.fail_next(Request::Put, Fault::HangUntilReleased);
    let meddle = async {
        let mut second = own(&log).await;
        promote(&mut second, &log, 0).await;
        faults.release();
        second
    };
    let (renewed, second) = tokio::join!(first.renew(), meddle);
    let refused = renewed.expect_err("the other's commits are not in what we know");
    assert!(refused.fenced(), "{refused}");
    assert_eq!(own(&log).await.manifest(), second.manifest());
}
