//! Read-ahead: who reads a disk in order finds the next stretch there already.
//!
//! The few places of a disk where somebody reads on are remembered; requests that arrive a little out of order count as in
//! order. A place that was read on for a while is worth a window, which doubles up to a bound, and whenever less than half of it is
//! left ahead of the reader the rest is fetched in the background. Reads at random places cause none: they begin places and do not
//! go on.
//!
//! What is fetched goes where every frame goes, into the caches; nothing else is held. A reader never waits for a window
//! of which it wants no part, and one that failed is as if it had never been asked for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use model::Extent;
use tokio::sync::Semaphore;

use super::{PointDisk, RecoverError};

/// Places remembered for one disk. Their windows together are half of what the cache of frames takes.
const PLACES_MAX: usize = 4;

/// How far from where a place goes on a request may begin, in bytes: clients have many in flight.
const SLACK_BYTES: u64 = 1 << 20;

/// Bytes that must have been read in order before anything is fetched ahead.
const IN_ORDER_BYTES: u64 = 256 << 10;

/// First and largest window.
const WINDOW_BYTES_MIN: u64 = 512 << 10;
const WINDOW_BYTES_MAX: u64 = 8 << 20;

/// Somewhere that is read on.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Where the furthest request so far ended.
    next: u64,
    /// Bytes read in order.
    in_order: u64,
    /// Up to where bytes were fetched ahead.
    ahead: u64,
    window: u64,
    /// When it was read last, in requests.
    used: u64,
}

/// The places of a disk; plain data.
#[derive(Debug, Default)]
struct Places {
    places: Vec<Place>,
    requests: u64,
}

impl Places {
    /// Notes a request, and says what to fetch ahead, if anything. Where nothing may be fetched now (`may_fetch`), the next request
    /// is told.
    fn note(&mut self, extent: Extent, size: u64, may_fetch: bool) -> Option<Extent> {
        self.requests += 1;
        let distance = |place: &Place| place.next.abs_diff(extent.offset());
        let near =
            self.places.iter_mut().filter(|place| distance(place) <= SLACK_BYTES).min_by_key(|place| distance(place));
        let Some(place) = near else {
            self.begin(extent);
            return None;
        };
        place.used = self.requests;
        place.in_order += extent.end().saturating_sub(place.next).min(extent.len());
        place.next = place.next.max(extent.end());
        place.ahead = place.ahead.max(place.next);
        if !may_fetch || place.in_order < IN_ORDER_BYTES || place.ahead - place.next > place.window / 2 {
            return None;
        }
        place.window = (place.window * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let end = place.next.saturating_add(place.window).min(size);
        let stretch = Extent::new(place.ahead, end.checked_sub(place.ahead)?).ok()?;
        place.ahead = end;
        Some(stretch)
    }

    /// A new place, instead of the one that was read least lately.
    fn begin(&mut self, extent: Extent) {
        if self.places.len() == PLACES_MAX
            && let Some(oldest) = (0..PLACES_MAX).min_by_key(|n| self.places[*n].used)
        {
            self.places.swap_remove(oldest);
        }
        let next = extent.end();
        self.places.push(Place { next, in_order: extent.len(), ahead: next, window: 0, used: self.requests });
    }
}

/// A read being answered, until it is answered or given up.
struct Reading<'a>(&'a AtomicUsize);

impl<'a> Reading<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        // Relaxed: a count that orders nothing.
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // Relaxed: as above.
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A disk whose readers are read ahead for.
pub(crate) struct ReadAhead {
    disk: Arc<PointDisk>,
    places: Mutex<Places>,
    fetches: Arc<Semaphore>,
    /// Reads being answered.
    reading: AtomicUsize,
}

impl ReadAhead {
    /// Nothing read yet.
    pub fn new(disk: Arc<PointDisk>) -> Self {
        Self {
            disk,
            places: Mutex::default(),
            fetches: Arc::new(Semaphore::new(PLACES_MAX)),
            reading: AtomicUsize::new(0),
        }
    }

    /// Reads from the disk, after having begun to fetch what is likely to be read next. Errors: those of the read.
    pub async fn read(&self, extent: Extent) -> Result<Bytes, RecoverError> {
        let permit = self.fetches.clone().try_acquire_owned().ok();
        let size = self.disk.size();
        let stretch = self.places.lock().unwrap_or_else(PoisonError::into_inner).note(extent, size, permit.is_some());
        if let (Some(stretch), Some(permit)) = (stretch, permit) {
            let disk = self.disk.clone();
            tokio::spawn(async move {
                let _permit = permit;
                match disk.prefetch(&[stretch]).await {
                    Ok(bytes) => metrics::counter!("recover_read_ahead_bytes_total").increment(bytes),
                    // Whoever reads there meets it, if it is still so then.
                    Err(error) => tracing::debug!(%error, "reading ahead failed"),
                }
            });
        }
        let _reading = Reading::new(&self.reading);
        self.disk.read(extent).await
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<PointDisk> {
        &self.disk
    }

    /// Whether somebody waits for a read.
    pub fn is_reading(&self) -> bool {
        // Relaxed: who looks only waits a little, or does not.
        self.reading.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 1 << 30;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(offset, len).expect("sectors")
    }

    #[test]
    fn reads_in_order_are_fetched_ahead_of_once_and_within_the_bound() {
        let (mut places, mut fetched) = (Places::default(), 0..0);
        for at in (0..64 * MIB).step_by(64 << 10) {
            if let Some(stretch) = places.note(extent(at, 64 * KIB), SIZE, true) {
                assert!(fetched.end == 0 || stretch.offset() == fetched.end, "{stretch:?} behind {fetched:?}");
                fetched = stretch.offset()..stretch.end();
            }
            assert!(fetched.end <= at + 64 * KIB + WINDOW_BYTES_MAX);
            assert!(at < IN_ORDER_BYTES || fetched.end >= at + 64 * KIB, "nothing was fetched at {at}");
        }
        let last = places.note(extent(SIZE - 64 * KIB, 64 * KIB), SIZE, true);
        assert_eq!(last, None, "a new place, and the end of the disk");
    }

    #[test]
    fn a_few_readers_in_order_each_have_their_window_though_requests_are_shuffled() {
        let (mut places, mut fetched) = (Places::default(), [0; 3]);
        for step in 0..200u64 {
            for reader in 0..3u64 {
                // Two by two the wrong way round.
                let at = reader * 300 * MIB + (step ^ 1) * 32 * KIB;
                let stretch = places.note(extent(at, 32 * KIB), SIZE, true);
                fetched[reader as usize] += stretch.map_or(0, |stretch| stretch.len());
            }
        }
        assert!(fetched.iter().all(|bytes| *bytes >= 200 * 32 * KIB - IN_ORDER_BYTES), "{fetched:?}");
    }

    #[test]
    fn reads_at_random_and_of_the_same_place_cause_none() {
        let (mut places, mut state) = (Places::default(), 1u64);
        for _ in 0..20_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) % (256 * MIB / 4096) * 4096;
            assert_eq!(places.note(extent(at, 4096), 256 * MIB, true), None);
        }
        for _ in 0..1000 {
            assert_eq!(places.note(extent(0, 4096), 256 * MIB, true), None);
        }
    }

    #[test]
    fn a_reader_that_found_nothing_free_is_fetched_ahead_of_later() {
        let mut places = Places::default();
        for at in 0..16 {
            assert_eq!(places.note(extent(at * 64 * KIB, 64 * KIB), SIZE, false), None);
        }
        assert!(places.note(extent(MIB, 64 * KIB), SIZE, true).is_some());
    }
}
