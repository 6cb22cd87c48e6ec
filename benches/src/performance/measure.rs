//! What a side of a comparison cost, and medians with ranges of several rounds.
//!
//! CPU time is user and system time of all processes of a side: of children that were waited for, or of roles that still
//! run. It comes in the kernel's ticks of 10 ms, which is fine enough for sides that take a second.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Clock ticks of /proc a second, on every Linux that there is.
const TICKS: f64 = 100.0;

/// How often the memory of a program is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What one round of a side took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Seconds from begin to end.
    pub wall: f64,
    /// Seconds of CPU time, user and system, of all its processes.
    pub cpu: f64,
    /// Most resident bytes, all its processes together.
    pub peak: u64,
    /// Bytes it stored.
    pub stored: u64,
}

/// All rounds of a side.
#[derive(Debug, Clone, Default)]
pub struct Side {
    /// How tables call it.
    pub name: String,
    /// One for each round.
    pub costs: Vec<Cost>,
}

/// The middle of several figures, and how far they range.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        };
        Self { median, low: sorted[0], high: sorted[sorted.len() - 1] }
    }
}

impl Side {
    pub fn wall(&self) -> Spread {
        Spread::of(self.costs.iter().map(|cost| cost.wall))
    }

    pub fn cpu(&self) -> Spread {
        Spread::of(self.costs.iter().map(|cost| cost.cpu))
    }

    pub fn peak(&self) -> u64 {
        self.costs.iter().map(|cost| cost.peak).max().unwrap_or(0)
    }

    pub fn stored(&self) -> f64 {
        Spread::of(self.costs.iter().map(|cost| cost.stored as f64)).median
    }
}

/// In ascending order.
pub fn sorted(mut figures: Vec<f64>) -> Vec<f64> {
    figures.sort_by(f64::total_cmp);
    figures
}

/// Of figures in ascending order; not a number if there are none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A side: its name, and what runs one round of it.
pub type Runner<'a> = (String, Box<dyn FnMut() -> Result<Cost> + 'a>);

/// Runs all sides once in each round, beginning with another one each time.
pub fn rounds(runs: usize, mut sides: Vec<Runner<'_>>) -> Result<Vec<Side>> {
    let mut done: Vec<Side> = sides.iter().map(|(name, _)| Side { name: name.clone(), costs: Vec::new() }).collect();
    for round in 0..runs {
        for turn in 0..sides.len() {
            let at = (round + turn) % sides.len();
            settle()?;
            let (name, run) = &mut sides[at];
            let cost = run().with_context(|| format!("{name}, round {}", round + 1))?;
            eprintln!("  {name}: {:.2} s, CPU {:.2} s, {} MB stored", cost.wall, cost.cpu, cost.stored / 1_000_000);
            done[at].costs.push(cost);
        }
    }
    Ok(done)
}

/// Writes back what the side before has left in the kernel's cache, so that it is not the next one's to pay.
fn settle() -> Result<()> {
    let status = Command::new("sync").status().context("cannot run sync")?;
    if status.success() { Ok(()) } else { bail!("sync failed: {status}") }
}

/// Runs a line of the shell in a directory, to its end.
pub fn shell(line: &str, dir: &Path) -> Result<Cost> {
    let mut command = Command::new("sh");
    command.args(["-e", "-c", line]).current_dir(dir).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(std::fs::File::create(dir.join("stderr"))?);
    let (begun, cpu) = (Instant::now(), children_cpu()?);
    let mut child = command.spawn().context("cannot start sh")?;
    let memory = Watch::start(child.id());
    let status = child.wait()?;
    let wall = begun.elapsed().as_secs_f64();
    let cost = Cost { wall, cpu: children_cpu()? - cpu, peak: memory.stop(), stored: 0 };
    if !status.success() {
        bail!("{line}: {status}: {}", std::fs::read_to_string(dir.join("stderr"))?);
    }
    Ok(cost)
}

/// Looks at the memory of a process and its descendants until stopped.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Watch {
    fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            // Relaxed: a flag polled in a loop; nothing else is published through it.
            while !flag.load(Ordering::Relaxed) {
                peak = peak.max(resident_tree(pid));
                std::thread::park_timeout(LOOK);
            }
            peak
        });
        Self { stop, thread }
    }

    fn stop(self) -> u64 {
        // Relaxed: see the loop that reads it.
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or(0)
    }
}

/// Resident bytes of a process and all below it; those that end meanwhile count as nothing.
fn resident_tree(pid: u32) -> u64 {
    let own = memory_of(pid, "VmRSS:").unwrap_or(0);
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = lists.flat_map(|list| pids(&list)).collect();
    own + children.into_iter().map(resident_tree).sum::<u64>()
}

fn pids(list: &str) -> Vec<u32> {
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The most memory a running child has had.
pub fn peak_of(child: &Child) -> Result<u64> {
    memory_of(child.id(), "VmHWM:")
}

fn memory_of(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// CPU seconds of a running child so far.
pub fn cpu_of(child: &Child) -> Result<f64> {
    cpu_fields(&format!("/proc/{}/stat", child.id()), [11, 12])
}

/// CPU seconds of all children that were waited for.
pub fn children_cpu() -> Result<f64> {
    cpu_fields("/proc/self/stat", [13, 14])
}

/// CPU seconds of this process and of all children that were waited for.
pub fn own_cpu() -> Result<f64> {
    Ok(cpu_fields("/proc/self/stat", [11, 12])? + children_cpu()?)
}

fn cpu_fields(path: &str, fields: [usize; 2]) -> Result<f64> {
    let stat = std::fs::read_to_string(path)?;
    let (_, rest) = stat.rsplit_once(") ").context("a stat of /proc has a name in parentheses")?;
    let values: Vec<&str> = rest.split(' ').collect();
    let ticks = |at: usize| values.get(at).and_then(|field| field.parse::<u64>().ok()).context("a stat has times");
    Ok((ticks(fields[0])? + ticks(fields[1])?) as f64 / TICKS)
}

/// Bytes of a file, or of all files below a directory, as an object store would count them.
pub fn bytes_below(path: &Path) -> Result<u64> {
    let meta = std::fs::symlink_metadata(path).with_context(|| format!("{} is not there", path.display()))?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    std::fs::read_dir(path)?.map(|entry| bytes_below(&entry?.path())).sum()
}

/// An empty directory, whatever was there.
pub fn empty_dir(path: &Path) -> Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    Ok(std::fs::create_dir_all(path)?)
}
