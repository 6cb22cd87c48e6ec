//! Every failpoint of `probe::FAILPOINTS`, one after the other: the process dies at that step under load, starts again
//! without it, and everything is as promised.
//!
//! After each death, once all is stored: the point kept from before it is unchanged, `latest` equals the sources, `verify`
//! finds the log whole, and no more was sent again than P4 allows. A step that is never reached fails the test, so each
//! has the provocation it needs. Steps that many operations pass are died at again at a later, seeded pass.
//!
//! The roles have one site and one test each, so that they run side by side. `FARSHORE_SEED` sets the seed,
//! `FARSHORE_ONLY` restricts the table to names that contain a text.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::judge::{Kept, Numbers, REGION_BYTES, keep_point, numbers};
use crate::harness::load::{Load, Writer};
use crate::harness::site::difference;
use crate::harness::tools::run;
use crate::harness::{PATIENCE, Proc, Seed, Site, SiteOptions, eventually};

/// Disks of the machine, with their sizes; the first is full of data from the start.
const DISKS: [(&str, u64); 2] = [("root", 48 << 20), ("data", 16 << 20)];

/// How a step is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Provocation {
    /// Writes are enough.
    Load,
    /// A start after a kill under load.
    StartAfterKill,
    /// A start after a clean stop.
    StartAfterCleanStop,
    /// A clean stop.
    CleanStop,
    /// Nobody writes: regions become cold.
    Rest,
    /// The process server is away.
    Outage,
    /// The process server comes back after queue and spool were full.
    Recovery,
    /// A compare that finds a difference.
    Compare,
    /// The process server starts again, and the stream goes on in another epoch.
    NewEpoch,
    /// Epochs that the journal window has left, with many segments from which points read.
    Passed,
}

use Provocation::{
    CleanStop, Compare, Load as UnderLoad, NewEpoch, Outage, Passed, Recovery, Rest, StartAfterCleanStop,
    StartAfterKill,
};

/// Failpoints that need more than load, and how they are reached.
const PROVOCATIONS: [(&str, &[Provocation]); 25] = [
    ("agent-map-replace-before", &[StartAfterKill, StartAfterCleanStop]),
    ("agent-map-replace-synced", &[StartAfterKill, StartAfterCleanStop]),
    ("agent-map-replace-renamed", &[StartAfterKill, StartAfterCleanStop]),
    ("agent-map-replace-after", &[StartAfterKill, StartAfterCleanStop]),
    ("agent-marker-removal-before", &[StartAfterCleanStop]),
    ("agent-marker-removal-after", &[StartAfterCleanStop]),
    ("agent-marker-before", &[CleanStop]),
    ("agent-marker-pages-durable", &[CleanStop]),
    ("agent-marker-durable", &[CleanStop]),
    ("agent-bits-cleared", &[Rest]),
    ("agent-incarnation-adopted", &[StartAfterKill]),
    ("agent-drain-read", &[StartAfterKill]),
    ("agent-drain-end-numbered", &[StartAfterKill]),
    ("agent-spool-write-before", &[Outage]),
    ("agent-spool-write-after", &[Outage]),
    ("agent-drain-begin-numbered", &[Recovery]),
    ("agent-compare-durable", &[Compare]),
    ("applier-promote-before", &[NewEpoch]),
    ("applier-promote-opening", &[NewEpoch]),
    ("applier-promote-epoch", &[NewEpoch]),
    ("applier-pack-put-before", &[Passed]),
    ("applier-pack-put", &[Passed]),
    ("applier-collect-before", &[Passed]),
    ("applier-collect-between", &[Passed]),
    ("applier-collect-after", &[Passed]),
];

/// Failpoints that are passed often: died at once more, at a seeded pass up to this one.
const OFTEN: [(&str, u64); 11] = [
    ("agent-source-write-before", 200),
    ("agent-source-write-completed", 200),
    ("agent-source-write-numbered", 200),
    ("agent-stored-heard", 8),
    ("agent-drain-read", 4),
    ("agent-spool-write-after", 3),
    ("process-server-segment-put", 8),
    ("process-server-segment-looked", 8),
    ("applier-replica-runs-written", 6),
    ("applier-commit-put", 2),
    ("applier-promote-segment", 8),
];

/// One death.
#[derive(Debug, Clone, Copy)]
struct Row {
    failpoint: &'static str,
    /// At which pass.
    nth: u64,
    provocation: Provocation,
}

/// The table of a role.
fn rows(role: &str, seed: &mut Seed) -> Vec<Row> {
    let only = std::env::var("FARSHORE_ONLY").unwrap_or_default();
    let mut rows = Vec::new();
    for point in probe::FAILPOINTS.iter().filter(|point| point.role == role && point.name.contains(&only)) {
        let known = PROVOCATIONS.iter().find(|(name, _)| *name == point.name);
        let provocations = known.map_or(&[UnderLoad][..], |(_, provocations)| provocations);
        let first = provocations.iter().map(|&provocation| Row { failpoint: point.name, nth: 1, provocation });
        rows.extend(first);
        if let Some((_, most)) = OFTEN.iter().find(|(name, _)| *name == point.name) {
            let nth = 2 + seed.below(most - 1);
            rows.push(Row { failpoint: point.name, nth, provocation: provocations[0] });
        }
    }
    assert!(!only.is_empty() || !rows.is_empty(), "{role} has failpoints");
    rows
}

/// The place on both disks that one life writes: two that take turns, so that little is active, or one that is cold.
#[derive(Default)]
struct Windows {
    turn: u64,
    cold: u64,
}

impl Windows {
    fn next(&mut self, cold: bool) -> Load {
        let region = if cold {
            self.cold += 1;
            2 + self.cold
        } else {
            self.turn += 1;
            1 + self.turn % 2
        };
        let start = region * REGION_BYTES;
        assert!(start < DISKS[1].1, "there are cold regions left");
        Load { in_flight: 8, start, bytes: REGION_BYTES, blocks_max: 8, pace: Some(Duration::from_millis(10)) }
    }
}

/// A site with its roles, and the point kept from the row before.
struct Table {
    site: Site,
    seed: Seed,
    windows: Windows,
    server: Option<Proc>,
    agent: Option<Proc>,
    applier: Option<Proc>,
    kept: Kept,
    kept_count: u32,
}

impl Table {
    fn new(with_applier: bool, seed: Seed) -> Table {
        let options = SiteOptions {
            machines: vec![("db", DISKS.to_vec())],
            queue_bytes: "2MiB",
            spool_bytes: "4MiB",
            vault: with_applier.then_some("vault"),
            ..SiteOptions::default()
        };
        let site = Site::new(options);
        assert_armed(&site);
        if with_applier {
            collects(&site);
        }
        std::fs::write(site.source("db", "root"), vec![0x6b; DISKS[0].1 as usize]).expect("source is filled");
        let server = site.start(&["process-server"]);
        let applier = with_applier.then(|| site.start(&["applier"]));
        let agent = site.start_agent("db");
        site.wait_stored("db");
        eventually("the filled regions are cleared", || match numbers(&site).active {
            0..=2 => Ok(()),
            active => Err(format!("{active} regions are active")),
        });
        let kept = keep_point(&site, "kept-0");
        let (server, agent) = (Some(server), Some(agent));
        Table { site, seed, windows: Windows::default(), server, agent, applier, kept, kept_count: 0 }
    }

    fn write(&mut self) -> Writer {
        self.write_to(false)
    }

    fn write_to(&mut self, cold: bool) -> Writer {
        let load = self.windows.next(cold);
        Writer::start(&self.site, load, self.seed.fork())
    }

    /// After a death, all roles running and nobody writing: waits until everything is stored and judges it. Then another
    /// point is kept for the next row.
    fn judge(&mut self, row: &Row, started: Instant) {
        self.site.wait_stored("db");
        if self.applier.is_some() {
            wait_processed(&self.site);
        }
        if let Err(why) = judge(&self.site, &self.kept, self.applier.is_some()) {
            panic!("after {row:?}: {why}");
        }
        self.keep();
        eprintln!("{} pass {} ({:?}): {:?}", row.failpoint, row.nth, row.provocation, started.elapsed());
    }

    fn keep(&mut self) {
        let before = self.site.path(&format!("kept-{}", self.kept_count));
        self.kept_count += 1;
        self.kept = keep_point(&self.site, &format!("kept-{}", self.kept_count));
        std::fs::remove_dir_all(before).expect("the former kept point is removed");
    }
}

/// Fails where the failpoints would do nothing: a build without them takes any name for none.
fn assert_armed(site: &Site) {
    let mut command = site.command();
    let ran =
        command.env("FARSHORE_FAILPOINT", "no-such-step").args(["points", "db"]).output().expect("farshore starts");
    let text = String::from_utf8_lossy(&ran.stderr);
    assert!(text.contains("there is no failpoint"), "this build has no failpoints: test with --workspace ({text})");
}

/// How often the process whose output is `log` died at this failpoint.
fn deaths(log: &Path, failpoint: &str) -> usize {
    let said = format!("failpoint {failpoint} reached");
    std::fs::read_to_string(log).unwrap_or_default().matches(&said).count()
}

/// Waits until the process is dead, by its failpoint and by nothing else.
fn wait_dead(site: &Site, log: &str, process: Proc, row: &Row, before: usize) {
    let status = process.wait_ended(PATIENCE);
    let now = deaths(&site.path(log), row.failpoint);
    assert!(status.signal() == Some(6) && now == before + 1, "{row:?}: it ended otherwise: {status}");
}

/// Removes what a judgement before may have left.
fn remove(folder: &Path) {
    if folder.exists() {
        std::fs::remove_dir_all(folder).expect("restored files are removed");
    }
}

/// What must hold when all is stored and nobody writes. Says what does not.
fn judge(site: &Site, kept: &Kept, with_replica: bool) -> Result<(), String> {
    if let Some(why) = kept.changed(site, "again") {
        return Err(why);
    }
    remove(&site.path("latest"));
    let latest = site.restore("db", "latest", "latest");
    for (disk, restored) in &latest {
        if let Some(why) = difference(&site.source("db", disk), restored) {
            return Err(format!("latest of disk {disk} is not its source: {why}"));
        }
        let replica = site.data_dir().join("replica/db").join(format!("{disk}.raw"));
        if let Some(why) = with_replica.then(|| difference(&replica, restored)).flatten() {
            return Err(format!("the replica of disk {disk} is not its source: {why}"));
        }
    }
    let verify = site.run(&["verify", "db"]);
    if verify.code == 0 { Ok(()) } else { Err(format!("verify: {verify:?}")) }
}

/// Waits until the applier has promoted everything and its replica stands at the end.
fn wait_processed(site: &Site) {
    let head = numbers(site).stored;
    eventually("the replica stands at the end", || {
        let status = site.control("applier", "GET", "/status", "")?;
        let machine = &status["machines"][0];
        let done = machine["processed_seq"] == head && machine["replica"]["seq"] == head;
        if done { Ok(()) } else { Err(format!("{status:#}")) }
    });
}

/// P4: a new agent drains what its predecessor left active, which is what was set before and the windows of two lives.
fn check_drained(row: &Row, before: &Numbers, after: &Numbers) {
    let windows = 2 * DISKS.len() as u64;
    // A clean stop leaves nothing; a compare adds the region that it found different.
    let bound = match row.provocation {
        StartAfterCleanStop => 0,
        _ => (before.active + windows + u64::from(row.provocation == Compare)) * REGION_BYTES,
    };
    assert!(bound < DISKS[0].1 / 2, "{row:?}: the bound {bound} says nothing about a disk of {} bytes", DISKS[0].1);
    assert!(after.drained <= bound, "{row:?}: {} bytes drained, P4 allows {bound}", after.drained);
}

fn mode_is(site: &Site, wanted: &str) -> Result<(), String> {
    let status = site.agent_status("db")?;
    if status["mode"] == wanted { Ok(()) } else { Err(format!("{status:#}")) }
}

fn wait_written(writer: &Writer) {
    eventually("the client writes", || match writer.written() {
        0..=20 => Err("it has hardly begun".to_owned()),
        _ => Ok(()),
    });
}

/// Lets the armed agent come to its failpoint. Says whether the process server is away at the end.
fn provoke(table: &mut Table, agent: &mut Proc, row: &Row, writer: Option<&Writer>) -> bool {
    let site = &table.site;
    match row.provocation {
        UnderLoad | StartAfterKill | StartAfterCleanStop | Rest | NewEpoch | Passed => return false,
        CleanStop => {
            wait_written(writer.expect("a clean stop is provoked under load"));
            agent.signal("TERM");
            return false;
        }
        Compare => {
            site.wait_stored("db");
            let other = site.path("other.raw");
            std::fs::copy(site.source("db", "data"), &other).expect("source is copied");
            flip(&other, DISKS[1].1 - 4096);
            let with = other.to_string_lossy();
            let ran = site.run(&["compare", "db", "--disk", "data", "--at", "latest", "--with", &with, "--drain"]);
            assert_ne!(ran.code, 0, "the agent died under the compare: {ran:?}");
            return false;
        }
        Outage | Recovery => {}
    }
    // A slow drain may have filled the queue, and reached the step, before the outage.
    eventually("the agent is in data mode", || if agent.running().is_err() { Ok(()) } else { mode_is(site, "data") });
    table.server.take().expect("process server runs").kill();
    if row.provocation == Recovery {
        eventually("queue and spool are full", || agent.running().and_then(|()| mode_is(site, "bitmap")));
        table.server = Some(site.start(&["process-server"]));
    }
    row.provocation == Outage
}

fn agent_dies(table: &mut Table, row: &Row) {
    let started = Instant::now();
    let before = numbers(&table.site);
    let died = deaths(&table.site.path("agent-db.log"), row.failpoint);
    // The former life ends, under load but for those rows that are about a clean stop.
    let former = table.agent.take().expect("agent runs");
    if row.provocation == StartAfterCleanStop {
        assert!(former.stop(PATIENCE).success(), "it stops cleanly");
    } else {
        let writer = table.write();
        wait_written(&writer);
        former.kill();
        writer.finish();
    }
    let mut armed = table.site.start_armed(&["agent", "db"], row.failpoint, row.nth);
    let quiet = matches!(row.provocation, Rest | Compare | StartAfterCleanStop);
    // Only the first write to a cold region waits for a commit of the map.
    let cold = row.failpoint.starts_with("agent-map-commit");
    let writer = (!quiet).then(|| table.write_to(cold));
    let away = provoke(table, &mut armed, row, writer.as_ref());
    wait_dead(&table.site, "agent-db.log", armed, row, died);
    writer.map(Writer::finish);
    if away {
        table.server = Some(table.site.start(&["process-server"]));
    }
    table.agent = Some(table.site.start_agent("db"));
    table.site.wait_stored("db");
    check_drained(row, &before, &numbers(&table.site));
    table.judge(row, started);
}

#[test]
fn agent_dies_at_every_step() {
    let mut seed = Seed::from_environment(301);
    let mut table = Table::new(false, seed.fork());
    for row in rows("agent", &mut seed) {
        agent_dies(&mut table, &row);
    }
    refuses_what_is_wrong(&table);
}

/// The judge's negative control: one changed block is found, wherever it is, and nothing else is.
fn refuses_what_is_wrong(table: &Table) {
    let judged = || judge(&table.site, &table.kept, false);
    let segment = longest_segment(&table.site);
    let kept = table.kept.files[0].1.clone();
    let places = [(table.site.source("db", "data"), "is not its source"), (kept, "kept point"), (segment, "")];
    for (file, wanted) in places {
        let middle = std::fs::metadata(&file).expect("file is there").len() / 2;
        flip(&file, middle);
        let why = judged_quietly(&judged).expect_err("one changed block is found");
        assert!(why.contains(wanted), "{}: {why}", file.display());
        flip(&file, middle);
        assert_eq!(judged(), Ok(()), "{} is as it was", file.display());
    }
}

/// A damaged log stops a restore before anything can be compared, which is found too.
fn judged_quietly(judged: &dyn Fn() -> Result<(), String>) -> Result<(), String> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(judged));
    caught.unwrap_or_else(|_| Err("a restore failed".to_owned()))
}

/// Changes one byte, and back when called again.
fn flip(file: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let mut byte = [0];
    let file = std::fs::File::options().read(true).write(true).open(file).expect("file opens");
    file.read_exact_at(&mut byte, at).expect("file is long enough");
    file.write_all_at(&[byte[0] ^ 1], at).expect("file is written");
}

/// The longest segment of the stream.
fn longest_segment(site: &Site) -> std::path::PathBuf {
    let segments = site.path("site/store/machine/db/stream/seg");
    let epochs = std::fs::read_dir(segments).expect("epochs are listed").map(|entry| entry.expect("entry").path());
    let files = epochs.flat_map(|epoch| std::fs::read_dir(epoch).expect("segments are listed"));
    let files = files.map(|entry| entry.expect("entry").path());
    files.max_by_key(|file| std::fs::metadata(file).map_or(0, |file| file.len())).expect("there are segments")
}

#[test]
fn process_server_dies_at_every_step() {
    let mut seed = Seed::from_environment(302);
    let mut table = Table::new(false, seed.fork());
    for row in rows("process-server", &mut seed) {
        let started = Instant::now();
        let before = numbers(&table.site);
        let died = deaths(&table.site.path("process-server.log"), row.failpoint);
        table.server.take().expect("process server runs").kill();
        let armed = table.site.start_armed(&["process-server"], row.failpoint, row.nth);
        let writer = table.write();
        wait_dead(&table.site, "process-server.log", armed, &row, died);
        // Nothing is stored any more, so what is kept now holds all that was sent and not stored.
        let dead = numbers(&table.site);
        table.server = Some(table.site.start(&["process-server"]));
        writer.finish();
        let head = table.site.wait_stored("db");
        assert!(head >= dead.stored, "{row:?}: stored {} was lost: the log ends at {head}", dead.stored);
        let resent = numbers(&table.site).resent - before.resent;
        assert!(resent <= dead.queue, "{row:?}: {resent} bytes sent again, P4 allows {}", dead.queue);
        table.judge(&row, started);
    }
}

/// Garbage collection with no journal window, so that an applier that starts finds its horizon in front of the last epoch at
/// once, and not when it looks again a minute later; every point is kept.
fn collects(site: &Site) {
    let text = std::fs::read_to_string(site.config()).expect("config");
    let policy = "[policy]\njournal_window = \"0s\"\nretention = \"1y:all\"\n";
    std::fs::write(site.config(), text.replacen("[policy]\n", policy, 1)).expect("config is written");
}

/// An epoch of so many segments, each with a point, that they are put together into a pack, and another one behind it.
fn pass_epochs(table: &mut Table) {
    for round in 0..20 {
        let writer = table.write();
        wait_written(&writer);
        writer.finish();
        table.site.wait_stored("db");
        table.site.json(&["mark", "db", "--label", &format!("passed-{round}")]);
    }
    for _ in 0..2 {
        table.server.take().expect("process server runs").kill();
        table.server = Some(table.site.start(&["process-server"]));
        let writer = table.write();
        wait_written(&writer);
        writer.finish();
        table.site.wait_stored("db");
    }
}

#[test]
fn applier_dies_at_every_step() {
    let mut seed = Seed::from_environment(303);
    let mut table = Table::new(true, seed.fork());
    for row in rows("applier", &mut seed) {
        let started = Instant::now();
        table.applier.take().expect("applier runs").kill();
        // While it is dead, so that it is the armed one that finds them.
        if row.provocation == Passed {
            pass_epochs(&mut table);
        }
        let before = numbers(&table.site);
        let died = deaths(&table.site.path("applier.log"), row.failpoint);
        let armed = table.site.start_armed(&["applier"], row.failpoint, row.nth);
        let writer = table.write();
        let new_epoch = row.provocation == NewEpoch;
        if new_epoch {
            table.server.take().expect("process server runs").kill();
            table.server = Some(table.site.start(&["process-server"]));
        }
        wait_dead(&table.site, "applier.log", armed, &row, died);
        table.applier = Some(table.site.start(&["applier"]));
        writer.finish();
        table.site.wait_stored("db");
        let resent = numbers(&table.site).resent - before.resent;
        assert!(
            new_epoch || resent == 0,
            "{row:?}: the death of an applier costs the agent nothing, and {resent} bytes"
        );
        table.judge(&row, started);
    }
}

/// A restore that dies leaves no file that looks whole and is not, and the same command goes on to its end.
#[test]
fn restore_and_init_die_at_every_step() {
    let mut seed = Seed::from_environment(304);
    let machines = vec![("db", vec![("root", 24 << 20), ("data", 4 << 20)])];
    let site = Site::new(SiteOptions { machines, ..SiteOptions::default() });
    assert_armed(&site);
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x51 1M 17M", "-c", "flush", &site.nbd_uri("db", "root")]);
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x52 1M 1M", "-c", "flush", &site.nbd_uri("db", "data")]);
    site.wait_stored("db");
    for (row, format) in rows("restore", &mut seed).iter().flat_map(|row| FORMATS.map(|format| (*row, format))) {
        restore_dies(&site, &row, format);
    }
    for row in rows("init", &mut seed) {
        let to = site.path("dead-site");
        let target = to.to_string_lossy();
        wait_dead(&site, "init.log", init_armed(&site, &target, &row), &row, 0);
        let key = std::fs::read(to.join("vault.key")).expect("the key was durable before the vault");
        assert_ne!(site.run_bare(&["init", &target]).code, 0, "{row:?}: a site half made is not made over");
        assert_eq!(std::fs::read(to.join("vault.key")).expect("key"), key, "{row:?}: the key is kept");
        std::fs::remove_dir_all(&to).expect("the rest is removed");
        assert_eq!(site.run_bare(&["init", &target]).code, 0, "{row:?}: in an empty place it works");
    }
}

/// Formats of images: name, and what qemu-img calls it.
const FORMATS: [(&str, &str); 3] = [("raw", "raw"), ("qcow2", "qcow2"), ("vhd", "vpc")];

fn restore_dies(site: &Site, row: &Row, (format, qemu): (&str, &str)) {
    let to = site.path(&format!("{}-{format}", row.failpoint));
    let target = to.to_string_lossy();
    let died = deaths(&site.path("restore-db.log"), row.failpoint);
    let args = ["restore", "db", "--at", "latest", "--to", &target, "--format", format];
    wait_dead(site, "restore-db.log", site.start_armed(&args, row.failpoint, row.nth), row, died);
    let image = |disk: &str| to.join(format!("db-{disk}.{format}"));
    let compare = |disk: &str| {
        let (source, image) = (site.source("db", disk), image(disk));
        run("qemu-img", &["compare", "-f", "raw", "-F", qemu, &source.to_string_lossy(), &image.to_string_lossy()]);
    };
    let named: Vec<_> = ["data", "root"].into_iter().filter(|disk| image(disk).exists()).collect();
    let wanted: &[&str] = match row.failpoint {
        "restore-image-renamed" => &["data"],
        "restore-state-removed" => &["data", "root"],
        _ => &[],
    };
    assert_eq!(named, wanted, "{row:?}");
    named.into_iter().for_each(compare);
    let ran = site.run(&[&["--json"], &args[..]].concat());
    if row.failpoint == "restore-state-removed" {
        assert_eq!(ran.code, 2, "{row:?}: it had ended, and what is there is not written over: {ran:?}");
    } else {
        assert_eq!(ran.code, 0, "{row:?}: it goes on: {ran:?}");
        let said: serde_json::Value = serde_json::from_str(&ran.stdout).expect("one object");
        let durable = ["restore-pieces-durable", "restore-image-complete", "restore-image-renamed"];
        assert_eq!(said["bytes_resumed"].as_u64() > Some(0), durable.contains(&row.failpoint), "{row:?}: {said:#}");
    }
    ["data", "root"].into_iter().for_each(compare);
    std::fs::remove_dir_all(&to).expect("the rest is removed");
}

/// A copy that dies leaves no name, or the whole file under it, and the next one works.
#[test]
fn cp_dies_at_every_step() {
    let mut seed = Seed::from_environment(306);
    let site = Site::new(SiteOptions { machines: vec![("db", vec![("root", 8 << 20)])], ..SiteOptions::default() });
    assert_armed(&site);
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    let (tree, image) = (site.path("tree"), site.path("image"));
    let contents: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
    std::fs::create_dir(&tree).expect("directory is made");
    std::fs::write(tree.join("file"), &contents).expect("file is written");
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &tree.to_string_lossy(), &image.to_string_lossy(), "8M"]);
    run(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &image.to_string_lossy(), &site.nbd_uri("db", "root")],
    );
    site.wait_stored("db");
    for row in rows("cp", &mut seed) {
        let to = site.path(row.failpoint);
        let args = ["cp", "db", "--at", "latest", "/file", &to.to_string_lossy()];
        let died = deaths(&site.path("cp-db.log"), row.failpoint);
        wait_dead(&site, "cp-db.log", site.start_armed(&args, row.failpoint, row.nth), &row, died);
        assert_eq!(to.exists(), row.failpoint == "cp-renamed", "{row:?}");
        if to.exists() {
            assert_eq!(std::fs::read(&to).expect("file is read"), contents, "{row:?}: a file with its name is whole");
            assert_eq!(site.run(&args).code, 2, "{row:?}: what is there is not written over");
            std::fs::remove_file(&to).expect("the copy is removed");
        }
        assert_eq!(site.run(&args).code, 0, "{row:?}");
        assert_eq!(std::fs::read(&to).expect("file is read"), contents, "{row:?}");
    }
}

fn init_armed(site: &Site, target: &str, row: &Row) -> Proc {
    let mut command = site.command();
    command.args(["init", target]).env("FARSHORE_FAILPOINT", format!("{}:{}", row.failpoint, row.nth));
    Proc::start("init", command, &site.path("init.log"))
}

/// The tables above are about every role that has failpoints.
#[test]
fn every_failpoint_is_in_a_table() {
    let mut seed = Seed::from_environment(305);
    let roles = ["agent", "process-server", "applier", "restore", "cp", "init"];
    let tried: usize = roles.iter().map(|role| rows(role, &mut seed).iter().filter(|row| row.nth == 1).count()).sum();
    let twice: usize = PROVOCATIONS.iter().map(|(_, provocations)| provocations.len() - 1).sum();
    assert_eq!(tried - twice, probe::FAILPOINTS.len());
    for (name, _) in PROVOCATIONS.iter().map(|(n, _)| (*n, 0)).chain(OFTEN) {
        assert!(probe::FAILPOINTS.iter().any(|point| point.name == name), "{name} is a failpoint");
    }
}
