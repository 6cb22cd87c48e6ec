//! A disk in memory for tests and simulation, which fails, delays and loses power when told to.
//!
//! It keeps two copies, as a real disk behind a cache does: what reads see, and what would survive a power cut. Only a
//! flush makes the second follow the first. After a *failed* flush the two may differ for good, and reads go on seeing
//! what the medium has not: that is how Linux behaves, and what `drop_cache` is for.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use model::{Extent, ExtentSet, SECTOR_BYTES};

use crate::Disk;
use crate::bounds::{check_extent, check_write};

/// Granularity in which [`MemoryDisk`] tells zeros from data.
const ALLOCATION_UNIT_BYTES: u64 = 4096;

/// What can be counted, delayed or made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`Disk::read`].
    Read,
    /// [`Disk::write`].
    Write,
    /// [`Disk::zero`].
    Zero,
    /// [`Disk::flush`].
    Flush,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happens but the error.
    Refused,
    /// A part takes effect before the error, as chosen by this seed: a torn write, or a flush that lost some sectors.
    Torn(u64),
}

/// A disk in memory. Size it for tests: it holds two copies.
#[derive(Debug)]
pub struct MemoryDisk {
    size: u64,
    state: Mutex<State>,
}

struct State {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since the last flush, in order; `None` stands for zeros.
    unflushed: Vec<(Extent, Option<Bytes>)>,
    faults: BTreeMap<Operation, VecDeque<Fault>>,
    delays: BTreeMap<Operation, Duration>,
    counts: BTreeMap<Operation, u64>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("unflushed", &self.unflushed.len()).field("counts", &self.counts).finish()
    }
}

impl MemoryDisk {
    /// A disk of zeros. `size` must be a multiple of 512.
    pub fn new(size: u64) -> Self {
        assert!(size.is_multiple_of(SECTOR_BYTES), "a disk is made of whole sectors");
        Self::from_contents(vec![0; usize::try_from(size).expect("a test disk fits in memory")])
    }

    /// A disk that durably holds these bytes.
    pub fn from_contents(contents: Vec<u8>) -> Self {
        assert!((contents.len() as u64).is_multiple_of(SECTOR_BYTES), "a disk is made of whole sectors");
        let state = State {
            durable: contents.clone(),
            visible: contents,
            unflushed: Vec::new(),
            faults: BTreeMap::new(),
            delays: BTreeMap::new(),
            counts: BTreeMap::new(),
        };
        Self { size: state.visible.len() as u64, state: Mutex::new(state) }
    }

    /// Makes the next operation of this kind fail; called again, the one after it, and so on.
    pub fn fail_next(&self, operation: Operation, fault: Fault) {
        self.lock().faults.entry(operation).or_default().push_back(fault);
    }

    /// Forgets faults that have not struck yet.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Makes every operation of this kind take so long, before it takes effect.
    pub fn set_delay(&self, operation: Operation, delay: Duration) {
        self.lock().delays.insert(operation, delay);
    }

    /// How many operations of this kind were begun.
    pub fn count(&self, operation: Operation) -> u64 {
        self.lock().counts.get(&operation).copied().unwrap_or(0)
    }

    /// What reads see.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().visible.clone()
    }

    /// What would surely survive a power cut.
    pub fn durable_contents(&self) -> Vec<u8> {
        self.lock().durable.clone()
    }

    /// Cuts the power: of the sectors changed since the last flush, a subset chosen by the seed survives.
    pub fn power_cut(&self, seed: u64) {
        let mut state = self.lock();
        state.settle(&mut Coin(seed));
        state.visible = state.durable.clone();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Counts, waits, and takes the fault that is due.
    async fn begin(&self, operation: Operation) -> Option<Fault> {
        let delay = {
            let mut state = self.lock();
            *state.counts.entry(operation).or_default() += 1;
            state.delays.get(&operation).copied()
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        self.lock().faults.get_mut(&operation).and_then(VecDeque::pop_front)
    }

    async fn change(&self, operation: Operation, extent: Extent, data: Option<Bytes>) -> io::Result<()> {
        let fault = self.begin(operation).await;
        let mut state = self.lock();
        match fault {
            None => state.change(extent, data),
            Some(Fault::Refused) => return Err(injected(operation)),
            Some(Fault::Torn(seed)) => {
                state.tear(extent, data.as_ref(), &mut Coin(seed));
                return Err(injected(operation));
            }
        }
        Ok(())
    }
}

impl State {
    fn change(&mut self, extent: Extent, data: Option<Bytes>) {
        apply(&mut self.visible, extent, data.as_ref());
        self.unflushed.push((extent, data));
    }

    /// Only some sectors of the change happen.
    fn tear(&mut self, extent: Extent, data: Option<&Bytes>, coin: &mut Coin) {
        for sector in extent.split_at_multiples(SECTOR_BYTES) {
            if coin.toss() {
                let at = (sector.offset() - extent.offset()) as usize;
                let part = data.map(|d| d.slice(at..at + SECTOR_BYTES as usize));
                self.change(sector, part);
            }
        }
    }

    fn flush(&mut self) {
        for (extent, data) in std::mem::take(&mut self.unflushed) {
            apply(&mut self.durable, extent, data.as_ref());
        }
    }

    /// Decides the fate of every unflushed sector by the coin.
    fn settle(&mut self, coin: &mut Coin) {
        for (extent, data) in std::mem::take(&mut self.unflushed) {
            for sector in extent.split_at_multiples(SECTOR_BYTES) {
                if coin.toss() {
                    let at = (sector.offset() - extent.offset()) as usize;
                    let part = data.as_ref().map(|d| d.slice(at..at + SECTOR_BYTES as usize));
                    apply(&mut self.durable, sector, part.as_ref());
                }
            }
        }
    }

    /// Reads of `extent` see the medium again, and what is still waiting for a flush.
    fn drop_cache(&mut self, extent: Extent) {
        let range = extent.offset() as usize..extent.end() as usize;
        self.visible[range.clone()].copy_from_slice(&self.durable[range]);
        for (changed, data) in &self.unflushed {
            if let Some(part) = changed.intersection(&extent) {
                let at = (part.offset() - changed.offset()) as usize;
                let data = data.as_ref().map(|d| d.slice(at..at + part.len() as usize));
                apply(&mut self.visible, part, data.as_ref());
            }
        }
    }
}

fn apply(bytes: &mut [u8], extent: Extent, data: Option<&Bytes>) {
    let target = &mut bytes[extent.offset() as usize..extent.end() as usize];
    match data {
        Some(data) => target.copy_from_slice(data),
        None => target.fill(0),
    }
}

fn injected(operation: Operation) -> io::Error {
    io::Error::other(format!("injected {operation:?} failure"))
}

/// A repeatable coin (SplitMix64).
struct Coin(u64);

impl Coin {
    fn toss(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) & 1 == 1
    }
}

#[async_trait]
impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, extent: Extent) -> io::Result<Bytes> {
        check_extent(extent, self.size)?;
        match self.begin(Operation::Read).await {
            Some(_) => Err(injected(Operation::Read)),
            None => Ok(Bytes::copy_from_slice(&self.lock().visible[extent.offset() as usize..extent.end() as usize])),
        }
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        let Some(extent) = check_write(offset, data.len(), self.size)? else { return Ok(()) };
        self.change(Operation::Write, extent, Some(data)).await
    }

    async fn zero(&self, extent: Extent, _unmap: bool) -> io::Result<()> {
        check_extent(extent, self.size)?;
        self.change(Operation::Zero, extent, None).await
    }

    async fn flush(&self) -> io::Result<()> {
        let fault = self.begin(Operation::Flush).await;
        let mut state = self.lock();
        match fault {
            None => state.flush(),
            Some(Fault::Refused) => return Err(injected(Operation::Flush)),
            Some(Fault::Torn(seed)) => {
                state.settle(&mut Coin(seed));
                return Err(injected(Operation::Flush));
            }
        }
        Ok(())
    }

    async fn allocated(&self, extent: Extent) -> io::Result<Vec<Extent>> {
        check_extent(extent, self.size)?;
        let state = self.lock();
        let holds_data =
            |e: &Extent| state.visible[e.offset() as usize..e.end() as usize].iter().any(|byte| *byte != 0);
        let parts: ExtentSet = extent.split_at_multiples(ALLOCATION_UNIT_BYTES).filter(holds_data).collect();
        Ok(parts.iter().collect())
    }

    async fn drop_cache(&self, extent: Extent) -> io::Result<()> {
        check_extent(extent, self.size)?;
        self.lock().drop_cache(extent);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sectors(first: u64, count: u64) -> Extent {
        Extent::new(first * 512, count * 512).expect("aligned by the test")
    }

    fn filled(fill: u8, count: usize) -> Bytes {
        vec![fill; count * 512].into()
    }

    #[tokio::test]
    async fn a_power_cut_keeps_what_was_flushed_and_some_of_the_rest() {
        let disk = MemoryDisk::new(64 * 512);
        disk.write(0, filled(1, 32)).await.expect("write");
        disk.flush().await.expect("flush");
        disk.write(32 * 512, filled(2, 32)).await.expect("write");
        disk.power_cut(7);
        let after = disk.contents();
        assert!(after[..32 * 512].iter().all(|b| *b == 1), "flushed sectors survive");
        let survived = after[32 * 512..].iter().filter(|b| **b == 2).count() / 512;
        assert!((1..32).contains(&survived), "a strict subset survives: {survived}");
        assert_eq!(after, disk.durable_contents());
    }

    #[tokio::test]
    async fn after_a_failed_flush_reads_show_the_medium_only_once_the_cache_is_dropped() {
        let disk = MemoryDisk::new(64 * 512);
        disk.write(0, filled(3, 64)).await.expect("write");
        disk.fail_next(Operation::Flush, Fault::Torn(1));
        disk.flush().await.expect_err("injected");
        disk.flush().await.expect("the next flush succeeds and writes nothing");
        assert!(disk.contents().iter().all(|b| *b == 3), "the cache hides the loss");
        assert_ne!(disk.contents(), disk.durable_contents());
        disk.drop_cache(sectors(0, 64)).await.expect("drop");
        assert_eq!(disk.contents(), disk.durable_contents());
    }

    #[tokio::test]
    async fn dropping_the_cache_keeps_changes_that_still_wait_for_a_flush() {
        let disk = MemoryDisk::new(8 * 512);
        disk.write(0, filled(4, 8)).await.expect("write");
        disk.zero(sectors(2, 1), true).await.expect("zero");
        let before = disk.contents();
        disk.drop_cache(sectors(1, 3)).await.expect("drop");
        assert_eq!(disk.contents(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn faults_strike_once_and_delays_use_the_clock_of_the_runtime() {
        let disk = MemoryDisk::new(8192);
        disk.fail_next(Operation::Write, Fault::Refused);
        disk.write(0, filled(1, 1)).await.expect_err("injected");
        assert!(disk.contents().iter().all(|b| *b == 0));
        disk.set_delay(Operation::Write, Duration::from_secs(5));
        let start = tokio::time::Instant::now();
        disk.write(0, filled(1, 1)).await.expect("second");
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        assert_eq!(disk.count(Operation::Write), 2);
        assert_eq!(disk.allocated(sectors(0, 16)).await.expect("allocated"), vec![sectors(0, 8)]);
    }
}
