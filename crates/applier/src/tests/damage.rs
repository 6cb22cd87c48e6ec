//! Verify names exactly what is damaged and the points that it hits; without damage it is clean.

use std::sync::Arc;

use format::object::{HEADER_BYTES, LogKind};
use model::{RecordDigest, Seq};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use store::{LogPosition, Store};

use super::{contents, load, open};
use crate::recover::{VerifyOptions, VerifyReport, Witness, verify};
use crate::segments;
use crate::testing::{TestLog, vault};

pub(super) async fn check(log: &TestLog, witness: Option<(Seq, RecordDigest)>) -> VerifyReport {
    let options = VerifyOptions { witness, ..VerifyOptions::default() };
    verify(&log.store, log.keys.clone(), &log.machine, options).await.expect("verified")
}

pub(super) async fn replace(store: &Store, path: &str, bytes: Vec<u8>) {
    store.object_store().put(&Path::from(path), bytes.into()).await.expect("replaced");
}

pub(super) async fn bytes(store: &Store, path: &str) -> Vec<u8> {
    store.get(path).await.expect("read").expect("there").to_vec()
}

/// A log of a few segments, their paths, and the last seq before each.
pub(super) async fn sample(machine: &str, seed: u64) -> (TestLog, Vec<String>, Vec<Seq>) {
    let (store, keys) = vault().await;
    sample_in(&store, &keys, machine, seed).await
}

pub(super) async fn sample_in(
    store: &Store,
    keys: &Arc<format::keys::Keys>,
    machine: &str,
    seed: u64,
) -> (TestLog, Vec<String>, Vec<Seq>) {
    let mut log = TestLog::begin(store, keys, machine, seed).await;
    let (mut paths, mut before) = (Vec::new(), Vec::new());
    for i in 0..6 {
        before.push(log.last());
        for _ in 0..6 {
            log.random();
        }
        log.named(&format!("m{i}"));
        paths.push(log.commit().await);
    }
    log.reattach().await;
    log.random();
    log.named("end");
    log.commit().await;
    (log, paths, before)
}

#[tokio::test]
async fn an_undamaged_store_is_clean_and_the_missing_witness_is_said() {
    let (log, _, _) = sample("db", 1).await;
    let report = check(&log, None).await;
    assert!(report.clean(), "{report:?}");
    assert_eq!((report.exit_code(), report.head_seq), (0, log.last()));
    assert!(report.notes.iter().any(|note| note.contains("no witness")));
    let digest = log.model.digests[log.last().0 as usize];
    let report = check(&log, Some((log.last(), digest))).await;
    assert!(report.clean() && report.notes.is_empty(), "{report:?}");
    assert_eq!(report.witness, Witness::Confirmed { seq: log.last() });
    let middle = Seq(log.last().0 / 2);
    let report = check(&log, Some((middle, log.model.digests[middle.0 as usize]))).await;
    assert_eq!(report.witness, Witness::Confirmed { seq: middle });
    let report = check(&log, Some((middle, digest))).await;
    assert_eq!((report.witness.clone(), report.exit_code()), (Witness::Differs { seq: middle }, 3));
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_any_object_names_that_object() {
    let (log, _, _) = sample("db", 2).await;
    let all = log.store.list("machine/db").await.expect("listed");
    assert!(all.len() > 8);
    for (path, len) in all {
        let whole = bytes(&log.store, &path).await;
        for at in [0, 40, 200, HEADER_BYTES - 1, HEADER_BYTES + 1, len as usize - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            replace(&log.store, &path, flipped).await;
            let report = check(&log, None).await;
            let named: Vec<_> = report.damages.iter().map(|damage| damage.path.as_str()).collect();
            assert_eq!(named, vec![path.as_str()], "byte {at}: {report:?}");
        }
        replace(&log.store, &path, whole).await;
    }
    assert!(check(&log, None).await.clean(), "everything was put back");
}

/// A position is said to be hit by a damaged frame exactly when reading it fails.
#[tokio::test]
async fn a_damaged_frame_hits_exactly_the_positions_that_cannot_be_read() {
    for seed in 10..16 {
        let (log, paths, _) = sample("db", seed).await;
        for path in &paths {
            let whole = bytes(&log.store, path).await;
            let mut flipped = whole.clone();
            *flipped.last_mut().expect("not empty") ^= 1;
            replace(&log.store, path, flipped).await;
            let report = check(&log, None).await;
            assert_eq!(report.damages.len(), 1, "{report:?}");
            let damage = &report.damages[0];
            let history = load(&log).await;
            for seq in 10..=log.last().0 {
                let said = damage.ranges.iter().any(|r| r.from.0 <= seq && seq <= r.to.0);
                let point = open(&history, Seq(seq)).await;
                let mut fails = false;
                for info in point.disks() {
                    let disk = point.disk(&info.name).expect("listed");
                    let whole = model::Extent::new(0, info.size).expect("not empty");
                    fails |= disk.read(whole).await.is_err();
                }
                assert_eq!(said, fails, "seed {seed} {path} seq {seq}: {damage:?}");
                if !fails {
                    assert!(contents(&point).await == log.model.at[seq as usize]);
                }
            }
            replace(&log.store, path, whole).await;
        }
    }
}

#[tokio::test]
async fn a_missing_slot_is_named_and_everything_behind_it_is_hit() {
    let (log, paths, before) = sample("db", 3).await;
    log.store.delete(&paths[2]).await.expect("deleted");
    let report = check(&log, None).await;
    assert_eq!(report.damages.len(), 1, "{report:?}");
    let damage = &report.damages[0];
    assert_eq!(damage.path, paths[2]);
    assert_eq!((damage.ranges[0].from, damage.ranges[0].to), (before[2].next(), log.last()));
    // Marks of later segments; the lost segment's own mark is not known any more.
    assert_eq!(damage.points.len(), 4, "{damage:?}");
}

#[tokio::test]
async fn swapped_slots_are_both_named() {
    let (log, paths, _) = sample("db", 4).await;
    let (first, second) = (bytes(&log.store, &paths[1]).await, bytes(&log.store, &paths[3]).await);
    replace(&log.store, &paths[1], second).await;
    replace(&log.store, &paths[3], first).await;
    let report = check(&log, None).await;
    let named: Vec<_> = report.damages.iter().map(|damage| damage.path.clone()).collect();
    assert_eq!(named, vec![paths[1].clone(), paths[3].clone()]);
}

#[tokio::test]
async fn an_object_of_another_machine_is_named() {
    let (store, keys) = vault().await;
    let (log, paths, _) = sample_in(&store, &keys, "db", 5).await;
    let (_, others, _) = sample_in(&store, &keys, "web", 5).await;
    replace(&store, &paths[2], bytes(&store, &others[2]).await).await;
    let report = check(&log, None).await;
    let named: Vec<_> = report.damages.iter().map(|damage| damage.path.clone()).collect();
    assert_eq!(named, vec![paths[2].clone()]);
}

#[tokio::test]
async fn a_lost_tail_is_seen_by_a_witness_only() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 6).await;
    log.random();
    log.commit().await;
    log.random();
    let tail = log.commit().await;
    let witness = (log.last(), log.model.digests[log.last().0 as usize]);
    assert!(check(&log, Some(witness)).await.clean());
    store.delete(&tail).await.expect("deleted");
    let report = check(&log, None).await;
    assert!(report.clean() && report.notes.iter().any(|note| note.contains("cannot be excluded")), "{report:?}");
    let report = check(&log, Some(witness)).await;
    let stored = Seq(log.last().0 - 1);
    assert_eq!(report.witness, Witness::TailLost { witnessed: log.last(), stored });
    assert_eq!(report.exit_code(), 3);
}

#[tokio::test]
async fn a_missing_epoch_object_or_opening_is_named() {
    let (log, _, _) = sample("db", 7).await;
    for path in [
        segments::epoch_path(&log.machine, LogKind::Stream, 1),
        segments::path(&log.machine, LogKind::Stream, LogPosition { epoch: 2, slot: 0 }),
    ] {
        let whole = bytes(&log.store, &path).await;
        log.store.delete(&path).await.expect("deleted");
        let report = check(&log, None).await;
        let named: Vec<_> = report.damages.iter().map(|damage| damage.path.clone()).collect();
        assert_eq!(named, vec![path.clone()]);
        replace(&log.store, &path, whole).await;
    }
}
