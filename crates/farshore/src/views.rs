//! How values look in JSON answers: positions and times as text an operator can read and type back as a selector.

use agent::AgentStatus;
use model::{Event, LogHead};
use serde_json::{Value, json};

/// The end of a stream.
pub fn head(head: &LogHead) -> Value {
    json!({
        "seq": head.position.seq.0,
        "incarnation": head.position.incarnation.to_string(),
        "time": head.time.to_string(),
        "digest": head.digest.to_string(),
    })
}

/// An event.
pub fn event(event: &Event) -> Value {
    json!({
        "time": event.time.to_string(),
        "severity": event.severity,
        "kind": event.kind,
        "message": event.message,
    })
}

/// An agent's status. The flushes have an answer of their own.
pub fn agent(status: &AgentStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_else(|_| json!({}));
    value["stored"] = head(&status.stored);
    value["events"] = status.events.iter().map(event).collect();
    if let Some(drain) = &status.drain {
        value["drain"]["since"] = json!(drain.since.to_string());
    }
    if let Some(fields) = value.as_object_mut() {
        fields.remove("flushes");
    }
    value
}

/// An applier's status.
pub fn applier(status: &applier::ApplierStatus) -> Value {
    let machines = status.machines.iter().map(|machine| {
        let mut value = serde_json::to_value(machine).unwrap_or_else(|_| json!({}));
        value["processed_time"] = json!(machine.processed_time.to_string());
        value["events"] = machine.events.iter().map(event).collect();
        if let Some(replica) = &machine.replica {
            value["replica"]["time"] = json!(replica.time.to_string());
        }
        value
    });
    json!({ "machines": machines.collect::<Vec<_>>() })
}
