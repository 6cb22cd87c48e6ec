//! The history of a machine: its stream's record tables and its recovery points, read from the store alone.
//!
//! Nothing of Farshore has to run. One case needs a decision: the newest epoch of the stream may be owned but not opened
//! because its writer died in between. What follows is then undecided, so after a while of waiting an epoch is opened
//! here; a writer that was only slow sees it at its next look, stops, and attaches again. That needs write access.
//!
//! Memory: about 100 bytes for each record and 24 for each piece and frame, bounded by [`HISTORY_BYTES_MAX`].

use std::sync::Arc;
use std::time::Duration;

use format::keys::Keys;
use format::manifest::{Manifest, Point, PointKind};
use format::object::{LogKind, ObjectHeader};
use format::segment::{Piece, Table};
use model::{Incarnation, LogHead, MachineName, Record, RecordBody, RecordDigest, RecordDigester, Seq, Timestamp};
use store::{EpochLog, LogEntry, LogPosition, LogRules, ManifestBase, Store, StoreError};
use tokio::time::Instant;

use super::progress::tell;
use super::{Disks, Frames, Layout, ObjectPlace, ProgressFn, RecoverError, Stage, Validity};
use crate::points::incarnation_after;
use crate::stream::{Found, StreamReader};
use crate::{ApplierError, ApplierRules, manifest, segments};

/// Most memory that the tables of one history may take.
const HISTORY_BYTES_MAX: u64 = 8 << 30;

/// How often an unopened epoch is looked at again.
const SETTLE_POLL: Duration = Duration::from_millis(200);

/// How to load a history.
#[derive(Clone)]
pub struct LoadOptions {
    /// How long to wait for an owned but unopened newest epoch before opening one here.
    pub settle: Duration,
    /// Is told how many records were read.
    pub progress: Option<ProgressFn>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { settle: Duration::from_secs(5), progress: None }
    }
}

/// A record's pieces within its segment's list.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceRun {
    first: u32,
    count: u32,
}

/// One segment's table.
pub(super) struct Rows {
    pub(super) position: LogPosition,
    pub(super) first_seq: Seq,
    /// Stream state before its first record.
    before: LogHead,
    after: LogHead,
    records: Vec<Record<PieceRun>>,
    pieces: Vec<Piece>,
    /// Objects of the references, in order.
    references: Vec<u32>,
    /// The segment itself as an object.
    object: u32,
}

impl Rows {
    fn pieces_of(&self, record: &Record<PieceRun>) -> &[Piece] {
        match &record.body {
            RecordBody::Write { data, .. } => &self.pieces[data.first as usize..][..data.count as usize],
            _ => &[],
        }
    }
}

/// Everything known of a machine's stream.
pub struct History {
    machine: MachineName,
    rows: Vec<Rows>,
    frames: Arc<Frames>,
    validity: Validity,
    points: Vec<Point>,
    head: LogHead,
    bytes: u64,
}

impl History {
    /// Walks the whole stream. Errors: `UnknownMachine`; `Damaged`, `Missing` and `Damage` name the first object that
    /// stops the walk (verify finds them all); `Undecided` when the end could not be decided for lack of write access.
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
        let promoted = read_manifest(store, &keys, machine, rules.log).await?;
        let mut history = Self {
            machine: machine.clone(),
            rows: Vec::new(),
            frames: Arc::new(Frames::new(store.clone(), keys.clone())),
            validity: Validity::with_rules(rules.applier),
            points: Vec::new(),
            head: LogHead::default(),
            bytes: 0,
        };
        let reader = StreamReader::new(log.clone(), rules.log);
        history.walk(&log, reader, &options).await?;
        history.take_points(promoted);
        Ok(history)
    }

    async fn walk(
        &mut self,
        log: &EpochLog,
        mut reader: StreamReader,
        options: &LoadOptions,
    ) -> Result<(), RecoverError> {
        let mut deadline = None;
        loop {
            match reader.next().await.map_err(|error| of_walk(&self.machine, error))? {
                Found::Entry(entry) => {
                    deadline = None;
                    if entry.position.slot > 0 {
                        self.take_segment(&log.keys, *entry)?;
                        tell(&options.progress, Stage::Loading, self.head.position.seq.0, 0);
                    }
                }
                Found::End => return Ok(()),
                Found::Unopened { epoch } => {
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + options.settle);
                    if Instant::now() < deadline {
                        tokio::time::sleep(SETTLE_POLL).await;
                        continue;
                    }
                    seal(log, epoch).await?;
                }
            }
        }
    }

    fn take_segment(&mut self, keys: &Keys, entry: LogEntry) -> Result<(), RecoverError> {
        let path = segments::path(&self.machine, LogKind::Stream, entry.position);
        let table = segments::table(keys, &entry.header, &entry.bytes)
            .map_err(|source| RecoverError::damaged(path.clone(), source))?;
        let rows = self.intern(&entry, table);
        self.bytes += rows_bytes(&rows);
        if self.bytes > HISTORY_BYTES_MAX {
            return Err(RecoverError::TooLong { machine: self.machine.clone(), bytes_max: HISTORY_BYTES_MAX });
        }
        let mut digester = RecordDigester::resume(self.head.digest);
        for record in &rows.records {
            digester.push(record);
            self.validity.push(record.seq, &record.body);
        }
        if digester.digest() != entry.header.head.digest {
            let what = "the digest over its records is not the one its header states".to_owned();
            return Err(RecoverError::Damage { path, what });
        }
        self.head = entry.header.head;
        self.rows.push(rows);
        Ok(())
    }

    fn intern(&self, entry: &LogEntry, table: Table) -> Rows {
        let header: &ObjectHeader = &entry.header;
        let position = entry.position;
        let object = self.frames.intern(ObjectPlace { id: header.id, machine: self.machine.clone(), position });
        let references = table.references.into_iter().map(|r| {
            let position = LogPosition { epoch: r.epoch, slot: r.slot };
            self.frames.intern(ObjectPlace { id: r.id, machine: r.machine, position })
        });
        let references = references.collect();
        self.frames.set_layout(object, Layout { data_start: segments::data_start(header), frames: table.frames });
        let mut pieces = Vec::new();
        let mut pack = |of: Vec<Piece>| {
            let first = u32::try_from(pieces.len()).expect("a table is bounded far below 2^32 pieces");
            let count = u32::try_from(of.len()).expect("a table is bounded far below 2^32 pieces");
            pieces.extend(of);
            PieceRun { first, count }
        };
        let records = table.records.into_iter().map(|record| Record {
            seq: record.seq,
            time: record.time,
            map_version: record.map_version,
            body: record.body.map_data(|_, of| pack(of)),
        });
        let records = records.collect();
        Rows {
            position,
            first_seq: header.first_seq,
            before: self.head,
            after: header.head,
            records,
            pieces,
            references,
            object,
        }
    }

    /// Points of the manifest, and marks and drain ends behind what the applier has processed.
    fn take_points(&mut self, manifest: Manifest) {
        let processed = manifest.segments.last().map_or(Seq::ZERO, |s| s.head.position.seq);
        let mut points = manifest.points;
        for rows in self.rows.iter().filter(|rows| rows.after.position.seq > processed) {
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
                points.push(Point { id, position, time: record.time, kind, mark: Some(mark.clone()), digest });
            }
        }
        points.retain(|point| self.validity.contains(point.position.seq));
        points.sort_by_key(|point| point.position.seq);
        points.dedup_by_key(|point| (point.position.seq, point.id));
        self.points = points;
    }

    /// The end of the stream.
    pub fn head(&self) -> LogHead {
        self.head
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

    pub(super) fn frames(&self) -> &Arc<Frames> {
        &self.frames
    }

    fn rows_with(&self, seq: Seq) -> Option<&Rows> {
        let at = self.rows.partition_point(|rows| rows.after.position.seq < seq);
        self.rows.get(at).filter(|rows| rows.first_seq <= seq && seq > Seq::ZERO)
    }

    /// The time of a record.
    pub(super) fn time_of(&self, seq: Seq) -> Option<Timestamp> {
        let rows = self.rows_with(seq)?;
        rows.records.get(usize::try_from(seq.0 - rows.first_seq.0).ok()?).map(|record| record.time)
    }

    /// Incarnation and digest after a record.
    pub(super) fn state_after(&self, seq: Seq) -> Option<(Incarnation, RecordDigest)> {
        let rows = self.rows_with(seq)?;
        let mut digester = RecordDigester::resume(rows.before.digest);
        let mut incarnation = rows.before.position.incarnation;
        for record in rows.records.iter().take_while(|record| record.seq <= seq) {
            digester.push(record);
            incarnation = incarnation_after(incarnation, record);
        }
        Some((incarnation, digester.digest()))
    }

    /// All disks as they are after record `seq`.
    pub(super) fn disks_at(&self, seq: Seq) -> Result<Disks, RecoverError> {
        let mut disks = Disks::new(false);
        for rows in self.rows.iter().take_while(|rows| rows.first_seq <= seq) {
            let place_of = |reference: Option<u32>| match reference {
                None => Some(rows.object),
                Some(i) => rows.references.get(i as usize).copied(),
            };
            for record in rows.records.iter().take_while(|record| record.seq <= seq) {
                disks.apply(record, rows.pieces_of(record), place_of).map_err(|what| RecoverError::Damage {
                    path: segments::path(&self.machine, LogKind::Stream, rows.position),
                    what,
                })?;
            }
        }
        Ok(disks)
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

async fn read_manifest(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    rules: LogRules,
) -> Result<Manifest, RecoverError> {
    manifest::read(&manifest::log(store, keys, machine), rules).await.map_err(|error| of_walk(machine, error))
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

fn rows_bytes(rows: &Rows) -> u64 {
    let records = rows.records.len() * std::mem::size_of::<Record<PieceRun>>();
    let pieces = rows.pieces.len() * std::mem::size_of::<Piece>();
    (records + pieces + std::mem::size_of::<Rows>() + rows.references.len() * 4) as u64
}
