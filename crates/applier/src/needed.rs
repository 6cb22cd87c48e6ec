//! What of a vault a manifest needs: every map and segment through which a position that is promised opens.
//!
//! Marked is what opening reads, by the same way down the tree of maps: for each point up to the horizon the maps of everything
//! before its leaf and its own map; for all positions behind the horizon the maps before it, and whole whatever lies behind.
//! Segments up to the horizon, and those of other machines, are needed where a range of some disk, at one of these points or at the horizon, reads from them;
//! what newer maps lie over is not. What must hold: what is not marked is needed by no position that opens now or later, for
//! later manifests name, of what lies before the horizon, nothing that this one does not.

use std::collections::BTreeSet;
use std::sync::Arc;

use format::manifest::{Manifest, Point};
use format::map::{MapName, MapSource, Node, Owner};
use futures::future::BoxFuture;
use model::{Extent, MachineName, Seq};
use probe::{Rule, Rules};
use store::{LogPosition, Needed};

use crate::maps::{Chain, Maps, way_to};
use crate::recover::RecoverError;

/// Bytes of a disk looked at together.
const WINDOW_BYTES: u64 = 1 << 30;

/// Marks what a manifest needs; `epoch` is its manifest epoch. None while there is no horizon: then all is needed.
pub(crate) async fn needed(
    maps: &Arc<Maps>,
    epoch: u64,
    manifest: &Manifest,
    rules: Rules,
) -> Result<Option<Needed>, RecoverError> {
    let Some(horizon) = &manifest.horizon else { return Ok(None) };
    let (foreign, segments) = (BTreeSet::new(), BTreeSet::new());
    let mut marking = Marking { maps, needed: BTreeSet::new(), segments, foreign };
    // Careless: one of the two rests on the other, surely.
    let (points, at_horizon) = (rules.hold(Rule::PointsHoldSegments), rules.hold(Rule::HorizonHoldsSegments));
    let passed = |point: &&Point| points && point.position.seq <= horizon.head.position.seq;
    for point in manifest.points.iter().filter(passed) {
        let own = manifest.point_maps.get(&point.id);
        marking.position(&manifest.nodes, point.position.seq, own).await?;
    }
    if at_horizon {
        marking.position(&manifest.nodes, horizon.head.position.seq.next(), None).await?;
    }
    marking.behind(&manifest.nodes, horizon.head.position.seq).await?;
    let Marking { needed, segments, foreign, .. } = marking;
    let maps = needed.into_iter().map(|name| (name.epoch, name.number)).collect();
    let horizon = LogPosition { epoch: horizon.epoch, slot: horizon.slot };
    // Careless: what is not needed here, nobody needs.
    let shared = if rules.hold(Rule::SharedKept) { manifest.shared.clone() } else { Vec::new() };
    Ok(Some(Needed { horizon, segments, maps, manifest_epoch: epoch, foreign, shared }))
}

struct Marking<'a> {
    maps: &'a Arc<Maps>,
    /// Maps.
    needed: BTreeSet<MapName>,
    /// Segments that ranges read from.
    segments: BTreeSet<LogPosition>,
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
                    let MapSource::Data { segment, .. } = run.source else { continue };
                    let position = LogPosition { epoch: segment.epoch, slot: segment.slot };
                    match segment.owner {
                        Owner::SELF => _ = self.segments.insert(position),
                        _ => _ = self.foreign.insert((self.maps.owner_of(&segment)?, position)),
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
