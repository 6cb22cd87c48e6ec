//! A whole machine: Debian with its own kernel and init runs PostgreSQL under load on a replicated disk, dies with its
//! agent, and is started from points that are served over NBD.
//!
//! The guest prints the number of each transaction once PostgreSQL has said that it is committed. The oracle: a machine
//! started from a point holds every number that the host had read before it asked for that point, without a gap, and
//! pgbench's books balance. Its control: numbers that came after the point are not there. QEMU interprets the guest's
//! instructions (TCG), so it runs the same everywhere, in about two minutes.

mod image;

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

/// Points to start from; `FARSHORE_SYSTEM_STARTS` asks for more.
fn starts() -> usize {
    let asked = std::env::var("FARSHORE_SYSTEM_STARTS").ok();
    asked.map_or(1, |n| n.parse().expect("FARSHORE_SYSTEM_STARTS is a number"))
}

/// A machine that QEMU runs.
struct Guest {
    qemu: Proc,
    console: PathBuf,
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
        let words = format!("root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 {timers}");
        command.args(["-append", &format!("{words} role={role}")]);
        command
            .args(["-blockdev", &format!("driver=nbd,node-name=root,server.type=unix,server.path={uri},export=root")]);
        command.args(["-device", "virtio-blk-pci,drive=root"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        let qemu = Proc::start(&format!("guest ({role})"), command, &console.with_extension("qemu"));
        Self { qemu, console }
    }

    /// Values of whole lines that begin with this word, in the order they came.
    fn said(&self, word: &str) -> Vec<Vec<i64>> {
        let text = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let values = |line: &str| line.trim().strip_prefix(word)?.split_whitespace().map(|v| v.parse().ok()).collect();
        whole.lines().filter_map(values).collect()
    }

    /// The last transaction that the guest was told is committed.
    fn committed(&self) -> u64 {
        self.said("COMMITTED").last().map_or(0, |values| values[0] as u64)
    }

    /// Polls until `found` finds something.
    fn wait<T>(&mut self, what: &str, mut found: impl FnMut(&Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = found(self) {
                return value;
            }
            let console = || std::fs::read_to_string(&self.console).unwrap_or_default();
            assert!(start.elapsed() < GUEST_PATIENCE, "{what}: not within {GUEST_PATIENCE:?}:\n{}", console());
            self.qemu.running().unwrap_or_else(|why| panic!("{what}: {why}\n{}", console()));
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}

/// A point and what the host knew about it.
struct Marked {
    id: String,
    /// The last transaction known to be committed when the point was asked for.
    before: u64,
    /// The last one when it was stored.
    after: u64,
}

fn mark(site: &Site, guest: &Guest) -> Marked {
    let before = guest.committed();
    let point = eventually("the mark is stored", || {
        let ran = site.run(&["--json", "mark", "db", "--label", "under load"]);
        match ran.code {
            0 => serde_json::from_str::<serde_json::Value>(&ran.stdout).map_err(|e| e.to_string()),
            _ => Err(ran.stderr),
        }
    });
    let id = point["id"].as_str().expect("a mark has an id").to_owned();
    Marked { id, before, after: guest.committed() }
}

/// What PostgreSQL holds: rows whose content is right, and the highest number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rows {
    count: u64,
    max: u64,
}

impl Rows {
    /// Whether every transaction up to `acknowledged` is there.
    fn hold_all(self, acknowledged: u64) -> bool {
        self.count == self.max && self.max >= acknowledged
    }
}

/// Serves the point, starts the machine from it and asks its database.
fn start_from(site: &Site, image: &Image, point: &Marked, number: usize) -> Rows {
    let socket = site.path(&format!("point-{number}.sock"));
    let listen = format!("unix:{}", socket.display());
    let at = format!("id:{}", point.id);
    let serve = site.start(&["serve", "db", "--disk", "root", "--at", &at, "--listen", &listen]);
    eventually("the point is served", || {
        std::os::unix::net::UnixStream::connect(&socket).map(drop).map_err(|e| e.to_string())
    });
    let console = site.path(&format!("report-{number}.console"));
    let mut guest = Guest::start(image, "report", &socket.to_string_lossy(), console);
    let money = guest.wait("the started machine's report", |guest| guest.said("MONEY").pop());
    assert!(money.len() == 3 && money.iter().all(|sum| *sum == money[0]), "pgbench's books balance: {money:?}");
    let rows = guest.said("ROWS").pop().expect("said before");
    drop((guest, serve));
    Rows { count: rows[0] as u64, max: rows[1] as u64 }
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
    let mut points = Vec::new();
    for _ in 0..starts() {
        let enough = guest.committed() + APART;
        guest.wait("PostgreSQL under load", |guest| (guest.committed() >= enough).then_some(()));
        points.push(mark(&site, &guest));
    }
    let enough = guest.committed() + APART;
    let last = guest.wait("load behind the last point", |guest| Some(guest.committed()).filter(|n| *n >= enough));
    agent.kill();
    guest.qemu.kill();

    for (number, point) in points.iter().enumerate() {
        let rows = start_from(&site, &image, point, number);
        println!(
            "asked for at {}, stored at {} of {last}; the machine started from it has {rows:?}",
            point.before, point.after
        );
        assert!(rows.hold_all(point.before), "{} were acknowledged before the point: {rows:?}", point.before);
        // The control: the oracle tells what came after the point from what came before. One may be committed and not said.
        assert!(!rows.hold_all(point.after + 2), "it is the point that was started, no later state: {rows:?}");
        assert!(!Rows { count: rows.count - 1, ..rows }.hold_all(point.before), "a gap would be noticed");
    }
}
