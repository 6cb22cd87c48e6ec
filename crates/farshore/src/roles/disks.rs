//! The disks of a running agent: opened once and held, each with the export its clients are connected to.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::{Agent, AgentConfig, AgentDisk};
use anyhow::Context;
use disk::{Disk as _, RawDisk};
use model::{DiskName, MachineName};
use nbd::{ListenAddress, Server, ServerConfig, Threads};
use transport::Role as Identities;

use super::dialer::SiteDialer;
use super::handover::{Handover, Hold};
use crate::config::{Config, Machine};
use crate::failure::usage;
use crate::pki;

/// Requests in flight on one NBD connection.
const INFLIGHT_MAX: usize = 128;
/// NBD connections of one disk.
const CONNECTIONS_MAX: usize = 64;

/// A disk that is held, as the configuration has it.
pub struct Opened {
    pub name: DiskName,
    pub source: PathBuf,
    pub listen: ListenAddress,
    pub disk: Arc<RawDisk>,
    pub change: Change,
}

/// How it differs from the disk of this name that was held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    None,
    Added,
    Resized,
}

impl Opened {
    /// Opens the disks of a machine; those that are held already are measured again instead.
    pub fn all(machine: &Machine, held: &[Exported]) -> anyhow::Result<Vec<Self>> {
        let one = |disk: &crate::config::Disk| {
            let refused = |e| usage(format!("machine {}: disk {}: cannot open source: {e}", machine.name, disk.name));
            let former = held.iter().find(|former| former.opened.name == disk.name).map(|former| &former.opened);
            if let Some(former) = former.filter(|former| former.source != disk.source) {
                return Err(usage(format!(
                    "disk {} of machine {} reads from {} and cannot move to {} while the agent runs: give the new source \
                     a name of its own",
                    disk.name,
                    machine.name,
                    former.source.display(),
                    disk.source.display()
                )));
            }
            let (opened, change) = match former {
                None => (RawDisk::open(&disk.source, true).map_err(refused)?, Change::Added),
                Some(former) => {
                    let again = former.disk.measured_again().map_err(refused)?;
                    let change = if again.size() == former.disk.size() { Change::None } else { Change::Resized };
                    (again, change)
                }
            };
            let (name, source, listen) = (disk.name.clone(), disk.source.clone(), disk.listen.clone());
            Ok(Self { name, source, listen, disk: Arc::new(opened), change })
        };
        machine.disks.iter().map(one).collect()
    }
}

/// A disk with its export.
pub struct Exported {
    pub opened: Opened,
    pub handover: Arc<Handover>,
    /// Where its clients come in, and by which configured address; nothing if it could not be offered.
    server: Option<(ListenAddress, Server)>,
}

impl Exported {
    /// Takes nobody in any more, and lets requests under way finish.
    pub async fn withdraw(mut self) {
        self.close().await;
    }

    async fn close(&mut self) {
        if let Some((_, server)) = self.server.take() {
            server.stop().await;
        }
    }
}

/// All disks of a running agent.
pub struct Disks {
    pub machine: MachineName,
    /// Where the agent keeps its dirty map: as long as it runs, it stays there.
    pub state_dir: PathBuf,
    pub all: Vec<Exported>,
}

impl Disks {
    /// None yet.
    pub fn of(config: &Config, machine: &Machine) -> Self {
        Self { machine: machine.name.clone(), state_dir: config.agent_dir(&machine.name), all: Vec::new() }
    }

    /// An agent has begun with these disks: clients of those that were held go on with it.
    pub fn take_up(&mut self, opened: Vec<Opened>, holds: Vec<(DiskName, Hold)>, agent: &Agent) -> anyhow::Result<()> {
        let (mut former, mut holds) = (std::mem::take(&mut self.all), holds);
        for opened in opened {
            let export =
                agent.export(&opened.name).with_context(|| format!("the agent has no disk {}", opened.name))?;
            let held = former.iter().position(|one| one.opened.name == opened.name).map(|at| former.swap_remove(at));
            let hold = holds.iter().position(|(name, _)| *name == opened.name).map(|at| holds.swap_remove(at).1);
            match (held, hold) {
                (Some(held), Some(hold)) => {
                    hold.go_on(export);
                    self.all.push(Exported { opened, ..held });
                }
                _ => self.all.push(Exported { opened, handover: Handover::new(export), server: None }),
            }
        }
        Ok(())
    }

    /// Offers every disk at its address that is not offered there yet. Errors name the first that cannot be.
    pub async fn offer(&mut self, config: &Config) -> anyhow::Result<()> {
        for exported in &mut self.all {
            let listen = exported.opened.listen.clone();
            if exported.server.as_ref().is_some_and(|(at, _)| *at == listen) {
                continue;
            }
            exported.close().await;
            if let ListenAddress::Unix(path) = &listen {
                let parent = path.parent().unwrap_or(Path::new("/"));
                std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            }
            let name = &exported.opened.name;
            let server = ServerConfig {
                name: name.to_string(),
                listen: listen.clone(),
                tls: pki::nbd::server_config(&config.site.ca, &self.machine, &listen)?,
                inflight_max: INFLIGHT_MAX,
                connections_max: CONNECTIONS_MAX,
                threads: Threads::Own { began: disk::this_thread_may_block },
            };
            let server = Server::start(server, exported.handover.clone())
                .await
                .with_context(|| format!("cannot export disk {name} on {listen}"))?;
            tracing::info!(machine = %self.machine, disk = %name, address = %server.address(), "exported");
            exported.server = Some((listen, server));
        }
        Ok(())
    }

    /// Stops every export.
    pub async fn withdraw(&mut self) {
        for exported in self.all.drain(..) {
            exported.withdraw().await;
        }
    }
}

/// What the agent of a machine runs on.
pub fn agent_config(config: &Config, machine: &Machine, opened: &[Opened]) -> AgentConfig {
    let disks = opened.iter().map(|opened| {
        // Regular files read zeros where they were punched; a device promises nothing, and its trims are read back.
        let device = std::fs::metadata(&opened.source).is_ok_and(|m| m.file_type().is_block_device());
        AgentDisk { name: opened.name.clone(), source: opened.disk.clone(), trim_zeroes: !device }
    });
    AgentConfig {
        machine: machine.name.clone(),
        state_dir: config.agent_dir(&machine.name),
        process_servers: machine.process_servers.clone(),
        queue_bytes: machine.queue_bytes,
        spool_bytes: machine.spool_bytes,
        region_bytes: AgentConfig::REGION_BYTES,
        active_regions_max: AgentConfig::ACTIVE_REGIONS_MAX,
        rpo_target: config.policy.rpo_target,
        disks: disks.collect(),
    }
}

/// How it reaches process servers, with the certificate of the machine.
pub fn dialer(config: &Config, machine: &Machine) -> anyhow::Result<Arc<SiteDialer>> {
    let identity = pki::identity(&config.site.ca, Identities::Agent, &machine.name)?;
    Ok(Arc::new(SiteDialer { identity, transport: config.process_server.transport }))
}
