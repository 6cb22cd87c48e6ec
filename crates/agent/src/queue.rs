//! Records that have a number and are not yet `stored`, in order.
//!
//! What must hold: the queue has no gaps (the record behind `freed` is at the front, each next one is one higher), each
//! record keeps the digest after it so that any head the log claims can be checked, and a payload is kept, in memory or
//! in the spool, until its record is freed. This file is pure; payloads are moved to the spool by `spooler`.

use std::collections::VecDeque;

use bytes::Bytes;
use format::wire::record_cost;
use model::{Incarnation, LogHead, Position, Record, RecordBody, RecordDigest, Seq, Timestamp};

use crate::spool::{Slot, SpoolSpace, slot_bytes};

/// Memory a record takes besides its payload.
const RECORD_OVERHEAD_BYTES: u64 = 256;

/// Records that may be numbered without asking for room: a drain's end, and the beginning of the next drain.
const DRAIN_RECORDS: u64 = 2;

/// Where a payload is.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    /// In memory.
    Memory(Bytes),
    /// In the spool file.
    Spooled(Slot),
}

#[derive(Debug)]
struct Queued {
    record: Record<Payload>,
    digest: RecordDigest,
    map_version_max: u64,
}

/// A record taken for sending; a spooled payload is still to be read.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) record: Record<Payload>,
}

/// Records that the queue has forgotten.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    _records: Vec<Queued>,
}

/// The queue of one machine.
#[derive(Debug)]
pub(crate) struct Queue {
    records: VecDeque<Queued>,
    incarnation: Incarnation,
    /// Everything up to here was freed; the digest is kept so that a log that stands here can be checked.
    freed: LogHead,
    memory_bytes: u64,
    memory_max: u64,
    /// Numbers and bytes of the payloads in memory, so that nobody looks for them among the records: there may be very many
    /// that have none, or have it in the spool.
    in_memory: VecDeque<(Seq, u64)>,
    space: SpoolSpace,
}

fn payload_bytes(record: &Record<Payload>) -> u64 {
    match &record.body {
        RecordBody::Write { extent, .. } => extent.len(),
        _ => 0,
    }
}

impl Queue {
    /// An empty queue behind `freed`.
    pub(crate) fn new(incarnation: Incarnation, freed: LogHead, memory_max: u64, spool_max: u64) -> Self {
        let (records, in_memory, space) = (VecDeque::new(), VecDeque::new(), SpoolSpace::new(spool_max));
        Queue { records, incarnation, freed, memory_bytes: 0, memory_max, in_memory, space }
    }

    /// Whether so many records with this payload in all fit into memory now, and room is left for the beginning and the end
    /// of a drain: those are numbered when they are due, whatever is queued. Between two of them something is drained,
    /// which needs room itself.
    pub(crate) fn has_room(&self, records: usize, payload_bytes: u64) -> bool {
        let overhead = (records as u64 + DRAIN_RECORDS).saturating_mul(RECORD_OVERHEAD_BYTES);
        self.memory_bytes.saturating_add(payload_bytes).saturating_add(overhead) <= self.memory_max
    }

    /// Bytes in memory and their bound.
    pub(crate) fn memory(&self) -> (u64, u64) {
        (self.memory_bytes, self.memory_max)
    }

    /// Bytes taken in the spool and their bound.
    pub(crate) fn spool(&self) -> (u64, u64) {
        (self.space.used(), self.space.max())
    }

    /// Bytes queued, wherever they are.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.memory_bytes + self.space.used()
    }

    /// Whether nothing waits to be stored.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Appends a record just numbered.
    pub(crate) fn push(&mut self, record: Record<Payload>, digest: RecordDigest) {
        debug_assert_eq!(record.seq, self.last_seq().next(), "numbers have no gaps");
        self.memory_bytes += payload_bytes(&record) + RECORD_OVERHEAD_BYTES;
        if let RecordBody::Write { extent, .. } = &record.body {
            self.in_memory.push_back((record.seq, extent.len()));
        }
        let before = self.records.back().map_or(self.freed.map_version, |queued| queued.map_version_max);
        let map_version_max = before.max(record.map_version);
        self.records.push_back(Queued { record, digest, map_version_max });
    }

    /// The last number queued (or freed, if none is).
    pub(crate) fn last_seq(&self) -> Seq {
        Seq(self.freed.position.seq.0 + self.records.len() as u64)
    }

    fn index(&self, seq: Seq) -> Option<usize> {
        let behind = seq.0.checked_sub(self.freed.position.seq.0 + 1)?;
        usize::try_from(behind).ok().filter(|index| *index < self.records.len())
    }

    /// The head a log has that ends with `seq`, if we still know.
    pub(crate) fn head_at(&self, seq: Seq) -> Option<LogHead> {
        if seq == self.freed.position.seq {
            return Some(self.freed);
        }
        let queued = &self.records[self.index(seq)?];
        let position = Position { incarnation: self.incarnation, seq };
        let (digest, map_version, time) = (queued.digest, queued.map_version_max, queued.record.time);
        Some(LogHead { position, digest, map_version, time })
    }

    /// Everything up to `seq` is stored and was checked to be ours: its payloads go. To give back the memory of thousands takes
    /// milliseconds, which nobody should wait for: it is the caller's to do, once it holds no lock.
    pub(crate) fn free_to(&mut self, seq: Seq) -> Freed {
        let (Some(head), Some(last)) = (self.head_at(seq), self.index(seq)) else { return Freed::default() };
        let freed: Vec<Queued> = self.records.drain(..=last).collect();
        freed.iter().for_each(|queued| self.forget(&queued.record));
        self.in_memory.drain(..self.in_memory_up_to(seq));
        self.freed = head;
        Freed { _records: freed }
    }

    /// Forgets what the payloads in memory up to `seq` are, as if their buffers had been used for something else. Only
    /// without the rule that payload is kept until it is stored.
    pub(crate) fn give_payloads_away(&mut self, seq: Seq) {
        let index = self.index(seq).map_or(0, |index| index + 1);
        for queued in self.records.range_mut(..index) {
            if let RecordBody::Write { data: Payload::Memory(data), .. } = &mut queued.record.body {
                *data = vec![0; data.len()].into();
            }
        }
    }

    fn forget(&mut self, record: &Record<Payload>) {
        self.memory_bytes -= RECORD_OVERHEAD_BYTES;
        match &record.body {
            RecordBody::Write { data: Payload::Memory(data), .. } => self.memory_bytes -= data.len() as u64,
            RecordBody::Write { data: Payload::Spooled(slot), .. } => self.space.give_back(slot.extent),
            _ => {}
        }
    }

    /// The incarnation ended: nothing of it will be sent. The next one starts behind `freed`.
    pub(crate) fn restart(&mut self, incarnation: Incarnation, freed: LogHead) {
        for queued in std::mem::take(&mut self.records) {
            self.forget(&queued.record);
        }
        self.in_memory.clear();
        self.incarnation = incarnation;
        self.freed = freed;
    }

    /// Time of the oldest record that is not stored.
    pub(crate) fn oldest_time(&self) -> Option<Timestamp> {
        self.records.front().map(|queued| queued.record.time)
    }

    /// Records behind `sent`, about `batch_bytes` of them, within `credit`. One that alone is over the credit goes only
    /// when `nothing_in_flight`: it could never go otherwise.
    pub(crate) fn batch(&self, sent: Seq, batch_bytes: u64, credit: u64, nothing_in_flight: bool) -> Vec<Outgoing> {
        let Some(first) = self.index(sent.next()) else { return Vec::new() };
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for queued in self.records.range(first..) {
            let cost = payload_bytes(&queued.record) + COST_OF_NO_PAYLOAD;
            let alone = taken.is_empty() && nothing_in_flight;
            if (bytes + cost > credit && !alone) || (bytes + cost > batch_bytes && !taken.is_empty()) {
                break;
            }
            bytes += cost;
            taken.push(Outgoing { record: queued.record.clone() });
        }
        taken
    }

    /// Payloads to move to the spool, about `batch_bytes` of them, with the run of the file they go to: the oldest that
    /// are not about to be sent, then, if that is not enough, the oldest at all. Empty if the spool has no room.
    pub(crate) fn take_for_spool(&mut self, sent: Seq, keep_bytes: u64, batch_bytes: u64) -> Option<SpoolBatch> {
        if self.space.used() >= self.space.max() {
            return None;
        }
        let from = self.behind_send_window(sent, keep_bytes);
        let (mut batch, mut file_bytes) = (Vec::new(), 0);
        for &(seq, _) in self.in_memory.range(from..).chain(self.in_memory.range(..from)) {
            let body = &self.records[self.index(seq).expect("it is queued")].record.body;
            let RecordBody::Write { data: Payload::Memory(data), .. } = body else { unreachable!("it is in memory") };
            let bytes = slot_bytes(data.len());
            if !batch.is_empty() && file_bytes + bytes > batch_bytes {
                break;
            }
            file_bytes += bytes;
            batch.push((seq, data.clone()));
        }
        while let Some((_, last)) = batch.last() {
            if let Some(run) = self.space.take(file_bytes) {
                return Some(SpoolBatch { run, payloads: batch, incarnation: self.incarnation });
            }
            file_bytes -= slot_bytes(last.len());
            batch.pop();
        }
        None
    }

    /// How many of the payloads in memory belong to records up to `seq`.
    fn in_memory_up_to(&self, seq: Seq) -> usize {
        self.in_memory.partition_point(|(at, _)| *at <= seq)
    }

    /// The first of the payloads in memory behind those that were sent and `keep_bytes` that are next.
    fn behind_send_window(&self, sent: Seq, keep_bytes: u64) -> usize {
        let first = self.in_memory_up_to(sent);
        let mut kept = 0;
        let window = self.in_memory.range(first..).take_while(|(_, bytes)| {
            kept += bytes;
            kept <= keep_bytes
        });
        first + window.count()
    }

    /// The batch lies in the file: its payloads leave memory, unless they were freed meanwhile.
    pub(crate) fn spooled(&mut self, batch: &SpoolBatch) {
        for (seq, slot) in batch.slots() {
            let index = if batch.incarnation == self.incarnation { self.index(seq) } else { None };
            match index.map(|index| &mut self.records[index].record.body) {
                Some(RecordBody::Write { data: data @ Payload::Memory(_), .. }) => {
                    *data = Payload::Spooled(slot);
                    self.memory_bytes -= u64::from(slot.len);
                }
                _ => self.space.give_back(slot.extent),
            }
        }
        if batch.incarnation == self.incarnation {
            self.leave_memory(&batch.payloads);
        }
    }

    /// Takes payloads off those in memory: runs of neighbours, so that whatever lies around them moves once.
    fn leave_memory(&mut self, mut payloads: &[(Seq, Bytes)]) {
        while let Some((first, _)) = payloads.first() {
            let Ok(at) = self.in_memory.binary_search_by_key(first, |(seq, _)| *seq) else {
                // It was freed meanwhile.
                payloads = &payloads[1..];
                continue;
            };
            let neighbours = self.in_memory.range(at..).zip(payloads).take_while(|((a, _), (b, _))| a == b).count();
            self.in_memory.drain(at..at + neighbours);
            payloads = &payloads[neighbours..];
        }
    }

    /// The batch could not be written: its run is free again and its payloads stay in memory.
    pub(crate) fn spool_failed(&mut self, batch: &SpoolBatch) {
        self.space.give_back(batch.run);
    }
}

/// What a record without payload takes of the credit window.
const COST_OF_NO_PAYLOAD: u64 = 64;

/// The credit a batch takes, by the protocol's own count.
pub(crate) fn batch_cost(records: &[Record]) -> u64 {
    records.iter().map(record_cost).sum()
}

/// Payloads on their way to the spool file.
#[derive(Debug)]
pub(crate) struct SpoolBatch {
    pub(crate) run: model::Extent,
    pub(crate) payloads: Vec<(Seq, Bytes)>,
    incarnation: Incarnation,
}

impl SpoolBatch {
    fn slots(&self) -> impl Iterator<Item = (Seq, Slot)> + '_ {
        let mut at = self.run.offset();
        self.payloads.iter().map(move |(seq, data)| {
            let extent = model::Extent::new(at, slot_bytes(data.len())).expect("a part of an aligned run");
            at = extent.end();
            (*seq, Slot { extent, len: u32::try_from(data.len()).expect("a record is at most 33 MiB") })
        })
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
