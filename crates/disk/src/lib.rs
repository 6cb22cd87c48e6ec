//! Disks as files: what the agent reads and writes, what the applier keeps, what a restore produces.

mod bounds;
mod device;
mod direct;
mod here;
mod image;
pub mod memory;
mod raw;
#[cfg(test)]
mod scheduled;
mod sync;
mod threads;
#[cfg(test)]
mod threads_tests;

pub use device::device_identity;
pub use here::this_thread_may_block;
pub use image::{Image, ImageFormat, ImageFormatError};
pub use memory::MemoryDisk;
pub use raw::RawDisk;

use async_trait::async_trait;
use bytes::Bytes;
use model::Extent;

/// A block device as the roles use it. Offsets and lengths are bytes; multiples of 512 unless a method says otherwise.
/// Methods may run in parallel; the order of overlapping ones is the caller's business.
#[async_trait]
pub trait Disk: Send + Sync {
    /// Size in bytes, a multiple of 512.
    fn size(&self) -> u64;

    /// Reads exactly `extent`.
    async fn read(&self, extent: Extent) -> std::io::Result<Bytes>;

    /// Writes all of `data` at `offset`.
    async fn write(&self, offset: u64, data: Bytes) -> std::io::Result<()>;

    /// Makes `extent` read as zeros; space is given back when `unmap` is set and the disk can.
    async fn zero(&self, extent: Extent, unmap: bool) -> std::io::Result<()>;

    /// Everything completed before the call is durable when it returns.
    async fn flush(&self) -> std::io::Result<()>;

    /// The parts of `extent` that may hold other than zeros, in order.
    async fn allocated(&self, extent: Extent) -> std::io::Result<Vec<Extent>>;

    /// Forgets cached pages of `extent`, so that the next read comes from the device: after a failed flush.
    async fn drop_cache(&self, extent: Extent) -> std::io::Result<()>;
}
