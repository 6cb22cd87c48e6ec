//! Fuzzing with cargo-fuzz on the stable toolchain (no sanitizer: the code is safe Rust, panics and allocations are what
//! is hunted). The corpus is committed; new finds are written beside it.

use anyhow::{Result, bail};

use crate::command::{output, run as run_program};
use crate::tools;

/// Memory a target may use, in MiB: every parser's declared cap is far below.
const RSS_LIMIT_MIB: u32 = 2048;

/// Runs one target.
fn run_target(target: &str, seconds: u64) -> Result<()> {
    let time = format!("-max_total_time={seconds}");
    let memory = format!("-rss_limit_mb={RSS_LIMIT_MIB}");
    run_program("cargo", &["fuzz", "run", "-s", "none", "--fuzz-dir", "fuzz", target, "--", &time, &memory])
}

/// Runs every target in turn.
fn run_all(seconds: u64) -> Result<()> {
    let list = output("cargo", &["fuzz", "list", "--fuzz-dir", "fuzz"])?;
    list.lines().map(str::trim).filter(|t| !t.is_empty()).try_for_each(|target| run_target(target, seconds))
}

/// The chore.
pub fn run(target: Option<&str>, seconds: u64) -> Result<()> {
    if seconds == 0 {
        bail!("--seconds must be at least 1");
    }
    tools::cargo_fuzz()?;
    match target {
        Some(target) => run_target(target, seconds),
        None => run_all(seconds),
    }
}
