//! The disks of a machine while records are laid over one another: which there are, how large, and what they read as.

use std::collections::BTreeMap;

use format::segment::{ChunkAt, Piece};
use model::{DiskChange, DiskId, DiskName, Extent, Record, RecordBody};

use super::map::{ExtentMap, Source};

/// One disk.
#[derive(Debug, Clone)]
pub(crate) struct DiskState {
    /// Its name.
    pub name: DiskName,
    /// Its size in bytes.
    pub size: u64,
    /// What it reads as.
    pub map: ExtentMap,
}

/// All disks of a machine.
///
/// A disk that is announced again while present keeps its contents: an agent that lost its own state announces anew, and
/// the drain that follows overwrites what changed. Only a disk that was removed comes back blank.
#[derive(Debug, Clone)]
pub(crate) struct Disks {
    disks: BTreeMap<DiskId, DiskState>,
    keep_zeros: bool,
    /// Something may lie below: what a disk gains by appearing or growing is laid over it as zeros.
    over_something: bool,
}

impl Disks {
    /// No disks; `keep_zeros` as in [`ExtentMap::new`].
    pub fn new(keep_zeros: bool) -> Self {
        Self { disks: BTreeMap::new(), keep_zeros, over_something: false }
    }

    /// No disks, to be laid over maps of what came before.
    pub fn over() -> Self {
        Self { disks: BTreeMap::new(), keep_zeros: true, over_something: true }
    }

    /// Adds a disk that is known from elsewhere, with nothing in its map.
    pub fn insert(&mut self, disk: DiskId, name: DiskName, size: u64) {
        let map = ExtentMap::new(self.keep_zeros);
        self.disks.insert(disk, DiskState { name, size, map });
    }

    /// Takes the maps out, leaving the disks with empty ones.
    pub fn take_maps(&mut self) -> Vec<(DiskId, ExtentMap)> {
        let empty = ExtentMap::new(self.keep_zeros);
        self.disks.iter_mut().map(|(id, disk)| (*id, std::mem::replace(&mut disk.map, empty.clone()))).collect()
    }

    /// Id, name and size of each disk, by id.
    pub fn list(&self) -> Vec<(DiskId, DiskName, u64)> {
        self.disks.iter().map(|(id, disk)| (*id, disk.name.clone(), disk.size)).collect()
    }

    /// Every run by disk and offset.
    pub fn runs(&self) -> impl Iterator<Item = (DiskId, Extent, Source)> + '_ {
        self.disks.iter().flat_map(|(id, disk)| disk.map.runs().map(|(extent, source)| (*id, extent, source)))
    }

    /// Gives the disks away.
    pub fn into_inner(self) -> BTreeMap<DiskId, DiskState> {
        self.disks
    }

    /// Lays one record over. `pieces` stand for its bytes; `place_of` gives the object of a piece: none for the segment
    /// that holds the record, else the index of its reference. Errors say what does not hold together.
    pub fn apply<D>(
        &mut self,
        record: &Record<D>,
        pieces: &[Piece],
        place_of: impl Fn(Option<u32>) -> Option<u32>,
    ) -> Result<(), String> {
        match &record.body {
            RecordBody::Write { disk, extent, .. } => {
                let map = &mut self.target(record, *disk, *extent)?.map;
                lay_pieces(map, *extent, pieces, place_of)
                    .ok_or_else(|| format!("the pieces of record {} do not fit its range", record.seq))
            }
            RecordBody::Zero { disk, extent } => {
                self.target(record, *disk, *extent)?.map.overlay(*extent, Source::Zero);
                Ok(())
            }
            RecordBody::Disk { disk, name, size, change } => {
                self.change(*disk, name, *size, *change);
                Ok(())
            }
            RecordBody::Mark(_) | RecordBody::DrainBegin { .. } | RecordBody::DrainEnd(_) => Ok(()),
        }
    }

    fn target<D>(&mut self, record: &Record<D>, disk: DiskId, extent: Extent) -> Result<&mut DiskState, String> {
        match self.disks.get_mut(&disk) {
            None => Err(format!("record {} is about disk {disk}, which was never announced", record.seq)),
            Some(state) if extent.end() > state.size => {
                Err(format!("record {} at {extent} ends past disk {} of {} bytes", record.seq, state.name, state.size))
            }
            Some(state) => Ok(state),
        }
    }

    fn change(&mut self, disk: DiskId, name: &DiskName, size: u64, change: DiskChange) {
        if change == DiskChange::Removed {
            self.disks.remove(&disk);
            return;
        }
        let gained = match self.disks.get_mut(&disk) {
            Some(state) => {
                if size < state.size {
                    state.map.truncate(size);
                }
                std::mem::replace(&mut state.size, size)..size
            }
            None => {
                self.insert(disk, name.clone(), size);
                0..size
            }
        };
        if self.over_something
            && let Some(state) = self.disks.get_mut(&disk)
            && let Ok(gained) = Extent::new(gained.start, size.saturating_sub(gained.start))
        {
            state.map.overlay(gained, Source::Zero);
        }
    }
}

fn lay_pieces(
    map: &mut ExtentMap,
    extent: Extent,
    pieces: &[Piece],
    place_of: impl Fn(Option<u32>) -> Option<u32>,
) -> Option<()> {
    let mut at = extent.offset();
    for piece in pieces {
        let part = Extent::new(at, piece.len).ok().filter(|part| part.end() <= extent.end())?;
        let source = match piece.at {
            ChunkAt::Zero => Source::Zero,
            ChunkAt::Here { frame, offset } => Source::Data { place: place_of(None)?, frame, offset },
            ChunkAt::Other { reference, frame, offset } => {
                Source::Data { place: place_of(Some(reference))?, frame, offset }
            }
        };
        map.overlay(part, source);
        at = part.end();
    }
    (at == extent.end()).then_some(())
}
