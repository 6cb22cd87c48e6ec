//! Two process servers and one stream: whoever opened the newest epoch writes, and nothing either one acknowledged is
//! lost (P2, P5).

use std::time::Duration;

use format::wire::Refusal;
use store::{Faults, LogRules, SplitMix64};

use super::agent::Agent;
use super::site::Site;
use super::workload::Workload;
use crate::ServerRules;

#[tokio::test(start_paused = true)]
async fn the_first_server_acknowledges_nothing_more_once_another_took_over() {
    take_over(ServerRules::ALL).await;
}

/// The control: a server that does not look acknowledges what the takeover made void, and the oracle notices.
#[tokio::test(start_paused = true)]
#[should_panic(expected = "stored is true when it is said")]
async fn a_server_that_does_not_look_is_caught() {
    let log = LogRules { writer_looks: false, ..LogRules::ALL };
    take_over(ServerRules { log, ..ServerRules::ALL }).await;
}

async fn take_over(rules: ServerRules) {
    let site = Site::new();
    let faults = Faults::default();
    let (first, second) = (site.server_by(&faults, rules, |_| {}), site.server(&faults));
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&first).await.expect("welcome");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");

    // The second takes over while the connection to the first still stands.
    let hello = agent.hello();
    agent.number(Workload::write_at(0, vec![1; 4096]));
    let mut connection = super::site::dial(&second, "db");
    connection.writer.write(&format::wire::Frame::Hello(hello)).await.expect("read");
    connection.writer.flush().await.expect("read");
    assert!(matches!(connection.reader.read().await, Ok(format::wire::Frame::Welcome(_))));
    agent.send_all().await.expect("the first server does not know yet");
    let stored = agent.stored.position.seq;
    agent.until_closed().await;
    assert_eq!(agent.stored.position.seq, stored, "the next acknowledgement was fenced");
    assert_eq!(first.status().machines[0].epoch, None);

    let welcome = agent.connect(&second).await.expect("goes on at the second");
    assert_eq!(welcome.head.position.seq, stored, "what was put behind the takeover is void");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    agent.log_is_whole().await;
    agent.connect(&first).await.expect("and back again: the first opens a new epoch");
    agent.until_stored().await.expect("stored");
}

/// An agent with nothing to say would never hear that the log went on without it.
#[tokio::test(start_paused = true)]
async fn a_session_at_rest_ends_soon_after_a_takeover() {
    let site = Site::new();
    let faults = Faults::default();
    let (first, second) = (site.server(&faults), site.server(&faults));
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&first).await.expect("welcome");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    let mut connection = super::site::dial(&second, "db");
    connection.writer.write(&format::wire::Frame::Hello(agent.hello())).await.expect("read");
    connection.writer.flush().await.expect("read");
    assert!(matches!(connection.reader.read().await, Ok(format::wire::Frame::Welcome(_))));
    let closed = tokio::time::timeout(Duration::from_secs(90), agent.until_closed());
    closed.await.expect("the first server looks though nothing is sent");
}

/// The agent wanders between three servers at seeded moments, with records in flight everywhere and a store that is
/// slow, fails and lands requests late. Each acknowledgement is checked against the log when it is heard.
#[tokio::test(start_paused = true)]
async fn an_agent_may_wander_between_servers_with_records_in_flight() {
    for seed in 0..40 {
        println!("seed {seed}");
        let site = Site::new();
        let faults = Faults::new(seed);
        faults.set_delay(Duration::ZERO, Duration::from_millis(60));
        faults.set_error_rate(0.03);
        faults.set_late_rate(0.05, Duration::from_millis(10), Duration::from_secs(2));
        faults.set_lost_response_rate(0.03);
        let servers = [site.server(&faults), site.server(&faults), site.server(&faults)];
        let mut agent = Agent::new(&site, "db", 1);
        let (mut workload, mut rng) = (Workload::new(seed), SplitMix64::new(seed));
        workload.sectors_max = 200;
        let mut life = 1;
        for _ in 0..20 {
            let server = &servers[rng.below(3) as usize];
            if let Err(refused) = agent.connect(server).await {
                let passing = matches!(refused.reason, Refusal::StoreUnavailable | Refusal::Busy);
                assert!(passing, "seed {seed}: {refused:?}");
                continue;
            }
            (0..rng.below(12)).for_each(|_| agent.number(workload.next()));
            if agent.send_all().await.is_err() {
                continue;
            }
            let until = tokio::time::Instant::now() + Duration::from_millis(rng.below(400));
            while let Ok(Ok(_)) = tokio::time::timeout_at(until, agent.read()).await {}
            if rng.chance(0.1) && agent.stored.position.seq.0 == agent.numbered.len() as u64 {
                life += 1;
                agent.restart(life);
            }
        }
        faults.clear();
        agent.connect(&servers[0]).await.expect("welcome");
        agent.send_all().await.expect("connected");
        agent.until_stored().await.expect("stored");
        agent.log_is_whole().await;
    }
}
