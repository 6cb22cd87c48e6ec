//! A whole machine: Debian with its own kernel and init runs PostgreSQL under load on a replicated disk, dies with its
//! agent, and is started from points that are served over NBD.
//!
//! The guest prints the number of each transaction once PostgreSQL has said that it is committed. The oracle: a machine
//! started from a point holds every number that the host had read before it asked for that point, without a gap, and
//! pgbench's books balance. Its controls: a number that came after the point is not there, nor is one that never was, and
//! when the started machine deletes one row, changes another and forgets an entry of the books, all three are noticed.
//!
//! QEMU interprets the guest's instructions (TCG), so it runs the same everywhere. `cargo xtask system-disk --starts N` starts the
//! machine from N points of one life.

mod image;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use image::Image;

use crate::harness::tools::{path, run};
use crate::harness::{Proc, Site, SiteOptions, eventually};

/// How long a guest may take to get anywhere: an interpreted machine beside other tests is slow.
const GUEST_PATIENCE: Duration = Duration::from_secs(600);

/// Transactions between two points.
const APART: u64 = 150;

/// Points to start from: one among the other tests, or what `cargo xtask system-disk` asks.
fn starts() -> usize {
    let asked = std::env::var("FARSHORE_SYSTEM_STARTS").unwrap_or_else(|_| "1".to_owned());
    asked.parse().ok().filter(|n| *n > 0).expect("FARSHORE_SYSTEM_STARTS is a number above 0")
}

/// A machine that QEMU runs.
struct Guest {
    qemu: Proc,
    console: PathBuf,
    started: Instant,
}

impl Guest {
    /// Starts the image's kernel over what an NBD export holds.
    fn start(image: &Image, role: &str, uri: &str, console: PathBuf) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command.env("PATH", path()).args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-m", "512", "-nic", "none", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(image.initrd());
        // A timer looks broken on a busy host, which a kernel would die of.
        let timers = "no_timer_check nowatchdog panic=-1";
        let words = format!("root=/dev/vda rw console=ttyS0 systemd.show_status=0 {timers}");
        command.args(["-append", &format!("{words} role={role}")]);
        command
            .args(["-blockdev", &format!("driver=nbd,node-name=root,server.type=unix,server.path={uri},export=root")]);
        command.args(["-device", "virtio-blk-pci,drive=root"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        let qemu = Proc::start(&format!("guest ({role})"), command, &console.with_extension("qemu"));
        Self { qemu, console, started: Instant::now() }
    }

    /// Values of whole lines that begin with this word, in the order they came.
    fn said<T: std::str::FromStr>(&self, word: &str) -> Vec<Vec<T>> {
        let text = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let values = |line: &str| line.trim().strip_prefix(word)?.split_whitespace().map(|v| v.parse().ok()).collect();
        whole.lines().filter_map(values).collect()
    }

    /// The transactions that the guest was told are committed.
    fn acknowledged(&self) -> Vec<u64> {
        self.said("COMMITTED").iter().map(|values| values[0]).collect()
    }

    /// The last of them.
    fn committed(&self) -> u64 {
        self.acknowledged().last().copied().unwrap_or(0)
    }

    /// Waits until PostgreSQL answers; tells how long that took, and the kernel's first line.
    fn answers(&mut self) {
        let first = |guest: &Self| std::fs::metadata(&guest.console).is_ok_and(|file| file.len() > 0).then_some(());
        self.wait("the kernel's first line", first);
        let first = self.started.elapsed();
        self.wait("PostgreSQL's answer", |guest| guest.said::<u64>("ANSWERS").pop());
        println!("first line of the kernel after {first:.1?}, PostgreSQL answers after {:.1?}", self.started.elapsed());
    }

    /// Polls until `found` finds something.
    fn wait<T>(&mut self, what: &str, mut found: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = waiting::Deadline::after(GUEST_PATIENCE);
        loop {
            if let Some(value) = found(self) {
                return value;
            }
            let console = || std::fs::read_to_string(&self.console).unwrap_or_default();
            self.qemu.running().unwrap_or_else(|why| panic!("{what}: {why}\n{}", console()));
            deadline.look_again_blocking(format_args!("{what}:\n{}", console()));
        }
    }
}

/// A point and what the host knew about it.
struct Marked {
    id: String,
    /// The transactions known to be committed when the point was asked for.
    acknowledged: Vec<u64>,
    /// The last one when it was stored.
    stored: u64,
}

fn mark(site: &Site, guest: &Guest) -> Marked {
    let acknowledged = guest.acknowledged();
    let point = eventually("the mark is stored", || {
        let ran = site.run(&["--json", "mark", "db", "--label", "under load"]);
        match ran.code {
            0 => serde_json::from_str::<serde_json::Value>(&ran.stdout).map_err(|e| e.to_string()),
            _ => Err(ran.stderr),
        }
    });
    let id = point["id"].as_str().expect("a mark has an id").to_owned();
    Marked { id, acknowledged, stored: guest.committed() }
}

/// What a started machine's PostgreSQL said it holds.
#[derive(Debug)]
struct Held {
    /// Numbers whose row is there and right.
    numbers: Vec<RangeInclusive<u64>>,
    /// What pgbench moved: by its accounts, by its branches, by its history.
    sums: Vec<i64>,
}

impl Held {
    fn read(guest: &Guest, numbers: &str, sums: &str) -> Self {
        let numbers = guest.said(numbers).iter().map(|ends| ends[0]..=ends[1]).collect();
        Self { numbers, sums: guest.said(sums).pop().expect("the machine told its sums") }
    }

    /// Those of the acknowledged transactions that are not there.
    fn missing(&self, acknowledged: &[u64]) -> Vec<u64> {
        let lacks = |number: &u64| !self.numbers.iter().any(|range| range.contains(number));
        acknowledged.iter().copied().filter(lacks).collect()
    }

    fn books_balance(&self) -> bool {
        self.sums.len() == 3 && self.sums.iter().all(|sum| *sum == self.sums[0])
    }
}

/// Serves the point, starts the machine from it and asks its database: what it holds, and what it holds once the machine
/// has spoiled rows 5 and 7 and the books.
fn start_from(site: &Site, image: &Image, point: &Marked, number: usize) -> (Held, Held) {
    let socket = site.path(&format!("point-{number}.sock"));
    let listen = format!("unix:{}", socket.display());
    let at = format!("id:{}", point.id);
    let _serve = site.start(&["serve", "db", "--disk", "root", "--at", &at, "--listen", &listen]);
    eventually("the point is served", || {
        std::os::unix::net::UnixStream::connect(&socket).map(drop).map_err(|e| e.to_string())
    });
    let console = site.path(&format!("report-{number}.console"));
    let mut guest = Guest::start(image, "report", &socket.to_string_lossy(), console);
    guest.answers();
    guest.wait("the started machine's report", |guest| guest.said::<u64>("REPORTED").pop());
    (Held::read(&guest, "HOLDS", "SUMS"), Held::read(&guest, "SPOILT", "FORGOT"))
}

fn judge(point: &Marked, later: u64, held: &Held, spoilt: &Held) {
    assert_eq!(held.missing(&point.acknowledged), [0; 0], "acknowledged before the point, and not there: {held:?}");
    assert!(
        held.numbers.len() == 1 && *held.numbers[0].start() == 1,
        "one client's transactions have no gap: {held:?}"
    );
    assert!(held.books_balance(), "pgbench's books balance: {held:?}");
    // The controls.
    assert_eq!(held.missing(&[later]), [later], "it is the point that was started, no later state: {held:?}");
    assert_eq!(held.missing(&[0, u64::MAX]), [0, u64::MAX], "these were never committed");
    assert_eq!(spoilt.missing(&point.acknowledged), [5, 7], "a deleted row and a changed one are noticed: {spoilt:?}");
    assert!(!spoilt.books_balance(), "a forgotten entry is noticed: {spoilt:?}");
}

fn copy_sparse(from: &Path, to: &Path) {
    run("cp", &["--sparse=always", &from.to_string_lossy(), &to.to_string_lossy()]);
}

#[test]
fn a_debian_machine_started_from_a_point_holds_every_transaction_acknowledged_before_it() {
    let image = Image::get();
    let site =
        Site::new(SiteOptions { machines: vec![("db", vec![("root", image::BYTES)])], ..SiteOptions::default() });
    copy_sparse(&image.disk(), &site.source("db", "root"));
    let (_server, _applier, agent) =
        (site.start(&["process-server"]), site.start(&["applier"]), site.start_agent("db"));
    let socket = site.socket("db", "root");
    let mut guest = Guest::start(&image, "load", &socket.to_string_lossy(), site.path("load.console"));
    guest.answers();
    let mut points = Vec::new();
    let load = |guest: &mut Guest| {
        let enough = guest.committed() + APART;
        guest.wait("PostgreSQL under load", |guest| Some(guest.committed()).filter(|number| *number >= enough))
    };
    for _ in 0..starts() {
        load(&mut guest);
        points.push(mark(&site, &guest));
    }
    let last = load(&mut guest);
    agent.kill();
    guest.qemu.kill();

    for (number, point) in points.iter().enumerate() {
        let (held, spoilt) = start_from(&site, &image, point, number);
        let (asked, stored) = (point.acknowledged.len(), point.stored);
        println!("asked for after {asked} acknowledged transactions, stored at {stored} of {last}; holds {held:?}");
        let later = points.get(number + 1).map_or(last, |next| next.acknowledged[next.acknowledged.len() - 1]);
        judge(point, later, &held, &spoilt);
    }
}
