//! Segments that streams share: whatever is done to clones, in whatever order, every promised position of every one of them reads
//! as its model says; what nobody reads goes; and each rule is shown to matter by taking it away.

use std::sync::Arc;

use format::keys::Keys;
use format::object::StreamEpoch;
use futures::FutureExt;
use probe::{Rule, Rules};
use proptest::prelude::*;
use store::{LogRules, Store, VaultLists};

use super::horizon::{everything_is_right, start_with, tidy, tidy_by, verified};
use super::wait_for;
use crate::sharing::collect_shared_with;
use crate::testing::{TestLog, TestShare, name, vault};
use crate::{ApplierConfig, ApplierError, ApplierRules, SharedOptions, SharedReport, collect_shared, unprotect};

/// Bytes of the disk `root` in [`TestLog::begin`].
const ROOT_BYTES: usize = 64 << 10;

/// Machines of one vault that share what drains bring in.
struct Vault {
    store: Store,
    keys: Arc<Keys>,
    logs: Vec<TestLog>,
}

impl Vault {
    async fn of(names: &[&str]) -> Self {
        let (store, keys) = vault().await;
        let share = TestShare::new(VaultLists::new(store.clone(), keys.clone()));
        let mut logs = Vec::new();
        for (seed, machine) in (1..).zip(names) {
            logs.push(TestLog::begin_sharing(&store, &keys, machine, seed, Some(share.clone())).await);
        }
        Self { store, keys, logs }
    }

    fn lists(&self) -> VaultLists {
        VaultLists::new(self.store.clone(), self.keys.clone())
    }

    async fn collect(&self) -> SharedReport {
        collect_shared(&self.store, &self.keys, SharedOptions::default()).await.expect("walked")
    }

    async fn collect_without(&self, rule: Rule) -> SharedReport {
        let (options, rules) = (SharedOptions::default(), Rules::without(rule));
        collect_shared_with(&self.store, &self.keys, options, rules).await.expect("walked")
    }

    async fn all_right(&self) {
        for log in &self.logs {
            everything_is_right(log).await;
            verified(log).await;
        }
    }

    /// Whether some position of a machine does not read as it must.
    async fn is_broken(&self, machine: usize) -> bool {
        std::panic::AssertUnwindSafe(everything_is_right(&self.logs[machine])).catch_unwind().await.is_err()
    }

    /// Segments that are left of a machine's first epoch.
    async fn first_epoch_segments(&self, machine: usize) -> usize {
        let log = &self.logs[machine];
        let listed = self.store.list(&format!("machine/{}/stream/seg/{:016x}", log.machine, 1)).await.expect("listed");
        listed.len()
    }
}

/// Bytes of a template, none of whose chunks is like another.
fn template(number: u8) -> Vec<u8> {
    (0..ROOT_BYTES).map(|at| (at / 4096) as u8 * 16 + number + (at % 3) as u8).collect()
}

/// A drain brings a template in.
async fn drain(log: &mut TestLog, number: u8) {
    log.drain_begin(log.last_valid());
    log.write("root", 0, template(number));
    log.drain_end();
    log.commit().await;
}

/// Everything is overwritten, and so much is written behind it that no point of before is left.
async fn forget(log: &mut TestLog) {
    log.reattach_blind().await;
    let fresh =
        |log: &mut TestLog, size: u64| (0..size).map(|at| (at / 512 * 7) as u8 ^ log.rng.next() as u8).collect();
    let (root, data) = (fresh(log, ROOT_BYTES as u64), fresh(log, 48 << 10));
    log.write("root", 0, root);
    log.write("data", 0, data);
    log.commit().await;
    for _ in 0..7 {
        log.reattach_blind().await;
        (0..50).for_each(|_| _ = log.random());
        log.commit().await;
    }
}

/// `a` and `b` are clones; `a` was then overwritten and tidied, so that only `b` reads the template.
async fn only_the_clone_reads(rules: ApplierRules) -> Vault {
    let mut vault = Vault::of(&["a", "b"]).await;
    for log in &mut vault.logs {
        drain(log, 1).await;
    }
    forget(&mut vault.logs[0]).await;
    tidy_by(&vault.logs[0], rules).await;
    vault
}

#[tokio::test]
async fn shared_segments_are_not_collected_within_their_stream_by_that_rule_alone() {
    let vault = only_the_clone_reads(ApplierRules::ALL).await;
    assert!(vault.first_epoch_segments(0).await > 0, "they stay");
    vault.all_right().await;
    tidy(&vault.logs[1]).await;
    vault.all_right().await;
    let careless = ApplierRules { applier: Rules::without(Rule::SharedKept), log: LogRules::ALL };
    let vault = only_the_clone_reads(careless).await;
    assert!(vault.is_broken(1).await, "the clone misses what was deleted");
}

fn page(log: &mut TestLog, at: u64) {
    let byte = log.rng.next() as u8;
    log.write("data", at, vec![byte; 4096]);
}

/// Points read a part of a template, or nothing of it, when the horizon passes it; later a drain finds all of it again.
async fn drained_again(overwritten: u64) {
    let mut vault = Vault::of(&["a"]).await;
    let log = &mut vault.logs[0];
    drain(log, 1).await;
    // Neighbours that are worth a pack, and points.
    for round in 0..8 {
        log.reattach_blind().await;
        let noise: Vec<u8> = (0..ROOT_BYTES as u64 * overwritten / 16).map(|_| log.rng.next() as u8).collect();
        log.write("root", 0, noise);
        (0..50).for_each(|_| page(log, 4096 * (round % 3)));
        log.commit().await;
    }
    tidy(log).await;
    let packed = log.store.list("machine/a/pack").await.expect("listed");
    assert!(!packed.is_empty(), "there are packs beside what is shared");
    let before = log.sealed_chunks;
    log.reattach_blind().await;
    drain(log, 1).await;
    assert_eq!(log.sealed_chunks, before, "all of it was found");
    for _ in 0..4 {
        log.reattach_blind().await;
        (0..50).for_each(|_| page(log, 0));
        log.commit().await;
    }
    tidy(log).await;
    vault.all_right().await;
}

/// Seed 31003549: a pack held of a shared segment what points needed at that time, and was read in its stead.
#[tokio::test]
async fn a_pack_stands_for_no_shared_segment() {
    for overwritten in [16, 15, 8] {
        drained_again(overwritten).await;
    }
}

#[tokio::test]
async fn what_nobody_reads_is_condemned_awaited_and_deleted() {
    let mut vault = only_the_clone_reads(ApplierRules::ALL).await;
    let kept = vault.collect().await;
    assert!(kept.condemned.is_empty() && kept.deleted.is_empty(), "{kept:?}");
    forget(&mut vault.logs[1]).await;
    tidy(&vault.logs[1]).await;
    let before = vault.first_epoch_segments(0).await;
    let explained = SharedOptions { dry_run: true, fence: false };
    let explained = collect_shared(&vault.store, &vault.keys, explained).await.expect("walked");
    let condemned = vault.collect().await;
    assert_eq!(explained, condemned, "a dry run says the same");
    assert!(condemned.condemned.iter().any(|c| c.machine == name("a") && c.epoch == 1), "{condemned:?}");
    assert_eq!((condemned.lists, condemned.deleted.len()), (0, 0), "nothing is deleted at once");
    let waiting = vault.collect().await;
    assert_eq!(waiting.waits_for, [name("a"), name("b")]);
    vault.logs[0].reattach_blind().await;
    assert_eq!(vault.collect().await.waits_for, [name("b")]);
    vault.logs[1].reattach_blind().await;
    let deleted = vault.collect().await;
    assert!(!deleted.deleted.is_empty() && deleted.waits_for.is_empty(), "{deleted:?}");
    assert_eq!(
        vault.first_epoch_segments(0).await + deleted.deleted.iter().filter(|g| g.path.contains("machine/a/")).count(),
        before
    );
    assert!(vault.collect().await.deleted.is_empty(), "once");
    vault.all_right().await;
    for log in &vault.logs {
        tidy(log).await;
    }
    vault.all_right().await;
}

#[tokio::test]
async fn streams_at_rest_get_a_new_epoch_when_it_is_asked_for() {
    let mut vault = only_the_clone_reads(ApplierRules::ALL).await;
    forget(&mut vault.logs[1]).await;
    tidy(&vault.logs[1]).await;
    vault.collect().await;
    let fenced = SharedOptions { fence: true, dry_run: false };
    let deleted = collect_shared(&vault.store, &vault.keys, fenced).await.expect("walked");
    assert!(deleted.waits_for.is_empty() && !deleted.deleted.is_empty(), "{deleted:?}");
    for log in &mut vault.logs {
        log.reattach_blind().await;
        drain(log, 1).await;
    }
    vault.all_right().await;
}

/// Nobody reads the template any more, and list 1 condemns it; then the clone, whose epoch knows nothing of the list, finds it
/// in the index once more. Gives what the next pass did, made before or after.
async fn races(collect_first: bool, without: Option<Rule>) -> Vault {
    let mut vault = only_the_clone_reads(ApplierRules::ALL).await;
    forget(&mut vault.logs[1]).await;
    tidy(&vault.logs[1]).await;
    assert!(!vault.collect().await.condemned.is_empty());
    let pass = async |vault: &Vault| match without {
        None => vault.collect().await,
        Some(rule) => vault.collect_without(rule).await,
    };
    if collect_first {
        pass(&vault).await;
    }
    drain(&mut vault.logs[1], 1).await;
    for log in &mut vault.logs {
        log.reattach_blind().await;
    }
    pass(&vault).await;
    vault
}

#[tokio::test]
async fn every_head_is_awaited_by_that_rule_alone() {
    races(true, None).await.all_right().await;
    assert!(races(true, Some(Rule::HeadsAwaited)).await.is_broken(1).await);
}

#[tokio::test]
async fn what_is_condemned_is_marked_again_by_that_rule_alone() {
    races(false, None).await.all_right().await;
    assert!(races(false, Some(Rule::MarkedAgain)).await.is_broken(1).await);
}

#[tokio::test]
async fn a_machine_that_cannot_be_walked_stops_the_collection_by_name() {
    let mut vault = only_the_clone_reads(ApplierRules::ALL).await;
    forget(&mut vault.logs[1]).await;
    tidy(&vault.logs[1]).await;
    let path = format!("machine/b/stream/epoch/{:016x}", 1);
    vault.store.delete(&path).await.expect("deleted");
    let refused = collect_shared(&vault.store, &vault.keys, SharedOptions::default()).await.expect_err("not walked");
    assert!(matches!(&refused, ApplierError::NotWalked { machine, .. } if *machine == name("b")), "{refused}");
}

#[tokio::test]
async fn a_segment_that_refers_to_what_its_epoch_knows_as_condemned_is_damage() {
    let mut vault = Vault::of(&["a", "b"]).await;
    drain(&mut vault.logs[0], 1).await;
    vault.lists().condemn([StreamEpoch { machine: name("a"), epoch: 1 }].into()).await.expect("published");
    vault.logs[1].share.as_mut().expect("sharing").careless = true;
    vault.logs[1].reattach_blind().await;
    drain(&mut vault.logs[1], 1).await;
    let applier = start_with(ApplierConfig { gc: false, ..super::horizon::settings() }, &vault.logs[1]).await;
    wait_for("the applier to name it", async || {
        let error = applier.status().machines.remove(0).last_error.unwrap_or_default();
        error.contains("refers to epoch 1 of a, condemned before list 2")
    })
    .await;
    applier.stop().await;
}

#[tokio::test]
async fn a_purge_is_refused_while_others_read_and_proven_then() {
    let mut vault = Vault::of(&["a", "b", "c"]).await;
    for log in &mut vault.logs[..2] {
        drain(log, 1).await;
    }
    let purge = async |vault: &Vault| unprotect(&vault.store, vault.keys.clone(), None, &name("a"), true).await;
    let refused = purge(&vault).await.expect_err("b reads from it");
    assert!(matches!(&refused, ApplierError::Referenced { by, .. } if by.contains(&name("b"))), "{refused}");
    vault.all_right().await;
    for machine in [1, 2] {
        forget(&mut vault.logs[machine]).await;
        tidy(&vault.logs[machine]).await;
    }
    assert!(purge(&vault).await.expect("nobody reads from it").purged);
    assert!(vault.store.list("machine/a").await.expect("listed").is_empty());
    vault.logs.remove(0);
    // Their epochs are new ones now, which have seen that `a` is gone.
    for log in &mut vault.logs {
        log.reattach_blind().await;
        drain(log, 1).await;
        tidy(log).await;
    }
    vault.all_right().await;
    vault.collect().await;
}

/// One step of a life of clones.
#[derive(Debug, Clone)]
enum Step {
    Write {
        machine: usize,
        records: u8,
    },
    Drain {
        machine: usize,
        template: u8,
    },
    Restart {
        machine: usize,
    },
    Forget {
        machine: usize,
    },
    /// An applier runs until nothing is left to do.
    Tidy {
        machine: usize,
    },
    /// An applier is stopped at once, wherever it is.
    CutShort {
        machine: usize,
    },
    Shared {
        fence: bool,
    },
}

const MACHINES: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let machine = 0..MACHINES;
    prop_oneof![
        4 => (machine.clone(), 1..12u8).prop_map(|(machine, records)| Step::Write { machine, records }),
        4 => (machine.clone(), 0..3u8).prop_map(|(machine, template)| Step::Drain { machine, template }),
        3 => machine.clone().prop_map(|machine| Step::Restart { machine }),
        2 => machine.clone().prop_map(|machine| Step::Forget { machine }),
        3 => machine.clone().prop_map(|machine| Step::Tidy { machine }),
        1 => machine.prop_map(|machine| Step::CutShort { machine }),
        4 => any::<bool>().prop_map(|fence| Step::Shared { fence }),
    ]
}

async fn take(step: &Step, vault: &mut Vault) {
    match *step {
        Step::Write { machine, records } => {
            (0..records).for_each(|_| _ = vault.logs[machine].random());
            vault.logs[machine].commit().await;
        }
        Step::Drain { machine, template } => drain(&mut vault.logs[machine], template).await,
        Step::Restart { machine } => vault.logs[machine].reattach_blind().await,
        Step::Forget { machine } => forget(&mut vault.logs[machine]).await,
        Step::Tidy { machine } => tidy(&vault.logs[machine]).await,
        Step::CutShort { machine } => {
            start_with(super::horizon::settings(), &vault.logs[machine]).await.stop().await;
        }
        Step::Shared { fence } => {
            let options = SharedOptions { fence, dry_run: false };
            collect_shared(&vault.store, &vault.keys, options).await.expect("walked");
            if fence {
                // Whoever was fenced goes on in an epoch of its own.
                for log in &mut vault.logs {
                    log.reattach_blind().await;
                }
            }
        }
    }
}

async fn play(steps: &[Step]) {
    let mut vault = Vault::of(&["a", "b", "c"]).await;
    for step in steps {
        take(step, &mut vault).await;
    }
    for log in &vault.logs {
        tidy(log).await;
    }
    vault.collect().await;
    vault.all_right().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn whatever_is_done_to_clones_what_is_promised_opens(steps in prop::collection::vec(step(), 10..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(play(&steps));
    }
}
