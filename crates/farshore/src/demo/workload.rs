//! Writers that note, on their own side of the NBD socket, what they asked for and when they were answered.
//!
//! [`Notes`] is the client's memory: a logical clock and one entry for each operation. The tick of the issue is taken
//! before the request leaves, the tick of the answer after the answer came, so "answered before issued" in the notes is
//! "happened before" in the world. A zeroing is never in flight together with an overlapping operation: zeros do not say
//! who wrote them, and the oracle must be able to tell. Writes overlap writes freely.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nbd::Client;

use super::oracle::{Action, History, Operation, Tick};
use super::stamps::{self, BLOCK_BYTES, Noise, Stamp};

/// Longest operation in blocks.
pub const BLOCKS_MAX: u64 = 16;

/// What the client did, while it does it.
#[derive(Debug, Default)]
pub struct Notes {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tick: Tick,
    operations: Vec<Operation>,
    /// Indices of operations in flight; as many as there are writers at most.
    live: Vec<usize>,
}

impl Notes {
    /// A fresh moment on the clock.
    pub fn now(&self) -> Tick {
        let mut state = self.lock();
        state.tick += 1;
        state.tick
    }

    /// Notes an operation about to be sent and returns its number; none when it may not be in flight now, because it or
    /// an overlapping one in flight is a zeroing.
    pub fn begin(&self, disk: u32, block: u64, blocks: u64, action: Action) -> Option<u64> {
        let mut state = self.lock();
        let issued = state.tick + 1;
        let new = Operation { disk, block, blocks, action, issued, answered: Tick::MAX, acknowledged: false };
        let clash = |old: &Operation| {
            let overlap = old.disk == disk && old.block < block + blocks && block < old.block + old.blocks;
            overlap && (old.action == Action::Zero || action == Action::Zero)
        };
        if state.live.iter().any(|i| clash(&state.operations[*i])) {
            return None;
        }
        state.tick = issued;
        let index = state.operations.len();
        state.operations.push(new);
        state.live.push(index);
        Some(index as u64)
    }

    /// Notes the answer. `acknowledged` is false for an error and for a connection that ended first.
    pub fn end(&self, number: u64, acknowledged: bool) {
        let mut state = self.lock();
        state.tick += 1;
        let tick = state.tick;
        state.live.retain(|i| *i as u64 != number);
        if let Some(operation) = usize::try_from(number).ok().and_then(|n| state.operations.get_mut(n)) {
            operation.answered = tick;
            operation.acknowledged = acknowledged;
        }
    }

    /// What is noted so far. Operations still in flight count as never answered.
    pub fn history(&self) -> History {
        History { operations: self.lock().operations.clone() }
    }

    /// Payload bytes of acknowledged writes.
    pub fn bytes_written(&self) -> u64 {
        let state = self.lock();
        let written = state.operations.iter().filter(|o| o.acknowledged && o.action == Action::Write);
        written.map(|o| o.blocks * BLOCK_BYTES as u64).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves the notes whole, so a panic of another holder spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How writers behave.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Writers at once.
    pub writers: u64,
    /// Seed of everything they choose.
    pub seed: u64,
    /// Blocks at the start of each disk that all writers fight over.
    pub hot_blocks: u64,
    /// Least time from one operation of a writer to its next.
    pub pace: Duration,
}

/// What the writers saw besides their notes.
#[derive(Debug, Default)]
pub struct Counts {
    /// Acknowledged writes, zeroings and trims.
    pub operations: AtomicU64,
    /// Acknowledged flushes.
    pub flushes: AtomicU64,
    /// Errors.
    pub failures: AtomicU64,
    /// Longest wait for an answer, in microseconds.
    pub wait_micros_max: AtomicU64,
}

/// Writers at work; they stop when told to.
pub struct Workload {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// What they saw.
    pub counts: Arc<Counts>,
}

impl Workload {
    /// Starts the writers on the disks given (one or more clients for each disk, by index).
    pub fn start(notes: Arc<Notes>, disks: Arc<Vec<Client>>, plan: &Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let tasks = (0..plan.writers).map(|n| {
            let mut writer = Writer {
                notes: notes.clone(),
                disks: disks.clone(),
                noise: Noise::new(plan.seed.wrapping_mul(1009).wrapping_add(n)),
                hot_blocks: plan.hot_blocks,
                counts: counts.clone(),
            };
            let (stop, pace) = (stop.clone(), plan.pace);
            tokio::spawn(async move {
                let mut ticks = tokio::time::interval(pace.max(Duration::from_micros(1)));
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                // Relaxed: its partner is the store in `stop`; nothing else is read by its order.
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    writer.one_operation().await;
                }
            })
        });
        Self { tasks: tasks.collect(), stop, counts }
    }

    /// Lets each writer finish what it has in flight.
    pub async fn stop(self) -> Arc<Counts> {
        // Relaxed: its partner is the load that every writer repeats; what they wrote is read after they are awaited.
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a writer ended early");
                // Relaxed: a count.
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.counts
    }
}

struct Writer {
    notes: Arc<Notes>,
    disks: Arc<Vec<Client>>,
    noise: Noise,
    hot_blocks: u64,
    counts: Arc<Counts>,
}

impl Writer {
    async fn one_operation(&mut self) {
        let disk = self.noise.below(self.disks.len() as u64) as usize;
        let client = &self.disks[disk];
        let started = Instant::now();
        let ok = match self.noise.below(100) {
            0..3 => {
                let flushed = client.flush().await.is_ok();
                // Relaxed: a count.
                self.counts.flushes.fetch_add(u64::from(flushed), Ordering::Relaxed);
                flushed
            }
            kind => {
                let size = client.size() / BLOCK_BYTES as u64;
                let blocks =
                    if self.noise.below(3) > 0 { 1 + self.noise.below(4) } else { 1 + self.noise.below(BLOCKS_MAX) };
                let room = if self.noise.below(5) < 2 { self.hot_blocks.min(size) } else { size };
                let block = self.noise.below(room.saturating_sub(blocks).max(1));
                let action = if kind < 11 { Action::Zero } else { Action::Write };
                let Some(number) = self.notes.begin(disk as u32, block, blocks.min(size), action) else { return };
                let (offset, len) = (block * BLOCK_BYTES as u64, (blocks * BLOCK_BYTES as u64) as u32);
                let answer = match kind {
                    0..6 => client.trim(offset, len).await,
                    6..11 => client.write_zeroes(offset, len, kind == 6).await,
                    _ => {
                        let stamp = Stamp { disk: disk as u32, block, write: number };
                        client.write(offset, Bytes::from(stamps::payload(stamp, blocks)), kind > 95).await
                    }
                };
                self.notes.end(number, answer.is_ok());
                // Relaxed: a count.
                self.counts.operations.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed);
                answer.is_ok()
            }
        };
        // Relaxed: counts, read for good once the writers have ended.
        self.counts.failures.fetch_add(u64::from(!ok), Ordering::Relaxed);
        let waited = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counts.wait_micros_max.fetch_max(waited, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zeroing_waits_for_whatever_overlaps_it() {
        let notes = Notes::default();
        let write = notes.begin(0, 0, 4, Action::Write).expect("free");
        assert!(notes.begin(0, 2, 4, Action::Write).is_some(), "writes may overlap");
        assert!(notes.begin(0, 5, 1, Action::Zero).is_none());
        assert!(notes.begin(1, 0, 4, Action::Zero).is_some(), "another disk");
        notes.end(write, true);
        assert!(notes.begin(0, 0, 2, Action::Zero).is_some());
        assert!(notes.begin(0, 1, 1, Action::Write).is_none());
    }

    #[test]
    fn answers_come_after_issues_on_the_clock() {
        let notes = Notes::default();
        let before = notes.now();
        let number = notes.begin(0, 0, 1, Action::Write).expect("free");
        notes.end(number, true);
        let after = notes.now();
        let operation = notes.history().operations[0].clone();
        assert!(before < operation.issued && operation.issued < operation.answered && operation.answered < after);
        assert_eq!(notes.bytes_written(), BLOCK_BYTES as u64);
    }
}
