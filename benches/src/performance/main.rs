//! Farshore and what others use for the same work, in one run on one machine, against targets that are ratios.
//!
//! Run with `cargo xtask bench`, which installs the peers, builds in the release profile and writes docs/performance.md.
//! Every side of a comparison gets the same inputs, and sides take turns within each round, so that whatever else the
//! machine does meets all of them. Limits (what one core's zstd, AES or BLAKE3 can do, TLS over loopback, the disk) are
//! measured in the same rounds: a target is a ratio to one of them or to a peer, never a figure from another machine.
//!
//! Farshore is the program itself with a configuration file as a user has it: its roles are processes of their own, TLS
//! lies between them, objects are sealed and synced. Nothing is switched off.

mod apply;
mod back;
mod clones;
mod cold;
mod delta;
mod fio;
mod full;
mod increment;
mod inputs;
mod lane;
mod latency;
mod limits;
mod link;
mod machine;
mod measure;
mod noise;
mod parts;
mod peers;
mod report;
mod served;
mod simulated;
mod site;
mod splitter;
mod tls;
mod wan;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;

use inputs::Inputs;
use report::Report;

/// What a run is asked for.
#[derive(Parser)]
#[command(about = "Farshore beside other programs, in one run")]
struct Options {
    /// Rounds; medians and ranges of them are shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Size of the file system's image; everything else follows it.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=65536))]
    mib: u64,
    /// Where inputs and stores lie; cleaned up.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Sections to run: limits always, and of full, increment, clones, noise, delta, splitter, cold, latency, back, served, wan those
    /// that are named.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where the report is written; it is printed in any case.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The farshore program; the one beside this program when absent.
    #[arg(long)]
    farshore: Option<PathBuf>,
}

/// What every section needs.
struct Bench {
    /// The temporary directory.
    dir: PathBuf,
    farshore: PathBuf,
    runs: usize,
    inputs: Inputs,
    runtime: tokio::runtime::Runtime,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let beside = std::env::current_exe()?.with_file_name("farshore");
    let farshore = std::path::absolute(options.farshore.clone().unwrap_or(beside))?;
    ensure!(farshore.is_file(), "{} is not there: build it with the same profile", farshore.display());
    std::fs::create_dir_all(&options.dir)?;
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(std::path::absolute(&options.dir)?)?;
    let before = machine::Load::now()?;
    eprintln!("inputs: an image of {} MiB and what goes with it", options.mib);
    let bench = Bench {
        inputs: Inputs::make(&dir.path().join("inputs"), options.mib)?,
        dir: dir.path().to_owned(),
        farshore,
        runs: options.runs as usize,
        runtime: tokio::runtime::Runtime::new()?,
    };
    let report = sections(&bench, &options.only)?;
    let text = report.text(&machine::describe(&bench, options.mib, &before)?);
    println!("{text}");
    if let Some(out) = &options.out {
        std::fs::write(out, &text)?;
    }
    Ok(())
}

/// The sections in order of importance; a later one may use figures of an earlier one.
fn sections(bench: &Bench, only: &[String]) -> Result<Report> {
    const NAMES: [&str; 11] =
        ["full", "increment", "clones", "noise", "delta", "splitter", "cold", "latency", "back", "served", "wan"];
    let unknown = only.iter().find(|name| !NAMES.contains(&name.as_str()));
    ensure!(unknown.is_none(), "no section is called {:?}; there are {NAMES:?}", unknown.expect("is some"));
    let wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name);
    let mut report = Report::default();
    let full = wanted("full");
    full::run(bench, full, &mut report)?;
    if wanted("increment") {
        increment::run(bench, &mut report)?;
    }
    if wanted("clones") {
        clones::run(bench, &mut report)?;
    }
    if wanted("noise") {
        noise::run(bench, &mut report)?;
    }
    if wanted("delta") {
        delta::run(bench, &mut report)?;
    }
    if wanted("splitter") {
        splitter::run(bench, &mut report)?;
    }
    if wanted("cold") {
        cold::run(bench, &mut report)?;
    }
    if wanted("latency") {
        latency::run(bench, &mut report)?;
    }
    if wanted("back") {
        back::run(bench, &mut report)?;
    }
    if wanted("served") {
        served::run(bench, &mut report)?;
    }
    if wanted("wan") {
        wan::run(bench, &mut report)?;
    }
    report.memory();
    Ok(report)
}
