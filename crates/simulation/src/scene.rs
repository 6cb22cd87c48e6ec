//! Everybody on stage: machines, process servers, appliers, the operator and the store, and what is due later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use agent::AgentStatus;
use format::keys::{Keys, VaultKey};
use model::{RecordDigest, Seq};
use probe::Rules;
use store::{Faults, LogRules, SplitMix64};

use crate::fault::{Coverage, ProtocolState};
use crate::judge::Violation;
use crate::machine::{Machine, Shape, Snapshot};
use crate::object_service::ObjectService;
use crate::operator::Operator;
use crate::rng::{derive, pick};
use crate::servers::{Follower, Server, Site};
use crate::stamp::MACHINES_MAX;
use crate::world::{HostId, World};

/// What a run is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Rules of the services.
    pub rules: Rules,
    /// Rules of the epoch log.
    pub log_rules: LogRules,
    /// How long things go wrong.
    pub fault_time: Duration,
    /// Mean time between two faults.
    pub fault_every: Duration,
    /// Faults to choose from; all when empty.
    pub faults: Vec<crate::fault::Fault>,
    /// Something the oracles are broken by, as a control of the oracles themselves.
    pub sabotage: Option<Sabotage>,
}

/// A fault of the run itself, which an oracle must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Marks of a group are set while clients go on.
    GroupWithoutGate,
    /// Nothing may be sent again after a kill.
    NothingMayBeResent,
    /// The network of one machine never heals.
    NeverHeals,
    /// Sealed objects are searched for something that is in them.
    MarkerInStore,
    /// The agent's queue may hold next to nothing.
    TinyBound,
}

impl Options {
    /// All rules, all faults.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            rules: Rules::ALL,
            log_rules: LogRules::ALL,
            fault_time: Duration::from_secs(24),
            fault_every: Duration::from_millis(900),
            faults: Vec::new(),
            sabotage: None,
        }
    }
}

/// What was learned of a machine from outside.
#[derive(Debug, Default)]
pub struct Known {
    /// Heads that agents heard to be stored.
    pub stored: BTreeMap<Seq, RecordDigest>,
    /// Positions that were offered as points.
    pub kept: BTreeMap<Seq, RecordDigest>,
    /// What an unclean stop may cost the life that follows it, in bytes; none when that cannot be said.
    pub may_resend: Option<u64>,
    /// When the present life began, in virtual time.
    pub started: Duration,
    /// A snapshot of disks and state files.
    pub snapshot: Option<Snapshot>,
    /// Highest use of queue and spool.
    pub queue_bytes_peak: u64,
    /// Times the bound on what is sent again was checked.
    pub resend_checks: u64,
}

type Due = Box<dyn FnOnce(&mut Scene)>;

/// Everybody.
pub struct Scene {
    /// What the run is to be.
    pub options: Options,
    /// Hosts, network, time.
    pub world: World,
    /// Store, keys, rules.
    pub site: Site,
    /// Protected machines.
    pub machines: Vec<Machine>,
    /// Copies of machines.
    pub twins: Vec<Machine>,
    /// Process servers.
    pub servers: Vec<Server>,
    /// Their names.
    pub server_hosts: BTreeMap<String, HostId>,
    /// Appliers.
    pub followers: Vec<Follower>,
    /// The operator.
    pub operator: Operator,
    /// What is known of each machine.
    pub known: Vec<Known>,
    /// How each agent stood at the last look.
    pub statuses: Vec<Option<AgentStatus>>,
    /// Faults that struck.
    pub coverage: Coverage,
    /// Chance of everything that is not somebody's own.
    pub rng: SplitMix64,
    due: BTreeMap<(u64, u64), Due>,
    dues: u64,
}

impl Scene {
    /// Sets the stage and starts everybody.
    pub fn new(options: Options) -> Self {
        let seed = options.seed;
        let mut rng = derive(seed, "scene");
        let mut world = World::new(seed);
        let limbo = world.add_host("limbo");
        world.boot(limbo);
        let store_host = world.add_host("store");
        let operator_host = world.add_host("operator");
        let operator_boot = world.boot(operator_host);
        let service = ObjectService::new(store_host);
        let keys = Arc::new(Keys::new(&vault_key(seed)));
        // In every other scene nothing is deleted, and the whole log can be read as well.
        let gc = derive(seed, "gc").below(2) == 0;
        // In every third scene the history has a store of its own.
        let two = derive(seed, "two stores").below(3) == 0;
        let vault = two.then(|| ObjectService::new(world.add_host("vault")));
        // In every other one of the rest streams share what drains bring in: a machine that is resynchronised finds its own.
        let share = !two && derive(seed, "share").below(2) == 0;
        let (log_rules, rules) = (options.log_rules, options.rules);
        let site = Site { service, vault, keys, log_rules, rules, gc, share, limbo };
        let seen: Arc<[AtomicU64; MACHINES_MAX]> = Arc::default();
        let count = 1 + usize::try_from(rng.below(3)).expect("small");
        let shapes: Vec<Shape> = (0..count).map(|_| shape(&mut rng)).collect();
        let machines: Vec<Machine> = shapes
            .into_iter()
            .enumerate()
            .map(|(index, shape)| Machine::new(&mut world, index, shape, seen.clone(), options.rules, seed))
            .collect();
        let age = Duration::from_millis(*pick(&mut rng, &[50, 200, 500]));
        let faults = |name: String| Faults::new(derive(seed, &name).next_u64());
        let servers: Vec<Server> =
            (0..2).map(|n| Server::new(&mut world, n, age, faults(format!("ps{n} store")))).collect();
        let followers = (0..1 + rng.below(2))
            .map(|n| usize::try_from(n).expect("small"))
            .map(|n| Follower::new(&mut world, n, faults(format!("applier{n} store"))))
            .collect();
        let server_hosts = servers.iter().enumerate().map(|(n, server)| (format!("ps{n}"), server.host)).collect();
        let mut scene = Self {
            known: machines.iter().map(|_| Known::default()).collect(),
            statuses: machines.iter().map(|_| None).collect(),
            operator: Operator::new(operator_boot, machines.len(), derive(seed, "operator")),
            options,
            world,
            site,
            machines,
            twins: Vec::new(),
            servers,
            server_hosts,
            followers,
            coverage: Coverage::default(),
            rng,
            due: BTreeMap::new(),
            dues: 0,
        };
        scene.open();
        scene
    }

    fn open(&mut self) {
        let host = self.operator.boot.host;
        for store in self.site.truths() {
            let keys = self.site.keys.clone();
            let making = async move { store::create_vault(&store, &keys).await };
            let made = self.world.complete(host, Duration::from_secs(5), making);
            assert!(matches!(made, Some(Ok(()))), "a store in memory takes a vault: {made:?}");
        }
        (0..self.servers.len()).for_each(|n| self.start_server(n));
        (0..self.followers.len()).for_each(|n| self.start_follower(n));
        (0..self.machines.len()).for_each(|n| self.start_machine(n));
    }

    /// Starts a process server that is off.
    pub fn start_server(&mut self, index: usize) {
        if !self.world.is_up(self.servers[index].host) {
            self.servers[index].start(&mut self.world, &self.site);
        }
    }

    /// Starts an applier that is off.
    pub fn start_follower(&mut self, index: usize) {
        if !self.world.is_up(self.followers[index].host) {
            let names = self.machines.iter().map(|machine| machine.name.clone()).collect();
            self.followers[index].start(&mut self.world, &self.site, names);
        }
    }

    /// Starts a machine that is off.
    pub fn start_machine(&mut self, index: usize) {
        if !self.world.is_up(self.machines[index].host) {
            // Half of the time clients wait for the first drain, so that what it sends is owed to the stop alone.
            let held = self.known[index].may_resend.is_some();
            self.machines[index].gate.set_closed(held);
            self.known[index].started = self.world.elapsed();
            self.machines[index].start(&mut self.world, &self.server_hosts, true);
        }
    }

    /// Does something later.
    pub fn later(&mut self, after: Duration, what: impl FnOnce(&mut Scene) + 'static) {
        let at = self.world.clock().micros() + u64::try_from(after.as_micros()).expect("short");
        self.dues += 1;
        self.due.insert((at, self.dues), Box::new(what));
    }

    /// Does what is due; with `all`, whatever was put off at all.
    pub fn do_due(&mut self, all: bool) {
        let now = self.world.clock().micros();
        while let Some(entry) = self.due.first_entry().filter(|entry| all || entry.key().0 <= now) {
            let what = entry.remove();
            what(self);
        }
    }

    /// How the protocol of a machine stands.
    pub fn state_of(&self, machine: usize) -> ProtocolState {
        ProtocolState::of(self.machines[machine].status(&self.world).as_ref())
    }

    /// One step of time, and everything that follows from it.
    pub fn step(&mut self) -> Result<(), Violation> {
        if let Some((host, step)) = self.world.tick() {
            self.died_at(host, step);
        }
        self.do_due(false);
        Ok(())
    }
}

/// Chunk ids come from the vault key, so it must be the seed's too.
fn vault_key(seed: u64) -> VaultKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&derive(seed, "vault key").next_u64().to_le_bytes());
    VaultKey::from_bytes(bytes.into())
}

fn shape(rng: &mut SplitMix64) -> Shape {
    Shape {
        disk_bytes: if rng.below(3) == 0 { vec![2 << 20] } else { vec![2 << 20, 1 << 20] },
        spool_bytes: *pick(rng, &[0, 0, 1 << 20, 8 << 20]),
        active_regions_max: *pick(rng, &[4, 12, 4096]),
        clients: 2 + rng.below(5),
        think: Duration::from_millis(*pick(rng, &[15, 40, 90])),
    }
}
