//! The history of a machine: its positions and recovery points, read from the store alone.
//!
//! Nothing of Farshore has to run. Maps say what lies far back, so only the records behind the last map are walked, and
//! those of one leaf whenever a position in it is asked for. Where there is no map (no applier ever ran, or
//! [`LoadOptions::without_maps`]) the whole stream is walked: the log alone is enough.
//!
//! One case needs a decision: the newest epoch of the stream may be owned but not opened because its writer died in
//! between. What follows is then undecided, so after a while of waiting an epoch is opened here; a writer that was only
//! slow sees it at its next look, stops, and attaches again. That needs write access.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use format::keys::Keys;
use format::manifest::{Manifest, Point, PointKind};
use format::map::Node;
use format::object::LogKind;
use model::{LogHead, MachineName, PointId, RecordBody, RecordDigester, Seq, Timestamp};
use probe::Rules;
use store::{EpochLog, LogRules, ManifestBase, ReadMode, Store, StoreError};
use tokio::time::Instant;

use super::progress::tell;
use super::records::Records;
use super::{Frames, ProgressFn, RecoverError, Stage, Validity};
use crate::maps::{Maps, Stretch, stretch_of_seq, stretch_of_time};
use crate::points::incarnation_after;
use crate::stream::{Found, StreamReader};
use crate::{ApplierError, ApplierRules, manifest, segments};

/// How often an unopened epoch is looked at again.
const SETTLE_POLL: Duration = Duration::from_millis(200);

/// How to load a history.
#[derive(Clone)]
pub struct LoadOptions {
    /// How long to wait for an owned but unopened newest epoch before opening one here.
    pub settle: Duration,
    /// Walk the whole stream and trust no map: slower the longer the history.
    pub without_maps: bool,
    /// Is told how many records were read.
    pub progress: Option<ProgressFn>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { settle: Duration::from_secs(5), without_maps: false, progress: None }
    }
}

/// Everything known of a machine's stream.
pub struct History {
    machine: MachineName,
    log: EpochLog,
    /// Of everything before the tail, oldest first.
    nodes: Vec<Node>,
    maps: Arc<Maps>,
    frames: Arc<Frames>,
    /// Records behind the last node.
    tail: Arc<Records>,
    /// The records of the leaf that was asked about last.
    leaf: Mutex<Option<Arc<Records>>>,
    validity: Validity,
    points: Vec<Point>,
    pins: BTreeSet<PointId>,
    rules: Rules,
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
        store::open_vault(store, &keys).await?;
        let log = stream_log_with(store, &keys, machine, rules.log);
        if !log.exists().await? {
            return Err(unknown(store, machine).await?);
        }
        let manifest_log = manifest::log(store, &keys, machine);
        let newest = manifest_log.read_newest_with(rules.log).await?;
        let mut promoted = manifest_log.manifest_of(&newest.entries)?;
        let log = EpochLog { base: Arc::new(ManifestBase::knowing(manifest_log, &newest, rules.log)?), ..log };
        if options.without_maps {
            promoted.nodes.clear();
        }
        let nodes = std::mem::take(&mut promoted.nodes);
        let tail = Records::behind(machine.clone(), nodes.clone());
        let mut history = Self {
            machine: machine.clone(),
            validity: Validity::replay(&promoted.drains, tail.head().position.seq, rules.applier),
            maps: Arc::new(Maps::new(store.clone(), keys.clone(), machine.clone())),
            frames: Arc::new(Frames::new(store.clone(), keys)),
            log,
            nodes,
            tail: Arc::new(tail),
            leaf: Mutex::default(),
            points: Vec::new(),
            pins: BTreeSet::new(),
            rules: rules.applier,
        };
        history.walk(rules.log, &options).await?;
        history.take_points(promoted);
        Ok(history)
    }

    /// Walks what lies behind the last node.
    async fn walk(&mut self, rules: LogRules, options: &LoadOptions) -> Result<(), RecoverError> {
        let mut tail = Records::behind(self.machine.clone(), self.nodes.clone());
        let start = Stretch { before: self.nodes.clone(), segments: None }.start();
        let mut reader = StreamReader::behind(self.log.clone(), start, rules);
        let mut deadline = None;
        loop {
            match reader.next().await.map_err(|error| of_walk(&self.machine, error))? {
                Found::Entry(entry) => {
                    deadline = None;
                    if entry.position.slot > 0 {
                        let rows = tail.take(&self.log.keys, &self.frames, *entry)?;
                        rows.records.iter().for_each(|record| self.validity.push(record.seq, &record.body));
                        tell(&options.progress, Stage::Loading, tail.head().position.seq.0, 0);
                    }
                }
                Found::End => break,
                Found::Unopened { epoch } => {
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + options.settle);
                    if Instant::now() < deadline {
                        tokio::time::sleep(SETTLE_POLL).await;
                        continue;
                    }
                    seal(&self.log, epoch).await?;
                }
            }
        }
        self.tail = Arc::new(tail);
        Ok(())
    }

    /// Points of the manifest, and marks and drain ends behind what the applier has processed.
    fn take_points(&mut self, manifest: Manifest) {
        let processed = manifest.segments.last().map_or(self.tail.start(), |last| last.head).position.seq;
        let mut points = manifest.points;
        self.pins = manifest.pins;
        for rows in self.tail.rows.iter().filter(|rows| rows.after.position.seq > processed) {
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
        self.tail.head()
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

    pub(super) fn keys(&self) -> &Keys {
        &self.log.keys
    }

    /// Whether a point is held whatever the policy says.
    pub(super) fn is_pinned(&self, point: &Point) -> bool {
        self.pins.contains(&point.id)
    }

    pub(super) fn frames(&self) -> &Arc<Frames> {
        &self.frames
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    pub(super) fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// The records around `seq`: those of its leaf, or those behind the last node.
    pub(super) async fn records_of(&self, seq: Seq) -> Result<Arc<Records>, RecoverError> {
        if seq > self.tail.start().position.seq {
            return Ok(self.tail.clone());
        }
        let holds =
            |records: &Arc<Records>| (records.start().position.seq.next()..=records.head().position.seq).contains(&seq);
        if let Some(leaf) = self.leaf().filter(holds) {
            return Ok(leaf);
        }
        let stretch = stretch_of_seq(&self.maps, &self.nodes, seq).await?;
        self.load_stretch(stretch).await
    }

    /// The last record not later than `time`; 0 when all are.
    pub(super) async fn last_not_after(&self, time: Timestamp) -> Result<Seq, RecoverError> {
        if self.tail.start().time <= time {
            return Ok(self.tail.last_not_after(time));
        }
        let stretch = stretch_of_time(&self.maps, &self.nodes, time).await?;
        Ok(self.load_stretch(stretch).await?.last_not_after(time))
    }

    fn leaf(&self) -> Option<Arc<Records>> {
        self.leaf.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn load_stretch(&self, stretch: Stretch) -> Result<Arc<Records>, RecoverError> {
        let mut end = stretch.start();
        let Stretch { before, segments } = stretch;
        let Some(segments) = segments else { return Ok(self.tail.clone()) };
        let mut records = Records::behind(self.machine.clone(), before);
        let mut left = segments.as_slice();
        while !left.is_empty() {
            let read = self.log.read_promoted(end, left, ReadMode::Table).await?;
            left = &left[read.len()..];
            for entry in read {
                end = entry.end();
                records.take(&self.log.keys, &self.frames, entry)?;
            }
        }
        let records = Arc::new(records);
        *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(records.clone());
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
