//! What a long or lossy link does to packets of one direction: a bottleneck with a buffer, loss behind it, and delay.
//!
//! Plain arithmetic on times that the caller gives, and loss out of a seed: the same packets at the same times fare the
//! same again. Packets never overtake each other.

use std::collections::VecDeque;
use std::time::Duration;

use benches::Numbers;

/// What a link is like, in each direction by itself.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// Bytes a second through the bottleneck; none for as fast as packets come.
    pub rate: Option<u64>,
    /// How long a packet may have to wait for the bottleneck; one that would wait longer is dropped.
    pub buffer: Duration,
    /// From the bottleneck to the other end.
    pub delay: Duration,
    /// Packets out of a million that get lost behind the bottleneck.
    pub lost_per_million: u64,
}

/// How packets fared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fate {
    pub carried: u64,
    /// Lost at random.
    pub lost: u64,
    /// Found the buffer full.
    pub dropped: u64,
}

/// One direction: packets on their way.
pub struct Lane {
    path: Path,
    numbers: Numbers,
    /// When the bottleneck has sent everything that it was given.
    free: Duration,
    on_the_way: VecDeque<(Duration, Vec<u8>)>,
    pub fate: Fate,
}

impl Lane {
    pub fn new(path: Path, seed: u64) -> Self {
        Self { path, numbers: Numbers(seed), free: Duration::ZERO, on_the_way: VecDeque::new(), fate: Fate::default() }
    }

    /// A packet comes at this time, which never goes back.
    pub fn take(&mut self, now: Duration, packet: &[u8]) {
        let start = self.free.max(now);
        if start - now > self.path.buffer {
            self.fate.dropped += 1;
            return;
        }
        self.free = start + self.path.rate.map_or(Duration::ZERO, |rate| time_for(packet.len(), rate));
        if self.numbers.next().expect("endless") % 1_000_000 < self.path.lost_per_million {
            self.fate.lost += 1;
            return;
        }
        self.on_the_way.push_back((self.free + self.path.delay, packet.to_vec()));
    }

    /// The next packet that is at the other end by now.
    pub fn arrived(&mut self, now: Duration) -> Option<Vec<u8>> {
        let (_, packet) = self.on_the_way.pop_front_if(|(due, _)| *due <= now)?;
        self.fate.carried += 1;
        Some(packet)
    }
}

fn time_for(bytes: usize, rate: u64) -> Duration {
    Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const OPEN: Path = Path { rate: None, buffer: Duration::ZERO, delay: Duration::ZERO, lost_per_million: 0 };

    /// Sends packets of 1000 bytes at these times; when each that is carried arrives, to the tenth of a millisecond.
    fn arrivals(path: Path, sent: impl IntoIterator<Item = Duration>) -> (Vec<Duration>, Fate) {
        let mut lane = Lane::new(path, 7);
        sent.into_iter().for_each(|at| lane.take(at, &[0; 1000]));
        let mut times = Vec::new();
        for tenth in 0..100_000 {
            let now = MS / 10 * tenth;
            while lane.arrived(now).is_some() {
                times.push(now);
            }
        }
        (times, lane.fate)
    }

    #[test]
    fn delay_moves_every_packet_and_nothing_else_does() {
        let sent = [MS, 2 * MS, 2 * MS];
        assert_eq!(arrivals(OPEN, sent).0, sent);
        assert_eq!(arrivals(Path { delay: 20 * MS, ..OPEN }, sent).0, [21 * MS, 22 * MS, 22 * MS]);
    }

    #[test]
    fn the_bottleneck_spaces_packets_and_an_idle_one_does_not() {
        let slow = Path { rate: Some(1_000_000), buffer: 10 * MS, ..OPEN };
        assert_eq!(arrivals(slow, [MS; 3]).0, [2 * MS, 3 * MS, 4 * MS]);
        assert_eq!(arrivals(slow, [MS, 5 * MS]).0, [2 * MS, 6 * MS]);
    }

    #[test]
    fn what_finds_the_buffer_full_is_dropped_and_with_a_larger_one_it_is_not() {
        let path = Path { rate: Some(1_000_000), buffer: 5 * MS, ..OPEN };
        let (times, fate) = arrivals(path, [Duration::ZERO; 10]);
        assert_eq!((times.len(), fate), (6, Fate { carried: 6, lost: 0, dropped: 4 }));
        let (_, fate) = arrivals(Path { buffer: 9 * MS, ..path }, [Duration::ZERO; 10]);
        assert_eq!(fate, Fate { carried: 10, lost: 0, dropped: 0 });
    }

    #[test]
    fn loss_is_as_frequent_as_asked_the_same_again_and_another_with_another_seed() {
        let path = Path { lost_per_million: 10_000, ..OPEN };
        let lost = |path: Path, seed| -> Vec<u32> {
            let mut lane = Lane::new(path, seed);
            let passes = |lane: &mut Lane, n: u32| {
                lane.take(Duration::ZERO, &n.to_le_bytes());
                lane.arrived(Duration::ZERO).is_some()
            };
            (0..100_000).filter(|n| !passes(&mut lane, *n)).collect()
        };
        let first = lost(path, 1);
        assert!((900..1100).contains(&first.len()), "{} of 100000 for 1 %", first.len());
        assert_eq!(first, lost(path, 1));
        assert_ne!(first, lost(path, 2));
        assert_eq!(lost(OPEN, 1), [0; 0]);
    }

    #[test]
    fn what_gets_lost_has_had_its_time_at_the_bottleneck() {
        let path = Path { rate: Some(1_000_000), buffer: 10 * MS, lost_per_million: 1_000_000, ..OPEN };
        let (times, fate) = arrivals(path, [Duration::ZERO; 20]);
        assert_eq!((times.len(), fate), (0, Fate { carried: 0, lost: 11, dropped: 9 }));
    }
}
