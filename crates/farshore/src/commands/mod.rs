//! The operator's commands, one file for each idea.
//!
//! `points`, `restore`, `serve`, `ls`, `cp`, `verify`, `compare` and `dump` stand on the store and the key alone; `status`, `mark` and
//! `reload` ask running roles.

mod compare;
mod consumers;
mod cp;
mod dump;
mod gc;
mod hold;
mod key;
mod ls;
mod mark;
mod pin;
mod point;
mod points;
mod reload;
mod restore;
mod revoke;
mod serve;
mod stages;
mod status;
mod unprotect;
mod verify;

use std::time::Duration;

use anyhow::Context;
use model::MachineName;
use serde_json::Value;

use crate::cli::{Cli, Command, Global};
use crate::control::{ControlError, Socket, call};
use crate::failure::{Exit, usage};
use crate::output::Output;
use crate::{context, demo, init, roles};

/// Runs one command to its end.
pub async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let output = Output::new(cli.global.json);
    let global = &cli.global;
    match cli.command {
        Command::Demo(args) => {
            return demo::run(&args, output).await.map(|proved| if proved { Exit::Done } else { Exit::Failed });
        }
        Command::Init(args) => key::show_new_site(&init::init(&args.dir).await?, output),
        Command::Key(args) => key::run(global, &args, output).await?,
        Command::Revoke(args) => revoke::run(global, &args, output)?,
        Command::Up => roles::up(global).await?,
        Command::Agent(args) => roles::agent(global, &args).await?,
        Command::ProcessServer => roles::process_server(global).await?,
        Command::Applier => roles::applier(global).await?,
        Command::Status(args) if args.stages => stages::run(global, args.look, output).await?,
        Command::Status(_) => status::run(global, output).await?,
        Command::Points(args) => points::run(global, &args, output).await?,
        Command::Mark(args) => mark::run(global, &args, output).await?,
        Command::Reload(args) => reload::run(global, &args, output).await?,
        Command::Gc(args) => gc::run(global, &args, output).await?,
        Command::Consumers(args) => consumers::run(global, &args, output).await?,
        Command::Pin(args) => pin::run(global, &args, true, output).await?,
        Command::Unpin(args) => pin::run(global, &args, false, output).await?,
        Command::Unprotect(args) => unprotect::run(global, &args, output).await?,
        Command::Restore(args) => restore::run(global, &args, output).await?,
        Command::Serve(args) => serve::run(global, &args, output).await?,
        Command::Ls(args) => ls::run(global, &args, output).await?,
        Command::Cp(args) => cp::run(global, &args, output).await?,
        Command::Verify(args) => return verify::run(global, &args, output).await,
        Command::Compare(args) => return compare::run(global, &args, output).await,
        Command::Dump(args) => return dump::run(global, &args, output),
    }
    Ok(Exit::Done)
}

/// Asks the running agent of a configured machine to do something.
async fn ask_agent(
    global: &Global,
    machine: &MachineName,
    route: &str,
    body: &Value,
    timeout: Duration,
) -> anyhow::Result<Value> {
    let config = context::config(global)?;
    if config.machine(machine).is_none() {
        return Err(usage(format!("no machine {machine} in {}", config.file.display())));
    }
    match call(&Socket::Agent(machine.clone()).path(&config), route, Some(body), timeout).await {
        Err(error @ ControlError::Dead { .. }) => {
            Err(error).with_context(|| format!("the agent of {machine} does not run: start it first"))
        }
        answer => Ok(answer?),
    }
}
