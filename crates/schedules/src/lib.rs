//! Tests only: runs a check of hand-written synchronisation under many chosen schedules.
//!
//! A check is written against shuttle's locks, atomics and threads: at each of them the scheduler decides who goes on. Half of the
//! schedules are drawn at random and half by priorities (PCT, which finds what needs few but exact changes of turn). A failing
//! run prints its schedule; `shuttle::replay` runs that one again. Weak memory is not modelled.

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// Schedules of each kind.
const SCHEDULES: usize = 3000;

/// Changes of priority in one PCT schedule.
const PCT_DEPTH: usize = 3;

/// Runs `test` under many schedules; panics with the first that fails.
pub fn explore(test: impl Fn() + Clone + Send + Sync + 'static) {
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
pub fn caught(test: impl Fn() + Clone + Send + Sync + 'static) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| explore(test))).expect_err("a careless variant passed the check");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => {
            other.downcast::<&str>().map_or_else(|_| "a panic without words".to_owned(), |text| (*text).to_owned())
        }
    }
}
