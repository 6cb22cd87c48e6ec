//! The locks and atomics of hand-written synchronisation.
//!
//! Files that synchronise by hand take them from `super::sync`, so that `scheduled` can compile the very same source
//! against a scheduler of its own and try orders that no machine would show us in years.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};
