//! What of a vault a manifest needs: every map and segment through which a position that is promised opens.
//!
//! Marked is what opening reads, by the same way down the tree of maps: for each point up to the horizon the maps of everything
//! before its leaf and its own map; for all positions behind the horizon the maps before it, and whole whatever lies behind.
//! Segments up to the horizon, and those of other machines, are needed where a range of some disk, at one of these points or at the
//! horizon, reads from them; what newer maps lie over is not; and of each of ours the frames that such a range reads from. What must
//! hold: what is not marked is needed by no position that opens now or later, for
//! later manifests name, of what lies before the horizon, nothing that this one does not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use format::manifest::{Manifest, Point};
use format::map::{MapName, MapSource, Node, Owner, SegmentName};
use futures::future::BoxFuture;
use model::{Extent, MachineName, Seq};
use probe::{Rule, Rules};
use store::{LogPosition, Needed};

use crate::maps::{Chain, Maps, way_to};
use crate::recover::RecoverError;

/// Bytes of a disk looked at together.
const WINDOW_BYTES: u64 = 1 << 30;

/// Numbers of frames, as ranges: a worker numbers those of one job one after the other, and jobs far apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FrameSet(Vec<RangeInclusive<u32>>);

impl FrameSet {
    /// Adds a number.
    pub fn insert(&mut self, number: u32) {
        let at = self.0.partition_point(|range| *range.end() < number);
        if self.0.get(at).is_some_and(|range| range.contains(&number)) {
            return;
        }
        let left = at.checked_sub(1).filter(|left| *self.0[*left].end() == number - 1);
        let right = self.0.get(at).is_some_and(|range| Some(*range.start()) == number.checked_add(1));
        match (left, right) {
            (Some(left), true) => {
                let joined = *self.0[left].start()..=*self.0[at].end();
                self.0.splice(left..=at, [joined]);
            }
            (Some(left), false) => self.0[left] = *self.0[left].start()..=number,
            (None, true) => self.0[at] = number..=*self.0[at].end(),
            (None, false) => self.0.insert(at, number..=number),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| u64::from(range.end() - range.start()) + 1).sum()
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().cloned().flatten()
    }
}

/// What a manifest needs.
#[derive(Debug)]
pub(crate) struct Marks {
    /// Segments and maps.
    pub needed: Needed,
    /// Of each of those segments the frames that are read.
    pub frames: BTreeMap<SegmentName, FrameSet>,
}

/// Marks what a manifest needs; `epoch` is its manifest epoch. None while there is no horizon: then all is needed.
pub(crate) async fn needed(
    maps: &Arc<Maps>,
    epoch: u64,
    manifest: &Manifest,
    rules: Rules,
) -> Result<Option<Marks>, RecoverError> {
    let Some(horizon) = &manifest.horizon else { return Ok(None) };
    let (needed, segments, frames) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    // Careless: what points read is there behind them as well, mostly.
    let marks_frames = rules.hold(Rule::PackHoldsNeeded);
    let mut marking = Marking { maps, needed, segments, foreign: BTreeSet::new(), frames, marks_frames };
    // Careless: one of the two rests on the other, surely.
    let (points, at_horizon) = (rules.hold(Rule::PointsHoldSegments), rules.hold(Rule::HorizonHoldsSegments));
    let passed = |point: &&Point| points && point.position.seq <= horizon.head.position.seq;
    for point in manifest.points.iter().filter(passed) {
        let own = manifest.point_maps.get(&point.id);
        marking.position(&manifest.nodes, point.position.seq, own).await?;
    }
    marking.marks_frames = true;
    if at_horizon {
        marking.position(&manifest.nodes, horizon.head.position.seq.next(), None).await?;
    }
    marking.behind(&manifest.nodes, horizon.head.position.seq).await?;
    let Marking { needed, segments, foreign, frames, .. } = marking;
    let maps = needed.into_iter().map(|name| (name.epoch, name.number)).collect();
    let horizon = LogPosition { epoch: horizon.epoch, slot: horizon.slot };
    // Careless: what is not needed here, nobody needs.
    let shared = if rules.hold(Rule::SharedKept) { manifest.shared.clone() } else { Vec::new() };
    let needed = Needed { horizon, segments, maps, manifest_epoch: epoch, foreign, shared };
    Ok(Some(Marks { needed, frames }))
}

struct Marking<'a> {
    maps: &'a Arc<Maps>,
    /// Maps.
    needed: BTreeSet<MapName>,
    /// Segments that ranges read from.
    segments: BTreeSet<LogPosition>,
    /// Their frames.
    frames: BTreeMap<SegmentName, FrameSet>,
    marks_frames: bool,
    /// The same of other machines.
    foreign: BTreeSet<(MachineName, LogPosition)>,
}

impl Marking<'_> {
    /// What is read at a position: the maps before its leaf, over them its own, and what shows of them.
    async fn position(&mut self, nodes: &[Node], seq: Seq, own: Option<&Node>) -> Result<(), RecoverError> {
        let mut way = way_to(self.maps, nodes, seq).await?;
        way.before.extend(own.cloned());
        self.needed.extend(way.through.iter().chain(&way.before).map(|node| node.map));
        let chain = Chain::open(self.maps.clone(), &way.before, Rules::ALL).await?;
        for disk in chain.disks() {
            let Ok(whole) = Extent::new(0, disk.size) else { continue };
            for window in whole.split_at_multiples(WINDOW_BYTES) {
                let runs = chain.runs_in(disk.id, window).await?;
                for run in runs {
                    let MapSource::Data { segment, frame, .. } = run.source else { continue };
                    let position = LogPosition { epoch: segment.epoch, slot: segment.slot };
                    if segment.owner != Owner::SELF {
                        self.foreign.insert((self.maps.owner_of(&segment)?, position));
                        continue;
                    }
                    self.segments.insert(position);
                    if self.marks_frames {
                        self.frames.entry(segment).or_default().insert(frame);
                    }
                }
            }
        }
        Ok(())
    }

    /// Every map that reaches behind `seq`.
    fn behind<'a>(&'a mut self, nodes: &'a [Node], seq: Seq) -> BoxFuture<'a, Result<(), RecoverError>> {
        Box::pin(async move {
            for node in nodes.iter().filter(|node| node.end.head.position.seq > seq) {
                self.needed.insert(node.map);
                if node.level > 0 {
                    let children = self.maps.open(node).await?.index.children.clone();
                    self.behind(&children, seq).await?;
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A set of frames is a set of numbers, whatever the order they come in.
        #[test]
        fn a_set_of_frames_is_a_set(numbers in prop::collection::vec(prop_oneof![0u32..40, 65_530u32..65_560, (u32::MAX - 3)..=u32::MAX], 0..80)) {
            let (mut frames, mut model) = (FrameSet::default(), BTreeSet::new());
            for number in numbers {
                frames.insert(number);
                model.insert(number);
            }
            prop_assert_eq!(frames.count(), model.len() as u64);
            prop_assert!(frames.0.windows(2).all(|pair| pair[0].end() + 1 < *pair[1].start()), "{:?}", frames);
            prop_assert!(frames.iter().eq(model));
        }
    }
}
