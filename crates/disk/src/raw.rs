//! Raw files and block devices: what the agent protects and what the applier keeps.
//!
//! Reads and writes are positioned (`pread`, `pwrite`) and run on threads of the disk, so that calls never share a file
//! offset and may run in parallel; small ones run [`here`](crate::here) where the caller may block. A call that is dropped half-way still runs to its end: whoever drops a
//! write must treat its range as undecided. A failed flush is returned as it is and never tried again here, because the
//! kernel marks the lost pages clean and a second flush would succeed without having written them.
//!
//! A disk opened for writing is held alone: two writers on one disk would break the order of the stream. Regular files
//! are held by an advisory lock, block devices by an exclusive open, which the kernel also refuses for a mounted device.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use model::{Extent, ExtentSet, SECTOR_BYTES};
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use crate::Disk;
use crate::bounds::{check_extent, check_write};
use crate::direct::Direct;
use crate::here::Here;
use crate::threads::DiskThreads;

/// Bytes of zeros written at once where a disk cannot zero a range by itself.
const ZERO_PIECE_BYTES: usize = 1 << 20;

/// Bytes read at once: a larger request is a mistake, and must not take the memory of the host.
const READ_BYTES_MAX: u64 = 1 << 30;

/// Parts that one [`Disk::allocated`] call tells apart; what lies behind them is reported as one allocated part.
const ALLOCATED_PARTS_MAX: usize = 65_536;

/// Cache is dropped in whole units of this: the kernel keeps a page that is only partly named. No page is larger.
const CACHE_UNIT_BYTES: u64 = 64 << 10;

/// A raw file or block device, read and written at offsets on threads of its own.
#[derive(Debug)]
pub struct RawDisk {
    inner: Arc<Inner>,
    threads: DiskThreads,
    here: Here,
}

#[derive(Debug)]
struct Inner {
    file: File,
    path: PathBuf,
    size: u64,
    writable: bool,
    block_device: bool,
    direct: Direct,
}

impl RawDisk {
    /// Opens an existing file or device. For writing it is held alone until dropped. Errors name the path.
    pub fn open(path: &Path, writable: bool) -> io::Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| context(e, "open", path))?;
        let kind = metadata.file_type();
        let block_device = kind.is_block_device();
        if !block_device && !kind.is_file() {
            let why = format!("{} is neither a regular file nor a block device", path.display());
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        let exclusive = if writable && block_device { OFlags::EXCL.bits() as i32 } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(exclusive)
            .open(path)
            .map_err(|e| open_error(e, path))?;
        Self::from_file(file, path, writable, block_device)
    }

    /// Creates a sparse file of `size` bytes, readable by its owner only and durable by name; refuses one that exists.
    pub fn create(path: &Path, size: u64) -> io::Result<Self> {
        check_size(size, path)?;
        let file = create_new(path)?;
        let sized = file.set_len(size).and_then(|()| file.sync_all()).and_then(|()| sync_parent(path));
        if let Err(error) = sized {
            // The file is ours and empty: nobody else can have put anything in it.
            let _ = std::fs::remove_file(path);
            return Err(context(error, "create", path));
        }
        Self::from_file(file, path, true, false)
    }

    /// The same open file with the size it has now. It is held alone until both are dropped.
    pub fn measured_again(&self) -> io::Result<Self> {
        let inner = &self.inner;
        let mut file = inner.file.try_clone().map_err(|e| context(e, "measure", &inner.path))?;
        let size = size_of(&mut file, &inner.path)?;
        Ok(Self::around(file, inner.path.clone(), size, (inner.writable, inner.block_device)))
    }

    fn from_file(mut file: File, path: &Path, writable: bool, block_device: bool) -> io::Result<Self> {
        if writable && !block_device {
            lock(&file, path)?;
        }
        let size = size_of(&mut file, path)?;
        Ok(Self::around(file, path.to_owned(), size, (writable, block_device)))
    }

    fn around(file: File, path: PathBuf, size: u64, (writable, block_device): (bool, bool)) -> Self {
        let inner = Inner { file, path, size, writable, block_device, direct: Direct::default() };
        Self { inner: Arc::new(inner), threads: DiskThreads::new(), here: Here::default() }
    }

    /// Writes parts one behind the other from `offset` on, as whoever fills a disk does: large writes go past the page cache,
    /// where the file can. Otherwise as [`Disk::write`].
    pub async fn write_parts(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.check_writable()?;
        let Some(extent) = check_write(offset, parts.iter().map(Bytes::len).sum(), self.inner.size)? else {
            return Ok(());
        };
        self.run(move |disk| disk.write_parts(extent, &parts)).await
    }

    /// Runs one operation on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let inner = self.inner.clone();
        let ran = self.threads.run(move || operation(&inner)).await;
        ran.unwrap_or_else(|| Err(io::Error::other("a disk operation panicked and did not run to its end")))
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.inner.writable {
            return Ok(());
        }
        let why = format!("{} was opened read-only", self.inner.path.display());
        Err(io::Error::new(ErrorKind::PermissionDenied, why))
    }
}

#[async_trait]
impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.inner.size
    }

    async fn read(&self, extent: Extent) -> io::Result<Bytes> {
        check_extent(extent, self.inner.size)?;
        if self.here.takes(extent.len())
            && let Some(data) = self.inner.read_cached(extent)
        {
            return Ok(data);
        }
        self.run(move |disk| disk.read(extent)).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        self.check_writable()?;
        let Some(extent) = check_write(offset, data.len(), self.inner.size)? else { return Ok(()) };
        if self.here.takes(extent.len()) {
            return self.here.run(|| self.inner.write(extent, &data));
        }
        self.run(move |disk| disk.write(extent, &data)).await
    }

    async fn zero(&self, extent: Extent, unmap: bool) -> io::Result<()> {
        self.check_writable()?;
        check_extent(extent, self.inner.size)?;
        self.run(move |disk| disk.zero(extent, unmap).map_err(|e| range_context(e, "zero", extent, &disk.path))).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.run(|disk| disk.file.sync_data().map_err(|e| context(e, "flush", &disk.path))).await
    }

    async fn allocated(&self, extent: Extent) -> io::Result<Vec<Extent>> {
        check_extent(extent, self.inner.size)?;
        self.run(move |disk| disk.allocated(extent)).await
    }

    async fn drop_cache(&self, extent: Extent) -> io::Result<()> {
        check_extent(extent, self.inner.size)?;
        self.run(move |disk| disk.drop_cache(extent)).await
    }
}

impl Inner {
    fn read(&self, extent: Extent) -> io::Result<Bytes> {
        if extent.len() > READ_BYTES_MAX {
            let why = format!("a read of {} bytes is over the limit of {READ_BYTES_MAX}: read in pieces", extent.len());
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        let len = usize::try_from(extent.len()).map_err(io::Error::other)?;
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let at = extent.offset() + data.len() as u64;
            let read = match rustix::io::pread(&self.file, spare_capacity(&mut data), at) {
                Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                Err(Errno::INTR) => continue,
                read => read.map_err(io::Error::from),
            };
            read.map_err(|e| range_context(e, "read", extent, &self.path))?;
        }
        data.truncate(len);
        Ok(data.into())
    }

    /// What the page cache holds of `extent`, if that is all of it: a read that never blocks.
    fn read_cached(&self, extent: Extent) -> Option<Bytes> {
        let mut data = vec![0; usize::try_from(extent.len()).ok()?];
        let mut whole = [IoSliceMut::new(&mut data)];
        match rustix::io::preadv2(&self.file, &mut whole, extent.offset(), ReadWriteFlags::NOWAIT) {
            Ok(read) if read == data.len() => Some(data.into()),
            // It is not all there, or this file cannot tell: then it is read in a way that may wait, and meets what error there is.
            _ => None,
        }
    }

    fn write(&self, extent: Extent, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, extent.offset()).map_err(|e| range_context(e, "write", extent, &self.path))
    }

    fn write_parts(&self, extent: Extent, parts: &[Bytes]) -> io::Result<()> {
        let written = self.direct.write(&self.file, extent.offset(), parts);
        written.map_err(|e| range_context(e, "write", extent, &self.path))
    }

    fn zero(&self, extent: Extent, unmap: bool) -> io::Result<()> {
        let mode = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        let mode = mode | FallocateFlags::KEEP_SIZE;
        let zeroed =
            rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.file, mode, extent.offset(), extent.len()));
        match zeroed {
            Ok(()) => Ok(()),
            // INVAL is how a device with larger sectors, and some filesystems, say that they cannot do this range.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => self.write_zeros(extent),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write_zeros(&self, extent: Extent) -> io::Result<()> {
        let zeros = vec![0; ZERO_PIECE_BYTES.min(usize::try_from(extent.len()).unwrap_or(ZERO_PIECE_BYTES))];
        let mut at = extent.offset();
        while at < extent.end() {
            let len = (extent.end() - at).min(zeros.len() as u64);
            // Not above the buffer's own length, so it fits.
            self.file.write_all_at(&zeros[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    fn allocated(&self, extent: Extent) -> io::Result<Vec<Extent>> {
        if self.block_device {
            return Ok(vec![extent]);
        }
        let mut parts = ExtentSet::new();
        let mut at = extent.offset();
        for count in 0.. {
            let Some(data) = self.seek_data(at)? else { break };
            let start = data.max(extent.offset());
            if start >= extent.end() {
                break;
            }
            let hole = if count < ALLOCATED_PARTS_MAX { self.seek_hole(start)? } else { extent.end() };
            if let Some(part) = outward(start, hole).and_then(|part| part.intersection(&extent)) {
                parts.insert(part);
            }
            // A file that is written meanwhile may show a hole where data was; going on by one sector ends all the same.
            at = hole.max(start + SECTOR_BYTES);
            if at >= extent.end() {
                break;
            }
        }
        Ok(parts.iter().collect())
    }

    /// First offset at or after `at` that may hold data; `at` itself where the filesystem cannot tell.
    fn seek_data(&self, at: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Some(at)),
            Err(errno) => Err(context(errno.into(), "find data in", &self.path)),
        }
    }

    /// First offset at or after `at` in a hole; the end of the disk where the filesystem cannot tell.
    fn seek_hole(&self, at: u64) -> io::Result<u64> {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(at)) {
            Ok(hole) => Ok(hole),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(self.size),
            Err(errno) => Err(context(errno.into(), "find holes in", &self.path)),
        }
    }

    fn drop_cache(&self, extent: Extent) -> io::Result<()> {
        let start = extent.offset() / CACHE_UNIT_BYTES * CACHE_UNIT_BYTES;
        let end = extent.end().div_ceil(CACHE_UNIT_BYTES).saturating_mul(CACHE_UNIT_BYTES);
        let len = std::num::NonZeroU64::new(end - start);
        rustix::fs::fadvise(&self.file, start, len, Advice::DontNeed)
            .map_err(|errno| range_context(errno.into(), "drop the cache of", extent, &self.path))
    }
}

/// The whole sectors around `start..end`.
fn outward(start: u64, end: u64) -> Option<Extent> {
    let first = start / SECTOR_BYTES * SECTOR_BYTES;
    let last = end.div_ceil(SECTOR_BYTES).checked_mul(SECTOR_BYTES)?;
    Extent::new(first, last.checked_sub(first)?).ok()
}

/// Creates a file that nobody had before, readable by its owner only.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists {
            let why = format!("{} exists already: name another target, or move it away first", path.display());
            return io::Error::new(ErrorKind::AlreadyExists, why);
        }
        context(error, "create", path)
    })
}

/// Makes the name of a new file durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

fn check_size(size: u64, path: &Path) -> io::Result<()> {
    if size.is_multiple_of(SECTOR_BYTES) {
        return Ok(());
    }
    let why = format!(
        "{} has {size} bytes, which is not a multiple of {SECTOR_BYTES}: a disk is made of whole sectors",
        path.display()
    );
    Err(io::Error::new(ErrorKind::InvalidInput, why))
}

/// The end of the file is its size for block devices too, whose metadata has no length.
fn size_of(file: &mut File, path: &Path) -> io::Result<u64> {
    let size = file.seek(SeekFrom::End(0)).map_err(|e| context(e, "find the size of", path))?;
    check_size(size, path)?;
    Ok(size)
}

fn lock(file: &File, path: &Path) -> io::Result<()> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(in_use(path)),
        Err(errno) => Err(context(errno.into(), "lock", path)),
    }
}

fn open_error(error: io::Error, path: &Path) -> io::Error {
    if error.kind() == ErrorKind::ResourceBusy { in_use(path) } else { context(error, "open", path) }
}

fn in_use(path: &Path) -> io::Error {
    let why = format!(
        "{0} is in use by another writer: stop the agent or applier that holds it, or unmount it, then try again \
         (`fuser -v {0}` names the process)",
        path.display()
    );
    io::Error::new(ErrorKind::ResourceBusy, why)
}

/// Keeps the kind, which callers act on, and adds what was done to which file.
pub(crate) fn context(error: io::Error, what: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}

fn range_context(error: io::Error, what: &str, extent: Extent, path: &Path) -> io::Error {
    let range = format!("{what} {} bytes at {} of", extent.len(), extent.offset());
    context(error, &range, path)
}

#[cfg(test)]
mod tests;
