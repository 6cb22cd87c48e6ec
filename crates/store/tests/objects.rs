//! Creates under every kind of doubt, and the rest of what a store does for one object.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::{ObjectStore, PutMode, PutOptions};
use store::{Created, Fault, FaultStore, Faults, Request, Store, StoreError};

fn parts(text: &str) -> Vec<Bytes> {
    let (head, tail) = text.split_at(text.len() / 2);
    vec![Bytes::copy_from_slice(head.as_bytes()), Bytes::copy_from_slice(tail.as_bytes())]
}

fn faulty() -> (Store, Faults) {
    let faults = Faults::new(1);
    let inner = Arc::new(InMemory::new());
    (Store::from_object_store(Arc::new(FaultStore::new(inner, faults.clone()))), faults)
}

const PATH: &str = "machine/m/stream/epoch/0000000000000001";

#[tokio::test(start_paused = true)]
async fn creating_the_same_bytes_again_is_ours_and_others_are_not() {
    let (store, _) = faulty();
    assert_eq!(store.create(PATH, parts("one")).await.expect("first"), Created::Ours);
    assert_eq!(store.create(PATH, parts("one")).await.expect("again"), Created::Ours);
    for other in ["two", "on", "ones", ""] {
        assert_eq!(store.create(PATH, parts(other)).await.expect("other"), Created::Other, "{other:?}");
    }
    assert_eq!(store.get(PATH).await.expect("get").as_deref(), Some(b"one".as_ref()));
}

#[tokio::test(start_paused = true)]
async fn of_sixteen_racing_creates_one_wins() {
    let (store, faults) = faulty();
    faults.set_delay(Duration::from_millis(1), Duration::from_millis(50));
    let race = (0..16).map(|i| {
        let store = store.clone();
        async move { store.create(PATH, parts(&format!("writer {i}"))).await.expect("clear") }
    });
    let results = futures::future::join_all(race).await;
    assert_eq!(results.iter().filter(|r| **r == Created::Ours).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_response_is_resolved_as_ours() {
    let (store, faults) = faulty();
    faults.fail_next(Request::Put, Fault::LostResponse);
    assert_eq!(store.create(PATH, parts("mine")).await.expect("clear"), Created::Ours);
    assert_eq!(faults.counts().1, 1, "the fault took place");
}

#[tokio::test(start_paused = true)]
async fn a_lost_response_of_another_writer_is_other() {
    let (store, faults) = faulty();
    faults.fail_next(Request::Put, Fault::Late(Duration::from_millis(10)));
    let (slow, quick) = (store.create(PATH, parts("slow")), store.create(PATH, parts("quick")));
    let (slow, quick) = futures::join!(slow, quick);
    assert_eq!((slow.expect("slow"), quick.expect("quick")), (Created::Other, Created::Ours));
}

#[tokio::test(start_paused = true)]
async fn a_put_that_lands_late_is_ours_whoever_lands_first() {
    for late_by in [50, 5_000] {
        let (store, faults) = faulty();
        faults.fail_next(Request::Put, Fault::Late(Duration::from_millis(late_by)));
        assert_eq!(store.create(PATH, parts("mine")).await.expect("clear"), Created::Ours);
        waiting::pass(Duration::from_secs(60)).await;
        assert_eq!(store.get(PATH).await.expect("get").as_deref(), Some(b"mine".as_ref()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_that_stays_in_doubt_says_so_and_may_land_afterwards() {
    let (store, faults) = faulty();
    (0..3).for_each(|_| faults.fail_next(Request::Put, Fault::Late(Duration::from_secs(30))));
    let result = store.create(PATH, parts("mine")).await;
    assert!(matches!(result, Err(StoreError::Unclear { .. })), "{result:?}");
    assert_eq!(store.get(PATH).await.expect("get"), None);
    waiting::pass(Duration::from_secs(60)).await;
    assert!(store.get(PATH).await.expect("get").is_some(), "doubt was right");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_unavailable_for_every_operation_and_ends() {
    let (store, faults) = faulty();
    faults.set_outage(true);
    let unavailable = |result: Result<(), StoreError>| assert!(matches!(result, Err(StoreError::Unavailable { .. })));
    unavailable(store.create(PATH, parts("x")).await.map(drop));
    unavailable(store.get(PATH).await.map(drop));
    unavailable(store.get_range(PATH, 0..1).await.map(drop));
    unavailable(store.list("machine").await.map(drop));
    unavailable(store.delete(PATH).await);
    faults.set_outage(false);
    assert_eq!(store.create(PATH, parts("x")).await.expect("the outage is over"), Created::Ours);
}

/// What a careless program does: it takes every error for "not written" and "already exists" for another's object.
async fn careless_create(store: &Store, text: &str) -> Option<Created> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    for _ in 0..3 {
        match store.object_store().put_opts(&PATH.into(), text.to_owned().into(), options.clone()).await {
            Ok(_) => return Some(Created::Ours),
            Err(object_store::Error::AlreadyExists { .. }) => return Some(Created::Other),
            Err(_) => waiting::pass(Duration::from_millis(200)).await,
        }
    }
    None
}

/// Three writers race under random faults; counts the answers that the store then proves wrong.
async fn lies(seed: u64, careful: bool) -> usize {
    let faults = Faults::new(seed);
    let truth = Arc::new(InMemory::new());
    let store = Store::from_object_store(Arc::new(FaultStore::new(truth.clone(), faults.clone())));
    faults.set_error_rate(0.2);
    faults.set_lost_response_rate(0.3);
    faults.set_late_rate(0.3, Duration::from_millis(1), Duration::from_secs(2));
    let race = ["one", "two", "three"].map(|text| {
        let store = store.clone();
        async move {
            match careful {
                true => (text, store.create(PATH, parts(text)).await.ok()),
                false => (text, careless_create(&store, text).await),
            }
        }
    });
    let results = futures::future::join_all(race).await;
    waiting::pass(Duration::from_secs(10)).await;
    let held = Store::from_object_store(truth).get(PATH).await.expect("memory answers");
    let is_lie = |(text, answer): &&(&str, Option<Created>)| {
        let is_held = held.as_deref() == Some(text.as_bytes());
        answer.is_some_and(|answer| (answer == Created::Ours) != is_held)
    };
    results.iter().filter(is_lie).count()
}

#[tokio::test(start_paused = true)]
async fn random_faults_never_make_a_create_lie() {
    for seed in 0..200 {
        assert_eq!(lies(seed, true).await, 0, "seed {seed}");
    }
}

/// The control of the test above.
#[tokio::test(start_paused = true)]
async fn random_faults_make_a_careless_create_lie() {
    let mut wrong = 0;
    for seed in 0..200 {
        wrong += lies(seed, false).await;
    }
    assert!(wrong > 10, "only {wrong} lies");
}

#[tokio::test]
async fn a_file_store_is_a_private_directory_of_plain_files() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("temporary directory");
    let root = dir.path().join("deep/store");
    let store = Store::open(&format!("file://{}", root.display())).expect("open");
    assert_eq!(std::fs::metadata(&root).expect("root").permissions().mode() & 0o777, 0o700);
    assert_eq!(store.create(PATH, parts("mine")).await.expect("create"), Created::Ours);
    assert_eq!(std::fs::read(root.join(PATH)).expect("the path is the file"), b"mine");
    let again = Store::open(&format!("file://{}", root.display())).expect("open again");
    assert_eq!(again.create(PATH, parts("yours")).await.expect("create"), Created::Other);
}

#[tokio::test]
async fn paths_that_we_do_not_make_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(&format!("file://{}", dir.path().join("store").display())).expect("open");
    for bad in ["", "/", "../x", "a//b", "a/../b", "A", "a b", "a%2f", "a/", "ä", "a\0"] {
        assert!(store.create(bad, parts("x")).await.is_err(), "{bad:?}");
        assert!(store.get(bad).await.is_err(), "{bad:?}");
    }
}
