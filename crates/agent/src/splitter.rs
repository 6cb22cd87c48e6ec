//! The write-splitter: an NBD export in front of a source disk, through which every change becomes known.
//!
//! ```text
//! lock extent ─► bits durable ─► source ─► record or bit (one critical section) ─► unlock ─► (FUA: flush) ─► reply
//! ```
//! The order is what makes the stream a prefix of what clients saw (promise P1): a change has its number before its
//! client hears of it, and overlapping changes have theirs in the order the source got them. A change once begun runs
//! to its end, whatever becomes of the client, as every request to an export does: the source may have it already. Only the map sync
//! of a cold region ever makes a client wait (P3), and it is counted.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use model::{Extent, SECTOR_BYTES};
use nbd::{BlockStatus, Errno, Export, ZeroFlags};
use probe::Rule;
use tokio::time::{Instant, sleep};

use crate::core::Change;
use crate::flush::flush_for_client;
use crate::locks::ExtentLock;
use crate::shared::{CARELESS_DELAY, Shared};

/// Pieces in which a trimmed range is read back when the source does not promise zeros: bounds memory and lock time.
const TRIM_READ_BACK_BYTES: u64 = 1 << 20;

/// Largest write taken: the protocol's DATA frame has room for it.
const WRITE_BYTES_MAX: usize = 32 << 20;

/// Runs of one BLOCK_STATUS reply.
const STATUS_RUNS_MAX: usize = 1024;

/// Largest range one BLOCK_STATUS looks at: a reply may cover less than was asked.
const STATUS_BYTES_MAX: u64 = 1 << 30;

/// The export of one disk.
#[derive(Clone)]
pub(crate) struct Splitter {
    shared: Arc<Shared>,
    disk: usize,
}

/// What to do to the source.
#[derive(Clone)]
enum Operation {
    Write(Bytes),
    Zero {
        unmap: bool,
    },
    /// Trim, then read what the range holds now.
    TrimAndReadBack,
}

fn errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Errno::NoSpace,
        io::ErrorKind::OutOfMemory => Errno::NoMemory,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Errno::Permission,
        _ => Errno::Io,
    }
}

async fn submit(source: &dyn disk::Disk, extent: Extent, operation: Operation) -> io::Result<Change> {
    match operation {
        Operation::Write(data) => {
            source.write(extent.offset(), data.clone()).await?;
            Ok(Change::Write(extent, data))
        }
        Operation::Zero { unmap } => {
            source.zero(extent, unmap).await?;
            Ok(Change::Zero(extent))
        }
        Operation::TrimAndReadBack => {
            source.zero(extent, true).await?;
            Ok(Change::Write(extent, source.read(extent).await?))
        }
    }
}

impl Splitter {
    pub(crate) fn new(shared: Arc<Shared>, disk: usize) -> Self {
        Splitter { shared, disk }
    }

    fn extent(&self, offset: u64, len: u64) -> Result<Extent, Errno> {
        let extent = Extent::new(offset, len).map_err(|_| Errno::Invalid)?;
        if extent.end() > self.size() { Err(Errno::NoSpace) } else { Ok(extent) }
    }

    async fn change(&self, extent: Extent, operation: Operation) -> Result<(), Errno> {
        let (shared, disk) = (&self.shared, &self.shared.disks[self.disk]);
        let lock = self.lock(extent).await;
        let wait = {
            let mut core = shared.core();
            if core.stopping {
                return Err(Errno::Shutdown);
            }
            core.begin(self.disk, extent)
        };
        if let Some(batch) = wait {
            self.wait_for_map(batch).await;
            // Acquire: its partner is the release in the agent's drop, made before the wait is ended.
            if shared.dead.load(std::sync::atomic::Ordering::Acquire) {
                // The wait ended because the agent did: the bits may not be durable, so nothing is submitted.
                return Err(Errno::Shutdown);
            }
        }
        probe::failpoint!("agent-source-write-before");
        let result = match submit(disk.source.as_ref(), extent, operation).await {
            Ok(change) if !shared.rules.hold(Rule::SeqBeforeAnswer) => return self.complete_later(change, lock),
            result => result,
        };
        probe::failpoint!("agent-source-write-completed");
        if lock.is_none() {
            self.careless_delay().await;
        }
        let now = shared.now();
        let reply = {
            let mut core = shared.core();
            let reply = match result {
                Ok(change) => {
                    core.complete(now, self.disk, change);
                    Ok(())
                }
                Err(e) => {
                    core.complete_failed(now, self.disk, extent, &e.to_string());
                    Err(errno(&e))
                }
            };
            shared.ring_after_change(core);
            reply
        };
        probe::failpoint!("agent-source-write-numbered");
        reply
    }

    /// Keeps overlapping operations out until the change has its number.
    async fn lock(&self, extent: Extent) -> Option<ExtentLock> {
        // Careless: clients do not write the same place twice at one time.
        let locks = self.shared.rules.hold(Rule::OverlapsSerialised).then_some(&self.shared.disks[self.disk].locks)?;
        Some(locks.lock(extent).await)
    }

    /// Careless: why should a client wait for bookkeeping? Only without the rule that it must.
    fn complete_later(&self, change: Change, lock: Option<ExtentLock>) -> Result<(), Errno> {
        let this = self.clone();
        tokio::spawn(async move {
            this.careless_delay().await;
            let now = this.shared.now();
            let mut core = this.shared.core();
            core.complete(now, this.disk, change);
            this.shared.ring_after_change(core);
            drop(lock);
        });
        Ok(())
    }

    /// Time between completion and number, never long the same: as on a busy machine, where it decides who is first.
    async fn careless_delay(&self) {
        sleep(CARELESS_DELAY * u32::from(self.shared.random.bits()[0] % 4)).await;
    }

    async fn wait_for_map(&self, batch: crate::regions::Batch) {
        if !self.shared.rules.hold(Rule::BitBeforeWrite) {
            // Careless: the commit will be there soon enough.
            return self.shared.map_bell.notify_one();
        }
        let started = Instant::now();
        self.shared.wait_committed(batch).await;
        let waited = started.elapsed();
        self.shared.metrics.cold_region_syncs.increment(1);
        self.shared.metrics.cold_region_seconds.record(waited.as_secs_f64());
        let mut core = self.shared.core();
        core.counters.cold_region_syncs += 1;
        core.counters.cold_region_wait_micros += u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
    }

    async fn change_then_flush(&self, extent: Extent, operation: Operation, fua: bool) -> Result<(), Errno> {
        self.change(extent, operation).await?;
        if fua { self.flush_now().await } else { Ok(()) }
    }

    async fn flush_now(&self) -> Result<(), Errno> {
        flush_for_client(&self.shared, self.disk).await.map_err(|e| errno(&e))
    }
}

#[async_trait]
impl Export for Splitter {
    fn size(&self) -> u64 {
        self.shared.disks[self.disk].source.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn minimum_block(&self) -> u32 {
        SECTOR_BYTES as u32
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let extent = self.extent(offset, u64::from(len))?;
        self.shared.disks[self.disk].source.read(extent).await.map_err(|e| {
            let name = &self.shared.config.disks[self.disk].name;
            tracing::warn!(disk = %name, %extent, "source read failed: {e}");
            errno(&e)
        })
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        if data.is_empty() {
            return Ok(());
        }
        if data.len() > WRITE_BYTES_MAX {
            return Err(Errno::Overflow);
        }
        let extent = self.extent(offset, data.len() as u64)?;
        {
            let mut core = self.shared.core();
            core.counters.written_bytes += extent.len();
        }
        self.shared.metrics.written_bytes.increment(extent.len());
        self.change_then_flush(extent, Operation::Write(data), fua).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.flush_now().await?;
        let now = self.shared.now();
        self.shared.core().flush_completed(now);
        Ok(())
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        if len == 0 {
            return Ok(());
        }
        let extent = self.extent(offset, len)?;
        if self.shared.disks[self.disk].trim_zeroes {
            let zero = Operation::Zero { unmap: true };
            return self.change_then_flush(extent, zero, fua).await;
        }
        // A trim may leave anything, so its pieces need no atomicity among each other.
        for piece in extent.split_at_multiples(TRIM_READ_BACK_BYTES) {
            self.change(piece, Operation::TrimAndReadBack).await?;
        }
        if fua { self.flush_now().await } else { Ok(()) }
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        if len == 0 {
            return Ok(());
        }
        let extent = self.extent(offset, len)?;
        let zero = Operation::Zero { unmap: !flags.no_hole };
        self.change_then_flush(extent, zero, flags.fua).await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockStatus>, Errno> {
        let extent = self.extent(offset, len.min(STATUS_BYTES_MAX))?;
        let allocated = self.shared.disks[self.disk].source.allocated(extent).await.map_err(|e| errno(&e))?;
        Ok(block_runs(extent, &allocated))
    }
}

/// Runs of data and holes that cover `extent`, or its front if there are too many.
fn block_runs(extent: Extent, allocated: &[Extent]) -> Vec<BlockStatus> {
    let hole = |len| BlockStatus { len, hole: true, zero: true };
    let mut runs = Vec::new();
    let mut at = extent.offset();
    for data in allocated.iter().filter_map(|data| data.intersection(&extent)) {
        if data.offset() > at {
            runs.push(hole(data.offset() - at));
        }
        if data.end() > at {
            runs.push(BlockStatus { len: data.end() - at.max(data.offset()), hole: false, zero: false });
            at = data.end();
        }
        if runs.len() >= STATUS_RUNS_MAX {
            return runs;
        }
    }
    if at < extent.end() {
        runs.push(hole(extent.end() - at));
    }
    runs
}
