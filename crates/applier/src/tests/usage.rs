//! Store usage: thirty virtual days of a database, and what is left in the store against what it wrote and what the promised
//! positions read.
//!
//! Half of the writes go to pages all over the disk, most of them to few; half to a journal that is written round and round. Two
//! measures: all that was ever written, compressed and sealed as the process server does it, sixteen blocks to a frame; and what
//! nobody could leave out, every version of a block that some position of the journal window or some kept point shows, once. The
//! control is the same life without packs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::{DiskChange, DiskName, Extent, RecordBody, Seq, Timestamp};

use super::load;
use super::times::{VirtualClock, caught_up};
use crate::testing::{Rng, TestLog, name, vault};
use crate::{Applier, ApplierConfig};

const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;
const DAYS: u64 = 30;
const BIRTH: u64 = 20_000 * DAY + 5 * HOUR;
const BLOCK: u64 = 4096;
/// Blocks of the disk: all are written at first, and many never again.
const BLOCKS: u64 = 8192;
/// The first of them are the database's journal.
const JOURNAL_BLOCKS: u64 = 512;
/// Writes of one block, and time between two segments.
const WRITES: u64 = 64;
const SEGMENT_EVERY: u64 = 60 * 60 * SECOND;
/// A sixty-fourth of the real thing, as are segments.
const PACK_BYTES: u64 = 1 << 20;

/// Who wrote what when: by block the numbers of its writes.
#[derive(Default)]
struct Writes(BTreeMap<u64, Vec<Seq>>);

impl Writes {
    /// Versions that some position from `begin` on, or one of these points, shows.
    fn promised(&self, begin: Seq, points: &[Seq]) -> u64 {
        let shown = |writes: &[Seq], at: Seq| writes.partition_point(|seq| *seq <= at).checked_sub(1);
        let versions = self.0.values().map(|writes| {
            let at = points.iter().copied().chain([begin]).filter(|at| *at <= begin);
            let mut versions: BTreeSet<_> = at.filter_map(|at| shown(writes, at)).collect();
            versions.extend(writes.partition_point(|seq| *seq <= begin)..writes.len());
            versions.len() as u64
        });
        versions.sum()
    }
}

/// Half of it compresses to nothing.
fn block_of(rng: &mut Rng) -> bytes::Bytes {
    let mut block: Vec<u8> = (0..BLOCK / 16).flat_map(|_| rng.next().to_le_bytes()).collect();
    block.resize(BLOCK as usize, 0x20);
    block.into()
}

/// Most writes go to few blocks, which lie all over the disk.
fn hot_block(rng: &mut Rng) -> u64 {
    let uniform = rng.below(1 << 20) as f64 / (1 << 20) as f64;
    let rank = ((BLOCKS - JOURNAL_BLOCKS) as f64 * uniform.powi(4)) as u64;
    JOURNAL_BLOCKS + rank.wrapping_mul(2_654_435_761) % (BLOCKS - JOURNAL_BLOCKS)
}

fn write(log: &mut TestLog, writes: &mut Writes, block: u64, time: u64) {
    let disk = name::<DiskName>("data").id();
    let extent = Extent::new(block * BLOCK, BLOCK).expect("a block");
    let data = block_of(&mut log.rng);
    let seq = log.push_at(Timestamp(time), RecordBody::Write { disk, extent, data });
    writes.0.entry(block).or_default().push(seq);
}

/// What is in the store at the end of a life, by kind, and the bytes of what is promised.
struct Usage {
    kinds: BTreeMap<String, (u64, u64)>,
    total: u64,
    written: u64,
    promised: u64,
}

impl Usage {
    /// Percent more than `bytes`.
    fn over(&self, bytes: u64) -> f64 {
        (self.total as f64 / bytes as f64 - 1.0) * 100.0
    }
}

async fn life(pack_bytes: u64) -> Usage {
    let (store, keys) = vault().await;
    let mut log = TestLog::new(store, keys, "db", 17).await;
    log.model.blind = true;
    log.chunks_per_frame = 16;
    let mut writes = Writes::default();
    let disk: DiskName = name("data");
    let added = RecordBody::Disk { disk: disk.id(), name: disk, size: BLOCKS * BLOCK, change: DiskChange::Added };
    log.push_at(Timestamp(BIRTH), added);
    let begun = log.drain_begin_body(Seq(0));
    log.push_at(Timestamp(BIRTH), begun);
    for block in 0..BLOCKS {
        write(&mut log, &mut writes, block, BIRTH);
        if block % 512 == 511 {
            log.commit().await;
        }
    }
    let ended = log.drain_end_body();
    log.push_at(Timestamp(BIRTH), ended);
    log.commit().await;
    let clock = Arc::new(VirtualClock(AtomicU64::new(BIRTH)));
    let settings = ApplierConfig {
        journal_window: Duration::from_secs(24 * 3600),
        retention: "24h:all, 7d:1h, 30d:1d, 1y:1w".parse().expect("a retention"),
        poll: Duration::from_secs(10),
        map_segments: 64,
        pack_bytes,
        gc: true,
        ..super::settings()
    };
    let machines = vec![log.machine.clone()];
    let applier = Applier::start(settings, log.store.clone(), log.keys.clone(), machines, clock.clone()).await;
    let applier = applier.expect("started");
    let (mut now, mut journal) = (BIRTH, 0);
    for _ in 0..DAYS * 4 {
        for _ in 0..6 * HOUR / SEGMENT_EVERY {
            for n in 0..WRITES {
                now += SEGMENT_EVERY / WRITES;
                let block = match n < WRITES / 2 {
                    true => hot_block(&mut log.rng),
                    false => journal % JOURNAL_BLOCKS,
                };
                journal += u64::from(n >= WRITES / 2);
                write(&mut log, &mut writes, block, now);
            }
            log.commit().await;
        }
        // Relaxed: the value alone counts.
        clock.0.store(now, Ordering::Relaxed);
        caught_up(&applier, &log).await;
        log.reattach_blind().await;
    }
    for _ in 0..10 {
        caught_up(&applier, &log).await;
    }
    applier.stop().await;
    usage(&log, &writes, now).await
}

async fn usage(log: &TestLog, writes: &Writes, now: u64) -> Usage {
    let history = load(log).await;
    let points: Vec<_> = history.recorded_points().iter().map(|point| point.position.seq).collect();
    let times = &log.model.times;
    let begin = Seq(times.partition_point(|time| time.0 <= now - DAY) as u64 - 1);
    let sealed = log.sealed_bytes / log.sealed_chunks;
    let mut kinds = BTreeMap::<String, (u64, u64)>::new();
    for (path, bytes) in log.store.list("machine/db").await.expect("listed") {
        let kind = path.trim_start_matches("machine/db/").split('/').take(2).collect::<Vec<_>>();
        let kind = match kind[..] {
            ["stream", "seg"] => "segments",
            ["pack", _] => "packs",
            ["map", _] => "maps",
            ["manifest", _] => "manifest",
            _ => "other",
        };
        let (objects, sum) = kinds.entry(kind.to_owned()).or_default();
        (*objects, *sum) = (*objects + 1, *sum + bytes);
    }
    let total = kinds.values().map(|(_, bytes)| bytes).sum();
    Usage { kinds, total, written: log.sealed_bytes, promised: writes.promised(begin, &points) * sealed }
}

#[tokio::test(start_paused = true)]
async fn thirty_days_of_a_database_take_less_than_it_wrote_and_little_more_than_is_promised() {
    let mut totals = Vec::new();
    for (what, pack_bytes) in [("with packs", PACK_BYTES), ("without packs", 0)] {
        let usage = life(pack_bytes).await;
        let (written, promised) = (usage.over(usage.written), usage.over(usage.promised));
        println!(
            "{what}: {} bytes in the store; {written:+.1} % on {} written, {promised:+.1} % on {} promised",
            usage.total, usage.written, usage.promised
        );
        for (kind, (objects, bytes)) in &usage.kinds {
            println!("  {kind}: {bytes} bytes in {objects} objects");
        }
        totals.push((usage.total, written));
    }
    assert!(totals[0].1 < 15.0, "{totals:?}");
    assert!(totals[0].0 < totals[1].0 / 20 * 19, "packs save something: {totals:?}");
}
