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

/// The process server's word, the applier's, and every agent's.
async fn roles(config: &Config) -> Value {
    let mut agents = serde_json::Map::new();
    for machine in &config.machines {
        let agent = ask(config, &Socket::Agent(machine.name.clone())).await;
        agents.insert(machine.name.to_string(), agent.unwrap_or(Value::Null));
    }
    let process_server = ask(config, &Socket::ProcessServer).await;
    json!({ "process_server": process_server, "applier": ask(config, &Socket::Applier).await, "agents": agents })
}

/// What happened between two looks.
fn compared(before: &Value, after: &Value, seconds: f64) -> Value {
    let server = |look: &Value| look["process_server"]["stages"].clone();
    let stages = all_stages(&server(before), &server(after), seconds);
    let bound_by = busiest(&stages).filter(|stage| percent(stage) >= BOUNDS_FROM);
    let bound_by = bound_by.map_or(Value::Null, |stage| stage["stage"].clone());
    let appliers = after["applier"]["machines"].as_array().into_iter().flatten();
    let appliers: Vec<Value> = appliers
        .map(|now| applier(named(&before["applier"]["machines"], "machine", &now["machine"]), now, seconds))
        .collect();
    let agents = after["agents"].as_object().into_iter().flatten();
    let agents: Vec<Value> =
        agents.map(|(machine, now)| agent(machine, &before["agents"][machine], now, seconds)).collect();
    let applier_runs = !after["applier"].is_null();
    json!({
        "seconds": seconds, "process_server": stages, "bound_by": bound_by,
        "applier": if applier_runs { json!(appliers) } else { Value::Null }, "agents": agents,
    })
}

/// What stages of one role did between two looks.
fn all_stages(before: &Value, after: &Value, seconds: f64) -> Vec<Value> {
    let stages = after.as_array().into_iter().flatten();
    stages
        .map(|now| {
            let then = named(before, "stage", &now["stage"]);
            let places = now["places"].as_f64().unwrap_or(1.0).max(1.0);
            let bytes = grown(then, now, "bytes_total").max(0.0);
            json!({
                "stage": now["stage"], "queued": now["queued"], "places": now["places"],
                "bytes_per_second": (bytes / seconds) as u64, "busy_percent": share(then, now, seconds * places),
            })
        })
        .collect()
}

/// The one of a list that has this name.
fn named<'a>(list: &'a Value, key: &str, name: &Value) -> &'a Value {
    list.as_array().into_iter().flatten().find(|one| one[key] == *name).unwrap_or(&Value::Null)
}

fn grown(then: &Value, now: &Value, key: &str) -> f64 {
    now[key].as_f64().unwrap_or(0.0) - then[key].as_f64().unwrap_or(0.0)
}

/// Percent of the time in which it was at work. Work that began before the first look may be counted when it ends.
fn share(then: &Value, now: &Value, seconds: f64) -> f64 {
    (grown(then, now, "busy_seconds_total") / seconds * 100.0).clamp(0.0, 100.0)
}

fn percent(stage: &Value) -> f64 {
    stage["busy_percent"].as_f64().unwrap_or(0.0)
}

fn busiest(stages: &[Value]) -> Option<&Value> {
    stages.iter().max_by(|a, b| percent(a).total_cmp(&percent(b)))
}

/// The tasks of an applier on one machine. Stages of a task wait for one another, so that none of them need be busy all the time:
/// if the task is, the busiest of them is the bound.
fn applier(then: &Value, now: &Value, seconds: f64) -> Value {
    let tasks = now["tasks"].as_array().into_iter().flatten().map(|now| {
        let then = named(&then["tasks"], "task", &now["task"]);
        let stages = all_stages(&then["stages"], &now["stages"], seconds);
        let busy = share(then, now, seconds);
        let bound_by = busiest(&stages).filter(|_| busy >= BOUNDS_FROM);
        let bound_by = bound_by.map_or(Value::Null, |stage| stage["stage"].clone());
        json!({ "task": now["task"], "busy_percent": busy, "bound_by": bound_by, "stages": stages })
    });
    json!({ "machine": now["machine"], "tasks": tasks.collect::<Vec<_>>() })
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

fn rate(stage: &Value) -> String {
    bytes_text(stage["bytes_per_second"].as_u64().unwrap_or(0))
}

fn applier_text(shown: &Value) -> String {
    let Some(machines) = shown["applier"].as_array() else { return "applier: not running here\n".to_owned() };
    let mut text = String::new();
    for machine in machines {
        let name = machine["machine"].as_str().unwrap_or_default();
        for task in machine["tasks"].as_array().into_iter().flatten() {
            let task_name = task["task"].as_str().unwrap_or_default();
            for stage in task["stages"].as_array().into_iter().flatten() {
                text += &format!(
                    "{name} {task_name:<9} {:<8} {:>11}/s, busy {:>3.0} %, {} queued\n",
                    stage["stage"].as_str().unwrap_or_default(),
                    rate(stage),
                    percent(stage),
                    stage["queued"]
                );
            }
            text += &match task["bound_by"].as_str() {
                Some(stage) => format!("{name} {task_name} is bound by its {stage} stage\n"),
                None => format!("{name} {task_name} takes what comes: it is busy {:.0} %\n", percent(task)),
            };
        }
    }
    text
}

fn text(shown: &Value) -> String {
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
    text += &applier_text(shown);
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

    fn applier_look(fetch_seconds: f64, write_seconds: f64, busy_seconds: f64) -> Value {
        let stage = |name: &str, seconds: f64| json!({ "stage": name, "places": 1, "busy": 0, "queued": 2, "bytes_total": seconds * 1000.0, "busy_seconds_total": seconds });
        let stages = [stage("fetch", fetch_seconds), stage("write", write_seconds)];
        let idle = json!({ "task": "digests", "busy_seconds_total": 1.0, "stages": [stage("digest", 1.0)] });
        let replica = json!({ "task": "replica", "busy_seconds_total": busy_seconds, "stages": stages });
        json!({ "applier": { "machines": [{ "machine": "db", "tasks": [replica, idle] }] } })
    }

    #[test]
    fn the_busiest_stage_of_a_task_that_never_rests_is_its_bound() {
        let shown = compared(&applier_look(1.0, 1.0, 2.0), &applier_look(2.4, 3.6, 5.8), 4.0);
        let tasks = &shown["applier"][0]["tasks"];
        assert_eq!((&tasks[0]["bound_by"], &tasks[1]["bound_by"]), (&json!("write"), &Value::Null), "{shown}");
        assert!((percent(&tasks[0]["stages"][1]) - 65.0).abs() < 0.01 && percent(&tasks[1]) == 0.0, "{shown}");
        assert!(text(&shown).contains("db replica is bound by its write stage"), "{}", text(&shown));
        assert!(text(&shown).contains("db digests takes what comes"), "{}", text(&shown));
        // As long in each stage, but half of it at one time: the task rests.
        let rested = compared(&applier_look(1.0, 1.0, 2.0), &applier_look(2.4, 3.6, 4.6), 4.0);
        assert_eq!(rested["applier"][0]["tasks"][0]["bound_by"], Value::Null, "{rested}");
    }

    #[test]
    fn where_no_stage_is_always_busy_none_is_the_bound() {
        let shown = compared(&look(1.0, 1000, 1.0, 100), &look(2.0, 2000, 2.0, 100), 2.0);
        assert_eq!(shown["bound_by"], Value::Null);
        let none = compared(&Value::Null, &Value::Null, 2.0);
        assert!(text(&none).contains("process-server: not running") && text(&none).contains("applier: not running"));
    }
}
