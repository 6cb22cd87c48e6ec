//! The question a role asks before it trusts a store: whatever breaks a promise is refused in words of its own, and whatever
//! merely does not answer is not.

mod servers;

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::memory::InMemory;
use object_store::{ObjectStore, RetryConfig};
use servers::cheat::{Cheat, How};
use servers::mini_s3::{Manners, MiniS3};
use store::{BrokenPromise, Fault, FaultRule, FaultStore, Faults, Request, Store, StoreError};

async fn refusal(store: &Store) -> (BrokenPromise, String) {
    match store.probe().await {
        Err(error @ StoreError::Unfit { promise, .. }) => (promise, error.to_string()),
        other => panic!("not refused: {other:?}"),
    }
}

async fn left_behind(truth: Arc<dyn ObjectStore>) -> usize {
    Store::from_object_store(truth).list("probe").await.expect("listed").len()
}

#[tokio::test(start_paused = true)]
async fn an_honest_store_is_taken_with_few_requests_and_left_clean() {
    let (truth, faults) = (Arc::new(InMemory::new()), Faults::new(1));
    let store = Store::from_object_store(Arc::new(FaultStore::new(truth.clone(), faults.clone())));
    store.probe().await.expect("taken");
    assert!(faults.counts().0 < 30, "{} requests", faults.counts().0);
    assert_eq!(left_behind(truth).await, 0);
}

#[tokio::test]
async fn a_file_store_is_taken_and_left_clean() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(&format!("file://{}", dir.path().join("store").display())).expect("open");
    store.probe().await.expect("taken");
    let left: Vec<_> = std::fs::read_dir(dir.path().join("store/probe")).expect("the folder stays").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn each_broken_promise_is_refused_in_words_of_its_own() {
    let cases = [
        (How::IgnoresCreate, BrokenPromise::CreateIgnored, "let a second writer create an object that existed"),
        (How::ReplacesAndRefuses, BrokenPromise::CreateIgnored, "let a second writer create an object that existed"),
        (How::ChecksThenPuts, BrokenPromise::CreateRaces, "at the same moment"),
        (How::LastOfRaceStays, BrokenPromise::WinnerReplaced, "kept the bytes of another"),
        (How::HasNoCreate, BrokenPromise::NoCreate, "cannot create an object only if it is absent"),
        (How::RemembersAbsence, BrokenPromise::StaleRead, "did not show an object that had just been created"),
        (How::IgnoresRange, BrokenPromise::RangeIgnored, "did not answer a ranged read with the bytes asked for"),
        (How::ShiftsRange, BrokenPromise::RangeIgnored, "did not answer a ranged read with the bytes asked for"),
    ];
    for (how, promise, words) in cases {
        let truth = Arc::new(InMemory::new());
        let store = Store::from_object_store(Arc::new(Cheat::new(truth.clone(), how)));
        let (broken, text) = refusal(&store).await;
        assert_eq!(broken, promise, "{how:?}");
        assert!(text.starts_with("the store at ") && text.contains(words), "{text}");
        assert!(text.contains("; use ") && !text.contains('\n'), "says what to do: {text}");
        assert_eq!(left_behind(truth).await, 0, "{how:?}");
    }
}

/// The control of the test above: the same wrapper without a trick.
#[tokio::test(start_paused = true)]
async fn the_cheat_without_a_trick_is_taken() {
    let store = Store::from_object_store(Arc::new(Cheat::new(Arc::new(InMemory::new()), How::Honest)));
    store.probe().await.expect("taken");
}

#[tokio::test(start_paused = true)]
async fn stale_reads_of_any_age_are_refused() {
    for within in [Duration::ZERO, Duration::from_secs(1)] {
        let faults = Faults::new(1);
        faults.add(FaultRule::new(Fault::StaleRead(within), 1.0));
        let store = Store::from_object_store(Arc::new(FaultStore::new(Arc::new(InMemory::new()), faults)));
        assert_eq!(refusal(&store).await.0, BrokenPromise::StaleRead);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_not_blamed() {
    let faults = Faults::new(1);
    let store = Store::from_object_store(Arc::new(FaultStore::new(Arc::new(InMemory::new()), faults.clone())));
    faults.set_outage(true);
    assert!(matches!(store.probe().await, Err(StoreError::Unavailable { .. })));
    faults.clear();
    faults.add(FaultRule::new(Fault::HangUntilReleased, 1.0));
    let start = tokio::time::Instant::now();
    assert!(matches!(store.probe().await, Err(StoreError::Unavailable { .. })));
    assert!(start.elapsed() <= Duration::from_secs(60), "{:?}", start.elapsed());
}

/// Everything an honest store, its client and the network may do to answers.
const HONEST: [Fault; 13] = [
    Fault::Before,
    Fault::LostResponse,
    Fault::Late(Duration::from_millis(5)),
    Fault::Twice(Duration::from_millis(5)),
    Fault::TooManyRequests { run: 3 },
    Fault::ServiceUnavailable { run: 3 },
    Fault::ConflictCreated,
    Fault::ConflictAbsent,
    Fault::Hang(Duration::from_secs(1)),
    Fault::TruncatedBody,
    Fault::BrokenBody,
    Fault::PartialList,
    Fault::DeleteNotFound,
];

#[tokio::test(start_paused = true)]
async fn an_honest_store_is_never_refused_however_badly_it_answers() {
    let (mut taken, mut unclear) = (0, 0);
    for seed in 0..600 {
        let faults = Faults::new(seed);
        faults.set_delay(Duration::ZERO, Duration::from_millis(20));
        let probability = [0.005, 0.02, 0.1][seed as usize % 3];
        HONEST.iter().for_each(|fault| faults.add(FaultRule::new(*fault, probability)));
        let store = Store::from_object_store(Arc::new(FaultStore::new(Arc::new(InMemory::new()), faults)));
        match store.probe().await {
            Ok(()) => taken += 1,
            Err(StoreError::Unavailable { .. }) => unclear += 1,
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(taken > 50 && unclear > 50, "both ends are reached: {taken} taken, {unclear} unclear");
}

#[tokio::test(start_paused = true)]
async fn without_the_right_to_delete_or_list_a_store_is_taken() {
    let faults = Faults::new(1);
    faults.set_error_rate_of(Request::Delete, 1.0);
    faults.set_error_rate_of(Request::List, 1.0);
    let truth = Arc::new(InMemory::new());
    let store = Store::from_object_store(Arc::new(FaultStore::new(truth.clone(), faults)));
    store.probe().await.expect("taken");
    assert_eq!(left_behind(truth).await, 2, "as documented");
}

fn client(server: &MiniS3) -> AmazonS3 {
    let _already_chosen = rustls::crypto::ring::default_provider().install_default();
    AmazonS3Builder::new()
        .with_endpoint(server.endpoint())
        .with_allow_http(true)
        .with_bucket_name("bucket")
        .with_region("us-east-1")
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .with_retry(RetryConfig { max_retries: 1, ..RetryConfig::default() })
        .build()
        .expect("a valid configuration")
}

/// Over HTTP, as the client reports it.
#[tokio::test]
async fn servers_with_bad_manners_are_refused_and_one_with_good_is_taken() {
    let cases = [
        (Manners::Good, None),
        (Manners::IgnoresCondition, Some(BrokenPromise::CreateIgnored)),
        (Manners::RefusesCondition, Some(BrokenPromise::NoCreate)),
        (Manners::IgnoresRange, Some(BrokenPromise::RangeIgnored)),
    ];
    for (manners, promise) in cases {
        let server = MiniS3::start(manners).await;
        let store = Store::from_object_store(Arc::new(client(&server)));
        match promise {
            None => store.probe().await.expect("taken"),
            Some(promise) => assert_eq!(refusal(&store).await.0, promise, "{manners:?}"),
        }
    }
}
