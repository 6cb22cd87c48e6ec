//! Hand-written synchronisation under chosen schedules.
//!
//! The modules below are the shipping sources, compiled once more with shuttle's locks, atomics and threads in place of
//! the standard ones: at each of them the scheduler decides who goes on. Each check draws thousands of schedules, half of
//! them at random and half by priorities (PCT, which finds what needs few but exact changes of turn), and states an
//! invariant that every one must keep. Each has a control: a careless variant or use, which it must catch.
//! A failing run prints its schedule; `shuttle::replay` runs that one again. Weak memory is not modelled: every atomic
//! ordering names its partner in the source.

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
