//! The roles as processes: start, tell the service manager, serve the control socket, stop cleanly on a signal.
//!
//! Order of a start: lock (one process for one role on one data directory), keys and store, certificates, the service
//! itself, its control socket, READY. Order of a stop: exports first, so that no write comes in that the agent would not
//! see; then agents, which send what they still hold; then the process server, which uploads it; then the applier.

mod agent;
mod applier;
mod dialer;
mod disks;
mod handover;
mod process_server;
mod reload;

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{AgentArgs, Global};
use crate::config::{Config, Machine};
use crate::failure::usage;
use crate::{context, control};

/// How long a clean stop may take before what is left is left to the next start.
pub const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// `farshore up`: every role of the configuration in one process.
pub async fn up(global: &Global) -> anyhow::Result<()> {
    let config = prepare(global)?;
    if config.machines.is_empty() {
        tracing::warn!(file = %config.file.display(), "no [[machine]] is configured: nothing will be protected");
    }
    let stop = stop_signal()?;
    let server = process_server::ProcessServerRole::start(global, &config).await?;
    let applier = applier::ApplierRole::start(global, &config).await?;
    let mut agents = Vec::new();
    for machine in &config.machines {
        agents.push(agent::AgentRole::start(global, &config, machine).await?);
    }
    ready();
    stop.await;
    stopping();
    futures::future::join_all(agents.into_iter().map(agent::AgentRole::stop)).await;
    server.stop().await;
    applier.stop().await;
    Ok(())
}

/// `farshore agent`
pub async fn agent(global: &Global, args: &AgentArgs) -> anyhow::Result<()> {
    let config = prepare(global)?;
    let machine = chosen_machine(&config, args)?;
    let stop = stop_signal()?;
    let role = agent::AgentRole::start(global, &config, machine).await?;
    ready();
    stop.await;
    stopping();
    role.stop().await;
    Ok(())
}

/// `farshore process-server`
pub async fn process_server(global: &Global) -> anyhow::Result<()> {
    let config = prepare(global)?;
    let stop = stop_signal()?;
    let role = process_server::ProcessServerRole::start(global, &config).await?;
    ready();
    stop.await;
    stopping();
    role.stop().await;
    Ok(())
}

/// `farshore applier`
pub async fn applier(global: &Global) -> anyhow::Result<()> {
    let config = prepare(global)?;
    let stop = stop_signal()?;
    let role = applier::ApplierRole::start(global, &config).await?;
    ready();
    stop.await;
    stopping();
    role.stop().await;
    Ok(())
}

fn prepare(global: &Global) -> anyhow::Result<Config> {
    control::install_metrics();
    context::config(global)
}

fn chosen_machine<'a>(config: &'a Config, args: &AgentArgs) -> anyhow::Result<&'a Machine> {
    let names = || config.machines.iter().map(|m| m.name.to_string()).collect::<Vec<_>>().join(", ");
    match (&args.machine, config.machines.as_slice()) {
        (Some(name), _) => config.machine(name).ok_or_else(|| {
            usage(format!("no machine {name} in {}: it has {}", config.file.display(), or_none(names())))
        }),
        (None, [only]) => Ok(only),
        (None, []) => Err(usage(format!("no [[machine]] in {}: add one", config.file.display()))),
        (None, _) => Err(usage(format!("which machine? say `farshore agent NAME` with one of {}", names()))),
    }
}

fn or_none(names: String) -> String {
    if names.is_empty() { "none".into() } else { names }
}

/// Resolves at the first SIGTERM or SIGINT. Registered before the roles start, so that no signal is lost.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// As [`stop_signal`], for commands that serve until they are told to stop.
pub fn until_stopped() -> anyhow::Result<impl Future<Output = ()>> {
    stop_signal()
}

fn ready() {
    // Without a service manager there is nobody to tell.
    let _nobody = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!("ready");
}

fn stopping() {
    let _nobody = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
}
