//! The running applier: manifests, points, replicas, crashes, takeover; and the end of a machine's protection.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use format::manifest::PointKind;
use format::object::LogKind;
use model::retention::Candidate;
use model::{DiskChange, EventKind, Retention, Selector, Seq, Timestamp};
use probe::{Rule, Rules};
use store::LogRules;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{contents, follow, load, open, wait_for};
use crate::applier::SegmentRun;
use crate::maps::{Maps, segments_behind};
use crate::recover::{History, LoadOptions, RecoverError, Validity, VerifyOptions, processed, verify};
use crate::replica::Replica;
use crate::testing::{Rng, TestLog, vault};
use crate::{Applier, ApplierConfig, ApplierError, ApplierRules, Clock, ReplicaConfig, manifest, unprotect};

/// A clock that stands where the test puts it.
#[derive(Default)]
pub(super) struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

pub(super) fn config(data_dir: &Path) -> ApplierConfig {
    let replicas = ["db", "db-2"].map(|name| (name.parse().expect("valid"), ReplicaConfig::default())).into();
    let poll = Duration::from_millis(10);
    ApplierConfig { data_dir: data_dir.to_owned(), poll, replicas, state_digests: true, ..super::settings() }
}

async fn start(log: &TestLog, data_dir: &Path, clock: &Arc<TestClock>) -> Arc<Applier> {
    start_with(config(data_dir), log, clock).await
}

pub(super) async fn start_with(config: ApplierConfig, log: &TestLog, clock: &Arc<TestClock>) -> Arc<Applier> {
    let machines = vec![log.machine.clone()];
    let clock: Arc<dyn Clock> = clock.clone();
    Applier::start(config, log.store.clone(), log.keys.clone(), machines, clock).await.expect("started")
}

/// Raw files.
fn raw() -> ReplicaConfig {
    ReplicaConfig::default()
}

/// The replica's files equal the model at a position, and there are no others.
pub(super) fn assert_replica(log: &TestLog, data_dir: &Path, seq: Seq) {
    let directory = data_dir.join("replica").join(log.machine.as_str());
    let expected = &log.model.at[seq.0 as usize];
    for (disk, contents) in expected {
        let found = std::fs::read(directory.join(format!("{disk}.raw"))).expect("replica disk");
        assert!(found == **contents, "disk {disk} at seq {seq}");
    }
    let files = std::fs::read_dir(&directory)
        .expect("listed")
        .filter(|entry| entry.as_ref().expect("entry").path().extension().is_some_and(|extension| extension == "raw"));
    assert_eq!(files.count(), expected.len());
}

#[tokio::test]
async fn the_applier_promotes_makes_points_and_keeps_the_replica() {
    let (store, keys) = vault().await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    let clock = Arc::new(TestClock::default());
    let mut log = TestLog::begin(&store, &keys, "db", 1).await;
    let applier = start(&log, data_dir.path(), &clock).await;
    for _ in 0..70 {
        log.random();
    }
    let (marked, id) = log.named("before upgrade");
    log.random();
    log.commit().await;
    let last = log.last();
    wait_for("the replica", async || processed(data_dir.path(), &log.machine).await == Some(last)).await;
    assert_replica(&log, data_dir.path(), last);
    // Records have stopped; time goes on.
    clock.0.store(1_000_000_000, Ordering::Relaxed);
    wait_for("the idle crash point", async || applier.status().machines[0].points == 4).await;
    let status = applier.status().machines.remove(0);
    assert_eq!((status.processed_seq, status.lag_seconds, status.last_error), (last, 0.0, None));
    applier.stop().await;
    let history = load(&log).await;
    let kinds: Vec<_> = history.recorded_points().iter().map(|p| (p.position.seq, p.kind)).collect();
    let crash = Seq(10 + 60);
    let expected = [
        (Seq(10), PointKind::DrainEnd),
        (crash, PointKind::Crash),
        (marked, PointKind::Marked),
        (last, PointKind::Crash),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(history.resolve(&Selector::Id(id), None).await.expect("resolved").position.seq, marked);
    let report = verify(&store, keys, &log.machine, VerifyOptions::default()).await.expect("verified");
    assert!(report.clean(), "{report:?}");
}

#[tokio::test]
async fn an_applier_without_replica_touches_no_file() {
    let (store, keys) = vault().await;
    let data_dir = Path::new("a-directory-that-nobody-makes");
    let mut log = TestLog::begin(&store, &keys, "db", 7).await;
    let config = ApplierConfig { replicas: BTreeMap::new(), ..config(data_dir) };
    let (machines, clock) = (vec![log.machine.clone()], Arc::new(TestClock::default()));
    let applier = Applier::start(config, store, keys, machines, clock).await.expect("started");
    for _ in 0..20 {
        log.random();
    }
    log.commit().await;
    let last = log.last();
    wait_for("promotion", async || applier.status().machines[0].processed_seq == last).await;
    applier.stop().await;
    assert_eq!(applier.processed(&log.machine), None);
    assert!(!data_dir.exists());
}

#[tokio::test]
async fn without_the_rule_of_drains_a_position_inside_one_is_opened() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 8).await;
    let good = log.last();
    log.drain_begin(good);
    log.write("root", 0, vec![0xee; 4096]);
    log.commit().await;
    let inside = Selector::Seq(log.last());
    let refused = load(&log).await.resolve(&inside, None).await;
    assert!(matches!(refused, Err(RecoverError::NotAPoint { .. })), "{refused:?}");
    let rules = ApplierRules { applier: Rules::without(Rule::DrainIsNoPoint), ..ApplierRules::ALL };
    let careless = History::load_with_rules(&store, keys, &log.machine, LoadOptions::default(), rules).await;
    careless.expect("loaded").resolve(&inside, None).await.expect("taken for a point");
}

#[tokio::test]
async fn a_replica_with_a_good_point_is_untouched_during_a_drain() {
    let (store, keys) = vault().await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    let clock = Arc::new(TestClock::default());
    let mut log = TestLog::begin(&store, &keys, "db", 2).await;
    let good = log.last();
    let applier = start(&log, data_dir.path(), &clock).await;
    wait_for("the replica", async || applier.processed(&log.machine) == Some(good)).await;
    log.drain_begin(good);
    log.write("root", 0, vec![0xee; 4096]);
    log.commit().await;
    let head = log.last();
    wait_for("promotion", async || applier.status().machines[0].processed_seq == head).await;
    assert_eq!(applier.processed(&log.machine), Some(good));
    assert_replica(&log, data_dir.path(), good);
    let end = log.drain_end();
    log.commit().await;
    wait_for("the drain's end", async || applier.processed(&log.machine) == Some(end)).await;
    applier.stop().await;
    assert_replica(&log, data_dir.path(), end);
}

#[tokio::test]
async fn restarted_appliers_go_on_and_make_no_point_twice() {
    let (store, keys) = vault().await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    let clock = Arc::new(TestClock::default());
    let mut log = TestLog::begin(&store, &keys, "db", 3).await;
    let mut rng = Rng(3);
    for _ in 0..6 {
        let applier = start(&log, data_dir.path(), &clock).await;
        log.live(5).await;
        let some = log.last().0 - rng.below(6);
        super::wait_for("a part is taken in", async || applier.status().machines[0].processed_seq.0 >= some).await;
        if rng.below(2) == 0 {
            applier.stop().await;
        }
        drop(applier);
    }
    let applier = start(&log, data_dir.path(), &clock).await;
    let last = log.last_valid();
    // An earlier one that was only dropped may hold the lock or the manifest log a little longer.
    wait_for("the replica", async || processed(data_dir.path(), &log.machine).await == Some(last)).await;
    applier.stop().await;
    assert_replica(&log, data_dir.path(), last);
    let newest = manifest::read(&manifest::log(&store, &keys, &log.machine), LogRules::ALL).await.expect("read");
    let mut ids: Vec<_> = newest.points.iter().map(|point| point.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), newest.points.len());
    let (run, _) = promoted(&log).await;
    let places: Vec<_> = run.segments.iter().map(|s| (s.epoch, s.slot)).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "every segment once, in order");
}

/// Promotes a log with an applier that keeps no replica, so that a test can move one by hand.
async fn promoted(log: &TestLog) -> (SegmentRun, Validity) {
    let nowhere = tempfile::tempdir().expect("temp dir");
    let settings = ApplierConfig { replicas: BTreeMap::new(), ..config(nowhere.path()) };
    let clock: Arc<dyn Clock> = Arc::new(TestClock::default());
    let machines = vec![log.machine.clone()];
    let applier =
        Applier::start(settings, log.store.clone(), log.keys.clone(), machines, clock).await.expect("started");
    let last = log.last();
    wait_for("promotion", async || applier.status().machines[0].processed_seq == last).await;
    applier.stop().await;
    let newest =
        manifest::read(&manifest::log(&log.store, &log.keys, &log.machine), LogRules::ALL).await.expect("read");
    let maps = Maps::new(log.store.clone(), log.keys.clone(), log.machine.clone());
    let mut segments = segments_behind(&maps, &newest.nodes, Seq::ZERO).await.expect("names");
    segments.extend(newest.segments);
    (SegmentRun { segments, ..SegmentRun::default() }, load(log).await.validity().clone())
}

/// Lets the move of a replica end, as a dying process does, at the failpoint behind the next `passed`. Tells when it did.
pub(super) fn die_at_failpoint(mut passed: u64) -> Arc<Notify> {
    let dead = Arc::new(Notify::new());
    let told = dead.clone();
    probe::on_this_thread(Some(Box::new(move |name| {
        let dies = name.starts_with("applier-replica-") && passed == 0;
        passed = passed.saturating_sub(1);
        if dies {
            told.notify_one();
        }
        dies
    })));
    dead
}

#[tokio::test]
async fn a_replica_that_dies_at_any_step_resumes_to_the_same_contents() {
    let mut deaths = 0;
    for seed in 0..10 {
        let (store, keys) = vault().await;
        let data_dir = tempfile::tempdir().expect("temp dir");
        let mut log = TestLog::begin(&store, &keys, "db", seed).await;
        let mut rng = Rng(seed);
        for round in 0..5 {
            log.live(3).await;
            if round == 2 {
                log.disk("root", 96 << 10, DiskChange::Resized);
                log.disk("data", 0, DiskChange::Removed);
                log.disk("extra", 32 << 10, DiskChange::Added);
                log.random();
                log.commit().await;
            }
            let (segments, validity) = promoted(&log).await;
            // More time with every try, so that long moves end too.
            let mut tries = 0;
            loop {
                let mut replica =
                    Replica::open(store.clone(), keys.clone(), data_dir.path(), &log.machine, raw()).expect("opened");
                let Some(target) = replica.next_target(&validity, &segments) else { break };
                let dead = die_at_failpoint(rng.below(6 + 4 * tries));
                let goes_on = CancellationToken::new();
                tries += 1;
                let moved = tokio::select! {
                    biased;
                    moved = replica.advance(&segments, target, &goes_on) => Some(moved),
                    () = dead.notified() => None,
                };
                probe::on_this_thread(None);
                match moved {
                    Some(Ok(())) => assert_replica(&log, data_dir.path(), target),
                    Some(Err(error)) => panic!("seed {seed}: {error}"),
                    None => deaths += 1,
                }
            }
            let at = processed(data_dir.path(), &log.machine).await.expect("a position");
            assert_eq!(at, log.last_valid());
            assert_replica(&log, data_dir.path(), at);
        }
    }
    assert!(deaths > 20, "only {deaths} deaths: the test shows little");
}

#[tokio::test]
async fn a_replica_without_its_state_or_a_disk_is_built_anew_but_never_from_another_history() {
    let (store, keys) = vault().await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    let mut log = TestLog::begin(&store, &keys, "db", 5).await;
    log.live(6).await;
    let (segments, validity) = promoted(&log).await;
    let directory = data_dir.path().join("replica/db");
    let go = async |store: &store::Store, keys: &Arc<format::keys::Keys>| {
        let mut replica =
            Replica::open(store.clone(), keys.clone(), data_dir.path(), &log.machine, raw()).expect("opened");
        let target = replica.next_target(&validity, &segments)?;
        Some(replica.advance(&segments, target, &CancellationToken::new()).await)
    };
    go(&store, &keys).await.expect("a target").expect("moved");
    let at = log.last_valid();
    std::fs::write(directory.join("state"), b"rubbish").expect("written");
    go(&store, &keys).await.expect("a target").expect("moved");
    assert_replica(&log, data_dir.path(), at);
    assert!(go(&store, &keys).await.is_none(), "nothing to do");
    std::fs::remove_file(directory.join("root.raw")).expect("removed");
    log.random();
    log.commit().await;
    let (segments, validity) = promoted(&log).await;
    let mut replica = Replica::open(store.clone(), keys.clone(), data_dir.path(), &log.machine, raw()).expect("opened");
    assert!(matches!(
        Replica::open(store.clone(), keys.clone(), data_dir.path(), &log.machine, raw()),
        Err(ApplierError::ReplicaInUse { .. })
    ));
    while let Some(target) = replica.next_target(&validity, &segments) {
        replica.advance(&segments, target, &CancellationToken::new()).await.expect("moved");
    }
    assert_replica(&log, data_dir.path(), log.last());
    drop(replica);
    let (other_store, other_keys) = vault().await;
    let mut other = TestLog::begin(&other_store, &other_keys, "db", 99).await;
    other.live(60).await;
    let (segments, validity) = promoted(&other).await;
    let mut replica = Replica::open(other_store, other_keys, data_dir.path(), &other.machine, raw()).expect("opened");
    let target = replica.next_target(&validity, &segments).expect("a target");
    let refused = replica.advance(&segments, target, &CancellationToken::new()).await;
    assert!(matches!(refused, Err(ApplierError::ReplicaForeign { .. })), "{refused:?}");
    assert_replica(&log, data_dir.path(), log.last());
}

#[tokio::test]
async fn a_second_applier_takes_over_and_the_first_says_so() {
    let (store, keys) = vault().await;
    let (first_dir, second_dir) = (tempfile::tempdir().expect("temp dir"), tempfile::tempdir().expect("temp dir"));
    let clock = Arc::new(TestClock::default());
    let mut log = TestLog::begin(&store, &keys, "db", 6).await;
    let first = start(&log, first_dir.path(), &clock).await;
    wait_for("the first", async || first.status().machines[0].processed_seq == Seq(10)).await;
    let second = start(&log, second_dir.path(), &clock).await;
    wait_for("the second", async || second.status().machines[0].processed_seq == Seq(10)).await;
    log.random();
    log.commit().await;
    wait_for("the report", async || {
        let error = first.status().machines[0].last_error.clone();
        error.is_some_and(|error| error.contains("another applier"))
    })
    .await;
    let last = log.last();
    wait_for("the second", async || second.status().machines[0].processed_seq == last).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn the_prefix_is_collected_when_it_is_switched_on_and_everything_goes_on() {
    let (store, keys) = vault().await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    let clock = Arc::new(TestClock::default());
    let mut log = TestLog::begin(&store, &keys, "db", 9).await;
    for _ in 0..4 {
        log.live(3).await;
        log.reattach().await;
    }
    log.random();
    log.commit().await;
    let slot = |kind, epoch| crate::segments::path(&log.machine, kind, store::LogPosition { epoch, slot: 0 });
    let gone = async |path: &str| store.get(path).await.expect("read").is_none();
    let (opening, old_manifest) = (slot(LogKind::Stream, 1), slot(LogKind::Manifest, 1));

    let before = store.list("machine/db/stream").await.expect("listed");
    let off = start(&log, data_dir.path(), &clock).await;
    wait_for("the replica", async || processed(data_dir.path(), &log.machine).await == Some(log.last())).await;
    off.stop().await;
    assert_eq!(store.list("machine/db/stream").await.expect("listed"), before, "nothing goes without it");

    let collecting = || ApplierConfig { gc: true, ..config(data_dir.path()) };
    let on = start_with(collecting(), &log, &clock).await;
    wait_for("the opening's deletion", async || gone(&opening).await).await;
    let event =
        |applier: &Arc<Applier>| applier.events(&log.machine).into_iter().find(|e| e.kind == EventKind::Collection);
    wait_for("the event", async || event(&on).is_some()).await;
    assert!(event(&on).expect("just seen").message.starts_with("garbage collection: "));
    assert!(gone(&old_manifest).await, "the first applier's epoch is replaced");
    on.stop().await;

    log.reattach_blind().await;
    log.live(3).await;
    std::fs::remove_dir_all(data_dir.path().join("replica/db")).expect("the replica is lost");
    let again = start_with(collecting(), &log, &clock).await;
    let last = log.last_valid();
    wait_for("the replica", async || processed(data_dir.path(), &log.machine).await == Some(last)).await;
    again.stop().await;
    assert_replica(&log, data_dir.path(), last);
    let report = verify(&store, keys.clone(), &log.machine, VerifyOptions::default()).await.expect("verified");
    assert!(report.clean(), "{report:?}");
    // A purge reads the streams of all other machines.
    let other = TestLog::begin(&store, &keys, "db-2", 8).await;
    assert!(unprotect(&store, keys.clone(), None, &other.machine, true).await.expect("purged").purged);
}

#[tokio::test]
async fn purge_removes_everything_of_the_machine_and_nothing_of_another() {
    let (store, keys) = vault().await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    let clock = Arc::new(TestClock::default());
    let log = TestLog::begin(&store, &keys, "db", 7).await;
    let other = TestLog::begin(&store, &keys, "db-2", 8).await;
    for log in [&log, &other] {
        let applier = start(log, data_dir.path(), &clock).await;
        wait_for("the replica", async || applier.processed(&log.machine) == Some(log.last())).await;
        applier.stop().await;
    }
    // What a role that died in its start may leave behind is in nobody's way, and nobody's to remove.
    let leftover = vec![bytes::Bytes::from_static(b"farshore probe")];
    store.create("probe/0123456789abcdef/race", leftover).await.expect("created");
    let before = store.list("machine/db-2").await.expect("listed");
    let purge = async |purge| unprotect(&store, keys.clone(), Some(data_dir.path()), &log.machine, purge).await;
    let kept = purge(false).await.expect("kept");
    assert!(!kept.purged && kept.objects > 3 && kept.replica_files >= 3, "{kept:?}");
    assert_eq!(load(&log).await.head().position.seq, log.last());
    let purged = purge(true).await.expect("purged");
    assert!(purged.purged && purged.objects >= kept.objects, "{purged:?}");
    assert!(store.list("machine/db").await.expect("listed").is_empty());
    assert_eq!(store.list("machine/db-2").await.expect("listed"), before);
    assert!(!data_dir.path().join("replica/db").exists());
    assert_replica(&other, data_dir.path(), other.last());
    assert!(matches!(purge(true).await, Err(ApplierError::Recover(RecoverError::UnknownMachine { .. }))));
    assert_eq!(store::list_machines(&store).await.expect("listed"), std::slice::from_ref(&other.machine));
    let report = verify(&store, keys.clone(), &other.machine, VerifyOptions::default()).await.expect("verified");
    assert!(report.clean(), "{report:?}");
    assert_eq!(store.list("probe").await.expect("listed").len(), 1);
}

/// A process server owns its epoch for a moment before it opens it. Whoever starts to read just then, with a manifest
/// that is past him, must wait and not call the log damaged.
#[tokio::test]
async fn an_epoch_about_to_be_opened_is_no_damage_though_there_is_a_manifest() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 7).await;
    log.live(3).await;
    promoted(&log).await;
    let owned = crate::recover::stream_log(&store, &keys, &log.machine).attach().await.expect("attached");
    let nowhere = tempfile::tempdir().expect("temp dir");
    let settings = ApplierConfig { replicas: BTreeMap::new(), ..config(nowhere.path()) };
    let clock: Arc<dyn Clock> = Arc::new(TestClock::default());
    let machines = vec![log.machine.clone()];
    let applier = Applier::start(settings, store.clone(), keys.clone(), machines, clock).await.expect("started");
    wait_for("a manifest epoch", async || applier.status().machines[0].manifest_epoch > 0).await;
    assert_eq!(applier.status().machines[0].last_error, None);
    owned.open(Vec::new()).await.expect("opened");
    let last = log.last();
    wait_for("all that is there", async || applier.status().machines[0].processed_seq == last).await;
    assert_eq!(applier.status().machines[0].last_error, None);
    applier.stop().await;
    let owned = crate::recover::stream_log(&store, &keys, &log.machine).attach().await.expect("attached");
    assert_eq!(load(&log).await.head().position.seq, last, "sealed by the reader after its wait");
    drop(owned);
}

#[tokio::test]
async fn a_replica_that_begins_late_finds_its_segments_in_the_maps() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 31).await;
    log.live(25).await;
    follow(&log, 2).await;
    let data_dir = tempfile::tempdir().expect("temp dir");
    let clock = Arc::new(TestClock::default());
    for _ in 0..2 {
        let applier = start(&log, data_dir.path(), &clock).await;
        let last = log.last_valid();
        wait_for("the replica", async || applier.processed(&log.machine) == Some(last)).await;
        applier.stop().await;
        assert_replica(&log, data_dir.path(), last);
        // The next life of the replica stands in the midst of a leaf, behind which more leaves were made meanwhile.
        log.live(9).await;
        follow(&log, 2).await;
    }
}

/// The points of a machine, once an applier with this policy has come to rest at `now`.
async fn points_under(log: &TestLog, policy: &str, now: Timestamp, wanted: usize) -> Vec<Seq> {
    let retention = policy.parse().expect("a retention");
    let settings = ApplierConfig { replicas: BTreeMap::new(), retention, ..config(Path::new("unused")) };
    let clock = Arc::new(TestClock::default());
    clock.0.store(now.0, Ordering::Relaxed);
    let applier = start_with(settings, log, &clock).await;
    let status = || applier.status().machines.remove(0);
    wait_for("points", async || status().processed_seq == log.last() && status().points == wanted as u64).await;
    applier.stop().await;
    load(log).await.recorded_points().iter().map(|point| point.position.seq).collect()
}

#[tokio::test]
async fn points_are_dropped_as_the_policy_says_and_their_positions_still_open() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 12).await;
    for _ in 0..15 {
        (0..60).for_each(|_| _ = log.random());
        log.commit().await;
    }
    let now = log.model.times[log.last().0 as usize];
    let all = points_under(&log, "1y:all", now, 16).await;
    let policy = "5m:all, 1h:4m";
    let candidate = |seq: &Seq| {
        let (id, time) = (model::PointId([0; 16]), log.model.times[seq.0 as usize]);
        Candidate { id, time, seq: *seq, pinned: false, good: true }
    };
    let candidates: Vec<_> = all.iter().map(candidate).collect();
    let plan = policy.parse::<Retention>().expect("a retention").plan(&candidates, Duration::ZERO, now);
    assert!(!plan.dropped.is_empty() && plan.kept.len() > 5, "{plan:?}");
    let kept = points_under(&log, policy, now, plan.kept.len()).await;
    assert!(kept.iter().all(|seq| all.contains(seq)));
    let dropped = all.iter().find(|seq| !kept.contains(seq)).expect("one is dropped");
    let history = load(&log).await;
    assert!(contents(&open(&history, *dropped).await).await == log.model.at[dropped.0 as usize]);
    // Long after: the last good point is never dropped, nor is one that somebody holds.
    let years_later = now.plus(Duration::from_secs(10 * 365 * 86400));
    let (held, unknown) = (history.recorded_points()[0].clone(), model::PointId([9; 16]));
    for hold in [true, false] {
        let clock = Arc::new(TestClock::default());
        clock.0.store(now.0, Ordering::Relaxed);
        let settings = ApplierConfig { replicas: BTreeMap::new(), ..config(Path::new("unused")) };
        let applier = start_with(settings, &log, &clock).await;
        applier.pin(&log.machine, held.id, hold).await.expect("acknowledged");
        let refused = applier.pin(&log.machine, unknown, hold).await.expect_err("unknown");
        assert!(refused.to_string().contains(&unknown.to_string()), "{refused}");
        applier.stop().await;
        let view = load(&log).await.points().await.expect("points");
        assert_eq!(view.points[0].pinned, hold);
        let expected = if hold { vec![held.position.seq, log.last()] } else { vec![log.last()] };
        assert_eq!(points_under(&log, policy, years_later, expected.len()).await, expected);
    }
}
