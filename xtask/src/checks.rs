//! The chores that chain others: `check`, `test`, `deny`, `soak`, `system-disk`, `libguestfs`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::command::{run, run_with};
use crate::table::Stages;
use crate::{fuzz, tidy, tools};

/// One profile for all tests, so that nothing is built twice: optimised, with every check on.
const PROFILE: [&str; 2] = ["--profile", "ci"];

/// Threads of unit tests: on two processors, more of them wait for a sync than work.
const UNIT_THREADS: &str = "4";

/// Threads of the tests with real parts: they wait for processes and disks a third of the time.
const REAL_THREADS: &str = "3";

fn cargo(command: &str, args: &[&str]) -> Result<()> {
    run("cargo", &[&[command], &PROFILE[..], args].concat())
}

fn format_check() -> Result<()> {
    run("cargo", &["fmt", "--all", "--check"])
}

fn clippy() -> Result<()> {
    cargo("clippy", &["--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn unit_tests() -> Result<()> {
    cargo("test", &["--workspace", "--lib", "--bins", "--", "--test-threads", UNIT_THREADS])
}

/// The inner loop.
pub fn check() -> Result<()> {
    let mut stages = Stages::default();
    stages.run("tidy", tidy::run)?;
    stages.run("fmt", format_check)?;
    stages.run("clippy", clippy)?;
    stages.run("unit tests", unit_tests)?;
    stages.print();
    Ok(())
}

/// Everything.
pub fn test() -> Result<()> {
    let mut stages = Stages::default();
    stages.run("install packages", tools::debian)?;
    stages.run("tidy", tidy::run)?;
    stages.run("fmt", format_check)?;
    stages.run("build", || cargo("test", &["--workspace", "--no-run"]))?;
    stages.run("clippy", clippy)?;
    stages.run("unit tests", unit_tests)?;
    stages.run("install emulators", || tools::azurite().and(tools::moto()).map(|_| ()))?;
    stages.run("simulation, real parts", real_parts)?;
    stages.run("fuzz", || fuzz::run(None, fuzz::Form::Ci))?;
    stages.run("deny", || deny(false))?;
    stages.run("release build", || run("cargo", &["build", "--release"]))?;
    stages.run("no switches in release", release_is_unarmed)?;
    stages.run("demo", || run("cargo", &["run", "--release", "--quiet", "--", "demo"]))?;
    stages.print();
    Ok(())
}

/// Real roles, real programs, real faults; emulators of cloud stores are told where they are. Always the whole workspace:
/// a smaller selection would choose other features of the dependencies and build them again.
fn real_parts() -> Result<()> {
    let (azurite, moto) = (tools::azurite()?, tools::moto()?);
    let (azurite, moto) = (azurite.to_string_lossy(), moto.to_string_lossy());
    run_with(
        "cargo",
        &["test", "--profile", "ci", "--workspace", "--test", "*", "--", "--test-threads", REAL_THREADS],
        &[("FARSHORE_AZURITE", &azurite), ("FARSHORE_MOTO", &moto)],
    )
}

/// What ships has no failpoints and no removable rules; what is tested has, or this check would prove nothing.
fn release_is_unarmed() -> Result<()> {
    let has_switches = |profile: &str| -> Result<bool> {
        let path = format!("target/{profile}/farshore");
        let binary = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
        let name = b"FARSHORE_FAILPOINT";
        Ok(binary.windows(name.len()).any(|window| window == name))
    };
    if !has_switches("ci")? {
        bail!("the binary of the tests has no failpoints: no test ran with them");
    }
    if has_switches("release")? {
        bail!("the release binary has test-only switches: who turned on the feature `armed`?");
    }
    Ok(())
}

/// What `simulate` is asked for.
pub struct Simulate {
    /// Fresh seeds.
    pub seeds: u64,
    /// The first of them.
    pub first: Option<u64>,
    /// One seed to play again.
    pub seed: Option<u64>,
    /// The table of removed rules instead.
    pub rules: bool,
}

/// Whole systems under fresh seeds, one seed again, or every safety rule taken away.
pub fn simulate(wanted: &Simulate) -> Result<()> {
    let (target, filter) = if wanted.rules { ("rules", "every_rule") } else { ("simulation", "fresh_seeds") };
    let mut env = vec![("FARSHORE_SIM_SEEDS", wanted.seeds.to_string())];
    env.extend(wanted.first.map(|first| ("FARSHORE_SEED", first.to_string())));
    if let Some(seed) = wanted.seed {
        env.push(("FARSHORE_SIM_ONLY", seed.to_string()));
        env.push(("FARSHORE_LOG", std::env::var("FARSHORE_LOG").unwrap_or_else(|_| "info".to_owned())));
    }
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let args = ["test", "--profile", "ci", "--workspace", "--test", target, filter, "--", "--nocapture"];
    run_with("cargo", &args, &env)
}

/// Licences, bans, sources, and on request advisories.
pub fn deny(advisories: bool) -> Result<()> {
    tools::cargo_deny()?;
    run("cargo", &["deny", "--log-level", "error", "check", "licenses", "bans", "sources"])?;
    if advisories {
        run("cargo", &["deny", "check", "advisories"])?;
    }
    Ok(())
}

/// The kill rounds of the end-to-end tests, many times over.
pub fn soak(rounds: u32, seed: Option<u64>) -> Result<()> {
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs());
    let seed = seed.unwrap_or_else(fresh).to_string();
    println!("soak: {rounds} rounds of each role, seed {seed}");
    run_with(
        "cargo",
        &[
            "test",
            "--profile",
            "ci",
            "--workspace",
            "--test",
            "end_to_end",
            "kill",
            "--",
            "--nocapture",
            "--test-threads",
            "1",
        ],
        &[("FARSHORE_KILL_ROUNDS", &rounds.to_string()), ("FARSHORE_SEED", &seed)],
    )
}

/// The end-to-end test of a whole machine, for more points of one life than `test` starts.
pub fn system_disk(starts: u32) -> Result<()> {
    tools::debian()?;
    run_with(
        "cargo",
        &["test", "--profile", "ci", "--workspace", "--test", "end_to_end", "system_disk", "--", "--nocapture"],
        &[("FARSHORE_SYSTEM_STARTS", &starts.to_string())],
    )
}

/// The end-to-end test of file systems that libguestfs reads, which `test` leaves out: a fresh machine may not get what it needs.
pub fn libguestfs() -> Result<()> {
    if crate::command::output("id", &["-u"])?.trim() != "0" {
        bail!("file systems are made and mounted, which needs root: run `cargo xtask libguestfs` as root");
    }
    tools::debian()?;
    tools::libguestfs()?;
    run_with(
        "cargo",
        &["test", "--profile", "ci", "--workspace", "--test", "end_to_end", "guest_files", "--", "--nocapture"],
        &[("FARSHORE_LIBGUESTFS", "1")],
    )
}
