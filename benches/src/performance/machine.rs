//! Where and how a report was measured: the machine, what else it did, the commands and the peers' versions.

use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, Result};

use crate::Bench;
use crate::measure::own_cpu;
use crate::peers::PEERS;

/// CPU time of the machine and of this run, to tell afterwards how much others took.
pub struct Load {
    /// Ticks of all CPUs in all states, and of those the idle ones.
    all: u64,
    idle: u64,
    own: f64,
}

impl Load {
    pub fn now() -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat has a line of all CPUs")?;
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        let idle = ticks.get(3).zip(ticks.get(4)).map(|(idle, waiting)| idle + waiting);
        Ok(Self { all: ticks.iter().sum(), idle: idle.context("/proc/stat counts idle time")?, own: own_cpu()? })
    }

    /// The share of the machine's CPU time since `before` that went to processes of others.
    fn others_since(&self, before: &Load) -> f64 {
        let all = (self.all - before.all) as f64;
        let busy = all - (self.idle - before.idle) as f64;
        // Ticks are hundredths of a second.
        ((busy - (self.own - before.own) * 100.0) / all).max(0.0)
    }
}

/// The head of the report.
pub fn describe(bench: &Bench, mib: u64, before: &Load) -> Result<String> {
    let others = Load::now()?.others_since(before);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(':').nth(1));
    let memory = read("/proc/meminfo");
    let kib = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let cores = std::thread::available_parallelism()?;
    let file_system = Command::new("df").arg("--output=fstype").arg(&bench.dir).output()?;
    let mb = |bytes: u64| bytes / 1_000_000;
    let mut text = format!(
        "    cargo xtask bench -- --runs {} --mib {mib}\n\n\
         {cores} cores ({}), {} GiB of memory, Linux {}, {}. The program of the {} profile. Other processes took {:.0} % of the \
         machine's CPU time during the run{}.\n\nInputs: an ext4 image of {mib} MiB with files of /usr and a database, {} MB of it \
         not zeros; the same image later, with {} MB of 4 KiB blocks that differ; {} MiB that do not compress; {} MiB of database \
         pages. All are read from a warm page cache. {} rounds, in which sides take turns; \"range\" is the least and the most of them.\n\n",
        bench.runs,
        model.unwrap_or("of an unknown model").trim(),
        kib.unwrap_or(0) >> 20,
        read("/proc/sys/kernel/osrelease").trim(),
        String::from_utf8_lossy(&file_system.stdout).lines().last().unwrap_or("an unknown file system").trim(),
        bench.farshore.parent().and_then(|dir| dir.file_name()).unwrap_or_default().to_string_lossy(),
        others * 100.0,
        if others > 0.1 { ": it was shared, and wall times suffer from that" } else { "" },
        mb(bench.inputs.data),
        mb(bench.inputs.changed.iter().sum()),
        mib / 2,
        mib / 4,
        bench.runs,
    );
    text += "| peer | version | command |\n|---|---|---|\n";
    for peer in &PEERS {
        let version = if peer.installed() { peer.said_version() } else { "**missing: not installed**".to_owned() };
        writeln!(text, "| {} | {version} | `{}` |", peer.name, peer.line.replace('|', "\\|"))?;
    }
    Ok(text)
}
