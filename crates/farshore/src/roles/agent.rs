//! The agent's process: its disks opened, its exports served, its control socket.

use std::sync::{Arc, PoisonError, RwLock};

use agent::{Agent, StopOutcome, SystemClock};
use anyhow::Context;
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::disks::{Disks, Opened, agent_config, dialer};
use super::{STOP_DEADLINE, reload};
use crate::cli::Global;
use crate::config::{Config, Machine};
use crate::control::{ComparedRequest, ControlServer, MarkRequest, Role, RoleLock, Socket};
use crate::{pki, views};

/// A running agent with its exports.
pub struct AgentRole {
    running: Arc<Running>,
    _control: ControlServer,
}

/// What a reload exchanges, and what it needs for that.
pub struct Running {
    pub global: Global,
    pub disks: Mutex<Disks>,
    current: RwLock<Current>,
}

enum Current {
    Agent(Arc<Agent>),
    /// One has ended and the next has not begun; how the former stood.
    Between(Value),
}

impl Running {
    /// The agent, unless a reload is under way.
    pub fn agent(&self) -> anyhow::Result<Arc<Agent>> {
        match &*self.current.read().unwrap_or_else(PoisonError::into_inner) {
            Current::Agent(agent) => Ok(Arc::clone(agent)),
            Current::Between(_) => anyhow::bail!("the agent takes up its configuration: ask again in a few seconds"),
        }
    }

    /// The agent is about to end.
    pub fn between(&self, status: Value) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current::Between(status);
    }

    /// The next agent has begun.
    pub fn begun(&self, agent: Arc<Agent>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current::Agent(agent);
    }
}

impl AgentRole {
    /// Starts the agent of a machine. The exports are offered once the agent stands, never before.
    pub async fn start(global: &Global, config: &Config, machine: &Machine) -> anyhow::Result<Self> {
        let opened = Opened::all(machine, &[])?;
        let lock = RoleLock::take(config, Socket::Agent(machine.name.clone()))?;
        pki::nbd::ensure_machine(&config.site.ca, machine)?;
        let agent =
            Agent::start(agent_config(config, machine, &opened), dialer(config, machine)?, Arc::new(SystemClock))
                .await
                .with_context(|| format!("the agent of {} cannot start", machine.name))?;
        let mut disks = Disks::of(config, machine);
        disks.take_up(opened, Vec::new(), &agent)?;
        disks.offer(config).await?;
        let (current, disks) = (RwLock::new(Current::Agent(agent)), Mutex::new(disks));
        let running = Arc::new(Running { global: global.clone(), disks, current });
        let control = lock.serve(Arc::new(AgentSocket { running: running.clone() }))?;
        Ok(Self { running, _control: control })
    }

    /// Stops exports, then the agent.
    pub async fn stop(self) {
        self.running.disks.lock().await.withdraw().await;
        let Ok(agent) = self.running.agent() else {
            tracing::error!("no agent runs: its next start drains what was not stored");
            return;
        };
        match agent.stop(STOP_DEADLINE).await {
            StopOutcome::Clean { seq } => tracing::info!(%seq, "agent stopped cleanly"),
            StopOutcome::Unclean { reason } => {
                tracing::warn!(reason, "agent stopped with writes not yet stored: its next start drains them");
            }
        }
    }
}

struct AgentSocket {
    running: Arc<Running>,
}

#[async_trait]
impl Role for AgentSocket {
    fn status(&self) -> Value {
        match &*self.running.current.read().unwrap_or_else(PoisonError::into_inner) {
            Current::Agent(agent) => views::agent(&agent.status()),
            Current::Between(status) => status.clone(),
        }
    }

    async fn mark(&self, request: MarkRequest) -> anyhow::Result<Value> {
        let marked = self.running.agent()?.mark(&request.label).await?;
        Ok(json!({ "id": marked.id.to_string(), "seq": marked.seq.0, "time": marked.time.to_string() }))
    }

    async fn compared(&self, request: ComparedRequest) -> anyhow::Result<Value> {
        let bytes: u64 = request.extents.iter().map(model::Extent::len).sum();
        self.running.agent()?.compared(&request.disk, request.at, request.extents).await?;
        Ok(json!({ "disk": request.disk, "draining_bytes": bytes }))
    }

    async fn reload(&self) -> anyhow::Result<Value> {
        // To its end, though the one who asked may go away.
        let running = self.running.clone();
        tokio::spawn(async move { reload::run(&running).await }).await.context("the reload died")?
    }

    fn flushes(&self) -> anyhow::Result<Value> {
        let flushes = self.running.agent()?.flushes();
        let rows: Vec<Value> =
            flushes.iter().map(|(time, seq)| json!({ "time": time.to_string(), "seq": seq.0 })).collect();
        Ok(json!({ "flushes": rows }))
    }
}
