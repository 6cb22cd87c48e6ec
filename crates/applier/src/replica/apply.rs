//! Moving a replica from one valid position to a later one.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use format::keys::Keys;
use format::manifest::Promoted;
use format::map::tag;
use format::object::ObjectId;
use format::segment::Piece;
use model::{DiskChange, MachineName, Position, Record, RecordBody, RecordDigest, RecordDigester, Seq, Timestamp};
use store::{LogPosition, Store};
use tokio_util::sync::CancellationToken;

use super::ReplicaConfig;
use super::disks::ReplicaDisks;
use super::read::{ReadSegment, SegmentReader};
use super::state::{self, Intent, ReplicaState};
use crate::ApplierError;
use crate::applier::SegmentRun;
use crate::manifest::promoted_path;
use crate::points::incarnation_after;
use crate::recover::{Disks, Frames, Layout, ObjectPlace, RecoverError, Validity};
use crate::segments;
use crate::stages::{Stage, Stages};

/// Segments applied between two durable positions, unless a drain is longer.
const STEP_SEGMENTS_MAX: usize = 64;

/// The replica of one machine.
pub(crate) struct Replica {
    pub(super) store: Store,
    pub(super) keys: Arc<Keys>,
    directory: PathBuf,
    config: ReplicaConfig,
    pub(super) state: ReplicaState,
    /// None after a failure: the files may be anywhere between `at` and the intent until they are opened again.
    disks: Option<ReplicaDisks>,
    pub(super) stages: Arc<Stages>,
    /// Held for as long as the replica may be written.
    _lock: File,
}

/// What is true after the last record applied.
struct Cursor {
    position: Position,
    time: Timestamp,
    digester: RecordDigester,
    /// Which disks there are, and what this segment writes to them.
    batch: Disks,
}

impl Replica {
    /// Takes the replica of a machine under `data_dir`, or begins one. Errors: `ReplicaInUse`, `File`.
    pub fn open(
        store: Store,
        keys: Arc<Keys>,
        data_dir: &Path,
        machine: &MachineName,
        config: ReplicaConfig,
    ) -> Result<Self, ApplierError> {
        let directory = state::directory(data_dir, machine);
        let file = |operation: &'static str| {
            let path = directory.clone();
            move |source| ApplierError::File { operation, path, source }
        };
        std::fs::create_dir_all(&directory).map_err(file("create"))?;
        let lock = lock(&directory)?;
        let state = state::load(&directory, machine).map_err(file("read state in"))?;
        let state = state.unwrap_or_else(|| ReplicaState::empty(machine.clone()));
        Ok(Self { store, keys, directory, config, state, disks: None, stages: Arc::default(), _lock: lock })
    }

    /// The same, and these stages count what it does.
    pub fn with_stages(self, stages: Arc<Stages>) -> Self {
        Self { stages, ..self }
    }

    /// Where it stands.
    pub fn state(&self) -> &ReplicaState {
        &self.state
    }

    /// Where to go next: a valid position within what is committed, at most a step away unless a drain is longer.
    pub fn next_target(&self, validity: &Validity, committed: &SegmentRun) -> Option<Seq> {
        let committed = &committed.segments;
        let end = committed.last()?.head.position.seq;
        let at = self.state.position.seq;
        let least = self.state.intent.map_or(Seq::ZERO, |intent| intent.to).max(at.next());
        let first = committed.partition_point(|segment| segment.head.position.seq <= at);
        let step = committed.get(first + STEP_SEGMENTS_MAX - 1).map_or(end, |segment| segment.head.position.seq);
        let near = validity.floor(step).filter(|near| *near >= least);
        near.or_else(|| validity.ceil(least)).filter(|target| *target <= end)
    }

    /// Moves to `target`, which [`Replica::next_target`] gave for these segments. After an error the same is to be tried
    /// again. Errors: `Stopped`, `File`, `ReplicaForeign`, `Diverged`, and whatever stops the reading.
    pub async fn advance(
        &mut self,
        committed: &SegmentRun,
        target: Seq,
        stop: &CancellationToken,
    ) -> Result<(), ApplierError> {
        let mut disks = self.begin(committed, target, false, stop).await?;
        let mut cursor = self.cursor();
        let committed = &committed.segments;
        let first = committed.partition_point(|segment| segment.head.position.seq <= self.state.position.seq);
        let behind = committed.partition_point(|segment| segment.head.position.seq < target);
        let segments = committed.get(first..committed.len().min(behind + 1)).unwrap_or_default();
        let mut read = self.reader().in_turn(segments);
        for segment in segments {
            if stop.is_cancelled() {
                return Err(ApplierError::Stopped);
            }
            let object = read.next().await?;
            self.apply_segment((segment, object), target, &mut cursor, &mut disks).await?;
        }
        self.conclude(disks, cursor.position, cursor.time, cursor.digester.digest()).await
    }

    /// Opens the disks, unless they are open. One that is missing or is to be kept elsewhere means that the replica begins
    /// at nothing again.
    pub async fn ready(&mut self, stop: &CancellationToken) -> Result<(), ApplierError> {
        if self.disks.is_none() {
            self.disks = Some(self.reopen(stop).await?);
        }
        Ok(())
    }

    /// Says durably where the disks go, and gives them durably where they go. `history` holds the segment of the present position.
    pub(super) async fn begin(
        &mut self,
        history: &SegmentRun,
        to: Seq,
        rebuild: bool,
        stop: &CancellationToken,
    ) -> Result<ReplicaDisks, ApplierError> {
        self.ready(stop).await?;
        let disks = self.disks.take().expect("just made ready");
        self.check_history(history).await?;
        // Where a rebuild has died the disks stand nowhere, whichever way they are brought on.
        let rebuild = rebuild || self.state.intent.is_some_and(|intent| intent.rebuild);
        self.state.intent = Some(Intent { to, rebuild });
        self.save().await?;
        probe::failpoint!("applier-replica-intent-durable");
        Ok(disks)
    }

    /// Makes what was written durable, and then that the disks stand there.
    pub(super) async fn conclude(
        &mut self,
        disks: ReplicaDisks,
        position: Position,
        time: Timestamp,
        digest: RecordDigest,
    ) -> Result<(), ApplierError> {
        let flushing = self.stages.at(Stage::Flush);
        disks.flush().await?;
        drop(flushing);
        probe::failpoint!("applier-replica-disks-flushed");
        let machine = self.state.machine.clone();
        self.state = ReplicaState { machine, position, time, digest, disks: disks.list(), intent: None };
        self.save().await?;
        probe::failpoint!("applier-replica-position-durable");
        self.disks = Some(disks);
        Ok(())
    }

    /// Forgets where it stands: the disks begin blank.
    pub fn begin_anew(&mut self) -> Result<(), ApplierError> {
        self.disks = None;
        state::forget(&self.directory).map_err(self.failed("forget state in"))?;
        ReplicaDisks::clear(&self.directory)?;
        self.state = ReplicaState::empty(self.state.machine.clone());
        Ok(())
    }

    fn cursor(&self) -> Cursor {
        let mut batch = Disks::new(true);
        for disk in &self.state.disks {
            batch.insert(disk.id, disk.name.clone(), disk.size);
        }
        Cursor {
            position: self.state.position,
            time: self.state.time,
            digester: RecordDigester::resume(self.state.digest),
            batch,
        }
    }

    async fn reopen(&mut self, stop: &CancellationToken) -> Result<ReplicaDisks, ApplierError> {
        if self.state.position.seq > Seq::ZERO {
            let none = ReplicaDisks::none(&self.directory, &self.config, stop);
            if let Some(disks) = none.open(&self.state.disks).await? {
                return Ok(disks);
            }
            tracing::warn!(path = %self.directory.display(), "building the replica anew");
        }
        self.begin_anew()?;
        Ok(ReplicaDisks::none(&self.directory, &self.config, stop))
    }

    /// The replica's position must be part of the log that it is moved along.
    async fn check_history(&self, committed: &SegmentRun) -> Result<(), ApplierError> {
        let SegmentRun { start, segments: committed } = committed;
        let at = self.state.position.seq;
        let foreign = || ApplierError::ReplicaForeign { path: self.directory.clone(), seq: at };
        if at == Seq::ZERO {
            return Ok(());
        }
        if start.position.seq == at {
            return if start.digest == self.state.digest { Ok(()) } else { Err(foreign()) };
        }
        let holder = committed.partition_point(|segment| segment.head.position.seq < at);
        let segment = committed.get(holder).ok_or_else(foreign)?;
        if segment.head.position.seq == at {
            return if segment.head.digest == self.state.digest { Ok(()) } else { Err(foreign()) };
        }
        let (_, (_, table)) = self.reader().read(segment).await?;
        let before = holder.checked_sub(1).map_or(start, |i| &committed[i].head).digest;
        let mut digester = RecordDigester::resume(before);
        for record in table.records.iter().take_while(|record| record.seq <= at) {
            digester.push(record);
        }
        if digester.digest() == self.state.digest { Ok(()) } else { Err(foreign()) }
    }

    fn reader(&self) -> SegmentReader {
        let (store, keys, stages) = (self.store.clone(), self.keys.clone(), self.stages.clone());
        SegmentReader::new(store, keys, self.state.machine.clone(), stages)
    }

    async fn apply_segment(
        &self,
        (segment, (object, (header, table))): (&Promoted, ReadSegment),
        target: Seq,
        cursor: &mut Cursor,
        disks: &mut ReplicaDisks,
    ) -> Result<(), ApplierError> {
        if header.first_seq > cursor.position.seq.next() {
            return Err(ApplierError::Diverged { path: promoted_path(&self.state.machine, segment) });
        }
        // Frames are cached for one segment only: the next one brings its own.
        let frames = Frames::new(self.store.clone(), self.keys.clone()).with_stages(self.stages.clone());
        let intern = |id: ObjectId, machine, epoch, slot| {
            frames.intern(ObjectPlace { machine, position: LogPosition { epoch, slot }, tag: tag(&id) })
        };
        let this = intern(header.id, self.state.machine.clone(), segment.epoch, segment.slot);
        let named = table.references.into_iter().map(|r| intern(r.id, r.machine, r.epoch, r.slot));
        let named: Vec<_> = named.collect();
        frames.set_layout(
            this,
            Layout { id: header.id, data_start: segments::data_start(&header), frames: table.frames },
        );
        frames.set_whole(this, object);
        let place_of = |reference: Option<u32>| match reference {
            None => Some(this),
            Some(i) => named.get(i as usize).copied(),
        };
        let at = cursor.position.seq;
        let mut laying = Some(self.stages.at(Stage::Open));
        for record in table.records.iter().skip_while(|r| r.seq <= at).take_while(|r| r.seq <= target) {
            if let RecordBody::Disk { disk, name, size, change } = &record.body {
                // Writes before and after it go to another disk, or to one of another size.
                drop(laying.take());
                write_batch(cursor, disks, &frames).await?;
                let making = self.stages.at(Stage::Write);
                match change {
                    DiskChange::Removed => disks.remove(*disk)?,
                    DiskChange::Added | DiskChange::Resized => disks.announce(*disk, name.clone(), *size).await?,
                }
                drop(making);
                laying = Some(self.stages.at(Stage::Open));
            }
            cursor.take(record, place_of).map_err(|what| {
                ApplierError::Recover(RecoverError::Damage { path: promoted_path(&self.state.machine, segment), what })
            })?;
        }
        drop(laying);
        write_batch(cursor, disks, &frames).await
    }

    async fn save(&self) -> Result<(), ApplierError> {
        let _flushing = self.stages.at(Stage::Flush);
        let (directory, state) = (self.directory.clone(), self.state.clone());
        let saved = tokio::task::spawn_blocking(move || state::save(&directory, &state)).await;
        saved.expect("saving does not panic and is not cancelled").map_err(self.failed("save state in"))
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(std::io::Error) -> ApplierError + use<> {
        let path = self.directory.clone();
        move |source| ApplierError::File { operation, path, source }
    }
}

impl Cursor {
    fn take(
        &mut self,
        record: &Record<Vec<Piece>>,
        place_of: impl Fn(Option<u32>) -> Option<u32>,
    ) -> Result<(), String> {
        let pieces = match &record.body {
            RecordBody::Write { data, .. } => data.as_slice(),
            _ => &[],
        };
        self.batch.apply(record, pieces, place_of)?;
        let incarnation = incarnation_after(self.position.incarnation, record);
        self.position = Position { incarnation, seq: record.seq };
        self.time = record.time;
        self.digester.push(record);
        Ok(())
    }
}

async fn write_batch(cursor: &mut Cursor, disks: &ReplicaDisks, frames: &Frames) -> Result<(), ApplierError> {
    for (id, map) in cursor.batch.take_maps() {
        disks.write_runs(frames, id, map.runs().collect()).await?;
    }
    Ok(())
}

fn lock(directory: &Path) -> Result<File, ApplierError> {
    let path = directory.join("lock");
    let file = |operation: &'static str, source| ApplierError::File { operation, path: path.clone(), source };
    let lock = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
    let lock = lock.map_err(|e| file("open", e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ApplierError::ReplicaInUse { path }),
        Err(TryLockError::Error(source)) => Err(file("lock", source)),
    }
}
