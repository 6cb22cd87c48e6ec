//! `farshore mark`: a recovery point by name, once it is stored.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use crate::cli::{Global, MarkArgs};
use crate::output::Output;

use super::ask_agent;

/// A mark waits for the store: through a short outage, not for ever.
const MARK_TIMEOUT: Duration = Duration::from_secs(300);

/// Asks the machine's agent.
pub async fn run(global: &Global, args: &MarkArgs, output: Output) -> anyhow::Result<()> {
    let body = json!({ "label": args.label });
    let answer = ask_agent(global, &args.machine, "/mark", &body, MARK_TIMEOUT)
        .await
        .with_context(|| format!("no mark was set on {}", args.machine))?;
    let mut object = answer.clone();
    object["machine"] = json!(args.machine);
    object["label"] = json!(args.label);
    output.print(&object, || {
        let field = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let seq = answer["seq"].as_u64().map_or_else(String::new, |n| n.to_string());
        format!("Stored: point id:{} at seq:{seq} ({}), {:?}", field("id"), field("time"), args.label)
    });
    Ok(())
}
