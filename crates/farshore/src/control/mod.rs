//! Talking to a running role: HTTP with JSON over one Unix socket for each role, readable by its owner only.
//!
//! ```text
//! GET  /status      how the role stands
//! GET  /metrics     Prometheus text (of the whole process)
//! GET  /flushes     agent: the seq at each completed client flush
//! POST /mark        agent: {"label": L} → {"id", "seq", "time"}, once it is stored
//! POST /reload      agent: {} → what changed, once the configuration is taken up
//! POST /compared    agent: {"disk", "at", "extents": [[offset, len], …]}: what a compare found
//! ```
//! Errors are `{"error": text}` with status 4xx or 5xx.

mod client;
mod server;

use std::path::PathBuf;

use async_trait::async_trait;
use model::{DiskName, Extent, MachineName, Seq};
use serde::{Deserialize, Serialize};

use crate::config::Config;

pub use client::{ControlError, QUESTION_TIMEOUT, call};
pub use server::{ControlServer, RoleLock, install_metrics};

/// Body of `POST /mark`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkRequest {
    /// What to call the point.
    pub label: String,
}

/// Body of `POST /pin`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// Of which machine.
    pub machine: MachineName,
    /// Id of the point.
    pub point: String,
    /// Whether it is to be held, or held no longer.
    pub hold: bool,
}

/// Body of `POST /compared`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparedRequest {
    /// Which disk.
    pub disk: DiskName,
    /// Against which position.
    pub at: Seq,
    /// What differs.
    pub extents: Vec<Extent>,
}

/// A role as its socket shows it.
#[async_trait]
pub trait Role: Send + Sync {
    /// How it stands.
    fn status(&self) -> serde_json::Value;

    /// Sets a mark and waits until it is stored.
    async fn mark(&self, _request: MarkRequest) -> anyhow::Result<serde_json::Value> {
        Err(not_here("marks are set by an agent"))
    }

    /// Holds a point, or holds it no longer, and waits until that is acknowledged.
    async fn pin(&self, _request: PinRequest) -> anyhow::Result<serde_json::Value> {
        Err(not_here("points are pinned by an applier"))
    }

    /// Takes the result of a compare.
    async fn compared(&self, _request: ComparedRequest) -> anyhow::Result<serde_json::Value> {
        Err(not_here("compares are taken by an agent"))
    }

    /// Takes the changed configuration up.
    async fn reload(&self) -> anyhow::Result<serde_json::Value> {
        Err(not_here("an agent takes up its disks while it runs; other roles are started anew"))
    }

    /// The flushes of an agent.
    fn flushes(&self) -> anyhow::Result<serde_json::Value> {
        Err(not_here("flushes are traced by an agent"))
    }
}

fn not_here(why: &str) -> anyhow::Error {
    crate::failure::usage(format!("{why}: ask its socket"))
}

/// Which socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Socket {
    /// The process server's.
    ProcessServer,
    /// The applier's.
    Applier,
    /// A machine's agent's.
    Agent(MachineName),
}

impl Socket {
    /// Its name, without `.sock`; also the name of its lock.
    pub fn name(&self) -> String {
        match self {
            Socket::ProcessServer => "process-server".into(),
            Socket::Applier => "applier".into(),
            Socket::Agent(machine) => format!("agent-{machine}"),
        }
    }

    /// Where it is.
    pub fn path(&self, config: &Config) -> PathBuf {
        config.run_dir().join(format!("{}.sock", self.name()))
    }
}
