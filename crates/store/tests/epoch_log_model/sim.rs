//! The world: a store in memory whose requests take seeded time, and the fate that starts and kills the actors.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use format::keys::{Keys, VaultKey};
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use store::{LogEnd, LogPosition, LogRules, SplitMix64, Store};
use tokio::task::JoinHandle;

use crate::bias::{Bias, Rates};
use crate::{actors, oracle};

/// Which rule this run does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Nothing,
    NeverSkip,
    ComparesDoubt,
    WriterLooks,
    AcksInOrder,
    ReaderLooks,
    ReaderLooksAtTop,
    RecheckHole,
    RecheckManifestHole,
    SecondLookUp,
    ManifestLooks,
}

impl Removed {
    pub const RULES: [Removed; 10] = [
        Removed::NeverSkip,
        Removed::ComparesDoubt,
        Removed::WriterLooks,
        Removed::AcksInOrder,
        Removed::ReaderLooks,
        Removed::ReaderLooksAtTop,
        Removed::RecheckHole,
        Removed::RecheckManifestHole,
        Removed::SecondLookUp,
        Removed::ManifestLooks,
    ];
}

/// Who sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Writer,
    Reader,
    Applier,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stats {
    pub epochs: u64,
    pub acked: u64,
    pub consumed: u64,
    pub manifests: u64,
    pub deleted: u64,
    pub late: u64,
    pub resurrected: u64,
    pub killed: u64,
}

impl Stats {
    pub fn add(&mut self, other: &Stats) {
        self.epochs += other.epochs;
        self.acked += other.acked;
        self.consumed += other.consumed;
        self.manifests += other.manifests;
        self.deleted += other.deleted;
        self.late += other.late;
        self.resurrected += other.resurrected;
        self.killed += other.killed;
    }
}

pub struct Outcome {
    pub verdict: std::result::Result<(), String>,
    pub stats: Stats,
    /// Folds every landed request, in order.
    pub trace: u64,
}

/// What has happened, as nobody inside can see it.
pub struct Record {
    pub rng: SplitMix64,
    /// Every object that ever landed, first bytes.
    pub archive: BTreeMap<String, Bytes>,
    pub acked: Vec<LogPosition>,
    pub consumed: Vec<LogEnd>,
    pub manifests: Vec<LogEnd>,
    pub errors: Vec<String>,
    pub stats: Stats,
    pub trace: u64,
    quiet: bool,
}

#[derive(Clone)]
pub struct World {
    pub record: Arc<Mutex<Record>>,
    pub inner: Arc<InMemory>,
    pub keys: Arc<Keys>,
    pub window: usize,
    pub bias: Bias,
    pub removed: Removed,
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl World {
    pub fn with<T>(&self, f: impl FnOnce(&mut Record) -> T) -> T {
        f(&mut self.record.lock().expect("no actor panics while it holds the record"))
    }

    pub fn chance(&self, probability: f64) -> bool {
        self.with(|r| r.rng.chance(probability))
    }

    /// Sleeps between these many milliseconds.
    pub async fn pause(&self, min: u64, max: u64) {
        let time = self.with(|r| if r.quiet { millis(0) } else { r.rng.duration(millis(min), millis(max)) });
        waiting::takes(time).await;
    }

    pub fn store(&self, role: Role) -> Store {
        Store::from_object_store(Arc::new(SimStore { world: self.clone(), role }))
    }

    fn rates(&self) -> Rates {
        self.bias.rates()
    }

    pub fn stream_rules(&self) -> LogRules {
        let mut rules = LogRules::ALL;
        match self.removed {
            Removed::NeverSkip => rules.never_skip = false,
            Removed::ComparesDoubt => rules.compares_doubt = false,
            Removed::WriterLooks => rules.writer_looks = false,
            Removed::AcksInOrder => rules.acks_in_order = false,
            Removed::ReaderLooks => rules.reader_looks = false,
            Removed::ReaderLooksAtTop => rules.reader_looks_at_top = false,
            Removed::RecheckHole => rules.recheck_hole = false,
            _ => {}
        }
        rules
    }

    pub fn manifest_rules(&self) -> LogRules {
        let mut rules = LogRules::ALL;
        match self.removed {
            Removed::NeverSkip => rules.never_skip = false,
            Removed::ComparesDoubt => rules.compares_doubt = false,
            Removed::RecheckManifestHole => rules.recheck_manifest_hole = false,
            Removed::SecondLookUp => rules.second_look_up = false,
            Removed::ManifestLooks => rules.writer_looks = false,
            _ => {}
        }
        rules
    }

    pub fn fail(&self, what: String) {
        self.with(|r| r.errors.push(what));
    }

    fn land(&self, path: &str, bytes: Option<&Bytes>) {
        self.with(|r| {
            let what = blake3::hash(path.as_bytes());
            let word = u64::from_le_bytes(what.as_bytes()[..8].try_into().expect("eight bytes"));
            r.trace = r.trace.rotate_left(7) ^ word ^ u64::from(bytes.is_some());
            match bytes {
                Some(bytes) => match r.archive.get(path) {
                    Some(first) if first != bytes && !path.contains("/epoch/") => {
                        r.errors.push(format!("rewrite of {path}"))
                    }
                    Some(_) => r.stats.resurrected += 1,
                    None => _ = r.archive.insert(path.to_owned(), bytes.clone()),
                },
                None => r.stats.deleted += 1,
            }
        });
    }
}

/// The store as one party reaches it.
#[derive(Clone)]
struct SimStore {
    world: World,
    role: Role,
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimStore")
    }
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimStore")
    }
}

/// Longest a requester waits for a PUT before it takes it for lost.
const PUT_TIMEOUT: Duration = Duration::from_millis(60);

impl SimStore {
    /// One way of a request: mostly quick, now and then so slow that the world has changed meanwhile.
    async fn travel(&self, stall: f64) {
        let time = self.world.with(|r| match r.quiet {
            true => millis(0),
            false if r.rng.chance(stall) => r.rng.duration(millis(40), millis(500)),
            false => r.rng.duration(millis(0), millis(5)),
        });
        waiting::takes(time).await;
    }

    /// When a PUT lands, and when its duplicate does.
    fn put_fate(&self, path: &str) -> (Duration, Option<Duration>) {
        self.world.with(|r| {
            if r.quiet {
                return (millis(0), None);
            }
            let is_late = r.rng.chance(self.world.bias.late(path));
            r.stats.late += u64::from(is_late);
            let at =
                if is_late { r.rng.duration(millis(30), millis(1200)) } else { r.rng.duration(millis(0), millis(8)) };
            let again = r.rng.chance(0.15).then(|| at + r.rng.duration(millis(5), millis(900)));
            (at, again)
        })
    }

    async fn land(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let bytes: Bytes = payload.clone().into();
        let result = self.world.inner.put_opts(location, payload, opts).await;
        if result.is_ok() {
            self.world.land(location.as_ref(), Some(&bytes));
        }
        result
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let (at, again) = self.put_fate(location.as_ref());
        let (this, location, first) = (self.clone(), location.clone(), (payload.clone(), opts.clone()));
        // The request has left: it lands even if whoever sent it dies.
        let landed = tokio::spawn({
            let (this, location) = (this.clone(), location.clone());
            async move {
                waiting::takes(at).await;
                this.land(&location, first.0, first.1).await
            }
        });
        if let Some(again) = again {
            tokio::spawn(async move {
                waiting::takes(again).await;
                let _second = this.land(&location, payload, opts).await;
            });
        }
        let answer = tokio::time::timeout(PUT_TIMEOUT, landed).await;
        self.travel(self.world.rates().stall).await;
        match answer {
            Ok(joined) => joined.expect("landing does not panic"),
            Err(_) => Err(Error::Generic { store: "sim", source: "timed out".into() }),
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let stall = self.world.bias.stalled_read(self.role, location.as_ref());
        self.travel(stall).await;
        let got = self.world.inner.get_opts(location, options).await;
        self.travel(stall).await;
        got
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete_one = move |location: Result<Path>| {
            let this = this.clone();
            async move {
                let location = location?;
                let late = this.world.chance(0.2);
                let gone = tokio::spawn({
                    let (this, location) = (this.clone(), location.clone());
                    async move {
                        match late {
                            true => this.world.pause(50, 800).await,
                            false => this.travel(this.world.rates().stall).await,
                        }
                        let result = this.world.inner.delete(&location).await;
                        this.world.land(location.as_ref(), None);
                        result
                    }
                });
                if !late {
                    gone.await.expect("deleting does not panic")?;
                }
                Ok(location)
            }
        };
        locations.then(delete_one).boxed()
    }

    fn list(&self, _prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        panic!("no rule of the epoch log may rest on LIST")
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> Result<ListResult> {
        panic!("no rule of the epoch log may rest on LIST")
    }

    async fn put_multipart_opts(&self, _at: &Path, _opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        panic!("every object is written by a single PUT")
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        panic!("objects are created, never copied")
    }
}

/// Steps of fate in one run; one is about ten milliseconds of the actors' time.
const FATE_STEPS: u32 = 700;

/// Longer than anything late can still be under way.
const SETTLE: Duration = Duration::from_secs(5);

pub fn run(seed: u64, window: usize, bias: Bias, removed: Removed) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let record = Record {
        rng: SplitMix64::new(seed ^ 0xFA25_0000),
        archive: BTreeMap::new(),
        acked: Vec::new(),
        consumed: Vec::new(),
        manifests: Vec::new(),
        errors: Vec::new(),
        stats: Stats::default(),
        trace: 0,
        quiet: false,
    };
    let world = World {
        record: Arc::new(Mutex::new(record)),
        inner: Arc::new(InMemory::new()),
        keys: Arc::new(Keys::new(&VaultKey::generate())),
        window,
        bias,
        removed,
    };
    let verdict = runtime.block_on(live(&world));
    let (mut stats, trace) = world.with(|r| (r.stats.clone(), r.trace));
    world.with(|r| {
        stats.acked = r.acked.len() as u64;
        stats.consumed = r.consumed.len() as u64;
        stats.manifests = r.manifests.len() as u64;
        stats.epochs = r.archive.keys().filter(|k| k.contains("/stream/epoch/")).count() as u64;
    });
    Outcome { verdict, stats, trace }
}

async fn live(world: &World) -> std::result::Result<(), String> {
    let rates = world.rates();
    let mut readers: Vec<JoinHandle<()>> = (0..3).map(|i| tokio::spawn(actors::reader(world.clone(), i))).collect();
    let (mut writers, mut appliers) = (Vec::<JoinHandle<()>>::new(), Vec::<JoinHandle<()>>::new());
    for _ in 0..FATE_STEPS {
        world.pause(5, 15).await;
        writers.retain(|w| !w.is_finished());
        appliers.retain(|a| !a.is_finished());
        if writers.is_empty() || (writers.len() < 4 && world.chance(rates.writer_births)) {
            writers.push(tokio::spawn(actors::writer(world.clone())));
        }
        if appliers.is_empty() || (appliers.len() < 4 && world.chance(rates.applier_births)) {
            appliers.push(tokio::spawn(actors::applier(world.clone())));
        }
        for lives in [&mut writers, &mut appliers] {
            if !lives.is_empty() && world.chance(rates.kills) {
                let victim = world.with(|r| r.rng.below(lives.len() as u64)) as usize;
                lives.swap_remove(victim).abort();
                world.with(|r| r.stats.killed += 1);
            }
        }
        if world.with(|r| !r.errors.is_empty()) {
            break;
        }
    }
    for task in writers.drain(..).chain(appliers.drain(..)).chain(readers.drain(..)) {
        task.abort();
    }
    if world.chance(0.5) {
        waiting::pass(SETTLE).await;
    }
    world.with(|r| r.quiet = true);
    let sealed = actors::seal(world).await;
    waiting::pass(SETTLE).await;
    oracle::judge(world, sealed).await
}
