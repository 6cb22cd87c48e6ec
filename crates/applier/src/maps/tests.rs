//! Maps against the model of [`TestLog`]: any position reads the same through maps and without them, for any size of
//! leaf; opening one takes a number of reads that grows with the logarithm of the history; and maps that lie are found.

use std::sync::Arc;
use std::time::Duration;

use format::manifest::ManifestCommit;
use format::map::{FANOUT, MapFacts, MapName, MapSource, MapWriter, Node};
use model::{DiskChange, Extent, MachineName, Selector, Seq};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use store::{CountingStore, LogRules, Store};

use super::{Maps, map_path, map_place};
use crate::manifest::{self, EPOCH_COMMITS, EPOCH_COMMITS_MAX, ManifestOwner};
use crate::recover::{History, LoadOptions, PointReader, RecoverError, VerifyOptions, verify};
use crate::testing::{Contents, TestLog, name, vault, vault_in};
use crate::tests::{contents, follow};

fn options(without_maps: bool) -> LoadOptions {
    LoadOptions { settle: Duration::ZERO, without_maps, ..LoadOptions::default() }
}

async fn history(log: &TestLog, without_maps: bool) -> Result<History, RecoverError> {
    History::load(&log.store, log.keys.clone(), &log.machine, options(without_maps)).await
}

async fn open(history: &History, seq: Seq) -> Result<PointReader, RecoverError> {
    let at = history.resolve(&Selector::Seq(seq), None).await?;
    history.open(&at).await
}

async fn nodes(log: &TestLog) -> Vec<Node> {
    let log = manifest::log(&log.store, &log.keys, &log.machine);
    manifest::read(&log, LogRules::ALL).await.expect("read").nodes
}

/// Everything the model says, through maps and without.
async fn every_position_is_right(log: &TestLog, what: &str) {
    for without_maps in [false, true] {
        let history = history(log, without_maps).await.expect("loaded");
        assert_eq!(history.head().position.seq, log.last(), "{what}");
        for seq in (1..=log.last().0).filter(|seq| log.model.valid[*seq as usize]) {
            let point = open(&history, Seq(seq)).await.unwrap_or_else(|e| panic!("{what}, seq {seq}: {e}"));
            assert!(contents(&point).await == log.model.at[seq as usize], "{what}, seq {seq}, {without_maps}");
            assert_eq!(point.at().digest, log.model.digests[seq as usize], "{what}, seq {seq}");
            let time = Selector::Time(log.model.times[seq as usize]);
            let by_time = history.resolve(&time, None).await.expect("a valid time").position.seq;
            assert!(by_time >= Seq(seq) && log.model.times[by_time.0 as usize] == log.model.times[seq as usize]);
        }
    }
}

/// A life with drains, disks that grow, shrink, leave and come back, and restarts of the writer.
async fn life(log: &mut TestLog, segments: u32) {
    for _ in 0..segments {
        match log.rng.below(12) {
            0 => {
                let lost_after = log.last_valid();
                log.drain_begin(lost_after);
                log.random();
                log.drain_end();
            }
            1 => {
                log.disk("data", 24 << 10, DiskChange::Resized);
                log.disk("data", 48 << 10, DiskChange::Resized);
            }
            2 => {
                log.disk("data", 48 << 10, DiskChange::Removed);
                log.random();
                log.disk("data", 48 << 10, DiskChange::Added);
            }
            3 => log.reattach().await,
            _ => {}
        }
        (0..1 + log.rng.below(4)).for_each(|_| _ = log.random());
        log.commit().await;
    }
}

#[tokio::test]
async fn positions_read_the_same_through_maps_of_any_size() {
    for seed in 0..24 {
        let (store, keys) = vault().await;
        let mut log = TestLog::begin(&store, &keys, "db", seed).await;
        let leaf = 1 + seed as usize % 3;
        for part in 0..3 {
            life(&mut log, 12).await;
            follow(&log, leaf).await;
            every_position_is_right(&log, &format!("seed {seed}, part {part}")).await;
        }
        let nodes = nodes(&log).await;
        assert!(leaf > 1 || nodes.iter().any(|node| node.level == 1), "seed {seed}: {nodes:?}");
        let report = verify(&store, log.keys.clone(), &log.machine, VerifyOptions::default()).await.expect("verified");
        assert!(report.clean(), "seed {seed}: {report:?}");
    }
}

#[tokio::test]
async fn a_disk_that_comes_back_and_one_that_grows_show_nothing_of_what_lies_below() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 1).await;
    let fill = |log: &mut TestLog, byte| log.write("data", 0, vec![byte; 48 << 10]);
    fill(&mut log, 7);
    log.commit().await;
    log.disk("data", 48 << 10, DiskChange::Removed);
    log.commit().await;
    log.disk("data", 48 << 10, DiskChange::Added);
    log.commit().await;
    fill(&mut log, 9);
    log.commit().await;
    log.disk("data", 8 << 10, DiskChange::Resized);
    log.commit().await;
    log.disk("data", 48 << 10, DiskChange::Resized);
    log.commit().await;
    (0..2 * FANOUT).for_each(|_| _ = log.random());
    log.commit().await;
    follow(&log, 1).await;
    every_position_is_right(&log, "one segment a leaf").await;
}

/// Reads and bytes to load, open a position and read its first 4 KiB.
async fn cost(log: &TestLog, counting: &CountingStore, seq: Seq) -> (u64, u64) {
    let store = Store::from_object_store(Arc::new(counting.clone()));
    counting.take();
    let history = History::load(&store, log.keys.clone(), &log.machine, options(false)).await.expect("loaded");
    let point = open(&history, seq).await.expect("opened");
    let disk = point.disk(&name("root")).expect("there");
    disk.read(Extent::new(0, 4096).expect("in range")).await.expect("read");
    counting.take()
}

#[tokio::test]
async fn opening_costs_no_more_than_the_logarithm_of_the_history() {
    const LEAF: usize = 4;
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let counting = CountingStore::new(inner.clone());
    let (store, keys) = vault_in(inner).await;
    let mut log = TestLog::begin(&store, &keys, "db", 5).await;
    // One disk alone, so that the model stays small.
    log.disk("data", 48 << 10, DiskChange::Removed);
    let oldest = log.random();
    let mut costs = Vec::new();
    let mut segments = 0;
    for leaves in [FANOUT, FANOUT * FANOUT, 4 * FANOUT * FANOUT] {
        while segments < leaves * LEAF {
            log.random();
            log.commit().await;
            segments += 1;
        }
        follow(&log, LEAF).await;
        let newest = log.last_valid();
        let middle = Seq(newest.0 / 2);
        let mut at = Vec::new();
        for seq in [oldest, middle, newest] {
            at.push(cost(&log, &counting, seq).await);
        }
        println!("{segments} segments: oldest {:?}, middle {:?}, newest {:?} (reads, bytes)", at[0], at[1], at[2]);
        costs.push(at);
    }
    // Whatever the history: the manifest's opening and its commits, a leaf's worth of tables here and behind the last node.
    // With each level: an index down the tree and seven to the left of the way, a page each, and probes for epochs.
    let (commits, tables) = (EPOCH_COMMITS + 16, 2 * (LEAF as u64 + 2) * 2);
    for (levels, at) in [2u64, 3, 4].into_iter().zip(&costs) {
        for (reads, bytes) in at {
            let most = 30 + commits + tables + levels * (2 * FANOUT as u64 + 4);
            assert!(*reads <= most && *bytes <= most * 1024, "more than {most} reads: {costs:?}");
        }
    }
    // The control: without maps everything is read.
    counting.take();
    let store = Store::from_object_store(Arc::new(counting.clone()));
    History::load(&store, keys, &log.machine, options(true)).await.expect("loaded");
    let (reads, _) = counting.take();
    assert!(reads > segments as u64, "{reads} reads of {segments} segments");
}

/// A disk of that size, its first block written, then scattered ones: in 64 leaves that are merged into one map, and one leaf more.
async fn scattered(inner: Arc<dyn ObjectStore>, size: u64) -> TestLog {
    const LEAF: usize = 4;
    let (store, keys) = vault_in(inner).await;
    let mut log = TestLog::new(store, keys, "db", 6).await;
    log.model.blind = true;
    log.disk("root", size, DiskChange::Added);
    log.drain_begin(Seq(0));
    log.write("root", 0, vec![1; 4096]);
    log.drain_end();
    log.commit().await;
    for _ in 1..(FANOUT * FANOUT + 1) * LEAF {
        // So many that tables outweigh the one page of a map, as they do in real segments.
        for _ in 0..192 {
            let (block, byte) = (log.rng.below(size / 4096), log.rng.below(250) as u8);
            log.write("root", block * 4096, vec![byte; 4096]);
        }
        log.commit().await;
    }
    follow(&log, LEAF).await;
    log
}

/// The disk's size is none of an opening's business, nor is a point's age where both lie in a full leaf: the oldest has the way down
/// the tree to go, two merges, and finds the block in its leaf; the newest has no way to go, and reads index and page of the map
/// below its leaf. The control: from the middle of the history there are both.
#[tokio::test]
async fn opening_costs_the_same_for_any_size_of_disk_and_any_age_of_point() {
    let mut costs = Vec::new();
    for gib in [2u64, 200] {
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let counting = CountingStore::new(inner.clone());
        let log = scattered(inner, gib << 30).await;
        let points = history(&log, false).await.expect("loaded").points().await.expect("points").points;
        let (oldest, newest) = (points[0].seq, points[points.len() - 1].seq);
        assert!(oldest.0 < 8 && newest.0 > log.last().0 - 64, "{oldest} and {newest} of {}", log.last());
        costs.push([cost(&log, &counting, oldest).await, cost(&log, &counting, newest).await]);
        let middle = cost(&log, &counting, Seq(newest.0 / 2)).await;
        assert!(middle.0 > costs[0][0].0, "a way down and maps below cost reads: {middle:?}, {costs:?}");
    }
    println!("oldest and newest point of 2 GiB and 200 GiB, (reads, bytes): {costs:?}");
    let [[old, new], [large_old, large_new]] = costs[..] else { unreachable!("two sizes") };
    for (small, large) in [(old, large_old), (new, large_new)] {
        assert_eq!(small.0, large.0, "reads do not depend on the size: {costs:?}");
        assert!(small.1.abs_diff(large.1) * 5 <= small.1.min(large.1), "bytes neither: {costs:?}");
    }
    assert_eq!(old.0, new.0, "reads do not depend on the age: {costs:?}");
    assert!(old.1.abs_diff(new.1) * 5 <= old.1.min(new.1), "bytes neither: {costs:?}");
}

/// What lies behind a position is not read for it, but for drains, which may take it back.
#[tokio::test]
async fn an_old_position_needs_nothing_of_the_tail_but_its_drains() {
    for processed in [false, true] {
        let inner = Arc::new(InMemory::new());
        let (store, keys) = vault_in(inner.clone()).await;
        let mut log = TestLog::begin(&store, &keys, "db", 7).await;
        for _ in 0..11 {
            (0..4).for_each(|_| _ = log.random());
            log.commit().await;
        }
        follow(&log, 4).await;
        let mapped = nodes(&log).await.last().expect("maps").end.head.position.seq;
        assert_eq!(mapped, log.last(), "everything is in maps");
        log.drain_begin(Seq(mapped.0 - 10));
        log.random();
        log.drain_end();
        let drain = log.commit().await;
        log.random();
        log.commit().await;
        if processed {
            follow(&log, 4).await;
        }
        log.random();
        log.commit().await;
        let what = format!("processed: {processed}");
        every_position_is_right(&log, &what).await;
        let history = self::history(&log, false).await.expect("loaded");
        let (kept, lost) = (Seq(mapped.0 - 10), Seq(mapped.0 - 9));
        assert!(open(&history, kept).await.is_ok(), "{what}");
        let refused = history.resolve(&Selector::Seq(lost), None).await.expect_err("taken back");
        assert!(matches!(refused, RecoverError::NotAPoint { .. }), "{what}: {refused}");
        if processed {
            inner.delete(&Path::from(drain.clone())).await.expect("deleted");
            let history = self::history(&log, false).await.expect("loaded");
            let point = open(&history, kept).await.expect("nothing else is read for it");
            assert!(contents(&point).await == log.model.at[kept.0 as usize]);
            let refused = history.resolve(&Selector::Latest, None).await.expect_err("lies behind it");
            assert!(refused.to_string().contains(&drain), "{refused}");
        }
    }
}

#[tokio::test]
async fn a_manifest_is_an_opening_and_few_commits_however_many_there_were() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 8).await;
    for _ in 0..2 * EPOCH_COMMITS {
        log.random();
        log.commit().await;
    }
    // A commit for each segment, and one for each leaf.
    follow(&log, 1).await;
    let newest = manifest::log(&store, &keys, &log.machine).read_newest().await.expect("read");
    assert!(newest.end.position.epoch >= 4, "{:?}", newest.end);
    assert!(newest.entries.len() as u64 <= EPOCH_COMMITS + 1, "{} objects", newest.entries.len());
    every_position_is_right(&log, "renewed").await;
}

/// A policy that keeps many points makes openings large beside commits: they are written again all the same, or a
/// reader's GETs would grow with the points that are kept.
#[tokio::test]
async fn a_manifest_of_many_points_has_few_commits_too() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 8).await;
    log.model.blind = true;
    for mark in 0..2000 {
        log.named(&format!("mark {mark}"));
    }
    log.commit().await;
    follow(&log, 1).await;
    let mut owner = ManifestOwner::attach(&store, &keys, &log.machine, LogRules::ALL).await.expect("attached");
    let opening = owner.manifest().encode().len();
    let (mut commits, mut bytes) = (0, 0);
    while !owner.is_long() {
        let commit = ManifestCommit { holds_read: commits + 1, ..ManifestCommit::default() };
        bytes += commit.encode().len();
        owner.begin(commit);
        owner.finish().await.expect("acknowledged");
        commits += 1;
    }
    assert_eq!(commits, EPOCH_COMMITS_MAX);
    assert!(bytes < opening, "by their bytes alone they would have gone on: {bytes} of {opening}");
    owner.renew().await.expect("renewed");
    assert!(!owner.is_long());
    let newest = manifest::log(&store, &keys, &log.machine).read_newest().await.expect("read");
    assert_eq!(newest.entries.len(), 1, "an opening and nothing behind it");
}

async fn mapped() -> (Arc<InMemory>, TestLog) {
    let inner = Arc::new(InMemory::new());
    let (store, keys) = vault_in(inner.clone()).await;
    let mut log = TestLog::begin(&store, &keys, "db", 3).await;
    life(&mut log, 20).await;
    follow(&log, 1).await;
    (inner, log)
}

async fn damages(log: &TestLog) -> Vec<(String, String)> {
    let report = verify(&log.store, log.keys.clone(), &log.machine, VerifyOptions::default()).await.expect("verified");
    report.damages.into_iter().map(|damage| (damage.path, damage.problem)).collect()
}

#[tokio::test]
async fn a_map_that_is_missing_or_altered_is_named_and_gone_around() {
    let (inner, log) = mapped().await;
    let nodes = nodes(&log).await;
    let victim = nodes.iter().find(|node| node.level == 1).expect("a merge");
    let path = map_path(&log.machine, victim.map);
    let at = Path::from(path.clone());
    let whole = inner.get(&at).await.expect("there").bytes().await.expect("bytes");
    let mut altered = whole.to_vec();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    for spoilt in [None, Some(altered)] {
        match spoilt {
            None => inner.delete(&at).await.expect("deleted"),
            Some(bytes) => _ = inner.put(&at, bytes.into()).await.expect("put"),
        }
        let history = history(&log, false).await.expect("loaded");
        let refused = match open(&history, log.last_valid()).await {
            Ok(point) => try_contents(&point).await.err(),
            Err(error) => Some(error),
        };
        let text = refused.expect("refused").to_string();
        assert!(text.contains(&path) && text.contains("--without-maps"), "{text}");
        let named = damages(&log).await;
        assert!(named.len() == 1 && named[0].0 == path && named[0].1.contains("--without-maps"), "{named:?}");
        let around = self::history(&log, true).await.expect("loaded");
        let point = open(&around, log.last_valid()).await.expect("opened");
        assert!(contents(&point).await == log.model.at[log.last_valid().0 as usize]);
    }
}

async fn try_contents(point: &PointReader) -> Result<Contents, RecoverError> {
    let mut all = Contents::new();
    for info in point.disks() {
        let whole = Extent::new(0, info.size).expect("not empty");
        all.insert(info.name.clone(), Arc::new(point.disk(&info.name)?.read(whole).await?.to_vec()));
    }
    Ok(all)
}

/// A map made anew with the right key, in which all data reads as zeros; none if it has no data.
async fn forged(log: &TestLog, machine: &MachineName, node: &Node) -> Option<Vec<u8>> {
    let maps = Maps::new(log.store.clone(), log.keys.clone(), machine.clone());
    let map = maps.open(node).await.expect("open");
    let mut writer = MapWriter::new(&log.keys);
    let mut forged = false;
    for (number, page) in map.index.pages.iter().enumerate() {
        for run in maps.page(&map, number).await.expect("page").iter() {
            let mut run = *run;
            if run.source != MapSource::Zero {
                (run.source, forged) = (MapSource::Zero, true);
            }
            writer.push(page.disk, run).expect("small");
        }
    }
    let facts = MapFacts {
        place: map_place(machine, node.map),
        first_seq: map.header.first_seq,
        first_time: map.header.first_time,
        head: map.header.head,
        disks: map.index.disks.clone(),
        children: map.index.children.clone(),
        segments: map.index.segments.clone(),
        machines: map.index.machines.clone(),
    };
    forged.then(|| writer.finish(&log.keys, facts).expect("small").parts.concat())
}

/// The control of all of these tests, and what a mistake in the making of maps would look like: a sound map that lies.
#[tokio::test]
async fn a_sound_map_that_lies_is_found_by_verify_and_by_the_model() {
    for level in [0, 1] {
        let (inner, log) = mapped().await;
        let nodes = nodes(&log).await;
        let mut found = None;
        for node in nodes.iter().filter(|node| node.level == level) {
            let lie = forged(&log, &log.machine, node).await;
            found = lie.map(|lie| (map_path(&log.machine, node.map), lie)).or(found);
        }
        let (path, lie) = found.expect("one of each has data");
        inner.put(&Path::from(path.clone()), lie.into()).await.expect("put");
        let named = damages(&log).await;
        // The index may have another length now; either way it is this map that is named.
        assert!(named.len() == 1 && named[0].0 == path, "level {level}: {named:?}");
        let history = history(&log, false).await.expect("loaded");
        let mut wrong = 0;
        for seq in (1..=log.last().0).filter(|seq| log.model.valid[*seq as usize]) {
            let read = match open(&history, Seq(seq)).await {
                Ok(point) => try_contents(&point).await,
                Err(error) => Err(error),
            };
            wrong += u32::from(!read.is_ok_and(|read| read == log.model.at[seq as usize]));
        }
        assert!(wrong > 0, "level {level}: the model notices");
    }
}

#[tokio::test]
async fn a_map_of_another_name_is_refused() {
    let (inner, log) = mapped().await;
    let nodes = nodes(&log).await;
    let (first, second) = (&nodes[0], &nodes[1]);
    let get = async |name: MapName| {
        inner.get(&Path::from(map_path(&log.machine, name))).await.expect("there").bytes().await.expect("bytes")
    };
    let (a, b) = (get(first.map).await, get(second.map).await);
    inner.put(&Path::from(map_path(&log.machine, first.map)), b.into()).await.expect("put");
    inner.put(&Path::from(map_path(&log.machine, second.map)), a.into()).await.expect("put");
    let named: Vec<_> = damages(&log).await.into_iter().map(|(path, _)| path).collect();
    for node in [first, second] {
        assert!(named.contains(&map_path(&log.machine, node.map)), "{named:?}");
    }
    let history = history(&log, false).await.expect("loaded");
    assert!(open(&history, log.last_valid()).await.is_err());
}
