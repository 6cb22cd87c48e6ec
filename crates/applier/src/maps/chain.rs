//! A chain of maps, each continuing the one before: what any range of the disks reads as at its end.

use std::sync::Arc;

use format::map::{MapDisk, MapRun, MapSource, Node};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use model::{DiskId, Extent, ExtentSet};
use probe::{Rule, Rules};

use super::{Maps, OpenMap};
use crate::recover::RecoverError;

/// Pages fetched at once for one look-up.
const READS_MAX: usize = 8;

/// Maps laid over one another, the oldest first.
pub(crate) struct Chain {
    maps: Arc<Maps>,
    /// In the order in which they are asked.
    links: Vec<Arc<OpenMap>>,
    disks: Vec<MapDisk>,
}

impl Chain {
    /// Opens the maps of these nodes, the oldest first: one read for each.
    pub async fn open(maps: Arc<Maps>, nodes: &[Node], rules: Rules) -> Result<Self, RecoverError> {
        let mut links = try_join_all(nodes.iter().map(|node| maps.open(node))).await?;
        let disks = links.last().map(|last| last.index.disks.clone()).unwrap_or_default();
        if rules.hold(Rule::NewestMapFirst) {
            links.reverse();
        }
        Ok(Self { maps, links, disks })
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The disks at its end, by id.
    pub fn disks(&self) -> &[MapDisk] {
        &self.disks
    }

    /// What a range reads as, in order; what is in no run was never written. Maps are asked from the newest down, and only
    /// for what is still open, so the bytes that many maps have touched cost no more than those of the newest.
    pub async fn runs_in(&self, disk: DiskId, extent: Extent) -> Result<Vec<MapRun>, RecoverError> {
        let (mut open, mut found) = (ExtentSet::new(), Vec::new());
        open.insert(extent);
        for link in &self.links {
            if open.is_empty() {
                break;
            }
            let wanted: Vec<_> = open.iter().collect();
            let mut numbers: Vec<_> = wanted.iter().flat_map(|extent| link.pages_in(disk, *extent)).collect();
            numbers.dedup();
            let mut pages =
                futures::stream::iter(numbers).map(|number| self.maps.page(link, number)).buffered(READS_MAX);
            while let Some(page) = pages.try_next().await? {
                for extent in &wanted {
                    cut(&page, *extent, |run| {
                        open.remove(run.extent);
                        found.push(run);
                    });
                }
            }
        }
        found.sort_unstable_by_key(|run: &MapRun| run.extent.offset());
        Ok(found)
    }
}

/// The runs of a page within a range, cut to it.
fn cut(page: &[MapRun], extent: Extent, mut take: impl FnMut(MapRun)) {
    let first = page.partition_point(|run| run.extent.end() <= extent.offset());
    for run in page[first..].iter().take_while(|run| run.extent.offset() < extent.end()) {
        if let Some(part) = run.extent.intersection(&extent) {
            let source = advance(run.source, part.offset() - run.extent.offset());
            take(MapRun { extent: part, source });
        }
    }
}

/// The same source `by` bytes further on. A run of data lies within its frame (checked when a page is opened).
pub(super) fn advance(source: MapSource, by: u64) -> MapSource {
    match source {
        MapSource::Zero => MapSource::Zero,
        MapSource::Data { segment, frame, offset } => {
            let by = u32::try_from(by).expect("a run of data lies within one frame");
            MapSource::Data { segment, frame, offset: offset + by }
        }
    }
}
