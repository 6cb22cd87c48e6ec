//! A disk of a point as a volume: reads at any byte from a thread that may block, over an asynchronous disk of sectors.

use std::sync::Arc;

use applier::recover::PointDisk;
use filesystem::{Cached, ReadError, Volume};
use model::{Extent, SECTOR_BYTES};
use tokio::runtime::Handle;

struct PointVolume {
    disk: Arc<PointDisk>,
    runtime: Handle,
}

/// The disk as a volume with a cache of 32 MiB. Its reads must not be made on a thread of the runtime.
pub fn volume_of(disk: Arc<PointDisk>) -> Arc<dyn Volume> {
    Arc::new(Cached::new(PointVolume { disk, runtime: Handle::current() }))
}

impl Volume for PointVolume {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let start = offset / SECTOR_BYTES * SECTOR_BYTES;
        let end = (offset + buf.len() as u64).next_multiple_of(SECTOR_BYTES);
        let bytes = self.runtime.block_on(self.disk.read(Extent::new(start, end - start)?))?;
        buf.copy_from_slice(&bytes[(offset - start) as usize..][..buf.len()]);
        Ok(())
    }
}
