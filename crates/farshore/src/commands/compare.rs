//! `farshore compare`: a source against a position, byte for byte.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use super::point;
use crate::cli::{CompareArgs, Global};
use crate::context;
use crate::control::{ComparedRequest, Socket, call};
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
    let reader = point::open(global, &args.machine, &args.at).await?;
    let disk = reader.disk(&args.disk)?;
    let report = applier::recover::compare(&disk, &device, point::progress("comparing")).await?;
    let at = reader.at().position.seq;
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
        "position": point::position(reader.at()),
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
