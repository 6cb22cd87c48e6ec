//! The vault's lists: numbers without gaps, one winner for each, and doubt that is resolved or harmless.

use std::sync::Arc;
use std::time::Duration;

use format::keys::{Keys, VaultKey};
use format::object::{LogKind, SEES_ALL, StreamEpoch};
use model::MachineName;
use object_store::memory::InMemory;
use store::{EpochLog, Fault, FaultRule, FaultStore, Faults, Genesis, Request, Store, StoreError, VaultLists};

fn keys() -> Arc<Keys> {
    Arc::new(Keys::new(&VaultKey::generate()))
}

fn machine() -> MachineName {
    "db-01".parse().expect("a name")
}

fn epoch(epoch: u64) -> StreamEpoch {
    StreamEpoch { machine: machine(), epoch }
}

#[tokio::test]
async fn lists_add_up_and_say_since_when() {
    let (store, keys) = (Store::from_object_store(Arc::new(InMemory::new())), keys());
    let (one, other) = (VaultLists::new(store.clone(), keys.clone()), VaultLists::new(store.clone(), keys.clone()));
    assert_eq!(other.condemned().await.expect("none yet").lists(), 0);
    assert_eq!(one.condemn([epoch(3)].into()).await.expect("published").lists(), 1);
    assert_eq!(other.condemn([epoch(3), epoch(5)].into()).await.expect("published").lists(), 2);
    assert_eq!(one.condemn([epoch(5)].into()).await.expect("nothing new").lists(), 2);
    let condemned = one.condemned().await.expect("read");
    assert_eq!(condemned.epochs().cloned().collect::<Vec<_>>(), [epoch(3), epoch(5)]);
    assert!(condemned.contains(&epoch(5)) && !condemned.contains(&epoch(4)));
    assert!(condemned.contains_up_to(&epoch(3), 1) && !condemned.contains_up_to(&epoch(5), 1));
    assert!(condemned.contains_up_to(&epoch(4), SEES_ALL), "who answers for all refers to nothing");
    let paths: Vec<_> = store.list("condemn").await.expect("listed").into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, [format!("condemn/{:016x}", 1), format!("condemn/{:016x}", 2)]);
}

#[tokio::test(start_paused = true)]
async fn many_publish_and_enter_at_once_and_nothing_is_lost() {
    let faults = Faults::new(3);
    faults.add(FaultRule::new(Fault::LostResponse, 0.3).on(&[Request::Put]));
    faults.add(FaultRule::new(Fault::Slow { latency: Duration::from_millis(5), bytes_per_second: 1 << 30 }, 0.5));
    let objects: Arc<InMemory> = Arc::default();
    let (store, keys) = (Store::from_object_store(Arc::new(FaultStore::new(objects.clone(), faults))), keys());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 1..=12u64 {
        let lists = VaultLists::new(store.clone(), keys.clone());
        tasks.spawn(async move {
            let name = format!("m-{}", n % 5).parse().expect("a name");
            lists.register(&name).await.expect("entered");
            lists.condemn([epoch(n % 7)].into()).await.expect("published");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    let lists = VaultLists::new(Store::from_object_store(objects), keys);
    assert_eq!(lists.machines().await.expect("read").len(), 5);
    let condemned = lists.condemned().await.expect("read");
    assert_eq!((condemned.epochs().count(), condemned.lists()), (7, 7), "each is published once");
}

#[tokio::test]
async fn an_object_that_is_none_of_a_list_is_named() {
    let (store, keys) = (Store::from_object_store(Arc::new(InMemory::new())), keys());
    let lists = VaultLists::new(store.clone(), keys.clone());
    lists.register(&machine()).await.expect("entered");
    let entry = store.get(&format!("registry/{:016x}", 1)).await.expect("read").expect("there");
    store.create(&format!("registry/{:016x}", 2), vec![entry.clone()]).await.expect("put");
    store.create(&format!("condemn/{:016x}", 1), vec![entry]).await.expect("put");
    for error in [lists.machines().await.expect_err("moved"), lists.condemned().await.expect_err("another kind")] {
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_head_says_what_its_opening_says_and_nothing_while_it_is_not_opened() {
    let (store, keys) = (Store::from_object_store(Arc::new(InMemory::new())), keys());
    let (machine, kind, base) = (machine(), LogKind::Stream, Arc::new(Genesis));
    let log = EpochLog { store, keys, machine, kind, base };
    assert_eq!(log.head_seen().await.expect("nobody's"), Some(SEES_ALL));
    log.attach().await.expect("attached").open_seeing(Vec::new(), 4).await.expect("opened");
    assert_eq!(log.head_seen().await.expect("opened"), Some(4));
    let attached = log.attach().await.expect("attached");
    assert_eq!(log.head_seen().await.expect("not opened"), None);
    attached.open(Vec::new()).await.expect("opened");
    assert_eq!((log.head_seen().await.expect("opened"), log.highest().await.expect("two")), (Some(SEES_ALL), 2));
}
