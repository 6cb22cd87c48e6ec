//! One site in a temporary directory: made by `farshore init`, run by child processes, asked over its control sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nbd::ListenAddress;
use serde_json::Value;

use super::{Proc, eventually};
use crate::ports::free_port;

/// What a test may choose; everything else is as a user gets it.
#[derive(Debug, Clone)]
pub struct SiteOptions {
    /// Machines: name, and its disks with their sizes in bytes.
    pub machines: Vec<(&'static str, Vec<(&'static str, u64)>)>,
    /// URL of the store; a directory of the site when absent.
    pub store: Option<String>,
    /// Directory of a vault store of its own, in the site's temporary directory; the store is the one store when absent.
    pub vault: Option<&'static str>,
    /// Memory queue of each agent.
    pub queue_bytes: &'static str,
    /// Spool of each agent.
    pub spool_bytes: &'static str,
    /// `tls`, `quic` or `auto`.
    pub transport: &'static str,
    /// Age at which a segment closes.
    pub segment_age: &'static str,
    /// What all machines may have sent that is not stored.
    pub in_flight_bytes: &'static str,
    /// Interval of crash points.
    pub crash_every: &'static str,
    /// Environment of the roles.
    pub environment: Vec<(String, String)>,
    /// Where the site's data lies, when not in its temporary directory.
    pub data_dir: Option<PathBuf>,
    /// Agents know a second process server, which a sibling of the site may run.
    pub second_server: bool,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            machines: vec![("db", vec![("root", 64 << 20), ("data", 32 << 20)])],
            store: None,
            vault: None,
            queue_bytes: "64MiB",
            spool_bytes: "256MiB",
            transport: "tls",
            segment_age: "100ms",
            in_flight_bytes: "96MiB",
            crash_every: "1s",
            environment: Vec::new(),
            data_dir: None,
            second_server: false,
        }
    }
}

/// A site, or a sibling of one. The directory goes when the last of them is dropped.
pub struct Site {
    dir: Arc<tempfile::TempDir>,
    options: SiteOptions,
    /// Goes before the names of a sibling's files; empty for the site itself.
    prefix: String,
    /// Where its own process server listens.
    port: u16,
    /// The process servers that its agents know.
    servers: Vec<u16>,
    /// The recovery key that `init` printed.
    pub recovery_key: String,
}

/// How one run of the command ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Site {
    /// Makes a site with empty sparse sources.
    pub fn new(options: SiteOptions) -> Site {
        let dir = tempfile::Builder::new().prefix("farshore-e2e-").tempdir().expect("temporary directory");
        let servers: Vec<u16> = (0..1 + usize::from(options.second_server)).map(|_| free_port()).collect();
        let (port, prefix, recovery_key) = (servers[0], String::new(), String::new());
        let mut site = Site { dir: Arc::new(dir), options, prefix, port, servers, recovery_key };
        let ran = site.run_bare(&["init", &site.path("site").to_string_lossy()]);
        assert_eq!(ran.code, 0, "init works: {ran:?}");
        let printed = format!("{}\n{}", ran.stdout, ran.stderr);
        site.recovery_key = printed
            .split_whitespace()
            .find(|word| word.starts_with("FARSHORE-KEY-"))
            .unwrap_or_else(|| panic!("init prints a recovery key: {printed}"))
            .to_owned();
        site.furnish();
        site
    }

    /// Other hosts of the same site: roles with the same keys and certificates, and with sources, sockets, state and logs
    /// of their own. Its process server is the second one that the site's agents know, if they know two.
    pub fn sibling(&self, name: &str, options: SiteOptions) -> Site {
        let servers = if options.second_server { self.servers.clone() } else { vec![free_port()] };
        let site = Site {
            dir: self.dir.clone(),
            options,
            prefix: format!("{name}-"),
            port: *servers.last().expect("there is one at least"),
            servers,
            recovery_key: self.recovery_key.clone(),
        };
        site.furnish();
        site
    }

    /// Where its process server listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Writes the configuration and makes empty sources.
    fn furnish(&self) {
        std::fs::write(self.config(), self.config_text()).expect("config is written");
        for (machine, disks) in &self.options.machines {
            for (disk, size) in disks {
                let file = std::fs::File::create(self.source(machine, disk)).expect("source is created");
                file.set_len(*size).expect("source is sized");
            }
        }
    }

    /// Changes the configuration so that a machine has these disks: new ones get a source of zeros, others the size given.
    pub fn change_disks(&mut self, machine: &str, disks: Vec<(&'static str, u64)>) {
        for (disk, size) in &disks {
            let mut options = std::fs::File::options();
            let file = options.create(true).truncate(false).write(true).open(self.source(machine, disk));
            file.and_then(|file| file.set_len(*size)).expect("source is sized");
        }
        let found = self.options.machines.iter_mut().find(|(name, _)| *name == machine);
        found.expect("a machine of the site").1 = disks;
        std::fs::write(self.config(), self.config_text()).expect("config is written");
    }

    fn config_text(&self) -> String {
        let (o, port) = (&self.options, self.port);
        let servers: Vec<String> = self.servers.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let servers = servers.join(", ");
        let data_dir = self.data_dir().to_string_lossy().into_owned();
        let vault = o.vault.map(|_| format!("vault = \"{}\"\n", self.vault_url())).unwrap_or_default();
        let mut text = format!(
            "[site]\nname = \"test\"\ndata_dir = \"{data_dir}\"\n[store]\ncache = \"{}\"\n{vault}[process_server]\n\
             listen = \"127.0.0.1:{port}\"\ntransport = \"{}\"\nsegment_age = \"{}\"\nin_flight_bytes = \"{}\"\n[applier]\nmap_segments = 4\n[policy]\ncrash_every = \"{}\"\n",
            self.store_url(),
            o.transport,
            o.segment_age,
            o.in_flight_bytes,
            o.crash_every
        );
        for (machine, disks) in &o.machines {
            text += &format!(
                "[[machine]]\nname = \"{machine}\"\nprocess_server = [{servers}]\nqueue_bytes = \"{}\"\nspool_bytes = \"{}\"\n",
                o.queue_bytes, o.spool_bytes
            );
            for (disk, _) in disks {
                text += &format!(
                    "[[machine.disk]]\nname = \"{disk}\"\nsource = \"{}\"\nlisten = \"unix:{}\"\n",
                    self.source(machine, disk).to_string_lossy(),
                    self.socket(machine, disk).to_string_lossy()
                );
            }
        }
        text
    }

    /// A path in the site's temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.path(&format!("site/{}farshore.toml", self.prefix))
    }

    /// Where roles keep their state.
    pub fn data_dir(&self) -> PathBuf {
        self.options.data_dir.clone().unwrap_or_else(|| self.path(&format!("site/{}data", self.prefix)))
    }

    /// URL of the store.
    pub fn store_url(&self) -> String {
        let own = || format!("file://{}", self.path("site/store").to_string_lossy());
        self.options.store.clone().unwrap_or_else(own)
    }

    /// URL of the store that holds the history.
    pub fn vault_url(&self) -> String {
        let own = |vault| format!("file://{}", self.path(vault).to_string_lossy());
        self.options.vault.map_or_else(|| self.store_url(), own)
    }

    /// A source disk's file.
    pub fn source(&self, machine: &str, disk: &str) -> PathBuf {
        self.path(&format!("{}{machine}-{disk}.source", self.prefix))
    }

    /// A disk's NBD socket.
    pub fn socket(&self, machine: &str, disk: &str) -> PathBuf {
        self.path(&format!("{}{machine}-{disk}.sock", self.prefix))
    }

    /// The same for NBD clients of ours.
    pub fn nbd(&self, machine: &str, disk: &str) -> ListenAddress {
        ListenAddress::Unix(self.socket(machine, disk))
    }

    /// The same as the URI that libnbd and QEMU read.
    pub fn nbd_uri(&self, machine: &str, disk: &str) -> String {
        format!("nbd+unix:///{disk}?socket={}", self.socket(machine, disk).to_string_lossy())
    }

    /// The command, with the roles' environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farshore"));
        command.env_remove("FARSHORE_CONFIG").envs(self.options.environment.iter().cloned());
        command
    }

    /// Runs a command of the site to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        let config = self.config();
        let mut all = vec!["--config".to_owned(), config.to_string_lossy().into_owned()];
        all.extend(args.iter().map(|a| (*a).to_owned()));
        self.run_bare(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs a command without the site's configuration.
    pub fn run_bare(&self, args: &[&str]) -> Ran {
        let out = self.command().args(args).stdin(Stdio::null()).output().expect("farshore starts");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
    }

    /// Runs a command that must succeed, with `--json`, and reads its one object.
    pub fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(&[&["--json"], args].concat());
        assert_eq!(ran.code, 0, "{args:?} works: {ran:?}");
        serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{args:?} prints one object ({e}): {}", ran.stdout))
    }

    /// Starts a role (`["agent", "db"]`, `["process-server"]`, `["applier"]`, `["up"]`).
    pub fn start(&self, role: &[&str]) -> Proc {
        self.start_with(role, &[])
    }

    /// Starts a role that dies when it reaches the failpoint for the `nth` time.
    pub fn start_armed(&self, role: &[&str], failpoint: &str, nth: u64) -> Proc {
        self.start_with(role, &[("FARSHORE_FAILPOINT", &format!("{failpoint}:{nth}"))])
    }

    fn start_with(&self, role: &[&str], environment: &[(&str, &str)]) -> Proc {
        let mut command = self.command();
        command.envs(environment.iter().copied());
        command.arg("--config").arg(self.config()).args(role);
        command.env("FARSHORE_LOG", std::env::var("FARSHORE_LOG").unwrap_or_else(|_| "info".into()));
        // One log for each role and machine, whatever other words its command line has.
        let log = role.iter().take(2).copied().collect::<Vec<_>>().join("-");
        Proc::start(&role.join(" "), command, &self.path(&format!("{}{log}.log", self.prefix)))
    }

    /// Starts an agent and waits until its disks are served.
    pub fn start_agent(&self, machine: &str) -> Proc {
        let mut agent = self.start(&["agent", machine]);
        eventually("the agent answers", || {
            agent.running()?;
            self.agent_status(machine).map(|_| ())
        });
        let disks = self.options.machines.iter().find(|(name, _)| *name == machine).map(|(_, d)| d.clone());
        for (disk, _) in disks.unwrap_or_default() {
            eventually("the disk is served", || {
                UnixStream::connect(self.socket(machine, disk)).map_err(|e| e.to_string())
            });
        }
        agent
    }

    /// GET or POST on a role's control socket (`agent-db`, `process-server`, `applier`).
    pub fn control(&self, role: &str, method: &str, path: &str, body: &str) -> Result<Value, String> {
        let socket = self.data_dir().join("run").join(format!("{role}.sock"));
        http(&socket, method, path, body)
    }

    /// The agent's own view.
    pub fn agent_status(&self, machine: &str) -> Result<Value, String> {
        self.control(&format!("agent-{machine}"), "GET", "/status", "")
    }

    /// Waits until everything written so far is stored and nothing is left to drain; returns the last stored seq.
    pub fn wait_stored(&self, machine: &str) -> u64 {
        eventually("everything is stored", || {
            let status = self.agent_status(machine)?;
            let next = status["next_seq"].as_u64().ok_or_else(|| format!("no numbers yet: {status}"))?;
            let stored = status["stored"]["seq"].as_u64().unwrap_or(0);
            let settled = status["mode"] == "data" && status["to_drain_bytes"] == 0 && stored + 1 == next && stored > 0;
            if settled { Ok(stored) } else { Err(format!("{status:#}")) }
        })
    }

    /// Restores a position to raw files and returns the path of each disk's file.
    pub fn restore(&self, machine: &str, at: &str, to: &str) -> Vec<(String, PathBuf)> {
        let dir = self.path(to);
        let target = dir.to_string_lossy();
        let ran = self.run(&["restore", machine, "--at", at, "--to", &target, "--format", "raw"]);
        assert_eq!(ran.code, 0, "restore of {machine} at {at} works: {ran:?}");
        let disks = self.options.machines.iter().find(|(name, _)| *name == machine).expect("a machine of the site");
        disks.1.iter().map(|(disk, _)| ((*disk).to_owned(), dir.join(format!("{machine}-{disk}.raw")))).collect()
    }

    /// Asserts that a restored file equals the source it came from.
    pub fn assert_equals_source(&self, machine: &str, restored: &[(String, PathBuf)]) {
        for (disk, path) in restored {
            assert_same(&self.source(machine, disk), path);
        }
    }
}

/// Asserts that two files hold the same bytes; names the first block that differs.
pub fn assert_same(a: &Path, b: &Path) {
    if let Some(why) = difference(a, b) {
        panic!("{} and {} differ: {why}", a.display(), b.display());
    }
}

/// How two files differ, if they do.
pub fn difference(a: &Path, b: &Path) -> Option<String> {
    let read = |p: &Path| std::fs::read(p).unwrap_or_else(|e| panic!("cannot read {}: {e}", p.display()));
    let (left, right) = (read(a), read(b));
    if left.len() != right.len() {
        return Some(format!("{} and {} bytes", left.len(), right.len()));
    }
    let blocks = left.chunks(4096).zip(right.chunks(4096));
    let different: Vec<usize> = blocks.enumerate().filter(|(_, (l, r))| l != r).map(|(i, _)| i).collect();
    different.first().map(|first| format!("{} blocks of 4096 differ, the first is {first}", different.len()))
}

/// One HTTP exchange over a Unix socket.
fn http(socket: &Path, method: &str, path: &str, body: &str) -> Result<Value, String> {
    let mut stream = UnixStream::connect(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(|e| e.to_string())?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: farshore\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let value = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
    if head.starts_with("HTTP/1.1 200") {
        Ok(value)
    } else {
        Err(format!("{}: {value}", head.lines().next().unwrap_or_default()))
    }
}
