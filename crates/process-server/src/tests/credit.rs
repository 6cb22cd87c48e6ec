//! Credit of many machines over one server: all of them together stay within the budget, and each has its share.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use store::Faults;
use tokio::time::timeout;

use super::agent::Agent;
use super::site::{Site, eventually};
use super::workload::Workload;
use crate::ProcessServer;
use crate::session::SURE_BYTES;

const MIB: u64 = 1 << 20;

/// The first is loud before the others come.
const MACHINES: u64 = 5;

/// Bytes of a write.
const WRITE_BYTES: u64 = 256 << 10;

/// Connected machines, each with 64 MiB that it has numbered and not sent.
async fn with_much_to_send(site: &Site, server: &Arc<ProcessServer>, machines: u64) -> Vec<Agent> {
    let data = Bytes::from(vec![1; WRITE_BYTES as usize]);
    let mut agents: Vec<Agent> = (0..machines).map(|n| Agent::new(site, &format!("m{n}"), n as u8 + 1)).collect();
    for agent in &mut agents {
        agent.connect(server).await.expect("welcome");
        agent.send_all().await.expect("connected");
        agent.until_stored().await.expect("stored");
        (0..256).for_each(|n| agent.number(Workload::write_at(n * WRITE_BYTES, data.clone())));
    }
    agents
}

/// What each has in flight of 64 MiB that it would send while the store is out; then everything is stored.
async fn in_flight_in_an_outage(budget: u64) -> Vec<u64> {
    let (site, faults) = (Site::new(), Faults::default());
    let server = site.server_with(&faults, |config| config.in_flight_bytes = budget);
    let mut agents = with_much_to_send(&site, &server, MACHINES).await;
    faults.set_outage(true);
    let (loud, others) = agents.split_first_mut().expect("there are some");
    assert!(timeout(Duration::from_secs(5), loud.send_all()).await.is_err(), "the credit ends");
    join_all(others.iter_mut().map(|agent| timeout(Duration::from_secs(5), agent.send_all()))).await;
    let in_flight = server.status().machines.iter().map(|machine| machine.in_flight_bytes).collect();
    faults.clear();
    let done = agents.iter_mut().map(async |agent| {
        agent.send_all().await.expect("the credit comes back");
        agent.until_stored().await.expect("stored");
    });
    join_all(done).await;
    in_flight
}

#[tokio::test(start_paused = true)]
async fn all_machines_together_stay_within_the_budget_and_each_has_its_share() {
    let budget = 12 * MIB;
    let bound = budget + MACHINES * SURE_BYTES;
    let in_flight = in_flight_in_an_outage(budget).await;
    assert!(in_flight.iter().sum::<u64>() <= bound, "{in_flight:?}");
    assert!(
        in_flight.iter().all(|bytes| *bytes > SURE_BYTES - MIB),
        "nobody is starved by who came first: {in_flight:?}"
    );
    let control = in_flight_in_an_outage(8 * budget).await;
    assert!(control.iter().sum::<u64>() > bound, "they would have sent more: {control:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_gone_session_sent_is_not_lent_again_before_it_is_stored() {
    let (site, faults, budget) = (Site::new(), Faults::default(), 12 * MIB);
    let server = site.server_with(&faults, |config| config.in_flight_bytes = budget);
    let mut agents = with_much_to_send(&site, &server, 8).await;
    faults.set_outage(true);
    let mut sent = 0;
    for (left, agent) in (0..agents.len()).rev().zip(&mut agents) {
        let before = agent.sent;
        assert!(timeout(Duration::from_secs(5), agent.send_all()).await.is_err(), "the credit ends");
        sent += (agent.sent - before) * WRITE_BYTES;
        agent.cut();
        let connected = || server.status().machines.iter().filter(|machine| machine.connected).count();
        eventually("the server notices that the machine is gone", || connected() == left).await;
    }
    assert!(sent <= budget + 8 * SURE_BYTES, "{sent} bytes are in memory");
    faults.clear();
    for agent in &mut agents {
        agent.connect(&server).await.expect("welcome");
        agent.send_all().await.expect("connected");
        agent.until_stored().await.expect("stored");
    }
}
