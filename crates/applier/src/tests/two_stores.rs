//! A vault store of its own: the cache store may be gone for good, and two appliers may follow one stream.
//!
//! Goal: whatever a manifest in the vault store names opens from the vault store alone, equal to the model, whenever the cache
//! store disappears; and the vault store alone is a store in which everything works. Method: random lives promoted by appliers that die
//! at random failpoints, judged after each death without the cache store. The controls take one object away.

use std::sync::Arc;
use std::time::Duration;

use format::object::LogKind;
use model::Seq;
use object_store::memory::InMemory;
use store::{FaultStore, Faults, LogRules, Store, StoreError};
use tokio::sync::Notify;

use super::process::assert_replica;
use super::{settings, wait_for};
use crate::recover::{History, LoadOptions, RecoverError, VerifyOptions, stream_log, verify};
use crate::testing::{Rng, TestLog, vault};
use crate::{Applier, ApplierConfig, ApplierError, ReplicaConfig, SystemClock, manifest, segments, unprotect};

pub(super) fn memory() -> Store {
    Store::from_object_store(Arc::new(InMemory::new()))
}

/// A log in a cache store, and an empty vault store.
pub(super) async fn begin(seed: u64) -> (TestLog, Store) {
    let (cache, keys) = vault().await;
    let store = memory();
    store::create_vault(&store, &keys).await.expect("vault");
    (TestLog::begin(&cache, &keys, "db", seed).await, store)
}

async fn start(log: &TestLog, vault: &Store, settings: ApplierConfig) -> Arc<Applier> {
    let store = vault.clone().with_cache(log.store.clone());
    let (keys, machines) = (log.keys.clone(), vec![log.machine.clone()]);
    Applier::start(settings, store, keys, machines, Arc::new(SystemClock)).await.expect("started")
}

async fn wait_promoted(log: &TestLog, applier: &Applier) {
    wait_for("promotion", async || applier.status().machines[0].processed_seq == log.last()).await;
}

pub(super) async fn promote(log: &TestLog, vault: &Store) {
    let applier = start(log, vault, settings()).await;
    wait_promoted(log, &applier).await;
    applier.stop().await;
}

/// The last seq that the manifest in a vault store names.
pub(super) async fn promoted_seq(log: &TestLog, vault: &Store) -> Seq {
    let newest = manifest::read(&manifest::log(vault, &log.keys, &log.machine), LogRules::ALL).await.expect("read");
    newest.last().map_or(Seq::ZERO, |last| last.head.position.seq)
}

/// What is wrong with a vault store alone: every position that it has must open as the model has it, at least those promoted, and
/// verify must find nothing. Gives the last position.
pub(super) async fn judge(log: &TestLog, vault: &Store) -> Result<Seq, String> {
    let promoted = promoted_seq(log, vault).await;
    let options = LoadOptions { settle: Duration::ZERO, ..LoadOptions::default() };
    let history = match History::load(vault, log.keys.clone(), &log.machine, options).await {
        Ok(history) => Arc::new(history),
        // No applier came so far as to copy the first epoch.
        Err(RecoverError::UnknownMachine { .. }) if promoted == Seq::ZERO => return Ok(promoted),
        Err(error) => return Err(format!("not loaded: {error}")),
    };
    let head = history.head().position.seq;
    if head < promoted {
        return Err(format!("it ends at seq {head}, and {promoted} was promoted"));
    }
    for seq in (1..=head.0).map(Seq) {
        // What a later drain takes back is a position until that drain is there.
        if history.validity().contains(seq) {
            let at = history.resolve(&model::Selector::Seq(seq), None).await.map_err(|e| format!("seq {seq}: {e}"))?;
            let point = history.open(&at).await.map_err(|e| format!("seq {seq}: {e}"))?;
            if read(&point).await.map_err(|e| format!("seq {seq}: {e}"))? != log.model.at[seq.0 as usize] {
                return Err(format!("seq {seq} holds something else"));
            }
        } else if log.model.valid[seq.0 as usize] {
            return Err(format!("seq {seq} is no position any more"));
        }
    }
    let report = verify(vault, log.keys.clone(), &log.machine, VerifyOptions::default()).await.expect("verified");
    match report.clean() {
        true => Ok(head),
        false => Err(format!("verify: {:?}", report.damages)),
    }
}

async fn read(point: &crate::recover::PointReader) -> Result<crate::testing::Contents, RecoverError> {
    let mut contents = crate::testing::Contents::new();
    for info in point.disks() {
        let whole = model::Extent::new(0, info.size).expect("not empty");
        contents.insert(info.name.clone(), Arc::new(point.disk(&info.name)?.read(whole).await?.to_vec()));
    }
    Ok(contents)
}

#[tokio::test]
async fn without_the_cache_store_everything_promoted_opens_and_a_replica_is_made_anew() {
    for seed in 0..4 {
        let (mut log, vault) = begin(seed).await;
        for _ in 0..3 {
            log.live(6).await;
            promote(&log, &vault).await;
        }
        assert_eq!(judge(&log, &vault).await, Ok(log.last()), "seed {seed}");
        let data_dir = tempfile::tempdir().expect("temp dir");
        let replicas = [(log.machine.clone(), ReplicaConfig::default())].into();
        let settings = ApplierConfig { data_dir: data_dir.path().to_owned(), replicas, ..settings() };
        let (store, machines) = (vault.clone(), vec![log.machine.clone()]);
        let applier = Applier::start(settings, store, log.keys.clone(), machines, Arc::new(SystemClock)).await;
        let applier = applier.expect("the vault store is one store now");
        let at = log.last_valid();
        wait_for("the replica", async || applier.processed(&log.machine) == Some(at)).await;
        applier.stop().await;
        assert_replica(&log, data_dir.path(), at);
    }
}

/// The control of [`judge`]: whatever one object a careless promotion would leave out, it is noticed.
#[tokio::test]
async fn whatever_one_object_promotion_leaves_out_is_noticed() {
    let (mut log, vault) = begin(7).await;
    log.live(6).await;
    log.reattach().await;
    log.random();
    log.commit().await;
    promote(&log, &vault).await;
    assert_eq!(judge(&log, &vault).await, Ok(log.last()));
    let listed = vault.list("machine/db/stream").await.expect("listed");
    let cached = log.store.list("machine/db/stream").await.expect("listed");
    assert!(listed == cached && listed.len() > 9, "all is promoted: {listed:?}");
    let newest = log.next_place().epoch;
    let replaced = |path: &str| path.ends_with("/0000000000000000") && !path.contains(&format!("seg/{newest:016x}/"));
    // Openings below the folded epoch are no loss: the manifest replaces them.
    for (path, _) in listed.into_iter().filter(|(path, _)| !replaced(path)) {
        let bytes = vault.get(&path).await.expect("read").expect("listed");
        vault.delete(&path).await.expect("deleted");
        // A machine without its first epoch is none.
        let noticed = judge(&log, &vault).await;
        assert!(noticed.is_err(), "{path} is missing, and nothing is wrong: {noticed:?}");
        // Nor does the cache store's copy make up for it: it may be gone tomorrow.
        let both = vault.clone().with_cache(log.store.clone());
        let report = verify(&both, log.keys.clone(), &log.machine, VerifyOptions::default()).await.expect("verified");
        assert!(report.damages.iter().any(|damage| damage.path == path), "{path}: {report:?}");
        vault.create(&path, vec![bytes]).await.expect("put back");
    }
    assert_eq!(judge(&log, &vault).await, Ok(log.last()));
}

/// Lets the applier end, as a dying process does, at the step of these names behind the next `passed`.
pub(super) fn die_at(names: &'static [&str], mut passed: u64) -> Arc<Notify> {
    let dead = Arc::new(Notify::new());
    let told = dead.clone();
    probe::on_this_thread(Some(Box::new(move |name| {
        if !names.iter().any(|known| name.starts_with(known)) {
            return false;
        }
        let dies = passed == 0;
        passed = passed.saturating_sub(1);
        if dies {
            told.notify_one();
        }
        dies
    })));
    dead
}

#[tokio::test]
async fn an_applier_that_dies_at_any_step_leaves_a_vault_store_that_is_whole_by_itself() {
    let (mut deaths, mut unfinished) = (0, 0);
    for seed in 0..12 {
        let (mut log, vault) = begin(seed).await;
        let mut rng = Rng(seed);
        for _ in 0..4 {
            log.live(4).await;
            // Epochs that hold nothing, and one that was never opened.
            log.reattach().await;
            if rng.below(2) == 0 {
                drop(log.stream().attach().await.expect("attached"));
                log.reattach().await;
            }
            log.random();
            log.commit().await;
            let mut tries = 0;
            loop {
                let dead = die_at(&["applier-promote-", "applier-commit-"], rng.below(4 + 4 * tries));
                let applier = start(&log, &vault, settings()).await;
                let ended = tokio::select! {
                    biased;
                    () = dead.notified() => false,
                    () = wait_promoted(&log, &applier) => true,
                };
                probe::on_this_thread(None);
                tries += 1;
                if ended {
                    applier.stop().await;
                    break;
                }
                drop(applier);
                deaths += 1;
                let alone = judge(&log, &vault).await.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
                unfinished += u32::from(alone < log.last());
            }
            assert_eq!(judge(&log, &vault).await, Ok(log.last()), "seed {seed}");
        }
    }
    assert!(deaths > 100 && unfinished > 50, "{deaths} deaths, {unfinished} in the middle: the test shows little");
}

#[tokio::test]
async fn two_appliers_with_a_vault_store_each_follow_one_stream_at_once() {
    let (mut log, far) = begin(11).await;
    let near = memory();
    store::create_vault(&near, &log.keys).await.expect("vault");
    let stays = start(&log, &far, settings()).await;
    for round in 0..3 {
        let comes = start(&log, &near, settings()).await;
        log.live(4).await;
        wait_promoted(&log, &stays).await;
        wait_promoted(&log, &comes).await;
        comes.stop().await;
        log.live(3).await;
        wait_promoted(&log, &stays).await;
        // It comes back, and dies while it copies; the other one has nothing left to copy and lives. It comes back in the next round.
        let dead = die_at(&["applier-promote-"], round);
        let comes = start(&log, &near, settings()).await;
        dead.notified().await;
        probe::on_this_thread(None);
        drop(comes);
    }
    promote(&log, &near).await;
    stays.stop().await;
    promote(&log, &far).await;
    assert!(
        stays.status().machines[0].events.iter().all(|event| !event.message.contains("taken")),
        "nobody was fenced"
    );
    for vault in [&far, &near] {
        assert_eq!(judge(&log, vault).await, Ok(log.last()));
    }
}

#[tokio::test]
async fn a_cache_store_that_is_away_or_lost_is_told_and_never_taken_for_an_end() {
    let (mut log, vault) = begin(13).await;
    log.live(4).await;
    promote(&log, &vault).await;
    let options = LoadOptions { settle: Duration::ZERO, ..LoadOptions::default() };
    let (keys, machine) = (log.keys.clone(), log.machine.clone());
    let load = async |cache: Store| {
        let store = vault.clone().with_cache(cache);
        History::load(&store, keys.clone(), &machine, options.clone()).await.map(|history| history.head())
    };
    let faults = Faults::new(1);
    let objects = log.store.object_store().clone();
    let away = Store::from_object_store(Arc::new(FaultStore::new(objects, faults.clone())));
    faults.set_outage(true);
    let told = load(away.clone()).await.expect_err("the cache store is away");
    assert!(
        matches!(told, RecoverError::Store(StoreError::CacheUnavailable { .. })) && told.exit_code() == 1,
        "{told}"
    );
    let (epochs, applier) = (vault.list("machine/db/manifest").await.expect("listed").len(), settings());
    let store = vault.clone().with_cache(away);
    let machines = vec![log.machine.clone()];
    let applier = Applier::start(applier, store, keys.clone(), machines, Arc::new(SystemClock)).await.expect("started");
    let said = async || applier.status().machines[0].last_error.clone().unwrap_or_default();
    wait_for("the error", async || said().await.contains("--store")).await;
    assert_eq!(vault.list("machine/db/manifest").await.expect("listed").len(), epochs, "no epoch is left behind");
    faults.set_outage(false);
    log.random();
    log.commit().await;
    wait_promoted(&log, &applier).await;
    applier.stop().await;
    for lost in [memory(), TestLog::begin(&memory(), &log.keys, "db", 99).await.store] {
        let told = load(lost).await.expect_err("the cache store is another one");
        assert!(matches!(told, RecoverError::Store(StoreError::CacheLost { .. })) && told.exit_code() == 3, "{told}");
    }
    assert_eq!(judge(&log, &vault).await, Ok(log.last()));
}

/// Waits for an error of an applier that says `wanted`, and that nothing is named of what is not there.
pub(super) async fn ends_with(log: &TestLog, vault: &Store, wanted: &str) {
    let applier = start(log, vault, settings()).await;
    let said = async || applier.status().machines[0].last_error.clone().unwrap_or_default();
    wait_for(wanted, async || said().await.contains(wanted)).await;
    applier.stop().await;
    assert!(promoted_seq(log, vault).await < log.last());
}

#[tokio::test]
async fn what_lies_otherwise_in_the_vault_store_ends_promotion_for_good() {
    let (mut log, vault) = begin(17).await;
    log.live(3).await;
    promote(&log, &vault).await;
    let path = segments::path(&log.machine, LogKind::Stream, log.next_place());
    vault.create(&path, vec![b"somebody else's".as_slice().into()]).await.expect("put");
    log.random();
    log.commit().await;
    ends_with(&log, &vault, &path).await;
    vault.delete(&path).await.expect("deleted");
    // Somebody took the vault store for one that streams are written to.
    drop(stream_log(&vault, &log.keys, &log.machine).attach().await.expect("attached"));
    log.reattach().await;
    log.random();
    log.commit().await;
    ends_with(&log, &vault, "is not the object of the cache store").await;
}

#[tokio::test]
async fn purge_empties_both_stores() {
    let (mut log, vault) = begin(19).await;
    log.live(3).await;
    promote(&log, &vault).await;
    let both = vault.clone().with_cache(log.store.clone());
    let kept = unprotect(&both, log.keys.clone(), None, &log.machine, false).await.expect("kept");
    let listed = async |store: &Store| store.list("machine").await.expect("listed").len() as u64;
    assert_eq!(kept.objects, listed(&vault).await + listed(&log.store).await);
    let purged = unprotect(&both, log.keys.clone(), None, &log.machine, true).await.expect("purged");
    assert!(purged.objects >= kept.objects && listed(&vault).await + listed(&log.store).await == 0, "{purged:?}");
    let again = unprotect(&both, log.keys.clone(), None, &log.machine, true).await;
    assert!(matches!(again, Err(ApplierError::Recover(RecoverError::UnknownMachine { .. }))), "{again:?}");
}
