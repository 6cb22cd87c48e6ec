//! Test-only switches: safety rules that can be taken away one at a time, and failpoints around durable steps.
//!
//! An oracle that never failed proves nothing, so every rule that keeps a promise can be removed here and the oracles
//! must notice (docs/reliability.md has the table). What must hold: without the feature `armed`, which no shipped binary
//! turns on, [`Rules`] has no size, every rule holds by definition, and a failpoint is no code at all.

mod failpoint;
mod rules;

pub use failpoint::{FAILPOINTS, Failpoint, arm_from_environment};
#[cfg(feature = "armed")]
pub use failpoint::{arm, on_this_thread, reached, reached_now};
pub use rules::{Rule, Rules};

/// Marks a step in async code: a test may let the process, or the simulated host, die exactly here.
#[cfg(feature = "armed")]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::reached($name).await
    };
}

/// Marks a step in async code; without the feature `armed` it is nothing.
#[cfg(not(feature = "armed"))]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {};
}

/// Marks a step in code that runs on a thread of its own.
#[cfg(feature = "armed")]
#[macro_export]
macro_rules! failpoint_now {
    ($name:literal) => {
        $crate::reached_now($name)
    };
}

/// Marks a step in code that runs on a thread of its own; without the feature `armed` it is nothing.
#[cfg(not(feature = "armed"))]
#[macro_export]
macro_rules! failpoint_now {
    ($name:literal) => {};
}
