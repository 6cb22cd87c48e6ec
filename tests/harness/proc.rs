//! Child processes that are really killed, paused and stopped, and whose output is kept for the report of a failure.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running child. Killed when dropped.
pub struct Proc {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Proc {
    /// Starts `command` with its output in `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Proc {
        let out = File::options().create(true).append(true).open(log).expect("log file opens");
        let err = out.try_clone().expect("log file handle clones");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        Proc { child, name: name.to_owned(), log: log.to_owned() }
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("child can be killed");
        self.child.wait().expect("killed child can be waited for");
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it has had, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the process runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has memory");
        peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`).
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|s| s.success()), "kill -{signal} {} works", self.name);
    }

    /// Asks it to stop, and waits.
    pub fn stop(self, patience: Duration) -> ExitStatus {
        self.signal("TERM");
        self.wait_ended(patience)
    }

    /// Waits until it ends by itself.
    pub fn wait_ended(mut self, patience: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("child can be waited for") {
                if !status.success() {
                    eprintln!("{} ended with {status}:\n{}", self.name, self.tail());
                }
                return status;
            }
            assert!(start.elapsed() < patience, "{} did not end within {patience:?}:\n{}", self.name, self.tail());
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Whether it still runs; says how it ended otherwise.
    pub fn running(&mut self) -> Result<(), String> {
        match self.child.try_wait().expect("child can be waited for") {
            None => Ok(()),
            Some(status) => Err(format!("{} ended by itself: {status}\n{}", self.name, self.tail())),
        }
    }

    /// Whether its output has this text.
    pub fn said(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).is_ok_and(|log| log.contains(text))
    }

    /// The end of its output.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the output of {}:\n{}", self.name, self.tail());
        }
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}
