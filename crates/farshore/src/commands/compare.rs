//! `farshore compare`: a source against a position, byte for byte.

use std::time::Duration;

use anyhow::Context;
use applier::recover::{CompareReport, History, Resolved};
use model::{Extent, Selector};
use serde_json::{Value, json};

use super::point;
use crate::cli::{CompareArgs, Global};
use crate::context;
use crate::control::{ComparedRequest, QUESTION_TIMEOUT, Socket, call};
use crate::failure::{Exit, usage};
use crate::output::{Output, bytes_text};

/// Extents shown as text; JSON has them all.
const EXTENTS_SHOWN: usize = 10;
/// How long an agent may take to take a compare in: it writes its dirty map.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(60);

/// Compares; exit code 3 when the two differ and nobody was told to mend it.
pub async fn run(global: &Global, args: &CompareArgs, output: Output) -> anyhow::Result<Exit> {
    let device = disk::RawDisk::open(&args.with, false)
        .map_err(|e| usage(format!("cannot open {} to compare with: {e}", args.with.display())))?;
    let history = point::history(global, &args.machine).await?;
    let (position, report) = match end_without_point(global, args, &history).await? {
        Some(end) => (end, everything(&device)),
        None => {
            let resolved = history.resolve(&args.at, point::processed(global, &args.machine, &args.at).await?).await?;
            let disk = history.open(&resolved).await?.disk(&args.disk)?;
            let report = applier::recover::compare(&disk, &device, point::progress("comparing")).await?;
            (resolved, report)
        }
    };
    let at = position.position.seq;
    if args.drain {
        let socket = Socket::Agent(args.machine.clone()).path(&context::config(global)?);
        let request = ComparedRequest { disk: args.disk.clone(), at, extents: report.differing.clone() };
        let body = serde_json::to_value(&request)?;
        call(&socket, "/compared", Some(&body), HAND_OVER_TIMEOUT)
            .await
            .with_context(|| format!("the agent of {} did not take the result", args.machine))?;
    }
    let differing_bytes: u64 = report.differing.iter().map(model::Extent::len).sum();
    let object = json!({
        "machine": args.machine,
        "disk": args.disk,
        "position": point::position(&position),
        "equal": report.differing.is_empty(),
        "differing": report.differing,
        "differing_bytes": differing_bytes,
        "bytes_compared": report.bytes_compared,
        "handed_to_agent": args.drain,
    });
    output.print(&object, || {
        let compared = bytes_text(report.bytes_compared);
        if report.differing.is_empty() {
            return format!("Equal: {compared} of {} compared with seq:{at}.", args.disk);
        }
        let mut text = format!(
            "Different: {} in {} ranges of {compared} compared with seq:{at}\n",
            bytes_text(differing_bytes),
            report.differing.len()
        );
        for extent in report.differing.iter().take(EXTENTS_SHOWN) {
            text += &format!("  {} bytes at {}\n", extent.len(), extent.offset());
        }
        if args.drain {
            text += "The agent drains them.\n";
        }
        text
    });
    Ok(if report.differing.is_empty() || args.drain { Exit::Done } else { Exit::Damage })
}

/// An agent that was refused goes on only from the log's very end, which is no point if the log ends inside a drain or is
/// empty. Nothing can be compared with it then, so all of the disk counts as different.
async fn end_without_point(global: &Global, args: &CompareArgs, history: &History) -> anyhow::Result<Option<Resolved>> {
    if !args.drain || args.at != Selector::Latest || !history.draining() {
        return Ok(None);
    }
    let socket = Socket::Agent(args.machine.clone()).path(&context::config(global)?);
    let status = call(&socket, "/status", None, QUESTION_TIMEOUT).await?;
    let head = history.head();
    let refused = status["refusal"]["needs_compare"] == Value::Bool(true);
    if refused {
        tracing::warn!(machine = %args.machine, disk = %args.disk, head = %head.position,
            "the log ends where no position is a point: nothing can be compared with it, the whole disk is drained");
    }
    Ok(refused.then_some(Resolved { position: head.position, time: head.time, digest: head.digest }))
}

fn everything(device: &disk::RawDisk) -> CompareReport {
    CompareReport { differing: Extent::new(0, disk::Disk::size(device)).into_iter().collect(), bytes_compared: 0 }
}
