//! The history of a machine: its positions and recovery points, read from the store alone.
//!
//! Nothing of Farshore has to run. The manifest names every segment and every drain of what the applier has processed, so
//! only the records behind that are walked: a drain among them may take back positions however old. Of what is processed
//! one stretch is read when a position in it is asked for, a leaf or the segments behind the last map: an old position
//! costs no more than a new one. Where there is no map (no applier ever ran, or [`LoadOptions::without_maps`]) the whole
//! stream is walked: the log alone is enough.
//!
//! One case needs a decision: the newest epoch of the stream may be owned but not opened because its writer died in
//! between. What follows is then undecided, so after a while of waiting an epoch is opened here; a writer that was only
//! slow sees it at its next look, stops, and attaches again. That needs write access.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use format::keys::Keys;
use format::manifest::{Manifest, Point, PointKind};
use format::map::Node;
use format::object::LogKind;
use format::pack::PackRef;
use model::{LogHead, MachineName, PointId, RecordBody, RecordDigester, Seq, Timestamp};
use probe::Rules;
use store::{ConsumerList, EpochLog, HoldRequests, LogRules, ManifestBase, ReadMode, Store, StoreError};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::progress::tell;
use super::records::Records;
use super::{Frames, ProgressFn, ReadCache, RecoverError, Sealed, Stage, Validity};
use crate::maps::{Maps, Stretch, stretch_of_seq, stretch_of_time, way_to};
use crate::points::incarnation_after;
use crate::stream::{Found, StreamReader};
use crate::{ApplierError, ApplierRules, manifest, segments};

/// How often an unopened epoch is looked at again.
const SETTLE_POLL: Duration = Duration::from_millis(200);

/// Times a history is loaded when an object is missing.
const LOADS_MAX: usize = 3;

/// How to load a history.
#[derive(Clone)]
pub struct LoadOptions {
    /// How long to wait for an owned but unopened newest epoch before opening one here.
    pub settle: Duration,
    /// Walk the whole stream and trust no map: slower the longer the history.
    pub without_maps: bool,
    /// Is told how many records were read.
    pub progress: Option<ProgressFn>,
    /// What is read of maps and of positions that are opened goes through it. The log itself is read from the store.
    pub cache: Option<Arc<ReadCache>>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { settle: Duration::from_secs(5), without_maps: false, progress: None, cache: None }
    }
}

/// The maps of a history: who reads through them for long asks whether the manifest has moved on.
pub(crate) struct Origin {
    log: EpochLog,
    /// Of everything before the tail, oldest first.
    nodes: Vec<Node>,
    /// State after the last record before which only points open; that of no record while every position does.
    horizon: LogHead,
    /// Maps of the points up to there.
    point_maps: BTreeMap<PointId, Node>,
    cache: Option<Arc<ReadCache>>,
    /// Packs from which they read.
    packs: Arc<[PackRef]>,
    rules: ApplierRules,
}

impl Origin {
    /// Whether the newest manifest names other maps or packs: what only these need may have been collected meanwhile.
    pub async fn is_stale(&self) -> Result<bool, RecoverError> {
        let newest = self.newest().await?;
        let horizon = newest.horizon.as_ref().map(|last| last.head).unwrap_or_default();
        let maps = newest.nodes != self.nodes || newest.point_maps != self.point_maps;
        Ok(maps || horizon != self.horizon || newest.packs[..] != self.packs[..])
    }

    /// The newest manifest.
    pub async fn newest(&self) -> Result<Manifest, RecoverError> {
        let EpochLog { store, keys, machine, .. } = &self.log;
        let log = manifest::log(store, keys, machine);
        Ok(log.manifest_of(&log.read_newest_with(self.rules.log).await?.entries)?)
    }

    /// Where one asks for a position to be held.
    pub fn hold_requests(&self) -> HoldRequests {
        let EpochLog { store, keys, machine, .. } = &self.log;
        HoldRequests::new(store.clone(), keys.clone(), machine.clone())
    }

    /// Whose history.
    pub fn machine(&self) -> &MachineName {
        &self.log.machine
    }

    /// Up to it only points opened when the history was loaded.
    pub fn horizon_seq(&self) -> Seq {
        self.horizon.position.seq
    }

    /// The cache that it is read through.
    pub fn cache(&self) -> Option<&Arc<ReadCache>> {
        self.cache.as_ref()
    }

    /// The same history, loaded again.
    pub async fn load(&self) -> Result<History, RecoverError> {
        let EpochLog { store, keys, machine, .. } = &self.log;
        let options = LoadOptions { cache: self.cache.clone(), ..LoadOptions::default() };
        History::load_with_rules(store, keys.clone(), machine, options, self.rules).await
    }
}

/// Everything known of a machine's stream.
pub struct History {
    machine: MachineName,
    origin: Arc<Origin>,
    /// The promoted segments behind the last node, and all nodes.
    unmapped: Stretch,
    maps: Arc<Maps>,
    frames: Arc<Frames>,
    /// Records behind the last promoted segment.
    walked: Records,
    /// Records behind the last node, once one of them was asked for.
    tail: OnceCell<Arc<Records>>,
    /// The records of the leaf that was asked about last.
    leaf: Mutex<Option<Arc<Records>>>,
    validity: Validity,
    points: Vec<Point>,
    pins: BTreeSet<PointId>,
}

impl History {
    /// Reads what is needed to resolve any selector. Errors: `UnknownMachine`; `Damaged`, `Missing` and `Damage` name the
    /// first object that stops the walk (verify finds them all); `Undecided` when the end could not be decided for lack
    /// of write access.
    pub async fn load(
        store: &Store,
        keys: Arc<Keys>,
        machine: &MachineName,
        options: LoadOptions,
    ) -> Result<Self, RecoverError> {
        Self::load_with_rules(store, keys, machine, options, ApplierRules::ALL).await
    }

    /// As [`History::load`]; tests take a rule away to prove that their oracle notices.
    #[doc(hidden)]
    pub async fn load_with_rules(
        store: &Store,
        keys: Arc<Keys>,
        machine: &MachineName,
        options: LoadOptions,
        rules: ApplierRules,
    ) -> Result<Self, RecoverError> {
        for _ in 1..LOADS_MAX {
            match Self::load_once(store, keys.clone(), machine, options.clone(), rules).await {
                // Collected while it was read: a newer manifest leads past it.
                Err(error) if error.is_missing() => {}
                loaded => return loaded,
            }
        }
        Self::load_once(store, keys, machine, options, rules).await
    }

    async fn load_once(
        store: &Store,
        keys: Arc<Keys>,
        machine: &MachineName,
        options: LoadOptions,
        rules: ApplierRules,
    ) -> Result<Self, RecoverError> {
        store::open_vault(store, &keys).await?;
        let log = stream_log_with(store, &keys, machine, rules.log);
        if !log.exists().await? {
            return Err(unknown(store, machine).await?);
        }
        let manifest_log = manifest::log(store, &keys, machine);
        let newest = manifest_log.read_newest_with(rules.log).await?;
        let mut promoted = manifest_log.manifest_of(&newest.entries)?;
        if newest.entries.is_empty() {
            refuse_trimmed(store, &keys, machine).await?;
        }
        let log = EpochLog { base: Arc::new(ManifestBase::knowing(manifest_log, &newest, rules.log)?), ..log };
        let horizon = promoted.horizon.as_ref().map(|last| last.head).unwrap_or_default();
        if options.without_maps && horizon.position.seq > Seq::ZERO {
            return Err(RecoverError::LogCollected { machine: machine.clone(), horizon: horizon.position.seq });
        }
        let (before, segments) = (std::mem::take(&mut promoted.nodes), std::mem::take(&mut promoted.segments));
        let nodes = before.clone();
        let packs: Arc<[PackRef]> = std::mem::take(&mut promoted.packs).into();
        let known = Stretch { before, segments };
        let processed = known.end().head.position.seq;
        let unmapped = if options.without_maps { Stretch::default() } else { known };
        let walked = Records::from(machine.clone(), unmapped.end().head);
        let sealed = Sealed::new(store.clone(), options.cache.clone());
        let mut history = Self {
            machine: machine.clone(),
            validity: Validity::replay(&promoted.drains, walked.start().position.seq, rules.applier),
            maps: Arc::new(Maps::through(sealed.clone(), keys.clone(), machine.clone())),
            frames: Arc::new(Frames::through(sealed, keys).with_packs(machine.clone(), packs.clone())),
            origin: Arc::new(Origin {
                log,
                nodes,
                horizon,
                point_maps: std::mem::take(&mut promoted.point_maps),
                cache: options.cache.clone(),
                packs,
                rules,
            }),
            unmapped,
            walked,
            tail: OnceCell::new(),
            leaf: Mutex::default(),
            points: Vec::new(),
            pins: BTreeSet::new(),
        };
        history.walk(rules.log, &options).await?;
        history.take_points(promoted, processed);
        Ok(history)
    }

    /// Walks what lies behind the last promoted segment.
    async fn walk(&mut self, rules: LogRules, options: &LoadOptions) -> Result<(), RecoverError> {
        let mut reader = StreamReader::behind(self.origin.log.clone(), self.unmapped.end(), rules);
        let mut deadline = None;
        loop {
            match reader.next().await.map_err(|error| of_walk(&self.machine, error))? {
                Found::Entry(entry) => {
                    deadline = None;
                    if entry.position.slot > 0 {
                        let rows = self.walked.take(&self.origin.log.keys, &self.frames, *entry)?;
                        rows.records.iter().for_each(|record| self.validity.push(record.seq, &record.body));
                        tell(&options.progress, Stage::Loading, self.walked.head().position.seq.0, 0);
                    }
                }
                Found::End => break,
                Found::Unopened { epoch } => {
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + options.settle);
                    if Instant::now() < deadline {
                        tokio::time::sleep(SETTLE_POLL).await;
                        continue;
                    }
                    seal(&self.origin.log, epoch).await?;
                }
            }
        }
        Ok(())
    }

    /// Points of the manifest, and marks and drain ends behind what the applier has processed.
    fn take_points(&mut self, manifest: Manifest, processed: Seq) {
        let mut points = manifest.points;
        self.pins = manifest.pins;
        for rows in self.walked.rows.iter().filter(|rows| rows.after.position.seq > processed) {
            let mut digester = RecordDigester::resume(rows.before.digest);
            let mut incarnation = rows.before.position.incarnation;
            for record in &rows.records {
                let digest = digester.push(record);
                incarnation = incarnation_after(incarnation, record);
                let (kind, mark) = match &record.body {
                    RecordBody::Mark(mark) => (PointKind::Marked, mark),
                    RecordBody::DrainEnd(mark) => (PointKind::DrainEnd, mark),
                    _ => continue,
                };
                let position = model::Position { incarnation, seq: record.seq };
                let id = model::PointId(mark.id);
                points.push(Point {
                    id,
                    position,
                    time: record.time,
                    kind,
                    mark: Some(mark.clone()),
                    digest,
                    made: None,
                    states: Vec::new(),
                });
            }
        }
        points.retain(|point| self.validity.contains(point.position.seq));
        points.sort_by_key(|point| point.position.seq);
        points.dedup_by_key(|point| (point.position.seq, point.id));
        self.points = points;
    }

    /// The end of the stream.
    pub fn head(&self) -> LogHead {
        self.walked.head()
    }

    /// Whose history it is.
    pub fn machine(&self) -> &MachineName {
        &self.machine
    }

    /// Whether the stream ends inside a drain.
    pub fn draining(&self) -> bool {
        self.validity.draining()
    }

    pub(crate) fn validity(&self) -> &Validity {
        &self.validity
    }

    pub(crate) fn recorded_points(&self) -> &[Point] {
        &self.points
    }

    /// Whether the newest manifest names other maps or packs than this history does: what only older ones need may have been collected
    /// meanwhile, and whatever is retained opens when the history is loaded again.
    pub async fn is_stale(&self) -> Result<bool, RecoverError> {
        self.origin.is_stale().await
    }

    pub(crate) fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Every position behind this one opens; up to it only points do. 0 while all do. With it its time.
    pub fn horizon(&self) -> (Seq, Timestamp) {
        (self.origin.horizon.position.seq, self.origin.horizon.time)
    }

    pub(crate) fn horizon_seq(&self) -> Seq {
        self.origin.horizon.position.seq
    }

    /// The last point up to the horizon that is not after `seq`.
    pub(super) fn kept_at_or_before(&self, seq: Seq) -> Option<&Point> {
        let kept = |point: &&Point| point.position.seq <= seq.min(self.horizon_seq());
        self.points.iter().rev().find(kept)
    }

    /// The map of a point up to the horizon, and the nodes before its leaf.
    pub(super) async fn maps_of_point(&self, point: &Point) -> Result<Vec<Node>, RecoverError> {
        let Some(own) = self.origin.point_maps.get(&point.id) else {
            let what = format!("it has no map of point {}, which lies before its horizon", point.id);
            return Err(RecoverError::Damage { path: segments::log_prefix(&self.machine, LogKind::Manifest), what });
        };
        let mut nodes = way_to(&self.maps, &self.origin.nodes, point.position.seq).await?.before;
        nodes.push(own.clone());
        Ok(nodes)
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.origin.log.keys
    }

    /// Whether a point is held whatever the policy says.
    pub(super) fn is_pinned(&self, point: &Point) -> bool {
        self.pins.contains(&point.id)
    }

    pub(super) fn frames(&self) -> &Arc<Frames> {
        &self.frames
    }

    pub(super) fn rules(&self) -> Rules {
        self.origin.rules.applier
    }

    pub(super) fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// The records around `seq`: those of its leaf, or those behind the last node.
    pub(super) async fn records_of(&self, seq: Seq) -> Result<Arc<Records>, RecoverError> {
        if seq > self.unmapped.start().head.position.seq {
            return self.tail().await;
        }
        let holds =
            |records: &Arc<Records>| (records.start().position.seq.next()..=records.head().position.seq).contains(&seq);
        if let Some(leaf) = self.leaf().filter(holds) {
            return Ok(leaf);
        }
        self.load_leaf(stretch_of_seq(&self.maps, &self.unmapped.before, seq).await?).await
    }

    /// The last record not later than `time`; 0 when all are.
    pub(super) async fn last_not_after(&self, time: Timestamp) -> Result<Seq, RecoverError> {
        if self.walked.start().time <= time {
            return Ok(self.walked.last_not_after(time));
        }
        if self.unmapped.start().head.time <= time {
            return Ok(self.tail().await?.last_not_after(time));
        }
        let stretch = stretch_of_time(&self.maps, &self.unmapped.before, time).await?;
        Ok(self.load_leaf(stretch).await?.last_not_after(time))
    }

    /// The records behind the last node.
    async fn tail(&self) -> Result<Arc<Records>, RecoverError> {
        let load = async || Ok(Arc::new(self.records(&self.unmapped).await?.and(&self.walked)?));
        self.tail.get_or_try_init(load).await.cloned()
    }

    fn leaf(&self) -> Option<Arc<Records>> {
        self.leaf.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn load_leaf(&self, leaf: Stretch) -> Result<Arc<Records>, RecoverError> {
        let records = Arc::new(self.records(&leaf).await?);
        *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(records.clone());
        Ok(records)
    }

    /// The records of a stretch's promoted segments.
    async fn records(&self, stretch: &Stretch) -> Result<Records, RecoverError> {
        let (mut end, mut left) = (stretch.start(), stretch.segments.as_slice());
        let mut records = Records::behind(self.machine.clone(), stretch.before.clone());
        while !left.is_empty() {
            let read = self.origin.log.read_promoted(end, left, ReadMode::Table).await?;
            left = &left[read.len()..];
            for entry in read {
                end = entry.end();
                records.take(&self.origin.log.keys, &self.frames, entry)?;
            }
        }
        Ok(records)
    }
}

/// The stream of a machine, whose holes are judged by its manifest.
pub(crate) fn stream_log(store: &Store, keys: &Arc<Keys>, machine: &MachineName) -> EpochLog {
    stream_log_with(store, keys, machine, LogRules::ALL)
}

/// The same, its manifest read under these rules of the epoch log.
pub(crate) fn stream_log_with(store: &Store, keys: &Arc<Keys>, machine: &MachineName, rules: LogRules) -> EpochLog {
    EpochLog {
        store: store.clone(),
        keys: keys.clone(),
        machine: machine.clone(),
        kind: LogKind::Stream,
        base: Arc::new(ManifestBase::with_rules(manifest::log(store, keys, machine), rules)),
    }
}

/// What stopped the reading of a machine's logs.
fn of_walk(machine: &MachineName, error: ApplierError) -> RecoverError {
    match error {
        ApplierError::Store(error) => RecoverError::Store(error),
        ApplierError::Recover(error) => error,
        other => {
            RecoverError::Damage { path: segments::log_prefix(machine, LogKind::Manifest), what: other.to_string() }
        }
    }
}

pub(crate) async fn unknown(store: &Store, machine: &MachineName) -> Result<RecoverError, StoreError> {
    let names: Vec<_> = store::list_machines(store).await?.into_iter().map(String::from).collect();
    let known = if names.is_empty() { "no machine at all".to_owned() } else { names.join(", ") };
    Ok(RecoverError::UnknownMachine { machine: machine.clone(), known })
}

/// Where no applier has its history, the stream must be whole.
pub(super) async fn refuse_trimmed(store: &Store, keys: &Arc<Keys>, machine: &MachineName) -> Result<(), RecoverError> {
    let state = ConsumerList::new(store, keys.clone(), machine.clone()).read().await?;
    let vaults: Vec<_> = state.consumers.values().map(|consumer| consumer.vault.as_str()).collect();
    match state.trimmed {
        0 => Ok(()),
        epoch => Err(RecoverError::Trimmed { machine: machine.clone(), epoch, vaults: vaults.join(", ") }),
    }
}

/// Decides where the log ends by opening an epoch of our own.
async fn seal(log: &EpochLog, epoch: u64) -> Result<(), RecoverError> {
    let undecided = |source| RecoverError::Undecided { epoch, source };
    let attached = log.attach().await.map_err(undecided)?;
    tracing::warn!(machine = %log.machine, epoch, ours = attached.epoch(), "newest epoch was never opened; sealing the stream");
    match attached.open(Vec::new()).await {
        // Somebody else decided: that is as good.
        Ok(_) | Err(StoreError::Fenced { .. }) => Ok(()),
        Err(source) => Err(undecided(source)),
    }
}
