//! The judge: computes the accepted log from the archive of everything ever written, without the reader under test, and
//! compares what the actors were told with it.

use std::collections::BTreeMap;

use format::object::{LogKind, ObjectHash, ObjectHeader, ObjectKind, Opening, Place, open_small};
use object_store::ObjectStoreExt;
use store::LogPosition;

use crate::actors::machine;
use crate::sim::{Bias, World};

fn path(position: LogPosition) -> String {
    format!("machine/{}/stream/seg/{:016x}/{:016x}", machine(), position.epoch, position.slot)
}

/// Position → (last seq, hash) of every accepted segment.
fn accepted(world: &World, top: u64) -> Result<BTreeMap<LogPosition, (u64, ObjectHash)>, String> {
    let archive = world.with(|r| r.archive.clone());
    let mut chain = Vec::new();
    let (mut epoch, mut end) = (top, 0);
    while epoch > 0 {
        chain.push((epoch, end));
        let position = LogPosition { epoch, slot: 0 };
        let object = archive.get(&path(position)).ok_or("a link of the chain was never written")?;
        let place = Place { machine: Some(machine()), log: Some(LogKind::Stream), epoch, slot: 0 };
        let (_, body) = open_small(&world.keys, ObjectKind::Opening, &place, object).map_err(|e| e.to_string())?;
        let opening = Opening::decode(&body).map_err(|e| e.to_string())?;
        (epoch, end) = (opening.prev_epoch, opening.prev_end);
    }
    let (mut seq, mut all) = (0, BTreeMap::new());
    for (epoch, end) in chain.into_iter().rev() {
        for slot in 1..=end {
            let position = LogPosition { epoch, slot };
            let object = archive.get(&path(position)).ok_or("gap: an accepted slot was never written")?;
            let header = ObjectHeader::parse(&world.keys, object).map_err(|e| e.to_string())?;
            if header.first_seq.0 != seq + 1 {
                return Err("gap: the accepted log skips a record".to_owned());
            }
            seq = header.head.position.seq.0;
            all.insert(position, (seq, ObjectHeader::hash(object).map_err(|e| e.to_string())?));
        }
    }
    Ok(all)
}

/// What is wrong with the run. Loss and voids are named before what the actors themselves complained of: with a rule
/// removed the chain of hashes often turns the one into the other.
pub async fn judge(world: &World, sealed: Result<u64, String>) -> Result<(), String> {
    let complaint = world.with(|r| r.errors.first().cloned()).map_or(Ok(()), Err);
    match sealed {
        Ok(top) => compare(world, top).await.and(complaint),
        Err(error) => complaint.and(Err(error)),
    }
}

async fn compare(world: &World, top: u64) -> Result<(), String> {
    let accepted = accepted(world, top)?;
    world.with(|r| {
        if r.acked.iter().any(|p| !accepted.contains_key(p)) {
            return Err("lost: an acknowledged segment is not in the accepted log");
        }
        let is_accepted =
            |end: &store::LogEnd| accepted.get(&end.position) == Some(&(end.head.position.seq.0, end.hash));
        if r.consumed.iter().any(|end| end.position.slot > 0 && !is_accepted(end)) {
            return Err("void: a reader took in a segment that is not in the accepted log");
        }
        if r.manifests.iter().any(|end| !is_accepted(end)) {
            return Err("bad manifest: it folds what is not in the accepted log");
        }
        Ok(())
    })?;
    let folded = world.with(|r| r.manifests.iter().map(|end| end.position).max().unwrap_or_default());
    // Prefix GC deletes no accepted segment at all; the model's own appliers delete those that are folded.
    let is_needed = |position: &LogPosition| *position > folded || world.bias == Bias::Collecting;
    for position in accepted.keys().filter(|position| is_needed(position)) {
        if world.inner.head(&path(*position).as_str().into()).await.is_err() {
            return Err("deleted: a segment that no acknowledged manifest folds is gone".to_owned());
        }
    }
    Ok(())
}
