//! Extent locks: nobody holds what another holds, whoever came first goes first, and nobody is forgotten.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use model::Extent;
use shuttle::future::{block_on, spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};

use super::locks::ExtentLocks;
use schedules::{caught, explore};

const TASKS: usize = 4;
const ROUNDS: usize = 3;

type Guard = Box<dyn Send>;
type Turn = Pin<Box<dyn Future<Output = Guard> + Send>>;

/// What is checked: the real locks, or a careless variant of them.
type Lock = Arc<dyn Fn(Extent) -> Turn + Send + Sync>;

/// One operation as the outside can see it. Times are ticks of one logical clock.
struct Operation {
    extent: Extent,
    /// Just before the call.
    called: u64,
    /// Just after it: its place in the queue is taken.
    queued: u64,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Waits,
    Holds,
    Gone,
}

/// Judges each step by the two rules. Its own mutex is no scheduling point: judging changes no schedule.
#[derive(Default)]
struct Judge {
    clock: u64,
    operations: Vec<Operation>,
}

impl Judge {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn queued(&mut self, extent: Extent, called: u64) -> usize {
        let queued = self.tick();
        self.operations.push(Operation { extent, called, queued, state: State::Waits });
        self.operations.len() - 1
    }

    fn holds(&mut self, index: usize) {
        let mine = &self.operations[index];
        for other in self.operations.iter().filter(|other| other.extent.overlaps(&mine.extent)) {
            assert!(other.state != State::Holds, "two hold overlapping extents");
            let came_before = other.queued < mine.called;
            assert!(!came_before || other.state == State::Gone, "a later one overtook an earlier one");
        }
        self.operations[index].state = State::Holds;
    }
}

/// A verdict against one task must not hide behind the poison it leaves for the next.
fn seen(judge: &Mutex<Judge>) -> MutexGuard<'_, Judge> {
    judge.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One task's operations: most wait for their turn and hold it for a while, some give up.
async fn operate(lock: Lock, judge: Arc<Mutex<Judge>>) {
    for _ in 0..ROUNDS {
        let (offset, len) = (thread_rng().gen_range(0..4), thread_rng().gen_range(1..4));
        let extent = Extent::new(offset * 512, len * 512).expect("aligned by construction");
        let called = seen(&judge).tick();
        let mut turn = lock(extent);
        let index = seen(&judge).queued(extent, called);
        let guard = if thread_rng().gen_bool(0.2) {
            yield_now().await;
            turn.as_mut().now_or_never()
        } else {
            Some(turn.as_mut().await)
        };
        if guard.is_some() {
            seen(&judge).holds(index);
            yield_now().await;
        }
        // Said before it is done: what becomes free meanwhile may be taken at once.
        seen(&judge).operations[index].state = State::Gone;
        drop(guard);
        drop(turn);
    }
}

fn contend(lock: &Lock) {
    let judge = Arc::new(Mutex::new(Judge::default()));
    let tasks: Vec<_> = (0..TASKS).map(|_| spawn(operate(lock.clone(), judge.clone()))).collect();
    block_on(async {
        for task in tasks {
            task.await.expect("a task panicked");
        }
    });
}

#[test]
fn overlapping_holders_exclude_each_other_and_come_in_order() {
    explore(|| {
        let locks = ExtentLocks::default();
        let real = locks.clone();
        let lock: Lock = Arc::new(move |extent| Box::pin(real.lock(extent).map(|held| Box::new(held) as Guard)));
        contend(&lock);
        assert_eq!(locks.len(), 0, "an entry was left behind");
    });
}

/// Extents held; waiting is asking again.
#[derive(Clone, Default)]
struct Careless {
    held: Arc<super::sync::Mutex<Vec<Extent>>>,
    /// Looks and takes in two steps.
    torn: bool,
}

struct CarelessGuard(Careless, Extent);

impl Drop for CarelessGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut held = self.0.held.lock().expect("held");
        let at = held.iter().position(|extent| *extent == self.1).expect("held until now");
        held.swap_remove(at);
    }
}

impl Careless {
    fn try_take(&self, extent: Extent) -> Option<Guard> {
        let mut held = self.held.lock().expect("held");
        if held.iter().any(|other| other.overlaps(&extent)) {
            return None;
        }
        if self.torn {
            drop(held);
            held = self.held.lock().expect("held");
        }
        held.push(extent);
        Some(Box::new(CarelessGuard(self.clone(), extent)))
    }

    fn lock(&self, extent: Extent) -> Turn {
        let locks = self.clone();
        Box::pin(async move {
            loop {
                match locks.try_take(extent) {
                    Some(guard) => return guard,
                    None => yield_now().await,
                }
            }
        })
    }
}

fn careless(torn: bool) -> String {
    caught(move || {
        let careless = Careless { torn, ..Careless::default() };
        let lock: Lock = Arc::new(move |extent| careless.lock(extent));
        contend(&lock);
    })
}

#[test]
fn control_a_lock_that_looks_and_takes_in_two_steps_is_caught() {
    // Whichever rule falls first: such a lock breaks both.
    let why = careless(true);
    assert!(why.contains("two hold overlapping extents") || why.contains("overtook"), "{why}");
}

#[test]
fn control_a_lock_without_a_queue_is_caught() {
    let why = careless(false);
    assert!(why.contains("overtook"), "{why}");
}
