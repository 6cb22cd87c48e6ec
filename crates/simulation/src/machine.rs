//! One protected machine: its disks and state files, its agent and the clients that write through it.
//!
//! Disks, files and history survive every death; agent and clients live on the machine's host and die with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::{Agent, AgentConfig, AgentDisk, AgentParts, AgentStatus, Clock, Dialer, Random};
use async_trait::async_trait;
use disk::memory::{Fault, MemoryDisk, Operation};
use model::{DiskName, Incarnation, MachineName, Seq, Timestamp};
use probe::Rules;
use store::SplitMix64;
use transport::{Connection, Peer, Role, TransportError};

use crate::client::{Client, Gate};
use crate::disks::SimDisk;
use crate::files::SimFiles;
use crate::history::History;
use crate::network::Network;
use crate::rng::derive;
use crate::stamp::{MACHINES_MAX, SECTOR, Stamp};
use crate::world::{Boot, HostId, ONE_THREAD, VirtualClock, World};

/// Bytes of a region of the dirty map.
pub const REGION_BYTES: u64 = 64 << 10;

/// Where virtual time begins, in microseconds since 1970.
const EPOCH_MICROS: i64 = 1_700_000_000_000_000;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wall clock of a host: virtual time and an error of its own.
#[derive(Clone)]
pub struct HostClock {
    clock: VirtualClock,
    /// Microseconds this host is ahead.
    pub ahead: Arc<AtomicI64>,
}

impl HostClock {
    /// A clock that is right.
    pub fn new(clock: VirtualClock) -> Self {
        Self { clock, ahead: Arc::default() }
    }

    /// What it shows.
    pub fn micros(&self) -> u64 {
        let micros = i64::try_from(self.clock.micros()).expect("short") + self.ahead.load(ONE_THREAD);
        u64::try_from(EPOCH_MICROS + micros).expect("not before 1970")
    }
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.micros())
    }
}

impl applier::Clock for HostClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.micros())
    }
}

/// Random bits of one life. Any of them may name an incarnation, so each is noted as belonging to the era of that life.
struct SeededRandom {
    rng: Mutex<SplitMix64>,
    history: Arc<Mutex<History>>,
    side_era: Option<usize>,
}

impl Random for SeededRandom {
    fn bits(&self) -> [u8; 16] {
        let mut bits = [0; 16];
        {
            let mut rng = lock(&self.rng);
            bits[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
            bits[8..].copy_from_slice(&rng.next_u64().to_le_bytes());
        }
        let mut history = lock(&self.history);
        let era = self.side_era.unwrap_or_else(|| history.era_now());
        history.incarnation(Incarnation(bits), Seq::ZERO, era);
        bits
    }
}

/// Finds process servers by their simulated names.
struct SimDialer {
    network: Network,
    boot: Boot,
    machine: MachineName,
    servers: BTreeMap<String, HostId>,
}

#[async_trait]
impl Dialer for SimDialer {
    async fn dial(&self, address: &str) -> Result<Connection, TransportError> {
        let peer = address.to_owned();
        let unreachable = |source| TransportError::Unreachable { peer: peer.clone(), source };
        let Some(&host) = self.servers.get(address) else {
            return Err(unreachable(std::io::ErrorKind::NotFound.into()));
        };
        let stream = self.network.connect(&self.boot, host, self.machine.to_string()).await.map_err(unreachable)?;
        let peer = Peer { role: Role::ProcessServer, name: address.parse().expect("names of hosts are names") };
        Ok(Connection::over(peer, address.to_owned(), Box::new(stream)))
    }
}

/// What one life of the agent left for others to look at.
#[derive(Default)]
pub struct Life {
    /// The running agent.
    pub agent: Option<Arc<Agent>>,
    /// Why it did not start.
    pub failed: Option<String>,
}

/// Sizes and speeds of a machine, chosen by the seed.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Bytes of each disk.
    pub disk_bytes: Vec<u64>,
    /// The agent's spool.
    pub spool_bytes: u64,
    /// Active regions of the agent.
    pub active_regions_max: usize,
    /// Clients at once.
    pub clients: u64,
    /// Longest time a client thinks between two operations.
    pub think: Duration,
}

/// A machine's disks and state files at one moment, as a hypervisor keeps them.
#[derive(Debug, Clone)]
pub struct Snapshot {
    contents: Vec<Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Snapshot {
    fn media(&self) -> Vec<Arc<MemoryDisk>> {
        self.contents.iter().map(|bytes| Arc::new(MemoryDisk::from_contents(bytes.clone()))).collect()
    }
}

/// An incarnation that goes on.
#[derive(Debug, Clone, Copy)]
struct Resumed {
    incarnation: Incarnation,
    next: Seq,
}

impl Resumed {
    fn note(self, history: &Mutex<History>) {
        let mut history = lock(history);
        let era = history.era_now();
        history.incarnation(self.incarnation, self.next, era);
    }
}

/// A protected machine.
pub struct Machine {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: MachineName,
    /// Its host.
    pub host: HostId,
    /// Sizes and speeds.
    pub shape: Shape,
    /// Its disks.
    pub media: Vec<Arc<MemoryDisk>>,
    /// Its agent's state directory.
    pub files: SimFiles,
    /// What its clients did.
    pub history: Arc<Mutex<History>>,
    /// Holds its clients.
    pub gate: Arc<Gate>,
    /// Its clock.
    pub clock: HostClock,
    /// The present life of its agent.
    pub life: Arc<Mutex<Life>>,
    /// Last acknowledged operation of every machine, for stamps.
    pub seen: Arc<[AtomicU64; MACHINES_MAX]>,
    /// When the last good flush of each disk was issued.
    flushed: Arc<Mutex<Vec<u64>>>,
    /// Disks whose next flush is to fail, and how many there had been.
    flush_faults: Vec<(usize, u64)>,
    /// It is a copy of the machine, beside it.
    twin: bool,
    /// Its disks were set back since it last ran: whatever the next life calls itself, nothing goes on.
    reverted: bool,
    /// What such a life goes on with, until a process server takes it.
    resuming: Arc<Mutex<Option<Resumed>>>,
    side_era: Option<usize>,
    rules: Rules,
    seed: u64,
}

/// Most payload bytes an agent keeps in memory here.
pub const QUEUE_BYTES: u64 = 1 << 20;

impl Machine {
    /// A machine whose disks hold stamped data in part.
    pub fn new(
        world: &mut World,
        index: usize,
        shape: Shape,
        seen: Arc<[AtomicU64; MACHINES_MAX]>,
        rules: Rules,
        seed: u64,
    ) -> Self {
        let name: MachineName = format!("m{index}").parse().expect("a name");
        let host = world.add_host(name.as_str());
        let rng = &mut derive(seed, &format!("content {index}"));
        let media = shape.disk_bytes.iter().enumerate();
        let media = media.map(|(disk, bytes)| Arc::new(MemoryDisk::from_contents(contents(index, disk, *bytes, rng))));
        Self {
            media: media.collect(),
            files: SimFiles::new(derive(seed, &format!("files {index}"))),
            history: Arc::new(Mutex::new(History::new(index))),
            gate: Arc::default(),
            clock: HostClock::new(world.clock().clone()),
            life: Arc::default(),
            flushed: Arc::new(Mutex::new(vec![0; shape.disk_bytes.len()])),
            twin: false,
            reverted: false,
            resuming: Arc::default(),
            side_era: None,
            flush_faults: Vec::new(),
            index,
            name,
            host,
            shape,
            seen,
            rules,
            seed,
        }
    }

    /// Name of a disk.
    pub fn disk_name(disk: usize) -> DiskName {
        format!("d{disk}").parse().expect("a name")
    }

    /// A copy of this machine on a host of its own, as it was at a snapshot.
    pub fn twin(&self, world: &mut World, snapshot: &Snapshot) -> Self {
        let host = world.add_host(format!("{}-twin", self.name));
        let rng = derive(self.seed, &format!("twin {host}"));
        let files = SimFiles::new(rng);
        files.restore(&snapshot.files);
        Self {
            media: snapshot.media(),
            files,
            history: self.history.clone(),
            gate: Arc::default(),
            clock: self.clock.clone(),
            life: Arc::default(),
            flushed: Arc::new(Mutex::new(vec![0; self.media.len()])),
            twin: true,
            reverted: false,
            resuming: Arc::default(),
            side_era: None,
            flush_faults: Vec::new(),
            index: self.index,
            name: self.name.clone(),
            host,
            shape: self.shape.clone(),
            seen: self.seen.clone(),
            rules: self.rules,
            seed: self.seed ^ host as u64,
        }
    }

    /// Disks and state files as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { contents: self.contents(), files: self.files.snapshot() }
    }

    /// Sets disks and state files back. The host must be off.
    pub fn revert(&mut self, snapshot: &Snapshot) {
        self.reverted = true;
        self.media = snapshot.media();
        self.files.restore(&snapshot.files);
    }

    /// What the disks hold.
    pub fn contents(&self) -> Vec<Vec<u8>> {
        self.media.iter().map(|disk| disk.contents()).collect()
    }

    /// Switches the host on and starts the agent and, unless told otherwise, its clients.
    pub fn start(&mut self, world: &mut World, servers: &BTreeMap<String, HostId>, with_clients: bool) {
        let boot = world.boot(self.host);
        world.network.host_returned(self.host);
        match self.twin {
            true => self.side_era = Some(lock(&self.history).side_era(self.contents())),
            false => {
                lock(&self.history).begin_era(self.contents());
            }
        }
        let beginning = lock(&self.history).moment();
        *lock(&self.flushed) = vec![beginning; self.media.len()];
        self.flush_faults.clear();
        *lock(&self.life) = Life::default();
        let tag = format!("m{} boot {}", self.index, boot.number);
        let rng = |what: &str| derive(self.seed, &format!("{tag} {what}"));
        let config = self.config(&boot, &rng);
        let parts = AgentParts {
            dialer: Arc::new(SimDialer {
                network: world.network.clone(),
                boot: boot.clone(),
                machine: self.name.clone(),
                servers: servers.clone(),
            }),
            clock: Arc::new(self.clock.clone()),
            random: Arc::new(SeededRandom {
                rng: Mutex::new(rng("random")),
                history: self.history.clone(),
                side_era: self.side_era,
            }),
            state_dir: Some(self.files.seen_from(&boot)),
            rules: self.rules,
        };
        let clients: Vec<Client> = (0..self.shape.clients)
            .filter(|_| with_clients)
            .map(|n| self.client(&boot, rng(&format!("client {n}"))))
            .collect();
        let (life, history, disks, side_era) =
            (self.life.clone(), self.history.clone(), self.media.len(), self.side_era);
        let resuming = self.resuming.clone();
        *lock(&resuming) = None;
        let reverted = std::mem::take(&mut self.reverted);
        world.spawn(self.host, async move {
            let agent = match Agent::start_with(config, parts).await {
                Ok(agent) => agent,
                Err(error) => {
                    lock(&life).failed = Some(error.to_string());
                    return;
                }
            };
            let status = agent.status();
            if let Some(next) = status.next_seq.filter(|_| side_era.is_none()) {
                // The stop was clean and the incarnation goes on. A life that was set back may be refused: see `taken`.
                let resumed = Resumed { incarnation: status.incarnation_id, next };
                match reverted {
                    true => *lock(&resuming) = Some(resumed),
                    false => resumed.note(&history),
                }
            }
            let exports: Vec<_> =
                (0..disks).map(|disk| agent.export(&Self::disk_name(disk)).expect("a disk of this agent")).collect();
            lock(&life).agent = Some(agent);
            for client in clients {
                tokio::spawn(client.run(exports.clone()));
            }
        });
    }

    fn config(&self, boot: &Boot, rng: &impl Fn(&str) -> SplitMix64) -> AgentConfig {
        let disk = |(disk, medium): (usize, &Arc<MemoryDisk>)| AgentDisk {
            name: Self::disk_name(disk),
            source: Arc::new(SimDisk::new(medium.clone(), boot.clone(), rng(&format!("disk {disk}")))),
            trim_zeroes: disk == 0,
        };
        AgentConfig {
            machine: self.name.clone(),
            state_dir: "unused".into(),
            process_servers: vec!["ps0".to_owned(), "ps1".to_owned()],
            queue_bytes: QUEUE_BYTES,
            spool_bytes: self.shape.spool_bytes,
            region_bytes: REGION_BYTES,
            active_regions_max: self.shape.active_regions_max,
            rpo_target: Duration::from_secs(30),
            disks: self.media.iter().enumerate().map(disk).collect(),
        }
    }

    fn client(&self, boot: &Boot, rng: SplitMix64) -> Client {
        Client {
            machine: self.index,
            boot: boot.clone(),
            sizes: self.shape.disk_bytes.clone(),
            history: self.history.clone(),
            gate: self.gate.clone(),
            seen: self.seen.clone(),
            flushed: self.flushed.clone(),
            think: self.shape.think,
            rng,
        }
    }

    /// The agent's status, if it runs.
    pub fn status(&self, world: &World) -> Option<AgentStatus> {
        let agent = lock(&self.life).agent.clone()?;
        world.ask(self.host, || agent.status())
    }

    /// Makes the next flush of a disk fail, with part of what it covered lost.
    pub fn fail_next_flush(&mut self, disk: usize, fault: Fault) {
        self.media[disk].fail_next(Operation::Flush, fault);
        self.flush_faults.push((disk, self.media[disk].count(Operation::Flush)));
    }

    /// Notes flushes that failed since this was last asked: whoever asked for them, clients may have lost writes by it.
    pub fn note_failed_flushes(&mut self) {
        let media = &self.media;
        let (struck, waiting) =
            self.flush_faults.iter().partition(|(disk, before)| media[*disk].count(Operation::Flush) > *before);
        self.flush_faults = waiting;
        let struck: Vec<(usize, u64)> = struck;
        for (disk, _) in struck {
            let last_good = lock(&self.flushed)[disk];
            lock(&self.history).flush_failed(disk, last_good);
        }
    }

    /// The running agent.
    pub fn agent(&self) -> Option<Arc<Agent>> {
        lock(&self.life).agent.clone()
    }

    /// A process server may have taken a life that was set back: then its numbers count from where it goes on.
    pub fn note_taken(&self, status: &AgentStatus) {
        let mut resuming = lock(&self.resuming);
        if let Some(resumed) =
            resuming.take_if(|r| r.incarnation == status.incarnation_id && status.connection.is_some())
        {
            resumed.note(&self.history);
        }
    }

    /// The source disks as somebody else reads them.
    pub fn sources(&self, boot: &Boot, rng: &mut SplitMix64) -> Vec<Arc<dyn disk::Disk>> {
        let view = |medium: &Arc<MemoryDisk>| {
            Arc::new(SimDisk::new(medium.clone(), boot.clone(), SplitMix64::new(rng.next_u64()))) as Arc<dyn disk::Disk>
        };
        self.media.iter().map(view).collect()
    }

    /// Kills the host, or cuts its power.
    pub fn die(&mut self, world: &mut World, power: bool, rng: &mut SplitMix64) {
        if world.is_up(self.host) {
            world.crash(self.host, power);
        }
        *lock(&self.life) = Life::default();
        self.gate.reset();
        if power {
            self.files.power_cut();
            self.media.iter().for_each(|disk| disk.power_cut(rng.next_u64()));
        }
        self.media.iter().for_each(|disk| disk.clear_faults());
    }
}

/// Half of a disk holds data that nobody of this run wrote, the rest zeros.
fn contents(machine: usize, disk: usize, bytes: u64, rng: &mut SplitMix64) -> Vec<u8> {
    let sectors = bytes / SECTOR as u64;
    let mut contents = Vec::with_capacity(usize::try_from(bytes).expect("small"));
    let mut data = false;
    for sector in 0..sectors {
        if sector % 64 == 0 {
            data = rng.below(2) == 0;
        }
        if data {
            let (machine, disk) = (machine as u32, disk as u32);
            Stamp { op: 0, machine, disk, sector, seen: [0; MACHINES_MAX] }.write(&mut contents);
        } else {
            contents.resize(contents.len() + SECTOR, 0);
        }
    }
    contents
}
