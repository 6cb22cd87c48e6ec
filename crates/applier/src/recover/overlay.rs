//! Serve: a point as an NBD export that can be written, with every change kept in a local overlay file.
//!
//! The overlay is a sparse file as large as the disk; which blocks of 4 KiB it holds is known in memory only, so an
//! overlay belongs to one life of one export: a file that exists is refused. Without a path the file has no name and
//! goes with the process. A write of part of a block first brings the rest of the block over from the point. Requests
//! hold the locks of the granules they touch, so that two writers of one block cannot undo each other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use disk::{Disk, RawDisk};
use model::{Extent, SECTOR_BYTES};
use nbd::{BlockStatus, Errno, Export, ZeroFlags};
use tokio::sync::RwLock;
use tokio::task::AbortHandle;

use super::ahead::ReadAhead;
use super::trace::Recorder;
use super::{PointDisk, RecoverError};

/// Grain of the overlay.
const BLOCK_BYTES: u64 = 4096;

/// Blocks of one page of the overlay's index: 16 MiB of disk in 1 KiB of memory.
const PAGE_BLOCKS: u64 = 4096;

/// Bytes of disk under one lock.
const GRANULE_BYTES: u64 = 256 << 10;

/// Locks; granules share them in turn.
const LOCKS: u64 = 256;

/// Longest answer to a block-status request, in runs: a client asks again for the rest.
const STATUS_RUNS_MAX: usize = 4096;

/// Where a block is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// The point.
    Point,
    /// The overlay file.
    Overlay,
    /// The overlay file, where it is a hole.
    Zero,
}

struct Page {
    present: [u64; PAGE_BLOCKS as usize / 64],
    zero: [u64; PAGE_BLOCKS as usize / 64],
}

/// Which blocks the overlay holds.
#[derive(Default)]
struct Index {
    pages: BTreeMap<u64, Box<Page>>,
}

impl Index {
    fn get(&self, block: u64) -> Held {
        let Some(page) = self.pages.get(&(block / PAGE_BLOCKS)) else { return Held::Point };
        let (word, bit) = ((block % PAGE_BLOCKS / 64) as usize, 1u64 << (block % 64));
        match (page.present[word] & bit != 0, page.zero[word] & bit != 0) {
            (false, _) => Held::Point,
            (true, false) => Held::Overlay,
            (true, true) => Held::Zero,
        }
    }

    fn set(&mut self, block: u64, zero: bool) {
        let empty = || Box::new(Page { present: [0; _], zero: [0; _] });
        let page = self.pages.entry(block / PAGE_BLOCKS).or_insert_with(empty);
        let (word, bit) = ((block % PAGE_BLOCKS / 64) as usize, 1u64 << (block % 64));
        page.present[word] |= bit;
        if zero { page.zero[word] |= bit } else { page.zero[word] &= !bit }
    }
}

/// A point's disk with a copy-on-write overlay.
pub struct OverlayExport {
    point: Arc<PointDisk>,
    reader: Arc<ReadAhead>,
    recorder: Option<Arc<Recorder>>,
    /// Fetches what an earlier export read first.
    prefetch: Option<AbortHandle>,
    overlay: RawDisk,
    index: Mutex<Index>,
    locks: Vec<RwLock<()>>,
    /// A flush failed: what was written since the last good one may be gone, so nothing may be promised any more.
    broken: AtomicBool,
}

impl OverlayExport {
    /// Makes the export, whose reads are read ahead for. With a cache on disk they are recorded, and what was read first of an
    /// earlier export is fetched. The overlay goes into a new file at `overlay`, or into a file without a name.
    /// Errors: `Target` (the file exists), `File`.
    pub async fn create(point: Arc<PointDisk>, overlay: Option<&Path>) -> Result<Self, RecoverError> {
        let (size, path) = (point.size(), overlay.map(Path::to_owned));
        let created = tokio::task::spawn_blocking(move || create_overlay(path.as_deref(), size)).await;
        let overlay = created.expect("creating a file does not panic and is not cancelled")?;
        let locks = (0..LOCKS).map(|_| RwLock::new(())).collect();
        let (reader, recorder) = (Arc::new(ReadAhead::new(point.clone())), Recorder::open(&point).await);
        let prefetch = recorder.clone().map(|recorder| {
            let reader = reader.clone();
            tokio::spawn(async move { recorder.prefetch(reader).await }).abort_handle()
        });
        let (index, broken) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { point, reader, recorder, prefetch, overlay, index, locks, broken })
    }

    /// Keeps what was recorded of its reads. For the end of an export: now and then it is kept anyway.
    pub async fn save_trace(&self) {
        if let Some(recorder) = &self.recorder {
            recorder.save().await;
        }
    }

    async fn read_point(&self, extent: Extent) -> Result<Bytes, Errno> {
        if let Some(recorder) = &self.recorder {
            recorder.note(extent);
        }
        self.reader.read(extent).await.map_err(|e| failed("read", &e))
    }

    fn held(&self, block: u64) -> Held {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).get(block)
    }

    fn hold(&self, blocks: std::ops::Range<u64>, zero: bool) {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.for_each(|block| index.set(block, zero));
    }

    /// The locks of a range, each once, in order.
    fn locks_of(&self, extent: Extent) -> impl Iterator<Item = &RwLock<()>> {
        let (first, last) = (extent.offset() / GRANULE_BYTES, (extent.end() - 1) / GRANULE_BYTES);
        let mut numbers: Vec<_> = (first..=last).take(LOCKS as usize).map(|granule| granule % LOCKS).collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| &self.locks[number as usize])
    }

    fn block_extent(&self, block: u64) -> Extent {
        let offset = block * BLOCK_BYTES;
        let len = BLOCK_BYTES.min(self.point.size() - offset);
        Extent::new(offset, len).expect("disks are made of whole sectors")
    }

    /// Runs of blocks that are held alike, cut to `extent`.
    fn runs(&self, extent: Extent) -> Vec<(Extent, Held)> {
        let mut runs: Vec<(u64, u64, Held)> = Vec::new();
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in extent.split_at_multiples(BLOCK_BYTES) {
            let held = index.get(piece.offset() / BLOCK_BYTES);
            match runs.last_mut() {
                Some((_, len, last)) if *last == held => *len += piece.len(),
                _ => runs.push((piece.offset(), piece.len(), held)),
            }
        }
        let whole = |(offset, len, held)| (Extent::new(offset, len).expect("made of sectors"), held);
        runs.into_iter().map(whole).collect()
    }

    async fn read_locked(&self, extent: Extent) -> Result<Bytes, Errno> {
        let mut bytes = BytesMut::with_capacity(extent.len() as usize);
        for (run, held) in self.runs(extent) {
            match held {
                Held::Point => bytes.extend_from_slice(&self.read_point(run).await?),
                Held::Overlay => {
                    bytes.extend_from_slice(&self.overlay.read(run).await.map_err(|e| refused("read", &e))?)
                }
                Held::Zero => bytes.resize(bytes.len() + run.len() as usize, 0),
            }
        }
        Ok(bytes.freeze())
    }

    /// Brings over what `extent` leaves of the blocks at its ends, so that those blocks may count as held.
    async fn complete_ends(&self, extent: Extent) -> Result<(), Errno> {
        let (first, last) = (extent.offset() / BLOCK_BYTES, (extent.end() - 1) / BLOCK_BYTES);
        for block in [first, last] {
            let whole = self.block_extent(block);
            let covered = extent.offset() <= whole.offset() && whole.end() <= extent.end();
            if covered || self.held(block) != Held::Point {
                continue;
            }
            let bytes = self.point.read(whole).await.map_err(|e| failed("read", &e))?;
            self.overlay.write(whole.offset(), bytes).await.map_err(|e| refused("write", &e))?;
            self.hold(block..block + 1, false);
        }
        Ok(())
    }

    async fn zero_locked(&self, extent: Extent, unmap: bool) -> Result<(), Errno> {
        self.complete_ends(extent).await?;
        self.overlay.zero(extent, unmap).await.map_err(|e| refused("zero", &e))?;
        let whole = extent.offset().div_ceil(BLOCK_BYTES)..match extent.end() == self.point.size() {
            true => extent.end().div_ceil(BLOCK_BYTES),
            false => extent.end() / BLOCK_BYTES,
        };
        self.hold(whole, unmap);
        Ok(())
    }

    async fn zero_range(&self, offset: u64, len: u64, unmap: bool, fua: bool) -> Result<(), Errno> {
        let extent = self.extent(offset, len)?;
        self.check_unbroken()?;
        {
            let mut guards = Vec::new();
            for lock in self.locks_of(extent) {
                guards.push(lock.write().await);
            }
            self.zero_locked(extent, unmap).await?;
        }
        if fua { self.flush().await } else { Ok(()) }
    }

    fn extent(&self, offset: u64, len: u64) -> Result<Extent, Errno> {
        Extent::new(offset, len).ok().filter(|extent| extent.end() <= self.point.size()).ok_or(Errno::Invalid)
    }

    fn check_unbroken(&self) -> Result<(), Errno> {
        // Relaxed: set once and never cleared, and no other memory is published by it.
        if self.broken.load(Ordering::Relaxed) { Err(Errno::Io) } else { Ok(()) }
    }
}

impl Drop for OverlayExport {
    fn drop(&mut self) {
        self.prefetch.iter().for_each(AbortHandle::abort);
    }
}

fn create_overlay(path: Option<&Path>, size: u64) -> Result<RawDisk, RecoverError> {
    let file =
        |operation: &'static str, path: &Path, source| RecoverError::File { operation, path: path.into(), source };
    if let Some(path) = path {
        return RawDisk::create(path, size).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => {
                let why = "exists: an overlay is always new; give another path or remove it";
                RecoverError::Target { path: path.to_owned(), why }
            }
            _ => file("create", path, source),
        });
    }
    let directory = tempfile::tempdir().map_err(|e| file("create", &std::env::temp_dir(), e))?;
    let path = directory.path().join("overlay");
    // The open file outlives its name, and goes when the export does.
    RawDisk::create(&path, size).map_err(|e| file("create", &path, e))
}

fn failed(operation: &str, error: &RecoverError) -> Errno {
    tracing::error!(operation, %error, "recovery point failed under an export");
    Errno::Io
}

fn refused(operation: &str, error: &std::io::Error) -> Errno {
    tracing::error!(operation, %error, "overlay failed under an export");
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Errno::NoSpace,
        _ => Errno::Io,
    }
}

#[async_trait]
impl Export for OverlayExport {
    fn size(&self) -> u64 {
        self.point.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn minimum_block(&self) -> u32 {
        SECTOR_BYTES as u32
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let extent = self.extent(offset, u64::from(len))?;
        let mut guards = Vec::new();
        for lock in self.locks_of(extent) {
            guards.push(lock.read().await);
        }
        self.read_locked(extent).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        let extent = self.extent(offset, data.len() as u64)?;
        self.check_unbroken()?;
        {
            let mut guards = Vec::new();
            for lock in self.locks_of(extent) {
                guards.push(lock.write().await);
            }
            self.complete_ends(extent).await?;
            self.overlay.write(offset, data).await.map_err(|e| refused("write", &e))?;
            self.hold(extent.offset() / BLOCK_BYTES..extent.end().div_ceil(BLOCK_BYTES), false);
        }
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.check_unbroken()?;
        self.overlay.flush().await.map_err(|error| {
            // Relaxed, as its partner in `check_unbroken`.
            self.broken.store(true, Ordering::Relaxed);
            refused("flush", &error)
        })
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.zero_range(offset, len, true, fua).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        self.zero_range(offset, len, !flags.no_hole, flags.fua).await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockStatus>, Errno> {
        let extent = self.extent(offset, len)?;
        let mut statuses: Vec<BlockStatus> = Vec::new();
        let mut push = |len: u64, data: bool| match statuses.last_mut() {
            Some(last) if last.hole != data => last.len += len,
            _ => statuses.push(BlockStatus { len, hole: !data, zero: !data }),
        };
        for (run, held) in self.runs(extent) {
            if held != Held::Point {
                push(run.len(), held == Held::Overlay);
                continue;
            }
            let mut at = run.offset();
            for data in self.point.data_extents_in(run).await.map_err(|e| failed("read", &e))? {
                if data.offset() > at {
                    push(data.offset() - at, false);
                }
                push(data.len(), true);
                at = data.end();
            }
            if at < run.end() {
                push(run.end() - at, false);
            }
        }
        statuses.truncate(STATUS_RUNS_MAX);
        Ok(statuses)
    }
}
