//! The chore `bench`: tools, one build in the release profile, and one run of the program `performance` of benches/.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::command::run;
use crate::tools;

/// Where the report of a whole run goes.
const REPORT: &str = "docs/performance.md";

/// What a run is asked for; see `performance` for the meaning of each.
#[derive(Args)]
pub struct Wanted {
    /// Rounds of each comparison.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Size of the file system's image in MiB; everything else follows it.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Where inputs and stores lie while it runs.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Only these sections (full, increment, noise, delta, back), printed and not written.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Build rustic from crates.io and compare with it, too: it takes minutes.
    #[arg(long)]
    rustic: bool,
}

/// Builds farshore and the bench with one choice of features, which is that of what ships, and runs the bench.
pub fn run_bench(wanted: &Wanted) -> Result<()> {
    tools::bench(wanted.rustic)?;
    let build = ["build", "--release", "-p", "farshore", "-p", "benches", "--bin", "farshore", "--bin", "performance"];
    run("cargo", &build)?;
    let (runs, mib) = (wanted.runs.to_string(), wanted.mib.to_string());
    let (dir, only) = (wanted.dir.to_string_lossy(), wanted.only.join(","));
    let mut args = vec!["--runs", &runs, "--mib", &mib, "--dir", &dir];
    let more = if wanted.only.is_empty() { ["--out", REPORT] } else { ["--only", &only] };
    args.extend(more);
    run("target/release/performance", &args)
}
