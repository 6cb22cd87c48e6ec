//! One position, opened: disks whose bytes are fetched when they are read.
//!
//! A disk may be read for weeks while the history goes on. Maps that it reads through are merged meanwhile and then
//! collected; as long as the position itself is retained it opens through others, so a disk that misses an object looks
//! whether the manifest has moved on, and if so opens its position again.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use format::map::MapSource;
use model::{DiskId, DiskName, Extent, ExtentSet, MachineName, Selector, Seq};
use serde::Serialize;
use store::LogPosition;

use super::history::Origin;
use super::map::{ExtentMap, Source};
use super::{Disks, Frames, History, ObjectPlace, ReadCache, RecoverError, Resolved};
use crate::maps::{Chain, Maps};

/// Longest range of one read in bytes.
pub(crate) const READ_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a disk looked at together when all of its data is asked for.
const SCAN_BYTES: u64 = 1 << 30;

/// Frames held at once for one read: 16 MiB of those that process servers make.
const READ_FRAMES_MAX: usize = 256;

/// A disk of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointDiskInfo {
    /// Its name.
    pub name: DiskName,
    /// Its identity in records.
    pub id: DiskId,
    /// Its size in bytes.
    pub size: u64,
}

/// All disks of a machine at one position.
pub struct PointReader {
    machine: MachineName,
    at: Resolved,
    disks: Vec<Arc<PointDisk>>,
    origin: Arc<Origin>,
}

/// One disk at one position; reads only.
pub struct PointDisk {
    info: PointDiskInfo,
    view: RwLock<Arc<View>>,
}

/// What a disk reads through.
struct View {
    disk: DiskId,
    /// Records behind the last map.
    over: ExtentMap,
    /// Everything before them.
    base: Arc<Base>,
}

/// What the disks of a point share.
struct Base {
    chain: Chain,
    frames: Arc<Frames>,
    /// Where it was opened from.
    origin: Arc<Origin>,
    at: Resolved,
}

impl History {
    /// Opens a position. Errors: `Foreign` (resolved elsewhere), `Damage`, and what is wrong with a map.
    pub async fn open(&self, at: &Resolved) -> Result<PointReader, RecoverError> {
        let seq = at.position.seq;
        if seq == Seq::ZERO || seq > self.head().position.seq || !self.validity().contains(seq) {
            return Err(RecoverError::Foreign { seq });
        }
        let (chain, disks) = match seq <= self.horizon_seq() {
            true => self.through_maps(at).await?,
            false => self.through_records(at).await?,
        };
        let (frames, origin) = (self.frames().clone(), self.origin().clone());
        let base = Arc::new(Base { chain, frames, origin: origin.clone(), at: *at });
        let disks = disks.into_inner().into_iter().map(|(id, disk)| {
            let info = PointDiskInfo { name: disk.name, id, size: disk.size };
            let view = Arc::new(View { disk: id, over: disk.map, base: base.clone() });
            Arc::new(PointDisk { info, view: RwLock::new(view) })
        });
        let mut disks: Vec<_> = disks.collect();
        disks.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        Ok(PointReader { machine: self.machine().clone(), at: *at, disks, origin })
    }

    /// Behind the horizon: the maps before its leaf, and over them the records of the leaf up to it.
    async fn through_records(&self, at: &Resolved) -> Result<(Chain, Disks), RecoverError> {
        let seq = at.position.seq;
        let records = self.records_of(seq).await?;
        if records.state_after(seq).is_none_or(|(_, digest)| digest != at.digest) {
            return Err(RecoverError::Foreign { seq });
        }
        let chain = Chain::open(self.maps().clone(), &records.before, self.rules()).await?;
        let mut disks = Disks::over();
        chain.disks().iter().for_each(|disk| disks.insert(disk.id, disk.name.clone(), disk.size));
        records.lay_over(&mut disks, seq)?;
        Ok((chain, disks))
    }

    /// A point up to the horizon: the maps before its leaf, and its own.
    async fn through_maps(&self, at: &Resolved) -> Result<(Chain, Disks), RecoverError> {
        let seq = at.position.seq;
        let is_it = |point: &&format::manifest::Point| point.position.seq == seq && point.digest == at.digest;
        let point = self.recorded_points().iter().find(is_it).ok_or(RecoverError::Foreign { seq })?;
        let nodes = self.maps_of_point(point).await?;
        let chain = Chain::open(self.maps().clone(), &nodes, self.rules()).await?;
        let mut disks = Disks::over();
        chain.disks().iter().for_each(|disk| disks.insert(disk.id, disk.name.clone(), disk.size));
        Ok((chain, disks))
    }
}

impl Base {
    async fn runs_in(&self, disk: DiskId, extent: Extent) -> Result<Vec<(Extent, Source)>, RecoverError> {
        let runs = self.chain.runs_in(disk, extent).await?;
        let source = |source| source_of(&self.frames, self.chain.maps(), source);
        runs.into_iter().map(|run| Ok((run.extent, source(run.source)?))).collect()
    }
}

/// What a map says of a range, as `frames` names objects.
pub(crate) fn source_of(frames: &Frames, maps: &Maps, source: MapSource) -> Result<Source, RecoverError> {
    Ok(match source {
        MapSource::Zero => Source::Zero,
        MapSource::Data { segment, frame, offset } => {
            let position = LogPosition { epoch: segment.epoch, slot: segment.slot };
            let place = ObjectPlace { machine: maps.owner_of(&segment)?, position, tag: segment.tag };
            Source::Data { place: frames.intern(place), frame, offset }
        }
    })
}

impl PointReader {
    pub(super) fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Whose disks.
    pub fn machine(&self) -> &MachineName {
        &self.machine
    }

    /// The position.
    pub fn at(&self) -> &Resolved {
        &self.at
    }

    /// The disks by name.
    pub fn disks(&self) -> Vec<PointDiskInfo> {
        self.disks.iter().map(|disk| disk.info.clone()).collect()
    }

    /// One disk. Errors: `UnknownDisk` says which there are.
    pub fn disk(&self, name: &DiskName) -> Result<Arc<PointDisk>, RecoverError> {
        self.disks.iter().find(|disk| disk.info.name == *name).cloned().ok_or_else(|| {
            let names: Vec<_> = self.disks.iter().map(|disk| disk.info.name.as_str()).collect();
            RecoverError::UnknownDisk { disk: name.clone(), known: names.join(", ") }
        })
    }
}

impl PointDisk {
    /// Name, id, size.
    pub fn info(&self) -> &PointDiskInfo {
        &self.info
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// What a range reads as, in order; what is in no run was never written.
    pub(super) async fn runs_in(&self, extent: Extent) -> Result<Vec<(Extent, Source)>, RecoverError> {
        let view = self.view();
        match view.runs_in(extent).await {
            Err(error) if error.is_missing() => self.renewed(&view, error).await?.runs_in(extent).await,
            runs => runs,
        }
    }

    /// Whether sources of both mean the same objects.
    pub(super) fn numbers_as(&self, other: &PointDisk) -> bool {
        Arc::ptr_eq(&self.view().base.frames, &other.view().base.frames)
    }

    fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another view of the same position, when the manifest has moved on since this one was opened; else what was missing.
    async fn renewed(&self, old: &View, missing: RecoverError) -> Result<Arc<View>, RecoverError> {
        let Base { origin, at, .. } = old.base.as_ref();
        if !origin.is_stale().await? {
            return Err(missing);
        }
        // A position that is retained no longer says so here.
        let history = origin.load().await?;
        history.resolve(&Selector::Seq(at.position.seq), None).await?;
        let view = history.open(at).await?.disk(&self.info.name)?.view();
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view.clone();
        Ok(view)
    }

    /// The bytes of `extent`. Errors: `Range`; whatever is wrong with the objects that hold them; `BeforeHorizon` when the
    /// position is retained no longer.
    pub async fn read(&self, extent: Extent) -> Result<Bytes, RecoverError> {
        if extent.end() > self.info.size || extent.len() > READ_BYTES_MAX {
            return Err(RecoverError::Range { extent, size: self.info.size });
        }
        let view = self.view();
        match view.read(extent).await {
            Err(error) if error.is_missing() => self.renewed(&view, error).await?.read(extent).await,
            read => read,
        }
    }

    /// What `extent` holds but zeros: offsets and bytes, in order, out of the frames they lie in. Errors: as of `read`.
    pub(crate) async fn pieces(&self, extent: Extent) -> Result<Vec<(u64, Bytes)>, RecoverError> {
        let view = self.view();
        match view.pieces(extent).await {
            Err(error) if error.is_missing() => self.renewed(&view, error).await?.pieces(extent).await,
            pieces => pieces,
        }
    }

    /// Brings what these ranges read from into the caches; returns how many plain bytes that was. Errors: as of `read`, except
    /// that the position is not opened again.
    pub(super) async fn prefetch(&self, ranges: &[Extent]) -> Result<u64, RecoverError> {
        let (view, mut runs, mut bytes) = (self.view(), Vec::new(), 0);
        for range in ranges {
            runs.extend(view.runs_in(*range).await?);
        }
        for part in runs.chunks(READ_FRAMES_MAX) {
            let frames = view.base.frames.all(part.iter().map(|(_, source)| *source)).await?;
            bytes += frames.values().map(|plain| plain.len() as u64).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Whose disk.
    pub(super) fn machine(&self) -> MachineName {
        self.view().base.origin.machine().clone()
    }

    /// The cache on disk that it is read through.
    pub(super) fn cache(&self) -> Option<Arc<ReadCache>> {
        self.view().base.origin.cache().cloned()
    }

    /// The ranges that may hold other than zeros, in order: every map is read, page by page.
    pub async fn data_extents(&self) -> Result<Vec<Extent>, RecoverError> {
        let mut data = ExtentSet::new();
        if let Ok(whole) = Extent::new(0, self.info.size) {
            for window in whole.split_at_multiples(SCAN_BYTES) {
                self.data_extents_in(window).await?.into_iter().for_each(|extent| data.insert(extent));
            }
        }
        Ok(data.iter().collect())
    }

    /// The same within `extent`.
    pub async fn data_extents_in(&self, extent: Extent) -> Result<Vec<Extent>, RecoverError> {
        let runs = self.runs_in(extent).await?;
        let data: ExtentSet =
            runs.into_iter().filter(|(_, source)| *source != Source::Zero).map(|(extent, _)| extent).collect();
        Ok(data.iter().collect())
    }
}

impl View {
    async fn read(&self, extent: Extent) -> Result<Bytes, RecoverError> {
        let runs = self.runs_in(extent).await?;
        let frames = &self.base.frames;
        if let [(whole, source)] = runs[..]
            && whole == extent
        {
            let plain = frames.all([source]).await?;
            if let Some(bytes) = piece_of(frames, &plain, whole, source)? {
                return Ok(bytes);
            }
        }
        let mut bytes = BytesMut::zeroed(extent.len() as usize);
        for part in runs.chunks(READ_FRAMES_MAX) {
            for (offset, data) in self.pieces_of(part).await? {
                let at = (offset - extent.offset()) as usize;
                bytes[at..at + data.len()].copy_from_slice(&data);
            }
        }
        Ok(bytes.freeze())
    }

    async fn pieces(&self, extent: Extent) -> Result<Vec<(u64, Bytes)>, RecoverError> {
        let runs = self.runs_in(extent).await?;
        if runs.len() <= READ_FRAMES_MAX {
            return self.pieces_of(&runs).await;
        }
        // A piece holds its frame: of very many they are copied, so that no more frames are held than for a read.
        let mut pieces = Vec::with_capacity(runs.len());
        for part in runs.chunks(READ_FRAMES_MAX) {
            let few = self.pieces_of(part).await?;
            pieces.extend(few.into_iter().map(|(offset, data)| (offset, Bytes::copy_from_slice(&data))));
        }
        Ok(pieces)
    }

    /// The bytes of runs, but for zeros.
    async fn pieces_of(&self, runs: &[(Extent, Source)]) -> Result<Vec<(u64, Bytes)>, RecoverError> {
        let frames = &self.base.frames;
        let plain = frames.all(runs.iter().map(|(_, source)| *source)).await?;
        let piece = |(run, source): &(Extent, Source)| {
            piece_of(frames, &plain, *run, *source).map(|data| data.map(|data| (run.offset(), data))).transpose()
        };
        runs.iter().filter_map(piece).collect()
    }

    /// What a range reads as, in order; what is in no run was never written.
    async fn runs_in(&self, extent: Extent) -> Result<Vec<(Extent, Source)>, RecoverError> {
        let mut runs: Vec<_> = self.over.runs_in(extent).collect();
        let mut below = ExtentSet::new();
        below.insert(extent);
        runs.iter().for_each(|(run, _)| below.remove(*run));
        for gap in below.iter() {
            runs.extend(self.base.runs_in(self.disk, gap).await?);
        }
        runs.sort_unstable_by_key(|(run, _)| run.offset());
        Ok(runs)
    }
}

/// The bytes of a run out of its frame, which is among these; none for zeros.
pub(crate) fn piece_of(
    frames: &Frames,
    plain: &BTreeMap<(u32, u32), Bytes>,
    run: Extent,
    source: Source,
) -> Result<Option<Bytes>, RecoverError> {
    let Source::Data { place, frame, offset } = source else { return Ok(None) };
    let plain = &plain[&(place, frame)];
    let (start, end) = (u64::from(offset), u64::from(offset) + run.len());
    match end <= plain.len() as u64 {
        true => Ok(Some(plain.slice(start as usize..end as usize))),
        false => Err(frames.short_frame(place, frame)),
    }
}

fn to_io(error: RecoverError) -> std::io::Error {
    let kind = match &error {
        RecoverError::Range { .. } => std::io::ErrorKind::InvalidInput,
        _ => std::io::ErrorKind::Other,
    };
    std::io::Error::new(kind, error)
}

fn read_only() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::ReadOnlyFilesystem, "a recovery point cannot be changed")
}

#[async_trait]
impl disk::Disk for PointDisk {
    fn size(&self) -> u64 {
        self.info.size
    }

    async fn read(&self, extent: Extent) -> std::io::Result<Bytes> {
        PointDisk::read(self, extent).await.map_err(to_io)
    }

    async fn write(&self, _offset: u64, _data: Bytes) -> std::io::Result<()> {
        Err(read_only())
    }

    async fn zero(&self, _extent: Extent, _unmap: bool) -> std::io::Result<()> {
        Err(read_only())
    }

    async fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }

    async fn allocated(&self, extent: Extent) -> std::io::Result<Vec<Extent>> {
        self.data_extents_in(extent).await.map_err(to_io)
    }

    async fn drop_cache(&self, _extent: Extent) -> std::io::Result<()> {
        Ok(())
    }
}
