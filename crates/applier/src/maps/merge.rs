//! One map of eight: a sweep over their runs, the newest on top. Memory is a page for each, whatever their size.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use format::map::{MapDisk, MapFacts, MapRun, MapSource, MapTooLarge, MapWriter, Node, SealedMap};
use format::object::Place;
use model::{DiskId, Extent};
use probe::{Rule, Rules};

use super::chain::advance;
use super::{Maps, OpenMap};
use crate::recover::RecoverError;

/// Why there is no merged map.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MergeError {
    /// A map that should go in cannot be read.
    #[error(transparent)]
    Read(#[from] RecoverError),
    /// It fits no object.
    #[error(transparent)]
    TooLarge(#[from] MapTooLarge),
}

/// Maps to be merged.
pub(crate) struct Merged<'a> {
    maps: &'a Maps,
    nodes: &'a [Node],
    /// The newest first.
    opened: Vec<Arc<OpenMap>>,
    /// Nothing lies below: zeros need not be told from what was never written.
    from_start: bool,
    rules: Rules,
}

/// Runs of one disk in one map.
struct Cursor<'a> {
    map: &'a OpenMap,
    pages: Range<usize>,
    runs: Arc<Vec<MapRun>>,
    at: usize,
}

impl Cursor<'_> {
    /// Goes on to the first run that ends behind `offset`.
    async fn go_to(&mut self, maps: &Maps, offset: u64) -> Result<Option<MapRun>, RecoverError> {
        loop {
            while let Some(run) = self.runs.get(self.at) {
                if run.extent.end() > offset {
                    return Ok(Some(*run));
                }
                self.at += 1;
            }
            let Some(number) = self.pages.next() else { return Ok(None) };
            (self.runs, self.at) = (maps.page(self.map, number).await?, 0);
        }
    }
}

impl<'a> Merged<'a> {
    /// Opens the maps of these nodes, which follow one another, the oldest first.
    pub async fn open(maps: &'a Maps, nodes: &'a [Node], from_start: bool) -> Result<Self, RecoverError> {
        let mut opened = Vec::with_capacity(nodes.len());
        for node in nodes.iter().rev() {
            opened.push(maps.open(node).await?);
        }
        Ok(Self { maps, nodes, opened, from_start, rules: Rules::ALL })
    }

    /// The same under these safety rules.
    pub fn with_rules(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// The disks at the end.
    pub fn disks(&self) -> &[MapDisk] {
        self.opened.first().map_or(&[], |newest| &newest.index.disks)
    }

    /// Gives every run by disk and offset. A disk that is gone by the end has none: should it come back, it comes blank.
    pub async fn sweep<E: From<RecoverError>>(
        &self,
        mut take: impl FnMut(DiskId, MapRun) -> Result<(), E>,
    ) -> Result<(), E> {
        for disk in self.disks() {
            let mut pending: Option<MapRun> = None;
            let mut cursors: Vec<_> = self.opened.iter().map(|map| cursor(map, disk.id)).collect();
            if !self.rules.hold(Rule::MergeNewestOnTop) {
                cursors.reverse();
            }
            let mut at = 0;
            while let Some(run) = self.next(&mut cursors, at).await? {
                at = run.extent.end();
                if self.from_start && run.source == MapSource::Zero {
                    continue;
                }
                match pending.as_mut().and_then(|before| joined(before, &run)) {
                    Some(both) => pending = Some(both),
                    None => {
                        if let Some(before) = pending.replace(run) {
                            take(disk.id, before)?;
                        }
                    }
                }
            }
            if let Some(last) = pending {
                take(disk.id, last)?;
            }
        }
        Ok(())
    }

    /// The first run at or behind `at`, up to where another map may know better.
    async fn next(&self, cursors: &mut [Cursor<'_>], at: u64) -> Result<Option<MapRun>, RecoverError> {
        let mut newer: Option<u64> = None;
        let mut heads = Vec::with_capacity(cursors.len());
        for cursor in cursors.iter_mut() {
            heads.extend(cursor.go_to(self.maps, at).await?);
        }
        let Some(first) = heads.iter().map(|run| run.extent.offset().max(at)).min() else { return Ok(None) };
        for run in heads {
            let start = run.extent.offset().max(at);
            if start > first {
                newer = Some(newer.map_or(start, |newer| newer.min(start)));
                continue;
            }
            let end = newer.map_or(run.extent.end(), |newer| newer.min(run.extent.end()));
            let extent = Extent::new(first, end - first).expect("runs are cut at sectors");
            return Ok(Some(MapRun { extent, source: advance(run.source, first - run.extent.offset()) }));
        }
        unreachable!("one of them begins first")
    }

    /// The merged map, to be put at `place`.
    pub async fn seal(&self, place: Place) -> Result<SealedMap, MergeError> {
        let (Some(oldest), Some(newest)) = (self.opened.last(), self.opened.first()) else {
            unreachable!("a merge is of eight maps")
        };
        let keys = self.maps.keys();
        let mut writer = MapWriter::new(keys);
        self.sweep(|disk, run| writer.push(disk, run).map_err(MergeError::from)).await?;
        let machines: BTreeSet<_> = self.opened.iter().flat_map(|map| &map.index.machines).collect();
        let facts = MapFacts {
            place,
            first_seq: oldest.header.first_seq,
            first_time: oldest.header.first_time,
            head: newest.header.head,
            disks: self.disks().to_vec(),
            children: self.nodes.to_vec(),
            segments: Vec::new(),
            machines: machines.into_iter().cloned().collect(),
        };
        Ok(writer.finish(keys, facts)?)
    }
}

fn cursor(map: &OpenMap, disk: DiskId) -> Cursor<'_> {
    Cursor { map, pages: map.pages_of(disk), runs: Arc::default(), at: 0 }
}

/// Both runs as one, if the second goes on where the first ends, on the disk and in its frame.
fn joined(before: &MapRun, run: &MapRun) -> Option<MapRun> {
    let continues = match run.source {
        MapSource::Zero => before.source == MapSource::Zero,
        MapSource::Data { segment, frame, offset } => match before.source {
            MapSource::Zero => false,
            MapSource::Data { segment: s, frame: f, offset: o } => {
                (s, f) == (segment, frame) && u64::from(o) + before.extent.len() == u64::from(offset)
            }
        },
    };
    if !continues || before.extent.end() != run.extent.offset() {
        return None;
    }
    let extent = Extent::new(before.extent.offset(), before.extent.len() + run.extent.len()).ok()?;
    Some(MapRun { extent, source: before.source })
}
