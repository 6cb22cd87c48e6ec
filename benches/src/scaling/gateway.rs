//! The gateway: `farshore process-server` in a process of its own, over a store that is a directory, asked over its control
//! socket and through /proc as an operator would ask.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use transport::Authority;

/// Clock ticks of /proc a second, on every Linux that there is.
const TICKS: f64 = 100.0;

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a starting gateway is asked.
const ASK: Duration = Duration::from_millis(10);

/// A site whose process server runs.
pub struct Gateway {
    farshore: PathBuf,
    dir: PathBuf,
    /// Where it listens.
    pub address: String,
    child: Child,
}

/// What it has used so far.
#[derive(Debug, Clone, Default)]
pub struct Used {
    /// CPU seconds, user and system.
    pub cpu: f64,
    /// Requests to the store, by operation.
    pub requests: BTreeMap<String, f64>,
    /// Payload bytes that came in.
    pub bytes: f64,
}

impl Used {
    /// What was used since `before`.
    pub fn since(&self, before: &Used) -> Used {
        let earlier = |name: &str| before.requests.get(name).copied().unwrap_or_default();
        let requests = self.requests.iter().map(|(name, count)| (name.clone(), count - earlier(name))).collect();
        Used { cpu: self.cpu - before.cpu, requests, bytes: self.bytes - before.bytes }
    }

    /// PUTs: an object is created, never changed.
    pub fn puts(&self) -> f64 {
        self.requests.get("create").copied().unwrap_or_default()
    }

    /// All other requests.
    pub fn reads(&self) -> f64 {
        self.requests.values().sum::<f64>() - self.puts()
    }
}

impl Gateway {
    /// Makes a site in an empty directory and starts its process server.
    pub fn make(farshore: &Path, dir: &Path, settings: &str) -> Result<Self> {
        let site = dir.join("site");
        let mut init = Command::new(farshore);
        let out = init.arg("init").arg(&site).env_remove("FARSHORE_CONFIG").stdin(Stdio::null()).output()?;
        ensure!(out.status.success(), "farshore init failed: {}", String::from_utf8_lossy(&out.stderr));
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let text = format!(
            "[site]\nname = \"bench\"\ndata_dir = \"{data}\"\n[store]\ncache = \"file://{store}\"\n[process_server]\n\
             listen = \"{address}\"\n{settings}\n",
            data = dir.join("data").display(),
            store = dir.join("store").display(),
        );
        std::fs::write(site.join("farshore.toml"), text)?;
        let child = spawn(farshore, dir)?;
        let mut gateway = Self { farshore: farshore.to_owned(), dir: dir.to_owned(), address, child };
        gateway.until_it_answers()?;
        Ok(gateway)
    }

    /// The site's CA, which issues the certificates of simulated machines.
    pub fn authority(&self) -> Result<Authority> {
        Ok(Authority::load(&self.dir.join("site/pki"))?)
    }

    /// Kills it and starts another one in its place.
    pub fn replace(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.farshore, &self.dir)?;
        self.until_it_answers()
    }

    fn until_it_answers(&mut self) -> Result<()> {
        let begun = Instant::now();
        while self.ask("/status").is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > PATIENCE {
                bail!("the process server does not answer: {ended:?}: {}", self.log());
            }
            std::thread::park_timeout(ASK);
        }
        Ok(())
    }

    /// The end of what it logged.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("gateway.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    fn ask(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.dir.join("data/run/process-server.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: farshore\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer has a body")?;
        Ok(body.to_owned())
    }

    /// What it has used so far.
    pub fn used(&self) -> Result<Used> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, rest) = stat.rsplit_once(") ").context("a stat of /proc has a name in parentheses")?;
        let ticks: u64 = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let mut used = Used { cpu: ticks as f64 / TICKS, ..Used::default() };
        for line in self.ask("/metrics")?.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            if let Some(labels) = name.strip_prefix("store_request_seconds_count{operation=\"") {
                used.requests.insert(labels.trim_end_matches("\"}").to_owned(), value);
            } else if name == "process_server_ingest_bytes_total" {
                used.bytes = value;
            }
        }
        Ok(used)
    }

    /// Resident bytes now.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// Most resident bytes since [`Gateway::forget_peak`].
    pub fn peak(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// Lets the peak begin again at what is resident now.
    pub fn forget_peak(&self) -> Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?)
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }
}

fn spawn(farshore: &Path, dir: &Path) -> Result<Child> {
    let out = File::options().create(true).append(true).open(dir.join("gateway.log"))?;
    let mut command = Command::new(farshore);
    command.arg("--config").arg(dir.join("site/farshore.toml")).arg("process-server");
    command.env_remove("FARSHORE_CONFIG").env("FARSHORE_LOG", "warn");
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    Ok(command.spawn()?)
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}
