//! The order of segments: which job goes where, which segment is complete, put, and acknowledged next. Pure.
//!
//! ```text
//! slot   5          6           7            8          9
//!        Put        Uploading   Ready        Assembling Filling (open or closed)
//!        ▲ acknowledged next, after a look              ▲ takes jobs
//! ```
//! What must hold: a segment is put together only when it is closed and every job of it is back; one after the other,
//! because each carries the hash of the one before; acknowledged in order. A slot once given to a job is never given
//! up: either it is filled with exactly that job's bytes or the epoch ends and all of this is dropped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use format::object::{LogKind, ObjectHash, ObjectId, Place, SEES_ALL};
use format::segment::{Commit, FrameSealer, SealedSegment};
use model::{LogHead, MachineName};
use probe::{Rule, Rules};
use tokio::time::Instant;

use crate::pipeline::{JOBS_PER_SEGMENT_MAX, JobOutput};
use crate::session::Batch;
use crate::share::Offer;

/// Records of one segment: keeps its table to a few MiB however small the records are.
const RECORDS_PER_SEGMENT_MAX: usize = 1 << 16;

/// When a segment is closed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentLimits {
    /// Sealed bytes.
    pub sealed_bytes: u64,
    /// Cost of its records: below the credit window, which comes back only when segments are stored.
    pub cost_bytes: u64,
    /// Since its first record arrived.
    pub age: Duration,
}

enum Stage {
    Filling,
    Assembling,
    Ready(Vec<Bytes>),
    Uploading,
    Put,
}

struct Segment {
    slot: u64,
    sealer: Arc<FrameSealer>,
    closed: bool,
    stage: Stage,
    outputs: Vec<Option<JobOutput>>,
    missing: usize,
    records: usize,
    /// Credit its records take.
    cost: u64,
    /// Of these, records whose job is not back.
    cost_at_work: u64,
    job_costs: Vec<u64>,
    sealed: u64,
    object_bytes: u64,
    /// Chunks that are offered once it is acknowledged.
    offers: Vec<Offer>,
    arrived: Instant,
    head: LogHead,
    /// Its slot stays empty. Only without the rule that a slot given is filled.
    abandoned: bool,
}

/// A batch's place.
pub(crate) struct Assigned {
    /// The segment's slot.
    pub slot: u64,
    /// Number in the segment.
    pub ordinal: u32,
    /// Seals the segment's frames.
    pub sealer: Arc<FrameSealer>,
}

/// A segment all of whose jobs are back.
pub(crate) struct Complete {
    /// Its slot.
    pub slot: u64,
    /// Its sealer.
    pub sealer: Arc<FrameSealer>,
    /// Its commit header.
    pub commit: Box<Commit>,
    /// Its jobs in order.
    pub outputs: Vec<JobOutput>,
}

/// A segment that is stored for good.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    /// Its id.
    pub id: ObjectId,
    /// Chunks in it that others may refer to.
    pub offers: Vec<Offer>,
    /// Its slot.
    pub slot: u64,
    /// The stream after it.
    pub head: LogHead,
    /// Credit that comes back.
    pub cost: u64,
    /// Bytes of the object.
    pub object_bytes: u64,
    /// When its first record arrived.
    pub arrived: Instant,
}

/// Segments of one epoch that are not acknowledged yet, oldest first.
pub(crate) struct Segments {
    machine: MachineName,
    epoch: u64,
    limits: SegmentLimits,
    queue: VecDeque<Segment>,
    next_slot: u64,
    /// The condemn list that the opening says.
    gc_seen: u64,
    prev_hash: ObjectHash,
    /// Sealed bytes for each byte of cost in the last segment that was closed: what jobs at work will add.
    ratio: f64,
    /// The safety rules in force.
    rules: Rules,
}

impl Segments {
    /// Behind an opening whose hash is given.
    pub(crate) fn new(machine: MachineName, epoch: u64, opening: ObjectHash, limits: SegmentLimits) -> Self {
        let (queue, rules) = (VecDeque::new(), Rules::ALL);
        let gc_seen = SEES_ALL;
        Segments { machine, epoch, limits, queue, next_slot: 1, gc_seen, prev_hash: opening, ratio: 1.0, rules }
    }

    /// The same where the opening says this condemn list.
    pub(crate) fn seeing(self, gc_seen: u64) -> Self {
        Segments { gc_seen, ..self }
    }

    /// The same under these safety rules.
    pub(crate) fn with_rules(self, rules: Rules) -> Self {
        Segments { rules, ..self }
    }

    /// From now on no segment takes more cost than this before it is closed.
    pub(crate) fn limit_cost(&mut self, cost_bytes: u64) {
        self.limits.cost_bytes = cost_bytes;
    }

    /// Segments not acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether everything given a slot is acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// When the oldest record that is not acknowledged arrived.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.queue.front().map(|segment| segment.arrived)
    }

    fn open(&mut self) -> Option<&mut Segment> {
        self.queue.back_mut().filter(|segment| !segment.closed)
    }

    /// When the open segment must be closed for its age.
    pub(crate) fn close_at(&self) -> Option<Instant> {
        self.queue.back().filter(|segment| !segment.closed).map(|segment| segment.arrived + self.limits.age)
    }

    /// Closes the open segment if there is one.
    pub(crate) fn close(&mut self) {
        let mut ratio = self.ratio;
        if let Some(segment) = self.open() {
            segment.closed = true;
            let done = segment.cost - segment.cost_at_work;
            if done > 0 {
                ratio = (segment.sealed as f64 / done as f64).clamp(1.0 / 64.0, 1.0);
            }
        }
        self.ratio = ratio;
    }

    /// Gives a batch its slot and number, in the open segment or a new one.
    pub(crate) fn assign(&mut self, batch: &Batch, fresh: impl FnOnce() -> FrameSealer) -> Assigned {
        if self.open().is_none() {
            let slot = self.next_slot;
            self.next_slot += 1;
            self.queue.push_back(Segment {
                slot,
                sealer: Arc::new(fresh()),
                closed: false,
                stage: Stage::Filling,
                outputs: Vec::new(),
                missing: 0,
                records: 0,
                cost: 0,
                cost_at_work: 0,
                job_costs: Vec::new(),
                sealed: 0,
                object_bytes: 0,
                offers: Vec::new(),
                arrived: batch.arrived,
                head: batch.head,
                abandoned: false,
            });
        }
        let segment = self.open().expect("opened just above");
        let ordinal = u32::try_from(segment.outputs.len()).expect("closed at JOBS_PER_SEGMENT_MAX");
        segment.outputs.push(None);
        segment.job_costs.push(batch.cost);
        segment.missing += 1;
        segment.records += batch.records.len();
        segment.cost += batch.cost;
        segment.cost_at_work += batch.cost;
        segment.head = batch.head;
        let assigned = Assigned { slot: segment.slot, ordinal, sealer: segment.sealer.clone() };
        self.close_if_full();
        assigned
    }

    fn close_if_full(&mut self) {
        let (limits, ratio) = (self.limits, self.ratio);
        let full = self.open().is_some_and(|segment| {
            let coming = (segment.cost_at_work as f64 * ratio) as u64;
            segment.sealed + coming >= limits.sealed_bytes
                || segment.cost >= limits.cost_bytes
                || segment.records >= RECORDS_PER_SEGMENT_MAX
                || segment.outputs.len() >= JOBS_PER_SEGMENT_MAX as usize
        });
        if full {
            self.close();
        }
    }

    fn at(&mut self, slot: u64) -> Option<&mut Segment> {
        let first = self.queue.front()?.slot;
        let index = usize::try_from(slot.checked_sub(first)?).ok()?;
        self.queue.get_mut(index)
    }

    /// Takes a job's output in.
    pub(crate) fn job_done(&mut self, slot: u64, ordinal: u32, output: JobOutput) {
        let segment = self.at(slot).expect("a segment stays until its jobs are back");
        let index = ordinal as usize;
        segment.sealed += output.stats.sealed_bytes;
        segment.cost_at_work -= segment.job_costs[index];
        let before = segment.outputs[index].replace(output);
        debug_assert!(before.is_none(), "a job comes back once");
        segment.missing -= 1;
        self.close_if_full();
    }

    /// Whether [`Segments::next_to_assemble`] has one.
    pub(crate) fn can_assemble(&self) -> bool {
        let next = self.queue.iter().find(|segment| matches!(segment.stage, Stage::Filling | Stage::Assembling));
        next.is_some_and(|segment| matches!(segment.stage, Stage::Filling) && segment.closed && segment.missing == 0)
    }

    /// The next segment in order, if all its jobs are back and the one before is put together.
    pub(crate) fn next_to_assemble(&mut self) -> Option<Complete> {
        if !self.can_assemble() {
            return None;
        }
        let (machine, epoch, prev_hash, gc_seen) = (self.machine.clone(), self.epoch, self.prev_hash, self.gc_seen);
        let segment = self.queue.iter_mut().find(|segment| matches!(segment.stage, Stage::Filling))?;
        segment.stage = Stage::Assembling;
        let slot = segment.slot;
        let mut outputs: Vec<_> = std::mem::take(&mut segment.outputs).into_iter().flatten().collect();
        segment.offers = outputs.iter_mut().flat_map(|output| std::mem::take(&mut output.offers)).collect();
        let shared = !segment.offers.is_empty();
        let place = Place { machine: Some(machine), log: Some(LogKind::Stream), epoch, slot };
        Some(Complete {
            slot,
            sealer: segment.sealer.clone(),
            commit: Box::new(Commit { place, prev_hash, head: segment.head, gc_seen, shared }),
            outputs,
        })
    }

    /// Takes a segment in that was put together.
    pub(crate) fn assembled(&mut self, slot: u64, sealed: SealedSegment) {
        self.prev_hash = sealed.hash;
        let segment = self.at(slot).expect("a segment stays until it is acknowledged");
        segment.object_bytes = sealed.header.total_bytes;
        segment.stage = if segment.abandoned { Stage::Put } else { Stage::Ready(sealed.parts) };
    }

    /// Leaves the slots of segments that are not put together yet empty, and their records unacknowledged.
    pub(crate) fn abandon(&mut self) {
        self.close();
        for segment in &mut self.queue {
            segment.abandoned |= matches!(segment.stage, Stage::Filling | Stage::Assembling);
        }
    }

    /// The next segment to put, with its bytes.
    pub(crate) fn next_to_upload(&mut self) -> Option<(u64, Vec<Bytes>)> {
        let segment = self.queue.iter_mut().find(|segment| matches!(segment.stage, Stage::Ready(_)))?;
        match std::mem::replace(&mut segment.stage, Stage::Uploading) {
            Stage::Ready(parts) => Some((segment.slot, parts)),
            _ => None,
        }
    }

    /// A PUT succeeded.
    pub(crate) fn put(&mut self, slot: u64) {
        if let Some(segment) = self.at(slot) {
            segment.stage = Stage::Put;
        }
    }

    /// The last slot up to which all are put: what a look made now would let us acknowledge.
    pub(crate) fn put_up_to(&self) -> Option<u64> {
        let put = |segment: &&Segment| matches!(segment.stage, Stage::Put);
        if !self.rules.hold(Rule::StoredInOrder) {
            // Careless: the last one put is stored, and those before it will be.
            return self.queue.iter().rfind(put).map(|segment| segment.slot);
        }
        self.queue.iter().take_while(put).last().map(|segment| segment.slot)
    }

    /// Acknowledges every slot up to this one, in order. Only after a look that began when all were put, as
    /// [`Segments::put_up_to`] said: nothing that is put becomes unput.
    pub(crate) fn acknowledge(&mut self, up_to: u64) -> Vec<Acknowledged> {
        let mut acknowledged = Vec::new();
        while let Some(segment) = self.queue.pop_front_if(|segment| segment.slot <= up_to) {
            let Segment { slot, sealer, head, cost, object_bytes, offers, arrived, abandoned, .. } = segment;
            if !abandoned {
                acknowledged.push(Acknowledged { id: sealer.id(), offers, slot, head, cost, object_bytes, arrived });
            }
        }
        acknowledged
    }
}
