//! State digests: what the manifest states of points is what the model holds, and `verify` names a point of which it is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use format::manifest::{DiskState, Made, Manifest, ManifestCommit, Point, PointStates};
use format::object::ObjectHash;
use format::state::StateSum;
use model::{DiskChange, DiskName, Seq, Timestamp};
use store::LogRules;

use super::damage::check;
use crate::manifest::{self, ManifestOwner};
use crate::recover::{VerifyOptions, verify};
use crate::testing::{TestLog, vault};
use crate::{Applier, ApplierConfig, Clock};

/// Three hours after the first record, always.
struct Later;

impl Clock for Later {
    fn now(&self) -> Timestamp {
        Timestamp(3 * 3600 * 1_000_000)
    }
}

async fn stated(log: &TestLog) -> Manifest {
    manifest::read(&manifest::log(&log.store, &log.keys, &log.machine), LogRules::ALL).await.expect("read")
}

/// Runs an applier until every point has its states.
async fn reckoned(log: &TestLog) -> Manifest {
    // Times in the log are a second apart.
    let crash_every = Duration::from_secs(4);
    let settings = ApplierConfig { crash_every, state_digests: true, ..super::settings() };
    let (store, keys, machines) = (log.store.clone(), log.keys.clone(), vec![log.machine.clone()]);
    let applier = Applier::start(settings, store, keys, machines, Arc::new(Later)).await.expect("started");
    let mut all = Manifest::default();
    super::wait_for("all states", async || {
        all = stated(log).await;
        let whole = applier.status().machines[0].processed_seq == log.last() && !all.points.is_empty();
        // What a drain took back is no point any more.
        let valid = |point: &&Point| log.model.valid[point.position.seq.0 as usize];
        whole && all.points.iter().filter(valid).all(|point| !point.states.is_empty())
    })
    .await;
    applier.stop().await;
    all
}

/// What the model holds, reckoned from nothing.
fn sums(log: &TestLog, seq: Seq) -> BTreeMap<DiskName, StateSum> {
    let sum = |bytes: &[u8]| {
        let mut sum = StateSum::default();
        sum.add(&log.keys, 0, bytes);
        sum
    };
    log.model.at[seq.0 as usize].iter().map(|(disk, bytes)| (disk.clone(), sum(bytes))).collect()
}

fn states(sums: BTreeMap<DiskName, StateSum>) -> Vec<DiskState> {
    sums.into_iter().map(|(disk, sum)| DiskState { disk, sum }).collect()
}

/// Lives with drains, zeros, overwritten parts of blocks, and a disk that shrinks, grows, goes and comes back.
async fn life(seed: u64) -> TestLog {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", seed).await;
    log.live(6).await;
    log.disk("data", 24 << 10, DiskChange::Resized);
    log.disk("data", 48 << 10, DiskChange::Resized);
    log.live(3).await;
    log.disk("data", 48 << 10, DiskChange::Removed);
    log.live(2).await;
    log.disk("data", 48 << 10, DiskChange::Added);
    log.live(3).await;
    log
}

#[tokio::test]
async fn the_states_of_points_are_those_of_the_model_and_verify_reckons_the_same() {
    for seed in 0..6 {
        let mut log = life(seed).await;
        reckoned(&log).await;
        // A second life of the applier goes on from what the first stated.
        log.live(4).await;
        let manifest = reckoned(&log).await;
        let (mut points, mut differ) = (0, std::collections::BTreeSet::new());
        for point in manifest.points.iter().filter(|point| log.model.valid[point.position.seq.0 as usize]) {
            let right = states(sums(&log, point.position.seq));
            assert_eq!(point.states, right, "seed {seed}, point at {}", point.position.seq);
            differ.insert(format!("{right:?}"));
            points += 1;
        }
        assert!(points > 5 && differ.len() > 3, "seed {seed}: {points} points with {} states", differ.len());
        let report = check(&log, None).await;
        assert!(report.clean() && report.states_reckoned == points, "seed {seed}, {points}: {report:?}");
    }
}

/// Puts a commit into the manifest log with the right key.
async fn forge(log: &TestLog, commit: ManifestCommit) {
    let owner = ManifestOwner::attach(&log.store, &log.keys, &log.machine, LogRules::ALL).await;
    let mut owner = owner.expect("attached");
    owner.begin(commit);
    owner.finish().await.expect("put");
}

/// The control of the test above: a state, a chain hash or a digest that is not the right one is named with its point.
#[tokio::test]
async fn a_point_that_is_not_as_stated_is_named() {
    let log = life(1).await;
    let manifest = reckoned(&log).await;
    let valid: Vec<_> =
        manifest.points.iter().filter(|point| log.model.valid[point.position.seq.0 as usize]).cloned().collect();
    assert!(check(&log, None).await.clean());
    for number in [0, valid.len() / 2, valid.len() - 1] {
        let victim = &valid[number];
        let restate = |disks: Vec<DiskState>| ManifestCommit {
            states: vec![PointStates { point: victim.id, disks }],
            ..ManifestCommit::default()
        };
        let mut lie = victim.states.clone();
        lie[0].sum.add(&log.keys, 4096, &[0x5a; 512]);
        forge(&log, restate(lie)).await;
        let report = check(&log, None).await;
        let named: Vec<_> = report.wrong_points.iter().map(|wrong| (wrong.id.clone(), wrong.seq)).collect();
        assert_eq!(named, [(victim.id.to_string(), victim.position.seq)], "{report:?}");
        assert!(report.exit_code() == 3 && report.wrong_points[0].problem.contains("state digest"), "{report:?}");
        let sample = VerifyOptions { sample: Some("100%".parse().expect("a share")), ..VerifyOptions::default() };
        let sampled = verify(&log.store, log.keys.clone(), &log.machine, sample).await.expect("verified");
        assert_eq!(sampled.wrong_points, report.wrong_points);
        forge(&log, restate(victim.states.clone())).await;

        let other = |point: Point| ManifestCommit {
            dropped: vec![victim.id],
            points: vec![point],
            ..ManifestCommit::default()
        };
        let made = victim.made.map(|made| Made { chain: ObjectHash([7; 32]), ..made });
        forge(&log, other(Point { made, ..victim.clone() })).await;
        let report = check(&log, None).await;
        assert!(report.wrong_points.len() == 1 && report.wrong_points[0].problem.contains("segment"), "{report:?}");
        forge(&log, other(victim.clone())).await;
        assert!(check(&log, None).await.clean(), "put right again");
    }
}
