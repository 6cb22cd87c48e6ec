//! A round: one gateway, one number of machines. They connect, the gateway is killed and replaced, and then come the three
//! parts: mostly idle, all busy, and all busy beside a loud one. After each part everything has to be stored before the next begins,
//! so that the longest delay is counted too.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, bail};
use benches::table_pages;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use transport::{Identity, Role};

use crate::gateway::{Gateway, Used};
use crate::machine::{Load, Machine, Seen};

/// When most machines are idle, one of so many writes.
const IDLE_OF: usize = 50;

/// The idle part takes so long at least: an idle stream looks at the store every 30 s.
const IDLE_MIN: Duration = Duration::from_secs(35);

/// Bytes a second that it writes.
const TRICKLE: f64 = 4096.0;

/// Where the pages of writes come from.
const POOL_BYTES: usize = 32 << 20;

/// How long anything may take that is no part with a length of its own.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often counters are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A quiet while before a part, for what the one before left to do.
const SETTLE: Duration = Duration::from_secs(2);

/// A certificate's life.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// What all rounds have in common.
pub struct Plan {
    pub farshore: PathBuf,
    /// Lines for the gateway's configuration.
    pub settings: String,
    /// How long a part takes.
    pub part: Duration,
    /// Bytes a second of all machines together when all are busy.
    pub bytes: f64,
}

/// What a part came to.
#[derive(Debug, Clone, Default)]
pub struct Part {
    pub seconds: f64,
    /// Resident bytes of the gateway at its end, and at most.
    pub resident: u64,
    pub peak: u64,
    /// What the gateway used.
    pub used: Used,
    /// Seconds from write to `stored`: half and all but a hundredth of the frames of all but the loud machine, and the worst machine's.
    pub half: f64,
    pub most: f64,
    pub worst: f64,
    /// Bytes that the loud machine sent.
    pub loud_bytes: f64,
}

/// What a round came to.
#[derive(Debug, Clone, Default)]
pub struct Round {
    pub machines: usize,
    /// Seconds until all new machines were welcome and their empty drains stored.
    pub connected: f64,
    /// Seconds from a gateway's death until all were welcome to the next one.
    pub again: f64,
    /// CPU seconds of the gateway for that.
    pub again_cpu: f64,
    pub idle: Part,
    pub busy: Part,
    pub loud: Part,
}

/// The machines of a round.
struct Machines {
    seen: Vec<Arc<Seen>>,
    loads: Vec<watch::Sender<Load>>,
    _tasks: JoinSet<()>,
}

impl Machines {
    /// Starts so many, and one that will be loud behind them.
    fn start(gateway: &Gateway, count: usize) -> Result<Self> {
        let (authority, pool) = (gateway.authority()?, Bytes::from(table_pages(POOL_BYTES, 21)));
        let (mut seen, mut loads, mut tasks) = (Vec::new(), Vec::new(), JoinSet::new());
        for number in 0..=count {
            let name = format!("m-{number}").parse()?;
            let issued = authority.issue(Role::Agent, &name, LIFETIME)?;
            let identity = Identity::from_pem(authority.certificate_pem(), &issued.certificate_pem, &issued.key_pem)?;
            let ((load, loaded), one) = (watch::channel(Load::Steady(0.0)), Arc::<Seen>::default());
            let address = gateway.address.clone();
            let machine = Machine::new(number as u64, identity, address, pool.clone(), loaded, one.clone());
            tasks.spawn(machine.run());
            seen.push(one);
            loads.push(load);
        }
        Ok(Self { seen, loads, _tasks: tasks })
    }

    fn put(&self, load: impl Fn(usize) -> Load) {
        self.loads.iter().enumerate().for_each(|(number, sender)| {
            sender.send_replace(load(number));
        });
    }

    async fn until(&self, what: &str, gateway: &Gateway, holds: impl Fn(&Seen) -> bool) -> Result<f64> {
        let begun = Instant::now();
        while let Some(missing) = self.seen.iter().find(|one| !holds(one)) {
            if begun.elapsed() > PATIENCE {
                let count = self.seen.iter().filter(|one| !holds(one)).count();
                bail!("{count} machines are not {what}: {:?}\n{}", missing.failure(), gateway.log());
            }
            sleep(LOOK).await;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// One part: loads are put for its time, then taken away until all is stored.
    async fn part(&self, gateway: &Gateway, length: Duration, load: impl Fn(usize) -> Load) -> Result<Part> {
        sleep(SETTLE).await;
        gateway.forget_peak()?;
        self.seen.iter().for_each(|one| drop(one.take_delays()));
        let loud = self.seen.last().cloned().unwrap_or_default();
        // Relaxed: a counter.
        let (before, begun, loud_bytes) = (gateway.used()?, Instant::now(), loud.bytes.load(Ordering::Relaxed));
        self.put(load);
        sleep(length).await;
        let resident = gateway.resident()?;
        self.put(|_| Load::Steady(0.0));
        // Relaxed: a counter.
        let loud_bytes = (loud.bytes.load(Ordering::Relaxed) - loud_bytes) as f64;
        let seconds = begun.elapsed().as_secs_f64();
        let used = gateway.used()?.since(&before);
        self.until("stored", gateway, Seen::is_settled).await?;
        let part = Part { seconds, resident, peak: gateway.peak()?, used, loud_bytes, ..Part::default() };
        Ok(self.with_delays(part))
    }

    fn with_delays(&self, part: Part) -> Part {
        let (mut all, mut worst) = (Vec::new(), 0.0_f64);
        for one in &self.seen[..self.seen.len() - 1] {
            let mut delays = one.take_delays();
            worst = worst.max(quantile(&mut delays, 0.99));
            all.append(&mut delays);
        }
        Part { half: quantile(&mut all, 0.5), most: quantile(&mut all, 0.99), worst, ..part }
    }
}

/// Of no figures: 0.
fn quantile(figures: &mut [f64], share: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    let at = (figures.len() as f64 * share) as usize;
    figures.get(at.min(figures.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Runs a round.
pub async fn run(plan: &Plan, dir: &Path, count: usize) -> Result<Round> {
    let mut gateway = Gateway::make(&plan.farshore, dir, &plan.settings)?;
    let machines = Machines::start(&gateway, count)?;
    // Relaxed, here and below: counters that are polled.
    let welcome = |times| move |one: &Seen| one.welcomes.load(Ordering::Relaxed) >= times;
    let connected = machines.until("connected", &gateway, welcome(1)).await?;
    let killed = Instant::now();
    gateway.replace()?;
    machines.until("connected again", &gateway, welcome(2)).await?;
    let (again, again_cpu) = (killed.elapsed().as_secs_f64(), gateway.used()?.cpu);
    let each = plan.bytes / count as f64;
    let trickle = |number: usize| Load::Steady(if number % IDLE_OF == IDLE_OF - 1 { TRICKLE } else { 0.0 });
    let busy = |number: usize| Load::Steady(if number < count { each } else { 0.0 });
    let idle = machines.part(&gateway, plan.part.max(IDLE_MIN), trickle).await?;
    eprintln!("{count} machines: connected in {connected:.2} s, again in {again:.2} s; idle done");
    let busy_part = machines.part(&gateway, plan.part, busy).await?;
    let loud = |number: usize| if number < count { busy(number) } else { Load::Loud };
    let loud = machines.part(&gateway, plan.part, loud).await?;
    let round = Round { machines: count, connected, again, again_cpu, idle, busy: busy_part, loud };
    Ok(round)
}
