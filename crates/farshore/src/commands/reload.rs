//! `farshore reload`: a running agent takes up its changed configuration.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::{Global, MachineArgs};
use crate::output::Output;

use super::ask_agent;

/// Longer than the agent's own deadlines for requests under way, for the stop and for the start taken together.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Asks the machine's agent.
pub async fn run(global: &Global, args: &MachineArgs, output: Output) -> anyhow::Result<()> {
    let answer = ask_agent(global, &args.machine, "/reload", &json!({}), RELOAD_TIMEOUT)
        .await
        .with_context(|| format!("the agent of {} was not reloaded", args.machine))?;
    output.print(&answer, || summary(&answer));
    Ok(())
}

fn summary(answer: &Value) -> String {
    let list = |key: &str| {
        let names = answer[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let pause = answer["pause_seconds"].as_f64().unwrap_or_default();
    let mut text = format!(
        "Disks added: {}; resized: {}; removed: {}. Clients waited for {pause:.2} s.",
        list("added"),
        list("resized"),
        list("removed")
    );
    if let Some(reason) = answer["unclean"].as_str() {
        text.push_str(&format!("\nWhat was written lately is drained too: {reason}."));
    }
    text
}
