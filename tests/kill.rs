//! kill -9 at seeded moments: nothing `stored` is lost, what is re-sent is bounded, earlier points stay as they were.
//!
//! `FARSHORE_KILL_ROUNDS` sets the rounds for each role (`cargo xtask soak` sets 500), `FARSHORE_SEED` the seed.

use std::time::Duration;

use crate::harness::judge::{Numbers, REGION_BYTES, keep_point, numbers, wait};
use crate::harness::load::{Load, Writer};
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

fn rounds() -> u64 {
    std::env::var("FARSHORE_KILL_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(ROUNDS)
}

fn load() -> Load {
    Load { in_flight: IN_FLIGHT, start: 0, bytes: WINDOW_BYTES, blocks_max: 16, pace: None }
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
        let writer = Writer::start(&site, load(), seed.fork());
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
    assert_eq!(kept.changed(&site, "after"), None, "a point from before the kills");
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
