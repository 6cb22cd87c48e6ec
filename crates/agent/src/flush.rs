//! FLUSH of a source, and the clearing of regions that it makes possible.
//!
//! Flushes of one disk run one at a time, because Linux reports a failed write-back to one caller only: with two in
//! flight, one could fail and the other, reporting success, would vouch for what was lost. Requests that arrive while
//! one runs share the next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::shared::Shared;

/// How often the sources are flushed when nobody else does and there are regions to clear.
const CLEAR_INTERVAL: Duration = Duration::from_secs(5);

/// Least time between two clearings asked for because too many regions are active.
const CLEAR_INTERVAL_MIN: Duration = Duration::from_millis(200);

/// Serialises and shares the flushes of one disk.
#[derive(Default)]
pub(crate) struct FlushGroup {
    /// Requests that arrived so far.
    arrived: AtomicU64,
    last: tokio::sync::Mutex<Flushed>,
}

#[derive(Default)]
struct Flushed {
    /// Requests that had arrived when the last flush was issued.
    covers: u64,
    error: Option<std::io::ErrorKind>,
    /// A failure that only we saw. Linux reports it once, so the next client's flush would succeed and vouch for what
    /// was lost: it is owed this error instead.
    owed: Option<std::io::ErrorKind>,
}

/// Flushes a source for a client, who is told of every failure since its last flush, whoever met it.
pub(crate) async fn flush_for_client(shared: &Shared, disk: usize) -> std::io::Result<()> {
    let result = flush_source(shared, disk).await;
    let owed = shared.disks[disk].flushes.last.lock().await.owed.take();
    match owed {
        Some(kind) if result.is_ok() => Err(kind.into()),
        _ => result,
    }
}

/// Flushes a source: everything completed before the call is durable, or the regions concerned are to drain. Must run
/// to its end: callers that may be cancelled spawn it.
pub(crate) async fn flush_source(shared: &Shared, disk: usize) -> std::io::Result<()> {
    let group = &shared.disks[disk].flushes;
    // Relaxed: the number only orders requests against flushes, and those are ordered by the mutex below.
    let request = group.arrived.fetch_add(1, Ordering::Relaxed) + 1;
    let mut last = group.last.lock().await;
    if last.covers >= request {
        return last.error.map_or(Ok(()), |kind| Err(kind.into()));
    }
    last.covers = group.arrived.load(Ordering::Relaxed);
    let ticket = shared.core().disks[disk].regions.flush_ticket();
    probe::failpoint!("agent-source-flush-before");
    let result = shared.disks[disk].source.flush().await;
    probe::failpoint!("agent-source-flush-after");
    let now = shared.now();
    let mut core = shared.core();
    match &result {
        Ok(()) => {
            core.disks[disk].regions.flush_succeeded(ticket);
            last.error = None;
        }
        Err(e) => {
            core.flush_failed(now, disk, &e.to_string());
            last.error = Some(e.kind());
            last.owed = Some(e.kind());
        }
    }
    shared.ring_after_change(core);
    result
}

/// Flushes sources and clears regions in the background, for the life of the agent.
pub(crate) async fn run_clearer(shared: &Shared) {
    let mut tick = interval(CLEAR_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = tick.tick() => {}
            () = shared.clear_bell.notified() => {}
        }
        let next = Instant::now() + CLEAR_INTERVAL_MIN;
        clear(shared).await;
        sleep_until(next).await;
    }
}

/// One round: flush where that helps, then clear.
pub(crate) async fn clear(shared: &Shared) {
    for disk in 0..shared.disks.len() {
        let wanted = {
            let core = shared.core();
            core.disks[disk].regions.wants_flush(core.stored_position().seq)
        };
        if wanted {
            // A failure was handled where it was seen: the regions concerned stay, and a client is owed the error.
            let _ = flush_source(shared, disk).await;
        }
    }
    let cleared = {
        let mut core = shared.core();
        let stored = core.stored_position().seq;
        let max = shared.config.active_regions_max / shared.disks.len().max(1);
        for disk in &mut core.disks {
            disk.regions.clear_clearable(stored, max);
        }
        let active: usize = core.disks.iter().map(|d| d.regions.active()).sum();
        if active > shared.config.active_regions_max {
            core.counters.active_regions_over += 1;
            shared.metrics.active_regions_over.increment(1);
        }
        core.disks.iter().any(|disk| disk.regions.pages_waiting().0)
    };
    if cleared {
        probe::failpoint!("agent-bits-cleared");
    }
}
