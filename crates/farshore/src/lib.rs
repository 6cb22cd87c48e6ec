//! The `farshore` command as a library: configuration, commands, roles, and the demo with its oracle.
//!
//! The binary is a thin `main`; what end-to-end tests reuse (the oracle, the workload, configuration) is public here.
//!
//! - [`cli`], [`config`], [`context`]: what the user said; [`failure`], [`output`]: what the user is told;
//! - [`init`], [`keyfile`], [`pki`]: a new site, its key and its certificates;
//! - [`roles`], [`control`], [`views`]: the long-running processes and their sockets;
//! - [`files`]: single files out of a position;
//! - [`commands`]: everything an operator types; [`demo`]: the disaster that proves it.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

pub mod cli;
pub mod commands;
pub mod config;
pub mod context;
pub mod control;
pub mod demo;
pub mod failure;
pub mod files;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod init;
pub mod keyfile;
pub mod output;
pub mod pki;
pub mod roles;
pub mod views;

use cli::{Cli, Command};

/// The program: parses the command line, runs the command, says what went wrong on one line.
pub fn main() -> ExitCode {
    // Another part of the process may have chosen its provider already; it is the same one in every Farshore binary.
    let _already_chosen = rustls::crypto::ring::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version go to standard output and are no mistake.
        Err(answer) if !answer.use_stderr() => answer.exit(),
        Err(mistake) => {
            eprintln!("farshore: {}", failure::usage_line(&mistake));
            return failure::Exit::Usage.into();
        }
    };
    log_to_stderr(&cli.command);
    if let Err(error) = probe::arm_from_environment() {
        eprintln!("farshore: {error}");
        return failure::Exit::Usage.into();
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("farshore: cannot start: {error}");
            return failure::Exit::Failed.into();
        }
    };
    let exit = match runtime.block_on(commands::run(cli)) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("farshore: {}", failure::one_line(&error));
            failure::exit_of(&error)
        }
    };
    // Work on the blocking pool that nobody waits for (a read of standard input) must not hold the process.
    runtime.shutdown_background();
    exit.into()
}

/// Roles log what they do; commands only what is wrong. `FARSHORE_LOG` overrides both.
fn log_to_stderr(command: &Command) {
    let role = matches!(command, Command::Up | Command::Agent(_) | Command::ProcessServer | Command::Applier);
    let default = if role { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("FARSHORE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
