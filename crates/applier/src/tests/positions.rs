//! Every position reads back, selectors mean what they say, drains are refused; restore and compare.

use std::sync::Arc;

use disk::memory::{Fault, Operation};
use disk::{Disk, ImageFormat, MemoryDisk, RawDisk};
use format::object::LogKind;
use model::{DiskChange, Extent, Selector, Seq, Timestamp};

use super::{contents, load, open};
use crate::recover::{ErrorKind, History, LoadOptions, RecoverError, RestoreOptions, compare, restore};
use crate::testing::{TestLog, name, vault};

#[tokio::test]
async fn every_valid_position_reads_back_byte_for_byte() {
    for seed in 0..6 {
        let (store, keys) = vault().await;
        let mut log = TestLog::begin(&store, &keys, "db", seed).await;
        log.live(20).await;
        let history = load(&log).await;
        assert_eq!(history.head().position.seq, log.last());
        let mut checked = 0;
        for seq in 0..=log.last().0 {
            let resolved = history.resolve(&Selector::Seq(Seq(seq)), None).await;
            assert_eq!(resolved.is_ok(), log.model.valid[seq as usize], "seed {seed} seq {seq}");
            let Ok(resolved) = resolved else { continue };
            assert_eq!(resolved.digest, log.model.digests[seq as usize]);
            assert_eq!(resolved.time, log.model.times[seq as usize]);
            let found = contents(&open(&history, Seq(seq)).await).await;
            assert!(found == log.model.at[seq as usize], "seed {seed} seq {seq}");
            // Negative control: another position with other contents is told apart.
            let other = &log.model.at[log.last().0 as usize];
            assert_eq!(found == *other, log.model.at[seq as usize] == *other);
            checked += 1;
        }
        assert!(checked > 10, "seed {seed}: only {checked} positions were valid");
    }
}

#[tokio::test]
async fn disks_come_grow_shrink_and_go() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 1).await;
    log.write("root", 0, vec![1; 64 << 10]);
    log.disk("root", 32 << 10, DiskChange::Resized);
    log.disk("root", 96 << 10, DiskChange::Resized);
    log.write("root", 80 << 10, vec![2; 4096]);
    log.disk("data", 0, DiskChange::Removed);
    log.disk("data", 16 << 10, DiskChange::Added);
    log.write("data", 512, vec![3; 512]);
    log.commit().await;
    let history = load(&log).await;
    for seq in (log.last().0 - 6)..=log.last().0 {
        assert!(contents(&open(&history, Seq(seq)).await).await == log.model.at[seq as usize], "seq {seq}");
    }
}

#[tokio::test]
async fn positions_in_a_drain_are_refused_and_the_nearest_are_named() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 2).await;
    let good = log.random();
    log.random();
    log.drain_begin(good);
    let inside = log.random();
    let end = log.drain_end();
    log.commit().await;
    let history = load(&log).await;
    match history.resolve(&Selector::Seq(inside), None).await {
        Err(error @ RecoverError::NotAPoint { .. }) => {
            assert_eq!(error.kind(), ErrorKind::Usage);
            let text = error.to_string();
            assert!(text.contains(&format!("seq:{good} ")) && text.contains(&format!("seq:{end} ")), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let view = history.points().await.expect("points");
    let ranges: Vec<_> = view.ranges.iter().map(|r| (r.from_seq, r.to_seq)).collect();
    assert_eq!(ranges, vec![(Seq(10), good), (end, end)]);
    assert_eq!(view.points.iter().map(|p| p.seq).collect::<Vec<_>>(), vec![Seq(10), end]);
    let at = async |selector| history.resolve(&selector, Some(good)).await.map(|r| r.position.seq);
    assert_eq!(at(Selector::Latest).await.expect("latest"), end);
    assert_eq!(at(Selector::LatestProcessed).await.expect("processed"), good);
    assert_eq!(at(Selector::Time(log.model.times[inside.0 as usize])).await.expect("time"), good);
    assert_eq!(at(Selector::Time(log.model.times[good.0 as usize])).await.expect("time"), good);
    assert_eq!(at(Selector::Time(Timestamp(u64::MAX))).await.expect("time"), end);
    assert!(matches!(at(Selector::Time(Timestamp(1))).await, Err(RecoverError::OutOfRange { .. })));
    assert!(matches!(at(Selector::Seq(Seq(999))).await, Err(RecoverError::OutOfRange { .. })));
    assert!(matches!(at(Selector::Seq(Seq(0))).await, Err(RecoverError::OutOfRange { .. })));
    assert!(matches!(history.resolve(&Selector::LatestProcessed, None).await, Err(RecoverError::NotProcessed)));
    let unknown = history.resolve(&Selector::Id(model::PointId([9; 16])), None).await;
    assert!(matches!(unknown, Err(RecoverError::UnknownPoint { .. })));
}

#[tokio::test]
async fn nothing_is_recoverable_before_the_first_drain_ends() {
    let (store, keys) = vault().await;
    let mut log = TestLog::new(store, keys, "db", 3).await;
    log.disk("root", 64 << 10, DiskChange::Added);
    log.drain_begin(Seq(0));
    log.random();
    log.commit().await;
    assert!(matches!(load(&log).await.resolve(&Selector::Latest, None).await, Err(RecoverError::NoPoint { .. })));
}

#[tokio::test]
async fn an_unknown_machine_and_a_wrong_key_are_named() {
    let (store, keys) = vault().await;
    TestLog::begin(&store, &keys, "db", 4).await;
    let load = async |keys, machine: &str| {
        History::load(&store, keys, &name(machine), LoadOptions::default()).await.err().expect("refused")
    };
    let error = load(keys, "web").await;
    assert!(error.to_string().contains("it holds: db"), "{error}");
    let (_, other) = vault().await;
    assert_eq!(load(other, "db").await.exit_code(), 2);
}

#[tokio::test]
async fn an_epoch_that_was_never_opened_is_sealed_after_the_wait() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 5).await;
    log.live(3).await;
    let dead = crate::recover::stream_log(&store, &keys, &log.machine).attach().await.expect("attached");
    let epoch = dead.epoch();
    drop(dead);
    let history = load(&log).await;
    assert_eq!(history.head().position.seq, log.last());
    let sealed = crate::segments::path(&log.machine, LogKind::Stream, store::LogPosition { epoch: epoch + 1, slot: 0 });
    assert!(store.get(&sealed).await.expect("read").is_some());
}

#[tokio::test]
async fn restored_images_hold_the_point_and_nothing_is_overwritten() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 6).await;
    log.live(8).await;
    let history = load(&log).await;
    let point = open(&history, log.last_valid()).await;
    let expected = log.model.at[log.last_valid().0 as usize].clone();
    let options = |format| RestoreOptions { format, read_back: true, progress: None };
    for format in ImageFormat::ALL {
        let options = options(format);
        let directory = tempfile::tempdir().expect("temp dir");
        let to = directory.path().join("images");
        let report = restore(&point, None, &to, options.clone()).await.expect("restored");
        assert_eq!(report.disks.len(), 2);
        for disk in &report.disks {
            let bytes = std::fs::read(&disk.path).expect("image");
            match format {
                ImageFormat::Raw => assert!(bytes == **expected[&disk.name]),
                ImageFormat::Vhd => {
                    assert!(bytes.starts_with(&expected[&disk.name]));
                    assert!(bytes[bytes.len() - 512..].starts_with(b"conectix"));
                }
                ImageFormat::Qcow2 => assert!(bytes.starts_with(b"QFI\xfb")),
            }
        }
        let again = restore(&point, None, &to, options.clone()).await;
        assert!(matches!(again, Err(RecoverError::Target { .. })));
        assert_eq!(std::fs::read_dir(&to).expect("dir").count(), 2, "the images and nothing else");
    }
    let directory = tempfile::tempdir().expect("temp dir");
    let one = [name("data")];
    let report = restore(&point, Some(&one), directory.path(), options(ImageFormat::Raw)).await.expect("restored");
    assert_eq!(report.disks.len(), 1);
    assert!(matches!(
        restore(&point, Some(&[name("nope")]), directory.path(), options(ImageFormat::Raw)).await,
        Err(RecoverError::UnknownDisk { .. })
    ));
}

#[tokio::test]
async fn compare_finds_exactly_the_changed_blocks() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 7).await;
    log.live(8).await;
    let history = load(&log).await;
    let point = open(&history, log.last_valid()).await;
    let disk = point.disk(&name("root")).expect("disk");
    let same = log.model.at[log.last_valid().0 as usize][&name("root")].to_vec();
    let report = compare(&disk, &MemoryDisk::from_contents(same.clone()), None).await.expect("compared");
    assert_eq!((report.differing.len(), report.bytes_compared), (0, 64 << 10));
    let mut changed = same.clone();
    for at in [5000, 9000, 40_000] {
        changed[at] ^= 1;
    }
    let report = compare(&disk, &MemoryDisk::from_contents(changed), None).await.expect("compared");
    let extent = |at, len| Extent::new(at, len).expect("aligned");
    assert_eq!(report.differing, vec![extent(4096, 8192), extent(36_864, 4096)]);
    let smaller = compare(&disk, &MemoryDisk::new(4096), None).await;
    assert!(matches!(smaller, Err(RecoverError::SizeDiffers { .. })));
    let file = tempfile::tempdir().expect("temp dir");
    let blank = RawDisk::create(&file.path().join("blank"), 64 << 10).expect("created");
    let report = compare(&disk, &blank, None).await.expect("compared");
    let nonzero = same.chunks(4096).filter(|block| block.iter().any(|b| *b != 0)).count() as u64;
    assert_eq!(report.differing.iter().map(Extent::len).sum::<u64>(), nonzero * 4096);
}

/// After a failed flush the page cache shows what the medium never took: the medium is what is compared.
#[tokio::test]
async fn compare_sees_past_a_page_cache_that_lies() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 7).await;
    log.live(8).await;
    let history = load(&log).await;
    let point = open(&history, log.last_valid()).await;
    let disk = point.disk(&name("root")).expect("disk");
    let source = MemoryDisk::new(64 << 10);
    source.flush().await.expect("flushed");
    source.write(0, disk.read(Extent::new(0, 64 << 10).expect("aligned")).await.expect("read")).await.expect("written");
    source.fail_next(Operation::Flush, Fault::Torn(5));
    source.flush().await.expect_err("injected");
    let visible = source.contents();
    assert_ne!(visible, source.durable_contents(), "the cache hides what the medium lost");
    let report = compare(&disk, &source, None).await.expect("compared");
    let differs = |block: &usize| {
        let range = block * 4096..(block + 1) * 4096;
        visible[range.clone()] != source.durable_contents()[range]
    };
    let lost = (0..16).filter(differs).count() as u64;
    assert!(lost > 0);
    assert_eq!(report.differing.iter().map(Extent::len).sum::<u64>(), lost * 4096);
}

#[tokio::test]
async fn a_point_refuses_to_be_written() {
    let (store, keys) = vault().await;
    let log = TestLog::begin(&store, &keys, "db", 8).await;
    let history = load(&log).await;
    let disk: Arc<dyn Disk> = open(&history, log.last()).await.disk(&name("root")).expect("disk");
    assert!(disk.write(0, vec![0; 512].into()).await.is_err());
    assert!(disk.zero(Extent::new(0, 512).expect("aligned"), true).await.is_err());
}
