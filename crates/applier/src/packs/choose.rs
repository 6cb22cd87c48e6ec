//! What is worth being put together. Pure.
//!
//! A segment or a pack before the horizon is left as it is when it is large and most of it is needed. The others are put
//! together with their neighbours, when enough bytes or many objects are saved by it. Each rewriting leaves at least a quarter of the bytes
//! behind, or an eighth of the objects or less: so no byte is rewritten often.

use std::ops::Range;

use format::pack::PackRef;
use store::LogPosition;

/// Parts of a full pack below which an object is small.
const SMALL_PARTS: u64 = 16;

/// Parts of a full pack that must be saved for bytes alone to be worth it.
const GAIN_PARTS: u64 = 64;

/// Objects that are put together for their number alone.
const MERGE_OBJECTS: usize = 16;

/// An object before the horizon of which something is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    /// The first segment that it stands for.
    pub first: LogPosition,
    /// The last.
    pub last: LogPosition,
    /// The pack; none for a segment.
    pub pack: Option<PackRef>,
    /// Its bytes in the store.
    pub bytes: u64,
    /// Of these, bytes of frames that are needed.
    pub needed: u64,
}

impl Unit {
    /// A quarter of it or more is needed no longer.
    fn is_sparse(&self) -> bool {
        is_worth(self.bytes, self.needed)
    }

    fn stays(&self, pack_bytes: u64) -> bool {
        self.bytes >= pack_bytes / SMALL_PARTS && !self.is_sparse()
    }
}

/// Whether a quarter of the bytes or more would be saved.
fn is_worth(bytes: u64, needed: u64) -> bool {
    needed <= bytes / 4 * 3
}

/// Runs of neighbours, each of which is to become one pack of at most `pack_bytes`, or one object's worth. Units are in order.
pub(super) fn groups(units: &[Unit], pack_bytes: u64) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    for run in runs(0..units.len(), units, pack_bytes, |unit| !unit.stays(pack_bytes)) {
        if saves(&units[run.clone()], pack_bytes) {
            groups.push(run);
            continue;
        }
        // What is small and dense may stand between what is not.
        let sparse = runs(run, units, pack_bytes, Unit::is_sparse);
        groups.extend(sparse.into_iter().filter(|run| saves(&units[run.clone()], pack_bytes)));
    }
    groups
}

fn saves(group: &[Unit], pack_bytes: u64) -> bool {
    let (bytes, needed): (u64, u64) =
        group.iter().fold((0, 0), |(bytes, needed), unit| (bytes + unit.bytes, needed + unit.needed));
    let gain = bytes.saturating_sub(needed);
    group.len() >= MERGE_OBJECTS || (gain >= pack_bytes / GAIN_PARTS && is_worth(bytes, needed))
}

/// The longest runs of wanted units within a range, cut where a pack would be full.
fn runs(within: Range<usize>, units: &[Unit], pack_bytes: u64, wanted: impl Fn(&Unit) -> bool) -> Vec<Range<usize>> {
    let (mut runs, mut start, mut needed) = (Vec::new(), within.start, 0);
    let end = within.end;
    for at in within {
        let unit = &units[at];
        let (takes, fits) = (wanted(unit), needed == 0 || needed + unit.needed <= pack_bytes);
        if !takes || !fits {
            runs.push(start..at);
            (start, needed) = (if takes { at } else { at + 1 }, 0);
        }
        if takes {
            needed += unit.needed;
        }
    }
    runs.push(start..end);
    runs.retain(|run| !run.is_empty());
    runs
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]
mod tests {
    use super::*;

    const PACK: u64 = 64 << 20;
    const SEGMENT: u64 = 8 << 20;

    fn units(sizes: &[(u64, u64)]) -> Vec<Unit> {
        let unit = |(slot, (bytes, needed)): (u64, &(u64, u64))| {
            let at = LogPosition { epoch: 1, slot };
            Unit { first: at, last: at, pack: None, bytes: *bytes, needed: *needed }
        };
        (1..).zip(sizes).map(unit).collect()
    }

    fn check(sizes: &[(u64, u64)], expected: &[Range<usize>]) {
        assert_eq!(groups(&units(sizes), PACK), expected, "{sizes:?}");
    }

    #[test]
    fn sparse_neighbours_are_put_together_and_what_is_dense_and_large_stays() {
        let (sparse, dense) = ((SEGMENT, 4096), (SEGMENT, SEGMENT - 4096));
        check(&[], &[]);
        check(&[dense, dense], &[]);
        check(&[sparse], &[0..1]);
        check(&[sparse, sparse, dense, sparse], &[0..2, 3..4]);
        check(&[(SEGMENT, SEGMENT / 4 * 3 + 1)], &[]);
        check(&[(SEGMENT, SEGMENT / 4 * 3)], &[0..1]);
    }

    #[test]
    fn a_pack_is_not_larger_than_it_may_be() {
        let half = (SEGMENT, SEGMENT / 2);
        check(&[half; 20], &[0..16, 16..20]);
        // One that is larger alone is a pack alone.
        check(&[half, (3 * PACK, 2 * PACK), half], &[0..1, 1..2, 2..3]);
    }

    #[test]
    fn little_is_not_worth_a_pack_unless_it_is_in_many_objects() {
        let (small, dense) = ((8 << 10, 8 << 10), (SEGMENT, SEGMENT));
        check(&[(64 << 10, 4096); 3], &[]);
        check(&[small; 15], &[]);
        check(&[small; 16], &[0..16]);
        check(&[&[dense][..], &[small; 16], &[dense]].concat(), &[1..17]);
    }

    #[test]
    fn sparse_ones_among_small_dense_ones_are_found() {
        let (small, sparse) = (((4 << 20) - 4096, (4 << 20) - 4096), (SEGMENT, 4096));
        check(&[&[small; 7][..], &[sparse, sparse], &[small; 6]].concat(), &[7..9]);
    }
}
