//! A history of thirty days: real segments of scattered writes, and the points and maps that a real applier makes of them.
//!
//! Cheap to make: all records of a segment refer to one frame, for what an opening costs does not depend on contents.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use applier::recover::{History, LoadOptions};
use applier::{Applier, ApplierConfig, Clock};
use benches::Numbers;
use format::keys::Keys;
use format::object::{LogKind, ObjectId, Place};
use format::segment::{ChunkAt, Commit, FrameSealer, Piece, assemble};
use format::{Compressor, Level};
use model::{
    DiskChange, DiskName, DrainCause, Extent, Incarnation, LogHead, MachineName, Mark, MarkKind, Position, Record,
    RecordBody, RecordDigester, Seq, Timestamp,
};
use store::{EpochLog, Genesis, LogEnd, LogPosition, LogWriter, Store};

/// Records of a segment.
pub const RECORDS: u64 = 512;

/// Segments of a leaf, as the configuration has them unless it says otherwise.
pub const LEAF: usize = 8;

/// Every byte of the first block, which is written once, at the beginning.
pub const FIRST: u8 = 0xf1;

const BLOCK: u64 = 4096;
const LIFE: Duration = Duration::from_secs(30 * 86400);
const INCARNATION: Incarnation = Incarnation([1; 16]);
/// How long the applier may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Whose history.
pub fn machine() -> MachineName {
    "bench".parse().expect("a valid name")
}

/// Its only disk.
pub fn disk() -> DiskName {
    "root".parse().expect("a valid name")
}

/// Positions of points.
pub struct Ends {
    /// The first that is kept.
    pub oldest: Seq,
    /// The last.
    pub newest: Seq,
}

/// Makes the history and has it taken in.
pub async fn make(store: &Store, keys: &Arc<Keys>, size: u64, segments: u64) -> Result<Ends> {
    store::create_vault(store, keys).await?;
    let base = Arc::new(Genesis);
    let log = EpochLog { store: store.clone(), keys: keys.clone(), machine: machine(), kind: LogKind::Stream, base };
    let writer = log.attach().await?.open(Vec::new()).await?;
    let (end, step) = (writer.opening_end(), LIFE / u32::try_from(segments * RECORDS)?);
    let mut life = Life { keys, size, writer, end, digester: RecordDigester::default(), numbers: Numbers(size), step };
    for slot in 1..=segments {
        life.segment(slot).await?;
    }
    let last = life.end.head;
    take_in(store, keys, last).await?;
    let options = LoadOptions { settle: Duration::ZERO, ..LoadOptions::default() };
    let points = History::load(store, keys.clone(), &machine(), options).await?.points().await?.points;
    let (oldest, newest) = points.first().zip(points.last()).context("there are points")?;
    Ok(Ends { oldest: oldest.seq, newest: newest.seq })
}

struct Life<'a> {
    keys: &'a Arc<Keys>,
    size: u64,
    writer: LogWriter,
    end: LogEnd,
    digester: RecordDigester,
    numbers: Numbers,
    /// Time between two records.
    step: Duration,
}

impl Life<'_> {
    async fn segment(&mut self, slot: u64) -> Result<()> {
        let sealer = FrameSealer::new(self.keys, ObjectId::random());
        let plain = [FIRST; BLOCK as usize];
        let (codec, bytes) = Compressor::new().compress(Level::Normal, &plain);
        let frame = sealer.seal(0, codec, plain.len() as u32, bytes);
        let first = self.end.head.position.seq.0 + 1;
        let records: Vec<_> = (first..first + RECORDS).map(|seq| self.record(Seq(seq))).collect();
        let last = records.last().expect("some records");
        let head = LogHead {
            position: Position { incarnation: INCARNATION, seq: last.seq },
            digest: self.digester.digest(),
            map_version: 1,
            time: last.time,
        };
        let place = Place { machine: Some(machine()), log: Some(LogKind::Stream), epoch: self.writer.epoch(), slot };
        let commit = Commit { place, prev_hash: self.end.hash, head, gc_seen: self.writer.gc_seen(), shared: false };
        let sealed = assemble(self.keys, &sealer, commit, vec![frame], Vec::new(), records);
        self.writer.put(slot, sealed.parts).await?;
        self.end = LogEnd { position: LogPosition { epoch: self.writer.epoch(), slot }, hash: sealed.hash, head };
        Ok(())
    }

    /// The disk appears and is drained: its first block. Then scattered blocks, never the first.
    fn record(&mut self, seq: Seq) -> Record<Vec<Piece>> {
        let mark = Mark { kind: MarkKind::Crash, id: [1; 16], label: String::new() };
        let (name, id) = (disk(), disk().id());
        let write = |block: u64| {
            let extent = Extent::new(block * BLOCK, BLOCK).expect("blocks lie on the disk");
            let data = vec![Piece { len: BLOCK, at: ChunkAt::Here { frame: 0, offset: 0 } }];
            RecordBody::Write { disk: id, extent, data }
        };
        let body = match seq.0 {
            1 => RecordBody::Disk { disk: id, name, size: self.size, change: DiskChange::Added },
            2 => {
                RecordBody::DrainBegin { cause: DrainCause::Overflow, incarnation: INCARNATION, lost_after: Seq::ZERO }
            }
            3 => write(0),
            4 => RecordBody::DrainEnd(mark),
            _ => write(1 + self.numbers.next().expect("endless") % (self.size / BLOCK - 1)),
        };
        let time = Timestamp(seq.0 * self.step.as_micros() as u64);
        let record = Record { seq, time, map_version: 1, body };
        self.digester.push(&record);
        record
    }
}

struct At(AtomicU64);

impl Clock for At {
    fn now(&self) -> Timestamp {
        // Relaxed: it never changes.
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// Runs an applier with the default policy until it has taken everything in.
async fn take_in(store: &Store, keys: &Arc<Keys>, last: LogHead) -> Result<()> {
    let settings = ApplierConfig {
        data_dir: "unused".into(),
        crash_every: Duration::from_secs(60),
        journal_window: Duration::from_secs(86400),
        retention: "24h:all, 7d:1h, 30d:1d, 1y:1w".parse()?,
        poll: Duration::from_millis(10),
        replicas: Default::default(),
        replica_lag: Duration::MAX,
        state_digests: false,
        map_segments: LEAF,
        pack_bytes: 64 << 20,
        commit_every: Duration::from_secs(1),
        tidy_every: Duration::from_secs(60),
        gc: false,
        gc_shared: None,
    };
    let clock = Arc::new(At(AtomicU64::new(last.time.0)));
    let applier = Applier::start(settings, store.clone(), keys.clone(), vec![machine()], clock).await?;
    let begun = std::time::Instant::now();
    while applier.status().machines[0].processed_seq != last.position.seq {
        ensure!(begun.elapsed() < PATIENCE, "the applier does not take everything in: {:?}", applier.status());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    applier.stop().await;
    Ok(())
}
