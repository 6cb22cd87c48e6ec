//! A value that several tasks wait for.
//!
//! What must hold: whoever waits is woken by every change, and those who wait are woken in the order in which they came.
//! tokio's `watch` wakes them in a random order, so that which of two writers goes first would differ from run to run,
//! and a whole agent under one seed would not do the same again.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

struct Value<T> {
    now: T,
    /// Counts announcements, of equal values too.
    version: u64,
}

/// The value and the bell of those who wait for it.
pub(crate) struct Announced<T> {
    value: Mutex<Value<T>>,
    bell: Notify,
}

impl<T: Copy> Announced<T> {
    /// Begins with this value.
    pub(crate) fn new(now: T) -> Self {
        Announced { value: Mutex::new(Value { now, version: 0 }), bell: Notify::new() }
    }

    fn value(&self) -> MutexGuard<'_, Value<T>> {
        self.value.lock().expect("nothing panics while it holds the value")
    }

    /// Announces a value, even if it is the old one.
    pub(crate) fn announce(&self, now: T) {
        self.change(|value| *value = now);
    }

    /// Changes the value and announces it.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T)) {
        {
            let mut value = self.value();
            change(&mut value.now);
            value.version += 1;
        }
        self.bell.notify_waiters();
    }

    /// Waits until the value is as wanted, and returns it.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(T) -> bool) -> T {
        loop {
            // Made before the look: an announcement in between is not missed.
            let rung = self.bell.notified();
            let now = self.value().now;
            if wanted(now) {
                return now;
            }
            rung.await;
        }
    }

    /// Follows the announcements from here on.
    pub(crate) fn follow(&self) -> Follower<'_, T> {
        Follower { announced: self, seen: self.value().version }
    }
}

/// Somebody who wants to hear of every announcement.
pub(crate) struct Follower<'a, T> {
    announced: &'a Announced<T>,
    seen: u64,
}

impl<T: Copy> Follower<'_, T> {
    /// Waits for the next announcement; several that were missed count as one.
    pub(crate) async fn changed(&mut self) {
        loop {
            let rung = self.announced.bell.notified();
            let version = self.announced.value().version;
            if version != self.seen {
                self.seen = version;
                return;
            }
            rung.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn who_waits_is_woken_in_the_order_of_coming() {
        let (announced, order) = (Arc::new(Announced::new(0)), Arc::new(Mutex::new(Vec::new())));
        let mut waiters = tokio::task::JoinSet::new();
        for n in 0..32 {
            let (announced, order) = (Arc::clone(&announced), Arc::clone(&order));
            waiters.spawn(async move {
                announced.wait_for(|now| now >= 2).await;
                order.lock().expect("no panic while held").push(n);
            });
            tokio::task::yield_now().await;
        }
        announced.announce(1);
        announced.announce(2);
        while waiters.join_next().await.is_some() {}
        assert_eq!(*order.lock().expect("no panic while held"), (0..32).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn an_announcement_before_the_wait_is_not_missed() {
        let announced = Announced::new(0);
        let mut follower = announced.follow();
        announced.announce(0);
        follower.changed().await;
        announced.change(|now| *now += 1);
        follower.changed().await;
        assert_eq!(announced.wait_for(|now| now == 1).await, 1);
    }
}
