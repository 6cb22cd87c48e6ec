//! Replica disks in every format, brought on by records and by maps.
//!
//! Goal: a replica equals the model wherever it claims to stand, whatever it died in, and a rebuild reads and writes what
//! differs and no more. Method: moves that end at a random failpoint, as of a dying process; a store that counts. The control
//! flips one byte.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::{Image, ImageFormat};
use format::map::FANOUT;
use model::{DiskChange, DiskName, Extent, Seq};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use probe::Rules;
use store::{CountingStore, LogRules, Store};
use tokio_util::sync::CancellationToken;

use super::process::{TestClock, config, die_at_failpoint, start_with};
use super::{follow, load, wait_for};
use crate::applier::{Committed, SegmentRun};
use crate::maps::{Maps, segments_behind};
use crate::recover::processed;
use crate::replica::Replica;
use crate::testing::{Rng, TestLog, name, vault, vault_in};
use crate::{ApplierConfig, ReplicaConfig, manifest};

fn kept_as(format: ImageFormat) -> ReplicaConfig {
    ReplicaConfig { format, ..ReplicaConfig::default() }
}

/// What an applier has committed once it has taken a log in.
pub(super) async fn committed(log: &TestLog, map_segments: usize) -> Committed {
    follow(log, map_segments).await;
    let newest =
        manifest::read(&manifest::log(&log.store, &log.keys, &log.machine), LogRules::ALL).await.expect("read");
    let mut segments = segments_behind(&maps(log), &newest.nodes, Seq::ZERO).await.expect("names");
    segments.extend(newest.segments);
    let recent = SegmentRun { segments, ..SegmentRun::default() };
    let (validity, unreckoned) = (load(log).await.validity().clone(), None);
    let packs = newest.packs.into();
    Committed { horizon: Seq::ZERO, nodes: newest.nodes, packs, recent, validity, unreckoned }
}

fn maps(log: &TestLog) -> Arc<Maps> {
    Arc::new(Maps::new(log.store.clone(), log.keys.clone(), log.machine.clone()))
}

fn open(log: &TestLog, data_dir: &Path, format: ImageFormat) -> Replica {
    Replica::open(log.store.clone(), log.keys.clone(), data_dir, &log.machine, kept_as(format)).expect("opened")
}

async fn image(log: &TestLog, data_dir: &Path, format: ImageFormat, disk: &DiskName, size: u64) -> Image {
    let path = data_dir.join("replica").join(log.machine.as_str()).join(format!("{disk}.{format}"));
    let whole = Extent::new(0, size).expect("not empty");
    Image::open(&path, format, size, &[whole]).await.expect("an image of the disk's size")
}

/// How the files of a replica that nobody has open differ from the model at a position, if they do.
async fn difference(log: &TestLog, data_dir: &Path, format: ImageFormat, seq: Seq) -> Option<String> {
    let expected = &log.model.at[seq.0 as usize];
    for (disk, contents) in expected {
        let size = contents.len() as u64;
        let image = image(log, data_dir, format, disk, size).await;
        if let Some(at) = image.altered_frame().await.expect("read") {
            return Some(format!("{disk}.{format} is no image at seq {seq}: byte {at} of the file"));
        }
        let found = image.read_back(Extent::new(0, size).expect("not empty")).await.expect("read");
        if found != **contents {
            return Some(format!("{disk}.{format} at seq {seq}"));
        }
    }
    let directory = data_dir.join("replica").join(log.machine.as_str());
    let files = std::fs::read_dir(directory).expect("listed").map(|entry| entry.expect("entry").file_name());
    let disks = files.filter(|file| file.to_string_lossy().contains(format.extension())).count();
    (disks != expected.len()).then(|| format!("{disks} files of {} disks at seq {seq}", expected.len()))
}

/// One move; none when there is nowhere to go.
async fn go(log: &TestLog, replica: &mut Replica, committed: &Committed, late: bool) -> Option<()> {
    let stop = CancellationToken::new();
    replica.ready(&stop).await.expect("ready");
    if let Some(nodes) = replica.rebuild_nodes(committed, late) {
        replica.rebuild(&maps(log), nodes, Arc::default(), Rules::ALL, &stop).await.expect("rebuilt");
        return Some(());
    }
    let target = replica.next_target(&committed.validity, &committed.recent)?;
    replica.advance(&committed.recent, target, &stop).await.expect("moved");
    Some(())
}

/// Disks that grow, shrink, leave and come back.
async fn change_disks(log: &mut TestLog, round: u64) {
    let (root, extra) = (96 << 10, 1 << 20);
    match round {
        1 => {
            log.disk("root", root, DiskChange::Resized);
            log.disk("data", 0, DiskChange::Removed);
            log.disk("extra", extra + 512, DiskChange::Added);
        }
        2 => {
            log.disk("root", root - 512, DiskChange::Resized);
            log.random();
            log.disk("root", 2 * root, DiskChange::Resized);
            log.disk("extra", extra - 4096, DiskChange::Resized);
        }
        3 => {
            log.disk("extra", extra - 4096, DiskChange::Removed);
            log.disk("data", 64 << 10, DiskChange::Added);
            log.disk("extra", extra - 4096, DiskChange::Added);
        }
        _ => {}
    }
    log.random();
    log.commit().await;
}

async fn a_life_with_deaths(format: ImageFormat, seed: u64) -> (u32, u32) {
    let (store, keys) = vault().await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    let mut log = TestLog::begin(&store, &keys, "db", seed).await;
    let mut rng = Rng(seed);
    let (mut deaths, mut torn) = (0, 0);
    for round in 0..5 {
        log.live(6).await;
        change_disks(&mut log, round).await;
        let committed = committed(&log, 2).await;
        for tries in 0.. {
            let mut replica = open(&log, data_dir.path(), format);
            let (state, late) = (replica.state().clone(), rng.below(2) == 0);
            match state.intent {
                // What it claims is true, whatever came before.
                None if state.position.seq > Seq::ZERO => {
                    assert_eq!(
                        difference(&log, data_dir.path(), format, state.position.seq).await,
                        None,
                        "seed {seed}"
                    );
                }
                Some(intent) if intent.rebuild => {
                    assert_eq!(processed(data_dir.path(), &log.machine).await, None, "it stands nowhere");
                    torn += 1;
                }
                _ => {}
            }
            let dead = die_at_failpoint(rng.below(6 + 4 * tries));
            let moved = tokio::select! {
                biased;
                moved = go(&log, &mut replica, &committed, late) => Some(moved),
                () = dead.notified() => None,
            };
            probe::on_this_thread(None);
            match moved {
                Some(Some(())) => {}
                Some(None) => break,
                None => deaths += 1,
            }
        }
        assert_eq!(processed(data_dir.path(), &log.machine).await, Some(log.last_valid()));
        assert_eq!(difference(&log, data_dir.path(), format, log.last_valid()).await, None, "seed {seed}");
    }
    flipped_bytes_are_noticed(&log, data_dir.path(), format).await;
    (deaths, torn)
}

/// The control of [`difference`].
async fn flipped_bytes_are_noticed(log: &TestLog, data_dir: &Path, format: ImageFormat) {
    for (disk, contents) in &log.model.at[log.last_valid().0 as usize] {
        let at = contents.len() as u64 - 512;
        let mut sector = contents[at as usize..].to_vec();
        for flip in [1, 0] {
            sector[511] = contents[contents.len() - 1] ^ flip;
            let image = image(log, data_dir, format, disk, contents.len() as u64).await;
            image.write(at, sector.clone().into()).await.expect("written");
            drop(image);
            assert_eq!(difference(log, data_dir, format, log.last_valid()).await.is_some(), flip == 1);
        }
    }
}

#[tokio::test]
async fn a_replica_of_any_format_equals_the_model_wherever_it_claims_to_stand() {
    for format in ImageFormat::ALL {
        let (mut deaths, mut torn) = (0, 0);
        for seed in 0..6 {
            let (more_deaths, more_torn) = a_life_with_deaths(format, seed).await;
            (deaths, torn) = (deaths + more_deaths, torn + more_torn);
        }
        println!("{format}: {deaths} deaths, {torn} in a rebuild");
        assert!(deaths > 30 && torn > 10, "{format}: {deaths} deaths, {torn} in a rebuild: the test shows little");
    }
}

/// What bringing a replica from A to the end costs: bytes laid, reads, bytes read; by maps and by records.
struct Cost {
    laid: u64,
    by_maps: (u64, u64),
    by_records: (u64, u64),
}

/// A disk of `size` bytes, all written; then `segments` that overwrite the same two blocks.
async fn cost(size: u64, segments: usize) -> Cost {
    const LEAF: usize = 4;
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let counting = CountingStore::new(inner.clone());
    let (store, keys) = vault_in(inner).await;
    let mut log = TestLog::begin(&store, &keys, "db", 5).await;
    log.disk("data", 48 << 10, DiskChange::Removed);
    log.disk("root", size, DiskChange::Resized);
    for piece in Extent::new(0, size).expect("not empty").split_at_multiples(64 << 10) {
        let bytes = (0..piece.len()).map(|i| ((piece.offset() + i) / 4096 * 7 + i % 13) as u8).collect();
        log.write("root", piece.offset(), bytes);
    }
    log.commit().await;
    for _ in 2..LEAF {
        log.random();
        log.commit().await;
    }
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("temp dir"));
    let early = committed(&log, LEAF).await;
    for dir in &dirs {
        let mut replica = open(&log, dir.path(), ImageFormat::Raw);
        while go(&log, &mut replica, &early, false).await.is_some() {}
        assert_eq!(replica.state().position.seq, log.last());
    }
    for i in 0..segments {
        for at in [8 << 10, 128 << 10] {
            log.write("root", at, (0..4096).map(|byte| (byte * i + i / 7 + byte / 256 + at as usize) as u8).collect());
        }
        log.commit().await;
    }
    let late = committed(&log, LEAF).await;
    log.store = Store::from_object_store(Arc::new(counting.clone()));
    let stop = CancellationToken::new();
    counting.take();
    let mut replica = open(&log, dirs[0].path(), ImageFormat::Raw);
    let nodes = replica.rebuild_nodes(&late, true).expect("maps");
    let laid = replica.rebuild(&maps(&log), nodes, Arc::default(), Rules::ALL, &stop).await.expect("rebuilt");
    let by_maps = counting.take();
    assert_eq!(replica.state().position.seq, log.last());
    drop(replica);
    let mut replica = open(&log, dirs[1].path(), ImageFormat::Raw);
    while go(&log, &mut replica, &late, false).await.is_some() {}
    let by_records = counting.take();
    drop(replica);
    for dir in &dirs {
        assert_eq!(difference(&log, dir.path(), ImageFormat::Raw, log.last()).await, None);
    }
    Cost { laid, by_maps, by_records }
}

#[tokio::test]
async fn a_rebuild_costs_what_differs_and_not_what_happened() {
    let small = cost(256 << 10, 32).await;
    let long = cost(256 << 10, 128).await;
    let large = cost(1 << 20, 32).await;
    for (what, cost) in [("32 segments", &small), ("128 segments", &long), ("a disk 4 times as large", &large)] {
        let Cost { laid, by_maps, by_records } = cost;
        println!("{what}: {laid} bytes laid; by maps {by_maps:?}, by records {by_records:?} (reads, bytes)");
        // Two blocks were changed, again and again.
        assert_eq!(*laid, 2 * 4096, "{what}");
        // An index and a page for each map of a chain, a table and a frame for each block.
        let levels = 3;
        assert!(by_maps.0 <= 2 * levels * FANOUT as u64 + 4, "{what}: {by_maps:?}");
    }
    // The size of the disk does not count; the history counts with its logarithm, but in full for who applies records.
    assert_eq!(small.by_maps.0, large.by_maps.0);
    assert!(large.by_maps.1 < small.by_maps.1 * 11 / 10, "{:?} and {:?}", small.by_maps, large.by_maps);
    assert!(long.by_maps.1 < small.by_maps.1 * 2, "{:?} and {:?}", small.by_maps, long.by_maps);
    assert!(long.by_records.0 >= 128 && long.by_records.1 > 3 * small.by_records.1);
    assert!(long.by_maps.1 * 4 < long.by_records.1, "{:?} and {:?}", long.by_maps, long.by_records);
}

#[tokio::test]
async fn a_replica_past_its_lag_limit_is_rebuilt_and_says_so() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 31).await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    // A record a second. The first life begins at nothing; the second within the limit; the third, much later, past it.
    for (segments, rebuilds) in [(25, 1), (1, 0), (40, 1)] {
        log.live(segments).await;
        follow(&log, 2).await;
        let settings = ApplierConfig { replica_lag: Duration::from_secs(60), ..config(data_dir.path()) };
        let applier = start_with(settings, &log, &Arc::new(TestClock::default())).await;
        let last = log.last_valid();
        wait_for("the replica", async || applier.processed(&log.machine) == Some(last)).await;
        let status = applier.status().machines.remove(0).replica.expect("kept");
        assert!(!status.rebuilding && status.last_error.is_none(), "{status:?}");
        let told = applier.events(&log.machine).iter().filter(|e| e.message.contains("is rebuilt to seq:")).count();
        assert_eq!(told, rebuilds, "after {segments} segments: {:?}", applier.events(&log.machine));
        applier.stop().await;
        assert_eq!(difference(&log, data_dir.path(), ImageFormat::Raw, last).await, None);
    }
}

#[tokio::test]
async fn a_replica_that_is_to_be_kept_otherwise_is_built_anew() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 32).await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    for format in [ImageFormat::Raw, ImageFormat::Vhd, ImageFormat::Qcow2, ImageFormat::Raw] {
        log.live(4).await;
        let replicas = [(log.machine.clone(), kept_as(format))].into();
        let settings = ApplierConfig { replicas, ..config(data_dir.path()) };
        let applier = start_with(settings, &log, &Arc::new(TestClock::default())).await;
        wait_for("the replica", async || applier.processed(&log.machine) == Some(log.last_valid())).await;
        assert_eq!(applier.status().machines[0].replica.as_ref().and_then(|r| r.last_error.clone()), None);
        applier.stop().await;
        assert_eq!(difference(&log, data_dir.path(), format, log.last_valid()).await, None);
        let files = std::fs::read_dir(data_dir.path().join("replica/db")).expect("listed").count();
        assert_eq!(files, 4, "two disks, state and lock");
    }
    // No device of that name: said, and nothing is touched.
    let devices = [(name("root"), "/nowhere/device".into())].into();
    let replicas = [(log.machine.clone(), ReplicaConfig { devices, ..kept_as(ImageFormat::Raw) })].into();
    let applier = start_with(ApplierConfig { replicas, ..config(data_dir.path()) }, &log, &Arc::default()).await;
    let error = || applier.status().machines[0].replica.as_ref().and_then(|replica| replica.last_error.clone());
    wait_for("the error", async || error().is_some_and(|error| error.contains("/nowhere/device"))).await;
    applier.stop().await;
    assert_eq!(difference(&log, data_dir.path(), ImageFormat::Raw, log.last_valid()).await, None);
}
