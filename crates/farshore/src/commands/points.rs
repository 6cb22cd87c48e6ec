//! `farshore points`: what can be recovered.

use serde_json::json;

use super::point;
use crate::cli::{Global, MachineArgs};
use crate::output::Output;
use crate::views;

/// Lists recovery points and valid ranges.
pub async fn run(global: &Global, args: &MachineArgs, output: Output) -> anyhow::Result<()> {
    let (head, view) = point::points(global, &args.machine).await?;
    let object = json!({
        "machine": args.machine,
        "points": view.points,
        "horizon": view.horizon,
        "ranges": view.ranges,
        "draining": view.draining,
        "head": views::head(&head),
    });
    output.print(&object, || {
        let mut text = format!("Recovery points of {}\n", args.machine);
        for point in &view.points {
            text += &format!(
                "  id:{}  {}  seq:{:<12} {:<9} {:<11} {}{}\n",
                point.id,
                point.time,
                point.seq,
                point.kind,
                point.consistency,
                if point.pinned { "pinned " } else { "" },
                point.label.escape_debug()
            );
        }
        if view.horizon > model::Seq::ZERO {
            text += &format!("Up to seq:{} these points alone open: the policy keeps no more.\n", view.horizon);
        }
        text += "Valid positions (any seq or time within)\n";
        for range in &view.ranges {
            text += &format!(
                "  seq:{} to seq:{}  {} to {}\n",
                range.from_seq, range.to_seq, range.from_time, range.to_time
            );
        }
        if view.ranges.is_empty() {
            text += "  none yet: the initial replication has not ended\n";
        }
        if view.draining {
            text += "A drain is running: newer positions become valid when it ends.\n";
        }
        text
    });
    Ok(())
}
