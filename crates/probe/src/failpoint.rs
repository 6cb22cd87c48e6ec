//! Named steps at which a test lets a process die.
//!
//! Two ways to use one. A real process is started with `FARSHORE_FAILPOINT=name` or `name:n` and dies, as if killed, when
//! it reaches that step for the n-th time. A simulated host has a hook on its thread, which is told of every step and
//! answers whether the host dies there: then the step never returns, and the simulation drops the host.

#[cfg(feature = "armed")]
use std::cell::RefCell;
#[cfg(feature = "armed")]
use std::sync::OnceLock;
#[cfg(feature = "armed")]
use std::sync::atomic::{AtomicU32, Ordering};

/// One step, as the list of all of them has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failpoint {
    /// The step's name: role, thing, and what has just been done or is about to be.
    pub name: &'static str,
    /// The role, or the command, whose process reaches it.
    pub role: &'static str,
}

/// Every failpoint there is, role by role in the order of its steps; `cargo xtask tidy` compares it with the code.
pub const FAILPOINTS: &[Failpoint] = &[
    of("agent", "agent-map-replace-before"),
    of("agent", "agent-map-replace-synced"),
    of("agent", "agent-map-replace-renamed"),
    of("agent", "agent-map-replace-after"),
    of("agent", "agent-marker-removal-before"),
    of("agent", "agent-marker-removal-after"),
    of("agent", "agent-map-commit-before"),
    of("agent", "agent-map-commit-written"),
    of("agent", "agent-map-commit-synced"),
    of("agent", "agent-bits-cleared"),
    of("agent", "agent-marker-before"),
    of("agent", "agent-marker-pages-durable"),
    of("agent", "agent-marker-durable"),
    of("agent", "agent-source-write-before"),
    of("agent", "agent-source-write-completed"),
    of("agent", "agent-source-write-numbered"),
    of("agent", "agent-source-flush-before"),
    of("agent", "agent-source-flush-after"),
    of("agent", "agent-spool-write-before"),
    of("agent", "agent-spool-write-after"),
    of("agent", "agent-stored-heard"),
    of("agent", "agent-stored-freed"),
    of("agent", "agent-incarnation-adopted"),
    of("agent", "agent-drain-begin-numbered"),
    of("agent", "agent-drain-read"),
    of("agent", "agent-drain-end-numbered"),
    of("agent", "agent-compare-durable"),
    of("process-server", "process-server-epoch-linked"),
    of("process-server", "process-server-epoch-attached"),
    of("process-server", "process-server-opening-written"),
    of("process-server", "process-server-segment-put-before"),
    of("process-server", "process-server-segment-put"),
    of("process-server", "process-server-segment-looked"),
    of("process-server", "process-server-stored-written"),
    of("applier", "applier-epoch-linked"),
    of("applier", "applier-epoch-attached"),
    of("applier", "applier-opening-written"),
    of("applier", "applier-promote-before"),
    of("applier", "applier-promote-opening"),
    of("applier", "applier-promote-epoch"),
    of("applier", "applier-promote-segment"),
    of("applier", "applier-commit-put-before"),
    of("applier", "applier-commit-put"),
    of("applier", "applier-commit-looked"),
    of("applier", "applier-map-put-before"),
    of("applier", "applier-map-put"),
    of("applier", "applier-pack-put-before"),
    of("applier", "applier-pack-put"),
    of("applier", "applier-collect-before"),
    of("applier", "applier-collect-between"),
    of("applier", "applier-collect-after"),
    of("applier", "applier-replica-intent-durable"),
    of("applier", "applier-replica-runs-written"),
    of("applier", "applier-replica-disks-flushed"),
    of("applier", "applier-replica-state-synced"),
    of("applier", "applier-replica-state-renamed"),
    of("applier", "applier-replica-position-durable"),
    of("restore", "restore-state-created"),
    of("restore", "restore-image-created"),
    of("restore", "restore-pieces-synced"),
    of("restore", "restore-pieces-durable"),
    of("restore", "restore-image-complete"),
    of("restore", "restore-image-renamed"),
    of("restore", "restore-state-removed"),
    of("cp", "cp-complete"),
    of("cp", "cp-renamed"),
    of("init", "init-vault-created"),
];

const fn of(role: &'static str, name: &'static str) -> Failpoint {
    Failpoint { name, role }
}

/// The failpoint at which this process dies, and how many times it is still passed.
#[cfg(feature = "armed")]
struct Armed {
    name: String,
    left: AtomicU32,
}

#[cfg(feature = "armed")]
static ARMED: OnceLock<Armed> = OnceLock::new();

/// Is told of a step; true lets the simulated host die there.
#[cfg(feature = "armed")]
type Hook = Box<dyn FnMut(&'static str) -> bool>;

#[cfg(feature = "armed")]
thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Lets this process die when it reaches the named step for the `nth` time (from 1). Holds for the life of the process.
#[cfg(feature = "armed")]
pub fn arm(name: &str, nth: u32) {
    let _only_the_first_counts = ARMED.set(Armed { name: name.to_owned(), left: AtomicU32::new(nth.max(1)) });
}

/// As [`arm`], from `FARSHORE_FAILPOINT=name` or `FARSHORE_FAILPOINT=name:n`. Unset: nothing. Errors: a name that no
/// failpoint has, or a count that is no number; the text says which.
#[cfg(feature = "armed")]
pub fn arm_from_environment() -> Result<(), String> {
    let Ok(wanted) = std::env::var("FARSHORE_FAILPOINT") else { return Ok(()) };
    let (name, nth) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    let nth = nth.parse().map_err(|_| format!("FARSHORE_FAILPOINT={wanted}: {nth:?} is not a count"))?;
    if !FAILPOINTS.iter().any(|known| known.name == name) {
        return Err(format!("FARSHORE_FAILPOINT={wanted}: there is no failpoint {name:?}"));
    }
    arm(name, nth);
    Ok(())
}

/// Does nothing: this build has no failpoints.
#[cfg(not(feature = "armed"))]
pub fn arm_from_environment() -> Result<(), String> {
    Ok(())
}

/// Sets (or takes away) the hook of this thread.
#[cfg(feature = "armed")]
pub fn on_this_thread(hook: Option<Hook>) {
    HOOK.with(|slot| *slot.borrow_mut() = hook);
}

/// A step in async code.
#[cfg(feature = "armed")]
pub async fn reached(name: &'static str) {
    reached_now(name);
    let dies = HOOK.with(|hook| hook.borrow_mut().as_mut().is_some_and(|hook| hook(name)));
    if dies {
        std::future::pending::<()>().await;
    }
}

/// A step in code that runs on a thread of its own.
#[cfg(feature = "armed")]
pub fn reached_now(name: &'static str) {
    let Some(armed) = ARMED.get().filter(|armed| armed.name == name) else { return };
    // Relaxed: the count guards no other memory, and one decrement alone finds it at one.
    if armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        eprintln!("failpoint {name} reached: this process dies here");
        std::process::abort();
    }
}

#[cfg(all(test, feature = "armed"))]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_hook_is_told_of_every_step_and_may_stop_there() {
        on_this_thread(Some(Box::new(|name| name == "b")));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(pin!(reached("a")).poll(&mut context), Poll::Ready(()));
        assert_eq!(pin!(reached("b")).poll(&mut context), Poll::Pending);
        on_this_thread(None);
        assert_eq!(pin!(reached("b")).poll(&mut context), Poll::Ready(()));
    }

    #[test]
    fn names_are_unique_and_say_their_role() {
        let mut names: Vec<_> = FAILPOINTS.iter().map(|point| point.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for point in FAILPOINTS {
            assert!(point.name.starts_with(&format!("{}-", point.role)), "{}", point.name);
        }
    }
}
