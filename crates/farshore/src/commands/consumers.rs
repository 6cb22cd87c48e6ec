//! `farshore consumers`: the appliers with a vault store of their own that still need a machine's stream in the cache store, and how
//! one that is gone for good is forgotten.

use std::time::Duration;

use serde_json::json;

use crate::cli::{ConsumersArgs, Global};
use crate::context;
use crate::failure::usage;
use crate::output::Output;

/// Runs it.
pub async fn run(global: &Global, args: &ConsumersArgs, output: Output) -> anyhow::Result<()> {
    let (store, keys) = context::recovery(global).await?;
    let list = applier::consumers(&store, &keys, &args.machine).await?;
    if let Some(name) = args.forget {
        if !list.forget(name).await? {
            return Err(usage(format!("no consumer {name} of {}: `farshore consumers {0}` lists them", args.machine)));
        }
        let object = json!({ "machine": args.machine, "forgotten": name.to_string() });
        output.print(&object, || {
            format!("Forgotten: the cache store keeps nothing of {} for consumer {name} any more", args.machine)
        });
        return Ok(());
    }
    let state = list.read().await?;
    let now = model::Timestamp::from(std::time::SystemTime::now());
    let shown = state.consumers.iter().map(|(name, consumer)| {
        json!({
            "name": name.to_string(),
            "vault": consumer.vault,
            "epoch": consumer.epoch,
            "slot": consumer.slot,
            "seq": consumer.seq,
            "stated": consumer.stated.to_string(),
            "age_seconds": now.since(consumer.stated).as_secs(),
        })
    });
    let object = json!({ "machine": args.machine, "trimmed": state.trimmed, "consumers": shown.collect::<Vec<_>>() });
    output.print(&object, || {
        let mut text = String::new();
        for (name, consumer) in &state.consumers {
            let age = humantime::format_duration(Duration::from_secs(now.since(consumer.stated).as_secs()));
            text += &format!(
                "{name}  needs epoch {} and what follows; seq:{} promoted; stated {age} ago; vault store {}\n",
                consumer.epoch, consumer.seq, consumer.vault
            );
        }
        match (state.consumers.is_empty(), state.trimmed) {
            (true, 0) => text + "No consumer; nothing of the stream was trimmed.",
            (true, trimmed) => text + &format!("No consumer; the stream may be gone up to epoch {trimmed}."),
            (false, 0) => text + "Nothing of the stream was trimmed.",
            (false, trimmed) => text + &format!("The stream may be gone up to epoch {trimmed}."),
        }
    });
    Ok(())
}
