//! kill -9 at seeded moments: nothing `stored` is lost, what is re-sent is bounded, earlier points stay as they were.
//!
//! `FARSHORE_KILL_ROUNDS` sets the rounds for each role (`cargo xtask soak` sets 500), `FARSHORE_SEED` the seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nbd::ListenAddress;

use crate::harness::site::assert_same;
use crate::harness::tools::run;
use crate::harness::{Proc, Seed, Site, SiteOptions, eventually};

/// Rounds for each role in continuous integration.
const ROUNDS: u64 = 25;

/// The part of each disk that is written all the time: what a kill may cost is this, not the disk.
const WINDOW_BYTES: u64 = 12 << 20;

/// Size of the larger disk, written in full once.
const DISK_BYTES: u64 = 192 << 20;

/// Operations in flight at once.
const IN_FLIGHT: usize = 8;

/// Bytes of a region of the dirty map, as agents have it by default.
const REGION_BYTES: u64 = 1 << 20;

fn rounds() -> u64 {
    std::env::var("FARSHORE_KILL_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(ROUNDS)
}

/// A client that writes to both disks until it is told to stop, reconnecting when its server dies.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(site: &Site, mut seed: Seed) -> Writer {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let disks = ["root", "data"].map(|disk| (site.nbd("db", disk), disk));
        let flags = (stop.clone(), written.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
            // Relaxed: a flag polled in a loop and a count for display; nothing else is published through them.
            while !flags.0.load(Ordering::Relaxed) {
                let _served_again_later = runtime.block_on(write_until_error(&disks, &mut seed, &flags.0, &flags.1));
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        Writer { stop, written, thread: Some(thread) }
    }

    fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("writer does not panic");
        }
        self.written.load(Ordering::Relaxed)
    }
}

/// Keeps several operations in flight on both disks, overlapping ones too, until one fails.
async fn write_until_error(
    disks: &[(ListenAddress, &'static str); 2],
    seed: &mut Seed,
    stop: &AtomicBool,
    written: &AtomicU64,
) -> std::io::Result<()> {
    let clients =
        [nbd::Client::connect(&disks[0].0, disks[0].1).await?, nbd::Client::connect(&disks[1].0, disks[1].1).await?];
    let lanes = (0..IN_FLIGHT).map(|_| write_lane(&clients, seed.fork(), stop, written));
    futures::future::try_join_all(lanes).await.map(|_| ())
}

/// One operation after the other.
async fn write_lane(
    clients: &[nbd::Client; 2],
    mut seed: Seed,
    stop: &AtomicBool,
    written: &AtomicU64,
) -> std::io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let client = &clients[seed.below(2) as usize];
        let blocks = WINDOW_BYTES / 4096;
        let (at, len) = (seed.below(blocks - 16) * 4096, (1 + seed.below(16)) * 4096);
        match seed.below(20) {
            0 => client.flush().await?,
            1 => client.trim(at, len as u32).await?,
            2 => client.write_zeroes(at, len as u32, false).await?,
            _ => {
                let fill = seed.next().to_le_bytes();
                let block: Vec<u8> = fill.iter().copied().cycle().take(len as usize).collect();
                client.write(at, block.into(), seed.below(30) == 0).await?;
            }
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// What the agent says, in numbers.
struct Numbers {
    stored: u64,
    queue: u64,
    to_drain: u64,
    active: u64,
    drained: u64,
    resent: u64,
}

fn numbers(site: &Site) -> Numbers {
    let status = site.agent_status("db").expect("agent answers");
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    Numbers {
        stored: number(&status["stored"]["seq"]),
        queue: number(&status["queue_bytes_used"]) + number(&status["spool_bytes_used"]),
        to_drain: number(&status["to_drain_bytes"]),
        active: number(&status["active_regions"]),
        drained: number(&status["counters"]["drained_bytes"]),
        resent: number(&status["counters"]["resent_bytes"]),
    }
}

fn wait(duration: Duration) {
    let start = Instant::now();
    while let Some(left) = duration.checked_sub(start.elapsed()) {
        std::thread::park_timeout(left);
    }
}

/// A point kept from before the kills, with its bytes.
struct Kept {
    id: String,
    files: Vec<(String, std::path::PathBuf)>,
}

fn keep_point(site: &Site, name: &str) -> Kept {
    let mark = site.json(&["mark", "db", "--label", name]);
    let id = mark["id"].as_str().expect("a mark has an id").to_owned();
    let files = site.restore("db", &format!("id:{id}"), name);
    Kept { id, files }
}

fn assert_unchanged(site: &Site, kept: &Kept, to: &str) {
    let again = site.restore("db", &format!("id:{}", kept.id), to);
    for ((_, before), (_, now)) in kept.files.iter().zip(&again) {
        assert_same(before, now);
    }
    std::fs::remove_dir_all(site.path(to)).expect("restored files are removed");
}

/// Kills `role` once for each round under load; checks watermark and re-sent bytes each time, contents at the end.
fn kill_rounds(role: &[&str], seed: u64) {
    let machines = vec![("db", vec![("root", DISK_BYTES), ("data", 32 << 20)])];
    let site = Site::new(SiteOptions { machines, ..SiteOptions::default() });
    let mut seed = Seed::from_environment(seed);
    let mut server = Some(site.start(&["process-server"]));
    let mut applier = Some(site.start(&["applier"]));
    let mut agent = Some(site.start_agent("db"));
    let fill = format!("write -P 0x6b 0 {DISK_BYTES}");
    run("qemu-io", &["-f", "raw", "-c", &fill, "-c", "flush", &site.nbd_uri("db", "root")]);
    site.wait_stored("db");
    wait_cold(&site);
    let kept = keep_point(&site, "before");
    let mut worst_resent = 0;
    for round in 0..rounds() {
        let writer = Writer::start(&site, seed.fork());
        wait(Duration::from_millis(20 + seed.below(300)));
        let before = numbers(&site);
        let slot: &mut Option<Proc> = match role[0] {
            "agent" => &mut agent,
            "process-server" => &mut server,
            _ => &mut applier,
        };
        slot.take().expect("role runs").kill();
        wait(Duration::from_millis(seed.below(100)));
        *slot = Some(if role[0] == "agent" { site.start_agent("db") } else { site.start(role) });
        wait(Duration::from_millis(seed.below(100)));
        let operations = writer.finish();
        let head = site.wait_stored("db");
        assert!(head >= before.stored, "round {round}: stored {} was lost: the log ends at {head}", before.stored);
        worst_resent = worst_resent.max(check_resent(&site, role[0], round, &before));
        eprintln!("round {round}: {operations} operations, stored {} then {head}", before.stored);
    }
    assert_unchanged(&site, &kept, "after");
    let restored = site.restore("db", "latest", "latest");
    site.assert_equals_source("db", &restored);
    assert_eq!(site.run(&["verify", "db"]).code, 0, "the log is whole after every kill");
    eprintln!("{}: {} kills, most bytes sent again in one round: {worst_resent}", role[0], rounds());
}

/// Waits until the regions of the fill are no longer active: they are stored and flushed.
fn wait_cold(site: &Site) {
    eventually("the filled regions are cleared", || match numbers(site).active {
        active if active * REGION_BYTES < WINDOW_BYTES => Ok(()),
        active => Err(format!("{active} regions are active")),
    });
}

/// P4: what is sent again is at most what was not stored, plus the active regions. Between the look at the numbers and
/// the kill a few more writes come in: at most one region each for the disks' writers.
fn check_resent(site: &Site, role: &str, round: u64, before: &Numbers) -> u64 {
    let now = numbers(site);
    let (resent, bound) = match role {
        // A new process counts from zero; its drain reads what its predecessor left active.
        "agent" => (now.drained, before.queue + before.to_drain + (before.active + SLACK_REGIONS) * REGION_BYTES),
        "process-server" => (now.resent - before.resent, before.queue + SLACK_REGIONS * REGION_BYTES),
        _ => (now.resent - before.resent, 0),
    };
    assert!(bound < DISK_BYTES / 2, "round {round}: the bound {bound} says nothing about a disk of {DISK_BYTES}");
    assert!(resent <= bound, "round {round}: {resent} bytes sent again, more than the {bound} that P4 allows");
    resent
}

/// Regions that may become active between the look and the kill: one control exchange takes a few milliseconds.
const SLACK_REGIONS: u64 = 8;

#[test]
fn kill_agent() {
    kill_rounds(&["agent", "db"], 101);
}

#[test]
fn kill_process_server() {
    kill_rounds(&["process-server"], 102);
}

#[test]
fn kill_applier() {
    kill_rounds(&["applier"], 103);
}
