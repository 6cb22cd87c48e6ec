//! The chores that chain others: `check`, `test`, `deny`, `soak`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::command::{run, run_with};
use crate::table::Stages;
use crate::{fuzz, tidy, tools};

/// One profile for all tests, so that nothing is built twice: optimised, with every check on.
const PROFILE: [&str; 2] = ["--profile", "ci"];

fn cargo(command: &str, args: &[&str]) -> Result<()> {
    run("cargo", &[&[command], &PROFILE[..], args].concat())
}

fn format_check() -> Result<()> {
    run("cargo", &["fmt", "--all", "--check"])
}

fn clippy() -> Result<()> {
    cargo("clippy", &["--workspace", "--all-targets", "--", "-D", "warnings"])
}

/// The inner loop.
pub fn check() -> Result<()> {
    let mut stages = Stages::default();
    stages.run("tidy", tidy::run)?;
    stages.run("fmt", format_check)?;
    stages.run("clippy", clippy)?;
    stages.run("unit tests", || cargo("test", &["--workspace", "--lib", "--bins"]))?;
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
    stages.run("unit tests", || cargo("test", &["--workspace", "--lib", "--bins"]))?;
    stages.run("install emulators", || tools::azurite().and(tools::moto()).map(|_| ()))?;
    stages.run("tests with real parts", real_parts)?;
    stages.run("fuzz", || fuzz::run(None, fuzz::Form::Ci))?;
    stages.run("deny", || deny(false))?;
    stages.run("release build", || run("cargo", &["build", "--release"]))?;
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
        &["test", "--profile", "ci", "--workspace", "--test", "*", "--", "--test-threads", "2"],
        &[("FARSHORE_AZURITE", &azurite), ("FARSHORE_MOTO", &moto)],
    )
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
