//! Extent locks as plain data: who waits for whom, whatever comes, goes or gives up.

use futures::FutureExt;
use model::Extent;
use proptest::prelude::*;
use std::pin::Pin;

use crate::locks::{ExtentLock, ExtentLocks};

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
    drop(late.as_mut().now_or_never().expect("the waiter is gone"));
    drop(a);
    drop(late);
    assert_eq!(locks.len(), 0);
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
