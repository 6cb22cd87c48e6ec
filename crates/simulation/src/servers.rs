//! Process servers, appliers and the operator: everything that runs beside the protected machines.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use applier::{Applier, ApplierConfig, ApplierStatus};
use format::keys::Keys;
use model::MachineName;
use probe::Rules;
use process_server::{ProcessServer, ProcessServerConfig};
use store::{FaultStore, Faults, LogRules, Store};
use transport::{Connection, Peer, Role};

use crate::machine::{HostClock, lock};
use crate::object_service::ObjectService;
use crate::world::{Boot, HostId, World};

/// Life of an epoch where there is garbage collection.
const EPOCH_LIFE: Duration = Duration::from_secs(6);

/// Time between two passes of the shared collection.
const SHARED_EVERY: Duration = Duration::from_secs(7);

/// How long every position stays recoverable.
pub const JOURNAL_WINDOW: Duration = Duration::from_secs(8);

/// How long an applier whose store does not answer waits before it starts again.
const START_RETRY: Duration = Duration::from_millis(500);

/// What every role needs of the site.
#[derive(Clone)]
pub struct Site {
    /// The store; with two, the cache store.
    pub service: ObjectService,
    /// The vault store, where it is another one.
    pub vault: Option<ObjectService>,
    /// The vault's keys.
    pub keys: Arc<Keys>,
    /// Rules of the epoch log.
    pub log_rules: LogRules,
    /// Rules of the services.
    pub rules: Rules,
    /// Whether appliers delete what the policy keeps no longer.
    pub gc: bool,
    /// Whether streams share what drains bring in.
    pub share: bool,
    /// A host that never dies: requests that land late are carried there.
    pub limbo: HostId,
}

impl Site {
    /// The store that streams are written to as a life of a host sees it, with faults of its own.
    pub fn store(&self, world: &World, boot: &Boot, faults: &Faults) -> Store {
        self.seen(&self.service, world, boot, faults)
    }

    /// The store of the history, with the cache store behind it if there are two.
    pub fn history(&self, world: &World, boot: &Boot, faults: &Faults) -> Store {
        let cache = self.store(world, boot, faults);
        match &self.vault {
            None => cache,
            Some(vault) => self.seen(vault, world, boot, faults).with_cache(cache),
        }
    }

    fn seen(&self, service: &ObjectService, world: &World, boot: &Boot, faults: &Faults) -> Store {
        let remote = service.seen_from(boot, &world.network);
        if let Some(limbo) = world.handle(self.limbo) {
            faults.set_spawner(Arc::new(move |late| drop(limbo.spawn(late))));
        }
        Store::from_object_store(Arc::new(FaultStore::new(remote, faults.clone())))
    }

    /// Every store itself, without network or faults.
    pub fn truths(&self) -> impl Iterator<Item = Store> {
        let services = [Some(&self.service), self.vault.as_ref()].into_iter().flatten();
        services.map(|service| Store::from_object_store(service.truth.clone()))
    }

    /// What is left to judges: the store, and of two the vault store alone, for the cache store is lost by then.
    pub fn truth(&self) -> Store {
        self.truths().last().expect("there is one at least")
    }
}

/// A host with a process server.
pub struct Server {
    /// Its host.
    pub host: HostId,
    /// Faults between it and the store.
    pub faults: Faults,
    config: ProcessServerConfig,
    running: Arc<Mutex<Option<Arc<ProcessServer>>>>,
}

impl Server {
    /// A process server that is switched off.
    pub fn new(world: &mut World, index: usize, segment_age: Duration, faults: Faults) -> Self {
        let name = format!("ps{index}");
        let config = ProcessServerConfig {
            workers: 0,
            segment_bytes: 128 << 10,
            segment_age,
            uploads_max: 4,
            dedup_entries_max: 1 << 12,
            ..ProcessServerConfig::new(name.parse().expect("a name"))
        };
        Self { host: world.add_host(name), faults, config, running: Arc::default() }
    }

    /// Switches it on.
    pub fn start(&self, world: &mut World, site: &Site) {
        let boot = world.boot(self.host);
        world.network.host_returned(self.host);
        let store = site.store(world, &boot, &self.faults);
        let mut listener = world.network.listen(&boot);
        let (mut config, site, running) = (self.config.clone(), site.clone(), self.running.clone());
        if site.share {
            config.share_entries_max = 1 << 12;
        }
        if site.gc {
            // So short that the horizon passes several within one scene.
            config.epoch_life = EPOCH_LIFE;
        }
        world.spawn(self.host, async move {
            let server = start_server(config, store, &site);
            *lock(&running) = Some(server.clone());
            while let Some(incoming) = listener.recv().await {
                let Ok(name) = incoming.greeting.parse() else { continue };
                let peer = Peer { role: Role::Agent, name };
                let connection = Connection::over(peer, incoming.greeting, Box::new(incoming.stream));
                let server = server.clone();
                tokio::spawn(async move { server.accept(connection).await });
            }
        });
    }

    /// Stops it in order, leaving what is not stored to the agents.
    pub fn stop(&self, world: &World) {
        let Some(server) = lock(&self.running).clone() else { return };
        world.spawn(self.host, async move { server.stop(Duration::from_secs(2)).await });
    }

    /// Kills it, or cuts its power.
    pub fn die(&self, world: &mut World, power: bool) {
        if world.is_up(self.host) {
            world.crash(self.host, power);
        }
        *lock(&self.running) = None;
    }
}

fn start_server(config: ProcessServerConfig, store: Store, site: &Site) -> Arc<ProcessServer> {
    let rules = process_server::ServerRules { log: site.log_rules, server: site.rules };
    ProcessServer::start_with_rules(config, store, site.keys.clone(), rules).expect("the settings are in range")
}

/// A host with an applier.
pub struct Follower {
    /// Its host.
    pub host: HostId,
    /// Faults between it and the store.
    pub faults: Faults,
    clock: HostClock,
    running: Arc<Mutex<Option<Arc<Applier>>>>,
}

impl Follower {
    /// An applier that is switched off.
    pub fn new(world: &mut World, index: usize, faults: Faults) -> Self {
        let clock = HostClock::new(world.clock().clone());
        Self { host: world.add_host(format!("applier{index}")), faults, clock, running: Arc::default() }
    }

    /// Switches it on for these machines.
    pub fn start(&self, world: &mut World, site: &Site, machines: Vec<MachineName>) {
        let boot = world.boot(self.host);
        world.network.host_returned(self.host);
        let store = site.history(world, &boot, &self.faults);
        let (site, clock, running) = (site.clone(), self.clock.clone(), self.running.clone());
        // So few that there are merges of merges within one scene.
        let map_segments = 1 + self.host % 2;
        world.spawn(self.host, async move {
            let config = ApplierConfig {
                data_dir: "unused".into(),
                crash_every: Duration::from_secs(3),
                journal_window: JOURNAL_WINDOW,
                retention: "1m:9s, 1h:30s".parse().expect("a retention"),
                poll: Duration::from_millis(200),
                replicas: BTreeMap::new(),
                replica_lag: Duration::MAX,
                map_segments,
                // So small that several are made within one scene.
                pack_bytes: 64 << 10,
                commit_every: Duration::from_secs(1),
                tidy_every: Duration::from_secs(2),
                gc: site.gc,
                gc_shared: (site.gc && site.share).then_some(SHARED_EVERY),
                state_digests: site.gc,
            };
            loop {
                let clock: Arc<dyn applier::Clock> = Arc::new(clock.clone());
                let rules = applier::ApplierRules { log: site.log_rules, applier: site.rules };
                let started = Applier::start_with_rules(
                    config.clone(),
                    store.clone(),
                    site.keys.clone(),
                    machines.clone(),
                    clock,
                    rules,
                );
                match started.await {
                    Ok(applier) => {
                        *lock(&running) = Some(applier);
                        return;
                    }
                    Err(error) => tracing::debug!(%error, "applier tries again"),
                }
                tokio::time::sleep(START_RETRY).await;
            }
        });
    }

    /// How far it is, if it runs.
    pub fn status(&self, world: &World) -> Option<ApplierStatus> {
        let applier = lock(&self.running).clone()?;
        world.ask(self.host, || applier.status())
    }

    /// Kills it, or cuts its power.
    pub fn die(&self, world: &mut World, power: bool) {
        if world.is_up(self.host) {
            world.crash(self.host, power);
        }
        *lock(&self.running) = None;
    }
}
