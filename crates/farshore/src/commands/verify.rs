//! `farshore verify`: the store read again and everything recomputed.

use std::sync::Arc;
use std::time::Duration;

use applier::recover::{Coverage, ProgressFn, Stage, StateFile, VerifyOptions, VerifyReport, Witness, WrongPoint};
use model::Seq;
use serde_json::json;

use super::point;
use crate::cli::{Global, Head, VerifyArgs};
use crate::context;
use crate::failure::Exit;
use crate::output::{Output, Progress, bytes_text};

/// How often the state file is written.
const STATE_EVERY: Duration = Duration::from_secs(10);

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
    let options = VerifyOptions {
        at,
        witness,
        sample: args.sample,
        seed: args.seed,
        state: args.state.clone().map(|path| StateFile { path, every: STATE_EVERY }),
        progress: Some(progress()),
    };
    let mut report = applier::recover::verify(&store, keys, &args.machine, options).await?;
    if let Some(head) = args.head {
        judge_without_digest(&mut report, head);
    }
    let sound = report.clean() && report.at.as_ref().is_none_or(|at| at.recoverable);
    let mut object = serde_json::to_value(&report)?;
    object["sound"] = json!(sound);
    output.print(&object, || text(&report, sound));
    Ok(if sound { Exit::Done } else { Exit::Damage })
}

/// A bar with the rate and the ETA of reading, then one of the points reckoned.
fn progress() -> ProgressFn {
    let (reading, reckoning) = (Progress::new("verifying"), Progress::counting("reckoning points"));
    Arc::new(move |at| match at.stage {
        Stage::Reckoning => reckoning.set(at.done, at.total),
        _ => reading.set(at.done, at.total),
    })
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

/// What was read whole, and what was not.
fn coverage(report: &VerifyReport) -> String {
    let Coverage { objects, bytes, whole_objects, whole_bytes, earlier_objects } = report.segments;
    let (maps, packs) = (report.maps, report.packs);
    let mut text = format!(
        "Read whole: {whole_objects} of {objects} segments ({} of {}), {} of {} maps",
        bytes_text(whole_bytes),
        bytes_text(bytes),
        maps.whole_objects,
        maps.objects
    );
    if packs.objects > 0 {
        text += &format!(", {} of {} packs", packs.whole_objects, packs.objects);
    }
    match earlier_objects + maps.earlier_objects + packs.earlier_objects {
        0 => {}
        earlier => text += &format!("; {earlier} of them before this verify was interrupted"),
    }
    if report.states_reckoned > 0 {
        text += &format!("; state digests of {} points reckoned again", report.states_reckoned);
    }
    match &report.sample {
        None => text + ".\n",
        Some(sample) => {
            text += &format!(
                ".\nOf the others only header and table were: what else is in them was NOT, but where a point was reckoned. --sample {} ",
                sample.share
            );
            text + &format!("--seed {} reads the same again.\n", sample.seed)
        }
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
    text += &coverage(report);
    for damage in &report.damages {
        text += &format!("DAMAGED {}: {}\n", damage.path, damage.problem);
        for range in &damage.ranges {
            text += &format!("  hits positions seq:{} to seq:{}\n", range.from, range.to);
        }
        for point in &damage.points {
            text += &format!("  hits point id:{point}\n");
        }
    }
    for WrongPoint { id, seq, problem } in &report.wrong_points {
        text += &format!("WRONG point id:{id} at seq:{seq}: {problem}\n");
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
