//! How one process server scales with machines: memory, CPU, requests to the store, and how long writes wait, for 1 to
//! 1,000 machines that are mostly idle, all busy, and all busy beside one that is loud.
//!
//! The gateway is the program itself in a process of its own, with the configuration of a user; machines are simulated in this
//! process ([`machine`]) and speak to it over TLS with certificates of their own. Figures of the gateway come from /proc and
//! from its metrics. Slopes are least squares over the numbers of machines.

mod gateway;
mod machine;
mod report;
mod rounds;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

/// What a run is asked for.
#[derive(Parser)]
#[command(about = "How one process server scales with machines")]
struct Options {
    /// Numbers of machines, each a round with a gateway and a store of its own. Each machine takes an open file here and in the gateway.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    machines: Vec<usize>,
    /// Seconds of each of a round's three parts: idle (35 at least), busy, busy beside a loud machine.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// MB/s that all machines write together when all are busy.
    #[arg(long, default_value_t = 20.0)]
    mb: f64,
    /// Lines for the gateway's [process_server], such as 'segment_age = "5s"'; may be repeated.
    #[arg(long)]
    set: Vec<String>,
    /// Where stores lie; cleaned up.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Where the report is written, as Markdown; it is printed in any case.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The farshore program; the one beside this program when absent.
    #[arg(long)]
    farshore: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let beside = std::env::current_exe()?.with_file_name("farshore");
    let farshore = std::path::absolute(options.farshore.clone().unwrap_or(beside))?;
    ensure!(farshore.is_file(), "{} is not there: build it with the same profile", farshore.display());
    ensure!(options.machines.iter().all(|count| *count > 0), "a round has one machine at least");
    std::fs::create_dir_all(&options.dir)?;
    let dir = tempfile::Builder::new().prefix("scaling-").tempdir_in(std::path::absolute(&options.dir)?)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let plan = rounds::Plan {
        farshore,
        settings: options.set.join("\n"),
        part: Duration::from_secs(options.seconds),
        bytes: options.mb * 1e6,
    };
    let mut done = Vec::new();
    for count in &options.machines {
        let place = dir.path().join(count.to_string());
        std::fs::create_dir(&place)?;
        done.push(runtime.block_on(rounds::run(&plan, &place, *count))?);
        std::fs::remove_dir_all(&place)?;
    }
    let text = report::text(&done);
    println!("{text}");
    if let Some(out) = &options.out {
        std::fs::write(out, &text)?;
    }
    Ok(())
}
