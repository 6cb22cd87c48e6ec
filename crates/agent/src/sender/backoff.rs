//! Pauses between dials: growing, bounded, and never the same on two agents.

use std::time::Duration;

/// Shortest pause.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The next pause to make.
#[derive(Debug)]
pub(crate) struct Backoff {
    base: Duration,
    noise: u64,
}

impl Backoff {
    /// Jitter from this seed: many agents that lost one server do not come back in step.
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        let noise = u64::from_le_bytes([seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], seed[6], seed[7]]) | 1;
        Backoff { base: PAUSE_MIN, noise }
    }

    /// The server answered: start again with short pauses.
    pub(crate) fn reset(&mut self) {
        self.base = PAUSE_MIN;
    }

    /// Between a half and the whole of a base that doubles.
    pub(crate) fn next(&mut self) -> Duration {
        // xorshift: jitter needs no better.
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        let base = self.base;
        self.base = (base * 2).min(PAUSE_MAX);
        let spread = u64::try_from(base.as_millis()).unwrap_or(0) / 2;
        (base / 2 + Duration::from_millis(self.noise % (spread + 1))).max(PAUSE_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds_and_start_again() {
        let mut backoff = Backoff::new([3; 16]);
        let pauses: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses.iter().all(|p| (PAUSE_MIN..=PAUSE_MAX).contains(p)), "{pauses:?}");
        assert!(pauses[19] > Duration::from_secs(2), "{pauses:?}");
        backoff.reset();
        assert_eq!(backoff.next(), PAUSE_MIN);
    }
}
