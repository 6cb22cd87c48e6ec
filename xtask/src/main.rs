//! Every chore of the repository, as `cargo xtask <chore>`.
//!
//! `check` is the inner loop; `test` is everything and is what continuous integration runs. A chore that needs a tool
//! installs it by name or fails: nothing is skipped.

mod bench;
mod checks;
mod command;
mod failpoints;
mod fuzz;
mod table;
mod tidy;
mod tools;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The repository's chores.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Check what the compiler does not: tiers, headers, holes, paths, documents in step. Reports large files.
    Tidy,
    /// The inner loop: tidy, fmt, clippy with warnings denied, unit tests.
    Check,
    /// Everything: installs what it needs, runs all tests with real programs, and the demo. Prints a time table.
    Test,
    /// Licences, banned crates and sources; with --advisories the advisory database too (fetched from its home).
    Deny {
        /// Also check security advisories; needs to reach the advisory database.
        #[arg(long)]
        advisories: bool,
    },
    /// Fuzz one target, or every target in turn.
    Fuzz {
        /// Target; all when absent.
        target: Option<String>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The bounded form: the whole corpus, then a few seconds for each target, two at a time.
        #[arg(long, conflicts_with_all = ["target", "seconds", "minimise"])]
        ci: bool,
        /// Make corpus and new finds together as small as they reach as far, and the corpus of that.
        #[arg(long, conflicts_with = "seconds")]
        minimise: bool,
    },
    /// Whole systems under one seed: fresh seeds with everything going wrong, judged by every oracle.
    Simulate {
        /// Fresh seeds.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first of them; the time of day when absent.
        #[arg(long)]
        first: Option<u64>,
        /// Play this seed alone, telling what every host does (FARSHORE_LOG=debug for more).
        #[arg(long)]
        seed: Option<u64>,
        /// Take every safety rule away, one at a time, and tell how many seeds it takes to notice.
        #[arg(long)]
        rules: bool,
    },
    /// Farshore beside restic, borg and others, in one run, against targets; installs them, writes docs/performance.md.
    Bench(bench::Wanted),
    /// Kill, restart and check, over and over, with fresh seeds.
    Soak {
        /// Rounds of each role.
        #[arg(long, default_value_t = 500)]
        rounds: u32,
        /// First seed; the time of day when absent.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Single files out of XFS and NTFS in points, through libguestfs, which it installs; needs root.
    Libguestfs,
    /// A Debian machine with PostgreSQL under load, started in QEMU from points of one life; `test` starts it from one. Needs root.
    SystemDisk {
        /// Points to start the machine from.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        starts: u32,
    },
}

fn main() -> Result<()> {
    std::env::set_current_dir(command::root())?;
    match Cli::parse().chore {
        Chore::Tidy => tidy::run(),
        Chore::Check => checks::check(),
        Chore::Test => checks::test(),
        Chore::Deny { advisories } => checks::deny(advisories),
        Chore::Fuzz { target, seconds, ci, minimise } => {
            let form = match (ci, minimise) {
                (true, _) => fuzz::Form::Ci,
                (_, true) => fuzz::Form::Minimise,
                _ => fuzz::Form::Long(seconds),
            };
            fuzz::run(target.as_deref(), form)
        }
        Chore::Simulate { seeds, first, seed, rules } => {
            checks::simulate(&checks::Simulate { seeds, first, seed, rules })
        }
        Chore::Bench(wanted) => bench::run_bench(&wanted),
        Chore::Soak { rounds, seed } => checks::soak(rounds, seed),
        Chore::Libguestfs => checks::libguestfs(),
        Chore::SystemDisk { starts } => checks::system_disk(starts),
    }
}
