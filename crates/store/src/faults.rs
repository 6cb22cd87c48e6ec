//! A store that fails on demand, for tests: outage, delay, and every way in which an answer and the truth can differ.
//!
//! Two of these lose data in careless programs: the **lost response** (the object was written, the writer is told it was
//! not) and the **late landing** (the writer is told of a timeout, and the object appears afterwards). All chance comes
//! from one seed, and all waiting is tokio time, so a simulation with paused time is repeatable.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Faults that may wait in [`Faults::fail_next`].
const PLANNED_MAX: usize = 10_000;

/// A small seeded random generator (splitmix64): the same seed gives the same run.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        ((self.next_u64() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// A duration between the two, both included, in whole microseconds.
    pub fn duration(&mut self, min: Duration, max: Duration) -> Duration {
        let span = max.saturating_sub(min).as_micros() as u64;
        min + Duration::from_micros(self.below(span.saturating_add(1)))
    }
}

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A put of any mode.
    Put,
    /// A read, ranged read or head.
    Read,
    /// A listing of any kind.
    List,
    /// A delete.
    Delete,
}

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store is not reached: nothing happens.
    Before,
    /// It happens, and the answer is lost.
    LostResponse,
    /// The requester is told of a timeout now; a put or delete happens after this time (a read never does).
    Late(Duration),
}

#[derive(Debug)]
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
    requests: u64,
    failed: u64,
}

/// Switches of a [`FaultStore`]; shared with the test that turns them. Each change holds for requests that start later.
#[derive(Clone)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Faults {
    /// No faults; chance will come from this seed.
    pub fn new(seed: u64) -> Self {
        let zero = (Duration::ZERO, Duration::ZERO);
        Self {
            state: Arc::new(Mutex::new(State {
                rng: SplitMix64::new(seed),
                outage: false,
                delay: zero,
                error_rates: [0.0; 4],
                lost_response_rate: 0.0,
                late_rate: 0.0,
                late_by: zero,
                planned: VecDeque::new(),
                requests: 0,
                failed: 0,
            })),
        }
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

    /// The next request of this kind that has no fault planned yet fails in this way. Planned faults go first.
    pub fn fail_next(&self, request: Request, fault: Fault) {
        let mut state = self.state();
        assert!(state.planned.len() < PLANNED_MAX, "more than {PLANNED_MAX} faults planned");
        state.planned.push_back((request, fault));
    }

    /// Takes every fault and delay away; late requests that are under way still land.
    pub fn clear(&self) {
        let mut state = self.state();
        state.outage = false;
        state.delay = (Duration::ZERO, Duration::ZERO);
        state.error_rates = [0.0; 4];
        (state.lost_response_rate, state.late_rate) = (0.0, 0.0);
        state.planned.clear();
    }

    /// Requests so far, and how many of them were made to fail.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.requests, state.failed)
    }

    fn decide(&self, request: Request) -> (Duration, Option<Fault>) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.requests += 1;
        let delay = state.rng.duration(state.delay.0, state.delay.1);
        let planned = state.planned.iter().position(|(kind, _)| *kind == request);
        let changes = matches!(request, Request::Put | Request::Delete);
        let fault = if state.outage {
            Some(Fault::Before)
        } else if let Some((_, fault)) = planned.and_then(|at| state.planned.remove(at)) {
            Some(fault)
        } else if state.rng.chance(state.error_rates[request as usize]) {
            Some(Fault::Before)
        } else if changes && state.rng.chance(state.lost_response_rate) {
            Some(Fault::LostResponse)
        } else if changes && state.rng.chance(state.late_rate) {
            Some(Fault::Late(state.rng.duration(state.late_by.0, state.late_by.1)))
        } else {
            None
        };
        state.failed += u64::from(fault.is_some());
        (delay, fault)
    }

    /// Runs one request that belongs to the store `inner` under whatever is in force.
    async fn run<T, F>(&self, request: Request, action: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (delay, fault) = self.decide(request);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match fault {
            None => action.await,
            Some(Fault::Before) => Err(failure("the store cannot be reached (injected)")),
            Some(Fault::LostResponse) => {
                let _lost = action.await;
                Err(failure("the answer was lost (injected)"))
            }
            Some(Fault::Late(after)) => {
                if matches!(request, Request::Put | Request::Delete) {
                    tokio::spawn(async move {
                        tokio::time::sleep(after).await;
                        let _unheard = action.await;
                    });
                }
                Err(failure("the request timed out (injected)"))
            }
        }
    }
}

fn failure(why: &'static str) -> Error {
    Error::Generic { store: "faults", source: why.into() }
}

/// Wraps an object store; behaves as [`Faults`] say.
#[derive(Clone)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl FaultStore {
    /// `inner`, seen through `faults`.
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Faults) -> Self {
        Self { inner, faults }
    }

    /// Its switches.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let (inner, location) = (self.inner.clone(), location.clone());
        self.faults.run(Request::Put, async move { inner.put_opts(&location, payload, opts).await }).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let (inner, location) = (self.inner.clone(), location.clone());
        self.faults.run(Request::Put, async move { inner.put_multipart_opts(&location, opts).await }).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (inner, location) = (self.inner.clone(), location.clone());
        self.faults.run(Request::Read, async move { inner.get_opts(&location, options).await }).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete_one = move |location: Result<Path>| {
            let this = this.clone();
            async move {
                let location = location?;
                let (inner, path) = (this.inner.clone(), location.clone());
                this.faults.run(Request::Delete, async move { inner.delete(&path).await }).await?;
                Ok(location)
            }
        };
        locations.then(delete_one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let start = async move {
            let inner = this.inner.clone();
            match this.faults.run(Request::List, async move { Ok(inner.list(prefix.as_ref())) }).await {
                Ok(stream) => stream,
                Err(error) => futures::stream::once(async { Err(error) }).boxed(),
            }
        };
        futures::stream::once(start).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (inner, prefix) = (self.inner.clone(), prefix.cloned());
        self.faults.run(Request::List, async move { inner.list_with_delimiter(prefix.as_ref()).await }).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (inner, from, to) = (self.inner.clone(), from.clone(), to.clone());
        self.faults.run(Request::Put, async move { inner.copy_opts(&from, &to, options).await }).await
    }
}
