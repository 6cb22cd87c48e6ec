//! One job through chunk → zero test → keyed id → dedup → coalesce → compress → seal, on one thread, hot in cache.
//!
//! ```text
//! records │ w: 200 KiB      │ w: 4 KiB │ zeros │ w: 64 KiB, seen before
//! pieces  │ A 64 │ B 64 │ C │ D        │ Zero  │ Other{segment, frame, offset}
//! frames  │ A    │ B    │ C + D        │          about 64 KiB of plaintext each, compressed and sealed together
//! ```
//! Chunks never cross a 64 KiB boundary of their disk, so machines cloned from one template cut alike. A chunk lies in
//! exactly one frame. Frame numbers are `ordinal << 16 | n`: unique in the segment because ordinals are, so nothing is
//! sealed twice under one key and nonce.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use format::keys::Keys;
use format::object::ObjectId;
use format::segment::{CHUNK_BYTES_MAX, ChunkAt, FrameSealer, Piece, SealedFrame, SegmentRef};
use format::{Compressor, Level};
use model::{Extent, MachineName, Record};

use crate::dedup::{DedupEntry, DedupIndex};
use crate::share::{EpochShare, Offer, SharedChunk};

/// Plain bytes of a full frame: the size at which zstd level 1 has its best speed and most of its ratio.
pub const FRAME_PLAIN_BYTES: usize = 64 << 10;

const _: () = assert!(FRAME_PLAIN_BYTES as u64 >= CHUNK_BYTES_MAX, "a chunk fits in a frame");

/// Jobs of one segment are numbered below this, frames of one job below [`FRAMES_PER_JOB`].
pub const JOBS_PER_SEGMENT_MAX: u32 = 1 << 16;

/// Two frames in a row hold more than 64 KiB together, so a job of the largest DATA frame has under 1100.
const FRAMES_PER_JOB: u32 = 1 << 16;

/// The segment a job belongs to.
#[derive(Clone)]
pub struct SegmentContext {
    /// Seals its frames.
    pub sealer: Arc<FrameSealer>,
    /// Whose stream.
    pub machine: MachineName,
    /// Epoch it goes to.
    pub epoch: u64,
    /// Slot it goes to.
    pub slot: u64,
    /// The stream's chunks.
    pub dedup: Arc<DedupIndex>,
    /// Chunks of other epochs.
    pub share: Option<EpochShare>,
}

/// What a job did, in bytes and chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobStats {
    /// Bytes of write records.
    pub plain_bytes: u64,
    /// Of these, zeros.
    pub zero_bytes: u64,
    /// Of these, chunks that were there already.
    pub dedup_bytes: u64,
    /// How many such chunks.
    pub dedup_hits: u64,
    /// Bytes after sealing.
    pub sealed_bytes: u64,
}

/// A job done: records that say where their bytes are, and the frames that are new.
#[derive(Debug)]
pub struct JobOutput {
    /// In order; [`ChunkAt::Other`] counts into `references` of this output.
    pub records: Vec<Record<Vec<Piece>>>,
    /// New frames.
    pub frames: Vec<SealedFrame>,
    /// Earlier segments named, each once.
    pub references: Vec<SegmentRef>,
    /// Chunks of drains in these frames.
    pub offers: Vec<Offer>,
    /// Counts.
    pub stats: JobStats,
}

/// Carries jobs; one for each thread, so that the compression context stays warm.
pub struct RecordWorker {
    keys: Arc<Keys>,
    compressor: Compressor,
}

impl RecordWorker {
    /// A worker of a vault.
    pub fn new(keys: Arc<Keys>) -> Self {
        RecordWorker { keys, compressor: Compressor::new() }
    }

    /// Carries one job. `ordinal` is unique in the segment and below [`JOBS_PER_SEGMENT_MAX`]; `draining` says whether a
    /// drain is open before the first record.
    pub fn process(
        &mut self,
        segment: &SegmentContext,
        ordinal: u32,
        records: Vec<Record>,
        draining: bool,
        level: Level,
    ) -> JobOutput {
        assert!(ordinal < JOBS_PER_SEGMENT_MAX, "a segment is closed before its ordinals are used up");
        let mut job = Job {
            keys: &self.keys,
            compressor: &mut self.compressor,
            segment,
            level,
            frame: ordinal * FRAMES_PER_JOB,
            plain: Vec::with_capacity(FRAME_PLAIN_BYTES),
            frames: Vec::new(),
            references: Vec::new(),
            reference_of: BTreeMap::new(),
            draining,
            offers: Vec::new(),
            stats: JobStats::default(),
        };
        let records = records.into_iter().map(|record| job.record(record)).collect();
        job.flush();
        let Job { frames, references, offers, stats, .. } = job;
        JobOutput { records, frames, references, offers, stats }
    }
}

struct Job<'a> {
    keys: &'a Keys,
    compressor: &'a mut Compressor,
    segment: &'a SegmentContext,
    level: Level,
    /// Number of the frame being filled.
    frame: u32,
    /// Its plaintext so far.
    plain: Vec<u8>,
    frames: Vec<SealedFrame>,
    references: Vec<SegmentRef>,
    reference_of: BTreeMap<ObjectId, u32>,
    draining: bool,
    offers: Vec<Offer>,
    stats: JobStats,
}

impl Job<'_> {
    fn record(&mut self, record: Record) -> Record<Vec<Piece>> {
        let Record { seq, time, map_version, body } = record;
        self.draining = body.drains_after(self.draining);
        Record { seq, time, map_version, body: body.map_data(|extent, data| self.pieces(extent, &data)) }
    }

    fn pieces(&mut self, extent: Extent, data: &Bytes) -> Vec<Piece> {
        debug_assert_eq!(extent.len(), data.len() as u64, "checked at ingest");
        self.stats.plain_bytes += extent.len();
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = 0;
        for chunk in extent.split_at_multiples(CHUNK_BYTES_MAX) {
            let len = usize::try_from(chunk.len()).expect("a chunk is at most 64 KiB");
            let bytes = &data[at..at + len];
            at += len;
            if !is_zero(bytes) {
                pieces.push(Piece { len: chunk.len(), at: self.chunk(bytes) });
                continue;
            }
            self.stats.zero_bytes += chunk.len();
            match pieces.last_mut() {
                Some(Piece { len, at: ChunkAt::Zero }) => *len += chunk.len(),
                _ => pieces.push(Piece { len: chunk.len(), at: ChunkAt::Zero }),
            }
        }
        pieces
    }

    /// Where a chunk is that is not all zeros: where it already was, or in a new frame.
    fn chunk(&mut self, bytes: &[u8]) -> ChunkAt {
        let id = self.keys.chunk_id(bytes);
        if let Some(known) = self.segment.dedup.find(&id, self.segment.slot) {
            self.stats.dedup_hits += 1;
            self.stats.dedup_bytes += bytes.len() as u64;
            return self.refer(known);
        }
        let share = self.segment.share.as_ref().filter(|_| self.draining);
        if let Some(known) = share.and_then(|share| share.find(&id)) {
            self.stats.dedup_hits += 1;
            self.stats.dedup_bytes += bytes.len() as u64;
            return self.refer_to_other(known);
        }
        if self.plain.len() + bytes.len() > FRAME_PLAIN_BYTES {
            self.flush();
        }
        let (frame, offset) = (self.frame, u32::try_from(self.plain.len()).expect("a frame is at most 64 KiB"));
        if bytes.len() == FRAME_PLAIN_BYTES {
            self.seal(bytes);
        } else {
            self.plain.extend_from_slice(bytes);
        }
        let entry = DedupEntry { segment: self.segment.sealer.id(), slot: self.segment.slot, frame, offset };
        self.segment.dedup.learn(id, entry);
        if let Some(share) = share {
            let offer = Offer { chunk: id, frame, offset };
            share.offered(entry.segment, entry.slot, &offer);
            self.offers.push(offer);
        }
        ChunkAt::Here { frame, offset }
    }

    fn refer(&mut self, known: DedupEntry) -> ChunkAt {
        let DedupEntry { segment: id, slot, frame, offset } = known;
        if slot == self.segment.slot {
            return ChunkAt::Here { frame, offset };
        }
        let reference = self.reference(id, |context| {
            let (machine, epoch) = (context.machine.clone(), context.epoch);
            SegmentRef { id, machine, epoch, slot }
        });
        ChunkAt::Other { reference, frame, offset }
    }

    /// A chunk of another epoch, or of ours where it was forgotten.
    fn refer_to_other(&mut self, known: SharedChunk) -> ChunkAt {
        let SharedChunk { epoch, segment: id, slot, frame, offset } = known;
        let (machine, epoch) = (epoch.machine.clone(), epoch.epoch);
        let reference = self.reference(id, |_| SegmentRef { id, machine, epoch, slot });
        ChunkAt::Other { reference, frame, offset }
    }

    /// The number of a reference in this job, given once to each segment named.
    fn reference(&mut self, id: ObjectId, named: impl FnOnce(&SegmentContext) -> SegmentRef) -> u32 {
        let next = u32::try_from(self.references.len()).expect("fewer references than chunks of one job");
        let reference = *self.reference_of.entry(id).or_insert(next);
        if reference == next {
            self.references.push(named(self.segment));
        }
        reference
    }

    fn flush(&mut self) {
        if !self.plain.is_empty() {
            let plain = std::mem::take(&mut self.plain);
            self.seal(&plain);
            self.plain = plain;
            self.plain.clear();
        }
    }

    fn seal(&mut self, plain: &[u8]) {
        let (codec, packed) = self.compressor.compress(self.level, plain);
        let plain_bytes = u32::try_from(plain.len()).expect("a frame is at most 64 KiB");
        let sealed = self.segment.sealer.seal(self.frame, codec, plain_bytes, packed);
        self.stats.sealed_bytes += sealed.bytes.len() as u64;
        self.frames.push(sealed);
        self.frame += 1;
        assert!(!self.frame.is_multiple_of(FRAMES_PER_JOB), "a job has far fewer frames than numbers");
    }
}

/// Whether every byte is zero. Looks at 128 bytes at a time, which the compiler turns into wide compares.
fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(128);
    let wide = blocks.by_ref().all(|block| block.iter().fold(0u8, |seen, byte| seen | byte) == 0);
    wide && blocks.remainder().iter().all(|byte| *byte == 0)
}
