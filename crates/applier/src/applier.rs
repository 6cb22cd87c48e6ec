//! The role: one follower and one replica keeper for each machine, started and stopped together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use format::keys::Keys;
use format::manifest::Promoted;
use format::map::Node;
use format::pack::PackRef;
use model::{Event, EventKind, LogHead, MachineName, PointId, Retention, Seq, Severity};
use probe::Rules;
use store::{LogRules, Store};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::pins::PinRequests;
use crate::reckon::Reckonings;
use crate::recover::{RecoverError, Validity};
use crate::replica::ReplicaConfig;
use crate::stages::{Stage, Stages, Task};
use crate::status::{ApplierStatus, MachineStatus, ReplicaStatus};
use crate::{ApplierError, Clock, follow, reckon, replica, sharing};

/// Settings of an applier.
#[derive(Debug, Clone)]
pub struct ApplierConfig {
    /// Where replicas have their state, and their disks but for those on devices.
    pub data_dir: PathBuf,
    /// Time between crash points.
    pub crash_every: Duration,
    /// How long every point is kept.
    pub journal_window: Duration,
    /// Which older points are kept.
    pub retention: Retention,
    /// How often the log is asked for more; 200 ms is a good choice.
    pub poll: Duration,
    /// How the replica of each machine is kept; of machines that are not here none is.
    pub replicas: BTreeMap<MachineName, ReplicaConfig>,
    /// A replica that trails by more than this is rebuilt out of maps rather than by applying every record.
    pub replica_lag: Duration,
    /// Whether what the disks of each point hold is reckoned: everything written is read again, as it was and as it is.
    pub state_digests: bool,
    /// Segments that a map takes in together, from 1; 8 is a good choice. More make fewer maps, and more tables to read for a position.
    pub map_segments: usize,
    /// Bytes of a full pack; 64 MiB is a good choice, and 0 makes none. A sixty-fourth of it is what must be saved for bytes alone to be rewritten.
    pub pack_bytes: u64,
    /// Time between two commits, unless many segments wait: 1 s is a good choice.
    pub commit_every: Duration,
    /// Time between two looks at what the policy keeps no longer: points, the horizon, garbage. 60 s is a good choice.
    pub tidy_every: Duration,
    /// Whether the horizon follows the journal window, and what an acknowledged manifest makes needless is deleted.
    pub gc: bool,
    /// Time between two passes over the whole vault, in which what machines share and nobody reads any more is condemned and
    /// deleted; none for no such pass. 1 h is a good choice.
    pub gc_shared: Option<Duration>,
}

/// The safety rules in force: all, but for the tests and the simulation that show what each is good for.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct ApplierRules {
    /// Those of the epoch log.
    pub log: LogRules,
    /// Those of the applier itself.
    pub applier: Rules,
}

impl ApplierRules {
    /// Every rule.
    pub const ALL: ApplierRules = ApplierRules { log: LogRules::ALL, applier: Rules::ALL };
}

/// Segments that follow one another.
#[derive(Debug, Clone, Default)]
pub(crate) struct SegmentRun {
    /// Stream state before the first.
    pub start: LogHead,
    /// In log order.
    pub segments: Vec<Promoted>,
}

/// What the follower of a machine has committed: the replica may go there.
#[derive(Default)]
pub(crate) struct Committed {
    /// Segments up to here may be gone.
    pub horizon: Seq,
    /// Maps of the history up to the last leaf.
    pub nodes: Vec<Node>,
    /// Packs that stand for segments up to the horizon.
    pub packs: Arc<[PackRef]>,
    /// Promoted segments up to the last, from somewhere at or before the end of the last node on.
    pub recent: SegmentRun,
    /// Valid positions among their records.
    pub validity: Validity,
    /// The newest point, while its states are not reckoned.
    pub unreckoned: Option<PointId>,
}

/// What the tasks of one machine share.
pub(crate) struct Shared {
    pub config: ApplierConfig,
    pub store: Store,
    pub keys: Arc<Keys>,
    pub machine: MachineName,
    pub clock: Arc<dyn Clock>,
    pub stop: CancellationToken,
    pub rules: ApplierRules,
    /// Told at every commit.
    pub moved: Notify,
    /// Pins asked for.
    pub pins: PinRequests,
    /// States of points that no commit has taken up.
    pub reckonings: Reckonings,
    /// What its stages have done.
    pub stages: Arc<Stages>,
    committed: Mutex<Arc<Committed>>,
    status: Mutex<MachineStatus>,
}

impl Shared {
    /// What is committed now.
    pub fn committed(&self) -> Arc<Committed> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes what is committed.
    pub fn commit(&self, committed: Committed) {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(committed);
        self.moved.notify_one();
    }

    /// Changes the status.
    pub fn with_status<T>(&self, change: impl FnOnce(&mut MachineStatus) -> T) -> T {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything, as of now.
    fn status(&self) -> MachineStatus {
        let mut status = self.with_status(|status| status.clone());
        let committed = self.committed();
        if let Some(replica) = &status.replica {
            let segments = &committed.recent.segments;
            let there = segments.partition_point(|segment| segment.head.position.seq <= replica.seq);
            self.stages.queued(Stage::Fetch, segments.len() - there);
        }
        self.stages.queued(Stage::Digest, usize::from(self.config.state_digests && committed.unreckoned.is_some()));
        let replica = status.replica.as_ref().map(|_| Task::Replica);
        let digests = self.config.state_digests.then_some(Task::Digests);
        let tasks = [Some(Task::Follower), replica, digests].into_iter().flatten();
        status.tasks = tasks.map(|task| self.stages.status(task)).collect();
        status
    }

    /// Changes the replica's status.
    pub fn with_replica(&self, change: impl FnOnce(&mut ReplicaStatus)) {
        self.with_status(|status| status.replica.as_mut().map(change));
    }

    /// Reports an event, in the log output too.
    pub fn event(&self, severity: Severity, kind: EventKind, message: String) {
        match severity {
            Severity::Info => tracing::info!(machine = %self.machine, %kind, "{message}"),
            Severity::Warning => tracing::warn!(machine = %self.machine, %kind, "{message}"),
            Severity::Critical => tracing::error!(machine = %self.machine, %kind, "{message}"),
        }
        let time = self.clock.now();
        self.with_status(|status| status.event(time, severity, kind, message));
    }

    /// Waits, unless stopped. Whether to go on.
    pub async fn pause(&self, duration: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(duration) => true,
        }
    }
}

/// A running applier. Dropping it lets every machine's work end at its next safe moment; [`Applier::stop`] waits for that.
pub struct Applier {
    machines: Vec<Arc<Shared>>,
    stop: CancellationToken,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Applier {
    /// Starts following the machines. What fails for one machine later is in its status and tried again.
    /// Errors: the store holds no vault, or another one than the keys open.
    pub async fn start(
        config: ApplierConfig,
        store: Store,
        keys: Arc<Keys>,
        machines: Vec<MachineName>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, ApplierError> {
        Self::start_with_rules(config, store, keys, machines, clock, ApplierRules::ALL).await
    }

    /// As [`Applier::start`]; tests take a rule away to prove that their oracle notices.
    #[doc(hidden)]
    pub async fn start_with_rules(
        config: ApplierConfig,
        store: Store,
        keys: Arc<Keys>,
        machines: Vec<MachineName>,
        clock: Arc<dyn Clock>,
        rules: ApplierRules,
    ) -> Result<Arc<Self>, ApplierError> {
        store::open_vault(&store, &keys).await?;
        let stop = CancellationToken::new();
        let shared = machines.into_iter().map(|machine| {
            Arc::new(Shared {
                status: Mutex::new(MachineStatus::new(machine.clone(), config.replicas.contains_key(&machine))),
                config: config.clone(),
                store: store.clone(),
                keys: keys.clone(),
                stages: Arc::new(Stages::of(&machine)),
                machine,
                clock: clock.clone(),
                stop: stop.clone(),
                rules,
                moved: Notify::new(),
                pins: PinRequests::default(),
                reckonings: Reckonings::default(),
                committed: Mutex::default(),
            })
        });
        let machines: Vec<_> = shared.collect();
        let mut tasks = JoinSet::new();
        for shared in &machines {
            tasks.spawn(follow::run(shared.clone()));
            if config.state_digests {
                tasks.spawn(reckon::run(shared.clone()));
            }
            if let Some(replica) = config.replicas.get(&shared.machine) {
                tasks.spawn(replica::run(shared.clone(), replica.clone()));
            }
        }
        if let Some(every) = config.gc_shared {
            tasks.spawn(sharing::run(store, keys, every, stop.clone(), rules.applier));
        }
        Ok(Arc::new(Self { machines, stop, tasks: tokio::sync::Mutex::new(tasks) }))
    }

    /// How far everything is.
    pub fn status(&self) -> ApplierStatus {
        ApplierStatus { machines: self.machines.iter().map(|shared| shared.status()).collect() }
    }

    /// The newest events of a machine, oldest first.
    pub fn events(&self, machine: &MachineName) -> Vec<Event> {
        let found = self.machines.iter().find(|shared| shared.machine == *machine);
        found.map(|shared| shared.with_status(|status| status.events.iter().cloned().collect())).unwrap_or_default()
    }

    /// Where the replica of a machine stands; none when it has none, has not begun or is being rebuilt.
    pub fn processed(&self, machine: &MachineName) -> Option<Seq> {
        let shared = self.machines.iter().find(|shared| shared.machine == *machine)?;
        let replica = shared.with_status(|status| status.replica.clone())?;
        Some(replica.seq).filter(|seq| *seq > Seq::ZERO && !replica.rebuilding)
    }

    /// Holds a point of a machine whatever the policy says, or holds it no longer; returns once that is acknowledged.
    /// Errors: `UnknownMachine`, `UnknownPoint`; `Stopped` when it is not known whether it was done: ask again.
    pub async fn pin(&self, machine: &MachineName, point: PointId, hold: bool) -> Result<(), ApplierError> {
        let Some(shared) = self.machines.iter().find(|shared| shared.machine == *machine) else {
            let names: Vec<_> = self.machines.iter().map(|shared| shared.machine.as_str()).collect();
            let (machine, known) = (machine.clone(), names.join(", "));
            return Err(RecoverError::UnknownMachine { machine, known }.into());
        };
        shared.pins.ask(point, hold).await
    }

    /// Stops at the next safe moment and waits for it.
    pub async fn stop(&self) {
        self.stop.cancel();
        let mut tasks = self.tasks.lock().await;
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "task of the applier failed");
            }
        }
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.stop.cancel();
        // Aborted in mid-write, a task would leave writes in flight that nobody waits for.
        self.tasks.get_mut().detach_all();
    }
}
