//! The applier's process and its control socket.

use std::sync::Arc;
use std::time::Duration;

use applier::{Applier, ApplierConfig, SystemClock};
use async_trait::async_trait;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::config::Config;
use crate::control::{ControlServer, PinRequest, Role, RoleLock, Socket};
use crate::failure::usage;
use crate::{context, views};

/// How often the log is asked for more.
const POLL: Duration = Duration::from_millis(200);

/// Time between two commits of the manifest.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// How often it looks what the policy keeps no longer.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// How often it looks for what machines share and nobody reads any more.
const SHARED_EVERY: Duration = Duration::from_secs(3600);

/// Bytes of a full pack.
const PACK_BYTES: u64 = 64 << 20;

/// A running applier.
pub struct ApplierRole {
    applier: Arc<Applier>,
    _control: ControlServer,
}

impl ApplierRole {
    /// Starts following every configured machine.
    pub async fn start(global: &Global, config: &Config) -> anyhow::Result<Self> {
        let lock = RoleLock::take(config, Socket::Applier)?;
        let (store, keys) = context::target(global, config).await?;
        let replicas = config.machines.iter().filter_map(|m| Some((m.name.clone(), m.replica.clone()?))).collect();
        let settings = ApplierConfig {
            data_dir: config.site.data_dir.clone(),
            crash_every: config.policy.crash_every,
            journal_window: config.policy.journal_window,
            retention: config.policy.retention.clone(),
            poll: POLL,
            replicas,
            replica_lag: config.policy.replica_lag,
            commit_every: COMMIT_EVERY,
            tidy_every: TIDY_EVERY,
            gc: config.applier.gc,
            gc_shared: config.applier.gc_shared.then_some(SHARED_EVERY),
            state_digests: config.applier.state_digests,
            map_segments: config.applier.map_segments,
            pack_bytes: PACK_BYTES,
        };
        let machines = config.machines.iter().map(|m| m.name.clone()).collect();
        let applier = Applier::start(settings, store, keys, machines, Arc::new(SystemClock)).await?;
        let control = lock.serve(Arc::new(ApplierSocket { applier: applier.clone() }))?;
        Ok(Self { applier, _control: control })
    }

    /// Stops at the next safe moment.
    pub async fn stop(self) {
        self.applier.stop().await;
    }
}

struct ApplierSocket {
    applier: Arc<Applier>,
}

#[async_trait]
impl Role for ApplierSocket {
    fn status(&self) -> Value {
        views::applier(&self.applier.status())
    }

    async fn pin(&self, request: PinRequest) -> anyhow::Result<Value> {
        let point =
            request.point.parse().map_err(|e| usage(format!("{:?} is no id of a point: {e}", request.point)))?;
        self.applier.pin(&request.machine, point, request.hold).await?;
        Ok(json!({ "point": request.point, "pinned": request.hold }))
    }
}
