//! The horizon and the collection of segments: whatever is done to a store in whatever order, every position that is promised
//! reads as the model says, every other one is refused, and nothing that is not needed stays.
//!
//! The property test plays random steps against [`TestLog`]'s model: writes, marks, drains, restarts of the process server,
//! runs of an applier with its clock at the newest record, garbage collection and the making of packs, a crash of the applier at
//! any step of them, late PUTs of what was deleted, positions held and let go. After each run everything is opened.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::{DiskChange, EventKind, Selector, Seq, Severity, Timestamp};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use store::{Fault, FaultRule, FaultStore, Faults, Store};

use super::{contents, load, open, wait_for};
use crate::recover::{
    History, HoldAnswer, LoadOptions, PointReader, PositionHold, RecoverError, RestoreOptions, VerifyOptions, restore,
    verify,
};
use crate::testing::{LockedStore, TestLog, name, vault, vault_in};
use crate::{Applier, ApplierConfig, ApplierRules, Clock, preview_collection};

/// A clock that stands where the test puts it.
struct StandingClock(AtomicU64);

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        // Relaxed: nothing else depends on it.
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// Records are a second apart: the window holds so many of them.
const WINDOW_SECONDS: u64 = 40;

const RETENTION: &str = "40s:all, 4m:30s";

pub(super) fn settings() -> ApplierConfig {
    ApplierConfig {
        crash_every: Duration::from_secs(5),
        journal_window: Duration::from_secs(WINDOW_SECONDS),
        retention: RETENTION.parse().expect("a retention"),
        commit_every: Duration::from_millis(1),
        tidy_every: Duration::from_micros(50),
        // Segments have some two thousand bytes.
        pack_bytes: 16 << 10,
        gc: true,
        state_digests: true,
        ..super::settings()
    }
}

pub(super) async fn start(log: &TestLog) -> Arc<Applier> {
    start_with(settings(), log).await
}

pub(super) async fn start_with(settings: ApplierConfig, log: &TestLog) -> Arc<Applier> {
    start_with_rules(settings, log, ApplierRules::ALL).await
}

pub(super) async fn start_with_rules(settings: ApplierConfig, log: &TestLog, rules: ApplierRules) -> Arc<Applier> {
    start_on(settings, log, log.store.clone(), rules).await
}

/// The same with a store of its own.
pub(super) async fn start_on(
    settings: ApplierConfig,
    log: &TestLog,
    store: Store,
    rules: ApplierRules,
) -> Arc<Applier> {
    let now = log.model.times[log.last().0 as usize];
    let clock = Arc::new(StandingClock(AtomicU64::new(now.0)));
    let (keys, machines) = (log.keys.clone(), vec![log.machine.clone()]);
    Applier::start_with_rules(settings, store, keys, machines, clock, rules).await.expect("started")
}

/// Runs an applier until it has taken everything in and finds nothing more to delete.
pub(super) async fn tidy(log: &TestLog) {
    tidy_with(settings(), log, ApplierRules::ALL).await;
    let plan = preview_collection(&log.store, &log.keys, &log.machine).await.expect("no doubt");
    let left: Vec<_> = plan.garbage.iter().map(|garbage| plan.explain(garbage)).collect();
    let later = |text: &String| ["/manifest/", "/map/", "/pack/"].iter().any(|kind| text.contains(kind));
    assert!(left.iter().all(later), "{left:?}");
}

pub(super) async fn tidy_with(settings: ApplierConfig, log: &TestLog, rules: ApplierRules) {
    let applier = start_with_rules(settings, log, rules).await;
    at_rest(&applier, log).await;
    applier.stop().await;
}

/// The same under these safety rules.
pub(super) async fn tidy_by(log: &TestLog, rules: ApplierRules) {
    tidy_with(settings(), log, rules).await;
}

/// Everything is taken in, and nothing moves any more.
pub(super) async fn at_rest(applier: &Applier, log: &TestLog) {
    let deadline = waiting::Deadline::after(Duration::from_secs(60));
    let (mut before, mut same) = (None, 0);
    loop {
        let status = applier.status().machines.remove(0);
        assert!(status.last_error.is_none(), "{status:?}");
        let now = Some((log.store.list("machine").await.expect("listed"), status.horizon_seq));
        let settled = status.processed_seq == log.last() && before == now;
        same = if settled { same + 1 } else { 0 };
        before = now;
        // Several times as long as a commit waits for the one before: behind it the horizon moves and packs are made.
        if same >= 8 {
            let left = garbage(log).await;
            if left.is_empty() {
                return;
            }
            deadline.look_again(format_args!("garbage goes: {left:?}, {status:?}")).await;
        }
        deadline.look_again(format_args!("rest: {before:?}, {status:?}")).await;
    }
}

/// Segments that are left and that a collection would take.
async fn garbage(log: &TestLog) -> Vec<String> {
    let Ok(plan) = preview_collection(&log.store, &log.keys, &log.machine).await else { return Vec::new() };
    let segments = plan.garbage.iter().filter(|garbage| garbage.path.contains("/stream/"));
    segments.map(|garbage| plan.explain(garbage)).collect()
}

/// Every position: those that are promised read as the model says, the others are refused.
pub(super) async fn everything_is_right(log: &TestLog) {
    let history = load(log).await;
    let newest = log.model.times[log.last().0 as usize];
    for seq in (1..=log.last().0).map(Seq) {
        let at = seq.0 as usize;
        let kept = history.recorded_points().iter().any(|point| point.position.seq == seq);
        let young = newest.since(log.model.times[at]) <= Duration::from_secs(WINDOW_SECONDS);
        let resolved = history.resolve(&Selector::Seq(seq), None).await;
        match log.model.valid[at] {
            true if kept || young || seq > history.horizon_seq() => {
                assert!(young <= (seq > history.horizon_seq()), "position {seq} of the window lies before the horizon");
                let point = history.open(&resolved.expect("promised")).await.expect("opened");
                assert!(contents(&point).await == log.model.at[at], "position {seq}");
                assert_eq!(point.at().digest, log.model.digests[at]);
            }
            true => {
                let refused = resolved.expect_err("not promised");
                assert!(matches!(refused, RecoverError::BeforeHorizon { .. }), "{refused}");
            }
            false => assert!(resolved.is_err(), "position {seq} is inside a drain"),
        }
        by_time(log, &history, seq).await;
    }
}

/// A time means the last position that opens and is not later.
async fn by_time(log: &TestLog, history: &History, seq: Seq) {
    let resolved = history.resolve(&Selector::Time(log.model.times[seq.0 as usize]), None).await;
    let opens = |seq: &Seq| {
        let kept = history.recorded_points().iter().any(|point| point.position.seq == *seq);
        log.model.valid[seq.0 as usize] && (kept || *seq > history.horizon_seq())
    };
    match (1..=seq.0).rev().map(Seq).find(opens) {
        Some(expected) => assert_eq!(resolved.expect("resolved").position.seq, expected, "time of {seq}"),
        None => assert!(resolved.is_err(), "nothing opens at or before {seq}"),
    }
}

pub(super) async fn verified(log: &TestLog) {
    let report = verify(&log.store, log.keys.clone(), &log.machine, VerifyOptions::default()).await.expect("verified");
    assert!(report.clean(), "{report:?}");
    assert_eq!(report.head_seq, log.last());
}

/// One step of a life.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Random writes and zeros, then a segment.
    Write {
        records: u8,
    },
    Mark,
    Drain {
        back: u8,
    },
    Grow,
    /// The process server restarts: another epoch.
    Restart,
    /// An applier runs until nothing is left to do.
    Tidy,
    /// An applier is stopped at once, wherever it is.
    CutShort,
    /// An applier dies at a step of a commit, a map, a pack or a collection, behind so many others.
    Die {
        passed: u8,
    },
    /// Something that was deleted is put once more, as a late PUT does.
    LatePut {
        which: u16,
    },
    /// Somebody reads one of the positions that open, from now on.
    Hold {
        which: u16,
    },
    /// The one who has read longest stops.
    Release,
    /// One of the positions that open is restored to files.
    Restore {
        which: u16,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..12u8).prop_map(|records| Step::Write { records }),
        1 => Just(Step::Mark),
        1 => (0..4u8).prop_map(|back| Step::Drain { back }),
        1 => Just(Step::Grow),
        3 => Just(Step::Restart),
        2 => Just(Step::Tidy),
        1 => Just(Step::CutShort),
        2 => (0..120u8).prop_map(|passed| Step::Die { passed }),
        1 => any::<u16>().prop_map(|which| Step::LatePut { which }),
        1 => any::<u16>().prop_map(|which| Step::Hold { which }),
        1 => Just(Step::Release),
        1 => any::<u16>().prop_map(|which| Step::Restore { which }),
    ]
}

/// What there is beside the log.
#[derive(Default)]
pub(super) struct Beside {
    /// Paths and bytes of all segments ever put.
    put: Vec<(String, bytes::Bytes)>,
    /// Positions that are read.
    held: VecDeque<(Seq, PositionHold)>,
}

async fn commit(log: &mut TestLog, beside: &mut Beside) {
    let path = log.commit().await;
    let bytes = log.store.get(&path).await.expect("read").expect("just put");
    beside.put.push((path, bytes));
}

pub(super) async fn take(step: &Step, log: &mut TestLog, beside: &mut Beside) {
    match *step {
        Step::Write { records } => {
            (0..records).for_each(|_| _ = log.random());
            commit(log, beside).await;
        }
        Step::Mark => {
            log.named("marked");
            commit(log, beside).await;
        }
        Step::Drain { back } => {
            let lost_after = Seq(log.last_valid().0.saturating_sub(back.into()));
            log.drain_begin(lost_after);
            log.random();
            log.drain_end();
            commit(log, beside).await;
        }
        Step::Grow => {
            let size = log.model.at.last().expect("some")[&name("data")].len() as u64;
            let size = if size > 96 << 10 { 24 << 10 } else { size + (8 << 10) };
            log.disk("data", size, DiskChange::Resized);
            commit(log, beside).await;
        }
        Step::Restart => log.reattach_blind().await,
        Step::Tidy => {
            tidy(log).await;
            everything_is_right(log).await;
            beside.is_held(log).await;
        }
        Step::CutShort => start(log).await.stop().await,
        Step::Die { passed } => die(log, passed.into(), "applier-", ApplierRules::ALL).await,
        Step::LatePut { which } => {
            if let Some((path, bytes)) = beside.put.get(usize::from(which) % beside.put.len().max(1)) {
                // There already, or gone: both are fine.
                log.store.create(path, vec![bytes.clone()]).await.expect("answered");
            }
        }
        Step::Hold { which } => hold(log, beside, which.into()).await,
        Step::Release => {
            if let Some((_, hold)) = beside.held.pop_front() {
                hold.release().await.expect("asked");
            }
        }
        Step::Restore { which } => restored(log, which.into()).await,
    }
}

/// One of the positions that open now.
async fn one_open(log: &TestLog, which: usize) -> Option<PointReader> {
    let history = load(log).await;
    let mut open = Vec::new();
    for seq in (1..=log.last().0).map(Seq) {
        open.extend(history.resolve(&Selector::Seq(seq), None).await.ok());
    }
    let at = open.get(which % open.len().max(1))?;
    Some(history.open(at).await.expect("opened"))
}

/// Restores one of them: the files hold what the model has.
async fn restored(log: &TestLog, which: usize) {
    let Some(point) = one_open(log, which).await else { return };
    let folder = tempfile::tempdir().expect("temp dir");
    let options = RestoreOptions { format: disk::ImageFormat::Raw, read_back: true, progress: None };
    let report = restore(&point, None, folder.path(), options).await.expect("restored");
    for disk in &report.disks {
        let image = std::fs::read(&disk.path).expect("image");
        let seq = point.at().position.seq;
        assert!(image == **log.model.at[seq.0 as usize][&disk.name], "{} at {seq}", disk.name);
    }
}

/// Asks for a position that opens now; what opens now is not let go before it is asked for.
async fn hold(log: &TestLog, beside: &mut Beside, which: usize) {
    if let Some(reader) = one_open(log, which).await {
        let at = reader.at();
        let mut hold = PositionHold::of(&reader);
        hold.ask(Duration::from_secs(7 * 24 * 3600)).await.expect("asked");
        beside.held.push_back((at.position.seq, hold));
    }
}

impl Beside {
    /// Every position that somebody reads still opens, and was granted.
    async fn is_held(&self, log: &TestLog) {
        let history = load(log).await;
        for (seq, hold) in &self.held {
            let answer = hold.answer().await.expect("answered");
            // A drain takes back what had seemed valid.
            if !log.model.valid[seq.0 as usize] {
                continue;
            }
            assert!(matches!(answer, HoldAnswer::Held { .. }), "{seq}: {answer:?}");
            history.resolve(&Selector::Seq(*seq), None).await.expect("held");
        }
    }
}

pub(super) async fn play(steps: &[Step]) -> TestLog {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 5).await;
    let mut beside = Beside::default();
    for step in steps {
        take(step, &mut log, &mut beside).await;
    }
    tidy(&log).await;
    everything_is_right(&log).await;
    beside.is_held(&log).await;
    assert!(log.store.list("machine/db/hold").await.expect("listed").is_empty(), "requests go once they are answered");
    verified(&log).await;
    log
}

/// An applier that ends, as a dying process does, at a step whose name begins so, behind the next `passed` of them, or comes to
/// rest before.
pub(super) async fn die(log: &TestLog, mut passed: u64, prefix: &'static str, rules: ApplierRules) {
    let dies = move |name: &'static str| {
        let dies = name.starts_with(prefix) && passed == 0;
        passed = passed.saturating_sub(u64::from(name.starts_with(prefix)));
        dies
    };
    die_when(log, rules, dies).await;
}

/// The same at the step that this says, and at all behind it.
pub(super) async fn die_when(log: &TestLog, rules: ApplierRules, mut dies: impl FnMut(&'static str) -> bool + 'static) {
    let dead = Arc::new(tokio::sync::Notify::new());
    let told = dead.clone();
    let mut died = false;
    probe::on_this_thread(Some(Box::new(move |name| {
        died |= dies(name);
        if died {
            told.notify_one();
        }
        died
    })));
    let applier = start_with_rules(settings(), log, rules).await;
    tokio::select! {
        biased;
        () = dead.notified() => {}
        () = at_rest(&applier, log) => applier.stop().await,
    }
    probe::on_this_thread(None);
}

#[test]
fn whatever_is_done_what_is_promised_opens_and_nothing_else() {
    let config = ProptestConfig::with_cases(10);
    let (cases, packed) = (config.cases, std::cell::Cell::new(0));
    let mut runner = TestRunner::new(config);
    let played = runner.run(&prop::collection::vec(step(), 30..70), |steps| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let log = runtime.block_on(play(&steps));
        let packs = runtime.block_on(log.store.list("machine/db/pack")).expect("listed");
        packed.set(packed.get() + u32::from(!packs.is_empty()));
        Ok(())
    });
    played.unwrap_or_else(|failed| panic!("{failed}"));
    assert!(packed.get() > 1, "packs in {} lives of {cases}: the test shows little", packed.get());
}

/// A life long enough that the horizon has passed most of it.
pub(super) fn long() -> Vec<Step> {
    (0..12).flat_map(|_| [vec![Step::Write { records: 8 }; 3], vec![Step::Restart]].concat()).collect()
}

#[tokio::test]
async fn what_the_window_has_left_is_deleted_but_for_what_points_need() {
    let log = play(&[long(), long(), long()].concat()).await;
    let history = load(&log).await;
    assert!(history.horizon_seq() > Seq(800), "the horizon stands at {}", history.horizon_seq());
    let segments = log.store.list("machine/db/stream/seg").await.expect("listed").len();
    // Of 109 segments some nine lie in the window; eight points lie before it, none of which reads from more than
    // a few.
    assert!(segments < 45, "{segments} segments are left");
    let kept: Vec<_> = history.recorded_points().iter().filter(|p| p.position.seq <= history.horizon_seq()).collect();
    assert!(kept.len() >= 5, "{} points before the horizon", kept.len());
}

#[tokio::test]
async fn a_disk_that_is_being_read_goes_on_when_its_maps_are_collected() {
    let (store, keys) = vault().await;
    let (mut log, mut beside) = (TestLog::begin(&store, &keys, "db", 6).await, Beside::default());
    for step in long() {
        take(&step, &mut log, &mut beside).await;
    }
    tidy(&log).await;
    let history = load(&log).await;
    let old = history.recorded_points().iter().find(|point| point.position.seq <= history.horizon_seq()).expect("one");
    let (old, id) = (old.position.seq, old.id);
    let applier = start(&log).await;
    applier.pin(&log.machine, id, true).await.expect("pinned");
    applier.stop().await;
    let held = load(&log).await;
    let reader = open(&held, old).await;
    for _ in 0..3 {
        for step in long() {
            take(&step, &mut log, &mut beside).await;
        }
        tidy(&log).await;
        assert!(contents(&reader).await == log.model.at[old.0 as usize]);
    }
    // One that nobody holds is refused in words once it is gone.
    let young = load(&log).await;
    let unheld = open(&young, log.last_valid()).await;
    let position = log.last_valid();
    for _ in 0..8 {
        for step in long() {
            take(&step, &mut log, &mut beside).await;
        }
    }
    tidy(&log).await;
    let disk = unheld.disk(&name("root")).expect("there");
    let whole = model::Extent::new(0, disk.size()).expect("not empty");
    if let Err(refused) = disk.read(whole).await {
        assert!(matches!(refused, RecoverError::BeforeHorizon { .. }), "{position}: {refused}");
    }
}

#[tokio::test]
async fn the_log_alone_is_refused_in_words_once_it_is_not_whole() {
    let log = play(&long()).await;
    let options = LoadOptions { settle: Duration::ZERO, without_maps: true, ..LoadOptions::default() };
    let refused = History::load(&log.store, log.keys.clone(), &log.machine, options).await.err().expect("refused");
    assert!(matches!(refused, RecoverError::LogCollected { .. }), "{refused}");
}

/// A segment before the horizon, and a point that reads from it.
async fn needed_segment(log: &TestLog) -> String {
    let history = load(log).await;
    let epoch = |path: &str| u64::from_str_radix(path.split('/').nth(4)?, 16).ok();
    let listed = log.store.list("machine/db/stream/seg").await.expect("listed");
    let paths = listed.into_iter().map(|(path, _)| path);
    let first = paths.filter(|path| !path.ends_with("0000000000000000")).min_by_key(|path| epoch(path));
    assert!(history.horizon_seq() > Seq::ZERO);
    first.expect("some segment is left")
}

#[tokio::test]
async fn damage_before_the_horizon_is_named_with_the_points_it_hits_and_stops_collection() {
    let (store, keys) = vault().await;
    let (mut log, mut beside) = (TestLog::begin(&store, &keys, "db", 5).await, Beside::default());
    for step in long() {
        take(&step, &mut log, &mut beside).await;
    }
    // Segments that are not packed; damaged packs have a test of their own.
    tidy_with(ApplierConfig { pack_bytes: 0, ..settings() }, &log, ApplierRules::ALL).await;
    let path = needed_segment(&log).await;
    let whole = log.store.get(&path).await.expect("read").expect("listed");
    let mut flipped = whole.to_vec();
    *flipped.last_mut().expect("not empty") ^= 1;
    let report =
        async || verify(&log.store, log.keys.clone(), &log.machine, VerifyOptions::default()).await.expect("report");
    for damaged in [Some(flipped), None] {
        log.store.delete(&path).await.expect("deleted");
        if let Some(bytes) = damaged {
            log.store.create(&path, vec![bytes.into()]).await.expect("created");
        }
        let report = report().await;
        assert_eq!(report.damages.len(), 1, "{:?}", report.damages);
        let damage = &report.damages[0];
        assert_eq!(damage.path, path);
        let history = load(&log).await;
        for point in history.recorded_points() {
            let hit =
                damage.ranges.iter().any(|range| range.from <= point.position.seq && point.position.seq <= range.to);
            let opened = open(&history, point.position.seq).await;
            let mut reads = true;
            for info in opened.disks() {
                let whole = model::Extent::new(0, info.size).expect("not empty");
                reads &= opened.disk(&info.name).expect("listed").read(whole).await.is_ok();
            }
            assert_eq!(reads, !hit, "point at {} and {:?}", point.position.seq, damage.ranges);
        }
    }
    assert!(!report().await.damages[0].points.is_empty(), "a segment that is missing hits who reads from it");
    let doubt = preview_collection(&log.store, &log.keys, &log.machine).await.expect_err("a needed segment is gone");
    assert!(doubt.to_string().contains(&path), "{doubt}");
    log.store.create(&path, vec![whole]).await.expect("put back");
    assert!(report().await.clean());
    log.random();
    log.commit().await;
    tidy(&log).await;
}

#[tokio::test]
async fn a_store_under_object_lock_loses_nothing_and_is_collected_when_the_lock_is_over() {
    let locked = LockedStore::new(Arc::new(InMemory::new()));
    let (store, keys) = vault_in(Arc::new(locked.clone())).await;
    let (mut log, mut beside) = (TestLog::begin(&store, &keys, "db", 8).await, Beside::default());
    let mut stored = 0;
    for step in [long(), long(), long()].concat() {
        take(&step, &mut log, &mut beside).await;
        stored += usize::from(matches!(step, Step::Write { .. }));
    }
    // It goes on, moves its horizon, says why nothing is deleted, and every promise holds.
    let applier = start(&log).await;
    let told = |applier: &Applier| {
        let events = applier.events(&log.machine);
        events.iter().any(|event| event.kind == EventKind::Collection && event.message.contains("object is locked"))
    };
    let moved = || applier.status().machines[0].horizon_seq > Seq::ZERO;
    wait_for("a horizon, and what stands in the way", async || told(&applier) && moved()).await;
    applier.stop().await;
    let segments = async || log.store.list("machine/db/stream/seg").await.expect("listed").len();
    assert!(segments().await > stored, "with the first, and an opening of each epoch");
    everything_is_right(&log).await;
    verified(&log).await;
    assert!(locked.unlock() > 0, "deletions were refused");
    tidy(&log).await;
    assert!(segments().await < stored / 2, "{} of {stored} segments are left", segments().await);
    everything_is_right(&log).await;
    verified(&log).await;
}

/// Runs an applier with a replica until it stands at the last valid position.
async fn replicate(log: &TestLog, data_dir: &Path) -> Arc<Applier> {
    let replicas = [(log.machine.clone(), crate::ReplicaConfig::default())].into();
    let settings = ApplierConfig { data_dir: data_dir.to_owned(), replicas, ..settings() };
    let applier = start_with(settings, log).await;
    wait_for("the replica", async || applier.processed(&log.machine) == Some(log.last_valid())).await;
    applier.stop().await;
    super::process::assert_replica(log, data_dir, log.last_valid());
    applier
}

#[tokio::test]
async fn a_replica_that_stands_before_the_horizon_is_built_out_of_maps() {
    let data_dir = tempfile::tempdir().expect("temp dir");
    let mut log = play(&long()).await;
    // From nothing, though the first segments are gone.
    replicate(&log, data_dir.path()).await;
    // From where no segment leads on: an applier without this replica moves the horizon past it.
    let left = log.last_valid();
    let mut beside = Beside::default();
    for step in long() {
        take(&step, &mut log, &mut beside).await;
    }
    tidy(&log).await;
    assert!(load(&log).await.horizon_seq() > left);
    let applier = replicate(&log, data_dir.path()).await;
    let told = applier.events(&log.machine).iter().any(|event| event.message.contains("built anew"));
    assert!(told, "{:?}", applier.events(&log.machine));
}

#[tokio::test]
async fn a_window_that_is_made_longer_brings_nothing_back_and_is_no_trouble() {
    let log = play(&long()).await;
    let horizon = load(&log).await.horizon_seq();
    let data_dir = tempfile::tempdir().expect("temp dir");
    let replicas: std::collections::BTreeMap<_, _> = [(log.machine.clone(), crate::ReplicaConfig::default())].into();
    for window in [Duration::from_secs(100_000), Duration::from_secs(WINDOW_SECONDS)] {
        let (data_dir, replicas) = (data_dir.path().to_owned(), replicas.clone());
        let settings = ApplierConfig { journal_window: window, data_dir, replicas, ..settings() };
        let applier = start_with(settings, &log).await;
        wait_for("the replica", async || applier.processed(&log.machine) == Some(log.last_valid())).await;
        applier.stop().await;
        let troubles: Vec<_> =
            applier.events(&log.machine).into_iter().filter(|event| event.severity > Severity::Info).collect();
        assert!(troubles.is_empty(), "{troubles:?}");
        assert_eq!(load(&log).await.horizon_seq(), horizon);
    }
    everything_is_right(&log).await;
}

#[tokio::test]
async fn more_points_than_get_their_maps_at_once_all_get_them() {
    let (store, keys) = vault().await;
    let (mut log, mut beside) = (TestLog::begin(&store, &keys, "db", 9).await, Beside::default());
    // Marks are points, and a policy that keeps them all.
    for step in long() {
        take(&step, &mut log, &mut beside).await;
        (0..4).for_each(|_| _ = log.named("marked"));
        commit(&mut log, &mut beside).await;
    }
    let settings = ApplierConfig { retention: "1y:all".parse().expect("a retention"), ..settings() };
    let applier = start_with(settings, &log).await;
    at_rest(&applier, &log).await;
    applier.stop().await;
    let history = load(&log).await;
    let before = history.recorded_points().iter().filter(|point| point.position.seq <= history.horizon_seq()).count();
    assert!(before > 130, "{before} points before the horizon");
    everything_is_right(&log).await;
    verified(&log).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_rests_leaves_the_horizon_and_the_collection_their_turn() {
    let (store, keys) = vault().await;
    let (mut log, mut beside) = (TestLog::begin(&store, &keys, "db", 23).await, Beside::default());
    for step in [long(), long()].concat() {
        take(&step, &mut log, &mut beside).await;
    }
    // Whenever a commit is through, the next segment is there.
    let wait = ThrottleConfig { wait_put_per_call: Duration::from_millis(100), ..ThrottleConfig::default() };
    let slow = ThrottledStore::new(store.object_store().clone(), wait);
    let applier = start_on(settings(), &log, Store::from_object_store(Arc::new(slow)), ApplierRules::ALL).await;
    let first = store.list("machine/db/stream/seg").await.expect("listed").remove(0).0;
    let mut moved = false;
    for _ in 0..2_000 {
        log.random();
        log.commit().await;
        tokio::time::advance(Duration::from_millis(20)).await;
        let status = applier.status().machines.remove(0);
        assert!(status.last_error.is_none(), "{status:?}");
        moved = status.horizon_seq > Seq::ZERO && store.get(&first).await.expect("read").is_none();
        if moved {
            break;
        }
    }
    assert!(moved, "two thousand segments on, {first} is still there: {:?}", applier.status());
    applier.stop().await;
}

#[tokio::test]
async fn a_history_that_the_horizon_overtakes_while_it_is_loaded_is_loaded_again() {
    // The seed decides whether the read that hangs takes place before the wait or behind it.
    for seed in 0..8 {
        let objects = Arc::new(InMemory::new());
        let faults = Faults::new(seed);
        let (store, keys) = vault_in(objects.clone()).await;
        let (mut log, mut beside) = (TestLog::begin(&store, &keys, "db", 8).await, Beside::default());
        let applier = start_with(ApplierConfig { gc: false, ..settings() }, &log).await;
        wait_for("the first segment", async || applier.status().machines[0].processed_seq == log.last()).await;
        applier.stop().await;
        // The manifest is read, and the walk behind its last segment begins.
        faults.add(FaultRule::new(Fault::HangUntilReleased, 1.0).below("machine/db/stream/seg").at_most(1));
        let slow = Store::from_object_store(Arc::new(FaultStore::new(objects, faults.clone())));
        let options = LoadOptions { settle: Duration::ZERO, ..LoadOptions::default() };
        let loading = tokio::spawn(async move { History::load(&slow, keys, &name("db"), options).await });
        wait_for("the walk", async || !faults.struck().is_empty()).await;
        for step in [long(), long()].concat() {
            take(&step, &mut log, &mut beside).await;
        }
        tidy(&log).await;
        faults.release();
        let history = loading.await.expect("no panic").unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(history.head().position.seq, log.last());
        assert!(history.horizon_seq() > Seq(100), "seed {seed}: it has overtaken");
        let last = open(&history, log.last_valid()).await;
        assert!(contents(&last).await == log.model.at[log.last_valid().0 as usize]);
    }
}
