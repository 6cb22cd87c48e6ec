//! The read trace of an export: recorded while it is read, kept in the cache directory, and fetched by the next export of
//! the disk, of any point, before anybody asks.
//!
//! What is read first after a start is much the same each time: superblocks, journals, directories, a kernel. Of each disk
//! the ranges that were read first are kept in order ([`ReadTrace`]): what this export read, and behind that what was in
//! the trace that it found, as far as there is room. So an export that is read little does not make the trace poorer. The
//! file is replaced by a rename, unsynced; one that a crash tore is refused by its hash and counts as none.
//!
//! Fetching goes in the order of the trace, at a bounded rate, and lets reads go first. It brings frames into the caches
//! and holds nothing itself. An error is passed over: who reads there meets it, if it lasts.

use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use format::trace::{ReadTrace, TRACE_BYTES_MAX};
use model::Extent;
use rustix::fs::OFlags;
use tokio::time::Instant;

use super::ahead::ReadAhead;
use super::cache::{NEW, TRACE, open_ours};
use super::{PointDisk, ReadCache};
use crate::files::blocking;

/// Reads are recorded for so long after an export was opened.
const RECORDED_FOR: Duration = Duration::from_secs(600);

/// How often the file is written at most while reads are recorded.
const SAVED_EVERY: Duration = Duration::from_secs(10);

/// Ranges, and bytes of the disk, that are fetched together.
const RANGES_AT_ONCE: usize = 64;
const BYTES_AT_ONCE: u64 = 4 << 20;

/// Plain bytes fetched a second at most.
const BYTES_A_SECOND: u32 = 128 << 20;

/// How often, and how many times, it is looked whether reads are waiting before the next ranges are fetched.
const READS_FIRST: (Duration, u32) = (Duration::from_millis(2), 25);

struct Recording {
    now: ReadTrace,
    saved: Instant,
    unsaved: bool,
}

/// Records what is read of a disk.
pub(super) struct Recorder {
    cache: Arc<ReadCache>,
    file: PathBuf,
    new: PathBuf,
    until: Instant,
    /// What the file held when it was opened.
    earlier: ReadTrace,
    recording: Mutex<Recording>,
}

impl Recorder {
    /// For a disk that is read through a cache; none where it is not.
    pub async fn open(disk: &PointDisk) -> Option<Arc<Self>> {
        let cache = disk.cache()?;
        let of = format!("trace of {} {}", disk.machine(), disk.info().name);
        let (file, new) = (cache.file(&of, TRACE), cache.file(&of, NEW));
        let found = file.clone();
        let earlier = match blocking(move || read_trace(&found)).await {
            Ok(earlier) => earlier,
            Err(error) => {
                let path = file.display();
                tracing::debug!(%path, %error, "no read trace is found: nothing is fetched early");
                ReadTrace::default()
            }
        };
        let now = Instant::now();
        let recording = Mutex::new(Recording { now: ReadTrace::default(), saved: now, unsaved: false });
        Some(Arc::new(Self { cache, file, new, until: now + RECORDED_FOR, earlier, recording }))
    }

    /// Notes a read, and writes the file when it is time to.
    pub fn note(self: &Arc<Self>, extent: Extent) {
        let now = Instant::now();
        let mut recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= self.until || recording.now.is_full() {
            return;
        }
        recording.unsaved |= recording.now.read(extent);
        if recording.unsaved && (now >= recording.saved + SAVED_EVERY || recording.now.is_full()) {
            // Counts as saved whatever comes of it: the next time is soon.
            (recording.saved, recording.unsaved) = (now, false);
            drop(recording);
            let this = self.clone();
            tokio::spawn(async move { this.write().await });
        }
    }

    /// Writes the file if there is something new.
    pub async fn save(&self) {
        let unsaved = {
            let mut recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut recording.unsaved)
        };
        if unsaved {
            self.write().await;
        }
    }

    async fn write(&self) {
        let mut trace = self.recording.lock().unwrap_or_else(PoisonError::into_inner).now.clone();
        self.earlier.ranges().iter().for_each(|range| _ = trace.read(*range));
        let (bytes, file, new) = (trace.encode(), self.file.clone(), self.new.clone());
        if let Err(error) = blocking(move || write_trace(&file, &new, &bytes)).await {
            self.cache.failed("write trace", &self.file, &error);
        }
    }

    /// Fetches what the trace names.
    pub async fn prefetch(&self, reader: Arc<ReadAhead>) {
        let disk = reader.disk();
        for ranges in together(self.earlier.ranges(), disk.size()) {
            for _ in 0..READS_FIRST.1 {
                if !reader.is_reading() {
                    break;
                }
                tokio::time::sleep(READS_FIRST.0).await;
            }
            match disk.prefetch(&ranges).await {
                Ok(bytes) => {
                    metrics::counter!("recover_prefetched_bytes_total").increment(bytes);
                    tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / f64::from(BYTES_A_SECOND))).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "what was read first the last time could not be fetched early");
                    tokio::time::sleep(SAVED_EVERY / 10).await;
                }
            }
        }
    }
}

/// Ranges in order, cut to the disk, as many at once as are fetched together.
fn together(ranges: &[Extent], size: u64) -> Vec<Vec<Extent>> {
    let mut batches: Vec<Vec<Extent>> = Vec::new();
    let (mut bytes, whole) = (0, Extent::new(0, size).ok());
    let within = ranges.iter().filter_map(|range| range.intersection(whole.as_ref()?));
    for part in within.flat_map(|range| range.split_at_multiples(BYTES_AT_ONCE)) {
        match batches.last_mut() {
            Some(batch) if batch.len() < RANGES_AT_ONCE && bytes + part.len() <= BYTES_AT_ONCE => batch.push(part),
            _ => {
                batches.push(vec![part]);
                bytes = 0;
            }
        }
        bytes += part.len();
    }
    batches
}

fn read_trace(path: &Path) -> io::Result<ReadTrace> {
    let mut bytes = Vec::new();
    // One byte more than there may be: then it is refused.
    open_ours(path, OFlags::RDONLY)?.take(TRACE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    ReadTrace::decode(&bytes).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

fn write_trace(path: &Path, new: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = open_ours(new, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
    file.write_all(bytes)?;
    std::fs::rename(new, path)
}
