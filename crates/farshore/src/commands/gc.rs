//! `farshore gc --dry-run`: what the applier would delete, and why each object may go.

use serde_json::json;

use crate::cli::{GcArgs, Global};
use crate::context;
use crate::output::Output;

/// Explains every deletion.
pub async fn run(global: &Global, args: &GcArgs, output: Output) -> anyhow::Result<()> {
    let (store, keys) = context::recovery(global).await?;
    let plan = applier::preview_collection(&store, &keys, &args.machine).await?;
    let bytes: u64 = plan.garbage.iter().map(|garbage| garbage.bytes).sum();
    let objects: Vec<_> = plan
        .garbage
        .iter()
        .map(|garbage| json!({ "path": garbage.path, "bytes": garbage.bytes, "why": plan.explain(garbage) }))
        .collect();
    let object = json!({ "machine": args.machine, "objects": objects, "bytes": bytes });
    output.print(&object, || {
        let mut text = String::new();
        for garbage in &plan.garbage {
            text += &format!("{}\n", plan.explain(garbage));
        }
        text + &format!(
            "{} objects of {}, {bytes} bytes: nothing was deleted. The applier deletes with gc = true in [applier].",
            plan.garbage.len(),
            args.machine
        )
    });
    Ok(())
}
