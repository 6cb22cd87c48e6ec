//! A source that writes the time: what comes back for a time is that time, as exactly as the policy says.
//!
//! Ninety days of virtual time: a write each minute, and ten a second around every time that will be asked for and through
//! the last hour. A real applier makes the points, thins them, makes the maps and deletes what is kept no longer on the way. Then
//! a hundred random times are asked for: in the journal window what comes back is as near as two writes, and further back
//! the time read from the disk differs from the one asked for by less than the interval of the tier that it is in, and what
//! lies between two points. The control: a policy thinner than the one that is claimed is caught.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::{DiskChange, DiskName, Extent, RecordBody, Selector, Seq, Timestamp};

use super::load;
use crate::recover::{History, Resolved};
use crate::testing::{Rng, TestLog, name, vault};
use crate::{Applier, ApplierConfig, Clock};

const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const LIFE: u64 = 90 * DAY;
/// The clock at the beginning of the life; no bucket begins there.
const BIRTH: u64 = 20_000 * DAY + 5 * HOUR + 7 * MINUTE;
/// Time between two writes where they are ten a second.
const TICK: u64 = SECOND / 10;

const CLAIMED: &str = "24h:all, 7d:1h, 30d:1d, 1y:1w";
const THINNER: &str = "24h:all, 7d:3h, 30d:4d, 1y:4w";
/// Ages in microseconds and what [`CLAIMED`] says of them: none between points that are all kept.
const TIERS: [(std::ops::Range<u64>, u64); 4] =
    [(0..DAY, 0), (DAY..7 * DAY, HOUR), (7 * DAY..30 * DAY, DAY), (30 * DAY..LIFE - 7 * DAY, 7 * DAY)];
/// Between two points lie `crash_every` and the time to the next write.
const BETWEEN_POINTS: u64 = 2 * MINUTE;

/// The time of the machine, as far as it has come.
#[derive(Default)]
pub(super) struct VirtualClock(pub(super) AtomicU64);

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        // Relaxed: the value alone counts.
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// Twenty-five random times in each tier, the oldest first.
fn times(rng: &mut Rng) -> Vec<u64> {
    let mut times: Vec<_> = TIERS
        .iter()
        .flat_map(|(ages, _)| (0..25).map(|_| ages.start + rng.below(ages.end - ages.start)).collect::<Vec<_>>())
        .map(|age| BIRTH + LIFE - age)
        .collect();
    times.sort_unstable();
    times
}

/// Writes the time, at that time.
fn tick(log: &mut TestLog, now: u64) {
    let disk = name::<DiskName>("clock").id();
    let extent = Extent::new(0, 512).expect("a sector");
    let data = now.to_le_bytes().repeat(64).into();
    log.push_at(Timestamp(now), RecordBody::Write { disk, extent, data });
}

/// When the source writes: in order, from the first minute to the last.
fn ticks(times: &[u64]) -> Vec<u64> {
    let minutes = (BIRTH..BIRTH + LIFE).step_by(MINUTE as usize);
    let around = times.iter().flat_map(|time| (time - SECOND..time + SECOND).step_by(TICK as usize));
    let last_hour = (BIRTH + LIFE - HOUR..BIRTH + LIFE).step_by(TICK as usize);
    let mut ticks: Vec<_> = minutes.chain(around).chain(last_hour).collect();
    ticks.sort_unstable();
    ticks.dedup();
    ticks
}

async fn applier(log: &TestLog, retention: &str, clock: &Arc<VirtualClock>) -> Arc<Applier> {
    let settings = ApplierConfig {
        journal_window: Duration::from_secs(24 * 3600),
        retention: retention.parse().expect("a retention"),
        poll: Duration::from_secs(10),
        map_segments: 64,
        gc: true,
        ..super::settings()
    };
    let (store, keys, machines) = (log.store.clone(), log.keys.clone(), vec![log.machine.clone()]);
    Applier::start(settings, store, keys, machines, clock.clone()).await.expect("started")
}

/// Everything is taken in, and the policy was asked after that.
pub(super) async fn caught_up(applier: &Applier, log: &TestLog) {
    for _ in 0..100 {
        waiting::pass(Duration::from_secs(130)).await;
        if applier.status().machines[0].processed_seq == log.last() {
            return waiting::pass(Duration::from_secs(130)).await;
        }
    }
    panic!("the applier takes everything in: {:?}", applier.status());
}

/// Ninety days, each quarter of a day taken in before the next begins.
async fn live(log: &mut TestLog, times: &[u64], clock: &Arc<VirtualClock>) {
    let applier = applier(log, CLAIMED, clock).await;
    let ticks = ticks(times);
    for part in ticks.chunk_by(|a, b| (a - BIRTH) / (6 * HOUR) == (b - BIRTH) / (6 * HOUR)) {
        for segment in part.chunk_by(|a, b| a / (10 * MINUTE) == b / (10 * MINUTE)) {
            segment.iter().for_each(|now| tick(log, *now));
            log.commit().await;
        }
        // Relaxed: as above.
        clock.0.store(part[part.len() - 1], Ordering::Relaxed);
        caught_up(&applier, log).await;
        // The epoch has its time.
        log.reattach_blind().await;
    }
    applier.stop().await;
}

/// The time on the disk of a position.
async fn time_written(history: &History, at: &Resolved) -> u64 {
    let disk = history.open(at).await.expect("opened").disk(&name("clock")).expect("there");
    let sector = disk.read(Extent::new(0, 512).expect("a sector")).await.expect("read");
    let words: Vec<_> =
        sector.chunks(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect();
    assert!(words.iter().all(|word| *word == words[0]), "one write, whole");
    assert_eq!(Timestamp(words[0]), at.time, "what the disk says is what the position says");
    words[0]
}

/// What is further from the time asked for than [`CLAIMED`] says, through the points that are left.
async fn too_far(history: &History, times: &[u64]) -> Vec<String> {
    let points = history.recorded_points();
    let mut found = Vec::new();
    for time in times {
        let age = BIRTH + LIFE - time;
        let (_, interval) = TIERS.iter().find(|(ages, _)| ages.contains(&age)).expect("in a tier");
        let before = points.iter().rfind(|point| point.time <= Timestamp(*time)).expect("a point before it");
        let at = history.resolve(&Selector::Id(before.id), None).await.expect("a point is a position");
        let error = time - time_written(history, &at).await;
        if error > interval + BETWEEN_POINTS {
            found.push(format!("{} s for an age of {} h", error / SECOND, age / HOUR));
        }
    }
    found
}

#[tokio::test(start_paused = true)]
async fn a_hundred_times_of_ninety_days_come_back_as_exactly_as_the_policy_says() {
    let mut rng = Rng(90);
    let times = times(&mut rng);
    let (store, keys) = vault().await;
    let mut log = TestLog::new(store, keys, "db", 9).await;
    log.model.blind = true;
    let disk: DiskName = name("clock");
    let added = RecordBody::Disk { disk: disk.id(), name: disk, size: 4096, change: DiskChange::Added };
    log.push_at(Timestamp(BIRTH), added);
    let begun = log.drain_begin_body(Seq(0));
    log.push_at(Timestamp(BIRTH), begun);
    tick(&mut log, BIRTH);
    let ended = log.drain_end_body();
    log.push_at(Timestamp(BIRTH), ended);
    let clock = Arc::new(VirtualClock(AtomicU64::new(BIRTH)));
    live(&mut log, &times, &clock).await;

    let history = load(&log).await;
    let points = history.recorded_points().len();
    println!("{} records, {points} points left", log.last());
    assert!(points < 24 * 60 + 6 * 24 + 23 + 13 + 70, "{points} points: the policy drops those that it does not keep");
    assert_eq!(too_far(&history, &times).await, Vec::<String>::new());
    for time in &times {
        let at = history.resolve(&Selector::Time(Timestamp(*time)), None).await.expect("a valid time");
        let (age, error) = (BIRTH + LIFE - time, time - time_written(&history, &at).await);
        let (_, interval) = TIERS.iter().find(|(ages, _)| ages.contains(&age)).expect("in a tier");
        let most = if *interval == 0 { TICK } else { interval + BETWEEN_POINTS };
        assert!(error < most, "{error} us between {time} and what comes back for it");
    }
    let left = log.store.list("machine/db/stream/seg").await.expect("listed").len();
    println!("{left} of some {} segments are left", LIFE / (10 * MINUTE));
    assert!(left < 500, "{left} segments are left: 30 hours of them, and one for each older point at most");

    let thinner = applier(&log, THINNER, &clock).await;
    caught_up(&thinner, &log).await;
    thinner.stop().await;
    let thinned = load(&log).await;
    let caught = too_far(&thinned, &times).await;
    println!("a thinner policy is caught at {} of {} times", caught.len(), times.len());
    assert!(caught.len() > 30, "{caught:?}");
}
