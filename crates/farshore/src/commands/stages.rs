//! `farshore status --stages`: looks twice at what the stages of the running roles have done, and says how fast and how busy each was
//! in between. The stage that is busy nearly all the time is the one that bounds the others.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::status::ask;
use crate::cli::Global;
use crate::config::Config;
use crate::context;
use crate::control::Socket;
use crate::output::{Output, bytes_text};

/// Percent of the time from which on a stage bounds the others.
const BOUNDS_FROM: f64 = 80.0;

/// What an agent has moved, by the name of its counter.
const AGENT_STAGES: [(&str, &str); 3] =
    [("capture", "written_bytes"), ("drain", "drained_bytes"), ("send", "sent_bytes")];

/// Looks for so long.
pub async fn run(global: &Global, look: Duration, output: Output) -> anyhow::Result<()> {
    let config = context::config(global)?;
    let begun = Instant::now();
    let before = roles(&config).await;
    tokio::time::sleep(look).await;
    let after = roles(&config).await;
    let shown = compared(&before, &after, begun.elapsed().as_secs_f64());
    output.print(&shown, || text(&shown));
    Ok(())
}

/// The process server's word, and every agent's.
async fn roles(config: &Config) -> Value {
    let mut agents = serde_json::Map::new();
    for machine in &config.machines {
        let agent = ask(config, &Socket::Agent(machine.name.clone())).await;
        agents.insert(machine.name.to_string(), agent.unwrap_or(Value::Null));
    }
    json!({ "process_server": ask(config, &Socket::ProcessServer).await, "agents": agents })
}

/// What happened between two looks.
fn compared(before: &Value, after: &Value, seconds: f64) -> Value {
    let server = &after["process_server"]["stages"];
    let stages: Vec<Value> = server
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(index, now)| {
            let then = &before["process_server"]["stages"][index];
            let grown = |key: &str| now[key].as_f64().unwrap_or(0.0) - then[key].as_f64().unwrap_or(0.0);
            let places = now["places"].as_f64().unwrap_or(1.0).max(1.0);
            // Work that began before the first look is counted when it ends.
            let busy = (grown("busy_seconds_total") / (seconds * places) * 100.0).clamp(0.0, 100.0);
            json!({
                "stage": now["stage"], "queued": now["queued"], "places": now["places"],
                "bytes_per_second": (grown("bytes_total").max(0.0) / seconds) as u64, "busy_percent": busy,
            })
        })
        .collect();
    let busiest = |a: &&Value, b: &&Value| percent(a).total_cmp(&percent(b));
    let bound_by = stages.iter().max_by(busiest).filter(|stage| percent(stage) >= BOUNDS_FROM);
    let bound_by = bound_by.map_or(Value::Null, |stage| stage["stage"].clone());
    let agents = after["agents"].as_object().into_iter().flatten();
    let agents: Vec<Value> =
        agents.map(|(machine, now)| agent(machine, &before["agents"][machine], now, seconds)).collect();
    json!({ "seconds": seconds, "process_server": stages, "bound_by": bound_by, "agents": agents })
}

fn percent(stage: &Value) -> f64 {
    stage["busy_percent"].as_f64().unwrap_or(0.0)
}

fn agent(machine: &str, then: &Value, now: &Value, seconds: f64) -> Value {
    if now.is_null() {
        return json!({ "machine": machine, "running": false });
    }
    let total = |status: &Value, key: &str| status["counters"][key].as_u64().unwrap_or(0);
    let rate = |key: &str| (total(now, key).saturating_sub(total(then, key)) as f64 / seconds) as u64;
    let stages = AGENT_STAGES.map(|(stage, key)| json!({ "stage": stage, "bytes_per_second": rate(key) }));
    let max = now["queue_bytes_max"].as_f64().unwrap_or(0.0).max(1.0);
    json!({
        "machine": machine, "running": true, "stages": stages, "spool_bytes": now["spool_bytes_used"],
        "queue_percent": now["queue_bytes_used"].as_f64().unwrap_or(0.0) / max * 100.0,
    })
}

fn text(shown: &Value) -> String {
    let rate = |stage: &Value| bytes_text(stage["bytes_per_second"].as_u64().unwrap_or(0));
    let mut text = String::new();
    for stage in shown["process_server"].as_array().into_iter().flatten() {
        text += &format!(
            "process-server {:<9} {:>11}/s, busy {:>3.0} % of {}, {} queued\n",
            stage["stage"].as_str().unwrap_or_default(),
            rate(stage),
            percent(stage),
            stage["places"],
            stage["queued"]
        );
    }
    text += &match (shown["bound_by"].as_str(), text.is_empty()) {
        (_, true) => "process-server: not running here\n".to_owned(),
        (Some(stage), _) => format!("process-server is bound by its {stage} stage\n"),
        (None, _) => "process-server takes what comes: no stage of it is the bound\n".to_owned(),
    };
    for agent in shown["agents"].as_array().into_iter().flatten() {
        let machine = agent["machine"].as_str().unwrap_or_default();
        if agent["running"] == Value::Bool(false) {
            text += &format!("{machine}: agent not running here\n");
            continue;
        }
        for stage in agent["stages"].as_array().into_iter().flatten() {
            text += &format!("{machine} {:<9} {:>11}/s\n", stage["stage"].as_str().unwrap_or_default(), rate(stage));
        }
        let queue = agent["queue_percent"].as_f64().unwrap_or(0.0);
        let spool = bytes_text(agent["spool_bytes"].as_u64().unwrap_or(0));
        text += &format!("{machine} queue {queue:.0} % full, spool {spool}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(seal_seconds: f64, seal_bytes: u64, upload_seconds: f64, written: u64) -> Value {
        let stage = |name: &str, places: u64, bytes: u64, seconds: f64| json!({ "stage": name, "places": places, "busy": 1, "queued": 3, "bytes_total": bytes, "busy_seconds_total": seconds });
        let stages = [stage("pipeline", 2, seal_bytes, seal_seconds), stage("upload", 4, 10, upload_seconds)];
        let counters = json!({ "written_bytes": written, "drained_bytes": 0, "sent_bytes": written });
        let agent =
            json!({ "counters": counters, "queue_bytes_used": 5, "queue_bytes_max": 10, "spool_bytes_used": 0 });
        json!({ "process_server": { "stages": stages }, "agents": { "db": agent, "web": null } })
    }

    #[test]
    fn the_stage_that_is_always_busy_is_the_bound() {
        let shown = compared(&look(1.0, 1000, 1.0, 100), &look(4.8, 9000, 2.0, 300), 2.0);
        assert_eq!(shown["bound_by"], "pipeline");
        assert_eq!(shown["process_server"][0]["bytes_per_second"], 4000);
        assert!((percent(&shown["process_server"][0]) - 95.0).abs() < 0.01, "{shown}");
        assert!((percent(&shown["process_server"][1]) - 12.5).abs() < 0.01, "{shown}");
        assert_eq!(shown["agents"][0]["stages"][0]["bytes_per_second"], 100);
        assert!(text(&shown).contains("bound by its pipeline stage") && text(&shown).contains("queue 50 % full"));
        assert!(text(&shown).contains("web: agent not running here"));
    }

    #[test]
    fn where_no_stage_is_always_busy_none_is_the_bound() {
        let shown = compared(&look(1.0, 1000, 1.0, 100), &look(2.0, 2000, 2.0, 100), 2.0);
        assert_eq!(shown["bound_by"], Value::Null);
        let none = compared(&Value::Null, &Value::Null, 2.0);
        assert!(text(&none).contains("not running"), "{none}");
    }
}
