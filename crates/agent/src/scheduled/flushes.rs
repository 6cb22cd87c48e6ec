//! Shared flushes: success is told only by a flush that was issued after the request arrived, flushes never overlap, and
//! every failure is told to a client.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use shuttle::future::{block_on, spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};

use super::flush_group::FlushGroup;
use super::sync::{AtomicU64, Ordering};
use schedules::{caught, explore};

const TASKS: usize = 4;
const ROUNDS: usize = 3;

/// A flush of the source that has ended. Times are ticks of one logical clock.
struct Flush {
    issued: u64,
    ended: u64,
    ok: bool,
}

/// The source, and what it and its clients saw.
#[derive(Default)]
struct Source {
    clock: u64,
    running: bool,
    flushes: Vec<Flush>,
    /// When a client was last told of a failure.
    told: u64,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Source>>);

impl Shared {
    fn source<T>(&self, f: impl FnOnce(&mut Source) -> T) -> T {
        // A verdict against one task must not hide behind the poison it leaves for the next.
        let mut source = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        source.clock += 1;
        f(&mut source)
    }

    /// Asks the disk to flush; now and then it fails.
    async fn flush(self, may_fail: bool) -> io::Result<()> {
        let issued = self.source(|source| {
            assert!(!source.running, "two flushes at once");
            source.running = true;
            source.clock
        });
        // Also when it is cancelled, the source is free again.
        let running = Running(self.clone());
        yield_now().await;
        let ok = !may_fail || thread_rng().gen_bool(0.7);
        drop(running);
        self.source(|source| source.flushes.push(Flush { issued, ended: source.clock, ok }));
        if ok { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
    }
}

struct Running(Shared);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.source(|source| source.running = false);
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

/// What is checked: the real group, or a careless variant of it.
trait Group: Default + Send + Sync + 'static {
    fn ask<'a>(&'a self, source: &'a Shared, client: bool, may_fail: bool) -> Answer<'a>;
}

impl Group for FlushGroup {
    fn ask<'a>(&'a self, source: &'a Shared, client: bool, may_fail: bool) -> Answer<'a> {
        let flush = move || source.clone().flush(may_fail);
        if client { Box::pin(self.share_for_client(flush)) } else { Box::pin(self.share(flush)) }
    }
}

async fn ask_and_judge(group: &impl Group, source: &Shared, client: bool, may_fail: bool) {
    let called = source.source(|source| source.clock);
    let mut answer = group.ask(source, client, may_fail);
    if !client && thread_rng().gen_bool(0.2) {
        // The agent's own requests may be cut off; whoever shared them must not be told a tale.
        let _ = answer.as_mut().now_or_never();
        return;
    }
    let answer = answer.await;
    source.source(|source| {
        let covered = |flush: &Flush| flush.issued > called && flush.ok == answer.is_ok();
        match answer {
            Ok(()) => assert!(source.flushes.iter().any(covered), "success of a flush issued before the request"),
            Err(_) if client => source.told = source.clock,
            Err(_) => assert!(source.flushes.iter().any(covered), "failure of a flush issued before the request"),
        }
    });
}

fn contend<G: Group>() {
    let (group, source) = (Arc::new(G::default()), Shared::default());
    let task = |n: usize| {
        let (group, source) = (group.clone(), source.clone());
        spawn(async move {
            for _ in 0..ROUNDS {
                ask_and_judge(&*group, &source, n.is_multiple_of(2), true).await;
            }
        })
    };
    let tasks: Vec<_> = (0..TASKS).map(task).collect();
    block_on(async {
        for task in tasks {
            task.await.expect("a task panicked");
        }
        ask_and_judge(&*group, &source, true, false).await;
    });
    source.source(|source| {
        let last_failure = source.flushes.iter().filter(|flush| !flush.ok).map(|flush| flush.ended).max();
        assert!(last_failure.is_none_or(|failed| failed < source.told), "no client was told of a failure");
    });
}

#[test]
fn success_comes_only_from_a_flush_issued_after_the_request() {
    explore(contend::<FlushGroup>);
}

/// Counts who is covered when the flush is over.
#[derive(Default)]
struct CountsTooLate {
    arrived: AtomicU64,
    covers: tokio::sync::Mutex<u64>,
}

impl Group for CountsTooLate {
    fn ask<'a>(&'a self, source: &'a Shared, _: bool, _: bool) -> Answer<'a> {
        Box::pin(async move {
            let request = self.arrived.fetch_add(1, Ordering::SeqCst) + 1;
            let mut covers = self.covers.lock().await;
            if *covers < request {
                source.clone().flush(false).await?;
                *covers = self.arrived.load(Ordering::SeqCst);
            }
            Ok(())
        })
    }
}

#[test]
fn control_a_group_that_counts_after_the_flush_is_caught() {
    let why = caught(contend::<CountsTooLate>);
    assert!(why.contains("success of a flush issued before the request"), "{why}");
}

/// Lets everyone flush for themselves.
#[derive(Default)]
struct NoTurns;

impl Group for NoTurns {
    fn ask<'a>(&'a self, source: &'a Shared, _: bool, may_fail: bool) -> Answer<'a> {
        Box::pin(source.clone().flush(may_fail))
    }
}

#[test]
fn control_flushes_at_once_are_caught() {
    let why = caught(contend::<NoTurns>);
    assert!(why.contains("two flushes at once"), "{why}");
}

/// Keeps a failure that nobody but the agent saw to itself.
#[derive(Default)]
struct Forgets(FlushGroup);

impl Group for Forgets {
    fn ask<'a>(&'a self, source: &'a Shared, _: bool, may_fail: bool) -> Answer<'a> {
        Box::pin(self.0.share(move || source.clone().flush(may_fail)))
    }
}

#[test]
fn control_a_failure_kept_from_clients_is_caught() {
    let why = caught(contend::<Forgets>);
    assert!(why.contains("no client was told of a failure"), "{why}");
}
