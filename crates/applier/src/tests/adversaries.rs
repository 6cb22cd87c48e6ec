//! Whoever can write the store, but has no key: cuts, lengthens, swaps, transplants and puts back old objects. Goal: verify
//! names exactly the object that was touched, and recovery gives the right bytes or none. Method: every object of a log is
//! touched in every way, and every position is read and held against the model.

use std::sync::Arc;
use std::time::Duration;

use format::object::HEADER_BYTES;
use model::{Extent, Selector, Seq};

use super::damage::{bytes, check, replace, sample, sample_in};
use super::follow;
use crate::recover::{History, LoadOptions};
use crate::testing::{TestLog, vault};

/// Reads every valid position as a restore would. Wrong bytes fail the test; returns how many positions were refused.
async fn refused_positions(log: &TestLog) -> Result<u64, String> {
    let options = LoadOptions { settle: Duration::ZERO, ..LoadOptions::default() };
    let valid: Vec<u64> = (1..=log.last().0).filter(|seq| log.model.valid[*seq as usize]).collect();
    let Ok(history) = History::load(&log.store, log.keys.clone(), &log.machine, options).await else {
        return Ok(valid.len() as u64);
    };
    let history = Arc::new(history);
    let mut refused = 0;
    for seq in valid {
        let point = match history.resolve(&Selector::Seq(Seq(seq)), None).await {
            Ok(at) => history.open(&at).await,
            Err(error) => Err(error),
        };
        let Ok(point) = point else {
            refused += 1;
            continue;
        };
        let mut whole = true;
        for info in point.disks() {
            let disk = point.disk(&info.name).expect("listed");
            match disk.read(Extent::new(0, info.size).expect("not empty")).await {
                Err(_) => whole = false,
                Ok(read) if read[..] == log.model.at[seq as usize][&info.name][..] => {}
                Ok(_) => return Err(format!("disk {} at seq {seq} was restored wrong", info.name)),
            }
        }
        refused += u64::from(!whole);
    }
    Ok(refused)
}

/// Puts `changed` in the place of an object, sees to it that it is named and nothing wrong is restored, and puts back.
async fn named_and_never_restored_wrong(log: &TestLog, path: &str, what: &str, changed: Vec<u8>) {
    let whole = bytes(&log.store, path).await;
    assert_ne!(whole, changed, "{what} changes something");
    replace(&log.store, path, changed).await;
    let report = check(log, None).await;
    let named: Vec<_> = report.damages.iter().map(|damage| damage.path.as_str()).collect();
    assert_eq!(named, vec![path], "{what}: {report:?}");
    assert_eq!(report.exit_code(), 3, "{what}");
    refused_positions(log).await.unwrap_or_else(|wrong| panic!("{path} {what}: {wrong}"));
    replace(&log.store, path, whole).await;
}

async fn objects(log: &TestLog) -> Vec<String> {
    log.store.list("machine/db").await.expect("listed").into_iter().map(|(path, _)| path).collect()
}

#[tokio::test]
async fn a_truncated_object_is_named_wherever_it_was_cut() {
    let (log, _, _) = sample("db", 31).await;
    for path in objects(&log).await {
        let whole = bytes(&log.store, &path).await;
        for len in [0, 1, HEADER_BYTES / 2, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, whole.len() - 1] {
            named_and_never_restored_wrong(&log, &path, &format!("cut to {len}"), whole[..len].to_vec()).await;
        }
    }
    assert_eq!(refused_positions(&log).await, Ok(0), "the control: put back, every position is restored");
}

#[tokio::test]
async fn an_extended_object_is_named() {
    let (log, _, _) = sample("db", 32).await;
    for path in objects(&log).await {
        let whole = bytes(&log.store, &path).await;
        for more in [&[0][..], &[0; 512], &whole] {
            let longer = [&whole, more].concat();
            named_and_never_restored_wrong(&log, &path, &format!("{} bytes longer", more.len()), longer).await;
        }
    }
}

#[tokio::test]
async fn an_object_of_another_vault_with_the_same_names_is_named() {
    let (log, _, _) = sample("db", 33).await;
    // Same machine, same records, same paths: only the key differs.
    let (other, _, _) = sample("db", 33).await;
    let paths = objects(&log).await;
    assert_eq!(paths, objects(&other).await);
    for path in paths {
        let theirs = bytes(&other.store, &path).await;
        named_and_never_restored_wrong(&log, &path, "from another vault", theirs).await;
    }
}

#[tokio::test]
async fn an_object_of_another_machine_or_slot_is_named_and_never_restored() {
    let (store, keys) = vault().await;
    let (log, paths, _) = sample_in(&store, &keys, "db", 34).await;
    let (_, others, _) = sample_in(&store, &keys, "web", 34).await;
    for (at, path) in paths.iter().enumerate() {
        let theirs = bytes(&store, &others[at]).await;
        named_and_never_restored_wrong(&log, path, "from another machine", theirs).await;
        if let Some(before) = at.checked_sub(1) {
            let older = bytes(&store, &paths[before]).await;
            named_and_never_restored_wrong(&log, path, "replaced by the object before it", older).await;
        }
    }
}

/// A store that is put back as a whole to an earlier state is consistent in itself: only somebody who remembers can tell.
#[tokio::test]
async fn a_store_put_back_to_an_earlier_state_is_told_by_a_witness_alone_and_without_one_verify_says_so() {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 35).await;
    log.random();
    log.commit().await;
    let earlier = objects(&log).await;
    for _ in 0..3 {
        log.random();
        log.commit().await;
        log.reattach().await;
    }
    let witness = (log.last(), log.model.digests[log.last().0 as usize]);
    assert!(check(&log, Some(witness)).await.clean(), "the control");
    for path in objects(&log).await.into_iter().filter(|path| !earlier.contains(path)) {
        store.delete(&path).await.expect("deleted");
    }
    let report = check(&log, None).await;
    assert!(report.clean() && report.notes.iter().any(|note| note.contains("cannot be excluded")), "{report:?}");
    let report = check(&log, Some(witness)).await;
    assert_eq!(report.exit_code(), 3, "{report:?}");
    assert!(matches!(report.witness, crate::recover::Witness::TailLost { .. }), "{report:?}");
}

#[tokio::test]
async fn a_manifest_that_was_touched_is_named_and_no_position_restored_wrong() {
    let mut paths = Vec::new();
    let mut logs = Vec::new();
    for _ in 0..2 {
        let (mut log, _, _) = sample("db", 37).await;
        follow(&log, 2).await;
        log.random();
        log.named("later");
        log.commit().await;
        follow(&log, 2).await;
        let all = objects(&log).await.into_iter().filter(|path| path.contains("/manifest/"));
        paths.push(all.collect::<Vec<_>>());
        logs.push(log);
    }
    let (log, other) = (&logs[0], &logs[1]);
    assert!(check(log, None).await.clean(), "the control");
    assert!(paths[0].iter().filter(|path| path.contains("/seg/")).count() >= 3, "several manifests: {:?}", paths[0]);
    for path in &paths[0] {
        let whole = bytes(&log.store, path).await;
        for len in [0, HEADER_BYTES, whole.len() - 1] {
            named_and_never_restored_wrong(log, path, &format!("cut to {len}"), whole[..len].to_vec()).await;
        }
        named_and_never_restored_wrong(log, path, "longer", [&whole[..], &[0]].concat()).await;
        let mut flipped = whole.clone();
        *flipped.last_mut().expect("not empty") ^= 1;
        named_and_never_restored_wrong(log, path, "a flipped bit", flipped).await;
        for another in paths[0].iter().filter(|another| *another != path) {
            let theirs = bytes(&log.store, another).await;
            named_and_never_restored_wrong(log, path, &format!("replaced by {another}"), theirs).await;
        }
        if paths[1].contains(path) {
            let theirs = bytes(&other.store, path).await;
            named_and_never_restored_wrong(log, path, "from another vault", theirs).await;
        }
    }
    assert_eq!(refused_positions(log).await, Ok(0), "everything was put back");
}

#[tokio::test]
async fn the_oracle_of_these_tests_notices_wrong_bytes() {
    let (mut log, _, _) = sample("db", 36).await;
    let last = log.last().0 as usize;
    let disk = log.model.at[last].keys().next().expect("a disk").clone();
    Arc::make_mut(log.model.at[last].get_mut(&disk).expect("there"))[0] ^= 1;
    assert!(refused_positions(&log).await.expect_err("wrong").contains("restored wrong"));
}
