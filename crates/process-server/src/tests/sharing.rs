//! Sharing between streams: what drains bring in is found again in other streams and epochs, by its rules alone.

use std::sync::Arc;
use std::time::Duration;

use format::object::{SEES_ALL, StreamEpoch};
use model::{Mark, MarkKind, RecordBody};
use probe::{Rule, Rules};
use store::{Fault, FaultRule, FaultStore, Faults, LogRules, Request, Store, VaultLists};

use super::agent::Agent;
use super::site::{Site, eventually, machine};
use super::workload::Workload;
use crate::share::{Sharing, open_stream};
use crate::{ProcessServer, ServerRules};

/// Bytes that every clone holds.
const TEMPLATE_BYTES: u64 = 3 << 20;

fn sharing(site: &Site, faults: &Faults, rules: Rules) -> Arc<ProcessServer> {
    let rules = ServerRules { server: rules, ..ServerRules::ALL };
    site.server_by(faults, rules, |config| config.share_entries_max = 1 << 12)
}

fn lists(site: &Site) -> VaultLists {
    VaultLists::new(Store::from_object_store(site.objects.clone()), site.keys.clone())
}

/// Numbers the template's bytes as writes of 64 KiB.
fn number_template(agent: &mut Agent) {
    let mut workload = Workload::new(7);
    for at in (0..TEMPLATE_BYTES).step_by(64 << 10) {
        let bytes = workload.bytes(64 << 10);
        agent.number(Workload::write_at(at, bytes));
    }
}

fn number_drain_end(agent: &mut Agent) {
    agent.number(RecordBody::DrainEnd(Mark { kind: MarkKind::Crash, id: [9; 16], label: String::new() }));
}

/// A machine that is replicated for the first time: its drain brings the template.
async fn replicate(site: &Site, server: &Arc<ProcessServer>, name: &str, life: u8) -> Agent {
    let mut agent = Agent::new(site, name, life);
    agent.connect(server).await.expect("welcome");
    number_template(&mut agent);
    number_drain_end(&mut agent);
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    agent
}

#[tokio::test(start_paused = true)]
async fn a_clone_is_stored_once_and_so_is_a_resync() {
    let site = Site::new();
    let server = sharing(&site, &Faults::default(), Rules::ALL);
    let mut first = replicate(&site, &server, "a", 1).await;
    let mut second = replicate(&site, &server, "b", 2).await;
    let (brought, cost) = (first.witness.object_bytes, second.witness.object_bytes);
    assert!(brought > TEMPLATE_BYTES && cost * 50 < brought, "{cost} of {brought}");
    assert!(first.witness.all().iter().all(|(header, named)| header.shared && named.is_empty() && header.gc_seen == 0));
    let from_first = |(header, named): &(_, Vec<(String, u64)>)| {
        let header: &format::object::ObjectHeader = header;
        !header.shared && named.iter().all(|(name, epoch)| name == "a" && *epoch == 1)
    };
    assert!(second.witness.all().iter().all(from_first));
    assert_eq!(lists(&site).machines().await.expect("read"), [machine("a"), machine("b")].into());
    // The same machine begins anew: a later epoch finds what an earlier one brought.
    first.restart(3);
    let server = sharing(&site, &Faults::default(), Rules::ALL);
    let mut other = Agent::new(&site, "c", 4);
    other.connect(&server).await.expect("welcome");
    number_template(&mut other);
    other.send_all().await.expect("connected");
    other.until_stored().await.expect("stored");
    first.connect(&server).await.expect("welcome");
    number_template(&mut first);
    first.send_all().await.expect("connected");
    first.until_stored().await.expect("stored");
    assert!(first.witness.object_bytes < brought + brought / 20, "{}", first.witness.object_bytes);
    for agent in [&mut first, &mut second, &mut other] {
        agent.log_is_whole().await;
    }
}

#[tokio::test(start_paused = true)]
async fn ordinary_writes_are_neither_offered_nor_looked_up() {
    let site = Site::new();
    let server = sharing(&site, &Faults::default(), Rules::ALL);
    let write = async |name: &str, life| {
        let mut agent = Agent::new(&site, name, life);
        agent.connect(&server).await.expect("welcome");
        number_drain_end(&mut agent);
        number_template(&mut agent);
        agent.send_all().await.expect("connected");
        agent.until_stored().await.expect("stored");
        agent
    };
    let first = write("a", 1).await;
    assert!(first.witness.all().iter().all(|(header, _)| !header.shared));
    // A drain does not find what a write brought; and a write does not find what that drain brought.
    let second = replicate(&site, &server, "b", 2).await;
    assert!(second.witness.all().iter().all(|(_, named)| named.is_empty()));
    let third = write("c", 3).await;
    assert!(third.witness.all().iter().all(|(_, named)| named.is_empty()));
    assert!(third.witness.object_bytes > TEMPLATE_BYTES);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_without_sharing_says_that_it_refers_to_no_other() {
    let site = Site::new();
    let first = replicate(&site, &site.server(&Faults::default()), "a", 1).await;
    assert!(first.witness.all().iter().all(|(header, _)| header.gc_seen == SEES_ALL && !header.shared));
    assert_eq!(site.log("a").head_seen().await.expect("read"), Some(SEES_ALL));
    assert!(lists(&site).machines().await.expect("read").is_empty());
}

/// Whether the stream of `b` refers to a segment of `a` that is not stored.
async fn refers_to_what_is_not_stored(rules: Rules) -> bool {
    let site = Site::new();
    let faults = Faults::new(1);
    let server = sharing(&site, &faults, rules);
    let mut first = Agent::new(&site, "a", 1);
    first.connect(&server).await.expect("welcome");
    faults.add(FaultRule::new(Fault::HangUntilReleased, 1.0).on(&[Request::Put]).below("machine/a/stream/seg"));
    number_template(&mut first);
    first.send_all().await.expect("connected");
    eventually("segments are under way", || server.status().machines[0].segments_pending > 3).await;
    let mut second = Agent::new(&site, "b", 2);
    second.connect(&server).await.expect("welcome");
    number_template(&mut second);
    second.send_all().await.expect("connected");
    let store = Store::from_object_store(site.objects.clone());
    let path = format!("machine/b/stream/seg/{:016x}/{:016x}", 1, 1);
    let deadline = waiting::Deadline::after(Duration::from_secs(60));
    let object = loop {
        if let Some(object) = store.get(&path).await.expect("memory answers") {
            break object;
        }
        deadline.look_again("b is stored").await;
    };
    let place = site.log("b");
    let place = format::object::Place { machine: Some(place.machine), log: Some(place.kind), epoch: 1, slot: 1 };
    let segment = format::segment::open_segment(&site.keys, &place, &object).expect("intact");
    segment.table().references.iter().any(|named| named.machine == machine("a"))
}

#[tokio::test(start_paused = true)]
async fn others_learn_of_a_chunk_when_it_is_stored_by_that_rule_alone() {
    assert!(!refers_to_what_is_not_stored(Rules::ALL).await);
    assert!(refers_to_what_is_not_stored(Rules::without(Rule::SharedWhenStored)).await);
}

#[tokio::test(start_paused = true)]
async fn nothing_refers_to_what_a_list_condemns() {
    let site = Site::new();
    let server = sharing(&site, &Faults::default(), Rules::ALL);
    replicate(&site, &server, "a", 1).await;
    let epoch = |name, epoch| StreamEpoch { machine: machine(name), epoch };
    lists(&site).condemn([epoch("a", 1)].into()).await.expect("published");
    let second = replicate(&site, &server, "b", 2).await;
    assert!(second.witness.all().iter().all(|(header, named)| named.is_empty() && header.gc_seen == 1));
    // What it brought instead is found.
    let third = replicate(&site, &server, "c", 3).await;
    assert!(third.witness.all().iter().all(|(_, named)| named.iter().all(|(name, _)| name == "b")));
    assert!(third.witness.object_bytes * 50 < TEMPLATE_BYTES);
    assert_eq!(site.log("c").head_seen().await.expect("read"), Some(1));
}

/// The list that an opening says when another one is published while its epoch is created.
async fn seen_by_an_opening(rule: Rules) -> u64 {
    let (site, faults) = (Site::new(), Faults::new(1));
    let slow = Fault::Hang(Duration::from_secs(5));
    faults.add(FaultRule::new(slow, 1.0).on(&[Request::Put]).below("machine/a/stream/epoch").at_most(1));
    let store = Store::from_object_store(Arc::new(FaultStore::new(site.objects.clone(), faults)));
    let own = VaultLists::new(store.clone(), site.keys.clone());
    let sharing = Arc::new(Sharing::new(64, own, rule));
    let log = store::EpochLog { store, ..site.log("a") };
    let opening = tokio::spawn(async move { open_stream(&log, LogRules::ALL, Some(&sharing)).await });
    waiting::pass(Duration::from_secs(1)).await;
    let condemned = StreamEpoch { machine: machine("z"), epoch: 1 };
    lists(&site).condemn([condemned].into()).await.expect("published");
    opening.await.expect("no panic").expect("opened").writer.gc_seen()
}

#[tokio::test(start_paused = true)]
async fn lists_are_read_after_the_epoch_was_created_by_that_rule_alone() {
    assert_eq!(seen_by_an_opening(Rules::ALL).await, 1);
    assert_eq!(seen_by_an_opening(Rules::without(Rule::ListsAfterEpoch)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_list_keeps_nobody_from_being_replicated() {
    let site = Site::new();
    let store = Store::from_object_store(site.objects.clone());
    store.create(&format!("condemn/{:016x}", 1), vec!["no list".into()]).await.expect("put");
    let server = sharing(&site, &Faults::default(), Rules::ALL);
    for (name, life) in [("a", 1), ("b", 2)] {
        let agent = replicate(&site, &server, name, life).await;
        assert!(agent.witness.all().iter().all(|(header, named)| header.gc_seen == SEES_ALL && named.is_empty()));
    }
}
