//! Each safety rule of the process server is taken away once, and an oracle must notice; with all of them it never does.

use std::time::Duration;

use format::wire::{Hello, Refusal};
use model::Seq;
use probe::{Rule, Rules};
use store::Faults;
use tokio::time::timeout;

use super::agent::Agent;
use super::faults::break_sessions;
use super::site::Site;
use super::workload::Workload;
use crate::ServerRules;

/// Seeds within which a rule must be missed.
const SEEDS: u64 = 25;

fn without(rule: Rule) -> ServerRules {
    ServerRules { server: Rules::without(rule), ..ServerRules::ALL }
}

/// That nothing is noticed with every rule in force is what `faults` proves with the same scenario.
#[tokio::test(start_paused = true)]
async fn a_log_written_without_a_rule_of_slots_is_noticed() {
    for rule in [Rule::WelcomeAfterDrain, Rule::SlotFilled, Rule::StoredInOrder] {
        let mut noticed = false;
        for seed in 0..SEEDS {
            // The oracle speaks by a panic; a stream that can never go on is noticed too.
            let run = tokio::spawn(timeout(Duration::from_secs(3600), break_sessions(seed, without(rule))));
            noticed = noticed || !matches!(run.await, Ok(Ok(())));
        }
        assert!(noticed, "nobody misses {rule:?}");
    }
}

/// An agent that says `change` of itself, after a life whose records are stored.
async fn comes_back(rules: ServerRules, change: impl Fn(&mut Agent, Hello) -> Hello) -> Result<(), Refusal> {
    let site = Site::new();
    let server = site.server_by(&Faults::default(), rules, |_| {});
    let mut agent = Agent::new(&site, "db", 1);
    agent.map_version = 5;
    agent.connect(&server).await.expect("welcome");
    agent.number(Workload::write_at(0, vec![1; 4096]));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    agent.cut();
    let hello = agent.hello();
    let hello = change(&mut agent, hello);
    agent.connect_saying(&server, hello).await.map_err(|refused| refused.reason)?;
    agent.number(Workload::write_at(4096, vec![2; 4096]));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("what was let in goes on");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_reverted_agent_is_refused_by_its_rule_alone() {
    let old_map = |agent: &mut Agent, hello: Hello| {
        agent.map_version = 4;
        Hello { map_version: 4, ..hello }
    };
    assert_eq!(comes_back(ServerRules::ALL, old_map).await, Err(Refusal::RevertedDisk));
    assert_eq!(comes_back(without(Rule::RevertedMemoryRefused), old_map).await, Err(Refusal::RevertedDisk));
    assert_eq!(comes_back(without(Rule::RevertedMapRefused), old_map).await, Ok(()));
    let old_next = |_: &mut Agent, hello: Hello| Hello { next_seq: Seq(2), ..hello };
    assert_eq!(comes_back(ServerRules::ALL, old_next).await, Err(Refusal::RevertedMemory));
    assert_eq!(comes_back(without(Rule::RevertedMapRefused), old_next).await, Err(Refusal::RevertedMemory));
    assert_eq!(comes_back(without(Rule::RevertedMemoryRefused), old_next).await, Ok(()));
}

/// Whether a clone takes the stream away from an agent that lives.
async fn clone_takes_over(rules: ServerRules) -> bool {
    let site = Site::new();
    let server = site.server_by(&Faults::default(), rules, |_| {});
    let mut first = Agent::new(&site, "db", 1);
    first.connect(&server).await.expect("welcome");
    first.send_all().await.expect("connected");
    first.until_stored().await.expect("stored");
    let mut second = Agent::new(&site, "db", 2);
    second.adopt(&first);
    let let_in = second.connect(&server).await.is_ok();
    assert_eq!(first.echo(1).await.is_err(), let_in, "there is one session");
    let_in
}

#[tokio::test(start_paused = true)]
async fn a_clone_is_kept_out_by_its_rule_alone() {
    assert!(!clone_takes_over(ServerRules::ALL).await);
    assert!(clone_takes_over(without(Rule::SecondAgentRefused)).await);
}
