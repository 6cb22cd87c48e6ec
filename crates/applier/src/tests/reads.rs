//! How points are read: few GETs for much data, and a cache on disk that is never believed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use disk::ImageFormat;
use format::trace::ReadTrace;
use model::{DiskChange, DiskName, Extent, RecordBody, Seq};
use nbd::Export;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use store::{CountingStore, Store};
use tokio::time::Instant;

use super::{contents, follow, open, wait_for};
use crate::recover::{
    CACHE_BYTES_MIN, History, LoadOptions, OverlayExport, PointDisk, PointReader, ReadAhead, ReadCache, RestoreOptions,
    restore,
};
use crate::testing::{Rng, TestLog, name, vault_in};

/// Size of the disk.
const DISK_BYTES: u64 = 2 << 20;

/// Bytes of one write, of which eight make a segment.
const WRITE_BYTES: u64 = 32 << 10;

fn random(rng: &mut Rng, bytes: u64) -> Vec<u8> {
    (0..bytes / 8).flat_map(|_| rng.next().to_le_bytes()).collect()
}

/// A disk full of bytes that do not compress, written in order: 512 frames in eight segments.
async fn written(seed: u64) -> (CountingStore, TestLog) {
    let counting = CountingStore::new(Arc::new(InMemory::new()));
    let (store, keys) = vault_in(Arc::new(counting.clone())).await;
    let mut log = TestLog::new(store, keys, "db", seed).await;
    log.disk("root", DISK_BYTES, DiskChange::Added);
    log.drain_begin(Seq(0));
    for at in 0..DISK_BYTES / WRITE_BYTES {
        let data = random(&mut log.rng, WRITE_BYTES);
        log.write("root", at * WRITE_BYTES, data);
        if at % 8 == 7 {
            log.commit().await;
        }
    }
    log.drain_end();
    log.commit().await;
    (counting, log)
}

async fn load(log: &TestLog, cache: Option<&Arc<ReadCache>>) -> History {
    let options = LoadOptions { cache: cache.cloned(), ..LoadOptions::default() };
    History::load(&log.store, log.keys.clone(), &log.machine, options).await.expect("loaded")
}

async fn cache(dir: &Path, log: &TestLog) -> Arc<ReadCache> {
    ReadCache::open(dir, 64 << 20, &log.keys).await.expect("opened")
}

async fn last(log: &TestLog, cache: Option<&Arc<ReadCache>>) -> PointReader {
    open(&load(log, cache).await, log.last_valid()).await
}

async fn assert_is_model(log: &TestLog, point: &PointReader) {
    assert!(contents(point).await == log.model.at[point.at().position.seq.0 as usize], "differs from the model");
}

#[tokio::test]
async fn a_restore_asks_for_neighbouring_frames_together() {
    let (counting, log) = written(1).await;
    follow(&log, 2).await;
    let point = last(&log, None).await;
    counting.take();
    let directory = tempfile::tempdir().expect("temp dir");
    let to = directory.path().join("out");
    let options = RestoreOptions { format: ImageFormat::Raw, read_back: true, progress: None };
    let report = restore(&point, None, &to, options).await.expect("restored");
    let (together, bytes) = counting.take();
    let image = std::fs::read(&report.disks[0].path).expect("the image");
    assert!(image == **log.model.at[log.last_valid().0 as usize].values().next().expect("one disk"));
    // The layout and the frames of each of eight segments, and a few map pages.
    let mib = DISK_BYTES >> 20;
    assert!(together <= 16 * mib, "{together} GETs for {mib} MiB");
    assert!(bytes < DISK_BYTES * 13 / 10, "{bytes} bytes for {DISK_BYTES} of data");

    // Control: asked for one by one they take a GET each.
    let point = last(&log, None).await;
    counting.take();
    let disk = point.disk(&name("root")).expect("disk");
    let whole = Extent::new(0, DISK_BYTES).expect("sectors");
    for part in whole.split_at_multiples(4096) {
        disk.read(part).await.expect("read");
    }
    let (alone, _) = counting.take();
    assert!(alone >= DISK_BYTES / 4096, "{alone} GETs are fewer than there are frames: they were not counted");
    assert!(alone > 10 * together, "{alone} and {together}");
}

#[tokio::test]
async fn parallel_readers_of_the_same_ranges_share_their_gets() {
    let (counting, log) = written(2).await;
    let point = last(&log, None).await;
    let disk = point.disk(&name("root")).expect("disk");
    counting.take();
    let whole = Extent::new(0, DISK_BYTES).expect("sectors");
    disk.read(whole).await.expect("read");
    let (once, _) = counting.take();

    let point = last(&log, None).await;
    let disk = point.disk(&name("root")).expect("disk");
    counting.take();
    let model = log.model.at[log.last_valid().0 as usize][&name::<DiskName>("root")].clone();
    let reads = (0..8u64).map(|n| {
        // Ranges that overlap, whose readers want each other's frames.
        let at = (n % 4) * (DISK_BYTES / 8);
        let (disk, model) = (disk.clone(), model.clone());
        tokio::spawn(async move {
            let read = disk.read(Extent::new(at, DISK_BYTES - at).expect("sectors")).await.expect("read");
            assert!(read == model[at as usize..]);
        })
    });
    for read in futures::future::join_all(reads).await {
        read.expect("read as the model");
    }
    let (shared, _) = counting.take();
    assert!(shared <= once, "{shared} GETs for eight readers, {once} for one");
}

#[tokio::test]
async fn what_was_read_once_is_read_from_the_cache_by_the_next() {
    let (counting, log) = written(3).await;
    follow(&log, 2).await;
    let directory = tempfile::tempdir().expect("temp dir");
    let first = cache(directory.path(), &log).await;
    let point = last(&log, Some(&first)).await;
    assert_is_model(&log, &point).await;
    first.settled().await;
    assert!(first.stats().bytes >= DISK_BYTES);
    assert_cached_as_stored(&first, &log).await;

    // Another process, for all that it knows.
    let second = cache(directory.path(), &log).await;
    let point = last(&log, Some(&second)).await;
    counting.take();
    assert_is_model(&log, &point).await;
    assert_eq!(counting.take().0, 0, "GETs although all is cached");
    assert!(second.stats().hits > 0 && second.stats().misses == 0, "{:?}", second.stats());

    // Control: without the cache the same reads go to the store.
    let point = last(&log, None).await;
    counting.take();
    assert_is_model(&log, &point).await;
    assert!(counting.take().0 > 0);
}

/// What lies in the cache is what the objects hold, sealed, and nothing else.
async fn assert_cached_as_stored(cache: &ReadCache, log: &TestLog) {
    let mut seen = 0;
    for (path, _) in log.store.list("machine/db").await.expect("listed") {
        let Ok(cached) = std::fs::read(cache.file(&path, "sealed")) else { continue };
        let object = log.store.get(&path).await.expect("read").expect("there");
        assert!(cached.len() <= object.len());
        assert!(cached.iter().zip(&object).all(|(cached, stored)| cached == stored || *cached == 0), "{path}");
        seen += 1;
    }
    let files = files_of(&cache.file("", "sealed"));
    assert_eq!(files.len(), seen, "files of no object");
    for file in files {
        assert_eq!(std::fs::metadata(&file).expect("there").mode() & 0o777, 0o600);
    }
}

fn files_of(beside: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(beside.parent().expect("a directory")).expect("listed");
    let mut files: Vec<_> = listed.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn damaged_cache_files_are_noticed_and_written_over() {
    let (counting, log) = written(4).await;
    follow(&log, 2).await;
    let directory = tempfile::tempdir().expect("temp dir");
    let first = cache(directory.path(), &log).await;
    assert_is_model(&log, &last(&log, Some(&first)).await).await;
    first.settled().await;
    let files = files_of(&first.file("", "sealed"));
    let sound: Vec<_> = files.iter().map(|file| std::fs::read(file).expect("read")).collect();
    let mut rng = Rng(4);
    for kind in 0..5 {
        for (n, (file, bytes)) in files.iter().zip(&sound).enumerate() {
            let mut damaged = bytes.clone();
            let at = rng.below(damaged.len() as u64) as usize;
            match kind {
                0 => damaged.iter_mut().step_by(3001).for_each(|byte| *byte ^= 1),
                1 => damaged.truncate(at),
                2 => damaged[at..].fill(0),
                3 => damaged = sound[(n + 1) % sound.len()].clone(),
                _ => damaged.iter_mut().for_each(|byte| *byte = rng.next() as u8),
            }
            std::fs::write(file, damaged).expect("written");
        }
        let second = cache(directory.path(), &log).await;
        counting.take();
        assert_is_model(&log, &last(&log, Some(&second)).await).await;
        assert!(second.stats().misses > 0, "damage {kind} was not noticed: {:?}", second.stats());
        assert!(counting.take().0 > 0);
        second.settled().await;
        let third = cache(directory.path(), &log).await;
        assert_is_model(&log, &last(&log, Some(&third)).await).await;
        assert_eq!(third.stats().misses, 0, "damage {kind} was not mended");
    }
}

#[tokio::test]
async fn links_and_foreign_files_are_left_alone() {
    let (_counting, log) = written(5).await;
    let directory = tempfile::tempdir().expect("temp dir");
    let first = cache(directory.path(), &log).await;
    let point = last(&log, Some(&first)).await;
    assert_is_model(&log, &point).await;
    first.settled().await;
    // Every file of ours becomes a link to somebody's, a second name of it, or a directory.
    let foreign = tempfile::tempdir().expect("temp dir");
    let victim = foreign.path().join("victim");
    std::fs::write(&victim, b"somebody's").expect("written");
    for (n, file) in files_of(&first.file("", "sealed")).into_iter().enumerate() {
        std::fs::remove_file(&file).expect("removed");
        match n % 3 {
            0 => std::os::unix::fs::symlink(&victim, &file).expect("linked"),
            1 => std::fs::create_dir(&file).expect("made"),
            _ => _ = std::fs::hard_link(&victim, &file),
        }
    }
    let stranger = directory.path().join("notes.txt");
    std::fs::write(&stranger, vec![1; 4096]).expect("written");
    let second = cache(directory.path(), &log).await;
    assert_is_model(&log, &last(&log, Some(&second)).await).await;
    second.settled().await;
    assert_eq!(std::fs::read(&victim).expect("read"), b"somebody's");
    assert_eq!(std::fs::read(&stranger).expect("read"), vec![1; 4096]);
    assert_eq!(second.stats().bytes, 0, "every place was taken by somebody");
}

#[tokio::test]
async fn a_cache_that_is_gone_fails_no_read() {
    let (_counting, log) = written(6).await;
    let directory = tempfile::tempdir().expect("temp dir");
    let gone = cache(&directory.path().join("cache"), &log).await;
    std::fs::remove_dir(directory.path().join("cache")).expect("removed");
    assert_is_model(&log, &last(&log, Some(&gone)).await).await;
    gone.settled().await;
    assert_eq!(gone.stats().bytes, 0);
    let file = directory.path().join("file");
    std::fs::write(&file, b"").expect("written");
    assert!(ReadCache::open(&file, 64 << 20, &log.keys).await.is_err(), "a file is no directory");
    assert!(ReadCache::open(directory.path(), 1 << 20, &log.keys).await.is_err(), "too small");
}

fn bytes_on_medium(directory: &Path) -> u64 {
    files_of(&directory.join("any")).iter().map(|file| file.metadata().expect("there").blocks() * 512).sum()
}

#[tokio::test]
async fn a_cache_keeps_to_its_bound_and_drops_what_was_used_least_lately() {
    let (_counting, log) = written(7).await;
    let directory = tempfile::tempdir().expect("temp dir");
    let cache = ReadCache::open(directory.path(), CACHE_BYTES_MIN, &log.keys).await.expect("opened");
    let mut rng = Rng(7);
    for n in 0..40 {
        cache.keep(&format!("object-{n}"), 64 << 10, random(&mut rng, 1 << 20).into());
        cache.settled().await;
        assert!(!cache.read("object-0", 64 << 10..65 << 10).await.is_empty(), "in use at {n}, and dropped");
        let used = bytes_on_medium(directory.path());
        assert!(used <= CACHE_BYTES_MIN, "{used} bytes at {n}");
    }
    assert!(cache.stats().evictions > 20, "{:?}", cache.stats());
    assert!(cache.read("object-1", 64 << 10..65 << 10).await.is_empty(), "least lately used, and kept");
    assert!(!cache.read("object-39", 64 << 10..65 << 10).await.is_empty());
}

#[tokio::test]
async fn two_that_share_a_small_directory_read_right_and_keep_to_their_bounds() {
    let (_counting, log) = written(8).await;
    let directory = tempfile::tempdir().expect("temp dir");
    let open = async || ReadCache::open(directory.path(), CACHE_BYTES_MIN, &log.keys).await.expect("opened");
    let (one, other) = (open().await, open().await);
    let mut rng = Rng(8);
    for round in 0..6 {
        for n in 0..8 {
            for cache in [&one, &other] {
                cache.keep(&format!("filler-{round}-{n}"), 0, random(&mut rng, 512 << 10).into());
            }
        }
        let (mine, yours) = (last(&log, Some(&one)).await, last(&log, Some(&other)).await);
        futures::join!(assert_is_model(&log, &mine), assert_is_model(&log, &yours));
        one.settled().await;
        other.settled().await;
        // What each writes between two looks may lie beyond.
        let used = bytes_on_medium(directory.path());
        assert!(used <= CACHE_BYTES_MIN + CACHE_BYTES_MIN / 8, "{used} bytes in round {round}");
    }
}

/// Reads a disk in order, 16 KiB at a time, each read a virtual millisecond after the answer to the one before. Returns
/// how long it took.
async fn read_in_order(log: &TestLog, read: impl AsyncFn(Extent) -> Bytes) -> Duration {
    let model = log.model.at[log.last_valid().0 as usize][&name::<DiskName>("root")].clone();
    let begun = Instant::now();
    for part in Extent::new(0, DISK_BYTES).expect("sectors").split_at_multiples(16 << 10) {
        assert!(read(part).await == model[part.offset() as usize..part.end() as usize]);
        waiting::pass(Duration::from_millis(1)).await;
    }
    begun.elapsed()
}

async fn root(point: &PointReader) -> Arc<PointDisk> {
    point.disk(&name("root")).expect("disk")
}

/// A store whose every GET takes 20 virtual milliseconds.
fn slow(log: &TestLog) -> (CountingStore, Store) {
    let wait = ThrottleConfig { wait_get_per_call: Duration::from_millis(20), ..ThrottleConfig::default() };
    let counting = CountingStore::new(Arc::new(ThrottledStore::new(log.store.object_store().clone(), wait)));
    (counting.clone(), Store::from_object_store(Arc::new(counting)))
}

#[tokio::test(start_paused = true)]
async fn a_reader_in_order_does_not_wait_for_each_read() {
    let (_, mut log) = written(9).await;
    let (counting, store) = slow(&log);
    log.store = store;
    let disk = root(&last(&log, None).await).await;
    counting.take();
    let without = read_in_order(&log, async |part| disk.read(part).await.expect("read")).await;
    let (gets_without, _) = counting.take();

    let ahead = ReadAhead::new(root(&last(&log, None).await).await);
    counting.take();
    let with = read_in_order(&log, async |part| ahead.read(part).await.expect("read")).await;
    let (gets_with, _) = counting.take();
    assert!(with * 3 < without, "{with:?} with, {without:?} without");
    assert!(gets_with * 3 < gets_without, "{gets_with} GETs with, {gets_without} without");
}

/// The pieces of a range, few or very many, are what a read of it gives.
#[tokio::test]
async fn pieces_are_what_a_read_gives_but_zeros() {
    let (_, mut log) = written(12).await;
    log.push(RecordBody::Zero {
        disk: name::<DiskName>("root").id(),
        extent: Extent::new(8192, 4096).expect("sectors"),
    });
    log.commit().await;
    let disk = root(&last(&log, None).await).await;
    let whole = Extent::new(0, DISK_BYTES).expect("sectors");
    let (mut few, mut many) = (0, 0);
    for part in [DISK_BYTES, 256 << 10].into_iter().flat_map(|bytes| whole.split_at_multiples(bytes)) {
        let read = disk.read(part).await.expect("read");
        let pieces = disk.pieces(part).await.expect("pieces");
        let mut laid = vec![0; part.len() as usize];
        for (offset, bytes) in &pieces {
            let at = (offset - part.offset()) as usize;
            laid[at..at + bytes.len()].copy_from_slice(bytes);
        }
        assert!(laid == read, "{part} differs");
        let bytes: u64 = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        assert_eq!(bytes, part.len() - if part.offset() == 0 { 4096 } else { 0 }, "zeros are no piece");
        *if pieces.len() > 256 { &mut many } else { &mut few } += 1;
    }
    assert_eq!((many, few), (1, 8), "both ways were taken");
}

#[tokio::test(start_paused = true)]
async fn reads_at_random_places_fetch_nothing_but_themselves() {
    let (_, mut log) = written(10).await;
    let (counting, store) = slow(&log);
    log.store = store;
    let (plain, ahead) = (root(&last(&log, None).await).await, ReadAhead::new(root(&last(&log, None).await).await));
    // Backwards, so that none goes on where another ended: on so small a disk any two are near each other.
    let places = (1..=60).map(|n| Extent::new(DISK_BYTES - n * (32 << 10), 4096).expect("sectors"));
    counting.take();
    for place in places.clone() {
        plain.read(place).await.expect("read");
    }
    let alone = counting.take();
    for place in places {
        ahead.read(place).await.expect("read");
        // Whatever was begun in the background ends meanwhile.
        waiting::pass(Duration::from_secs(1)).await;
    }
    assert_eq!(counting.take(), alone);
}

#[tokio::test(start_paused = true)]
async fn a_read_ahead_that_fails_fails_no_read() {
    let (_, log) = written(11).await;
    let good = log.store.clone();
    let missing = log.store.list("machine/db/stream/seg").await.expect("listed");
    // A segment in the midst of the disk is gone: reads before it must not suffer from it.
    let (path, _) =
        missing.iter().filter(|(path, _)| !path.ends_with(&format!("{:016x}", 0))).nth(4).expect("there").clone();
    let object = good.get(&path).await.expect("read").expect("there");
    let ahead = ReadAhead::new(root(&last(&log, None).await).await);
    good.delete(&path).await.expect("deleted");
    let model = log.model.at[log.last_valid().0 as usize][&name::<DiskName>("root")].clone();
    let mut failed = 0;
    for part in Extent::new(0, DISK_BYTES).expect("sectors").split_at_multiples(16 << 10) {
        match ahead.read(part).await {
            Ok(bytes) => assert!(bytes == model[part.offset() as usize..part.end() as usize]),
            Err(error) => {
                assert!(error.is_missing(), "{error}");
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 16, "of 256 KiB that are gone");
    good.create(&path, vec![object]).await.expect("put back");
    for part in Extent::new(0, DISK_BYTES).expect("sectors").split_at_multiples(16 << 10) {
        assert!(ahead.read(part).await.expect("read") == model[part.offset() as usize..part.end() as usize]);
    }
}

#[tokio::test]
async fn what_an_export_read_first_is_there_when_a_later_point_is_served() {
    let (counting, mut log) = written(12).await;
    let places: Vec<u64> = (0..24).map(|n| (n * 7 % 64) * WRITE_BYTES + 8192).collect();
    let directory = tempfile::tempdir().expect("temp dir");
    let first = cache(directory.path(), &log).await;
    let export = OverlayExport::create(root(&last(&log, Some(&first)).await).await, None).await.expect("created");
    for at in &places {
        export.read(*at, 4096).await.expect("read");
    }
    export.save_trace().await;
    drop(export);
    // Every place is written again, so that a later point reads other frames.
    for at in &places {
        let data = random(&mut log.rng, 4096);
        log.write("root", *at, data);
    }
    log.commit().await;
    let model = log.model.at[log.last_valid().0 as usize][&name::<DiskName>("root")].clone();
    let read_all = async |export: &OverlayExport| {
        counting.take();
        for at in &places {
            assert!(export.read(*at, 4096).await.expect("read") == model[*at as usize..*at as usize + 4096]);
        }
        counting.take().0
    };

    // Control: without the trace each read that comes first asks the store.
    let empty = tempfile::tempdir().expect("temp dir");
    let other = cache(empty.path(), &log).await;
    let export = OverlayExport::create(root(&last(&log, Some(&other)).await).await, None).await.expect("created");
    assert!(read_all(&export).await > 0);

    let later = cache(directory.path(), &log).await;
    let disk = root(&last(&log, Some(&later)).await).await;
    let whole = bytes_of(&later);
    let export = OverlayExport::create(disk, None).await.expect("created");
    wait_for("what was read first", async || {
        later.settled().await;
        bytes_of(&later) >= whole + places.len() as u64 * 4096
    })
    .await;
    assert_eq!(read_all(&export).await, 0, "GETs at the moment of reading");
}

fn bytes_of(cache: &ReadCache) -> u64 {
    cache.stats().bytes
}

#[tokio::test]
async fn a_damaged_trace_counts_as_none_and_a_poor_one_keeps_the_rich_one() {
    let (_counting, log) = written(13).await;
    let directory = tempfile::tempdir().expect("temp dir");
    let cache = cache(directory.path(), &log).await;
    let file = cache.file("trace of db root", "trace");
    let serve = async |places: &[u64]| {
        let export = OverlayExport::create(root(&last(&log, Some(&cache)).await).await, None).await.expect("created");
        for at in places {
            export.read(*at, 4096).await.expect("read");
        }
        export.save_trace().await;
        let trace = ReadTrace::decode(&std::fs::read(&file).expect("written")).expect("sound");
        trace.ranges().iter().map(|range| range.offset()).collect::<Vec<_>>()
    };
    let (many, few) = ([0, 65536, 32768, 131072], [8192, 32768]);
    assert_eq!(serve(&many).await, many);
    assert_eq!(serve(&few).await, [8192, 32768, 0, 65536, 131072]);
    let mut bytes = std::fs::read(&file).expect("there");
    bytes[20] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    assert_eq!(serve(&few).await, few);
}
