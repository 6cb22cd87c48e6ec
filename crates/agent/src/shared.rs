//! What the tasks of one agent share: the core under its mutex, and the bells by which they wake each other.
//!
//! The mutex is held for moments only and never across an await. Whoever changes the core rings the bells of those it
//! concerns after letting go.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use model::{EventKind, Seq, Severity, Timestamp};
use probe::Rules;
use tokio::sync::Notify;

use crate::agent::AgentParts;
use crate::config::AgentConfig;
use crate::core::Core;
use crate::flush_group::FlushGroup;
use crate::locks::ExtentLocks;
use crate::metric::Metrics;
use crate::regions::Batch;
use crate::seams::{Clock, Dialer, Random};
use crate::sequencer::Mode;
use crate::spooler::SpoolFile;
use crate::state_dir::{StateDir, StateFile};
use crate::watched::Watched;

/// How long a window stays open that a safety rule keeps shut, when a test takes the rule away.
pub(crate) const CARELESS_DELAY: Duration = Duration::from_millis(2);

/// What was heard to be stored, and in which life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredMark {
    pub(crate) life: u64,
    pub(crate) seq: Seq,
}

/// One disk as the tasks use it.
pub(crate) struct SharedDisk {
    pub(crate) source: Arc<dyn disk::Disk>,
    pub(crate) trim_zeroes: bool,
    pub(crate) locks: ExtentLocks,
    pub(crate) flushes: FlushGroup,
}

/// Everything the tasks share.
pub(crate) struct Shared {
    pub(crate) config: AgentConfig,
    pub(crate) disks: Vec<SharedDisk>,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) state_dir: Option<Arc<dyn StateDir>>,
    pub(crate) map_file: Option<Arc<dyn StateFile>>,
    pub(crate) spool: SpoolFile,
    pub(crate) metrics: Metrics,
    /// Random for this start of the process.
    pub(crate) instance: [u8; 16],
    core: Mutex<Core>,
    /// Commits of the map that are durable; the last number there is once the map failed.
    pub(crate) committed: Watched<Batch>,
    pub(crate) stored: Watched<StoredMark>,
    /// The present life; a session of an older one ends.
    pub(crate) life: Watched<u64>,
    /// Records wait to be sent.
    pub(crate) send_bell: Notify,
    /// There may be something to drain, or room to drain into.
    pub(crate) drain_bell: Notify,
    /// Memory is over half full.
    pub(crate) spool_bell: Notify,
    /// Bits wait to be committed.
    pub(crate) map_bell: Notify,
    /// The active set is over its bound.
    pub(crate) clear_bell: Notify,
    /// Set once nothing but the clean-stop marker may be written to the map any more.
    pub(crate) map_closed: Watched<bool>,
    /// Held while the map is written.
    pub(crate) map_writer: tokio::sync::Mutex<()>,
    /// The agent was dropped: nobody commits or sends any more. Release by the drop, acquire by those it wakes.
    pub(crate) dead: AtomicBool,
    /// The safety rules in force.
    pub(crate) rules: Rules,
}

impl Shared {
    pub(crate) fn new(
        config: AgentConfig,
        parts: AgentParts,
        map_file: Option<Arc<dyn StateFile>>,
        instance: [u8; 16],
        core: Core,
    ) -> Self {
        let AgentParts { dialer, clock, random, state_dir, rules } = parts;
        let disk = |disk: &crate::AgentDisk| SharedDisk {
            source: Arc::clone(&disk.source),
            trim_zeroes: disk.trim_zeroes,
            locks: ExtentLocks::default(),
            flushes: FlushGroup::default(),
        };
        let stored = StoredMark { life: core.life, seq: core.stored_position().seq };
        Shared {
            disks: config.disks.iter().map(disk).collect(),
            metrics: Metrics::new(config.machine.as_str()),
            committed: Watched::new(if core.map.failed() { Batch::MAX } else { 0 }),
            stored: Watched::new(stored),
            life: Watched::new(core.life),
            config,
            dialer,
            clock,
            random,
            state_dir,
            map_file,
            spool: SpoolFile::new(),
            instance,
            core: Mutex::new(core),
            send_bell: Notify::new(),
            drain_bell: Notify::new(),
            spool_bell: Notify::new(),
            map_bell: Notify::new(),
            clear_bell: Notify::new(),
            map_closed: Watched::new(false),
            map_writer: tokio::sync::Mutex::new(()),
            dead: false.into(),
            rules,
        }
    }

    /// The core. A panic while it is held would leave numbers and bits apart, so it is not survived.
    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().expect("nothing panics while it holds the core")
    }

    /// The time.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// An event without other changes.
    pub(crate) fn event(&self, severity: Severity, kind: EventKind, message: String) {
        let now = self.now();
        self.core().event(now, severity, kind, message);
    }

    /// Waits until a commit of the map is durable, or will never be.
    pub(crate) async fn wait_committed(&self, batch: Batch) {
        self.map_bell.notify_one();
        self.committed.wait_for(|done| *done >= batch).await;
    }

    /// Lets go of the core and wakes whoever may have work now that a record was queued or a bit set. In bitmap mode nobody
    /// has: nothing is queued, and that something can be drained again is another's news.
    pub(crate) fn ring_after_change(&self, core: MutexGuard<'_, Core>) {
        let (used, max) = core.queue.memory();
        let active: usize = core.disks.iter().map(|d| d.regions.active()).sum();
        let mode = core.sequencer.mode();
        drop(core);
        if mode != Mode::Bitmap {
            self.send_bell.notify_one();
        }
        if used > max / 2 {
            self.spool_bell.notify_one();
        }
        if active > self.config.active_regions_max {
            self.clear_bell.notify_one();
        }
        if mode == Mode::Drain {
            self.drain_bell.notify_one();
        }
    }

    /// Tells everyone that the core moved on: after `stored`, a new life, or a change of connection.
    pub(crate) fn ring_all(&self) {
        let (stored, life, active) = {
            let core = self.core();
            let active: usize = core.disks.iter().map(|d| d.regions.active()).sum();
            (StoredMark { life: core.life, seq: core.stored_position().seq }, core.life, active)
        };
        self.stored.set(stored);
        self.life.set(life);
        for bell in [&self.send_bell, &self.drain_bell, &self.spool_bell] {
            bell.notify_one();
        }
        // Clearing flushes the source: while there is room it waits for its turn, whatever is stored meanwhile.
        if active > self.config.active_regions_max {
            self.clear_bell.notify_one();
        }
    }

    /// Opens a new incarnation: what was given numbers and not heard to be stored is drained in it.
    pub(crate) fn reincarnate(&self, cause: model::DrainCause, why: &str) {
        let incarnation = model::Incarnation(self.random.bits());
        let now = self.now();
        self.core().reincarnate(now, incarnation, cause, why);
        self.ring_all();
    }
}
