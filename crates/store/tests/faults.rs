//! The store that fails on demand does what each fault says, and nothing else: a fault that did nothing would make every
//! test that uses it prove nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, Result};
use store::{Fault, FaultRule, FaultStore, Faults, Request, Store, StoreError};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const TEXT: &str = "0123456789abcdef";

struct Bench {
    truth: Arc<InMemory>,
    faults: Faults,
    store: FaultStore,
}

fn bench() -> Bench {
    let (truth, faults) = (Arc::new(InMemory::new()), Faults::new(7));
    Bench { store: FaultStore::new(truth.clone(), faults.clone()), truth, faults }
}

impl Bench {
    async fn create(&self, path: &str) -> Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(&path.into(), TEXT.into(), options).await.map(drop)
    }

    async fn read(&self, path: &str) -> Result<String> {
        let bytes = self.store.get(&path.into()).await?.bytes().await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn is_there(&self, path: &str) -> bool {
        self.truth.head(&path.into()).await.is_ok()
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let prefix = Path::from(prefix);
        let all: Vec<_> = self.store.list(Some(&prefix)).try_collect().await?;
        Ok(all.into_iter().map(|meta| meta.location.to_string()).collect())
    }

    fn plan(&self, request: Request, fault: Fault) -> &Self {
        self.faults.fail_next(request, fault);
        self
    }
}

fn is_generic(result: Result<impl Sized>) -> bool {
    matches!(result, Err(Error::Generic { .. }))
}

#[tokio::test(start_paused = true)]
async fn failing_before_and_after_differ_in_what_happened() {
    let bench = bench();
    assert!(is_generic(bench.plan(Request::Put, Fault::Before).create("a").await));
    assert!(!bench.is_there("a").await);
    assert!(is_generic(bench.plan(Request::Put, Fault::LostResponse).create("b").await));
    assert!(bench.is_there("b").await);
    assert!(is_generic(bench.plan(Request::Delete, Fault::LostResponse).store.delete(&"b".into()).await));
    assert!(!bench.is_there("b").await);
}

#[tokio::test(start_paused = true)]
async fn puts_and_deletes_land_late_by_whoever_was_named() {
    let bench = bench();
    let spawned = Arc::new(Mutex::new(0));
    let count = spawned.clone();
    bench.faults.set_spawner(Arc::new(move |late| {
        *count.lock().expect("not poisoned") += 1;
        drop(tokio::spawn(late));
    }));
    assert!(is_generic(bench.plan(Request::Put, Fault::Late(SECOND)).create("a").await));
    assert!(!bench.is_there("a").await);
    waiting::pass(2 * SECOND).await;
    assert!(bench.is_there("a").await);
    assert!(is_generic(bench.plan(Request::Delete, Fault::Late(SECOND)).store.delete(&"a".into()).await));
    assert!(bench.is_there("a").await);
    waiting::pass(2 * SECOND).await;
    assert!(!bench.is_there("a").await);
    assert_eq!(*spawned.lock().expect("not poisoned"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_repeated_create_brings_a_deleted_object_back() {
    let bench = bench();
    bench.plan(Request::Put, Fault::Twice(SECOND)).create("a").await.expect("answered");
    bench.store.delete(&"a".into()).await.expect("deleted");
    assert!(!bench.is_there("a").await);
    waiting::pass(2 * SECOND).await;
    assert!(bench.is_there("a").await, "resurrected");
}

#[tokio::test(start_paused = true)]
async fn throttling_comes_in_runs_of_its_own_kind_and_place() {
    let bench = bench();
    bench
        .faults
        .add(FaultRule::new(Fault::ServiceUnavailable { run: 3 }, 1.0).on(&[Request::Put]).below("m/").at_most(1));
    for _ in 0..3 {
        let error = bench.create("m/a").await.expect_err("throttled");
        assert!(error.to_string().contains("after 3 retries") && error.to_string().contains("503"), "{error}");
        assert!(bench.read("m/a").await.is_err_and(|e| matches!(e, Error::NotFound { .. })), "reads are not struck");
        bench
            .create("n/a")
            .await
            .or_else(|e| if matches!(e, Error::AlreadyExists { .. }) { Ok(()) } else { Err(e) })
            .expect("elsewhere");
    }
    bench.create("m/a").await.expect("the run is over");
    bench.faults.fail_next(Request::Read, Fault::TooManyRequests { run: 2 });
    for _ in 0..2 {
        assert!(bench.read("m/a").await.is_err_and(|e| e.to_string().contains("429")));
    }
    assert_eq!(bench.read("m/a").await.expect("the run is over"), TEXT);
    let struck = [(Request::Put, "service-unavailable", 3), (Request::Read, "too-many-requests", 2)];
    assert_eq!(bench.faults.struck(), struck);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_says_nothing_about_what_happened() {
    let bench = bench();
    for (fault, created) in [(Fault::ConflictCreated, true), (Fault::ConflictAbsent, false)] {
        let path = fault.name();
        let result = bench.plan(Request::Put, fault).create(path).await;
        assert!(matches!(result, Err(Error::AlreadyExists { .. })), "{result:?}");
        assert_eq!(bench.is_there(path).await, created, "{path}");
    }
    bench
        .plan(Request::Put, Fault::ConflictAbsent)
        .store
        .put(&"x".into(), "y".into())
        .await
        .expect("no create, no 409");
    let store = Store::from_object_store(Arc::new(bench.store.clone()));
    for fault in [Fault::ConflictCreated, Fault::ConflictAbsent] {
        bench.faults.clear();
        bench.faults.fail_next(Request::Put, fault);
        let path = format!("again/{}", fault.name());
        assert_eq!(store.create(&path, vec![TEXT.into()]).await.expect("clear"), store::Created::Ours);
    }
}

#[tokio::test(start_paused = true)]
async fn what_hangs_answers_after_its_time_or_when_released() {
    let bench = bench();
    let start = Instant::now();
    bench.plan(Request::Put, Fault::Hang(60 * SECOND)).create("a").await.expect("answered in the end");
    assert_eq!(start.elapsed(), 60 * SECOND);
    bench.faults.fail_next(Request::Read, Fault::HangUntilReleased);
    let reading = bench.read("a");
    let mut reading = std::pin::pin!(reading);
    assert!(tokio::time::timeout(3600 * SECOND, &mut reading).await.is_err(), "for ever");
    bench.faults.clear();
    assert_eq!(tokio::time::timeout(SECOND, reading).await.expect("released").expect("read"), TEXT);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_takes_place_before_or_after_the_wait() {
    let mut before = 0;
    for seed in 0..64 {
        let truth = Arc::new(InMemory::new());
        let faults = Faults::new(seed);
        let store = FaultStore::new(truth.clone(), faults.clone());
        faults.fail_next(Request::Put, Fault::HangUntilReleased);
        let (path, put) = (Path::from("a"), "b".into());
        let _gave_up = tokio::time::timeout(SECOND, store.put(&path, put)).await.expect_err("hangs");
        before += usize::from(truth.head(&path).await.is_ok());
    }
    assert!((16..48).contains(&before), "{before} of 64");
}

#[tokio::test(start_paused = true)]
async fn a_slow_line_takes_its_latency_and_its_bandwidth() {
    let bench = bench();
    let slow = Fault::Slow { latency: SECOND, bytes_per_second: 8 };
    bench.faults.add(FaultRule::new(slow, 1.0));
    for expected in [3, 3] {
        let start = Instant::now();
        match bench.is_there("a").await {
            false => bench.create("a").await.expect("slowly"),
            true => assert_eq!(bench.read("a").await.expect("slowly"), TEXT),
        }
        assert_eq!(start.elapsed(), expected * SECOND, "1 s and 16 bytes at 8 per second");
    }
    let start = Instant::now();
    bench.store.head(&"a".into()).await.expect("slowly");
    assert_eq!(start.elapsed(), SECOND, "no body");
}

#[tokio::test(start_paused = true)]
async fn bodies_are_cut_broken_and_bent() {
    let bench = bench();
    bench.create("a").await.expect("created");
    let cut = bench.plan(Request::Read, Fault::TruncatedBody).read("a").await.expect("nobody says so");
    assert!(cut.len() < TEXT.len() && TEXT.starts_with(&cut), "{cut}");
    assert!(is_generic(bench.plan(Request::Read, Fault::BrokenBody).read("a").await));
    bench.faults.fail_next(Request::Read, Fault::FlippedBit);
    let options = GetOptions { range: Some(GetRange::Bounded(4..8)), ..GetOptions::default() };
    bench.store.head(&"a".into()).await.expect("a head has no body: the fault waits");
    let bent = bench.store.get_opts(&"a".into(), options).await.expect("read").bytes().await.expect("read");
    let bits: u32 = bent.iter().zip(b"4567").map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!((bent.len(), bits), (4, 1));
    assert_eq!(bench.read("a").await.expect("only the answers were bad"), TEXT);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_early_is_a_failed_read_and_never_another_object() {
    let bench = bench();
    let store = Store::from_object_store(Arc::new(bench.store.clone()));
    assert_eq!(store.create("a", vec![TEXT.into()]).await.expect("created"), store::Created::Ours);
    for range in [0..16, 2..14, 2..400] {
        bench.faults.fail_next(Request::Read, Fault::TruncatedBody);
        let read = store.get_range("a", range).await;
        assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    }
    bench.faults.fail_next(Request::Read, Fault::TruncatedBody);
    assert!(matches!(store.get("a").await, Err(StoreError::Unavailable { .. })));
    // Our own object, read back short, must not pass for another writer's.
    bench.faults.fail_next(Request::Read, Fault::TruncatedBody);
    let again = store.create("a", vec![TEXT.into()]).await;
    assert!(!matches!(again, Ok(store::Created::Other)), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stale_listing_misses_the_newest_and_shows_the_deleted() {
    let bench = bench();
    bench.faults.add(FaultRule::new(Fault::StaleList(10 * SECOND), 1.0));
    for path in ["d/old", "d/gone", "e/x"] {
        bench.create(path).await.expect("created");
    }
    waiting::pass(60 * SECOND).await;
    bench.create("d/new").await.expect("created");
    bench.store.delete(&"d/gone".into()).await.expect("deleted");
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    assert_eq!(sorted(bench.list("d").await.expect("listed")), ["d/gone", "d/old"]);
    let names = bench.store.list_with_delimiter(None).await.expect("listed").common_prefixes;
    assert_eq!(names, [Path::from("d"), Path::from("e")]);
    waiting::pass(60 * SECOND).await;
    assert_eq!(sorted(bench.list("d").await.expect("listed")), ["d/new", "d/old"], "it catches up");
}

#[tokio::test(start_paused = true)]
async fn listings_end_early_with_and_without_a_word() {
    let bench = bench();
    for i in 0..10 {
        bench.create(&format!("d/{i}")).await.expect("created");
    }
    let whole = bench.list("d").await.expect("listed");
    let part = bench.plan(Request::List, Fault::PartialList).list("d").await.expect("nobody says so");
    assert!(part.len() < 10 && whole.starts_with(&part), "{part:?}");
    assert!(is_generic(bench.plan(Request::List, Fault::BrokenList).list("d").await));
    bench.faults.fail_next(Request::List, Fault::BrokenList);
    assert!(is_generic(bench.store.list_with_delimiter(None).await));
}

#[tokio::test(start_paused = true)]
async fn deletes_race_with_reads_and_creates_never_do() {
    let bench = bench();
    bench.faults.add(FaultRule::new(Fault::ReadAfterDelete(10 * SECOND), 1.0));
    bench.create("a").await.expect("created");
    bench.store.delete(&"a".into()).await.expect("deleted");
    assert_eq!(bench.read("a").await.expect("still seen"), TEXT);
    let range = GetOptions { range: Some(GetRange::Bounded(4..8)), ..GetOptions::default() };
    let part = bench.store.get_opts(&"a".into(), range).await.expect("still seen").bytes().await.expect("read");
    assert_eq!(part, "4567");
    bench.store.put(&"a".into(), "new".into()).await.expect("created again");
    assert_eq!(bench.read("a").await.expect("read"), "new", "a read after a create sees that create");
    bench.store.delete(&"a".into()).await.expect("deleted");
    waiting::pass(11 * SECOND).await;
    assert!(matches!(bench.read("a").await, Err(Error::NotFound { .. })), "the race is over");
    bench.create("b").await.expect("created");
    let gone = bench.plan(Request::Delete, Fault::DeleteNotFound).store.delete(&"b".into()).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
    assert!(!bench.is_there("b").await);
}

#[tokio::test(start_paused = true)]
async fn a_stale_read_is_seen_by_siblings_too() {
    let bench = bench();
    let sibling = bench.faults.sibling(8);
    sibling.add(FaultRule::new(Fault::StaleRead(SECOND), 1.0));
    let other = FaultStore::new(bench.truth.clone(), sibling);
    bench.create("a").await.expect("created");
    assert!(matches!(other.head(&"a".into()).await, Err(Error::NotFound { .. })));
    assert_eq!(bench.read("a").await.expect("no such rule here"), TEXT);
    waiting::pass(2 * SECOND).await;
    other.head(&"a".into()).await.expect("seen by now");
}

/// More than a thousand requests under a little of everything; what was struck, in order.
async fn story(seed: u64) -> Vec<(Request, &'static str, String)> {
    let faults = Faults::new(seed);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = heard.clone();
    faults.on_strike(Arc::new(move |request, name, path| {
        log.lock().expect("not poisoned").push((request, name, path.to_owned()));
    }));
    let all = [
        Fault::Before,
        Fault::LostResponse,
        Fault::Late(SECOND),
        Fault::Twice(SECOND),
        Fault::TooManyRequests { run: 4 },
        Fault::ConflictCreated,
        Fault::ConflictAbsent,
        Fault::Hang(SECOND),
        Fault::Slow { latency: SECOND, bytes_per_second: 100 },
        Fault::TruncatedBody,
        Fault::FlippedBit,
        Fault::StaleList(SECOND),
        Fault::PartialList,
        Fault::DeleteNotFound,
        Fault::ReadAfterDelete(SECOND),
    ];
    all.iter().for_each(|fault| faults.add(FaultRule::new(*fault, 0.05).jitter(SECOND)));
    let store = FaultStore::new(Arc::new(InMemory::new()), faults.clone());
    for i in 0..250 {
        let path = Path::from(format!("d/{}", i % 20));
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let _any = store.put_opts(&path, TEXT.into(), options).await;
        let _any = store.get(&path).await;
        let _any = store.list(None).try_collect::<Vec<_>>().await;
        let _any = store.delete(&path).await;
        let _any = store.head(&path).await;
    }
    let heard = heard.lock().expect("not poisoned").clone();
    assert_eq!(heard.len() as u64, faults.counts().1, "every strike is counted and heard");
    assert_eq!(faults.struck().iter().map(|(_, _, count)| count).sum::<u64>(), faults.counts().1);
    heard
}

#[tokio::test(start_paused = true)]
async fn one_seed_is_one_story() {
    let first = story(1).await;
    assert_eq!(first, story(1).await);
    assert_ne!(first, story(2).await);
    let names: std::collections::BTreeSet<_> = first.iter().map(|(_, name, _)| *name).collect();
    assert_eq!(names.len(), 15, "each fault strikes: {names:?}");
}

#[test]
#[should_panic(expected = "a list cannot suffer flipped-bit")]
fn a_fault_that_could_never_strike_is_refused() {
    Faults::new(1).fail_next(Request::List, Fault::FlippedBit);
}
