//! The plot of the demo: protect, work, lose the process server, go on, lose the machine, recover, prove.
//!
//! Whatever is claimed at the end was read back by the shipped commands with every role dead and the source files gone,
//! and was judged against the client's own notes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use model::{MachineName, Timestamp};
use nbd::Client;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::children::{Launcher, POLL, Role};
use super::evidence::blocks_in;
use super::oracle::{Action, Bounds};
use super::stamps::{self, BLOCK_BYTES, Noise, Stamp};
use super::workload::{Counts, Notes, Plan, Workload};
use crate::config::Config;
use crate::control::{QUESTION_TIMEOUT, Socket, call};
use crate::init;
use crate::output::{Output, bytes_text};

/// The machine of the story.
pub(super) const MACHINE: &str = "demo";
/// Its disks.
pub(super) const DISKS: [&str; 2] = ["system", "data"];
/// Bytes of each.
pub(super) const DISK_BYTES: u64 = 256 << 20;
/// Bytes on each disk before protection begins.
const PRELOAD_BYTES: u64 = 16 << 20;
/// Blocks of one preloading write.
const PRELOAD_BLOCKS: u64 = 64;
/// How long one chapter of work lasts.
const CHAPTER: Duration = Duration::from_secs(3);
/// How long the process server stays dead.
const OUTAGE: Duration = Duration::from_secs(3);
/// How long anything the story waits for may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Noise written over each disk before it is deleted, in pieces of a MiB.
const RUBBISH_PIECES: u64 = 32;
const RUBBISH_PIECE_BYTES: usize = 1 << 20;
/// Between two looks at the agent's lag.
const RPO_LOOK: Duration = Duration::from_millis(100);
/// Seed of the workload: every run does the same, at its own speed.
const SEED: u64 = 2026;

/// What the demo says in the end; these are the keys of `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `proved` or `failed`.
    pub verdict: &'static str,
    /// Largest age of a write that was not yet stored.
    pub rpo_seconds_max: f64,
    /// Payload bytes whose writes the client saw acknowledged.
    pub bytes_written: u64,
    /// Bytes of all objects in the store.
    pub bytes_stored: u64,
    /// From the start of `serve` to the first 4 KiB read.
    pub first_read_seconds: f64,
    /// The positions recovered.
    pub recovered: Vec<Recovered>,
}

/// A position recovered and judged.
#[derive(Debug, Clone, Serialize)]
pub struct Recovered {
    /// The position.
    pub seq: u64,
    /// Its time.
    pub time: String,
    /// `restore` or `serve`.
    pub via: &'static str,
    /// Whether it was proven equal to a prefix of the client's history.
    pub equal: bool,
}

/// A position to recover: how to ask for it, and what the client knows of it.
pub(super) struct Wanted {
    pub what: &'static str,
    pub selector: String,
    pub bounds: Bounds,
    pub serve: bool,
}

/// A mark and what the client knows of it.
struct Mark {
    id: String,
    seq: u64,
    bounds: Bounds,
}

/// The stage: one directory, one configuration, the client's notes.
pub(super) struct Story {
    pub dir: PathBuf,
    config: Config,
    pub launcher: Launcher,
    pub notes: Arc<Notes>,
    pub output: Output,
    rpo_micros_max: Arc<AtomicU64>,
    pub report: Report,
}

/// Plays the story in `dir` (new or empty) with this binary. Everything it makes lies in there. Whatever goes wrong after
/// the stage is set comes back beside a report that says `failed`.
pub async fn play(dir: &Path, exe: PathBuf, output: Output) -> anyhow::Result<(Report, anyhow::Result<()>)> {
    let started = Instant::now();
    let mut story = Story::set_up(dir, exe, output).await?;
    let outcome = story.live_and_recover().await;
    // Relaxed: a maximum for the report.
    story.report.rpo_seconds_max = story.rpo_micros_max.load(Ordering::Relaxed) as f64 / 1e6;
    if outcome.is_ok() {
        story.tell_the_end(started.elapsed());
    }
    Ok((story.report, outcome))
}

impl Story {
    async fn set_up(dir: &Path, exe: PathBuf, output: Output) -> anyhow::Result<Self> {
        let made = init::init(dir).await?;
        let dir = made.config.parent().context("the configuration lies in a directory")?.to_owned();
        write_config(&made.config)?;
        let config = Config::load(&made.config)?;
        let logs = dir.join("logs");
        std::fs::create_dir(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let launcher = Launcher { exe, config: made.config, logs };
        let report = Report {
            verdict: "failed",
            rpo_seconds_max: 0.0,
            bytes_written: 0,
            bytes_stored: 0,
            first_read_seconds: 0.0,
            recovered: Vec::new(),
        };
        let notes = Arc::new(Notes::default());
        Ok(Self { dir, config, launcher, notes, output, rpo_micros_max: Arc::default(), report })
    }

    async fn live_and_recover(&mut self) -> anyhow::Result<()> {
        let wanted = self.live().await?;
        let sound = self.recover(&wanted).await?;
        let recovered = &self.report.recovered;
        if sound && recovered.len() == wanted.len() && recovered.iter().all(|r| r.equal) {
            self.report.verdict = "proved";
        }
        Ok(())
    }

    fn machine(&self) -> &MachineName {
        &self.config.machines[0].name
    }

    fn agent_socket(&self) -> PathBuf {
        Socket::Agent(self.machine().clone()).path(&self.config)
    }

    /// Everything up to the disaster. Ends with every role dead and the sources gone.
    async fn live(&mut self) -> anyhow::Result<Vec<Wanted>> {
        self.make_disks()?;
        let server = self.launcher.role(&self.config, &Socket::ProcessServer).await?;
        let applier = self.launcher.role(&self.config, &Socket::Applier).await?;
        let agent = self.launcher.role(&self.config, &Socket::Agent(self.machine().clone())).await?;
        let clients = Arc::new(self.connect().await?);
        self.output.say(&format!(
            "A machine with two disks of {} starts under protection: agent, process server and applier are processes \
             of their own.",
            bytes_text(DISK_BYTES)
        ));
        let watch = self.watch_rpo();
        let plan = Plan { writers: 8, seed: SEED, hot_blocks: 512, pace: Duration::from_millis(6) };
        let workload = Workload::start(self.notes.clone(), clients.clone(), &plan);
        let outcome = self.work(server).await;
        let counts = workload.stop().await;
        let (wanted, server) = outcome?;
        self.report.bytes_written = self.notes.bytes_written() - DISKS.len() as u64 * PRELOAD_BYTES;
        self.tell_the_work(&counts);
        // Relaxed: the writers have ended and were awaited.
        let failures = counts.failures.load(Ordering::Relaxed);
        let logs = self.launcher.logs.display();
        ensure!(failures == 0, "the client saw {failures} errors; logs are in {logs}");
        self.disaster(&clients).await?;
        watch.abort();
        for role in [agent, server, applier] {
            role.kill().await?;
        }
        for disk in &self.config.machines[0].disks {
            std::fs::remove_file(&disk.source).with_context(|| format!("cannot delete {}", disk.source.display()))?;
        }
        self.output.say(
            "Disaster: rubbish is written over both disks, through the export, and replicated too. Then the disk files \
             are deleted and every role is killed. What is left is the store and the key.",
        );
        self.report.bytes_stored = self.bytes_stored().await?;
        Ok(wanted)
    }

    /// The chapters of work, with the death of the process server among them.
    async fn work(&self, server: Role) -> anyhow::Result<(Vec<Wanted>, Role)> {
        let began = Instant::now();
        self.until("the initial replication to end", |s| s["mode"] == "data" && s["drain"].is_null()).await?;
        self.output.say(&format!(
            "The initial replication took {:.1} s, while eight writers were writing.",
            began.elapsed().as_secs_f64()
        ));
        sleep(CHAPTER).await;
        let first = self.mark("before-the-upgrade").await?;
        sleep(CHAPTER).await;
        let (time, time_bounds) = self.moment().await;
        sleep(CHAPTER).await;
        let second = self.mark("before-the-outage").await?;
        server.kill().await?;
        self.output.say("The process server is killed. The writers do not notice.");
        sleep(OUTAGE).await;
        let server = self.launcher.role(&self.config, &Socket::ProcessServer).await?;
        sleep(CHAPTER).await;
        let third = self.mark("after-the-outage").await?;
        self.output.say("It is started again, and the agent sends what was not stored.");
        let wanted = vec![
            Wanted { what: "a named point", selector: format!("id:{}", first.id), bounds: first.bounds, serve: false },
            Wanted { what: "a moment", selector: format!("time:{time}"), bounds: time_bounds, serve: false },
            Wanted {
                what: "a write in the midst of the outage",
                selector: format!("seq:{}", second.seq + (third.seq - second.seq) / 2),
                bounds: Bounds { after: second.bounds.after, before: third.bounds.before },
                serve: true,
            },
        ];
        Ok((wanted, server))
    }

    /// The disks before protection: their first contents are part of the history.
    fn make_disks(&self) -> anyhow::Result<()> {
        use std::os::unix::fs::FileExt;
        for (index, disk) in (0u32..).zip(&self.config.machines[0].disks) {
            let create = || -> std::io::Result<()> {
                if let Some(parent) = disk.source.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                let file = std::fs::File::create_new(&disk.source)?;
                file.set_len(DISK_BYTES)?;
                for block in (0..blocks_in(PRELOAD_BYTES)).step_by(PRELOAD_BLOCKS as usize) {
                    let write = self.notes.begin(index, block, PRELOAD_BLOCKS, Action::Write).unwrap_or(u64::MAX);
                    let data = stamps::payload(Stamp { disk: index, block, write }, PRELOAD_BLOCKS);
                    file.write_all_at(&data, block * BLOCK_BYTES as u64)?;
                    self.notes.end(write, true);
                }
                file.sync_all()
            };
            create().with_context(|| format!("cannot make {}", disk.source.display()))?;
        }
        Ok(())
    }

    async fn connect(&self) -> anyhow::Result<Vec<Client>> {
        let mut clients = Vec::new();
        for disk in &self.config.machines[0].disks {
            let client = Client::connect(&disk.listen, disk.name.as_str()).await;
            clients.push(client.with_context(|| format!("cannot connect to {}", disk.listen))?);
        }
        Ok(clients)
    }

    async fn mark(&self, label: &str) -> anyhow::Result<Mark> {
        let after = Some(self.notes.now());
        let answer = call(&self.agent_socket(), "/mark", Some(&json!({ "label": label })), PATIENCE).await?;
        let before = Some(self.notes.now());
        let id = answer["id"].as_str().context("a mark has an id")?.to_owned();
        let seq = answer["seq"].as_u64().context("a mark has a seq")?;
        Ok(Mark { id, seq, bounds: Bounds { after, before } })
    }

    /// A time on the wall, and what the client knows of it: what was answered before it was read is not later, and what
    /// is issued a moment after it was read is not earlier.
    async fn moment(&self) -> (Timestamp, Bounds) {
        let after = Some(self.notes.now());
        let time = Timestamp::from(SystemTime::now());
        sleep(Duration::from_millis(2)).await;
        (time, Bounds { after, before: Some(self.notes.now()) })
    }

    /// Waits until the agent's status fits.
    async fn until(&self, what: &str, fits: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = call(&self.agent_socket(), "/status", None, QUESTION_TIMEOUT).await?;
            if fits(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("waited {} s for {what}; the agent says {status}", PATIENCE.as_secs());
            }
            sleep(POLL).await;
        }
    }

    fn watch_rpo(&self) -> tokio::task::JoinHandle<()> {
        let (socket, max) = (self.agent_socket(), self.rpo_micros_max.clone());
        tokio::spawn(async move {
            loop {
                if let Ok(status) = call(&socket, "/status", None, QUESTION_TIMEOUT).await {
                    let micros = status["rpo_seconds"].as_f64().unwrap_or(0.0) * 1e6;
                    // Relaxed: a maximum for the report.
                    max.fetch_max(micros as u64, Ordering::Relaxed);
                }
                sleep(RPO_LOOK).await;
            }
        })
    }

    /// Rubbish over both disks, and the wait until the store has it as well.
    async fn disaster(&self, clients: &[Client]) -> anyhow::Result<()> {
        let mut noise = Noise::new(SEED ^ u64::MAX);
        for client in clients {
            for _ in 0..RUBBISH_PIECES {
                let piece: Vec<u8> =
                    (0..RUBBISH_PIECE_BYTES / 8).flat_map(|_| noise.next_u64().to_le_bytes()).collect();
                let at = noise.below(DISK_BYTES / RUBBISH_PIECE_BYTES as u64) * RUBBISH_PIECE_BYTES as u64;
                client.write(at, Bytes::from(piece), false).await.context("the export refused the rubbish")?;
            }
            client.flush().await.context("the export refused a flush")?;
        }
        let sent = self.until("the next number", |s| s["next_seq"].as_u64().is_some()).await?;
        let last = sent["next_seq"].as_u64().unwrap_or(0).saturating_sub(1);
        self.until("the rubbish to be stored", |s| s["stored"]["seq"].as_u64().is_some_and(|seq| seq >= last)).await?;
        Ok(())
    }

    async fn bytes_stored(&self) -> anyhow::Result<u64> {
        let store = store::Store::open(&self.config.store.cache)?;
        Ok(store.list("machine").await?.iter().map(|(_, bytes)| bytes).sum())
    }

    fn tell_the_work(&self, counts: &Counts) {
        // Relaxed: the writers have ended and were awaited.
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        self.output.say(&format!(
            "The client did {} operations and {} flushes, {} in all; its longest wait was {:.0} ms; it saw {} errors.",
            load(&counts.operations),
            load(&counts.flushes),
            bytes_text(self.report.bytes_written),
            load(&counts.wait_micros_max) as f64 / 1e3,
            load(&counts.failures),
        ));
    }

    fn tell_the_end(&self, took: Duration) {
        let report = &self.report;
        self.output.say(&format!(
            "{}: {} of {} positions, largest lag (outage included) {:.1} s, {} written, {} in the store, first read of \
             a served disk after {:.2} s, {:.0} s in all.",
            if report.verdict == "proved" { "PROVED" } else { "FAILED" },
            report.recovered.iter().filter(|r| r.equal).count(),
            report.recovered.len(),
            report.rpo_seconds_max,
            bytes_text(report.bytes_written),
            bytes_text(report.bytes_stored),
            report.first_read_seconds,
            took.as_secs_f64(),
        ));
    }
}

/// The file `init` wrote, with a free port, quick crash points and the machine of the story.
fn write_config(file: &Path) -> anyhow::Result<()> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .context("cannot find a free port")?
        .port();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut text = text
        .replace("listen = \"127.0.0.1:9443\"", &format!("listen = \"127.0.0.1:{port}\""))
        .replace("crash_every = \"60s\"", "crash_every = \"2s\"");
    text.push_str(&format!("\n[[machine]]\nname = \"{MACHINE}\"\n"));
    for disk in DISKS {
        text.push_str(&format!("\n[[machine.disk]]\nname = \"{disk}\"\nsource = \"disks/{disk}.img\"\n"));
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
