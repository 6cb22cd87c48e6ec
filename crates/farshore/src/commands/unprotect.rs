//! `farshore unprotect`: the end of a machine's protection.

use anyhow::{Context, bail};
use model::MachineName;

use crate::cli::{Global, UnprotectArgs};
use crate::config::Config;
use crate::context;
use crate::control::{QUESTION_TIMEOUT, RoleLock, Socket, call};
use crate::output::{Output, bytes_text};

/// Says what is kept of a machine or, with `--purge`, deletes it.
pub async fn run(global: &Global, args: &UnprotectArgs, output: Output) -> anyhow::Result<()> {
    let config = if global.store.is_some() && global.key.is_some() { None } else { Some(context::config(global)?) };
    if let Some(config) = &config {
        refuse_while_protected(config, &args.machine, args.purge).await?;
    }
    let (store, keys) = context::recovery(global).await?;
    let data_dir = config.as_ref().map(|c| c.site.data_dir.as_path());
    let report = applier::unprotect(&store, keys, data_dir, &args.machine, args.purge).await?;
    if let Some(config) = config.as_ref().filter(|_| args.purge) {
        forget_agent(config, &args.machine)?;
    }
    output.print(&serde_json::to_value(&report)?, || {
        let what = format!(
            "{} objects with {} in the store, {} replica files",
            report.objects,
            bytes_text(report.bytes),
            report.replica_files
        );
        match report.purged {
            true => format!("Deleted all of {}: {what}.", report.machine),
            false => format!("{} is not protected any more. Kept: {what}. Delete them with --purge.", report.machine),
        }
    });
    Ok(())
}

/// Protection ends by stopping the agent and taking the machine out of the configuration; this command only sees to what
/// is left, and a role that still works on the machine would bring it back.
async fn refuse_while_protected(config: &Config, machine: &MachineName, purge: bool) -> anyhow::Result<()> {
    let runs = async |socket: &Socket| call(&socket.path(config), "/status", None, QUESTION_TIMEOUT).await;
    if runs(&Socket::Agent(machine.clone())).await.is_ok() {
        bail!("the agent of {machine} runs: stop it and take the machine out of {} first", config.file.display());
    }
    let followed = runs(&Socket::Applier).await.ok().is_some_and(|status| {
        status["machines"].as_array().is_some_and(|all| all.iter().any(|m| m["machine"] == machine.as_str()))
    });
    if purge && followed {
        bail!(
            "the applier follows {machine}: take the machine out of {} and restart the applier first",
            config.file.display()
        );
    }
    Ok(())
}

/// A dirty map knows a stream that is gone now: with it, a machine protected again would be refused for a lost store.
fn forget_agent(config: &Config, machine: &MachineName) -> anyhow::Result<()> {
    let _held = RoleLock::take(config, Socket::Agent(machine.clone()))?;
    let state = config.agent_dir(machine);
    match std::fs::remove_dir_all(&state) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}: remove it yourself", state.display()))
        }
        _ => Ok(()),
    }
}
