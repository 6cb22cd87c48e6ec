//! Hand-written synchronisation under chosen schedules.
//!
//! The modules below are the shipping sources, compiled once more with shuttle's locks, atomics and threads in place of
//! the standard ones: at each of them the scheduler decides who goes on. Each check draws thousands of schedules, half of
//! them at random and half by priorities (PCT, which finds what needs few but exact changes of turn), and states an
//! invariant that every one must keep. Each has a control: a careless variant or use, which it must catch.
//! A failing run prints its schedule; `shuttle::replay` runs that one again. Weak memory is not modelled: every atomic
//! ordering names its partner in the source.

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

pub(crate) mod channel;
mod handing_over;
mod telling;

/// What the sources below find as `super::sync`.
mod sync {
    pub(crate) use super::channel;
    pub(crate) use shuttle::sync::atomic::{AtomicUsize, Ordering};
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};
    pub(crate) use shuttle::thread;
    pub(crate) use std::sync::PoisonError;
}

#[allow(clippy::duplicate_mod, reason = "the point: the same source under another scheduler")]
#[path = "../pipeline/handover.rs"]
mod handover;
#[allow(clippy::duplicate_mod, reason = "the point: the same source under another scheduler")]
#[path = "../session/outbox.rs"]
mod outbox;

/// Schedules of each kind.
const SCHEDULES: usize = 2000;

/// Changes of priority in one PCT schedule.
const PCT_DEPTH: usize = 3;

/// Runs `test` under many schedules; panics with the first that fails.
fn explore(test: impl Fn() + Clone + Send + Sync + 'static) {
    let config = || {
        let mut config = Config::new();
        config.stack_size = 128 << 10;
        config.silence_warnings = true;
        config
    };
    Runner::new(RandomScheduler::new(SCHEDULES), config()).run(test.clone());
    Runner::new(PctScheduler::new(PCT_DEPTH, SCHEDULES), config()).run(test);
}

/// Runs a careless variant, which must be caught; returns what it was caught by.
fn caught(test: impl Fn() + Clone + Send + Sync + 'static) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| explore(test))).expect_err("a careless variant passed the check");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => {
            other.downcast::<&str>().map_or_else(|_| "a panic without words".to_owned(), |text| (*text).to_owned())
        }
    }
}
