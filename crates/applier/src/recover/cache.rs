//! The read cache: a directory that keeps sealed bytes of objects, so that they need not be fetched again.
//!
//! ```text
//!   DIR/<hash of vault and path>.sealed     a sparse file: each fetched range at the offset that it has in its object
//!   DIR/<hash of vault, machine, disk>.trace     what was read of a disk first (see `trace`; `.new` while it is written)
//! ```
//! - What lies here is as the store has it, sealed: no plain byte is ever written. There is no index and no sync. A frame, a table or a
//!   map page read back is authenticated as one from the store is; whatever a crash tore or a hand altered does not open
//!   and is fetched again.
//! - Processes share a directory: they write the same bytes to the same places. Files are opened for each use, so one
//!   that another process has removed is not written on.
//! - It is bounded by the bytes that its files take on the medium. What a process writes is counted before it is written,
//!   what others write is seen at the next look; then the files that were used least lately go.
//! - It never fails a read, nor makes one wait for a write: what cannot be written at once is not kept. After a failure
//!   nothing is written for a while, and the log says so once.
//! - Only regular files of ours with such names are read, written, counted or removed; a link is never followed.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use format::keys::{Keys, VaultId};
use format::object::OBJECT_BYTES_MAX;
use rustix::fs::{Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::RecoverError;
use crate::files::{blocking, failed};

/// Least bound on its bytes that makes sense.
pub const CACHE_BYTES_MIN: u64 = 16 << 20;

/// KiB that may wait to be written.
const WAITING_KIB_MAX: u32 = 64 << 10;

/// Parts of the bound that a process writes before it looks again what others wrote.
const LOOKS: u64 = 32;

/// Parts of the bound that are freed beyond what is needed, so that not every write has to make room.
const SPARE: u64 = 8;

/// How long nothing is written after a failure.
const PAUSE: Duration = Duration::from_secs(30);

/// Ends of the names of our files.
const SEALED: &str = "sealed";
pub(super) const TRACE: &str = "trace";
/// A trace being written.
pub(super) const NEW: &str = "new";

/// What a cache did, since it was opened by this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadCacheStats {
    /// Frames, tables and map pages that it had.
    pub hits: u64,
    /// Those that it had not, or that did not open.
    pub misses: u64,
    /// Bytes written to it.
    pub bytes: u64,
    /// Files removed to make room.
    pub evictions: u64,
}

/// What is known of the room in the directory.
#[derive(Default)]
struct Room {
    /// Bytes that its files took at the last look, and what was written since.
    used: u64,
    /// Written since the last look.
    written: u64,
}

/// Sealed bytes on a local disk; see the head of this file.
pub struct ReadCache {
    dir: PathBuf,
    bytes_max: u64,
    vault: VaultId,
    room: Mutex<Room>,
    /// A permit for each KiB that may wait to be written.
    waiting: Arc<Semaphore>,
    paused: Mutex<Option<Instant>>,
    failing: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    bytes: AtomicU64,
    evictions: AtomicU64,
}

impl ReadCache {
    /// Opens a directory, which is made (mode 0700) if it is not there, for the objects of one vault. It will hold at most
    /// `bytes_max` bytes, and with others who write to it a thirty-second part more for each. Errors: `File` (it cannot be
    /// made or listed), `Target` (it is no directory, or the bound is below [`CACHE_BYTES_MIN`]).
    pub async fn open(dir: &Path, bytes_max: u64, keys: &Keys) -> Result<Arc<Self>, RecoverError> {
        if bytes_max < CACHE_BYTES_MIN {
            let why = "a cache needs at least 16 MiB";
            return Err(RecoverError::Target { path: dir.to_owned(), why });
        }
        let cache = Self {
            dir: dir.to_owned(),
            bytes_max,
            vault: keys.vault(),
            room: Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING_KIB_MAX as usize)),
            paused: Mutex::default(),
            failing: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        };
        let cache = Arc::new(cache);
        let made = cache.clone();
        blocking(move || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&made.dir)?;
            made.make_room(0)
        })
        .await
        .map_err(failed("open cache", dir))?;
        Ok(cache)
    }

    /// What it did so far.
    pub fn stats(&self) -> ReadCacheStats {
        // Relaxed: counts for display.
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ReadCacheStats {
            hits: of(&self.hits),
            misses: of(&self.misses),
            bytes: of(&self.bytes),
            evictions: of(&self.evictions),
        }
    }

    /// Waits until everything that was to be kept so far is written or given up.
    pub async fn settled(&self) {
        let _all = self.waiting.acquire_many(WAITING_KIB_MAX).await.expect("the semaphore is never closed");
    }

    /// A file of ours, by what it is of.
    pub(crate) fn file(&self, of: &str, extension: &str) -> PathBuf {
        let mut name = blake3::Hasher::new();
        name.update(&self.vault.0).update(of.as_bytes());
        self.dir.join(format!("{}.{extension}", name.finalize().to_hex()))
    }

    /// Bytes of an object as they lie here, cut at the file's end; whatever they are.
    pub(crate) async fn read(&self, path: &str, range: Range<u64>) -> Bytes {
        let file = self.file(path, SEALED);
        let shown = file.clone();
        match blocking(move || read_file(&file, range)).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Bytes::new(),
            Err(error) => {
                self.failed("read", &shown, &error);
                Bytes::new()
            }
        }
    }

    /// Writes bytes of an object to where they belong, in a while, unless too much waits for that already.
    pub(crate) fn keep(self: &Arc<Self>, path: &str, offset: u64, bytes: Bytes) {
        if bytes.is_empty() || offset.saturating_add(bytes.len() as u64) > OBJECT_BYTES_MAX || self.is_paused() {
            return;
        }
        let kib = u32::try_from(bytes.len().div_ceil(1024)).unwrap_or(u32::MAX);
        let Ok(permit) = self.waiting.clone().try_acquire_many_owned(kib) else { return };
        let (cache, file) = (self.clone(), self.file(path, SEALED));
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            match cache.write_file(&file, offset, &bytes) {
                Ok(()) => cache.wrote(bytes.len() as u64),
                Err(error) => cache.failed("write", &file, &error),
            }
        });
    }

    /// Counts.
    pub(super) fn count(&self, hits: u64, misses: u64) {
        // Relaxed: counts for display.
        self.hits.fetch_add(hits, Ordering::Relaxed);
        self.misses.fetch_add(misses, Ordering::Relaxed);
        metrics::counter!("recover_cache_hits_total").increment(hits);
        metrics::counter!("recover_cache_misses_total").increment(misses);
    }

    fn wrote(&self, bytes: u64) {
        // Relaxed: a count for display.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        metrics::counter!("recover_cache_written_bytes_total").increment(bytes);
    }

    fn is_paused(&self) -> bool {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    /// Nothing is written for a while, unless it was the fault of one file, and the first failure is told.
    pub(super) fn failed(&self, operation: &'static str, path: &Path, error: &io::Error) {
        if error.kind() != ErrorKind::PermissionDenied {
            *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + PAUSE);
        }
        // Relaxed: only whether it is told depends on it.
        if !self.failing.swap(true, Ordering::Relaxed) {
            let path = path.display();
            tracing::warn!(operation, %path, %error, "the read cache fails; reads go to the store");
        }
    }

    fn write_file(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.reserve(bytes.len() as u64)?;
        // Opened after room was made: that may have taken this file.
        open_ours(path, OFlags::RDWR | OFlags::CREATE)?.write_all_at(bytes, offset)
    }

    /// Counts what is about to be written, and makes room when there is none or it is time to look.
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let look = {
            let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
            room.used += bytes;
            room.written += bytes;
            room.used > self.bytes_max || room.written > self.bytes_max / LOOKS
        };
        if look { self.make_room(bytes) } else { Ok(()) }
    }

    /// Looks what there is, and removes what was used least lately until `bytes` more fit.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        // Held all along: one look at a time.
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if !is_ours(&path) {
                continue;
            }
            if let Ok(meta) = std::fs::symlink_metadata(&path)
                && meta.is_file()
            {
                files.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.blocks() * 512, path));
            }
        }
        let mut used: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        if used + bytes > self.bytes_max {
            files.sort_unstable();
            for (_, size, path) in files {
                if used + bytes <= self.bytes_max - self.bytes_max / SPARE {
                    break;
                }
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => used -= size,
                }
                // Relaxed: a count for display.
                self.evictions.fetch_add(1, Ordering::Relaxed);
                metrics::counter!("recover_cache_evictions_total").increment(1);
            }
        }
        *room = Room { used: used + bytes, written: 0 };
        Ok(())
    }
}

/// Whether a file has such a name as we give.
fn is_ours(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let extension = path.extension().and_then(|extension| extension.to_str());
    let named = stem.len() == 2 * blake3::OUT_LEN && stem.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    named && matches!(extension, Some(SEALED | TRACE | NEW))
}

/// Opens a regular file that has one name, and follows no link to it.
pub(super) fn open_ours(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let foreign = || io::Error::new(ErrorKind::PermissionDenied, "is not a plain file of its own: left alone");
    let file = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        // A link, a directory, a socket.
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(foreign()),
        file => File::from(file?),
    };
    let meta = file.metadata()?;
    (meta.is_file() && meta.nlink() <= 1).then_some(file).ok_or_else(foreign)
}

fn read_file(path: &Path, range: Range<u64>) -> io::Result<Bytes> {
    let file = open_ours(path, OFlags::RDONLY)?;
    let len = range.end.min(file.metadata()?.len()).saturating_sub(range.start);
    let mut bytes = BytesMut::zeroed(usize::try_from(len).map_err(io::Error::other)?);
    // One that grew shorter meanwhile reads as zeros there.
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], range.start + have as u64)? {
            0 => break,
            read => have += read,
        }
    }
    if len > 0 {
        // The time of its last use, which says what goes first: all processes that share the directory see it.
        let (now, keep) = (UTIME_NOW, UTIME_OMIT);
        let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let _ = rustix::fs::futimens(&file, &Timestamps { last_access: at(keep), last_modification: at(now) });
    }
    Ok(bytes.freeze())
}
