//! A value that several tasks wait for: a mutex and a bell.
//!
//! Waiters are woken in the order in which they came. tokio's own watch channel spreads its waiters at random, so that
//! the order of completions after one commit of the map would differ from run to run, and a failing seed of the
//! simulation would not fail again. What must hold: no change is missed, because a waiter takes its place before it looks.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

/// A value and those who wait for it.
#[derive(Debug, Default)]
pub(crate) struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy + PartialEq> Watched<T> {
    /// Begins with a value.
    pub(crate) fn new(value: T) -> Self {
        Watched { value: Mutex::new(value), changed: Notify::new() }
    }

    fn value(&self) -> MutexGuard<'_, T> {
        self.value.lock().expect("nothing panics while it holds a watched value")
    }

    /// What it is now.
    pub(crate) fn get(&self) -> T {
        *self.value()
    }

    /// Changes it, and wakes who waits if that made a difference.
    pub(crate) fn set(&self, value: T) {
        self.modify(|old| *old = value);
    }

    /// Changes it in place, and wakes who waits if that made a difference.
    pub(crate) fn modify(&self, change: impl FnOnce(&mut T)) {
        let changed = {
            let mut value = self.value();
            let before = *value;
            change(&mut value);
            *value != before
        };
        if changed {
            self.changed.notify_waiters();
        }
    }

    /// Waits until it is as wanted, and says what it is then.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(&T) -> bool) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let now = self.get();
            if wanted(&now) {
                return now;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_change_between_the_look_and_the_wait_is_not_missed() {
        let watched = Watched::new(1);
        let mut waiting = Box::pin(watched.wait_for(|value| *value >= 3));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        watched.set(2);
        assert_eq!(waiting.as_mut().now_or_never(), None, "woken, and not content");
        watched.set(3);
        assert_eq!(waiting.as_mut().now_or_never(), Some(3));
        assert_eq!(watched.wait_for(|value| *value == 3).now_or_never(), Some(3), "who comes later does not wait");
    }
}
