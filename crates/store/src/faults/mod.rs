//! A store that fails on demand, for tests: outage, delay, and every way in which an answer and the truth can differ.
//!
//! Two of these lose data in careless programs: the **lost response** (the object was written, the writer is told it was
//! not) and the **late landing** (the writer is told of a timeout, and the object appears afterwards). All chance comes
//! from one seed, and all waiting is tokio time, so a simulation with paused time is repeatable.
//!
//! `kind` says what can happen and when, `past` remembers what stale answers are made of, `store` lets it happen; here
//! are the switches, and the decision about each request: an outage first, then runs that have begun, planned faults,
//! rules in their order, and last the rates that hold for the whole store.

mod chance;
mod kind;
mod past;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;

pub use chance::SplitMix64;
pub use kind::{Fault, FaultRule, Request};
use past::Past;
pub use store::FaultStore;

/// Faults that may wait in [`Faults::fail_next`].
const PLANNED_MAX: usize = 10_000;

/// Rules that may be in force at once.
const RULES_MAX: usize = 1000;

/// Runs the second half of a request whose requester has been answered already.
pub type Spawner = Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>;

/// Hears of every strike: kind of request, name of the fault, path (or prefix of a listing).
pub type StrikeHook = Arc<dyn Fn(Request, &'static str, &str) + Send + Sync>;

/// What the decision needs to know of a request.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    request: Request,
    path: &'a object_store::path::Path,
    /// A put that must not find an object.
    creates: bool,
    /// A read that wants the body.
    has_body: bool,
}

/// A run of failures that has begun.
#[derive(Debug)]
struct Run {
    rule: FaultRule,
    left: u32,
}

struct State {
    rng: SplitMix64,
    outage: bool,
    delay: (Duration, Duration),
    /// Probability of [`Fault::Before`] by kind of request: put, read, list, delete.
    error_rates: [f64; 4],
    lost_response_rate: f64,
    late_rate: f64,
    late_by: (Duration, Duration),
    planned: VecDeque<(Request, Fault)>,
    rules: Vec<FaultRule>,
    runs: Vec<Run>,
    requests: u64,
    struck: BTreeMap<(Request, &'static str), u64>,
    spawner: Spawner,
    hook: Option<StrikeHook>,
}

/// How one request will fare.
struct Strike {
    /// Wait before anything else.
    delay: Duration,
    fault: Option<Fault>,
    /// Chance for whatever the fault leaves open: which bit, which half.
    draw: u64,
    /// Changes when whatever hangs is let go.
    released: watch::Receiver<u64>,
    spawner: Spawner,
}

/// Switches of a [`FaultStore`]; shared with the test that turns them. Each change holds for requests that start later.
#[derive(Clone)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    past: Past,
    releases: Arc<watch::Sender<u64>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Faults").field("requests", &state.requests).field("struck", &state.struck).finish()
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Faults {
    /// No faults; chance will come from this seed.
    pub fn new(seed: u64) -> Self {
        Self::with_past(seed, Past::default())
    }

    /// Switches of its own for another client of the same store: what was put or deleted through one can be stale news to
    /// the other.
    pub fn sibling(&self, seed: u64) -> Self {
        Self::with_past(seed, self.past.clone())
    }

    fn with_past(seed: u64, past: Past) -> Self {
        let zero = (Duration::ZERO, Duration::ZERO);
        let state = State {
            rng: SplitMix64::new(seed),
            outage: false,
            delay: zero,
            error_rates: [0.0; 4],
            lost_response_rate: 0.0,
            late_rate: 0.0,
            late_by: zero,
            planned: VecDeque::new(),
            rules: Vec::new(),
            runs: Vec::new(),
            requests: 0,
            struck: BTreeMap::new(),
            spawner: Arc::new(|late| drop(tokio::spawn(late))),
            hook: None,
        };
        Self { state: Arc::new(Mutex::new(state)), past, releases: Arc::new(watch::Sender::new(0)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every request fails before it reaches the store.
    pub fn set_outage(&self, outage: bool) {
        self.state().outage = outage;
    }

    /// Every request waits for a seeded time between these first.
    pub fn set_delay(&self, min: Duration, max: Duration) {
        self.state().delay = (min, max.max(min));
    }

    /// Every request fails before it reaches the store with this probability.
    pub fn set_error_rate(&self, rate: f64) {
        self.state().error_rates = [rate; 4];
    }

    /// Requests of this kind fail before they reach the store with this probability.
    pub fn set_error_rate_of(&self, request: Request, rate: f64) {
        self.state().error_rates[request as usize] = rate;
    }

    /// Puts and deletes take place but answer with an error, with this probability.
    pub fn set_lost_response_rate(&self, rate: f64) {
        self.state().lost_response_rate = rate;
    }

    /// Puts and deletes answer with a timeout and take place later, with this probability.
    pub fn set_late_rate(&self, rate: f64, min: Duration, max: Duration) {
        let mut state = self.state();
        (state.late_rate, state.late_by) = (rate, (min, max.max(min)));
    }

    /// The next request of this kind that the fault can strike, and that has no fault planned yet, fails in this way.
    /// Planned faults go before rules.
    pub fn fail_next(&self, request: Request, fault: Fault) {
        assert!(fault.requests().contains(&request), "a {} cannot suffer {}", request.name(), fault.name());
        let mut state = self.state();
        assert!(state.planned.len() < PLANNED_MAX, "more than {PLANNED_MAX} faults planned");
        state.planned.push_back((request, fault));
    }

    /// From now on this rule holds too, behind those before it.
    pub fn add(&self, rule: FaultRule) {
        let can = |request: &Request| rule.fault.requests().contains(request);
        assert!(rule.requests.iter().all(can), "{} cannot strike all of {:?}", rule.fault.name(), rule.requests);
        let mut state = self.state();
        assert!(state.rules.len() < RULES_MAX, "more than {RULES_MAX} rules");
        state.rules.push(rule);
    }

    /// What takes place after its requester was answered runs by this, so that it can outlive the requester's host;
    /// `tokio::spawn` otherwise.
    pub fn set_spawner(&self, spawner: Spawner) {
        self.state().spawner = spawner;
    }

    /// This hears of every strike, before anything of the request happens.
    pub fn on_strike(&self, hook: StrikeHook) {
        self.state().hook = Some(hook);
    }

    /// Takes every fault, rule and delay away and lets go what hangs; late requests that are under way still land.
    pub fn clear(&self) {
        let mut state = self.state();
        state.outage = false;
        state.delay = (Duration::ZERO, Duration::ZERO);
        state.error_rates = [0.0; 4];
        (state.lost_response_rate, state.late_rate) = (0.0, 0.0);
        state.planned.clear();
        state.rules.clear();
        state.runs.clear();
        drop(state);
        self.release();
    }

    /// Lets go every request that [hangs until then](Fault::HangUntilReleased).
    pub fn release(&self) {
        self.releases.send_modify(|count| *count += 1);
    }

    /// Requests so far, and how many of them were struck by a fault.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.requests, state.struck.values().sum())
    }

    /// How often each fault has struck each kind of request, in order; what never struck is left out.
    pub fn struck(&self) -> Vec<(Request, &'static str, u64)> {
        self.state().struck.iter().map(|((request, name), count)| (*request, *name, *count)).collect()
    }

    fn decide(&self, call: Call<'_>) -> Strike {
        let mut guard = self.state();
        let state = &mut *guard;
        state.requests += 1;
        let delay = state.rng.duration(state.delay.0, state.delay.1);
        let fault = state.choose(call, &self.past);
        // Drawn only where it is used: faults without it cost no chance.
        let draw = if fault.is_some_and(Fault::leaves_to_chance) { state.rng.next_u64() } else { 0 };
        let hook = fault.and_then(|fault| {
            *state.struck.entry((call.request, fault.name())).or_default() += 1;
            state.hook.clone()
        });
        let strike = Strike { delay, fault, draw, released: self.releases.subscribe(), spawner: state.spawner.clone() };
        drop(guard);
        if let (Some(hook), Some(fault)) = (hook, fault) {
            hook(call.request, fault.name(), call.path.as_ref());
        }
        strike
    }

    /// Whether bytes of deleted objects may be asked for.
    fn remembers_deleted(&self) -> bool {
        let remembers = |fault: Fault| matches!(fault, Fault::ReadAfterDelete(_) | Fault::StaleList(_));
        let state = self.state();
        state.rules.iter().any(|rule| remembers(rule.fault)) || state.planned.iter().any(|(_, f)| remembers(*f))
    }
}

impl State {
    fn choose(&mut self, call: Call<'_>, past: &Past) -> Option<Fault> {
        if self.outage {
            return Some(Fault::Before);
        }
        let path = call.path.as_ref();
        if let Some(at) = self.runs.iter().position(|run| run.rule.fits(call.request, path)) {
            let fault = self.runs[at].rule.fault;
            self.runs[at].left -= 1;
            if self.runs[at].left == 0 {
                self.runs.remove(at);
            }
            return Some(fault);
        }
        let planned = self.planned.iter().position(|(kind, f)| *kind == call.request && can_strike(*f, call, past));
        if let Some((request, fault)) = planned.and_then(|at| self.planned.remove(at)) {
            self.begin_run(FaultRule::new(fault, 1.0).on(&[request]));
            return Some(fault);
        }
        self.by_rule(call, past).or_else(|| self.by_rate(call.request))
    }

    fn by_rule(&mut self, call: Call<'_>, past: &Past) -> Option<Fault> {
        for rule in &mut self.rules {
            if !rule.fits(call.request, call.path.as_ref()) {
                continue;
            }
            // Drawn whether or not the fault can strike, so that the past, which other tasks share, moves no chance.
            let (strikes, more) = (self.rng.chance(rule.probability), self.rng.duration(Duration::ZERO, rule.jitter));
            let fault = rule.fault.longer_by(more);
            if strikes && can_strike(fault, call, past) {
                rule.strikes_max -= 1;
                let run = FaultRule { strikes_max: u64::MAX, ..rule.clone() };
                self.begin_run(run);
                return Some(fault);
            }
        }
        None
    }

    fn by_rate(&mut self, request: Request) -> Option<Fault> {
        let changes = matches!(request, Request::Put | Request::Delete);
        if self.rng.chance(self.error_rates[request as usize]) {
            Some(Fault::Before)
        } else if changes && self.rng.chance(self.lost_response_rate) {
            Some(Fault::LostResponse)
        } else if changes && self.rng.chance(self.late_rate) {
            Some(Fault::Late(self.rng.duration(self.late_by.0, self.late_by.1)))
        } else {
            None
        }
    }

    fn begin_run(&mut self, rule: FaultRule) {
        let left = rule.fault.run().saturating_sub(1);
        if left > 0 {
            self.runs.push(Run { rule, left });
        }
    }
}

/// Whether the fault would change anything for this request.
fn can_strike(fault: Fault, call: Call<'_>, past: &Past) -> bool {
    match fault {
        Fault::ConflictCreated | Fault::ConflictAbsent => call.creates,
        Fault::TruncatedBody | Fault::BrokenBody | Fault::FlippedBit => call.has_body,
        Fault::StaleRead(within) => past.is_new(call.path, within),
        Fault::ReadAfterDelete(within) => past.find_deleted(call.path, within).is_some(),
        _ => true,
    }
}
