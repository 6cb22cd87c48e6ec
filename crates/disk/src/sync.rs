//! The locks and threads of hand-written synchronisation.
//!
//! `scheduled` compiles the source that takes them from here against a scheduler of its own, which tries orders that no
//! machine would show us in years.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use std::thread;
