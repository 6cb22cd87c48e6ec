//! The judge. It may be asked in any state: if everybody stopped now, for ever, is every promise kept?
//!
//! It follows the log by the words of RFC 0001 in a world that stands still, and compares with everything that was ever
//! written, deleted or not. It uses nothing of what the parties use to read.

use crate::world::{At, EPOCHS, Log, Objects, Point, SLOTS, Slots, World, places};

/// The end of an opened epoch as it lies there: its slots up to the first hole.
fn end_of(log: &Objects, mut at: At, mut says: Point) -> (At, Point) {
    while let Some(object) = log.read(at.next()) {
        (at, says) = (at.next(), object.says);
    }
    (at, says)
}

fn highest_opened(log: &Objects, above: u8) -> Option<(At, Point)> {
    let opened = (above + 1..=log.highest(0)).rev();
    opened.map(|epoch| At { epoch, slot: 0 }).find_map(|at| Some((at, log.read(at)?.says)))
}

/// What the newest manifest folds.
fn newest(world: &World) -> Point {
    match highest_opened(&world.manifest, 0) {
        None => Point::default(),
        Some((at, says)) => end_of(&world.manifest, at, says).1,
    }
}

/// The accepted log, as whoever opens an epoch now will state it: each position with its record.
struct Accepted {
    records: [[Option<u8>; SLOTS]; EPOCHS],
}

impl Accepted {
    fn record(&self, at: At) -> Option<u8> {
        self.records[usize::from(at.epoch)][usize::from(at.slot)]
    }

    /// Walks down the links from `end`, through all that was ever written, and then counts records upwards.
    fn below(stream: &Objects, end: At) -> Result<Self, &'static str> {
        let (mut chain, mut at) = (Vec::with_capacity(EPOCHS), end);
        while at.epoch > 0 {
            chain.push(at);
            let opening = stream.ever(At { slot: 0, ..at }).ok_or("gap: an opening was never written")?;
            if opening.continues.epoch >= at.epoch {
                return Err("gap: a link points up");
            }
            at = opening.continues;
        }
        let (mut records, mut last) = ([[None; SLOTS]; EPOCHS], 0);
        for end in chain.into_iter().rev() {
            for slot in 0..=end.slot {
                let object = stream.ever(At { slot, ..end }).ok_or("gap: an accepted slot was never written")?;
                if object.says.record != last + u8::from(slot > 0) {
                    return Err("gap: the accepted log skips a record");
                }
                last = object.says.record;
                records[usize::from(end.epoch)][usize::from(slot)] = Some(last);
            }
        }
        Ok(Self { records })
    }

    fn holds_all(&self, of: &Slots) -> bool {
        places(of).all(|at| at.slot == 0 || self.record(at).is_some())
    }
}

/// What is wrong, if anything.
pub fn judge(world: &World, with_stream: bool) -> Result<(), &'static str> {
    let folded = newest(world);
    if folded < world.observed.newest_folded {
        return Err("manifest lost: an acknowledged manifest is not in the accepted manifest log");
    }
    if with_stream {
        judge_stream(world, folded)?;
    }
    world.observed.wrong.map_or(Ok(()), Err)
}

fn judge_stream(world: &World, folded: Point) -> Result<(), &'static str> {
    let stream = world.log(Log::Stream);
    let (start, says) = highest_opened(stream, folded.at.epoch).unwrap_or((folded.at, folded));
    let (end, _) = end_of(stream, start, says);
    let accepted = Accepted::below(stream, end)?;
    let observed = &world.observed;
    if !accepted.holds_all(&observed.acknowledged) {
        return Err("lost: an acknowledged segment is not in the accepted log");
    }
    if !accepted.holds_all(&observed.read) {
        return Err("void: a reader took in what is not in the accepted log");
    }
    if !accepted.holds_all(&observed.folded) {
        return Err("bad manifest: it folds what is not in the accepted log");
    }
    let needed = (0..EPOCHS as u8).flat_map(|epoch| (0..SLOTS as u8).map(move |slot| At { epoch, slot }));
    let gone = |at: At| at > folded.at && accepted.record(at).is_some() && stream.read(at).is_none();
    if needed.into_iter().any(gone) {
        return Err("deleted: what no acknowledged manifest folds is gone");
    }
    Ok(())
}
