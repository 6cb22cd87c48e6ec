//! `farshore verify`: the store read again and everything recomputed.

use std::sync::Arc;

use applier::recover::{VerifyReport, Witness};
use model::Seq;
use serde_json::json;

use super::point;
use crate::cli::{Global, Head, VerifyArgs};
use crate::context;
use crate::failure::Exit;
use crate::output::{Output, Progress, bytes_text};

/// Verifies a machine; exit code 3 when anything is damaged, the tail is lost, or the position asked for is hit.
pub async fn run(global: &Global, args: &VerifyArgs, output: Output) -> anyhow::Result<Exit> {
    let (store, keys) = context::recovery(global).await?;
    let at = match &args.at {
        Some(selector) => match point::processed(global, &args.machine, selector).await? {
            Some(seq) => Some(model::Selector::Seq(seq)),
            None => Some(*selector),
        },
        None => None,
    };
    let witness = args.head.and_then(|head| head.digest.map(|digest| (head.seq, digest)));
    let bar = Progress::counting("verifying objects");
    let progress = Arc::new(move |at: applier::recover::Progress| bar.set(at.done, at.total));
    let mut report = applier::recover::verify(&store, keys, &args.machine, at, witness, Some(progress)).await?;
    if let Some(head) = args.head {
        judge_without_digest(&mut report, head);
    }
    let sound = report.clean() && report.at.as_ref().is_none_or(|at| at.recoverable);
    let mut object = serde_json::to_value(&report)?;
    object["sound"] = json!(sound);
    output.print(&object, || text(&report, sound));
    Ok(if sound { Exit::Done } else { Exit::Damage })
}

/// A witness that noted only a number can still tell that the store ends before it.
fn judge_without_digest(report: &mut VerifyReport, head: Head) {
    if head.digest.is_none() {
        report.notes.retain(|note| !note.starts_with("no witness was given"));
        let stored: Seq = report.head_seq;
        report.witness = match stored >= head.seq {
            true => Witness::Confirmed { seq: head.seq },
            false => Witness::TailLost { witnessed: head.seq, stored },
        };
    }
}

fn text(report: &VerifyReport, sound: bool) -> String {
    let mut text = format!(
        "{}: {} objects with {} read, log ends at {}:{}\n",
        report.machine,
        report.objects,
        bytes_text(report.bytes),
        report.head_seq,
        report.head_digest
    );
    for damage in &report.damages {
        text += &format!("DAMAGED {}: {}\n", damage.path, damage.problem);
        for range in &damage.ranges {
            text += &format!("  hits positions seq:{} to seq:{}\n", range.from, range.to);
        }
        for point in &damage.points {
            text += &format!("  hits point id:{point}\n");
        }
    }
    text += &match &report.witness {
        // A note says so.
        Witness::None => String::new(),
        Witness::Confirmed { seq } => format!("The witness agrees up to seq:{seq}.\n"),
        Witness::TailLost { witnessed, stored } => {
            format!("TAIL LOST: the witness saw seq:{witnessed}, the store ends at seq:{stored}.\n")
        }
        Witness::Differs { seq } => {
            format!("The store holds other records than the witness saw, at seq:{seq} or before.\n")
        }
    };
    if let Some(at) = &report.at {
        text += &format!("Position seq:{} is {}recoverable.\n", at.seq, if at.recoverable { "" } else { "NOT " });
    }
    for note in &report.notes {
        text += &format!("Note: {note}\n");
    }
    text + if sound { "Sound." } else { "NOT sound." }
}
