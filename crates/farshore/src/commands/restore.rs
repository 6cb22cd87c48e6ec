//! `farshore restore`: disks at a position, as image files.

use serde_json::{Value, json};

use super::point;
use crate::cli::{Global, RestoreArgs};
use crate::output::{Output, bytes_text};

/// Restores all disks of a machine.
pub async fn run(global: &Global, args: &RestoreArgs, output: Output) -> anyhow::Result<()> {
    let reader = point::open(global, &args.machine, &args.at).await?;
    let bar = point::progress("restoring");
    let report = applier::recover::restore(&reader, None, &args.to, args.format.into(), bar).await?;
    let disks: Vec<Value> = report
        .disks
        .iter()
        .map(|d| {
            json!({
                "disk": d.name,
                "path": d.path.display().to_string(),
                "size": d.size,
                "bytes_written": d.bytes_written,
            })
        })
        .collect();
    let object = json!({
        "machine": args.machine,
        "position": point::position(reader.at()),
        "disks": disks,
        "bytes_written": report.bytes_written,
    });
    output.print(&object, || {
        let mut text = format!("Restored {} as of seq:{} ({})\n", args.machine, report.seq, report.time);
        for disk in &report.disks {
            let (path, data) = (disk.path.display(), bytes_text(disk.bytes_written));
            text += &format!("  {}: {path}, {} with {data} of data\n", disk.name, bytes_text(disk.size));
        }
        text
    });
    Ok(())
}
