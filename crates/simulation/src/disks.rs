//! The source disk of a simulated host: [`MemoryDisk`] with latency, torn by crashes, out of reach of a host that is dead.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use disk::Disk;
use disk::memory::MemoryDisk;
use model::{Extent, SECTOR_BYTES};
use store::SplitMix64;

use crate::world::Boot;

/// Longest time of one operation.
const LATENCY_MAX: Duration = Duration::from_millis(3);

/// A disk as one life of a host uses it.
pub struct SimDisk {
    medium: Arc<MemoryDisk>,
    boot: Boot,
    rng: Mutex<SplitMix64>,
}

impl SimDisk {
    /// The medium survives the host.
    pub fn new(medium: Arc<MemoryDisk>, boot: Boot, rng: SplitMix64) -> Self {
        Self { medium, boot, rng: Mutex::new(rng) }
    }

    /// Takes its time. A host that dies meanwhile never gets an answer.
    async fn wait(&self) {
        let delay = self.rng.lock().unwrap_or_else(PoisonError::into_inner).duration(Duration::ZERO, LATENCY_MAX);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.boot.live().await;
    }

    /// Where a larger change is cut in two, so that a crash in between leaves it torn.
    fn seam(&self, len: u64) -> Option<u64> {
        let sectors = len / SECTOR_BYTES;
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        (sectors > 1 && rng.below(3) == 0).then(|| (1 + rng.below(sectors - 1)) * SECTOR_BYTES)
    }
}

#[async_trait]
impl Disk for SimDisk {
    fn size(&self) -> u64 {
        self.medium.size()
    }

    async fn read(&self, extent: Extent) -> io::Result<Bytes> {
        self.wait().await;
        let read = self.medium.read(extent).await;
        // What was read takes a while to arrive: whoever reads without a lock may be overtaken here.
        self.wait().await;
        read
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        self.wait().await;
        if let Some(seam) = self.seam(data.len() as u64) {
            let mut first = data.clone();
            let second = first.split_off(usize::try_from(seam).expect("within the data"));
            self.medium.write(offset, first).await?;
            self.wait().await;
            self.medium.write(offset + seam, second).await?;
        } else {
            self.medium.write(offset, data).await?;
        }
        self.wait().await;
        Ok(())
    }

    async fn zero(&self, extent: Extent, unmap: bool) -> io::Result<()> {
        self.wait().await;
        self.medium.zero(extent, unmap).await?;
        self.wait().await;
        Ok(())
    }

    /// Covers what was completed when it was issued and nothing more: that is all a real one promises.
    async fn flush(&self) -> io::Result<()> {
        self.boot.live().await;
        let flushed = self.medium.flush().await;
        self.wait().await;
        flushed
    }

    async fn allocated(&self, extent: Extent) -> io::Result<Vec<Extent>> {
        self.wait().await;
        self.medium.allocated(extent).await
    }

    async fn drop_cache(&self, extent: Extent) -> io::Result<()> {
        self.boot.live().await;
        self.medium.drop_cache(extent).await
    }
}
