//! The agent as its callers see it: started, asked, stopped.

use std::sync::Arc;
use std::time::Duration;

use model::{
    DiskName, DrainCause, EventKind, Extent, Incarnation, LogHead, MarkKind, PointId, Seq, Severity, Timestamp,
};
use probe::{Rule, Rules};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::AgentConfig;
use crate::core::Core;
use crate::flush::flush_source;
use crate::map::{Loaded, MapState};
use crate::queue::Queue;
use crate::seams::{Clock, Dialer, Random, SystemRandom};
use crate::sequencer::{Mode, Sequencer};
use crate::shared::Shared;
use crate::splitter::Splitter;
use crate::state_dir::{RealDir, StateDir};
use crate::status::{AgentStatus, Counters, DrainProgress};
use crate::{AgentError, Marked, StopOutcome};

/// Longest label of a mark in bytes: the record format's own bound.
pub const LABEL_BYTES_MAX: usize = 200;

/// How often a stop looks whether writes in flight are done.
const STOP_POLL: Duration = Duration::from_millis(5);

/// Time a stop leaves for saying goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// The life of an agent that has stopped.
const LIFE_NONE: u64 = u64::MAX;

/// What an agent stands on besides its configuration; everything here can be exchanged in tests and simulation.
pub struct AgentParts {
    /// Opens connections.
    pub dialer: Arc<dyn Dialer>,
    /// Says what time it is.
    pub clock: Arc<dyn Clock>,
    /// Names incarnations and marks.
    pub random: Arc<dyn Random>,
    /// Holds map and spool; nothing if it cannot be used.
    pub state_dir: Option<Arc<dyn StateDir>>,
    /// The safety rules in force: all, but for the tests that show what each is good for.
    pub rules: Rules,
}

/// A running agent of one machine. Dropping it ends it at once, as a kill would.
pub struct Agent {
    shared: Arc<Shared>,
    /// Dropping the set ends the tasks.
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Agent {
    /// Starts. Errors: a configuration that cannot work, a state directory of another machine or in use by another
    /// agent. A state directory that cannot be used at all is no error but an event: the disks are served on.
    pub async fn start(
        config: AgentConfig,
        dialer: Arc<dyn Dialer>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Agent>, AgentError> {
        let mut trouble = None;
        let state_dir: Option<Arc<dyn StateDir>> = match RealDir::open(config.state_dir.clone()).await {
            Ok(dir) => Some(Arc::new(dir)),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let why = format!("{} is in use by another agent: stop that one first", config.state_dir.display());
                return Err(AgentError::Config { why });
            }
            Err(e) => {
                trouble = Some(format!("the state directory {} cannot be used: {e}", config.state_dir.display()));
                None
            }
        };
        let parts = AgentParts { dialer, clock, random: Arc::new(SystemRandom), state_dir, rules: Rules::ALL };
        let agent = Self::start_with(config, parts).await?;
        if let Some(text) = trouble {
            agent.shared.event(Severity::Critical, EventKind::AgentState, text);
        }
        Ok(agent)
    }

    /// Starts on exchanged parts.
    pub async fn start_with(config: AgentConfig, parts: AgentParts) -> Result<Arc<Agent>, AgentError> {
        config.validate()?;
        let fresh = Incarnation(parts.random.bits());
        let mut loaded = crate::map::load(&config, parts.state_dir.as_deref(), fresh, parts.rules).await?;
        let map_file = loaded.file.take();
        let now = parts.clock.now();
        let core = first_core(&config, loaded, map_file.is_none(), now, parts.random.bits(), parts.rules);
        let instance = parts.random.bits();
        let shared = Arc::new(Shared::new(config, parts, map_file, instance, core));
        let agent = Agent { tasks: tokio::sync::Mutex::new(spawn_tasks(&shared)), shared };
        agent.shared.ring_all();
        Ok(Arc::new(agent))
    }

    /// The write-splitter of a disk, to be served over NBD.
    pub fn export(&self, disk: &DiskName) -> Option<Arc<dyn nbd::Export>> {
        let index = self.disk_index(disk)?;
        Some(Arc::new(Splitter::new(Arc::clone(&self.shared), index)))
    }

    fn disk_index(&self, disk: &DiskName) -> Option<usize> {
        self.shared.config.disks.iter().position(|candidate| candidate.name == *disk)
    }

    /// How things stand now.
    pub fn status(&self) -> AgentStatus {
        let now = self.shared.now();
        let core = self.shared.core();
        let (queue_bytes_used, queue_bytes_max) = core.queue.memory();
        let (spool_bytes_used, spool_bytes_max) = core.queue.spool();
        let to_drain_bytes = core.owed_bytes();
        let progress = |since| DrainProgress { since, done_bytes: core.drain_done_bytes, left_bytes: to_drain_bytes };
        AgentStatus {
            machine: self.shared.config.machine.clone(),
            mode: core.sequencer.mode().name(),
            connection: core.connection.clone(),
            carrier: core.connection.as_ref().and(core.carrier).map(|carrier| carrier.to_string()),
            session: match (&core.connection, core.greeting) {
                (Some(_), _) => "live",
                (None, true) => "hello",
                (None, false) => "none",
            },
            connection_failure: core.connection_failure.clone(),
            incarnation: core.sequencer.incarnation().to_string(),
            incarnation_id: core.sequencer.incarnation(),
            next_seq: core.next_seq(),
            stored: core.stored,
            map_version: core.map.version(),
            map_kept: !core.map.failed(),
            queue_bytes_used,
            queue_bytes_max,
            spool_bytes_used,
            spool_bytes_max,
            to_drain_bytes,
            active_regions: core.disks.iter().map(|disk| disk.regions.set_at_most()).sum(),
            rpo_seconds: core.oldest_unstored().map_or(0.0, |time| now.since(time).as_secs_f64()),
            drain: core.drain_since.map(progress),
            counters: core.counters,
            refusal: core.refusal.clone(),
            events: core.events.iter().cloned().collect(),
            flushes: core.flushes.iter().copied().collect(),
        }
    }

    /// Sets an application-consistent mark; the caller has quiesced the applications. Returns once it is stored, however
    /// long that takes. Errors in bitmap and drain mode, where no position is a point, and if the incarnation ends first.
    pub async fn mark(&self, label: &str) -> Result<Marked, AgentError> {
        if label.len() > LABEL_BYTES_MAX {
            return Err(AgentError::Label { bytes: label.len(), max: LABEL_BYTES_MAX });
        }
        if label.chars().any(char::is_control) {
            return Err(AgentError::LabelText);
        }
        let id = self.shared.random.bits();
        let (seq, time, life) = {
            let now = self.shared.now();
            let mut core = self.shared.core();
            if core.stopping {
                return Err(AgentError::Stopping);
            }
            let set = core.mark(now, MarkKind::Application, id, label.to_owned());
            let Some((seq, time)) = set else { return Err(not_consistent(core.sequencer.mode())) };
            (seq, time, core.life)
        };
        self.shared.send_bell.notify_one();
        let seen = self.shared.stored.wait_for(|mark| mark.life != life || mark.seq >= seq).await;
        match seen.life {
            now if now == life => Ok(Marked { id: PointId(id), seq, time }),
            LIFE_NONE => Err(AgentError::Stopping),
            _ => Err(AgentError::MarkLost),
        }
    }

    /// Takes the result of a compare of a disk with position `at` of the log: what differs is drained. While the agent is
    /// refused, the last disk compared at one and the same position opens a new incarnation that rests on it. Returns
    /// once the regions are durably marked.
    pub async fn compared(&self, disk: &DiskName, at: Seq, differing: Vec<Extent>) -> Result<(), AgentError> {
        let index = self.disk_index(disk).ok_or_else(|| AgentError::UnknownDisk { disk: disk.clone() })?;
        let wait = self.mark_differing(index, at, &differing)?;
        if let Some(batch) = wait {
            self.shared.wait_committed(batch).await;
        }
        probe::failpoint!("agent-compare-durable");
        let now = self.shared.now();
        {
            let mut core = self.shared.core();
            core.compares[index] = Some(at);
            let refused = core.refusal.as_ref().is_some_and(|refusal| refusal.needs_compare);
            if refused && core.compares.iter().all(|compared| *compared == Some(at)) {
                let incarnation = Incarnation(self.shared.random.bits());
                core.refusal = None;
                core.compares.fill(None);
                core.reincarnate(now, incarnation, DrainCause::Compare, "every disk was compared with the log");
                core.compared_to = Some(at);
            } else if !refused && !differing.is_empty() && core.sequencer.mode() == Mode::Data {
                core.begin_drain(now, DrainCause::Compare);
            }
        }
        self.shared.ring_all();
        Ok(())
    }

    fn mark_differing(&self, disk: usize, at: Seq, differing: &[Extent]) -> Result<Option<u64>, AgentError> {
        let now = self.shared.now();
        let mut core = self.shared.core();
        let (name, size) = (core.disks[disk].name.clone(), core.disks[disk].regions.size());
        if let Some(&extent) = differing.iter().find(|extent| extent.end() > size) {
            return Err(AgentError::CompareRange { disk: name, extent, size });
        }
        // What differs may be a hole here and bytes in the log.
        core.fresh_stream = false;
        let batch = core.map.open_batch();
        let regions = &mut core.disks[disk].regions;
        let wait = differing.iter().filter_map(|extent| regions.mark_to_drain(*extent, batch)).max();
        let bytes: u64 = differing.iter().map(Extent::len).sum();
        let text = format!("disk {name} was compared with seq {at}: {bytes} bytes differ");
        core.event(now, Severity::Info, EventKind::Compare, text);
        Ok(core.map.must_wait(wait))
    }

    /// The seq of the last record at each of the latest completed client flushes, oldest first; a few thousand at most.
    pub fn flushes(&self) -> Vec<(Timestamp, Seq)> {
        self.shared.core().flushes.iter().copied().collect()
    }

    /// Stops: takes no more changes, waits up to `deadline` until everything is stored, flushes the sources, and leaves
    /// a durable clean-stop marker if nothing at all is left to do. Whatever the outcome, nothing is lost.
    pub async fn stop(&self, deadline: Duration) -> StopOutcome {
        let until = Instant::now() + deadline;
        self.shared.core().stopping = true;
        self.shared.ring_all();
        let outcome = match timeout_at(until, self.settle()).await {
            Ok(Ok(())) => self.leave_marker().await,
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err(self.unsettled()),
        };
        self.shared.core().stopped = true;
        self.shared.ring_all();
        let mut tasks = self.tasks.lock().await;
        if outcome.is_ok() {
            // Time to say goodbye, so that the server knows this silence from a death.
            let _ = timeout_at(Instant::now() + GOODBYE, async {
                while self.shared.core().connection.is_some() {
                    sleep(STOP_POLL).await;
                }
            })
            .await;
        }
        tasks.shutdown().await;
        self.end_waits();
        match outcome {
            Ok(seq) => StopOutcome::Clean { seq },
            Err(reason) => StopOutcome::Unclean { reason },
        }
    }

    /// Waits until no change is in flight, everything is stored, and the sources are flushed.
    async fn settle(&self) -> Result<(), String> {
        let shared = &self.shared;
        while shared.core().disks.iter().any(|disk| disk.regions.in_flight() > 0) {
            sleep(STOP_POLL).await;
        }
        for (index, disk) in shared.config.disks.iter().enumerate() {
            let flushed = self.flush_for_marker(index).await;
            flushed.map_err(|e| format!("disk {} failed its flush: {e}", disk.name))?;
        }
        loop {
            let seen = shared.stored.get();
            if shared.core().is_clean() {
                return Ok(());
            }
            if shared.core().map.failed() {
                return Err("the dirty map could not be kept".to_owned());
            }
            // A drain that ends during the stop leaves regions unflushed; one more flush each time something is stored.
            let unflushed: Vec<usize> = {
                let core = shared.core();
                let stored = core.stored_position().seq;
                (0..core.disks.len()).filter(|disk| core.disks[*disk].regions.wants_flush(stored)).collect()
            };
            for &disk in &unflushed {
                self.flush_for_marker(disk).await.map_err(|e| format!("a source failed its flush: {e}"))?;
            }
            if unflushed.is_empty() {
                shared.stored.wait_for(|now| *now != seen).await;
            }
        }
    }

    /// Makes durable what the clean-stop marker will vouch for.
    async fn flush_for_marker(&self, disk: usize) -> std::io::Result<()> {
        if self.shared.rules.hold(Rule::FlushBeforeMarker) {
            return flush_source(&self.shared, disk).await;
        }
        // Careless: what has completed will have reached the medium by now.
        let regions = &mut self.shared.core().disks[disk].regions;
        let ticket = regions.flush_ticket();
        regions.flush_succeeded(ticket);
        Ok(())
    }

    fn unsettled(&self) -> String {
        let core = self.shared.core();
        let stored = core.stored_position().seq;
        let (mode, owed) = (core.sequencer.mode().name(), core.owed_bytes());
        match core.next_seq() {
            Some(next) if next.0 - 1 > stored.0 => {
                format!("in {mode} mode, {} records are not stored and {owed} bytes not drained", next.0 - 1 - stored.0)
            }
            _ => format!("in {mode} mode, {owed} bytes are not drained"),
        }
    }

    /// Nothing will be stored any more: whoever waits for it is told.
    fn end_waits(&self) {
        self.shared.stored.modify(|mark| mark.life = LIFE_NONE);
    }

    async fn leave_marker(&self) -> Result<Seq, String> {
        // The committer must not write behind the marker, so it ends first; nothing it still had to do matters, because
        // the marker's pages are all clear.
        self.shared.map_closed.set(true);
        let _writing = self.shared.map_writer.lock().await;
        {
            let mut core = self.shared.core();
            if !core.is_clean() {
                return Err("something was left to do after all".to_owned());
            }
            let stored = core.stored_position().seq;
            core.disks.iter_mut().for_each(|disk| disk.regions.clear_all_settled(stored));
        }
        crate::map::commit_clean_stop(&self.shared).await.map_err(|e| format!("the clean-stop marker failed: {e}"))?;
        Ok(self.shared.core().stored_position().seq)
    }
}

#[cfg(test)]
impl Agent {
    /// Changes that are in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.shared.core().disks.iter().map(|disk| disk.regions.in_flight()).sum()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.core().stopping = true;
        // Release: its partner is the acquire of a writer that wakes up, in the splitter.
        self.shared.dead.store(true, std::sync::atomic::Ordering::Release);
        // Writers that wait for a commit nobody will make wake up, see that the agent is dead, and submit nothing.
        self.shared.committed.set(u64::MAX);
        self.end_waits();
    }
}

fn not_consistent(mode: Mode) -> AgentError {
    let todo = match mode {
        Mode::Bitmap => {
            "writes are not recorded one by one now; bring the process server back and wait for the drain to end"
        }
        Mode::Drain | Mode::Data => "wait until the drain has ended",
    };
    AgentError::NotConsistent { mode: mode.name(), todo }
}

fn first_core(
    config: &AgentConfig,
    loaded: Loaded,
    map_failed: bool,
    now: Timestamp,
    mark_id: [u8; 16],
    rules: Rules,
) -> Core {
    let sequencer = match loaded.start {
        Ok(incarnation) => Sequencer::resume(incarnation, loaded.stored),
        Err(cause) => Sequencer::new(loaded.incarnation, cause, loaded.stored.time),
    };
    let resumed = loaded.start.is_ok();
    let freed = if resumed { loaded.stored } else { LogHead::default() };
    let mut core = Core {
        sequencer,
        queue: Queue::new(loaded.incarnation, freed, config.queue_bytes, config.spool_bytes),
        compares: vec![None; loaded.disks.len()],
        disks: loaded.disks,
        map: MapState::new(loaded.map_version, loaded.generation, map_failed),
        attested: loaded.attested,
        taken: loaded.taken,
        stored: loaded.stored,
        sent: freed.position.seq,
        sent_max: freed.position.seq,
        connection: None,
        carrier: None,
        greeting: false,
        connection_failure: None,
        refusal: None,
        compared_to: None,
        life: 1,
        fresh_stream: false,
        cache_doubted: false,
        inconsistent_since: (!resumed).then_some(now),
        drain_since: None,
        drain_done_bytes: 0,
        removed: loaded.removed,
        stopping: false,
        stopped: false,
        spool_failed: false,
        counters: Counters { incarnations: u64::from(!resumed), ..Counters::default() },
        events: Default::default(),
        flushes: Default::default(),
        rules,
    };
    let text = match loaded.start {
        Ok(incarnation) => {
            format!("started: incarnation {incarnation} goes on behind seq {}", loaded.stored.position.seq)
        }
        Err(cause) => format!(
            "started: new incarnation {} because of {cause:?}, {} bytes to drain",
            loaded.incarnation,
            core.owed_bytes()
        ),
    };
    core.event(now, Severity::Info, EventKind::Started, text);
    for (severity, kind, text) in loaded.events {
        core.event(now, severity, kind, text);
    }
    if resumed && map_failed {
        // Tells the log the map's version, so that the next start cannot take the old file for good.
        core.mark(now, MarkKind::Crash, mark_id, "dirty map lost".to_owned());
    }
    core
}

fn spawn_tasks(shared: &Arc<Shared>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let of = || Arc::clone(shared);
    let (a, b, c, d, e, f) = (of(), of(), of(), of(), of(), of());
    tasks.spawn(async move { crate::map::run_committer(&a).await });
    tasks.spawn(async move { crate::sender::run(&b).await });
    tasks.spawn(async move { crate::drainer::run(&c).await });
    tasks.spawn(async move { crate::spooler::run(&d).await });
    tasks.spawn(async move { crate::flush::run_clearer(&e).await });
    tasks.spawn(async move { crate::watchman::run(&f).await });
    tasks
}
