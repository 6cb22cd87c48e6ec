//! What the write-splitter costs a client: an agent's export beside nbdkit's file plugin, under fio.
//!
//! In each round, of 4 KiB writes at random places: one at a time and 32 at a time, as fast as they go, of nbdkit, of an agent
//! whose process server is away (bitmap mode: it only remembers what changed) and of one that replicates; then a quarter of what
//! nbdkit did at most, at a fixed rate, with how long a write takes and how far behind `stored` is. fio is the client of all,
//! on the same cores. Regions are warm: each is written once before. What a cold one costs is [`crate::cold`]'s to say.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::Bench;
use crate::delta::Nbdkit;
use crate::fio::{Job, Load, SECONDS, fio};
use crate::measure::Spread;
use crate::report::{Report, Table, Target};
use crate::site::{DISK, MACHINE, Role, Site};

/// Share of nbdkit's most that the fixed load is.
const LOAD: f64 = 0.25;

/// One side's jobs of one round.
#[derive(Debug, Clone, Copy)]
struct Round {
    one: Job,
    many: Job,
    sequential: Job,
    /// At the fixed rate.
    fixed: Option<Job>,
    /// CPU microseconds a write, under `many`.
    cpu: f64,
    /// Age in seconds of the oldest write that is not stored, at the end of the fixed load.
    lag: Option<f64>,
}

/// An agent of a site, which replicates or cannot.
struct Protected {
    site: Site,
    agent: Role,
    gateway: Option<Role>,
}

impl Protected {
    fn start(bench: &Bench, source: &Path, replicated: bool) -> Result<Self> {
        std::fs::copy(&bench.inputs.database, source)?;
        let site = Site::make(bench, "splitter", source)?;
        let gateway = replicated.then(|| site.start_process_server()).transpose()?;
        let mut agent = site.start(&["agent", MACHINE])?;
        match replicated {
            true => _ = site.wait_stored(&mut agent)?,
            false => agent.until("the export is served", || Ok(site.path("nbd.sock").exists()))?,
        }
        Ok(Self { site, agent, gateway })
    }

    fn status(&self) -> Result<Value> {
        self.site.status(&format!("agent-{MACHINE}"))
    }

    fn cpu(&self) -> Result<f64> {
        Ok(self.agent.cpu()? + self.gateway.as_ref().map_or(Ok(0.0), Role::cpu)?)
    }

    fn stop(self) -> Result<()> {
        self.agent.stop()?;
        self.gateway.map_or(Ok(()), Role::stop)?;
        Ok(std::fs::remove_dir_all(&self.site.dir)?)
    }
}

fn nbdkit(bench: &Bench, source: &Path) -> Result<Round> {
    std::fs::copy(&bench.inputs.database, source)?;
    let socket = bench.dir.join("nbdkit.sock");
    let served = Nbdkit::start(source, &socket)?;
    let run = |load| fio(&bench.dir, &socket, "", &load);
    let (sequential, one, cpu) = (run(Load::Sequential)?, run(Load::Depth(1))?, served.cpu()?);
    let many = run(Load::Depth(32))?;
    let cpu = (served.cpu()? - cpu) / (many.iops * f64::from(SECONDS)) * 1e6;
    let fixed = Some(run(Load::Rate((many.iops * LOAD) as u32))?);
    Ok(Round { one, many, sequential, fixed, cpu, lag: None })
}

fn agent(bench: &Bench, source: &Path, replicated: bool, most: f64) -> Result<Round> {
    let mut protected = Protected::start(bench, source, replicated)?;
    let socket = protected.site.path("nbd.sock");
    let run = |load| fio(&bench.dir, &socket, DISK, &load);
    // Once over everything, so that every region is warm; without a process server this fills the queue, and it is bitmap mode.
    let sequential = run(Load::Sequential)?;
    let (one, cpu) = (run(Load::Depth(1))?, protected.cpu()?);
    let many = run(Load::Depth(32))?;
    let cpu = (protected.cpu()? - cpu) / (many.iops * f64::from(SECONDS)) * 1e6;
    let (mut fixed, mut lag) = (None, None);
    if replicated {
        protected.site.wait_stored(&mut protected.agent)?;
        let drained = protected.status()?["counters"]["drained_bytes"].clone();
        fixed = Some(run(Load::Rate((most * LOAD) as u32))?);
        let status = protected.status()?;
        lag = status["rpo_seconds"].as_f64();
        let drained = status["counters"]["drained_bytes"] == drained;
        ensure!(status["mode"] == "data" && drained, "the fixed load did not stay in data mode");
    } else {
        let mode = protected.status()?["mode"].clone();
        ensure!(mode == "bitmap", "without a process server it is bitmap mode, and not {mode}");
    }
    protected.stop()?;
    Ok(Round { one, many, sequential, fixed, cpu, lag })
}

/// Runs the section.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let source = bench.dir.join("protected");
    let mut sides: [(&str, Vec<Round>); 3] =
        [("nbdkit file", vec![]), ("agent, bitmap mode", vec![]), ("agent and gateway, replicating", vec![])];
    for _ in 0..bench.runs {
        let plain = nbdkit(bench, &source)?;
        sides[0].1.push(plain);
        sides[1].1.push(agent(bench, &source, false, plain.many.iops)?);
        sides[2].1.push(agent(bench, &source, true, plain.many.iops)?);
    }
    std::fs::remove_file(&source)?;
    let of = |side: usize, figure: fn(&Round) -> f64| Spread::of(sides[side].1.iter().map(figure)).median;
    for (what, figure) in [
        ("4 KiB, one at a time", (|round| round.one.iops) as fn(&Round) -> f64),
        ("4 KiB, 32 at a time", |round| round.many.iops),
        ("1 MiB in sequence", |round| round.sequential.iops),
    ] {
        let share = of(1, figure) / of(0, figure) * 100.0;
        report.claim(format!("write-splitter in bitmap mode: {what}, of nbdkit's"), Target::AtLeast(90.0), share, " %");
    }
    let p99 = |round: &Round| round.fixed.map_or(f64::NAN, |job| job.p99);
    report.claim(
        "write-splitter at 25 % load: p99 added to nbdkit's",
        Target::AtMost(100.0),
        of(2, p99) - of(0, p99),
        " µs",
    );
    report.section("Write-splitter", &text(bench), &table(&sides));
    Ok(())
}

fn text(bench: &Bench) -> String {
    format!(
        "fio (nbd engine) writes to a disk of {} MiB over a Unix socket for {SECONDS} s each: medians of {} rounds. The fixed load is \
         {:.0} % of nbdkit's IOPS with 32 in flight; the agent stayed in data mode and dropped nothing (checked). CPU is that of the \
         server's side under 32 in flight, gateway included.",
        bench.inputs.bytes >> 22,
        bench.runs,
        LOAD * 100.0
    )
}

fn table(sides: &[(&str, Vec<Round>)]) -> Table {
    let mut table = Table::new(&[
        "",
        "IOPS, 1 at a time",
        "IOPS, 32 at a time",
        "1 MiB in sequence, MB/s",
        "CPU µs a write",
        "fixed load: IOPS",
        "p50 µs",
        "p99 µs",
        "lag s",
    ]);
    for (name, rounds) in sides {
        let cell = |digits: usize, figure: &dyn Fn(&Round) -> Option<f64>| {
            let figures: Vec<f64> = rounds.iter().filter_map(figure).collect();
            if figures.is_empty() { String::new() } else { format!("{:.digits$}", Spread::of(figures).median) }
        };
        table.row([
            (*name).to_owned(),
            cell(0, &|round| Some(round.one.iops)),
            cell(0, &|round| Some(round.many.iops)),
            cell(0, &|round| Some(round.sequential.iops * 1.048_576)),
            cell(1, &|round| Some(round.cpu)),
            cell(0, &|round| round.fixed.map(|job| job.iops)),
            cell(0, &|round| round.fixed.map(|job| job.p50)),
            cell(0, &|round| round.fixed.map(|job| job.p99)),
            cell(2, &|round| round.lag),
        ]);
    }
    table
}
