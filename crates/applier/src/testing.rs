//! A stream made for tests: real epochs and segments in a store in memory, beside a model of what every position holds.

mod locked;
mod shared;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use format::keys::{Keys, VaultKey};
use format::object::{LogKind, ObjectId, Place};
use format::segment::{ChunkAt, Commit, FrameSealer, Piece, SealedFrame, SealedSegment, SegmentRef, assemble};
use format::{Compressor, Level};
use model::{
    DiskChange, DiskName, DrainCause, Extent, Incarnation, LogHead, MachineName, Mark, MarkKind, Position, Record,
    RecordBody, RecordDigester, Seq, Timestamp,
};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use store::{EpochLog, Genesis, LogEnd, LogPosition, LogWriter, Store};

use crate::recover::stream_log;
pub(crate) use locked::LockedStore;
pub(crate) use shared::TestShare;

/// Largest chunk the test writer makes; small, so that records have several pieces.
const CHUNK_BYTES: u64 = 4096;

/// A small random source with a fixed seed.
pub(crate) struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub(crate) type Contents = BTreeMap<DiskName, Arc<Vec<u8>>>;

/// What every position must read as.
#[derive(Clone, Default)]
pub(crate) struct Model {
    /// By seq; index 0 is before the first record.
    pub at: Vec<Contents>,
    pub times: Vec<Timestamp>,
    pub valid: Vec<bool>,
    pub digests: Vec<model::RecordDigest>,
    draining: bool,
    /// What positions hold is not kept: disks may have any size.
    pub blind: bool,
}

impl Model {
    /// What the disks hold when the record is laid over them.
    fn contents_after(&self, record: &Record<Bytes>) -> Contents {
        let mut now = self.at.last().expect("never empty").clone();
        let disk_of = |now: &Contents, id| now.keys().find(|name| name.id() == id).cloned().expect("known disk");
        match &record.body {
            RecordBody::Write { disk, extent, data } => {
                let disk = now.get_mut(&disk_of(&now, *disk)).map(Arc::make_mut).expect("known");
                disk[extent.offset() as usize..extent.end() as usize].copy_from_slice(data);
            }
            RecordBody::Zero { disk, extent } => {
                let disk = now.get_mut(&disk_of(&now, *disk)).map(Arc::make_mut).expect("known");
                disk[extent.offset() as usize..extent.end() as usize].fill(0);
            }
            RecordBody::Disk { name, change: DiskChange::Removed, .. } => {
                now.remove(name);
            }
            RecordBody::Disk { name, size, .. } => {
                Arc::make_mut(now.entry(name.clone()).or_default()).resize(*size as usize, 0);
            }
            RecordBody::DrainBegin { .. } | RecordBody::DrainEnd(_) | RecordBody::Mark(_) => {}
        }
        now
    }
}

pub(crate) fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("a valid name")
}

/// Where chunks lie: segment, frame, offset.
pub(crate) type Chunks = BTreeMap<Vec<u8>, (SegmentRef, u32, u32)>;

/// The writer of a machine's stream, and the model of it.
pub(crate) struct TestLog {
    pub store: Store,
    pub keys: Arc<Keys>,
    pub machine: MachineName,
    pub model: Model,
    writer: LogWriter,
    end: LogEnd,
    slot: u64,
    digester: RecordDigester,
    incarnation: Incarnation,
    pending: Vec<Record<Bytes>>,
    known: Chunks,
    /// What it shares with other streams.
    pub share: Option<TestShare>,
    /// Chunks of drains in the segment that was sealed last.
    offers: Chunks,
    /// Whether a drain was open before the first pending record.
    draining: bool,
    pub rng: Rng,
    /// Chunks that are sealed together; one, unless a test wants more.
    pub chunks_per_frame: usize,
    /// Of everything sealed so far: bytes of frames, and chunks in them.
    pub sealed_bytes: u64,
    pub sealed_chunks: u64,
    marks: u64,
}

/// A fresh vault in memory.
pub(crate) async fn vault() -> (Store, Arc<Keys>) {
    vault_in(Arc::new(InMemory::new())).await
}

/// A fresh vault among these objects.
pub(crate) async fn vault_in(objects: Arc<dyn ObjectStore>) -> (Store, Arc<Keys>) {
    let store = Store::from_object_store(objects);
    let keys = Arc::new(Keys::new(&VaultKey::generate()));
    store::create_vault(&store, &keys).await.expect("vault");
    (store, keys)
}

impl TestLog {
    pub async fn new(store: Store, keys: Arc<Keys>, machine: &str, seed: u64) -> Self {
        Self::sharing(store, keys, machine, seed, None).await
    }

    /// One that shares chunks of drains with other streams.
    pub async fn sharing(
        store: Store,
        keys: Arc<Keys>,
        machine: &str,
        seed: u64,
        mut share: Option<TestShare>,
    ) -> Self {
        let machine: MachineName = name(machine);
        let writer = shared::open(&stream_log(&store, &keys, &machine), share.as_mut()).await;
        let model = Model {
            at: vec![Contents::new()],
            times: vec![Timestamp(0)],
            valid: vec![false],
            digests: vec![Default::default()],
            draining: true,
            blind: false,
        };
        Self {
            store,
            keys,
            machine,
            model,
            end: writer.opening_end(),
            writer,
            slot: 1,
            digester: RecordDigester::default(),
            incarnation: Incarnation([1; 16]),
            pending: Vec::new(),
            known: Chunks::new(),
            share,
            offers: Chunks::new(),
            draining: false,
            rng: Rng(seed),
            chunks_per_frame: 1,
            sealed_bytes: 0,
            sealed_chunks: 0,
            marks: 0,
        }
    }

    /// A process server restarts: a new epoch.
    pub async fn reattach(&mut self) {
        self.reattach_through(self.stream()).await;
    }

    /// The stream, whose base is its manifest.
    pub fn stream(&self) -> EpochLog {
        stream_log(&self.store, &self.keys, &self.machine)
    }

    /// A process server, which reads no manifest, restarts.
    pub async fn reattach_blind(&mut self) {
        self.reattach_through(EpochLog { base: Arc::new(Genesis), ..self.stream() }).await;
    }

    async fn reattach_through(&mut self, log: EpochLog) {
        let (before, writer) = (self.end.head, shared::open(&log, self.share.as_mut()).await);
        assert_eq!(writer.opening_end().head, before, "everything put is accepted");
        self.writer = writer;
        (self.end, self.slot) = (self.writer.opening_end(), 1);
        // What is known of chunks dies with the epoch.
        self.known.clear();
    }

    pub fn last(&self) -> Seq {
        Seq(self.model.at.len() as u64 - 1)
    }

    pub fn last_valid(&self) -> Seq {
        Seq(self.model.valid.iter().rposition(|valid| *valid).expect("a valid position") as u64)
    }

    fn mark(&mut self, label: &str) -> Mark {
        self.marks += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.marks.to_le_bytes());
        id[8..].copy_from_slice(&self.rng.next().to_le_bytes());
        Mark { kind: MarkKind::Crash, id, label: label.to_owned() }
    }

    /// The next record, a second after the one before.
    pub fn push(&mut self, body: RecordBody<Bytes>) -> Seq {
        self.push_at(Timestamp(1_000_000 * self.last().next().0), body)
    }

    /// The next record.
    pub fn push_at(&mut self, time: Timestamp, body: RecordBody<Bytes>) -> Seq {
        let seq = self.last().next();
        let record = Record { seq, time, map_version: 1, body };
        let now = if self.model.blind { Contents::new() } else { self.model.contents_after(&record) };
        match &record.body {
            RecordBody::DrainBegin { lost_after, incarnation, .. } => {
                self.incarnation = *incarnation;
                self.model.draining = true;
                self.model.valid.iter_mut().skip(lost_after.0 as usize + 1).for_each(|valid| *valid = false);
            }
            RecordBody::DrainEnd(_) => self.model.draining = false,
            _ => {}
        }
        self.model.at.push(now);
        self.model.times.push(time);
        self.model.valid.push(!self.model.draining);
        self.model.digests.push(self.digester.push(&record));
        self.pending.push(record);
        seq
    }

    pub fn disk(&mut self, disk: &str, size: u64, change: DiskChange) -> Seq {
        let name: DiskName = name(disk);
        self.push(RecordBody::Disk { disk: name.id(), name, size, change })
    }

    pub fn write(&mut self, disk: &str, offset: u64, data: Vec<u8>) -> Seq {
        let extent = Extent::new(offset, data.len() as u64).expect("aligned");
        self.push(RecordBody::Write { disk: name::<DiskName>(disk).id(), extent, data: data.into() })
    }

    pub fn drain_begin(&mut self, lost_after: Seq) -> Seq {
        let body = self.drain_begin_body(lost_after);
        self.push(body)
    }

    pub fn drain_begin_body(&mut self, lost_after: Seq) -> RecordBody<Bytes> {
        let incarnation = Incarnation([self.rng.next() as u8; 16]);
        RecordBody::DrainBegin { cause: DrainCause::Overflow, incarnation, lost_after }
    }

    pub fn drain_end(&mut self) -> Seq {
        let body = self.drain_end_body();
        self.push(body)
    }

    pub fn drain_end_body(&mut self) -> RecordBody<Bytes> {
        RecordBody::DrainEnd(self.mark(""))
    }

    pub fn named(&mut self, label: &str) -> (Seq, model::PointId) {
        let mark = self.mark(label);
        let id = model::PointId(mark.id);
        (self.push(RecordBody::Mark(mark)), id)
    }

    /// One random write or zero on a random disk.
    pub fn random(&mut self) -> Seq {
        let disks: Vec<_> =
            self.model.at.last().expect("never empty").iter().map(|(n, c)| (n.clone(), c.len())).collect();
        let (disk, size) = disks[self.rng.below(disks.len() as u64) as usize].clone();
        let sectors = size as u64 / 512;
        let at = self.rng.below(sectors);
        let len = (1 + self.rng.below(40)).min(sectors - at);
        let extent = Extent::new(at * 512, len * 512).expect("aligned");
        if self.rng.below(5) == 0 {
            return self.push(RecordBody::Zero { disk: disk.id(), extent });
        }
        // Few different blocks, so that chunks repeat and get referred to.
        let byte = if self.rng.below(3) == 0 { 0 } else { self.rng.below(250) as u8 };
        let data = Bytes::from(vec![byte; extent.len() as usize]);
        self.push(RecordBody::Write { disk: disk.id(), extent, data })
    }

    /// Two disks, drained: the start of every test.
    pub async fn begin(store: &Store, keys: &Arc<Keys>, machine: &str, seed: u64) -> Self {
        Self::begin_sharing(store, keys, machine, seed, None).await
    }

    /// The same where chunks of drains are shared.
    pub async fn begin_sharing(
        store: &Store,
        keys: &Arc<Keys>,
        machine: &str,
        seed: u64,
        share: Option<TestShare>,
    ) -> Self {
        let mut log = Self::sharing(store.clone(), keys.clone(), machine, seed, share).await;
        log.disk("root", 64 << 10, DiskChange::Added);
        log.disk("data", 48 << 10, DiskChange::Added);
        log.drain_begin(Seq(0));
        (0..6).for_each(|_| {
            log.random();
        });
        log.drain_end();
        log.commit().await;
        log
    }

    /// Puts what is pending as one segment. Returns its path.
    pub async fn commit(&mut self) -> String {
        let here = self.next_place();
        let (segment, head) = self.seal_pending(here);
        self.writer.put(self.slot, segment.parts).await.expect("put");
        self.writer.look().await.expect("still ours");
        if let Some(share) = &self.share {
            share.stored(std::mem::take(&mut self.offers));
        }
        self.end = LogEnd { position: here, hash: segment.hash, head };
        self.slot += 1;
        crate::segments::path(&self.machine, LogKind::Stream, here)
    }

    /// Where the next segment goes.
    pub fn next_place(&self) -> LogPosition {
        LogPosition { epoch: self.writer.epoch(), slot: self.slot }
    }

    /// A segment for our next slot that only a writer which is fenced meanwhile will put: it is void, and the model
    /// knows nothing of it. Nothing may be pending.
    pub fn void_segment(&mut self) -> (String, Vec<Bytes>) {
        assert!(self.pending.is_empty(), "what is pending would be lost");
        let (model, known) = (self.model.clone(), self.known.clone());
        let draining = self.draining;
        let (digest, incarnation, marks) = (self.digester.digest(), self.incarnation, self.marks);
        self.random();
        let here = self.next_place();
        let (segment, _) = self.seal_pending(here);
        (self.model, self.known, self.digester) = (model, known, RecordDigester::resume(digest));
        (self.incarnation, self.marks, self.draining) = (incarnation, marks, draining);
        self.offers.clear();
        (crate::segments::path(&self.machine, LogKind::Stream, here), segment.parts)
    }

    /// Seals what is pending as the segment of that place.
    fn seal_pending(&mut self, here: LogPosition) -> (SealedSegment, LogHead) {
        let records = std::mem::take(&mut self.pending);
        let sealer = FrameSealer::new(&self.keys, ObjectId::random());
        let this = SegmentRef { id: sealer.id(), machine: self.machine.clone(), epoch: here.epoch, slot: here.slot };
        let (mut frames, mut references, mut compressor) =
            (Vec::<SealedFrame>::new(), Vec::<SegmentRef>::new(), Compressor::new());
        let last = records.last().expect("something pending").clone();
        let (mut open, mut in_open) = (Vec::new(), 0);
        let packed: Vec<_> = records
            .into_iter()
            .map(|record| {
                self.draining = record.body.drains_after(self.draining);
                let share = self.share.as_ref().filter(|_| self.draining);
                let body = record.body.map_data(|extent, data: Bytes| {
                    extent
                        .split_at_multiples(CHUNK_BYTES)
                        .map(|part| {
                            let start = (part.offset() - extent.offset()) as usize;
                            let chunk = &data[start..start + part.len() as usize];
                            let at = if chunk.iter().all(|b| *b == 0) {
                                ChunkAt::Zero
                            } else if let Some((segment, frame, offset)) =
                                self.known.get(chunk).cloned().or_else(|| share?.find(chunk))
                            {
                                if segment == this {
                                    ChunkAt::Here { frame, offset }
                                } else {
                                    let found = references.iter().position(|r| *r == segment);
                                    let reference = found.unwrap_or_else(|| {
                                        references.push(segment.clone());
                                        references.len() - 1
                                    });
                                    ChunkAt::Other { reference: reference as u32, frame, offset }
                                }
                            } else {
                                let number = frames.len() as u32;
                                if open.is_empty() {
                                    open.resize(512, 7u8);
                                }
                                let offset = open.len() as u32;
                                open.extend_from_slice(chunk);
                                (in_open, self.sealed_chunks) = (in_open + 1, self.sealed_chunks + 1);
                                if in_open == self.chunks_per_frame {
                                    frames.push(seal_frame(&sealer, &mut compressor, number, &open));
                                    (open, in_open) = (Vec::new(), 0);
                                }
                                let at = (this.clone(), number, offset);
                                if share.is_some() {
                                    self.offers.insert(chunk.to_vec(), at.clone());
                                }
                                self.known.insert(chunk.to_vec(), at);
                                ChunkAt::Here { frame: number, offset }
                            };
                            Piece { len: part.len(), at }
                        })
                        .collect::<Vec<_>>()
                });
                Record { seq: record.seq, time: record.time, map_version: record.map_version, body }
            })
            .collect();
        if !open.is_empty() {
            frames.push(seal_frame(&sealer, &mut compressor, frames.len() as u32, &open));
        }
        self.sealed_bytes += frames.iter().map(|frame| frame.bytes.len() as u64).sum::<u64>();
        let head = LogHead {
            position: Position { incarnation: self.incarnation, seq: last.seq },
            digest: self.digester.digest(),
            map_version: 1,
            time: last.time,
        };
        let place = Place {
            machine: Some(self.machine.clone()),
            log: Some(LogKind::Stream),
            epoch: here.epoch,
            slot: here.slot,
        };
        let (gc_seen, shared) = (self.writer.gc_seen(), !self.offers.is_empty());
        let commit = Commit { place, prev_hash: self.end.hash, head, gc_seen, shared };
        (assemble(&self.keys, &sealer, commit, frames, references, packed), head)
    }

    /// A random life: writes, marks, drains, epochs.
    pub async fn live(&mut self, segments: u32) {
        for _ in 0..segments {
            for _ in 0..1 + self.rng.below(8) {
                match self.rng.below(12) {
                    0 => {
                        self.named("m");
                    }
                    1 if !self.model.draining => {
                        let lost = self.last().0 - self.rng.below(3).min(self.last().0);
                        self.drain_begin(Seq(lost));
                    }
                    2 | 3 if self.model.draining => {
                        self.drain_end();
                    }
                    _ => {
                        self.random();
                    }
                }
            }
            self.commit().await;
            if self.rng.below(6) == 0 {
                self.reattach().await;
            }
        }
        if self.model.draining {
            self.drain_end();
            self.commit().await;
        }
    }
}

fn seal_frame(sealer: &FrameSealer, compressor: &mut Compressor, number: u32, plain: &[u8]) -> SealedFrame {
    let (codec, bytes) = compressor.compress(Level::Normal, plain);
    sealer.seal(number, codec, plain.len() as u32, bytes)
}
