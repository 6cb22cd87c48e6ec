//! Extent locks of one disk: overlapping operations run one after the other, in the order they came.
//!
//! Order between overlapping operations is what makes the stream equal to the disk: a write, zero, trim or drain read
//! holds its extent from before it touches the source until its number is given. The locks are fair: whoever came first
//! goes first, so that a drain read cannot be starved by a busy block, nor a write by the drain. Reads of clients take
//! no lock. A waiter that is dropped leaves the queue, whether or not its turn had come.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use model::Extent;
use tokio::sync::oneshot;

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
        let (wake, turn) = oneshot::channel();
        let mut inner = self.inner();
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        let blockers = inner.entries.values().filter(|e| e.extent.overlaps(&extent)).count();
        let wake = if blockers == 0 {
            wake.send(()).err().map(|()| unreachable!("the receiver is at hand"))
        } else {
            Some(wake)
        };
        inner.entries.insert(ticket, Entry { extent, blockers, wake });
        drop(inner);
        let lock = ExtentLock { locks: self.clone(), ticket };
        async move {
            turn.await.expect("an entry is woken before it is removed: only its own lock removes it");
            lock
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;
    use std::pin::Pin;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(offset * 512, len * 512).expect("aligned by construction")
    }

    #[test]
    fn disjoint_extents_do_not_wait() {
        let locks = ExtentLocks::default();
        let _a = locks.lock(extent(0, 8)).now_or_never().expect("free");
        let _b = locks.lock(extent(8, 8)).now_or_never().expect("free");
    }

    #[test]
    fn a_large_waiter_is_not_overtaken() {
        let locks = ExtentLocks::default();
        let a = locks.lock(extent(0, 1)).now_or_never().expect("free");
        let mut large = Box::pin(locks.lock(extent(0, 100)));
        assert!(large.as_mut().now_or_never().is_none());
        let mut late = Box::pin(locks.lock(extent(50, 1)));
        assert!(late.as_mut().now_or_never().is_none(), "behind the large one, though 50 is free");
        drop(a);
        let large = large.as_mut().now_or_never().expect("its turn");
        drop(large);
        late.as_mut().now_or_never().expect("its turn");
    }

    #[test]
    fn a_dropped_waiter_blocks_nobody() {
        let locks = ExtentLocks::default();
        let a = locks.lock(extent(0, 1)).now_or_never().expect("free");
        let waiter = locks.lock(extent(0, 4));
        let mut late = Box::pin(locks.lock(extent(2, 1)));
        assert!(late.as_mut().now_or_never().is_none());
        drop(waiter);
        late.as_mut().now_or_never().expect("the waiter is gone");
        drop(a);
        assert!(locks.inner().entries.is_empty() || locks.inner().entries.len() == 1);
    }

    proptest! {
        /// Whatever comes, goes or gives up: the holders are exactly the entries with no earlier overlapping one.
        #[test]
        fn holders_are_those_nobody_overlaps_before(ops in proptest::collection::vec((0u8..3, 0u64..20, 1u64..6), 1..80)) {
            type Waiting = Pin<Box<dyn Future<Output = ExtentLock> + Send>>;
            enum Place { Waiting(Waiting), Held(#[expect(dead_code, reason = "held until dropped")] ExtentLock) }
            let locks = ExtentLocks::default();
            let mut model: Vec<(Extent, Place)> = Vec::new();
            for (op, offset, len) in ops {
                if op == 0 && !model.is_empty() {
                    model.remove(offset as usize % model.len());
                } else {
                    let e = extent(offset, len);
                    model.push((e, Place::Waiting(Box::pin(locks.lock(e)))));
                }
                for i in 0..model.len() {
                    let free = model[..i].iter().all(|(e, _)| !e.overlaps(&model[i].0));
                    let done = match &mut model[i].1 {
                        Place::Waiting(waiting) => waiting.as_mut().now_or_never(),
                        Place::Held(_) => { prop_assert!(free); continue }
                    };
                    prop_assert_eq!(done.is_some(), free);
                    if let Some(lock) = done { model[i].1 = Place::Held(lock); }
                }
            }
        }
    }
}
