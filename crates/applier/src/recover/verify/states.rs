//! State digests: what the disks of a point hold is reckoned again from the store and compared with what the manifest states.
//!
//! Points are taken in order, each from the one before it by what was written in between, the first from nothing; the last
//! one is reckoned from nothing besides, so that a mistake in going from one to the next would show. Of a sample only steps
//! are taken, from what the point before states: a point from nothing is a whole disk to read.

use std::sync::Arc;

use format::keys::Keys;
use format::manifest::{Manifest, Point};
use format::object::ObjectHash;
use model::MachineName;
use store::Store;

use super::{Findings, Plan, WrongPoint};
use crate::recover::progress::tell;
use crate::recover::{ErrorKind, History, LoadOptions, Reckoned, RecoverError, Stage};

const WRONG: &str = "its disks do not hold what its state digest says";

/// A point to reckon, and in a sample the one to begin from.
struct Task<'a> {
    point: &'a Point,
    from: Option<&'a Point>,
}

/// The points of a manifest that have states and are drawn, in order.
fn tasks<'a>(manifest: &'a Manifest, history: &History, plan: &Plan) -> Vec<Task<'a>> {
    let valid = |point: &&Point| !point.states.is_empty() && history.validity().contains(point.position.seq);
    let mut points: Vec<_> = manifest.points.iter().filter(valid).collect();
    points.sort_by_key(|point| point.position.seq);
    if plan.is_all() {
        return points.into_iter().map(|point| Task { point, from: None }).collect();
    }
    let step = |pair: &[&'a Point]| Task { point: pair[1], from: Some(pair[0]) };
    let drawn = points.windows(2).filter(|pair| plan.draws_point(&pair[1].id.to_string())).map(step);
    let drawn: Vec<_> = drawn.collect();
    match drawn.is_empty() {
        true => points.windows(2).next_back().map(step).into_iter().collect(),
        false => drawn,
    }
}

/// Reckons the points that have states, those drawn or all, and gives those that are wrong and how many were reckoned.
pub(super) async fn check(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    manifest: &Manifest,
    findings: &mut Findings,
) -> Result<(Vec<WrongPoint>, u64), RecoverError> {
    if manifest.points.iter().all(|point| point.states.is_empty()) {
        return Ok((Vec::new(), 0));
    }
    let history = match History::load(store, keys.clone(), machine, LoadOptions::default()).await {
        Err(error) if error.kind() == ErrorKind::Damage => {
            findings.notes.push("the stream is damaged: state digests were not reckoned again".to_owned());
            return Ok((Vec::new(), 0));
        }
        loaded => loaded?,
    };
    let (mut wrong, mut unread, mut earlier) = (Vec::new(), 0, None::<Reckoned>);
    let tasks = tasks(manifest, &history, &findings.plan);
    let total = tasks.len() as u64;
    for (done, Task { point, from }) in tasks.iter().enumerate() {
        tell(&findings.progress, Stage::Reckoning, done as u64, total);
        let (name, stated, last) = (format!("point/{}", point.id), stated(point), done + 1 == tasks.len());
        if findings.state.seen.holds_this(&name, &stated) && !last {
            earlier = history.known(point).await.ok();
            continue;
        }
        if let Some(from) = from {
            earlier = history.known(from).await.ok();
        }
        match reckon(&history, keys, point, earlier.take(), last && from.is_none()).await {
            Ok((reckoned, right)) => {
                match right {
                    true => findings.state.found_whole(&name, stated),
                    false => {
                        wrong.push(WrongPoint { id: point.id.to_string(), seq: point.position.seq, problem: WRONG })
                    }
                }
                earlier = Some(reckoned);
            }
            // The object is named where it is checked, or was not drawn.
            Err(error) if error.kind() == ErrorKind::Damage => {
                findings.note_damage(&error);
                unread += 1;
            }
            Err(error) => return Err(error),
        }
        findings.state.save_if_due().await?;
    }
    if unread > 0 {
        findings.notes.push(format!("state digests of {unread} points were not reckoned again: damage hits them"));
    }
    Ok((wrong, total - unread))
}

/// What a point holds, and whether that is what it states. The `last` one is reckoned in both ways.
async fn reckon(
    history: &History,
    keys: &Keys,
    point: &Point,
    earlier: Option<Reckoned>,
    last: bool,
) -> Result<(Reckoned, bool), RecoverError> {
    let reckoned = history.reckon(keys, point, earlier.as_ref()).await?;
    let mut right = reckoned.states() == point.states;
    if last && earlier.is_some() {
        right &= history.reckon(keys, point, None).await?.states() == point.states;
    }
    Ok((reckoned, right))
}

/// Stands for what a point states.
fn stated(point: &Point) -> ObjectHash {
    let mut hasher = blake3::Hasher::new();
    for state in &point.states {
        hasher.update(state.disk.as_str().as_bytes()).update(&[0]).update(&<[u8; 32]>::from(state.sum));
    }
    ObjectHash(*hasher.finalize().as_bytes())
}
