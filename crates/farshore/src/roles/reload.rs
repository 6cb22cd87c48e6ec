//! A running agent takes up its changed configuration: disks come, grow and go while clients stay connected.
//!
//! It is a clean stop and a start within one process, because that path keeps every promise already: what is stored
//! stays so, a disk that came or grew is drained, all recovery points stay. Meanwhile the requests of clients wait; none
//! fails. What can be refused is refused before anything stops.

use std::sync::Arc;
use std::time::Duration;

use agent::{Agent, AgentConfig, AgentError, StopOutcome, SystemClock};
use anyhow::Context;
use model::DiskName;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::agent::Running;
use super::dialer::SiteDialer;
use super::disks::{Change, Disks, Opened, agent_config, dialer};
use super::handover::Hold;
use crate::config::{Config, Machine};
use crate::failure::usage;
use crate::{context, pki, views};

/// How long requests under way may take before the reload gives up.
const HOLD_DEADLINE: Duration = Duration::from_secs(10);

/// How long clients wait at most for what is queued to be stored; what is not is drained by the next agent.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// How long the former agent's last task may hold the state directory.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Pause between two tries to start.
const START_POLL: Duration = Duration::from_millis(20);

/// Takes the configuration up and says what changed.
pub async fn run(running: &Running) -> anyhow::Result<Value> {
    let mut disks = running.disks.try_lock().map_err(|_| anyhow::anyhow!("a reload or a stop is under way already"))?;
    let config = context::config(&running.global)?;
    let machine = checked(&config, &disks)?;
    let opened = Opened::all(machine, &disks.all)?;
    let next = agent_config(&config, machine, &opened);
    next.validate()?;
    let dialer = dialer(&config, machine)?;
    pki::nbd::ensure_machine(&config.site.ca, machine)?;

    let begun = Instant::now();
    let mut holds = hold(&disks, &opened).await?;
    let mut changes = changes(&disks, &opened);
    let (stay, gone) = std::mem::take(&mut disks.all).into_iter().partition(|one| is_among(&opened, &one.opened.name));
    disks.all = stay;
    for gone in gone {
        gone.withdraw().await;
    }
    // There is none when an earlier reload could not start one.
    let unclean = match running.agent() {
        Ok(former) => stop(running, former).await,
        Err(_) => None,
    };
    holds.iter_mut().for_each(|(_, hold)| hold.let_go());
    let agent = start(next, dialer).await.with_context(|| {
        format!("the agent of {} ended and the next cannot start: its disks are not served", machine.name)
    })?;
    disks.take_up(opened, holds, &agent)?;
    running.begun(agent);
    changes["pause_seconds"] = json!(begun.elapsed().as_secs_f64());
    changes["unclean"] = json!(unclean);
    tracing::info!(%changes, "the configuration was taken up");
    disks.offer(&config).await?;
    Ok(changes)
}

/// Stops the agent while its clients wait; says why not all is stored, if so.
async fn stop(running: &Running, agent: Arc<Agent>) -> Option<String> {
    let mut status = views::agent(&agent.status());
    // While it drains, or has nobody to send to, waiting would only keep clients waiting.
    let patience = if status["mode"] == "data" { STOP_DEADLINE } else { Duration::ZERO };
    status["mode"] = json!("reload");
    running.between(status);
    match agent.stop(patience).await {
        StopOutcome::Clean { .. } => None,
        StopOutcome::Unclean { reason } => Some(reason),
    }
}

fn is_among(opened: &[Opened], name: &DiskName) -> bool {
    opened.iter().any(|one| one.name == *name)
}

/// The machine in the new configuration, if that can be taken up at all.
fn checked<'a>(config: &'a Config, disks: &Disks) -> anyhow::Result<&'a Machine> {
    let name = &disks.machine;
    let machine = config.machine(name).ok_or_else(|| {
        usage(format!("{} has no machine {name} any more: stop its agent instead", config.file.display()))
    })?;
    if config.agent_dir(name) != disks.state_dir {
        return Err(usage(format!(
            "the agent of {name} keeps its state in {} and cannot move while it runs: leave site.data_dir as it was",
            disks.state_dir.display()
        )));
    }
    Ok(machine)
}

/// Holds the requests of every disk that stays.
async fn hold(disks: &Disks, opened: &[Opened]) -> anyhow::Result<Vec<(DiskName, Hold)>> {
    let stay = disks.all.iter().filter(|one| is_among(opened, &one.opened.name));
    let holds = futures::future::join_all(stay.map(|one| async {
        let name = one.opened.name.clone();
        (name, one.handover.hold().await)
    }));
    timeout(HOLD_DEADLINE, holds).await.map_err(|_| {
        anyhow::anyhow!("requests of clients have been under way for {HOLD_DEADLINE:?}: nothing was changed, try again")
    })
}

fn changes(disks: &Disks, opened: &[Opened]) -> Value {
    let with =
        |change| opened.iter().filter(|one| one.change == change).map(|one| one.name.clone()).collect::<Vec<_>>();
    let removed = disks.all.iter().map(|one| &one.opened.name).filter(|name| !is_among(opened, name));
    json!({
        "machine": disks.machine,
        "added": with(Change::Added),
        "resized": with(Change::Resized),
        "removed": removed.collect::<Vec<_>>(),
    })
}

/// Starts the next agent, as soon as the former one has let go of the state directory.
async fn start(config: AgentConfig, dialer: Arc<SiteDialer>) -> Result<Arc<Agent>, AgentError> {
    let until = Instant::now() + START_DEADLINE;
    loop {
        match Agent::start(config.clone(), dialer.clone(), Arc::new(SystemClock)).await {
            Err(_) if Instant::now() < until => sleep(START_POLL).await,
            ended => return ended,
        }
    }
}
