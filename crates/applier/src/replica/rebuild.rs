//! Taking a replica to the end of a map at once: by what differs, not by what happened.
//!
//! ```text
//!   A within a leaf                              P, the end of a map
//!   ──┼──┬───────┬────────────────────────────────────┐
//!    leaf│ leaf  │            merge                    │   all maps that say something of (A, P]
//! ```
//! A range that no record of (A, P] changed is in none of these maps, so it reads at P as it does at A. The others are in
//! them, and the newest map that names a range says what it reads as at P. So only those are read and written, once each,
//! however often they were changed and however large the disk is. The leaf that holds A names some ranges changed before A
//! alone; writing those again does no harm.
//!
//! Meanwhile the disks stand nowhere: the state says so before the first write. If the process dies in between, the ranges
//! are laid again from A, to P or to a later map, or all records from A beyond P are applied.

use std::sync::Arc;

use format::map::Node;
use format::pack::PackRef;
use model::{Extent, Seq};
use probe::Rules;
use tokio_util::sync::CancellationToken;

use super::Replica;
use crate::ApplierError;
use crate::applier::{Committed, SegmentRun};
use crate::maps::{Chain, Maps, nodes_behind, stretch_of_seq};
use crate::recover::{Frames, RecoverError, Source, source_of};
use crate::stages::Stage;

/// Bytes of a disk looked up together.
const WINDOW_BYTES: u64 = 1 << 30;

impl Replica {
    /// The nodes up to the map at whose end the replica can be rebuilt; none when it can, or must, go on by records.
    /// `late` says whether it is past its lag limit.
    pub fn rebuild_nodes<'a>(&self, committed: &'a Committed, late: bool) -> Option<&'a [Node]> {
        let intent = self.state.intent;
        if !late && !intent.is_some_and(|intent| intent.rebuild) {
            return None;
        }
        let least = intent.map_or(Seq::ZERO, |intent| intent.to).max(self.state.position.seq.next());
        let fits = |node: &Node| {
            let end = node.end.head.position.seq;
            end >= least && committed.validity.contains(end)
        };
        let last = committed.nodes.iter().rposition(fits)?;
        Some(&committed.nodes[..=last])
    }

    /// Moves to the end of `nodes`, which [`Replica::rebuild_nodes`] gave of what is committed, as are `packs`. Returns the bytes that were laid, zeros too. After
    /// an error the same is to be tried again. Errors: as of [`Replica::advance`].
    pub async fn rebuild(
        &mut self,
        maps: &Arc<Maps>,
        nodes: &[Node],
        packs: Arc<[PackRef]>,
        rules: Rules,
        stop: &CancellationToken,
    ) -> Result<u64, ApplierError> {
        let Some(last) = nodes.last() else { return Ok(0) };
        let head = last.end.head;
        let history = self.history(maps, nodes).await?;
        let mut disks = self.begin(&history, head.position.seq, true, stop).await?;
        // A replica that could not be opened begins at nothing now.
        let stages = self.stages.clone();
        let fetching = stages.at(Stage::Fetch);
        let changed = nodes_behind(maps, nodes, self.state.position.seq).await?;
        let chain = Chain::open(maps.clone(), &changed, rules).await?;
        drop(fetching);
        disks.retain(|id| chain.disks().iter().any(|disk| disk.id == id))?;
        let frames = Frames::new(self.store.clone(), self.keys.clone()).with_packs(maps.machine().clone(), packs);
        let frames = frames.with_stages(stages.clone());
        let mut bytes = 0;
        for disk in chain.disks() {
            let making = stages.at(Stage::Write);
            disks.announce(disk.id, disk.name.clone(), disk.size).await?;
            drop(making);
            let Ok(whole) = Extent::new(0, disk.size) else { continue };
            for window in whole.split_at_multiples(WINDOW_BYTES) {
                if stop.is_cancelled() {
                    return Err(ApplierError::Stopped);
                }
                let fetching = stages.at(Stage::Fetch);
                let runs = chain.runs_in(disk.id, window).await?;
                drop(fetching);
                let source = |source| source_of(&frames, maps, source);
                let runs = runs.into_iter().map(|run| Ok((run.extent, source(run.source)?)));
                let runs: Vec<(Extent, Source)> = runs.collect::<Result<_, RecoverError>>()?;
                bytes += runs.iter().map(|(extent, _)| extent.len()).sum::<u64>();
                disks.write_runs(&frames, disk.id, runs).await?;
            }
        }
        self.conclude(disks, head.position, head.time, head.digest).await?;
        Ok(bytes)
    }

    /// The leaf that holds the present position.
    async fn history(&self, maps: &Maps, nodes: &[Node]) -> Result<SegmentRun, ApplierError> {
        let at = self.state.position.seq;
        if at == Seq::ZERO {
            return Ok(SegmentRun::default());
        }
        let _fetching = self.stages.at(Stage::Fetch);
        let stretch = stretch_of_seq(maps, nodes, at).await?;
        let start = stretch.start().head;
        Ok(SegmentRun { start, segments: stretch.segments })
    }
}
