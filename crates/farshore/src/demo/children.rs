//! The roles of the demo as processes of their own: this same binary, so that the demo runs what is shipped, and a kill
//! is a kill.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::config::Config;
use crate::control::{QUESTION_TIMEOUT, Socket, call};

/// How long a role may take to answer after its start.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a recovery command of the demo may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two looks at something that is to become true.
pub const POLL: Duration = Duration::from_millis(50);
/// Lines of a log shown when a role fails.
const LOG_LINES_SHOWN: usize = 5;

/// How to start children.
pub struct Launcher {
    /// The farshore binary.
    pub exe: PathBuf,
    /// The demo's configuration file.
    pub config: PathBuf,
    /// Directory of their logs.
    pub logs: PathBuf,
}

/// A child that is killed when dropped.
pub struct Role {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Launcher {
    fn command(&self, name: &str, arguments: &[&str]) -> anyhow::Result<(Command, PathBuf)> {
        let log = self.logs.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(&self.exe);
        command.arg("--config").arg(&self.config).args(arguments);
        command.stdin(Stdio::null()).stderr(file).kill_on_drop(true);
        Ok((command, log))
    }

    /// Starts a role and waits until its socket answers.
    pub async fn role(&self, config: &Config, socket: &Socket) -> anyhow::Result<Role> {
        let name = socket.name();
        let arguments: Vec<&str> = match socket {
            Socket::ProcessServer => vec!["process-server"],
            Socket::Applier => vec!["applier"],
            Socket::Agent(machine) => vec!["agent", machine.as_str()],
        };
        let (mut command, log) = self.command(&name, &arguments)?;
        let child = command.stdout(Stdio::null()).spawn().with_context(|| format!("cannot start {name}"))?;
        let mut role = Role { child, name, log };
        let (path, deadline) = (socket.path(config), Instant::now() + READY_TIMEOUT);
        loop {
            if call(&path, "/status", None, QUESTION_TIMEOUT).await.is_ok() {
                return Ok(role);
            }
            if let Some(status) = role.child.try_wait()? {
                bail!("{} ended at its start ({status}): {}", role.name, last_lines(&role.log));
            }
            if Instant::now() > deadline {
                bail!("{} does not answer on its socket: {}", role.name, last_lines(&role.log));
            }
            sleep(POLL).await;
        }
    }

    /// Runs a command with `--json` to its end and returns the object it printed.
    pub async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let (mut command, log) = self.command("commands", arguments)?;
        command.arg("--json").stdout(Stdio::piped());
        let output = tokio::time::timeout(COMMAND_TIMEOUT, command.output())
            .await
            .with_context(|| format!("`farshore {}` did not end in time", arguments.join(" ")))??;
        if !output.status.success() {
            bail!("`farshore {}` ended with {}: {}", arguments.join(" "), output.status, last_lines(&log));
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`farshore {}` printed no JSON object", arguments.join(" ")))
    }

    /// Starts a command that prints one JSON object when it is ready and then goes on.
    pub async fn serving(&self, name: &str, arguments: &[&str]) -> anyhow::Result<(Role, Value)> {
        let (mut command, log) = self.command(name, arguments)?;
        let mut child =
            command.arg("--json").stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("standard output was piped")?;
        let role = Role { child, name: name.to_owned(), log };
        let mut line = String::new();
        tokio::time::timeout(COMMAND_TIMEOUT, BufReader::new(stdout).read_line(&mut line))
            .await
            .with_context(|| format!("{name} is not ready in time"))??;
        let value = serde_json::from_str(&line)
            .map_err(|_| anyhow::anyhow!("{name} did not become ready: {}", last_lines(&role.log)))?;
        Ok((role, value))
    }
}

impl Role {
    /// SIGKILL, and waits until the process is gone.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(LOG_LINES_SHOWN).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
