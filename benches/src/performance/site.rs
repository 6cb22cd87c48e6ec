//! A site of Farshore in a directory: made by `farshore init`, run as roles in processes of their own, asked over their
//! control sockets, as an operator's would be.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nbd::ListenAddress;
use serde_json::Value;

use crate::Bench;
use crate::link::Namespace;
use crate::measure::{cpu_of, empty_dir, peak_of};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often a role is asked for its status while something is timed.
const ASK: Duration = Duration::from_millis(10);

/// The machine and its disk.
pub const MACHINE: &str = "db";
pub const DISK: &str = "root";

/// A site.
pub struct Site {
    farshore: PathBuf,
    /// Its directory.
    pub dir: PathBuf,
    /// Where the process server listens.
    pub port: u16,
    apart: Option<Apart>,
    /// Further lines of `[process_server]`.
    gateway: String,
}

/// Agent and process server on machines of their own.
pub struct Apart {
    /// Namespaces of the agent and of the process server.
    pub ends: [Arc<Namespace>; 2],
    /// Address of the process server.
    pub server: Ipv4Addr,
    /// By which carrier they talk.
    pub transport: &'static str,
}

/// A role that runs; killed when dropped.
pub struct Role {
    child: Child,
    log: PathBuf,
}

impl Site {
    /// Makes a site whose one machine has one disk. Its store and all its state lie in the directory, which is emptied.
    pub fn make(bench: &Bench, name: &str, source: &Path) -> Result<Site> {
        Self::make_apart(bench, name, source, None)
    }

    /// The same with further lines of `[process_server]`.
    pub fn make_with(bench: &Bench, name: &str, source: &Path, gateway: &str) -> Result<Site> {
        Self::make_as(bench, name, source, None, gateway)
    }

    /// The same; its roles may be apart.
    pub fn make_apart(bench: &Bench, name: &str, source: &Path, apart: Option<Apart>) -> Result<Site> {
        Self::make_as(bench, name, source, apart, "")
    }

    fn make_as(bench: &Bench, name: &str, source: &Path, apart: Option<Apart>, gateway: &str) -> Result<Site> {
        let dir = bench.dir.join(name);
        empty_dir(&dir)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let site = Site { farshore: bench.farshore.clone(), dir, port, apart, gateway: gateway.to_owned() };
        site.bare(&["init", &site.path("site").to_string_lossy()])?;
        site.configure(source, "store", "data")?;
        Ok(site)
    }

    /// Writes the configuration: every key that is not named is as a user gets it.
    pub fn configure(&self, source: &Path, store: &str, data: &str) -> Result<()> {
        let at = |name: &str| self.path(name).display().to_string();
        let (host, carrier) = match &self.apart {
            None => (Ipv4Addr::LOCALHOST, String::new()),
            Some(apart) => (apart.server, format!("transport = \"{}\"\n", apart.transport)),
        };
        let text = format!(
            "[site]\nname = \"bench\"\ndata_dir = \"{data}\"\n[store]\ncache = \"file://{store}\"\n[process_server]\n\
             listen = \"{host}:{port}\"\n{carrier}{gateway}[[machine]]\nname = \"{MACHINE}\"\n[[machine.disk]]\nname = \"{DISK}\"\n\
             source = \"{source}\"\nlisten = \"unix:{socket}\"\n",
            data = at(data),
            store = at(store),
            port = self.port,
            gateway = self.gateway,
            source = source.display(),
            socket = at("nbd.sock"),
        );
        Ok(std::fs::write(self.path("site/farshore.toml"), text)?)
    }

    /// Protects more machines, each of one disk that is this source by another name: one agent at a time can hold it.
    pub fn add_machines(&self, names: &[String], source: &Path) -> Result<()> {
        let mut config = File::options().append(true).open(self.path("site/farshore.toml"))?;
        for name in names {
            let socket = self.path(&format!("{name}.sock"));
            let link = self.path(&format!("{name}.raw"));
            std::fs::hard_link(source, &link)?;
            let (source, socket) = (link.display(), socket.display());
            writeln!(
                config,
                "[[machine]]\nname = \"{name}\"\n[[machine.disk]]\nname = \"{DISK}\"\nsource = \"{source}\"\n\
                 listen = \"unix:{socket}\""
            )?;
        }
        Ok(())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where the disk is served.
    pub fn export(&self) -> ListenAddress {
        ListenAddress::Unix(self.path("nbd.sock"))
    }

    fn bare(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.farshore);
        let out = command.args(args).env_remove("FARSHORE_CONFIG").stdin(Stdio::null()).output()?;
        ensure!(out.status.success(), "farshore {args:?} failed: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs a command of the site.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.bare(&[&["--config", &self.path("site/farshore.toml").to_string_lossy()], args].concat())
    }

    /// Starts a role (`["agent", "db"]`) or a server (`["serve", …]`).
    pub fn start(&self, args: &[&str]) -> Result<Role> {
        let log = self.path(&format!("{}.log", args[0]));
        let out = File::options().create(true).append(true).open(&log)?;
        let mut words = match (&self.apart, args[0]) {
            (Some(apart), "agent") => apart.ends[0].prefix().map(OsString::from).to_vec(),
            (Some(apart), "process-server") => apart.ends[1].prefix().map(OsString::from).to_vec(),
            _ => Vec::new(),
        };
        words.push(self.farshore.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.arg("--config").arg(self.path("site/farshore.toml")).args(args).env_remove("FARSHORE_CONFIG");
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(Role { child: command.spawn()?, log })
    }

    /// Starts the process server and waits until it answers.
    pub fn start_process_server(&self) -> Result<Role> {
        let mut role = self.start(&["process-server"])?;
        role.until("the process server answers", || Ok(self.status("process-server").is_ok()))?;
        Ok(role)
    }

    /// What a role (`agent-db`, `process-server`, `applier`) says of itself.
    pub fn status(&self, role: &str) -> Result<Value> {
        self.status_in("data", role)
    }

    /// The same for roles whose state lies in another directory of the site.
    pub fn status_in(&self, data: &str, role: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(self.path(data).join("run").join(format!("{role}.sock")))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(b"GET /status HTTP/1.1\r\nhost: farshore\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer has a body")?;
        serde_json::from_str(body).with_context(|| format!("{role} said: {answer}"))
    }

    /// Waits until the machine is replicated to its last write; the agent's status then.
    pub fn wait_stored(&self, agent: &mut Role) -> Result<Value> {
        self.wait_stored_of(MACHINE, agent)
    }

    /// The same of one of several machines.
    pub fn wait_stored_of(&self, machine: &str, agent: &mut Role) -> Result<Value> {
        let mut last = Value::Null;
        agent.until("everything is stored", || {
            last = self.status(&format!("agent-{machine}")).unwrap_or_default();
            Ok(is_stored(&last))
        })?;
        Ok(last)
    }

    /// The same, for so long at most.
    pub fn wait_stored_for(&self, agent: &mut Role, limit: Duration) -> Result<Value> {
        let (mut last, begun) = (Value::Null, Instant::now());
        agent.until("everything is stored", || {
            last = self.status(&format!("agent-{MACHINE}")).unwrap_or_default();
            Ok(is_stored(&last) || begun.elapsed() >= limit)
        })?;
        Ok(last)
    }
}

/// Whether the agent of this status is replicated to its last write.
pub fn is_stored(status: &Value) -> bool {
    let (next, stored) = (status["next_seq"].as_u64(), status["stored"]["seq"].as_u64().unwrap_or(0));
    let settled = status["mode"] == "data" && status["to_drain_bytes"] == 0;
    settled && stored > 0 && next == Some(stored + 1)
}

impl Role {
    /// CPU seconds so far.
    pub fn cpu(&self) -> Result<f64> {
        cpu_of(&self.child)
    }

    /// Most resident bytes so far.
    pub fn peak(&self) -> Result<u64> {
        peak_of(&self.child)
    }

    /// Asks until something holds; fails when the role ends or it takes too long.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        while !holds()? {
            let ended = self.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(20).collect();
                bail!("waiting until {what}: {ended:?}: {end:#?}");
            }
            std::thread::park_timeout(ASK);
        }
        Ok(())
    }

    /// Asks it to stop, and waits.
    pub fn stop(mut self) -> Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "a role ended with {status}: {}", std::fs::read_to_string(&self.log)?);
        Ok(())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}
