//! One position, opened: disks whose bytes are fetched when they are read.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use model::{DiskId, DiskName, Extent, ExtentSet, MachineName};
use serde::Serialize;

use super::map::{ExtentMap, Source};
use super::{Frames, History, RecoverError, Resolved};

/// Longest range of one read in bytes.
pub(crate) const READ_BYTES_MAX: u64 = 64 << 20;

/// Frames fetched at once for one read; the frames of one history share a bound of their own.
const READ_FRAMES_MAX: usize = 8;

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
}

/// One disk at one position; reads only.
pub struct PointDisk {
    info: PointDiskInfo,
    map: ExtentMap,
    frames: Arc<Frames>,
}

impl History {
    /// Opens a position. Errors: `Foreign` (resolved elsewhere), `Damage`.
    pub fn open(&self, at: &Resolved) -> Result<PointReader, RecoverError> {
        let seq = at.position.seq;
        if self.state_after(seq).is_none_or(|(_, digest)| digest != at.digest) || !self.validity().contains(seq) {
            return Err(RecoverError::Foreign { seq });
        }
        let disks = self.disks_at(seq)?.into_inner().into_iter().map(|(id, disk)| {
            let info = PointDiskInfo { name: disk.name, id, size: disk.size };
            Arc::new(PointDisk { info, map: disk.map, frames: self.frames().clone() })
        });
        let mut disks: Vec<_> = disks.collect();
        disks.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        Ok(PointReader { machine: self.machine().clone(), at: *at, disks })
    }
}

impl PointReader {
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

    /// The bytes of `extent`. Errors: `Range`; whatever is wrong with the objects that hold them.
    pub async fn read(&self, extent: Extent) -> Result<Bytes, RecoverError> {
        if extent.end() > self.info.size || extent.len() > READ_BYTES_MAX {
            return Err(RecoverError::Range { extent, size: self.info.size });
        }
        let runs: Vec<_> = self.map.runs_in(extent).collect();
        if let [(whole, source)] = runs[..]
            && whole == extent
        {
            return read_run(&self.frames, whole, source).await;
        }
        let mut bytes = BytesMut::zeroed(extent.len() as usize);
        let mut parts = futures::stream::iter(runs)
            .map(
                |(run, source)| async move { Ok::<_, RecoverError>((run, read_run(&self.frames, run, source).await?)) },
            )
            .buffered(READ_FRAMES_MAX);
        while let Some((run, part)) = parts.try_next().await? {
            let at = (run.offset() - extent.offset()) as usize;
            bytes[at..at + part.len()].copy_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    /// The ranges that may hold other than zeros, in order.
    pub fn data_extents(&self) -> Vec<Extent> {
        self.data_within(self.map.runs())
    }

    /// The same within `extent`.
    pub fn data_extents_in(&self, extent: Extent) -> Vec<Extent> {
        self.data_within(self.map.runs_in(extent))
    }

    fn data_within(&self, runs: impl Iterator<Item = (Extent, Source)>) -> Vec<Extent> {
        let data: ExtentSet = runs.filter(|(_, source)| *source != Source::Zero).map(|(extent, _)| extent).collect();
        data.iter().collect()
    }
}

/// The bytes of one run.
pub(crate) async fn read_run(frames: &Frames, run: Extent, source: Source) -> Result<Bytes, RecoverError> {
    match source {
        Source::Zero => Ok(BytesMut::zeroed(run.len() as usize).freeze()),
        Source::Data { place, frame, offset } => {
            let plain = frames.frame(place, frame).await?;
            let (start, end) = (u64::from(offset), u64::from(offset) + run.len());
            if end > plain.len() as u64 {
                return Err(frames.short_frame(place, frame));
            }
            Ok(plain.slice(start as usize..end as usize))
        }
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
        Ok(self.data_extents_in(extent))
    }

    async fn drop_cache(&self, _extent: Extent) -> std::io::Result<()> {
        Ok(())
    }
}
