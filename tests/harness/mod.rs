//! A site of real roles for the end-to-end tests: child processes of the shipping binary, real sockets, real files.
//!
//! Nothing here sleeps to wait: [`eventually`] polls a condition and fails with the roles' logs at its deadline.

pub mod judge;
pub mod load;
pub mod mounted;
pub mod proc;
pub mod seed;
pub mod site;
pub mod tools;

pub use proc::Proc;
pub use seed::Seed;
pub use site::{Site, SiteOptions};

use std::time::{Duration, Instant};

/// How long anything may take before a test says it does not happen. The machines of continuous integration are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Polls until `condition` gives a value; panics with `what` and what it last said at the deadline.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(why) if start.elapsed() > PATIENCE => panic!("{what} did not happen within {PATIENCE:?}: {why}"),
            Err(_) => std::thread::park_timeout(LOOK_EVERY),
        }
    }
}
