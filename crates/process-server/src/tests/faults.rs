//! Sessions that break and stores that fail: acknowledgements stop, then go on, and nothing acknowledged is lost.

use std::time::Duration;

use format::wire::Refusal;
use store::{Faults, SplitMix64};

use super::agent::Agent;
use super::site::{Site, eventually};
use super::workload::Workload;
use crate::ServerRules;

#[tokio::test(start_paused = true)]
async fn an_outage_stops_acknowledgements_and_nothing_else() {
    let site = Site::new();
    let faults = Faults::default();
    let server = site.server(&faults);
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    agent.echo(1).await.expect("connected");
    faults.set_outage(true);
    let mut workload = Workload::new(4);
    (0..40).for_each(|_| agent.number(workload.next()));
    agent.send_all().await.expect("within the credit");
    // More credit may have come for that.
    agent.echo(2).await.expect("connected");
    agent.echo(3).await.expect("connected");
    assert!(agent.read_within(Duration::from_secs(60)).await.is_none(), "nothing is acknowledged meanwhile");
    let status = server.status().machines.remove(0);
    assert!(status.store_error.is_some() && status.lag_seconds > 50.0, "{status:?}");
    faults.set_outage(false);
    agent.until_stored().await.expect("goes on by itself");
    agent.log_is_whole().await;
    assert_eq!(server.status().machines[0].store_error, None);
}

#[tokio::test(start_paused = true)]
async fn hello_during_an_outage_is_answered_in_time() {
    let site = Site::new();
    let faults = Faults::default();
    let server = site.server(&faults);
    faults.set_outage(true);
    let mut agent = Agent::new(&site, "db", 1);
    assert_eq!(agent.connect(&server).await.expect_err("refused").reason, Refusal::StoreUnavailable);
    faults.set_outage(false);
    agent.connect(&server).await.expect("welcome");
    faults.set_outage(true);
    agent.number(Workload::write_at(0, vec![1; 4096]));
    agent.send_all().await.expect("connected");
    eventually("received", || server.status().machines[0].received_seq == 2).await;
    agent.cut();
    let begun = tokio::time::Instant::now();
    assert_eq!(agent.connect(&server).await.expect_err("refused").reason, Refusal::StoreUnavailable);
    assert!(begun.elapsed() <= Duration::from_secs(21));
    faults.set_outage(false);
    let welcome = agent.connect(&server).await.expect("welcome");
    assert_eq!(welcome.head.position.seq.0, 2, "what had a slot was stored first");
}

#[tokio::test(start_paused = true)]
async fn a_life_of_which_nothing_was_stored_goes_on_after_a_broken_connection() {
    let site = Site::new();
    let faults = Faults::default();
    let server = site.server(&faults);
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.cut();
    let welcome = agent.connect(&server).await.expect("resumes though the log knows nothing of this life");
    assert_eq!(welcome.head, Default::default());
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
}

/// Connections break at seeded moments with jobs in flight, under a store that is slow, fails, loses answers and lands
/// requests late. What WELCOME names is consistent (the agent checks digest and acknowledgements), and in the end the
/// log is what was numbered.
#[tokio::test(start_paused = true)]
async fn sessions_may_break_at_any_moment_under_a_failing_store() {
    for seed in 0..25 {
        println!("seed {seed}");
        break_sessions(seed, ServerRules::ALL).await;
    }
}

pub(super) async fn break_sessions(seed: u64, rules: ServerRules) {
    let site = Site::new();
    let faults = Faults::new(seed);
    faults.set_delay(Duration::ZERO, Duration::from_millis(80));
    faults.set_error_rate(0.05);
    faults.set_lost_response_rate(0.05);
    faults.set_late_rate(0.05, Duration::from_millis(10), Duration::from_secs(3));
    let server = site.server_by(&faults, rules, |_| {});
    let mut agent = Agent::new(&site, "db", 1);
    let mut workload = Workload::new(seed);
    let mut rng = SplitMix64::new(seed);
    for _ in 0..12 {
        while !agent.is_connected() {
            if let Err(refused) = agent.connect(&server).await {
                assert_eq!(refused.reason, Refusal::StoreUnavailable, "seed {seed}: {}", refused.text);
            }
        }
        (0..rng.below(15)).for_each(|_| agent.number(workload.next()));
        agent.send_all().await.expect("connected");
        let patience = Duration::from_millis(rng.below(500));
        let until = tokio::time::Instant::now() + patience;
        while tokio::time::timeout_at(until, agent.read()).await.is_ok() {}
        agent.cut();
    }
    faults.clear();
    agent.connect(&server).await.expect("welcome");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    agent.log_is_whole().await;
}

/// The oracle's control: with an acknowledged object gone, the same check fails.
#[tokio::test(start_paused = true)]
async fn a_store_that_loses_an_acknowledged_segment_is_noticed() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.number(Workload::write_at(0, vec![1; 4096]));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    let (path, _) = site.list().await.pop().expect("a segment");
    site.log("db").store.delete(&path).await.expect("memory answers");
    let mut witness = super::witness::Witness::new(site.log("db"));
    witness.catch_up().await;
    witness.check(&agent.numbered, agent.stored.position.seq.0, agent.stored.digest).expect_err("it is missing");
}
