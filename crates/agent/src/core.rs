//! All that must change together, under one mutex: sequencer, queue, regions of every disk, what is stored.
//!
//! Pure but for the mutex around it: no I/O, no clock, no task. Whether a completion becomes a record or a bit is
//! decided in [`Core::complete`], in the same critical section that gives the number, so a switch of mode falls between
//! two completions on all disks alike.

use std::collections::VecDeque;

use bytes::Bytes;
use model::{
    DiskChange, DiskName, DrainCause, Event, EventKind, Extent, Incarnation, LogHead, Mark, MarkKind, Position,
    RecordBody, Seq, Severity, Timestamp,
};
use probe::{Rule, Rules};

use crate::map::MapState;
use crate::queue::{Freed, Payload, Queue};
use crate::regions::{Batch, Regions};
use crate::sequencer::{Mode, Sequencer};
use crate::status::{Counters, RefusalStatus};

/// Events kept for status.
const EVENTS_MAX: usize = 200;

/// Client flushes whose seq is kept.
const FLUSHES_MAX: usize = 4096;

/// Bitmap mode is left when memory is at most this part full (1/4), so that the drain does not fall back at once.
const LEAVE_BITMAP_MEMORY_DIVISOR: u64 = 4;

/// A disk as the core knows it.
pub(crate) struct CoreDisk {
    pub(crate) name: DiskName,
    pub(crate) regions: Regions,
    /// How its Disk record introduces it at the start of an incarnation.
    pub(crate) change: DiskChange,
}

/// What a change did to a disk, as it will stand in a record.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// These bytes.
    Write(Extent, Bytes),
    /// Zeros.
    Zero(Extent),
}

impl Change {
    /// The range it covers.
    pub(crate) fn extent(&self) -> Extent {
        match self {
            Change::Write(extent, _) | Change::Zero(extent) => *extent,
        }
    }

    fn payload_bytes(&self) -> u64 {
        match self {
            Change::Write(extent, _) => extent.len(),
            Change::Zero(_) => 0,
        }
    }

    fn body(self, disk: &DiskName) -> RecordBody<Payload> {
        let disk = disk.id();
        match self {
            Change::Write(extent, data) => RecordBody::Write { disk, extent, data: Payload::Memory(data) },
            Change::Zero(extent) => RecordBody::Zero { disk, extent },
        }
    }
}

/// The state of one agent.
pub(crate) struct Core {
    pub(crate) sequencer: Sequencer,
    pub(crate) queue: Queue,
    pub(crate) disks: Vec<CoreDisk>,
    pub(crate) map: MapState,
    /// The map version as this life found it, while no log has taken it: HELLO answers for what the map *knew*, and each
    /// write to a cold region raises the version in force, also of a map that was set back.
    pub(crate) attested: Option<u64>,
    /// The last incarnation of this agent that a log has taken.
    pub(crate) taken: Incarnation,
    /// The log's head as last heard.
    pub(crate) stored: LogHead,
    /// The last number given to the present session.
    pub(crate) sent: Seq,
    /// The highest number ever given to a session of this incarnation; below it, sending is sending again.
    pub(crate) sent_max: Seq,
    /// Address of the process server, while a session is up.
    pub(crate) connection: Option<String>,
    /// How that session, or the last one, is carried; nothing in memory.
    pub(crate) carrier: Option<transport::Carrier>,
    /// A connection is up and HELLO was said, but log and agent have not agreed yet.
    pub(crate) greeting: bool,
    /// Why the last try gave no connection; nothing while there is one.
    pub(crate) connection_failure: Option<String>,
    pub(crate) refusal: Option<RefusalStatus>,
    /// Set when a compare has run: the next HELLO rests on it.
    pub(crate) compared_to: Option<Seq>,
    /// Positions at which disks were compared while refused.
    pub(crate) compares: Vec<Option<Seq>>,
    /// Counts incarnations of this process; whoever works for an older one stops.
    pub(crate) life: u64,
    /// The stream was empty when this incarnation began, and every change since became a record: holes need none. A change
    /// that was kept as a bit, or left undecided, may have made a hole where the log has bytes, and ends this.
    pub(crate) fresh_stream: bool,
    /// A flush failed in this process's life: what the page cache shows may not be on the disk.
    pub(crate) cache_doubted: bool,
    /// When data mode was left, or the agent started without it.
    pub(crate) inconsistent_since: Option<Timestamp>,
    pub(crate) drain_since: Option<Timestamp>,
    pub(crate) drain_done_bytes: u64,
    /// Disks no longer protected, to be named to the log once.
    pub(crate) removed: Vec<(DiskName, u64)>,
    /// No change is taken any more.
    pub(crate) stopping: bool,
    /// Nothing more will be sent.
    pub(crate) stopped: bool,
    pub(crate) spool_failed: bool,
    pub(crate) counters: Counters,
    pub(crate) events: VecDeque<Event>,
    pub(crate) flushes: VecDeque<(Timestamp, Seq)>,
    /// The safety rules in force.
    pub(crate) rules: Rules,
}

impl Core {
    /// Records an event and logs it.
    pub(crate) fn event(&mut self, time: Timestamp, severity: Severity, kind: EventKind, message: String) {
        match severity {
            Severity::Info => tracing::info!(%kind, "{message}"),
            Severity::Warning => tracing::warn!(%kind, "{message}"),
            Severity::Critical => tracing::error!(%kind, "{message}"),
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Event { time, severity, kind, message });
    }

    /// A change is about to be submitted to the source. Returns the map commit it must wait for, if any.
    pub(crate) fn begin(&mut self, disk: usize, extent: Extent) -> Option<Batch> {
        let wait = self.disks[disk].regions.begin(extent, self.map.open_batch());
        self.map.must_wait(wait)
    }

    /// The source completed a change: it becomes a record, or a bit.
    pub(crate) fn complete(&mut self, now: Timestamp, disk: usize, change: Change) {
        let extent = change.extent();
        if self.sequencer.mode() != Mode::Bitmap && !self.queue.has_room(1, change.payload_bytes()) {
            self.enter_bitmap(now, DrainCause::Overflow, "queue and spool are full");
        }
        if self.sequencer.mode() == Mode::Bitmap {
            self.disks[disk].regions.complete(extent, None);
        } else {
            let body = change.body(&self.disks[disk].name);
            let seq = self.push(now, body);
            self.disks[disk].regions.complete(extent, Some(seq));
        }
    }

    /// The source failed a change, or left it undecided: its range is to drain.
    pub(crate) fn complete_failed(&mut self, now: Timestamp, disk: usize, extent: Extent, why: &str) {
        if !self.rules.hold(Rule::FailedWriteDrained) {
            // Careless: the client knows that it failed, so there is nothing to replicate.
            return self.disks[disk].regions.complete(extent, Some(Seq::ZERO));
        }
        self.fresh_stream = false;
        self.disks[disk].regions.complete(extent, None);
        let name = &self.disks[disk].name;
        let text = format!("disk {name} failed a write of {extent}: {why}; the range will be read again and sent");
        self.event(now, Severity::Critical, EventKind::SourceError, text);
        self.source_error_drain(now);
    }

    /// A FLUSH of the source failed.
    pub(crate) fn flush_failed(&mut self, now: Timestamp, disk: usize, why: &str) {
        if !self.rules.hold(Rule::FailedFlushDrained) {
            // Careless: the next flush will do it.
            return;
        }
        self.fresh_stream = false;
        self.cache_doubted = true;
        let regions = self.disks[disk].regions.flush_failed();
        let name = &self.disks[disk].name;
        let text =
            format!("disk {name} failed a flush: {why}; {regions} regions written since the last good one are drained");
        self.event(now, Severity::Critical, EventKind::SourceError, text);
        if regions > 0 {
            self.source_error_drain(now);
        }
    }

    fn source_error_drain(&mut self, now: Timestamp) {
        if self.sequencer.mode() == Mode::Data {
            self.begin_drain(now, DrainCause::SourceError);
        }
    }

    fn push(&mut self, now: Timestamp, body: RecordBody<Payload>) -> Seq {
        let (record, digest) = self.sequencer.number(now, self.map.version(), body);
        let seq = record.seq;
        self.queue.push(record, digest);
        seq
    }

    /// Leaves data or drain mode.
    pub(crate) fn enter_bitmap(&mut self, now: Timestamp, cause: DrainCause, why: &str) {
        let from = self.sequencer.mode();
        if self.sequencer.enter_bitmap(cause) {
            self.fresh_stream = false;
            self.inconsistent_since.get_or_insert(now);
            let text = format!("from {} to bitmap mode: {why}; writes go on and will be drained", from.name());
            self.event(now, Severity::Warning, EventKind::ModeChanged, text);
        }
    }

    /// Leaves bitmap mode if everything needed is there. Says whether it did.
    pub(crate) fn try_leave_bitmap(&mut self, now: Timestamp) -> bool {
        let (memory, memory_max) = self.queue.memory();
        let (spool, spool_max) = self.queue.spool();
        let room = memory <= memory_max / LEAVE_BITMAP_MEMORY_DIVISOR && spool <= spool_max / 2;
        let known = self.sequencer.last().is_some() && self.connection.is_some() && self.refusal.is_none();
        if self.sequencer.mode() != Mode::Bitmap || !room || !known {
            return false;
        }
        let cause = self.sequencer.cause();
        self.begin_drain(now, cause);
        true
    }

    /// Begins a drain (or extends one) at this position.
    pub(crate) fn begin_drain(&mut self, now: Timestamp, cause: DrainCause) {
        let body = self.sequencer.begin_drain(cause);
        let seq = self.push(now, body);
        self.inconsistent_since.get_or_insert(now);
        self.drain_since.get_or_insert(now);
        let text = format!("drain of {} bytes began at seq {seq}: {cause:?}", self.owed_bytes());
        self.event(now, Severity::Warning, EventKind::Drain, text);
    }

    /// Whether a drain goes on until no disk owes anything. Careless: it is done when the drainer has nothing more at
    /// hand, and one disk stands for all.
    pub(crate) fn drains_to_the_end(&self) -> bool {
        self.rules.hold(Rule::DrainEndWhenEmpty)
    }

    /// Ends the drain if nothing is owed on any disk. Says whether it did.
    pub(crate) fn try_end_drain(&mut self, now: Timestamp, mark_id: impl FnOnce() -> [u8; 16]) -> bool {
        let owed = self.drains_to_the_end() && self.disks.iter().any(|d| d.regions.owed() > 0);
        if self.sequencer.mode() != Mode::Drain || owed {
            return false;
        }
        let mark = Mark { kind: MarkKind::Crash, id: mark_id(), label: String::new() };
        let body = self.sequencer.end_drain(mark);
        let seq = self.push(now, body);
        self.inconsistent_since = None;
        let since = self.drain_since.take().unwrap_or(now);
        let seconds = now.since(since).as_secs_f64();
        let text = format!("drain ended at seq {seq} after {seconds:.1} s and {} bytes", self.drain_done_bytes);
        self.event(now, Severity::Info, EventKind::Drain, text);
        self.drain_done_bytes = 0;
        true
    }

    /// A drain read is done: it becomes records, if the mode still allows and there is room. Says whether it did.
    pub(crate) fn drained(&mut self, now: Timestamp, disk: usize, changes: Vec<Change>) -> bool {
        let payload: u64 = changes.iter().map(Change::payload_bytes).sum();
        if self.sequencer.mode() != Mode::Drain || !self.queue.has_room(changes.len(), payload) {
            return false;
        }
        for change in changes {
            let extent = change.extent();
            self.counters.drained_bytes += change.payload_bytes();
            let body = change.body(&self.disks[disk].name);
            let seq = self.push(now, body);
            if self.rules.hold(Rule::DrainHoldsRegion) {
                self.disks[disk].regions.drained(extent, seq);
            }
        }
        true
    }

    /// Sets a mark here.
    pub(crate) fn mark(
        &mut self,
        now: Timestamp,
        kind: MarkKind,
        id: [u8; 16],
        label: String,
    ) -> Option<(Seq, Timestamp)> {
        if self.sequencer.mode() == Mode::Data && !self.queue.has_room(1, 0) {
            self.enter_bitmap(now, DrainCause::Overflow, "queue and spool are full");
        }
        if self.sequencer.mode() != Mode::Data {
            return None;
        }
        let seq = self.push(now, RecordBody::Mark(Mark { kind, id, label }));
        Some((seq, self.sequencer.time_floor()))
    }

    /// The incarnation is over: what it sent and did not hear of as stored is to drain in the next.
    pub(crate) fn reincarnate(&mut self, now: Timestamp, incarnation: Incarnation, cause: DrainCause, why: &str) {
        self.enter_bitmap(now, cause, why);
        self.inconsistent_since.get_or_insert(now);
        for disk in &mut self.disks {
            disk.regions.incarnation_ended(self.stored.position.seq);
        }
        self.sequencer = Sequencer::new(incarnation, cause, self.sequencer.time_floor());
        self.queue.restart(incarnation, LogHead::default());
        self.life += 1;
        self.counters.incarnations += 1;
        self.fresh_stream = false;
        (self.sent, self.sent_max) = (Seq::ZERO, Seq::ZERO);
        let text = format!("new incarnation {incarnation}: {why}");
        self.event(now, Severity::Warning, EventKind::Started, text);
    }

    /// The version that HELLO answers for.
    pub(crate) fn attested_version(&self) -> u64 {
        self.attested.unwrap_or_else(|| self.map.version())
    }

    /// A log that ends with `head` takes this incarnation. Returns the commit that must be durable before anything is
    /// numbered: it says which head that was, and that the version in force lies above all the log has seen.
    pub(crate) fn taken_at(&mut self, head: LogHead) -> Option<Batch> {
        self.attested = None;
        self.taken = self.sequencer.incarnation();
        self.stored = head;
        self.map.raise_above(head.map_version.max(self.map.version()))
    }

    /// A log goes on with the incarnation that a clean stop had left. Returns the commit that must be durable before
    /// anything is sent, if this is the first time in this life.
    pub(crate) fn went_on(&mut self) -> Option<Batch> {
        self.attested.take()?;
        self.map.raise_above(self.map.version())
    }

    /// Whether the log's end is this agent's own: of its last incarnation there, or the very end it went on from then.
    pub(crate) fn is_ours(&self, head: &LogHead) -> bool {
        head.position.incarnation == self.taken || head.position == self.stored.position
    }

    /// A new incarnation heard the log's head: it goes on behind it, and introduces its disks.
    pub(crate) fn adopt(&mut self, now: Timestamp, head: LogHead) {
        self.sequencer.adopt(head);
        self.queue.restart(self.sequencer.incarnation(), head);
        self.stored = head;
        (self.sent, self.sent_max) = (head.position.seq, head.position.seq);
        self.fresh_stream = head.position.seq == Seq::ZERO && !self.cache_doubted;
        self.compared_to = None;
        let body = self.sequencer.begin_drain(self.sequencer.cause());
        let introductions: Vec<_> = self.introductions().collect();
        for disk in introductions {
            self.push(now, disk);
        }
        let seq = self.push(now, body);
        self.drain_since = Some(now);
        let text = format!("drain of {} bytes began at seq {seq}: {:?}", self.owed_bytes(), self.sequencer.cause());
        self.event(now, Severity::Warning, EventKind::Drain, text);
    }

    fn introductions(&self) -> impl Iterator<Item = RecordBody<Payload>> + '_ {
        let fresh = self.fresh_stream;
        let present = self.disks.iter().map(move |disk| {
            let change = if fresh { DiskChange::Added } else { disk.change };
            (&disk.name, disk.regions.size(), change)
        });
        let removed =
            self.removed.iter().filter(move |_| !fresh).map(|(name, size)| (name, *size, DiskChange::Removed));
        removed.chain(present).map(|(name, size, change)| RecordBody::Disk {
            disk: name.id(),
            name: name.clone(),
            size,
            change,
        })
    }

    /// The log ends with `seq` and this digest. Frees up to there if it is the stream we know; says no otherwise.
    pub(crate) fn stored(&mut self, seq: Seq, digest: model::RecordDigest) -> Result<Freed, StoredMismatch> {
        if seq < self.stored.position.seq {
            return Err(StoredMismatch::WentBack);
        }
        let Some(head) = self.queue.head_at(seq) else { return Err(StoredMismatch::Unknown) };
        if head.digest != digest && self.rules.hold(Rule::DigestBeforeFree) {
            return Err(StoredMismatch::Digest);
        }
        let freed = self.queue.free_to(seq);
        if seq > self.stored.position.seq {
            self.stored = head;
            self.map.header_changed();
        }
        Ok(freed)
    }

    /// Goes on behind a head it never numbered. Only without the rule that such a log is refused.
    pub(crate) fn follow(&mut self, head: LogHead) {
        self.sequencer.follow(head);
        self.queue.restart(self.sequencer.incarnation(), head);
        self.stored = head;
        (self.sent, self.sent_max) = (head.position.seq, head.position.seq);
    }

    /// Bytes that wait to be drained, over all disks.
    pub(crate) fn owed_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.regions.owed_bytes()).sum()
    }

    /// When the oldest change that is not stored was made.
    pub(crate) fn oldest_unstored(&self) -> Option<Timestamp> {
        [self.queue.oldest_time(), self.inconsistent_since].into_iter().flatten().min()
    }

    /// Whether all is stored, flushed, and nothing is owed: what a clean stop needs.
    pub(crate) fn is_clean(&self) -> bool {
        let stored = self.stored.position.seq;
        let all_stored = self.sequencer.mode() == Mode::Data && self.queue.is_empty();
        all_stored && !self.map.failed() && self.disks.iter().all(|disk| disk.regions.is_clean(stored))
    }

    /// A client's FLUSH completed now. In bitmap mode no number says where that was.
    pub(crate) fn flush_completed(&mut self, now: Timestamp) {
        let Some(last) = self.sequencer.last().filter(|_| self.sequencer.mode() != Mode::Bitmap) else { return };
        if self.flushes.len() == FLUSHES_MAX {
            self.flushes.pop_front();
        }
        self.flushes.push_back((now, last.position.seq));
    }

    /// The map file failed: bits live in memory only. The version moves past anything the file can hold, and a record
    /// carries it to the log, so that the next start is told to compare whatever the file says then.
    pub(crate) fn map_failed(&mut self, now: Timestamp, mark_id: [u8; 16], why: &str) {
        self.map.fail();
        let text = format!("the dirty map cannot be kept: {why}; writes go on, and the next start will need a compare");
        self.event(now, Severity::Critical, EventKind::AgentState, text);
        self.mark(now, MarkKind::Crash, mark_id, "dirty map lost".to_owned());
    }

    /// Our position in the stream, as far as it is known.
    pub(crate) fn next_seq(&self) -> Option<Seq> {
        self.sequencer.last().map(|last| last.position.seq.next())
    }

    /// Position of the last record heard to be stored.
    pub(crate) fn stored_position(&self) -> Position {
        self.stored.position
    }
}

/// What the log says it holds is not what we gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoredMismatch {
    /// The head moved back.
    #[error("the log's head lies before what was heard to be stored")]
    WentBack,
    /// A number we never gave.
    #[error("the log ends with a record this agent never numbered")]
    Unknown,
    /// Other headers under our numbers.
    #[error("the log's digest differs from this agent's at the same record")]
    Digest,
}
