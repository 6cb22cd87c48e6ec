//! What benches share: a clock of this thread's CPU time, and data that repeat.
//!
//! CPU time of the thread is measured, not wall time: on shared machines it repeats within a few per cent where wall
//! time does not. Absolute figures belong to the machine they were taken on; compare ratios of one run.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time this thread has used.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("CPU time is not negative");
    let nanos = u32::try_from(time.tv_nsec).expect("below a second");
    Duration::new(seconds, nanos)
}

/// Seeded 64-bit numbers (splitmix64).
pub struct Numbers(pub u64);

impl Iterator for Numbers {
    type Item = u64;
    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Some(z ^ (z >> 31))
    }
}

/// Pages of a made-up order table: 4 KiB each, text and numbers, compresses to about half.
pub fn table_pages(bytes: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let mut next = || numbers.next().expect("endless");
    let (cities, mut data) = (["Lisbon", "Oslo", "Porto", "Graz", "Lyon", "Gdansk"], Vec::with_capacity(bytes + 256));
    while data.len() < bytes {
        let (id, amount, city) = (next(), next() % 100_000, cities[(next() % 6) as usize]);
        data.extend_from_slice(&id.to_le_bytes());
        data.extend_from_slice(format!("order of {amount} to {city}, item {:x};", next() % 1_000_000).as_bytes());
        data.extend_from_slice(&[0; 6]);
    }
    data.truncate(bytes);
    data
}

/// Bytes that do not compress.
pub fn random(bytes: usize, seed: u64) -> Vec<u8> {
    Numbers(seed).take(bytes / 8).flat_map(u64::to_le_bytes).collect()
}
