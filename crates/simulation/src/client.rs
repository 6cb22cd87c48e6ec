//! Clients of a machine: they write through the agent's exports, one operation after the other, and note what they saw.
//!
//! A gate holds them between two operations, for whoever needs a moment in which nothing is under way.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use model::Extent;
use nbd::{Export, ZeroFlags};
use store::SplitMix64;

use crate::history::History;
use crate::machine::lock;
use crate::stamp::{MACHINES_MAX, SECTOR, Stamp};
use crate::world::{Boot, ONE_THREAD};

/// How often a client looks whether it may go on.
const GATE_POLL: Duration = Duration::from_millis(2);

/// Lets clients through, or holds them while none is in the middle of an operation.
#[derive(Default)]
pub struct Gate {
    closed: AtomicBool,
    inside: AtomicUsize,
}

impl Gate {
    /// Holds everybody who comes, or lets them through again.
    pub fn set_closed(&self, closed: bool) {
        self.closed.store(closed, ONE_THREAD);
    }

    /// Nobody is inside.
    pub fn is_empty(&self) -> bool {
        self.inside.load(ONE_THREAD) == 0
    }

    fn is_closed(&self) -> bool {
        self.closed.load(ONE_THREAD)
    }

    fn enter(&self) -> Inside<'_> {
        self.inside.fetch_add(1, ONE_THREAD);
        Inside(self)
    }
}

struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, ONE_THREAD);
    }
}

impl Gate {
    /// Nobody is inside any more: they died.
    pub(crate) fn reset(&self) {
        self.inside.store(0, ONE_THREAD);
        self.closed.store(false, ONE_THREAD);
    }
}

/// Somebody who writes, one operation after the other.
pub struct Client {
    /// Number of its machine.
    pub machine: usize,
    /// The life it is part of.
    pub boot: Boot,
    /// Bytes of each disk.
    pub sizes: Vec<u64>,
    /// Where it notes what it does.
    pub history: Arc<Mutex<History>>,
    /// Holds it.
    pub gate: Arc<Gate>,
    /// Last acknowledged operation of every machine.
    pub seen: Arc<[AtomicU64; MACHINES_MAX]>,
    /// When the last good flush of each disk was issued.
    pub flushed: Arc<Mutex<Vec<u64>>>,
    /// Longest time between two operations.
    pub think: Duration,
    /// Where its choices come from.
    pub rng: SplitMix64,
}

impl Client {
    /// Until its host dies.
    pub async fn run(mut self, exports: Vec<Arc<dyn Export>>) {
        loop {
            let think = self.rng.duration(Duration::ZERO, self.think);
            tokio::time::sleep(think).await;
            while self.gate.is_closed() {
                tokio::time::sleep(GATE_POLL).await;
            }
            let gate = self.gate.clone();
            let _inside = gate.enter();
            let disk = usize::try_from(self.rng.below(exports.len() as u64)).expect("an index");
            match self.rng.below(24) {
                0 => self.flush(disk, exports[disk].as_ref()).await,
                kind => self.change(disk, exports[disk].as_ref(), kind).await,
            }
        }
    }

    async fn flush(&mut self, disk: usize, export: &dyn Export) {
        let before = lock(&self.history).moment();
        let flushed = export.flush().await;
        if !self.boot.alive() {
            return;
        }
        self.flush_ended(disk, before, flushed.is_ok());
    }

    fn flush_ended(&self, disk: usize, before: u64, ok: bool) {
        let mut flushed = lock(&self.flushed);
        if ok {
            flushed[disk] = flushed[disk].max(before);
        } else {
            lock(&self.history).flush_failed(disk, flushed[disk]);
        }
    }

    /// A range: mostly in a few hot places, so that operations overlap.
    fn extent(&mut self, disk: usize) -> Extent {
        let sectors = self.sizes[disk] / SECTOR as u64;
        let len = if self.rng.below(8) == 0 { 1 + self.rng.below(96) } else { 1 + self.rng.below(12) };
        let start = match self.rng.below(24) {
            0 => self.rng.below(sectors - len),
            _ => (self.rng.below(6) * (sectors / 6) + self.rng.below(24)).min(sectors - len),
        };
        Extent::new(start * SECTOR as u64, len * SECTOR as u64).expect("aligned")
    }

    async fn change(&mut self, disk: usize, export: &dyn Export, kind: u64) {
        let extent = self.extent(disk);
        // Trim leaves zeros in these disks, promised or not.
        let zero = kind < 4;
        let mut seen = [0; MACHINES_MAX];
        for (slot, other) in seen.iter_mut().zip(self.seen.iter()) {
            *slot = other.load(ONE_THREAD);
        }
        let before = lock(&self.history).moment();
        let number = lock(&self.history).issue(disk, extent, zero, seen);
        let fua = kind == 4 || kind == 3;
        let result = match kind {
            1 => export.trim(extent.offset(), extent.len(), false).await,
            2 | 3 => {
                let flags = ZeroFlags { fua, no_hole: kind == 3, fast: false };
                export.write_zeroes(extent.offset(), extent.len(), flags).await
            }
            _ => export.write(extent.offset(), self.data(number, disk, extent, seen), fua).await,
        };
        if !self.boot.alive() {
            return;
        }
        lock(&self.history).answer(number, result.is_ok());
        if result.is_ok() {
            self.seen[self.machine].fetch_max(number, ONE_THREAD);
        }
        if fua {
            self.flush_ended(disk, before, result.is_ok());
        }
    }

    fn data(&self, op: u64, disk: usize, extent: Extent, seen: [u64; MACHINES_MAX]) -> Bytes {
        let mut data = Vec::with_capacity(usize::try_from(extent.len()).expect("small"));
        let first = extent.offset() / SECTOR as u64;
        for sector in first..extent.end() / SECTOR as u64 {
            Stamp { op, machine: self.machine as u32, disk: disk as u32, sector, seen }.write(&mut data);
        }
        data.into()
    }
}
