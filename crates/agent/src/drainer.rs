//! Reads regions that the log misses back from the sources and puts them in the stream.
//!
//! A drain read holds its extent lock from before the read until its number is given, so that no write can fall between
//! what was read and where it stands in the stream. The drain yields to live writes: it fills at most half of the
//! queue, so that what clients write does not end in bitmap mode on its account. A region given up half-way (queue
//! full, mode changed, read error) is simply to drain again.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use model::Extent;
use probe::Rule;
use tokio::time::{sleep, timeout};

use crate::core::Change;
use crate::locks::ExtentLock;
use crate::sequencer::Mode;
use crate::shared::{CARELESS_DELAY, Shared};

/// Bytes read under one extent lock: how long a client's write may wait behind a drain read.
const DRAIN_READ_BYTES: u64 = 256 << 10;

/// Regions drained at one time.
const REGIONS_AT_ONCE: usize = 4;

/// Granularity in which zeros are told from data.
const ZERO_UNIT_BYTES: u64 = 4096;

/// The drain may fill this part (1/2) of the queue.
const QUEUE_SHARE_DIVISOR: u64 = 2;

/// How long to wait after a source failed a drain read.
const READ_RETRY: Duration = Duration::from_secs(1);

/// Longest sleep between two looks for work; bells normally come first.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A region could not be drained now.
#[derive(Debug)]
enum GivenUp {
    /// The mode changed, or the queue filled with live writes.
    NotNow,
    /// The source failed.
    Source(std::io::Error),
}

/// Runs for the life of the agent.
pub(crate) async fn run(shared: &Shared) {
    let mut cursors = vec![0; shared.disks.len()];
    loop {
        let now = shared.now();
        let (left_bitmap, mode) = {
            let mut core = shared.core();
            (core.try_leave_bitmap(now), core.sequencer.mode())
        };
        if left_bitmap {
            probe::failpoint!("agent-drain-begin-numbered");
        }
        let worked = mode == Mode::Drain && drain(shared, &mut cursors).await;
        let now = shared.now();
        let ended = shared.core().try_end_drain(now, || shared.random.bits());
        if ended {
            probe::failpoint!("agent-drain-end-numbered");
            shared.ring_all();
        }
        if !worked {
            // The time limit is for safety only; every cause to look again rings.
            let _ = timeout(LOOK_INTERVAL, shared.drain_bell.notified()).await;
        }
    }
}

/// Drains until nothing is left, or until it must not go on. Says whether it sent anything.
async fn drain(shared: &Shared, cursors: &mut [u64]) -> bool {
    let mut running = FuturesUnordered::new();
    let mut worked = false;
    loop {
        while running.len() < REGIONS_AT_ONCE
            && room(shared)
            && let Some((disk, region)) = take(shared, cursors)
        {
            running.push(drain_region(shared, disk, region));
        }
        shared.send_bell.notify_one();
        match running.next().await {
            None => return worked,
            Some(Ok(())) => worked = true,
            Some(Err(GivenUp::NotNow)) => {
                while running.next().await.is_some() {}
                return false;
            }
            Some(Err(GivenUp::Source(e))) => {
                tracing::warn!("a drain read failed: {e}");
                while running.next().await.is_some() {}
                sleep(READ_RETRY).await;
                return false;
            }
        }
    }
}

fn room(shared: &Shared) -> bool {
    let core = shared.core();
    let (memory, max) = core.queue.memory();
    let share = max / QUEUE_SHARE_DIVISOR;
    core.sequencer.mode() == Mode::Drain && memory < share && core.queue.queued_bytes() < share
}

fn take(shared: &Shared, cursors: &mut [u64]) -> Option<(usize, u64)> {
    let mut core = shared.core();
    for (disk, cursor) in cursors.iter_mut().enumerate() {
        if let Some(region) = core.disks[disk].regions.take_to_drain(*cursor) {
            *cursor = region + 1;
            return Some((disk, region));
        }
        if !core.drains_to_the_end() {
            break;
        }
    }
    None
}

async fn drain_region(shared: &Shared, disk: usize, region: u64) -> Result<(), GivenUp> {
    let (extent, past_cache, fresh, life) = {
        let mut core = shared.core();
        let (fresh, life) = (core.fresh_stream, core.life);
        let regions = &mut core.disks[disk].regions;
        // Whoever begins a stream has no former life here, and reads what is cached as it is.
        let past_cache = regions.take_past_cache(region) && !fresh && shared.rules.hold(Rule::DrainPastCache);
        (regions.extent(region), past_cache, fresh, life)
    };
    let result = drain_extent(shared, disk, extent, past_cache, fresh, life).await;
    let mut core = shared.core();
    core.disks[disk].regions.drain_finished(region, result.is_ok(), past_cache);
    if result.is_ok() {
        core.drain_done_bytes += extent.len();
    }
    result
}

async fn drain_extent(
    shared: &Shared,
    disk: usize,
    extent: Extent,
    past_cache: bool,
    fresh: bool,
    life: u64,
) -> Result<(), GivenUp> {
    let source = &shared.disks[disk].source;
    if fresh && source.allocated(extent).await.map_err(GivenUp::Source)?.is_empty() {
        // The stream began empty and has every change since as a record, so a hole needs none. A change that becomes a
        // bit while this is asked makes the region to drain once more.
        return Ok(());
    }
    for piece in extent.split_at_multiples(DRAIN_READ_BYTES) {
        wait_for_room(shared, life).await?;
        let (changes, lock) = read_locked(shared, disk, piece, past_cache).await.map_err(GivenUp::Source)?;
        probe::failpoint!("agent-drain-read");
        let now = shared.now();
        let payload: u64 = changes.iter().map(|c| if let Change::Write(e, _) = c { e.len() } else { 0 }).sum();
        let mut core = shared.core();
        if core.life != life || !core.drained(now, disk, changes) {
            return Err(GivenUp::NotNow);
        }
        shared.metrics.drained_bytes.increment(payload);
        shared.ring_after_change(core);
        drop(lock);
    }
    Ok(())
}

/// Reads a piece under its lock. The caller keeps the lock until what was read has its number.
async fn read_locked(
    shared: &Shared,
    disk: usize,
    piece: Extent,
    past_cache: bool,
) -> std::io::Result<(Vec<Change>, Option<ExtentLock>)> {
    let source = shared.disks[disk].source.as_ref();
    if shared.rules.hold(Rule::DrainReadLocked) {
        let lock = shared.disks[disk].locks.lock(piece).await;
        return Ok((read(source, piece, past_cache).await?, Some(lock)));
    }
    let changes = read(source, piece, past_cache).await?;
    // Careless: nothing keeps a write from falling between the read and its number.
    sleep(CARELESS_DELAY).await;
    Ok((changes, None))
}

/// Waits until the queue has room for the drain. Live writes come first, so this may take long; it ends when the mode does.
async fn wait_for_room(shared: &Shared, life: u64) -> Result<(), GivenUp> {
    loop {
        let seen = shared.stored.get();
        {
            let core = shared.core();
            if core.life != life || core.sequencer.mode() != Mode::Drain {
                return Err(GivenUp::NotNow);
            }
            let (memory, max) = core.queue.memory();
            if core.queue.queued_bytes() + DRAIN_READ_BYTES <= max / QUEUE_SHARE_DIVISOR || memory < DRAIN_READ_BYTES {
                return Ok(());
            }
        }
        let _ = timeout(LOOK_INTERVAL, shared.stored.wait_for(|now| *now != seen)).await;
    }
}

/// What the extent holds now: holes and zeros as zeros, the rest as bytes.
async fn read(source: &dyn disk::Disk, extent: Extent, past_cache: bool) -> std::io::Result<Vec<Change>> {
    if past_cache {
        source.drop_cache(extent).await?;
    }
    if source.allocated(extent).await?.is_empty() {
        return Ok(vec![Change::Zero(extent)]);
    }
    Ok(split_zeros(extent, &source.read(extent).await?))
}

/// Cuts what was read into runs of zeros and runs of data.
fn split_zeros(extent: Extent, data: &Bytes) -> Vec<Change> {
    let mut runs: Vec<(bool, Extent)> = Vec::new();
    for unit in extent.split_at_multiples(ZERO_UNIT_BYTES) {
        let start = (unit.offset() - extent.offset()) as usize;
        let zero = data[start..start + unit.len() as usize].iter().all(|byte| *byte == 0);
        match runs.last_mut() {
            Some((was_zero, run)) if *was_zero == zero => {
                *run = Extent::new(run.offset(), run.len() + unit.len()).expect("neighbours within the extent");
            }
            _ => runs.push((zero, unit)),
        }
    }
    let slice = |run: Extent| {
        let start = (run.offset() - extent.offset()) as usize;
        data.slice(start..start + run.len() as usize)
    };
    runs.into_iter().map(|(zero, run)| if zero { Change::Zero(run) } else { Change::Write(run, slice(run)) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_told_from_data_and_nothing_is_lost() {
        let extent = Extent::new(8192 - 512, 4 * 4096).expect("aligned");
        let mut data = vec![0; extent.len() as usize];
        data[512 + 4096] = 1;
        data[4 * 4096 - 1] = 1;
        let changes = split_zeros(extent, &data.clone().into());
        let mut back = vec![9; data.len()];
        for change in &changes {
            let e = change.extent();
            let start = (e.offset() - extent.offset()) as usize;
            match change {
                Change::Zero(e) => back[start..start + e.len() as usize].fill(0),
                Change::Write(_, bytes) => back[start..start + bytes.len()].copy_from_slice(bytes),
            }
        }
        assert_eq!(back, data);
        assert_eq!(changes.len(), 4);
    }
}
