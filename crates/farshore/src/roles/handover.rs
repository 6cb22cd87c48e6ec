//! An export that outlives the agent behind it: clients stay connected while one agent ends and the next begins.
//!
//! What must hold: no request reaches an agent that has stopped taking changes, and none is lost. A [`Hold`] begins when
//! the requests under way are done; those that come later wait until it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use nbd::{BlockStatus, Errno, Export, ZeroFlags};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};

/// What a write-splitter promises every client, whatever disk is behind it: sectors, writes, no fast zeroing.
const MINIMUM_BLOCK: u32 = model::SECTOR_BYTES as u32;

type Behind = Option<Arc<dyn Export>>;

/// The export of one disk, with whatever agent there is behind it.
pub struct Handover {
    /// Bytes, as clients that connect now are told.
    size: AtomicU64,
    behind: Arc<RwLock<Behind>>,
}

/// No request is under way, and none gets through.
pub struct Hold {
    of: Arc<Handover>,
    behind: OwnedRwLockWriteGuard<Behind>,
}

impl Handover {
    /// Begins with this export.
    pub fn new(export: Arc<dyn Export>) -> Arc<Self> {
        Arc::new(Self { size: AtomicU64::new(export.size()), behind: Arc::new(RwLock::new(Some(export))) })
    }

    /// Waits until no request is under way. Dropped as it is, the hold ends as if it had never been.
    pub async fn hold(self: &Arc<Self>) -> Hold {
        Hold { of: Arc::clone(self), behind: Arc::clone(&self.behind).write_owned().await }
    }
}

impl Hold {
    /// Lets go of the export. Until [`Hold::go_on`], and for good if it never comes, there is nothing behind.
    pub fn let_go(&mut self) {
        *self.behind = None;
    }

    /// Requests go on with this export; clients that connect from now on are told its size.
    pub fn go_on(mut self, export: Arc<dyn Export>) {
        // Relaxed: the size stands alone; requests are ordered by the lock.
        self.of.size.store(export.size(), Ordering::Relaxed);
        *self.behind = Some(export);
    }
}

#[async_trait]
impl Export for Handover {
    fn size(&self) -> u64 {
        // Relaxed: see where it is stored.
        self.size.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn minimum_block(&self) -> u32 {
        MINIMUM_BLOCK
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        self.behind.read().await.as_ref().ok_or(Errno::Shutdown)?.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        self.behind.read().await.as_ref().ok_or(Errno::Shutdown)?.write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.behind.read().await.as_ref().ok_or(Errno::Shutdown)?.flush().await
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.behind.read().await.as_ref().ok_or(Errno::Shutdown)?.trim(offset, len, fua).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        self.behind.read().await.as_ref().ok_or(Errno::Shutdown)?.write_zeroes(offset, len, flags).await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockStatus>, Errno> {
        self.behind.read().await.as_ref().ok_or(Errno::Shutdown)?.block_status(offset, len).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as its number; writes wait until they are let through.
    struct Numbered(u8, u64, RwLock<()>);

    #[async_trait]
    impl Export for Numbered {
        fn size(&self) -> u64 {
            self.1
        }
        fn read_only(&self) -> bool {
            false
        }
        async fn read(&self, _: u64, len: u32) -> Result<Bytes, Errno> {
            Ok(vec![self.0; len as usize].into())
        }
        async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), Errno> {
            drop(self.2.read().await);
            Ok(())
        }
        async fn flush(&self) -> Result<(), Errno> {
            Ok(())
        }
        async fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), Errno> {
            Ok(())
        }
        async fn write_zeroes(&self, _: u64, _: u64, _: ZeroFlags) -> Result<(), Errno> {
            Ok(())
        }
        async fn block_status(&self, _: u64, _: u64) -> Result<Vec<BlockStatus>, Errno> {
            Err(Errno::NotSupported)
        }
    }

    fn numbered(number: u8, size: u64) -> Arc<Numbered> {
        Arc::new(Numbered(number, size, RwLock::new(())))
    }

    #[tokio::test]
    async fn requests_under_way_end_first_and_later_ones_meet_the_next() {
        let (first, second) = (numbered(1, 512), numbered(2, 1024));
        let handover = Handover::new(first.clone());
        let gate = first.2.write().await;
        let mut write = Box::pin(handover.write(0, Bytes::from_static(&[0; 512]), false));
        assert!(futures::poll!(&mut write).is_pending(), "under way");
        let mut holding = Box::pin(handover.hold());
        assert!(futures::poll!(&mut holding).is_pending(), "it waits for what is under way");
        let mut read = Box::pin(handover.read(0, 512));
        assert!(futures::poll!(&mut read).is_pending(), "what comes later waits");
        drop(gate);
        assert_eq!(write.await, Ok(()), "what was under way is done, by the first");
        let mut hold = holding.await;
        assert!(futures::poll!(&mut read).is_pending());
        assert_eq!(Arc::strong_count(&first), 2, "the first is still behind it");
        hold.let_go();
        assert_eq!(Arc::strong_count(&first), 1);
        hold.go_on(second);
        assert_eq!(read.await.expect("answered")[..], [2; 512]);
        assert_eq!(handover.size(), 1024);
    }

    #[tokio::test]
    async fn a_hold_that_came_to_nothing_changes_nothing_and_one_that_let_go_serves_nothing() {
        let handover = Handover::new(numbered(1, 512));
        drop(handover.hold().await);
        assert_eq!(handover.read(0, 512).await.expect("answered")[..], [1; 512]);
        let mut hold = handover.hold().await;
        hold.let_go();
        drop(hold);
        assert_eq!(handover.read(0, 512).await, Err(Errno::Shutdown));
    }
}
