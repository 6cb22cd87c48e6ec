//! The chore `bench`: tools, one build in the release profile, the parts by themselves, and one run of the program `performance` of benches/.

use anyhow::Result;
use clap::Args;

use crate::command::run;
use crate::tools;

/// Where the report of a whole run goes.
const REPORT: &str = "docs/performance.md";

/// What a run is asked for.
#[derive(Args)]
pub struct Wanted {
    /// Build rustic from crates.io and compare with it, too: it takes minutes.
    #[arg(long)]
    rustic: bool,
    /// Options of `performance`, which knows them: `cargo xtask bench -- --help` lists them. A run without any writes the report
    #[arg(last = true)]
    options: Vec<String>,
}

/// Builds farshore and the bench with one choice of features, which is that of what ships; runs the bench, and before a whole run
/// that of the parts.
pub fn run_bench(wanted: &Wanted) -> Result<()> {
    tools::bench(wanted.rustic)?;
    let build = ["build", "--release", "-p", "farshore", "-p", "benches", "--bin", "farshore", "--bin", "performance"];
    run("cargo", &build)?;
    if wanted.options.is_empty() {
        // The same choice of packages, or features would differ and all would be built again.
        run("cargo", &["bench", "-p", "farshore", "-p", "benches", "--bench", "hot-path"])?;
    }
    let given: Vec<&str> = wanted.options.iter().map(String::as_str).collect();
    run("target/release/performance", if given.is_empty() { &["--out", REPORT] } else { &given })
}
