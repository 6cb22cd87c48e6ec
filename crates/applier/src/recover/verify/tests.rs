//! Samples and state files: what is read whole, what is said of it, and going on after a kill.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::MachineName;
use object_store::ObjectStoreExt as _;
use store::{CountingStore, Store};

use super::share::{Draw, Plan};
use super::{Coverage, Share, StateFile, VerifyOptions, VerifyReport, Witness, verify};
use crate::recover::{Progress, RecoverError};
use crate::testing::{TestLog, vault};
use crate::tests::follow;

/// A log of 31 segments with data, and maps of all but a few of them; the segments' paths.
async fn mapped() -> (TestLog, Vec<String>) {
    let (store, keys) = vault().await;
    let mut log = TestLog::begin(&store, &keys, "db", 11).await;
    for i in 0..30u8 {
        for _ in 0..4 {
            let noise = (0..48 << 10).map(|_| log.rng.next() as u8).collect();
            log.write("data", 0, noise);
        }
        log.write("root", 0, vec![i + 1; 4096]);
        log.commit().await;
    }
    follow(&log, 8).await;
    let listed = store.list("machine/db").await.expect("listed").into_iter().map(|(path, _)| path);
    let segments =
        listed.filter(|path| path.contains("/stream/seg/") && !path.ends_with("/0000000000000000")).collect();
    (log, segments)
}

fn share(text: &str) -> Option<Share> {
    Some(text.parse().expect("a share"))
}

async fn check(log: &TestLog, options: VerifyOptions) -> VerifyReport {
    verify(&log.store, log.keys.clone(), &log.machine, options).await.expect("verified")
}

/// The paths of segments and maps that a sample reads whole.
async fn drawn(log: &TestLog, sample: &str, seed: u32) -> BTreeSet<String> {
    let listed = log.store.list("machine/db").await.expect("listed");
    let paths: Vec<_> = listed.iter().map(|(path, _)| path.clone()).collect();
    let machine: MachineName = log.machine.clone();
    let plan = Plan::of(&machine, listed, Some(Draw { share: share(sample).expect("given"), seed }));
    paths.into_iter().filter(|path| plan.size(path).is_some() && plan.draws(path)).collect()
}

/// Flips the last bit of an object: for a segment, in a frame. Gives the bytes as they were.
async fn flip(store: &Store, path: &str) -> Vec<u8> {
    let whole = store.get(path).await.expect("read").expect("there").to_vec();
    let mut flipped = whole.clone();
    *flipped.last_mut().expect("not empty") ^= 1;
    replace(store, path, flipped).await;
    whole
}

async fn replace(store: &Store, path: &str, bytes: Vec<u8>) {
    store.object_store().put(&object_store::path::Path::from(path), bytes.into()).await.expect("replaced");
}

#[tokio::test]
async fn a_sample_finds_what_it_reads_and_says_that_it_read_no_more() {
    let (log, _) = mapped().await;
    let (sample, seed) = (share("20%"), Some(5));
    let drawn = drawn(&log, "20%", 5).await;
    let options = || VerifyOptions { sample, seed, ..VerifyOptions::default() };
    let report = check(&log, options()).await;
    assert!(report.clean(), "{report:?}");
    assert_eq!(report.sample.as_ref().map(|s| (s.share.as_str(), s.seed)), Some(("20%", 5)));
    let whole = report.segments.whole_objects + report.maps.whole_objects;
    assert_eq!(whole, drawn.len() as u64, "what was drawn is what was read whole");
    assert!(report.segments.objects == 31 && report.segments.whole_objects < 15 && report.maps.objects > 0);
    assert!(report.segments.whole_bytes < report.segments.bytes / 2);

    let all = log.store.list("machine/db").await.expect("listed");
    let (mut found, mut missed) = (0, 0);
    for (path, _) in all.iter().filter(|(path, _)| path.contains("/map/") || path.contains("/stream/seg/")) {
        if path.ends_with("/0000000000000000") {
            continue;
        }
        let before = flip(&log.store, path).await;
        let named: Vec<_> = check(&log, options()).await.damages.into_iter().map(|damage| damage.path).collect();
        match drawn.contains(path) {
            true => found += u32::from(named == [path.as_str()]),
            false => missed += u32::from(named.is_empty()),
        }
        let everything = VerifyOptions { sample: share("100%"), ..VerifyOptions::default() };
        let named: Vec<_> = check(&log, everything).await.damages.into_iter().map(|damage| damage.path).collect();
        assert_eq!(named, [path.as_str()], "all of it is always enough");
        replace(&log.store, path, before).await;
    }
    assert_eq!(found as usize, drawn.len(), "a flipped bit in what is drawn is named");
    // The control of the sample: a flipped bit anywhere else stays unseen, so the test above sees the draw at work.
    assert_eq!(found + missed, (report.segments.objects + report.maps.objects) as u32);
    assert!(missed > found);
}

#[tokio::test]
async fn what_is_not_drawn_is_still_checked_as_far_as_its_header_its_table_and_its_length() {
    let (log, segments) = mapped().await;
    let drawn = drawn(&log, "10%", 9).await;
    let path = segments.iter().find(|path| !drawn.contains(*path)).expect("most are not drawn");
    let options = || VerifyOptions { sample: share("10%"), seed: Some(9), ..VerifyOptions::default() };
    let whole = log.store.get(path).await.expect("read").expect("there").to_vec();
    let mut spoilt = vec![whole[..whole.len() - 1].to_vec(), [&whole[..], &[0]].concat(), whole[..100].to_vec()];
    for at in [0, 200, 383, 384, 400] {
        let mut flipped = whole.clone();
        flipped[at] ^= 2;
        spoilt.push(flipped);
    }
    for (i, bytes) in spoilt.into_iter().enumerate() {
        replace(&log.store, path, bytes).await;
        let named: Vec<_> = check(&log, options()).await.damages.into_iter().map(|damage| damage.path).collect();
        assert_eq!(named, [path.as_str()], "spoilt in way {i}");
    }
    replace(&log.store, path, whole).await;
    assert!(check(&log, options()).await.clean());
    log.store.delete(path).await.expect("deleted");
    let named: Vec<_> = check(&log, options()).await.damages.into_iter().map(|damage| damage.path).collect();
    assert!(named.contains(path), "{named:?}");
}

fn remembering(path: &Path) -> VerifyOptions {
    let state = StateFile { path: path.to_owned(), every: Duration::ZERO };
    VerifyOptions { state: Some(state), ..VerifyOptions::default() }
}

/// A verify that is dropped, as by a kill, once its progress is such. Whether it was.
async fn killed_when(
    log: &TestLog,
    options: VerifyOptions,
    now: impl Fn(Progress) -> bool + Send + Sync + 'static,
) -> bool {
    let kill = Arc::new(tokio::sync::Notify::new());
    let bell = kill.clone();
    let progress = Arc::new(move |at| {
        if now(at) {
            bell.notify_one();
        }
    });
    let options = VerifyOptions { progress: Some(progress), ..options };
    let (store, keys, machine) = (log.store.clone(), log.keys.clone(), log.machine.clone());
    let life = move || {
        // A runtime of its own: when it is gone, so is all that it was writing.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = kill.notified() => true,
                _ = verify(&store, keys, &machine, options) => false,
            }
        })
    };
    tokio::task::spawn_blocking(life).await.expect("no panic")
}

/// The same when half of the bytes are read.
async fn killed_half_way(log: &TestLog, options: VerifyOptions) -> bool {
    killed_when(log, options, |at| at.done * 2 >= at.total).await
}

#[tokio::test]
async fn a_killed_verify_goes_on_where_it_was_and_finds_what_it_has_not_read() {
    let (mut log, segments) = mapped().await;
    let directory = tempfile::tempdir().expect("temp dir");
    let path = directory.path().join("verify.state");
    let counting = CountingStore::new(log.store.object_store().clone());
    log.store = Store::from_object_store(Arc::new(counting.clone()));
    let full = check(&log, VerifyOptions::default()).await;
    let (_, full_bytes) = counting.take();

    assert!(killed_half_way(&log, remembering(&path)).await, "it was killed half-way");
    let (_, first_bytes) = counting.take();
    // What came meanwhile is read too.
    log.write("root", 0, vec![77; 4096]);
    log.commit().await;
    let report = check(&log, remembering(&path)).await;
    let (_, rest_bytes) = counting.take();
    assert!(report.clean(), "{report:?}");
    assert_eq!((report.segments.objects, report.segments.whole_objects), (32, 32));
    assert!(report.segments.earlier_objects > 5, "{:?}", report.segments);
    assert!(rest_bytes < full_bytes * 9 / 10, "{rest_bytes} of {full_bytes} bytes, {first_bytes} before");
    assert!(!path.exists(), "the file goes when all is read");
    assert_eq!(full.segments.earlier_objects, 0);

    // Damage is found in the rest, whether it was there before the kill or came after it.
    for late in [false, true] {
        let victim = &segments[27];
        let before = if late { Vec::new() } else { flip(&log.store, victim).await };
        assert!(killed_half_way(&log, remembering(&path)).await);
        let before = if late { flip(&log.store, victim).await } else { before };
        let report = check(&log, remembering(&path)).await;
        let named: Vec<_> = report.damages.iter().map(|damage| damage.path.as_str()).collect();
        assert!(named == [victim.as_str()] && report.segments.earlier_objects > 5, "{report:?}");
        replace(&log.store, victim, before).await;
    }
}

#[tokio::test]
async fn damage_found_before_a_kill_is_found_again_and_an_object_replaced_meanwhile_is_read() {
    let (log, segments) = mapped().await;
    let directory = tempfile::tempdir().expect("temp dir");
    let path = directory.path().join("verify.state");
    let before = flip(&log.store, &segments[1]).await;
    assert!(killed_half_way(&log, remembering(&path)).await);
    let report = check(&log, remembering(&path)).await;
    let named: Vec<_> = report.damages.iter().map(|damage| damage.path.as_str()).collect();
    assert_eq!(named, [segments[1].as_str()]);
    replace(&log.store, &segments[1], before).await;

    assert!(killed_half_way(&log, remembering(&path)).await);
    let other = log.store.get(&segments[3]).await.expect("read").expect("there").to_vec();
    replace(&log.store, &segments[2], other).await;
    let report = check(&log, remembering(&path)).await;
    assert!(report.damages.iter().any(|damage| damage.path == segments[2]), "{report:?}");
}

#[tokio::test]
async fn a_log_that_ends_before_what_was_read_has_lost_its_tail() {
    let (mut log, _) = mapped().await;
    let directory = tempfile::tempdir().expect("temp dir");
    let path = directory.path().join("verify.state");
    // Behind the last manifest nobody else knows of it.
    log.write("root", 0, vec![9; 4096]);
    let tail = log.commit().await;
    let stored = log.last();
    let at = path.clone();
    let all_read = move |_| {
        let state = std::fs::read(&at).ok().and_then(|bytes| super::state::decode(&bytes));
        state.and_then(|state| state.head()).is_some_and(|(seq, _)| seq == stored)
    };
    assert!(killed_when(&log, remembering(&path), all_read).await, "it was killed before the last map was read");
    log.store.delete(&tail).await.expect("deleted");
    let report = check(&log, remembering(&path)).await;
    assert!(matches!(report.witness, Witness::TailLost { witnessed, .. } if witnessed == stored), "{report:?}");
    assert!(!report.clean());
    // The control: without the file nobody can tell.
    let report = check(&log, VerifyOptions::default()).await;
    assert!(report.clean() && report.notes.iter().any(|note| note.contains("no witness")), "{report:?}");
}

#[tokio::test]
async fn a_state_that_is_damaged_or_of_another_verify_is_refused_in_words() {
    let (log, _) = mapped().await;
    let directory = tempfile::tempdir().expect("temp dir");
    let path = directory.path().join("verify.state");
    let sampled = |text: &str, seed| VerifyOptions { sample: share(text), seed, ..remembering(&path) };
    assert!(killed_half_way(&log, sampled("50%", Some(3))).await);
    let refused = async |options: VerifyOptions, with: &[&str]| {
        let refused = verify(&log.store, log.keys.clone(), &log.machine, options).await.expect_err("refused");
        assert!(matches!(refused, RecoverError::VerifyState { .. }) && refused.exit_code() == 2, "{refused:?}");
        let text = refused.to_string();
        assert!(with.iter().all(|word| text.contains(word)), "{text}");
    };
    let whole = std::fs::read(&path).expect("there");
    refused(remembering(&path), &["--sample 50% --seed 3", "machine db, everything", "another file"]).await;
    refused(sampled("50%", Some(4)), &["--seed 3", "--seed 4"]).await;
    refused(sampled("25%", None), &["--sample 50%", "--sample 25%"]).await;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        assert!(super::state::decode(&damaged).is_none(), "byte {at}");
    }
    for damaged in [&whole[..whole.len() - 1], &whole[..10], b"a text of somebody's own"] {
        std::fs::write(&path, damaged).expect("written");
        refused(sampled("50%", None), &["damaged or no state of a verify", "remove it"]).await;
        assert_eq!(std::fs::read(&path).expect("there"), damaged, "and left as it is");
    }
    std::fs::write(&path, &whole).expect("written");
    let (store, keys) = vault().await;
    let other = TestLog::begin(&store, &keys, "db", 1).await;
    let elsewhere = verify(&store, keys, &other.machine, sampled("50%", None)).await.expect_err("refused");
    assert!(elsewhere.to_string().contains("in another vault"), "{elsewhere}");
    // The seed need not be given again.
    let report = check(&log, sampled("50%", None)).await;
    let Coverage { earlier_objects, .. } = report.segments;
    assert!(report.clean() && earlier_objects > 0, "{report:?}");
    assert_eq!(report.sample.map(|sample| sample.seed), Some(3));
}
