//! The process server's process: its listener and its control socket.

use std::sync::Arc;

use async_trait::async_trait;
use process_server::{ProcessServer, ProcessServerConfig};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use transport::{Listener, ListenerLimits, Role as Identities};

use super::{STOP_DEADLINE, dialer};
use crate::cli::Global;
use crate::config::Config;
use crate::control::{ControlServer, Role, RoleLock, Socket};
use crate::{context, pki};

/// A running process server.
pub struct ProcessServerRole {
    server: Arc<ProcessServer>,
    accepting: JoinHandle<()>,
    _control: ControlServer,
}

impl ProcessServerRole {
    /// Starts it. Where the CA's key is, the certificates of all configured machines are issued too, for their hosts.
    pub async fn start(global: &Global, config: &Config) -> anyhow::Result<Self> {
        let lock = RoleLock::take(config, Socket::ProcessServer)?;
        let (store, keys) = context::gateway(global, config).await?;
        let identity = pki::identity(&config.site.ca, Identities::ProcessServer, &config.site.name)?;
        if pki::can_issue(&config.site.ca) {
            for machine in &config.machines {
                pki::ensure(&config.site.ca, Identities::Agent, &machine.name)?;
                pki::nbd::ensure_machine(&config.site.ca, machine)?;
            }
        }
        let listen = &config.process_server;
        let kinds = dialer::kinds(listen.transport);
        let limits = ListenerLimits::default();
        let listener = Listener::bind(&listen.listen, kinds, &identity, Identities::Agent, limits).await?;
        let address = listener.local_addr();
        let server = ProcessServer::start(
            ProcessServerConfig {
                segment_bytes: listen.segment_bytes,
                segment_age: listen.segment_age,
                epoch_life: listen.epoch_life,
                in_flight_bytes: listen.in_flight_bytes,
                dedup_entries_max: listen.dedup_entries,
                share_entries_max: listen.share_entries,
                // The CA vouches for machines; which hosts run which is the CA holder's business, so a process server
                // need not be told of every machine.
                machines: None,
                ..ProcessServerConfig::new(config.site.name.clone())
            },
            store,
            keys,
        )?;
        let accepting = tokio::spawn(server.clone().serve(listener));
        let control = lock.serve(Arc::new(ServerSocket { server: server.clone(), address: address.to_string() }))?;
        tracing::info!(%address, "process server listens");
        Ok(Self { server, accepting, _control: control })
    }

    /// Uploads what it holds, then ends.
    pub async fn stop(self) {
        self.server.stop(STOP_DEADLINE).await;
        self.accepting.abort();
    }
}

struct ServerSocket {
    server: Arc<ProcessServer>,
    address: String,
}

#[async_trait]
impl Role for ServerSocket {
    fn status(&self) -> Value {
        let mut status = serde_json::to_value(self.server.status()).unwrap_or_else(|_| json!({}));
        status["listen"] = json!(self.address);
        status
    }
}
