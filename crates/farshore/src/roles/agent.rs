//! The agent's process: its disks opened, its exports served, its control socket.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use agent::{Agent, AgentConfig, AgentDisk, StopOutcome, SystemClock};
use anyhow::Context;
use async_trait::async_trait;
use nbd::{ListenAddress, Server, ServerConfig};
use serde_json::{Value, json};
use transport::Role as Identities;

use super::STOP_DEADLINE;
use super::dialer::SiteDialer;
use crate::config::{Config, Machine};
use crate::control::{ComparedRequest, ControlServer, MarkRequest, Role, RoleLock, Socket};
use crate::failure::usage;
use crate::{pki, views};

/// Requests in flight on one NBD connection.
const INFLIGHT_MAX: usize = 128;
/// NBD connections of one disk.
const CONNECTIONS_MAX: usize = 64;

/// A running agent with its exports.
pub struct AgentRole {
    agent: Arc<Agent>,
    exports: Vec<Server>,
    _control: ControlServer,
}

impl AgentRole {
    /// Starts the agent of a machine. The exports are offered once the agent stands, never before.
    pub async fn start(config: &Config, machine: &Machine) -> anyhow::Result<Self> {
        let agent_config = agent_config(config, machine)?;
        let lock = RoleLock::take(config, Socket::Agent(machine.name.clone()))?;
        let identity = pki::identity(&config.site.ca, Identities::Agent, &machine.name)?;
        pki::nbd::ensure_machine(&config.site.ca, machine)?;
        let dialer = SiteDialer { identity, transport: config.process_server.transport };
        let agent = Agent::start(agent_config, Arc::new(dialer), Arc::new(SystemClock))
            .await
            .with_context(|| format!("the agent of {} cannot start", machine.name))?;
        let mut exports = Vec::new();
        for disk in &machine.disks {
            if let ListenAddress::Unix(path) = &disk.listen {
                let parent = path.parent().unwrap_or(Path::new("/"));
                std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            }
            let server = ServerConfig {
                name: disk.name.to_string(),
                listen: disk.listen.clone(),
                tls: pki::nbd::server_config(&config.site.ca, &machine.name, &disk.listen)?,
                inflight_max: INFLIGHT_MAX,
                connections_max: CONNECTIONS_MAX,
            };
            let export = agent.export(&disk.name).with_context(|| format!("the agent has no disk {}", disk.name))?;
            let server = Server::start(server, export)
                .await
                .with_context(|| format!("cannot export disk {} on {}", disk.name, disk.listen))?;
            tracing::info!(machine = %machine.name, disk = %disk.name, address = %server.address(), "exported");
            exports.push(server);
        }
        let control = lock.serve(Arc::new(AgentSocket { agent: agent.clone() }))?;
        Ok(Self { agent, exports, _control: control })
    }

    /// Stops exports, then the agent.
    pub async fn stop(self) {
        for export in self.exports {
            export.stop().await;
        }
        match self.agent.stop(STOP_DEADLINE).await {
            StopOutcome::Clean { seq } => tracing::info!(%seq, "agent stopped cleanly"),
            StopOutcome::Unclean { reason } => {
                tracing::warn!(reason, "agent stopped with writes not yet stored: its next start drains them");
            }
        }
    }
}

fn agent_config(config: &Config, machine: &Machine) -> anyhow::Result<AgentConfig> {
    let disks = machine.disks.iter().map(|disk| {
        let source = disk::RawDisk::open(&disk.source, true)
            .map_err(|e| usage(format!("machine {}: disk {}: cannot open source: {e}", machine.name, disk.name)))?;
        // Regular files read zeros where they were punched; a device promises nothing, and its trims are read back.
        let device = std::fs::metadata(&disk.source).is_ok_and(|m| m.file_type().is_block_device());
        Ok(AgentDisk { name: disk.name.clone(), source: Arc::new(source), trim_zeroes: !device })
    });
    Ok(AgentConfig {
        machine: machine.name.clone(),
        state_dir: config.agent_dir(&machine.name),
        process_servers: machine.process_servers.clone(),
        queue_bytes: machine.queue_bytes,
        spool_bytes: machine.spool_bytes,
        region_bytes: AgentConfig::REGION_BYTES,
        active_regions_max: AgentConfig::ACTIVE_REGIONS_MAX,
        rpo_target: config.policy.rpo_target,
        disks: disks.collect::<anyhow::Result<_>>()?,
    })
}

struct AgentSocket {
    agent: Arc<Agent>,
}

#[async_trait]
impl Role for AgentSocket {
    fn status(&self) -> Value {
        views::agent(&self.agent.status())
    }

    async fn mark(&self, request: MarkRequest) -> anyhow::Result<Value> {
        let marked = self.agent.mark(&request.label).await?;
        Ok(json!({ "id": marked.id.to_string(), "seq": marked.seq.0, "time": marked.time.to_string() }))
    }

    async fn compared(&self, request: ComparedRequest) -> anyhow::Result<Value> {
        let bytes: u64 = request.extents.iter().map(model::Extent::len).sum();
        self.agent.compared(&request.disk, request.at, request.extents).await?;
        Ok(json!({ "disk": request.disk, "draining_bytes": bytes }))
    }

    fn flushes(&self) -> anyhow::Result<Value> {
        let flushes = self.agent.flushes();
        let rows: Vec<Value> =
            flushes.iter().map(|(time, seq)| json!({ "time": time.to_string(), "seq": seq.0 })).collect();
        Ok(json!({ "flushes": rows }))
    }
}
