//! Small operations on the thread that asks for them, where it may block.
//!
//! What the page cache takes or gives needs a few microseconds, less than to wake another thread for it. A thread says once
//! that it may block. Reads then take what is cached without waiting. A write may meet a disk that is behind (the kernel
//! makes writers wait), and whatever its thread serves would wait with it: so a slow one sends those behind it to the disk's
//! threads, where as many run at once as wait, until enough have gone there to try again.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Largest operation in bytes. Larger ones take longer than to wake a thread, which then works beside this one.
const BYTES_MAX: u64 = 64 << 10;

/// A write that took longer waited for something.
const SLOW: Duration = Duration::from_millis(1);

/// Operations that go elsewhere behind a slow one.
const ELSEWHERE: u32 = 64;

thread_local! {
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// From now on, operations that this thread asks for may block it.
pub fn this_thread_may_block() {
    MAY_BLOCK.set(true);
}

/// Whether the next operation of a disk runs where it is asked for.
#[derive(Debug, Default)]
pub(crate) struct Here {
    /// Operations that are still to go elsewhere.
    elsewhere: AtomicU32,
}

impl Here {
    /// Whether an operation on so many bytes runs here.
    pub(crate) fn takes(&self, bytes: u64) -> bool {
        if !MAY_BLOCK.get() || bytes > BYTES_MAX {
            return false;
        }
        // Relaxed: a count for speed alone; operations are ordered by other means.
        let sent_away = self.elsewhere.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        sent_away.is_err()
    }

    /// Runs one here, and learns from how long it took.
    pub(crate) fn run<T>(&self, operation: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = operation();
        if started.elapsed() > SLOW {
            // Relaxed: see above.
            self.elsewhere.store(ELSEWHERE, Ordering::Relaxed);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_run_here_where_they_may_while_they_are_small_and_none_was_slow() {
        let here = Here::default();
        let waits = || std::thread::spawn(|| Here::default().takes(512)).join().expect("no panic");
        assert!(!waits(), "nobody said that this thread may block");
        this_thread_may_block();
        assert!(here.takes(512) && here.takes(BYTES_MAX) && !here.takes(BYTES_MAX + 512));
        assert!(!waits(), "each thread says so for itself");
        here.run(|| ());
        // Slow is a matter of time, and time is what this needs.
        here.run(|| {
            let started = Instant::now();
            while started.elapsed() <= SLOW {}
        });
        assert_eq!((0..ELSEWHERE + 1).filter(|_| here.takes(512)).count(), 1, "the slow one sent others away");
        assert!(here.takes(512), "and then it is tried again");
    }
}
