//! Tests only: the ways in which a test may wait.
//!
//! A test that sleeps and hopes is slow on a fast machine and fails on a slow one. So no test calls `sleep` (`cargo xtask tidy`
//! looks): it lets virtual time pass, or it looks again until a deadline. What stands for a device or a network may take time,
//! because nobody counts on how long.

use std::fmt::Display;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Lets virtual time pass. Panics where the clock is not paused: there it would be a real wait.
pub async fn pass(time: Duration) {
    assert_paused().await;
    tokio::time::sleep(time).await;
}

/// The time that a simulated device, network or store takes, in whatever clock the test has.
pub async fn takes(time: Duration) {
    tokio::time::sleep(time).await;
}

/// When to give up looking.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The time from now until then, virtual where the clock is paused.
    pub fn after(time: Duration) -> Self {
        Deadline(Instant::now() + time)
    }

    /// Waits a moment before the next look. Panics past the deadline, and says `what` did not come.
    pub async fn look_again(self, what: impl Display) {
        assert!(Instant::now() < self.0, "waited in vain: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }

    /// The same for a thread.
    pub fn look_again_blocking(self, what: impl Display) {
        assert!(Instant::now() < self.0, "waited in vain: {what}");
        std::thread::park_timeout(LOOK_EVERY);
    }
}

/// Looks until it holds. Panics past the deadline, and says what did not come.
pub async fn until(what: &str, deadline: Deadline, mut holds: impl AsyncFnMut() -> bool) {
    while !holds().await {
        deadline.look_again(what).await;
    }
}

/// Only a paused clock can be advanced: tokio panics for any other. It is polled once, so that no task gets a turn by it.
async fn assert_paused() {
    let mut advance = pin!(tokio::time::advance(Duration::ZERO));
    std::future::poll_fn(|context| {
        let _ = advance.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn virtual_time_passes() {
        let begun = Instant::now();
        pass(Duration::from_secs(3600)).await;
        assert_eq!(begun.elapsed().as_secs(), 3600);
    }

    #[tokio::test]
    #[should_panic(expected = "not frozen")]
    async fn a_real_wait_is_refused() {
        pass(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn looks_end_when_it_holds() {
        let mut looks = 0;
        let holds = async || {
            looks += 1;
            looks == 7
        };
        until("the seventh look", Deadline::after(Duration::from_secs(1)), holds).await;
        assert_eq!(looks, 7);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "waited in vain: what never comes")]
    async fn looks_end_at_the_deadline() {
        until("what never comes", Deadline::after(Duration::from_secs(60)), async || false).await;
    }
}
