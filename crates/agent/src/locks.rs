//! Extent locks of one disk: overlapping operations run one after the other, in the order they came.
//!
//! Order between overlapping operations is what makes the stream equal to the disk: a write, zero, trim or drain read
//! holds its extent from before it touches the source until its number is given. The locks are fair: whoever came first
//! goes first, so that a drain read cannot be starved by a busy block, nor a write by the drain. Reads of clients take
//! no lock. A waiter that is dropped leaves the queue, whether or not its turn had come. `scheduled` tries this source
//! under many schedules.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::Extent;
use tokio::sync::oneshot;

use super::sync::{Mutex, MutexGuard};

struct Entry {
    extent: Extent,
    /// Earlier entries that overlap and are still there.
    blockers: usize,
    wake: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Inner {
    /// By ticket, that is by arrival. As many as there are operations in flight on the disk; exports bound those.
    entries: BTreeMap<u64, Entry>,
    next_ticket: u64,
}

/// The extent locks of one disk.
#[derive(Clone, Default)]
pub(crate) struct ExtentLocks {
    inner: Arc<Mutex<Inner>>,
}

/// Holds (or waits for) an extent; gives it up when dropped.
pub(crate) struct ExtentLock {
    locks: ExtentLocks,
    ticket: u64,
}

impl ExtentLocks {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the extent locks")
    }

    /// Takes a place in the queue at once, and waits for its turn when awaited.
    pub(crate) fn lock(&self, extent: Extent) -> impl Future<Output = ExtentLock> + Send + use<> {
        let mut inner = self.inner();
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        let blockers = inner.entries.values().filter(|e| e.extent.overlaps(&extent)).count();
        let (wake, turn) = (blockers > 0).then(oneshot::channel).unzip();
        inner.entries.insert(ticket, Entry { extent, blockers, wake });
        drop(inner);
        let lock = ExtentLock { locks: self.clone(), ticket };
        async move {
            if let Some(turn) = turn {
                turn.await.expect("an entry is woken before it is removed: only its own lock removes it");
            }
            lock
        }
    }
}

#[cfg(test)]
impl ExtentLocks {
    /// Holders and waiters.
    pub(crate) fn len(&self) -> usize {
        self.inner().entries.len()
    }
}

impl Drop for ExtentLock {
    fn drop(&mut self) {
        let mut inner = self.locks.inner();
        let Some(gone) = inner.entries.remove(&self.ticket) else { return };
        for (_, entry) in inner.entries.range_mut(self.ticket..) {
            if entry.extent.overlaps(&gone.extent) {
                entry.blockers -= 1;
                if entry.blockers == 0
                    && let Some(wake) = entry.wake.take()
                {
                    // A waiter that is gone will remove its entry itself.
                    let _ = wake.send(());
                }
            }
        }
    }
}
