//! `farshore gc`: what the applier of a machine would delete, and why each object may go; and the collection of segments that
//! machines share.

use applier::{SharedCondemned, SharedOptions, SharedReport};
use model::MachineName;
use serde_json::json;

use crate::cli::{GcArgs, Global};
use crate::context;
use crate::output::Output;

/// Runs it.
pub async fn run(global: &Global, args: &GcArgs, output: Output) -> anyhow::Result<()> {
    match &args.machine {
        Some(machine) => explain(global, machine, output).await,
        None => shared(global, args, output).await,
    }
}

/// Explains every deletion.
async fn explain(global: &Global, machine: &MachineName, output: Output) -> anyhow::Result<()> {
    let (store, keys) = context::recovery(global).await?;
    let plan = applier::preview_collection(&store, &keys, machine).await?;
    let bytes: u64 = plan.garbage.iter().map(|garbage| garbage.bytes).sum();
    let objects: Vec<_> = plan
        .garbage
        .iter()
        .map(|garbage| json!({ "path": garbage.path, "bytes": garbage.bytes, "why": plan.explain(garbage) }))
        .collect();
    let consumers = applier::consumers(&store, &keys, machine).await?.read().await?;
    let waits_for = |epoch: u64| {
        let behind = consumers.consumers.iter().filter(|(_, consumer)| consumer.epoch <= epoch);
        behind.map(|(name, _)| name.to_string()).collect::<Vec<_>>()
    };
    let held: Vec<_> = plan.held.iter().map(|held| (held, plan.explain(held), waits_for(held.epoch))).collect();
    let (through, trimmed) = applier::preview_trimming(&store, &keys, machine).await?;
    let explain_trimmed =
        |path: &str| format!("{path}: in the cache store, and every consumer is behind epoch {through}");
    let shown_held = held
        .iter()
        .map(|(held, why, for_)| json!({ "path": held.path, "bytes": held.bytes, "why": why, "waits_for": for_ }));
    let shown_trimmed =
        trimmed.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes, "why": explain_trimmed(path) }));
    let object = json!({
        "machine": machine,
        "objects": objects,
        "bytes": bytes,
        "held": shown_held.collect::<Vec<_>>(),
        "cache_objects": shown_trimmed.collect::<Vec<_>>(),
    });
    output.print(&object, || {
        let mut text = String::new();
        for garbage in &plan.garbage {
            text += &format!("{}\n", plan.explain(garbage));
        }
        for (_, why, waits_for) in &held {
            text += &format!("{why}; it waits for consumer {}\n", waits_for.join(", "));
        }
        for (path, _) in &trimmed {
            text += &format!("{}\n", explain_trimmed(path));
        }
        let bytes = bytes + trimmed.iter().map(|(_, bytes)| bytes).sum::<u64>();
        text + &format!(
            "{} objects of {}, {bytes} bytes: nothing was deleted. The applier deletes them unless [applier] says gc = false.",
            plan.garbage.len() + trimmed.len(),
            machine
        )
    });
    Ok(())
}

/// One pass of the shared collection.
async fn shared(global: &Global, args: &GcArgs, output: Output) -> anyhow::Result<()> {
    let (store, keys) = context::recovery(global).await?;
    let options = SharedOptions { fence: args.fence, dry_run: args.dry_run };
    let report = applier::collect_shared(&store, &keys, options).await?;
    output.print(&serde_json::to_value(&report)?, || shared_text(&report, args.dry_run));
    Ok(())
}

fn names(machines: &[MachineName]) -> String {
    machines.iter().map(MachineName::as_str).collect::<Vec<_>>().join(", ")
}

fn shared_text(report: &SharedReport, dry_run: bool) -> String {
    let SharedReport { lists, waits_for, deleted, condemned, kept } = report;
    if !waits_for.is_empty() {
        return format!(
            "Nothing was deleted: condemn list {lists} has not been seen by the streams of {}. They see it with their next epoch \
             (epoch_life), or at once with --fence.",
            names(waits_for)
        );
    }
    let mut text = String::new();
    for garbage in deleted {
        text += &format!("{}: condemned, seen by every stream, and nobody reads from it\n", garbage.path);
    }
    for SharedCondemned { machine, epoch, needed_by } in kept {
        text += &format!("epoch {epoch} of {machine}: condemned, kept because {} read from it\n", names(needed_by));
    }
    for SharedCondemned { machine, epoch, .. } in condemned {
        text += &format!("epoch {epoch} of {machine}: nobody else reads from it; condemned by list {}\n", lists + 1);
    }
    let bytes: u64 = deleted.iter().map(|garbage| garbage.bytes).sum();
    let (did, would) = (format!("{} objects deleted, {bytes} bytes.", deleted.len()), " Dry run: nothing was done.");
    text + &did + if dry_run { would } else { "" }
}
