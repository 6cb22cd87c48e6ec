//! Credit: how much of each machine may be received and not yet stored, so that all of them together stay within what is set
//! aside for it, and none is left without because another is loud.
//!
//! A session is sure of [`SURE_BYTES`]. What its window has beyond them is lent from one budget, to whoever uses what it
//! has: a window aims at four times what is in flight. No loan is more than twice what is left of the budget then, so
//! something is always left for whoever comes next, and machines that are loud together end up with equal shares. When
//! bytes are stored, what is over either bound is paid back before any credit goes to the agent.
//!
//! One frame may be larger than the window, when nothing else is in flight: a large write could never come otherwise.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Credit that every session has, whatever others do: some frames of an agent's usual size.
pub(crate) const SURE_BYTES: u64 = 2 << 20;

/// A window aims at so many times what is in flight, so that a segment fills while others are on their way.
const WINDOWS_PER_FLIGHT: u64 = 4;

/// Bytes that are lent to all machines together.
pub(crate) struct Budget {
    total: u64,
    lent: Mutex<u64>,
}

impl Budget {
    /// With so many bytes to lend.
    pub(crate) fn new(total: u64) -> Arc<Self> {
        Arc::new(Self { total, lent: Mutex::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to a loan what is wanted, as far as it stays within twice what is left then; in any case what must be.
    fn lend(&self, loan: u64, wanted: u64, must: u64) -> u64 {
        let mut lent = self.lock();
        let left = self.total.saturating_sub(*lent);
        let more = wanted.min((2 * left).saturating_sub(loan) / 3).max(must);
        *lent += more;
        more
    }

    /// Takes back what a loan has too much, `unused` at least, and `most` at most.
    fn take_back(&self, loan: u64, unused: u64, most: u64) -> u64 {
        let mut lent = self.lock();
        let left = self.total.saturating_sub(*lent);
        let back = unused.max(loan.saturating_sub(2 * left).div_ceil(3)).min(most).min(loan);
        *lent -= back;
        back
    }
}

struct State {
    in_flight: u64,
    window: u64,
}

/// The credit window of one session. What it borrowed goes back when it is dropped.
pub(crate) struct Window {
    budget: Arc<Budget>,
    bytes_max: u64,
    state: Mutex<State>,
}

/// More was sent than the window allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overdrawn {
    /// Bytes received and not stored, the last frame included.
    pub in_flight: u64,
    /// The window.
    pub window: u64,
}

impl Window {
    /// Nothing is in flight, and nothing borrowed. It never aims at more than `bytes_max`.
    pub(crate) fn new(budget: Arc<Budget>, bytes_max: u64) -> Self {
        Window { budget, bytes_max, state: Mutex::new(State { in_flight: 0, window: SURE_BYTES }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn aim(&self, in_flight: u64) -> u64 {
        (WINDOWS_PER_FLIGHT * in_flight).min(self.bytes_max).max(SURE_BYTES)
    }

    /// A frame came. Credit to give the agent beside what it has.
    pub(crate) fn take(&self, cost: u64) -> Result<u64, Overdrawn> {
        let mut state = self.lock();
        let before = state.in_flight;
        state.in_flight += cost;
        let over = state.in_flight.saturating_sub(state.window);
        if over > 0 && before > 0 {
            return Err(Overdrawn { in_flight: state.in_flight, window: state.window });
        }
        let wanted = self.aim(state.in_flight).saturating_sub(state.window);
        let more = if wanted.max(over) > 0 { self.budget.lend(state.window - SURE_BYTES, wanted, over) } else { 0 };
        state.window += more;
        Ok(more)
    }

    /// Bytes are stored. Credit that goes back to the agent; never more than it took.
    pub(crate) fn give_back(&self, cost: u64) -> u64 {
        let mut state = self.lock();
        let back = cost.min(state.in_flight);
        state.in_flight -= back;
        let unused = state.window.saturating_sub(self.aim(state.in_flight));
        let kept = self.budget.take_back(state.window - SURE_BYTES, unused, back);
        state.window -= kept;
        back - kept
    }

    /// Bytes received and not stored.
    pub(crate) fn in_flight(&self) -> u64 {
        self.lock().in_flight
    }

    /// Bytes that may be in flight.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().window
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let loan = self.bytes() - SURE_BYTES;
        *self.budget.lock() -= loan;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const MAX: u64 = 64 * MIB;

    /// A machine that sends as much as it may, as its agent counts it.
    struct Loud {
        window: Window,
        credit: u64,
        sent: u64,
    }

    impl Loud {
        fn new(budget: &Arc<Budget>) -> Self {
            Loud { window: Window::new(budget.clone(), MAX), credit: SURE_BYTES, sent: 0 }
        }

        fn send(&mut self, cost: u64) -> bool {
            if self.credit < cost {
                return false;
            }
            self.credit += self.window.take(cost).expect("within the credit");
            self.credit -= cost;
            self.sent += cost;
            true
        }

        fn store(&mut self, cost: u64) {
            let cost = cost.min(self.sent);
            self.sent -= cost;
            self.credit += self.window.give_back(cost);
        }
    }

    #[test]
    fn whoever_is_alone_gets_the_most_and_gives_it_back() {
        let budget = Budget::new(96 * MIB);
        let mut one = Loud::new(&budget);
        while one.send(MIB) {}
        assert!(one.window.bytes() > MAX - MIB, "{}", one.window.bytes());
        one.store(MAX);
        assert_eq!(
            (one.credit, one.window.bytes()),
            (SURE_BYTES, SURE_BYTES),
            "nothing is kept by who does not use it"
        );
        assert_eq!(*budget.lock(), 0);
    }

    #[test]
    fn a_loud_machine_makes_room_for_those_who_come() {
        let budget = Budget::new(96 * MIB);
        let mut all: Vec<_> = (0..9).map(|_| Loud::new(&budget)).collect();
        while all[0].send(MIB) {}
        for _ in 0..100 {
            for one in &mut all {
                one.store(MIB);
                while one.send(MIB / 4) {}
            }
        }
        let windows: Vec<u64> = all.iter().map(|one| one.window.bytes()).collect();
        let (least, most) = (windows.iter().min().expect("nine"), windows.iter().max().expect("nine"));
        assert!(*least > 8 * MIB && most - least < 4 * MIB, "equal shares: {windows:?}");
        assert!(*budget.lock() <= 96 * MIB);
    }

    #[test]
    fn one_large_frame_may_come_when_nothing_is_in_flight() {
        let budget = Budget::new(0);
        let window = Window::new(budget.clone(), MAX);
        assert_eq!(window.take(32 * MIB), Ok(30 * MIB), "the agent counts from what it had");
        assert!(window.take(1).is_err(), "but nothing beside it");
        assert_eq!(*budget.lock(), 30 * MIB);
        drop(window);
        assert_eq!(*budget.lock(), 0, "whoever goes leaves no debt");
    }

    proptest! {
        /// Whatever is sent within the credit and stored in whatever order, agent and server count alike, and never is more
        /// lent than there is.
        #[test]
        fn both_sides_count_alike(steps in prop::collection::vec((0usize..4, any::<bool>(), 1u64..(3 << 20)), 1..400)) {
            let total = 16 * MIB;
            let budget = Budget::new(total);
            let mut all: Vec<_> = (0..4).map(|_| Loud::new(&budget)).collect();
            for (which, sends, cost) in steps {
                if sends { let _full = all[which].send(cost); } else { all[which].store(cost); }
                for one in &all {
                    prop_assert_eq!(one.credit + one.sent, one.window.bytes());
                    prop_assert_eq!(one.window.in_flight(), one.sent);
                }
                let loans: u64 = all.iter().map(|one| one.window.bytes() - SURE_BYTES).sum();
                prop_assert_eq!(*budget.lock(), loans);
                prop_assert!(loans <= total, "{} lent", loans);
            }
        }
    }
}
