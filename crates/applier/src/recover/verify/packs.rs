//! Packs: each that the manifest names is there and whole, every frame in it opens, and what points need is in it.

use std::collections::BTreeSet;

use bytes::Bytes;
use format::FormatError;
use format::keys::Keys;
use format::map::{Owner, SegmentName, tag};
use format::object::ObjectHeader;
use format::pack::{PackIndex, PackRef, index_of};
use format::segment::{FrameOpener, frame_range};
use model::MachineName;
use store::{LogPosition, Store};

use super::stream::Lost;
use super::{Findings, Got, obtain};
use crate::needed::{FrameSet, Marks};
use crate::packs::{pack_path, pack_place};
use crate::recover::RecoverError;

/// Checks a pack; gives the segments of which it hides something that is needed.
pub(super) async fn check(
    store: &Store,
    keys: &Keys,
    machine: &MachineName,
    named: &PackRef,
    marks: &Marks,
    findings: &mut Findings,
) -> Result<Vec<Lost>, RecoverError> {
    let path = pack_path(machine, named.name);
    let first = SegmentName { owner: Owner::SELF, epoch: named.first.0, slot: named.first.1, tag: [0; 8] };
    let last = SegmentName { owner: Owner::SELF, epoch: named.last.0, slot: named.last.1, tag: [u8::MAX; 8] };
    let needed = marks.frames.range(first..=last);
    let nothing = |damage| Check { damage: Some(damage), opens: BTreeSet::new() };
    let checked = match obtain(store, keys, &path, findings).await? {
        None => findings.damage(&path, "missing, though points read from it").map(nothing),
        Some(object) => match open(keys, machine, named, &object) {
            Err(problem) => findings.damage(&path, problem).map(nothing),
            Ok((header, index)) => {
                findings.packs.take(header.total_bytes, object.whole, object.earlier);
                let checked = contents(keys, &path, &header, &index, &object, needed.clone(), findings);
                if object.whole && checked.damage.is_none() {
                    findings.state.found_whole(&path, ObjectHeader::hash(&object.bytes).unwrap_or_default());
                }
                Some(checked)
            }
        },
    };
    let Some(Check { damage: Some(damage), opens }) = checked else { return Ok(Vec::new()) };
    let lost = needed.filter_map(|(segment, wanted)| {
        let whole: BTreeSet<_> = opens.range((*segment, 0)..=(*segment, u32::MAX)).map(|(_, number)| *number).collect();
        let position = LogPosition { epoch: segment.epoch, slot: segment.slot };
        wanted.iter().any(|number| !whole.contains(&number)).then_some(Lost {
            machine: machine.clone(),
            position,
            damage,
            whole,
        })
    });
    Ok(lost.collect())
}

/// What became of a pack.
struct Check {
    /// Its damage.
    damage: Option<usize>,
    /// Frames that open, by segment.
    opens: BTreeSet<(SegmentName, u32)>,
}

fn open(
    keys: &Keys,
    machine: &MachineName,
    named: &PackRef,
    object: &Got,
) -> Result<(ObjectHeader, PackIndex), String> {
    let place = pack_place(machine, named.name);
    let (header, index) = index_of(keys, &place, &object.bytes).map_err(|error| error.to_string())?;
    let ends = index.segments.first().zip(index.segments.last());
    let ends = ends.map(|(first, last)| ((first.epoch, first.slot), (last.epoch, last.slot)));
    let sizes = header.total_bytes == named.bytes && header.table_sealed_bytes == named.index_bytes;
    match ends == Some((named.first, named.last)) && sizes {
        true => Ok((header, index)),
        false => Err("it is not the pack that the manifest names".to_owned()),
    }
}

/// Opens every frame, unless the pack was not read whole: then they are taken for good. A body whose digest is wrong is still
/// opened, to learn which frames are hit.
fn contents<'a>(
    keys: &Keys,
    path: &str,
    header: &ObjectHeader,
    index: &PackIndex,
    object: &Got,
    needed: impl Iterator<Item = (&'a SegmentName, &'a FrameSet)>,
    findings: &mut Findings,
) -> Check {
    let mut damage = match header.check_body(&object.bytes) {
        Err(error) if object.whole => findings.damage(path, error),
        _ => None,
    };
    let mut opens = BTreeSet::new();
    for held in &index.segments {
        let opener = FrameOpener::new(keys, held.id);
        let name = SegmentName { owner: Owner::SELF, epoch: held.epoch, slot: held.slot, tag: tag(&held.id) };
        for frame in &held.frames {
            let sealed = slice(&object.bytes, frame_range(header, frame));
            let opened =
                if object.whole { sealed.and_then(|sealed| opener.open(frame, sealed)).map(|_| ()) } else { Ok(()) };
            match opened {
                Ok(()) => _ = opens.insert((name, frame.number)),
                Err(error) => damage = findings.damage(path, error),
            }
        }
    }
    for (segment, wanted) in needed {
        if damage.is_none() && wanted.iter().any(|number| !opens.contains(&(*segment, number))) {
            let (epoch, slot) = (segment.epoch, segment.slot);
            damage = findings.damage(path, format!("it lacks what points need of epoch {epoch} slot {slot}"));
        }
    }
    Check { damage, opens }
}

fn slice(object: &Bytes, range: std::ops::Range<u64>) -> Result<&[u8], FormatError> {
    let have = object.len() as u64;
    let truncated = FormatError::Truncated { need: range.end, have };
    if range.end > have {
        return Err(truncated);
    }
    object.get(range.start as usize..range.end as usize).ok_or(truncated)
}
