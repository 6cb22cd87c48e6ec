//! `farshore restore`: disks at a position, as image files.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use applier::recover::{ProgressFn, RestoreOptions, RestoreReport, Stage};
use serde_json::{Value, json};

use super::hold::Keeper;
use super::point;
use crate::cli::{Global, RestoreArgs};
use crate::output::{Output, Progress, bytes_text};

/// Restores all disks of a machine, or goes on with that.
pub async fn run(global: &Global, args: &RestoreArgs, output: Output) -> anyhow::Result<()> {
    let reader = point::open(global, &args.machine, &args.at).await?;
    let begun = Instant::now();
    let options = RestoreOptions { format: args.format.into(), read_back: !args.no_verify, progress: Some(progress()) };
    let keeper = Keeper::start(&reader).await;
    let restored = applier::recover::restore(&reader, None, &args.to, options).await;
    keeper.end().await;
    let report = restored?;
    let seconds = begun.elapsed().as_secs_f64();
    let disks: Vec<Value> = report
        .disks
        .iter()
        .map(|d| {
            json!({
                "disk": d.name,
                "path": d.path.display().to_string(),
                "size": d.size,
                "bytes_written": d.bytes_written,
                "bytes_resumed": d.bytes_resumed,
            })
        })
        .collect();
    let object = json!({
        "machine": args.machine,
        "position": point::position(reader.at()),
        "disks": disks,
        "bytes_written": report.bytes_written,
        "bytes_resumed": report.bytes_resumed,
        "bytes_verified": report.bytes_verified,
        "seconds": seconds,
    });
    output.print(&object, || text(args, &report, seconds));
    Ok(())
}

fn text(args: &RestoreArgs, report: &RestoreReport, seconds: f64) -> String {
    let mut text = format!("Restored {} as of seq:{} ({})\n", args.machine, report.seq, report.time);
    for disk in &report.disks {
        let (path, data) = (disk.path.display(), bytes_text(disk.bytes_written + disk.bytes_resumed));
        text += &format!("  {}: {path}, {} with {data} of data\n", disk.name, bytes_text(disk.size));
    }
    text += &format!("Wrote {} in {seconds:.1} s", bytes_text(report.bytes_written));
    if report.bytes_resumed > 0 {
        text += &format!(", after {} of an earlier try", bytes_text(report.bytes_resumed));
    }
    match args.no_verify {
        true => text += "; not read back",
        false => text += &format!("; {} read back and found as written", bytes_text(report.bytes_verified)),
    }
    text
}

/// A bar with the rate and the ETA of writing, then of reading back.
fn progress() -> ProgressFn {
    let (bar, stage) = (Progress::new("restoring"), Mutex::new(None));
    Arc::new(move |at| {
        let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
        if stage.replace(at.stage) != Some(at.stage) {
            bar.begin(if at.stage == Stage::ReadingBack { "reading back" } else { "restoring" }, at.done);
        }
        bar.set(at.done, at.total);
    })
}
