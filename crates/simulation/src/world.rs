//! Simulated hosts under one virtual clock.
//!
//! ```text
//!   tick:  clock += 2 ms ─► parcels that are due arrive ─► every host that runs and is not paused runs for 2 ms
//! ```
//! Each host is a current-thread runtime of its own with paused time, so that a crash is exact: dropping the runtime drops
//! every task at whatever await it stands, as a kill does. One thread runs them all in turn; whatever they share (network,
//! store, disks) lives outside and survives them. Nothing here reads a real clock, and the order of hosts within a tick
//! comes from the seed: the same seed gives the same run.
//!
//! A paused host is a stopped process: its clock goes on, and when it runs again all its timers are due at once. Within
//! the tick in which a host dies at a failpoint the rest of it may still be polled, so everything a host can touch the
//! outside with asks [`Boot::alive`] first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use store::SplitMix64;
use tokio::runtime::{Builder, Runtime};

use crate::network::Network;
use crate::rng::derive;

/// One step of virtual time.
pub const TICK: Duration = Duration::from_millis(2);

/// Memory order of whatever simulated hosts share. Relaxed: one thread runs them all, so nothing needs a partner.
pub const ONE_THREAD: Ordering = Ordering::Relaxed;

/// Number of a host.
pub type HostId = usize;

/// Virtual time in microseconds since the start.
#[derive(Debug, Clone, Default)]
pub struct VirtualClock(Arc<AtomicU64>);

impl VirtualClock {
    /// Now.
    pub fn micros(&self) -> u64 {
        self.0.load(ONE_THREAD)
    }
}

/// One life of a host: what its parts hold to know whether it still lives.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Which host.
    pub host: HostId,
    /// Counts the lives of the host.
    pub number: u64,
    pub(crate) alive: Arc<AtomicBool>,
}

impl Boot {
    /// Whether this life goes on.
    pub fn alive(&self) -> bool {
        self.alive.load(ONE_THREAD)
    }

    /// Returns while the host lives; after its death never.
    pub async fn live(&self) {
        if !self.alive() {
            std::future::pending::<()>().await;
        }
    }
}

struct Host {
    name: String,
    boot: Boot,
    runtime: Option<Runtime>,
    paused: bool,
    lag: Duration,
}

/// A wish to let a host die at a named step.
#[derive(Debug, Default)]
struct FailpointPlan {
    /// Host, step, and how often it is still passed.
    wanted: Option<(HostId, &'static str, u32)>,
    /// The host that runs now.
    current: Option<Boot>,
    /// Died there, to be buried after the tick.
    died: Option<(HostId, &'static str)>,
    /// Steps seen on each host since this was last asked.
    seen: std::collections::BTreeMap<&'static str, u64>,
}

/// All hosts, and what lies between them.
pub struct World {
    hosts: Vec<Host>,
    clock: VirtualClock,
    /// What lies between the hosts.
    pub network: Network,
    rng: SplitMix64,
    failpoints: Arc<Mutex<FailpointPlan>>,
}

impl World {
    /// An empty world under a seed.
    pub fn new(seed: u64) -> Self {
        let clock = VirtualClock::default();
        let failpoints = Arc::new(Mutex::new(FailpointPlan::default()));
        watch_failpoints(&failpoints);
        Self {
            hosts: Vec::new(),
            network: Network::new(derive(seed, "network"), clock.clone()),
            clock,
            rng: derive(seed, "world"),
            failpoints,
        }
    }

    /// Adds a host that is switched off.
    pub fn add_host(&mut self, name: impl Into<String>) -> HostId {
        let host = self.hosts.len();
        let boot = Boot { host, number: 0, alive: Arc::default() };
        self.hosts.push(Host { name: name.into(), boot, runtime: None, paused: false, lag: Duration::ZERO });
        host
    }

    /// The virtual clock.
    pub fn clock(&self) -> &VirtualClock {
        &self.clock
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.clock.micros())
    }

    /// Name of a host.
    pub fn name(&self, host: HostId) -> &str {
        &self.hosts[host].name
    }

    /// Whether the host is switched on.
    pub fn is_up(&self, host: HostId) -> bool {
        self.hosts[host].runtime.is_some()
    }

    /// Whether the host is stopped in mid-run.
    pub fn is_paused(&self, host: HostId) -> bool {
        self.hosts[host].paused
    }

    /// Counts the lives of a host.
    pub fn boot_number(&self, host: HostId) -> u64 {
        self.hosts[host].boot.number
    }

    /// Switches a host on; it must be off.
    pub fn boot(&mut self, host: HostId) -> Boot {
        let slot = &mut self.hosts[host];
        assert!(slot.runtime.is_none(), "{} is up already", slot.name);
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        slot.runtime = Some(runtime.expect("a runtime without I/O needs nothing that can fail"));
        slot.boot = Boot { host, number: slot.boot.number + 1, alive: Arc::new(AtomicBool::new(true)) };
        (slot.paused, slot.lag) = (false, Duration::ZERO);
        slot.boot.clone()
    }

    /// Kills everything on a host. `silently` is a power cut: nobody hears of it. Otherwise its kernel closes what it had
    /// open, as after a kill -9.
    pub fn crash(&mut self, host: HostId, silently: bool) {
        let slot = &mut self.hosts[host];
        slot.boot.alive.store(false, ONE_THREAD);
        let runtime = slot.runtime.take();
        self.network.host_died(host, silently);
        drop(runtime);
    }

    /// Stops a host in mid-run, or lets it go on.
    pub fn pause(&mut self, host: HostId, paused: bool) {
        self.hosts[host].paused = paused;
    }

    /// Starts a task on a host that is up.
    pub fn spawn<F>(&self, host: HostId, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some(runtime) = &self.hosts[host].runtime {
            runtime.spawn(task);
        }
    }

    /// The handle of a host's runtime, for work that belongs to it and is begun elsewhere.
    pub fn handle(&self, host: HostId) -> Option<tokio::runtime::Handle> {
        self.hosts[host].runtime.as_ref().map(|runtime| runtime.handle().clone())
    }

    /// Asks something of a host that is up, outside of time.
    pub fn ask<T>(&self, host: HostId, question: impl FnOnce() -> T) -> Option<T> {
        let runtime = self.hosts[host].runtime.as_ref()?;
        let _context = runtime.enter();
        Some(question())
    }

    /// Runs a task on a host to its end while the world goes on. None when it takes longer than `limit`, or the host dies.
    pub fn complete<T, F>(&mut self, host: HostId, limit: Duration, task: F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (answer, mut receiver) = tokio::sync::oneshot::channel();
        self.spawn(host, async move {
            let _nobody_waits = answer.send(task.await);
        });
        let until = self.elapsed() + limit;
        while self.elapsed() < until {
            self.tick();
            match receiver.try_recv() {
                Ok(value) => return Some(value),
                Err(tokio::sync::oneshot::error::TryRecvError::Empty) => {}
                Err(tokio::sync::oneshot::error::TryRecvError::Closed) => return None,
            }
        }
        None
    }

    /// One step of time. Returns the host that died at a failpoint in it, if one did.
    pub fn tick(&mut self) -> Option<(HostId, &'static str)> {
        self.clock.0.fetch_add(u64::try_from(TICK.as_micros()).expect("a small number"), ONE_THREAD);
        self.network.deliver();
        let count = self.hosts.len();
        let first = usize::try_from(self.rng.below(count.max(1) as u64)).expect("an index");
        for turn in 0..count {
            self.run_host((first + turn) % count);
        }
        let died = lock(&self.failpoints).died.take();
        if let Some((host, _)) = died {
            self.crash(host, false);
        }
        died
    }

    fn run_host(&mut self, host: HostId) {
        let slot = &mut self.hosts[host];
        let Some(runtime) = &slot.runtime else { return };
        if slot.paused {
            slot.lag += TICK;
            return;
        }
        let lag = std::mem::take(&mut slot.lag);
        lock(&self.failpoints).current = Some(slot.boot.clone());
        runtime.block_on(async move {
            if !lag.is_zero() {
                tokio::time::advance(lag).await;
            }
            tokio::time::sleep(TICK).await;
        });
        lock(&self.failpoints).current = None;
    }

    /// Lets `host` die when it reaches a step for the `nth` time from now.
    pub fn die_at(&self, host: HostId, step: &'static str, nth: u32) {
        lock(&self.failpoints).wanted = Some((host, step, nth.max(1)));
    }

    /// Nobody dies at a failpoint any more.
    pub fn forget_failpoints(&self) {
        lock(&self.failpoints).wanted = None;
    }

    /// How often each step was reached so far.
    pub fn steps_seen(&self) -> std::collections::BTreeMap<&'static str, u64> {
        lock(&self.failpoints).seen.clone()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        probe::on_this_thread(None);
        for host in 0..self.hosts.len() {
            self.crash(host, true);
        }
    }
}

fn lock(plan: &Arc<Mutex<FailpointPlan>>) -> std::sync::MutexGuard<'_, FailpointPlan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears of every failpoint that any host of this thread reaches.
fn watch_failpoints(plan: &Arc<Mutex<FailpointPlan>>) {
    let plan = plan.clone();
    probe::on_this_thread(Some(Box::new(move |step| {
        let mut plan = lock(&plan);
        *plan.seen.entry(step).or_default() += 1;
        let Some(current) = plan.current.clone() else { return false };
        if !current.alive() {
            return true;
        }
        let Some((host, wanted, left)) = plan.wanted else { return false };
        if host != current.host || wanted != step {
            return false;
        }
        if left > 1 {
            plan.wanted = Some((host, wanted, left - 1));
            return false;
        }
        plan.wanted = None;
        plan.died = Some((host, step));
        current.alive.store(false, ONE_THREAD);
        true
    })));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_drops_every_task_where_it_stands() {
        let mut world = World::new(1);
        let host = world.add_host("a");
        world.boot(host);
        let count = Arc::new(AtomicU64::new(0));
        let counting = count.clone();
        world.spawn(host, async move {
            loop {
                waiting::pass(Duration::from_millis(10)).await;
                counting.fetch_add(1, ONE_THREAD);
            }
        });
        (0..100).for_each(|_| {
            world.tick();
        });
        let before = count.load(ONE_THREAD);
        assert!((15..=20).contains(&before), "{before}");
        world.crash(host, true);
        (0..100).for_each(|_| {
            world.tick();
        });
        assert_eq!(count.load(ONE_THREAD), before);
    }

    #[test]
    fn after_a_pause_all_timers_are_due_at_once() {
        let mut world = World::new(1);
        let host = world.add_host("a");
        world.boot(host);
        let woken = Arc::new(AtomicBool::new(false));
        let flag = woken.clone();
        world.spawn(host, async move {
            waiting::pass(Duration::from_secs(5)).await;
            flag.store(true, ONE_THREAD);
        });
        world.tick();
        world.pause(host, true);
        (0..5_000).for_each(|_| {
            world.tick();
        });
        assert!(!woken.load(ONE_THREAD), "a stopped process does nothing");
        world.pause(host, false);
        world.tick();
        assert!(woken.load(ONE_THREAD), "its clock went on");
    }
}
