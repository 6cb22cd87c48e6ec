//! `farshore status`: what the running roles say; of machines whose roles are dead, what the store says.

use model::MachineName;
use serde_json::{Value, json};

use super::point;
use crate::cli::Global;
use crate::config::Config;
use crate::context;
use crate::control::{QUESTION_TIMEOUT, Socket, call};
use crate::failure::one_line;
use crate::output::{Output, bytes_text};
use crate::views;

/// Asks every role of the configuration.
pub async fn run(global: &Global, output: Output) -> anyhow::Result<()> {
    let config = if global.store.is_some() && global.key.is_some() { None } else { Some(context::config(global)?) };
    let mut roles = serde_json::Map::new();
    if let Some(config) = &config {
        for socket in [Socket::ProcessServer, Socket::Applier] {
            let status = ask(config, &socket).await;
            roles.insert(socket.name(), status.unwrap_or(Value::Null));
        }
    }
    let names: Vec<MachineName> = match &config {
        Some(config) => config.machines.iter().map(|m| m.name.clone()).collect(),
        None => store::list_machines(&context::recovery(global).await?.0).await?,
    };
    let mut machines = Vec::new();
    for name in names {
        let agent = match &config {
            Some(config) => ask(config, &Socket::Agent(name.clone())).await,
            None => None,
        };
        let store = if agent.is_none() { from_store(global, &name).await } else { Value::Null };
        machines.push(json!({ "machine": name, "agent": agent, "store": store }));
    }
    let object = json!({ "roles": roles, "machines": machines });
    output.print(&object, || text(&object));
    Ok(())
}

/// A role's own word; none when it does not run or does not answer.
pub(super) async fn ask(config: &Config, socket: &Socket) -> Option<Value> {
    call(&socket.path(config), "/status", None, QUESTION_TIMEOUT).await.ok()
}

/// What the log says of a machine. That the store cannot say is itself a status.
async fn from_store(global: &Global, machine: &MachineName) -> Value {
    match point::points(global, machine).await {
        Ok((head, view)) => json!({
            "head": views::head(&head),
            "points": view.points.len(),
            "last_point": view.points.last(),
            "draining": view.draining,
        }),
        Err(error) => json!({ "error": one_line(&error) }),
    }
}

fn text(object: &Value) -> String {
    let mut text = String::new();
    for (role, status) in object["roles"].as_object().into_iter().flatten() {
        text += &format!("{role}: {}\n", if status.is_null() { "not running here" } else { "running" });
        for machine in status["machines"].as_array().into_iter().flatten() {
            let name = machine["machine"].as_str().unwrap_or_default();
            let troubles = [&machine["store_error"], &machine["last_error"], &machine["replica"]["last_error"]];
            // The process server has machines too, and no replica to say anything of.
            text += &machine.get("replica").map(|replica| replica_text(name, replica)).unwrap_or_default();
            for trouble in troubles.into_iter().filter_map(Value::as_str) {
                text += &format!("  {name}: {trouble}\n");
            }
        }
    }
    for machine in object["machines"].as_array().into_iter().flatten() {
        let name = machine["machine"].as_str().unwrap_or_default();
        let (agent, store) = (&machine["agent"], &machine["store"]);
        text += &match (agent.is_null(), store["error"].as_str()) {
            (false, _) => agent_text(name, agent),
            (true, Some(error)) => format!("{name}: agent not running here; {error}\n"),
            (true, None) => format!(
                "{name}: agent not running here; the store reaches seq:{} of {}, {} points\n",
                store["head"]["seq"],
                store["head"]["time"].as_str().unwrap_or("no time"),
                store["points"]
            ),
        };
    }
    if text.is_empty() { "nothing is configured".into() } else { text }
}

/// What the applier does with the replica of a machine, where that is not plainly to keep it.
fn replica_text(name: &str, replica: &Value) -> String {
    if replica.is_null() {
        return format!("  {name}: no replica is kept (replica = \"none\"); points and maps are made\n");
    }
    match replica["rebuilding"] == Value::Bool(true) {
        true => {
            format!("  {name}: the replica is being rebuilt, seq:{} to seq:{}\n", replica["seq"], replica["moving_to"])
        }
        false => String::new(),
    }
}

fn agent_text(name: &str, agent: &Value) -> String {
    let bytes = |key: &str| bytes_text(agent[key].as_u64().unwrap_or(0));
    let mut text = format!(
        "{name}: {} mode, stored up to seq:{} ({}), lag {:.1} s, queue {}, spool {}, to drain {}, process server {}{}\n",
        agent["mode"].as_str().unwrap_or("unknown"),
        agent["stored"]["seq"],
        agent["stored"]["time"].as_str().unwrap_or_default(),
        agent["rpo_seconds"].as_f64().unwrap_or(0.0),
        bytes("queue_bytes_used"),
        bytes("spool_bytes_used"),
        bytes("to_drain_bytes"),
        agent["connection"].as_str().unwrap_or("not connected"),
        agent["carrier"].as_str().map(|carrier| format!(" ({carrier})")).unwrap_or_default(),
    );
    if let Some(refusal) = agent["refusal"]["text"].as_str() {
        text += &format!("  refused: {refusal}\n");
    }
    if let Some(failure) = agent["connection_failure"].as_str() {
        text += &format!("  {failure}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_applier_that_keeps_no_replica_is_said_to_keep_none() {
        let status = |replica: Value| {
            let applier = json!({ "machines": [{ "machine": "db", "replica": replica }] });
            let process_server = json!({ "machines": [{ "machine": "db" }] });
            text(&json!({ "roles": { "applier": applier, "process-server": process_server }, "machines": [] }))
        };
        let kept = status(json!({ "seq": 12, "rebuilding": false, "last_error": null }));
        assert_eq!(kept, "applier: running\nprocess-server: running\n");
        assert_eq!(status(Value::Null).matches("db: no replica is kept").count(), 1);
    }
}
