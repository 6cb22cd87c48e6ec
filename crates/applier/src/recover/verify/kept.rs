//! Before the horizon: the segments, packs and maps through which points open, each there and whole.
//!
//! The stream cannot be walked there, since most of it is gone; what is left is found from the maps, as opening finds it. A segment
//! that no point needs is not looked at.

use std::collections::BTreeSet;
use std::sync::Arc;

use format::keys::Keys;
use format::manifest::Manifest;
use format::map::{MapName, MapSource};
use format::pack::covering;
use model::{DiskId, Extent, MachineName, Seq};
use store::{LogPosition, Store};

use super::{Findings, packs, stream};
use crate::maps::{Chain, Maps, way_to};
use crate::needed::needed;
use crate::recover::{ErrorKind, RecoverError};
use crate::segments;
use probe::Rules;

/// Bytes of a disk looked at together.
const WINDOW_BYTES: u64 = 1 << 30;

/// What was found.
#[derive(Default)]
pub(super) struct Kept {
    /// Maps that must be there up to the horizon; none where there is no horizon, or nobody can tell.
    pub maps: BTreeSet<MapName>,
    /// Damages of segments from which ranges of the disks read at the horizon.
    pub lost: Vec<(usize, DiskId, Extent)>,
}

/// Checks what points before the horizon need.
pub(super) async fn check(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    manifest: &Manifest,
    findings: &mut Findings,
) -> Result<Kept, RecoverError> {
    let maps = Arc::new(Maps::new(store.clone(), keys.clone(), machine.clone()));
    let marks = match needed(&maps, 0, manifest, Rules::ALL).await {
        Ok(Some(marks)) => marks,
        Ok(None) => return Ok(Kept::default()),
        Err(error) if error.kind() == ErrorKind::Damage => {
            let path = error.object().unwrap_or_else(|| segments::machine_prefix(machine));
            let problem = format!("without it nobody can tell what points before the horizon need: {error}");
            let damage = findings.damage(&path, problem);
            if let Some(hits) = findings.hits(damage) {
                hits.unknown_from(Seq(1));
            }
            return Ok(Kept::default());
        }
        Err(error) => return Err(error),
    };
    let mut damaged = Vec::new();
    let packed = |position: &LogPosition| covering(&manifest.packs, position.epoch, position.slot).is_some();
    for position in marks.needed.segments.iter().filter(|position| !packed(position)) {
        damaged.extend(stream::check_kept(store, keys, machine, *position, findings).await?);
        findings.state.save_if_due().await?;
    }
    for pack in &manifest.packs {
        damaged.extend(packs::check(store, keys, machine, pack, &marks, findings).await?);
        findings.state.save_if_due().await?;
    }
    for (owner, position) in &marks.needed.foreign {
        damaged.extend(stream::check_kept(store, keys, owner, *position, findings).await?);
        findings.state.save_if_due().await?;
    }
    let maps_needed = marks.needed.maps.iter().map(|(epoch, number)| MapName { epoch: *epoch, number: *number });
    let mut kept = Kept { maps: maps_needed.collect(), lost: Vec::new() };
    if !damaged.is_empty() {
        let (horizon, readers) = (manifest.horizon.as_ref(), Readers { maps: &maps, manifest, damaged: &damaged });
        kept.lost = readers.find(horizon.map(|last| last.head.position.seq).unwrap_or_default(), findings).await?;
    }
    Ok(kept)
}

/// Finds out what reads from damaged segments.
struct Readers<'a> {
    maps: &'a Arc<Maps>,
    manifest: &'a Manifest,
    damaged: &'a [stream::Lost],
}

impl Readers<'_> {
    /// Tells each damage which points it hits, and gives the ranges that it hides at the horizon.
    async fn find(&self, horizon: Seq, findings: &mut Findings) -> Result<Vec<(usize, DiskId, Extent)>, RecoverError> {
        for point in self.manifest.points.iter().filter(|point| point.position.seq <= horizon) {
            let mut nodes = way_to(self.maps, &self.manifest.nodes, point.position.seq).await?.before;
            nodes.extend(self.manifest.point_maps.get(&point.id).cloned());
            for damage in self.ranges(&nodes).await?.into_iter().map(|(damage, ..)| damage).collect::<BTreeSet<_>>() {
                if let Some(hits) = findings.hits(Some(damage)) {
                    hits.hit(point.position.seq);
                }
            }
        }
        self.ranges(&way_to(self.maps, &self.manifest.nodes, horizon.next()).await?.before).await
    }

    /// Ranges that read from damaged segments at the end of these nodes.
    async fn ranges(&self, nodes: &[format::map::Node]) -> Result<Vec<(usize, DiskId, Extent)>, RecoverError> {
        let chain = Chain::open(self.maps.clone(), nodes, Rules::ALL).await?;
        let mut ranges = Vec::new();
        for disk in chain.disks() {
            let Ok(whole) = Extent::new(0, disk.size) else { continue };
            for window in whole.split_at_multiples(WINDOW_BYTES) {
                for run in chain.runs_in(disk.id, window).await? {
                    let MapSource::Data { segment, frame, .. } = run.source else { continue };
                    let at = LogPosition { epoch: segment.epoch, slot: segment.slot };
                    let owner = self.maps.owner_of(&segment)?;
                    let is_it = |lost: &&stream::Lost| lost.position == at && lost.machine == owner;
                    let hit = self.damaged.iter().filter(is_it).filter(|lost| !lost.whole.contains(&frame));
                    ranges.extend(hit.map(|lost| (lost.damage, disk.id, run.extent)));
                }
            }
        }
        Ok(ranges)
    }
}
