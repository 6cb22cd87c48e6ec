//! Gives records their numbers, and decides whether a completion becomes a record or a bit.
//!
//! One sequencer serves all disks of the machine; it is pure, and its callers hold one mutex, so a switch of mode is
//! atomic over all disks. What must hold:
//! - numbers of a stream have no gaps and are never given twice, across incarnations too;
//! - time never goes back along the stream, whatever the clock does;
//! - between DrainBegin and DrainEnd no position is a point: `last_point` stays where it was.
//!
//! ```text
//!   new ──► bitmap ──(head heard, room)── DrainBegin ──► drain ──(nothing owed)── DrainEnd ──► data
//!             ▲                                            │                                    │
//!             └───────────── queue and spool full ─────────┴────────────────────────────────────┤
//!                                                          drain ◄── DrainBegin (source error) ─┘
//! ```

use model::{
    DrainCause, Incarnation, LogHead, Mark, Position, Record, RecordBody, RecordDigest, RecordDigester, Seq, Timestamp,
};

/// What becomes of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A record.
    Data,
    /// A bit: the region is to drain.
    Bitmap,
    /// A record; besides, regions are being drained.
    Drain,
}

impl Mode {
    /// The mode's name in status, events and errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Data => "data",
            Mode::Bitmap => "bitmap",
            Mode::Drain => "drain",
        }
    }
}

/// The numbering of one machine's stream.
#[derive(Debug)]
pub(crate) struct Sequencer {
    incarnation: Incarnation,
    mode: Mode,
    /// The last record given a number, or the log's head an incarnation began at. Unknown until a new one heard it.
    last: Option<LogHead>,
    last_point: Seq,
    /// Why the next drain will be needed.
    cause: DrainCause,
    /// Time of the last record of a former incarnation of this process: time never goes back, whatever the log says.
    floor: Timestamp,
}

impl Sequencer {
    /// A new incarnation: it knows no number until [`Sequencer::adopt`].
    pub(crate) fn new(incarnation: Incarnation, cause: DrainCause, floor: Timestamp) -> Self {
        Sequencer { incarnation, mode: Mode::Bitmap, last: None, last_point: Seq::ZERO, cause, floor }
    }

    /// The same incarnation after a clean stop: everything up to `head` is stored.
    pub(crate) fn resume(incarnation: Incarnation, head: LogHead) -> Self {
        let (last, last_point, floor) = (Some(head), head.position.seq, head.time);
        Sequencer { incarnation, mode: Mode::Data, last, last_point, cause: DrainCause::Overflow, floor }
    }

    /// The log's head is known: a new incarnation goes on behind it.
    pub(crate) fn adopt(&mut self, head: LogHead) {
        debug_assert!(self.last.is_none() && self.mode == Mode::Bitmap, "only a new incarnation takes its number");
        self.last = Some(head);
        self.last_point = head.position.seq;
    }

    /// Goes on behind `head`, whatever was numbered before.
    pub(crate) fn follow(&mut self, head: LogHead) {
        self.last = Some(head);
        self.last_point = head.position.seq;
    }

    /// The present incarnation.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The present mode.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// The last record, or the head adopted.
    pub(crate) fn last(&self) -> Option<LogHead> {
        self.last
    }

    /// Why the next drain will be needed.
    pub(crate) fn cause(&self) -> DrainCause {
        self.cause
    }

    /// Gives a record its number. Returns the digest after it.
    pub(crate) fn number<D>(
        &mut self,
        now: Timestamp,
        map_version: u64,
        body: RecordBody<D>,
    ) -> (Record<D>, RecordDigest) {
        let last = self.last.expect("records are numbered only once the log's head is known");
        debug_assert!(self.mode != Mode::Bitmap, "in bitmap mode a completion is a bit");
        let time = now.max(last.time).max(self.floor);
        let record = Record { seq: last.position.seq.next(), time, map_version, body };
        let digest = RecordDigester::resume(last.digest).push(&record);
        let position = Position { incarnation: self.incarnation, seq: record.seq };
        self.last = Some(LogHead { position, digest, map_version: last.map_version.max(map_version), time });
        if self.mode == Mode::Data {
            self.last_point = record.seq;
        }
        (record, digest)
    }

    /// Queue and spool are full: completions are bits from here on. Says whether this is news.
    pub(crate) fn enter_bitmap(&mut self, cause: DrainCause) -> bool {
        let news = self.mode != Mode::Bitmap;
        if news {
            self.mode = Mode::Bitmap;
            self.cause = cause;
        }
        news
    }

    /// Begins a drain, or extends one. The record is numbered by the caller, in drain mode.
    pub(crate) fn begin_drain<D>(&mut self, cause: DrainCause) -> RecordBody<D> {
        self.mode = Mode::Drain;
        self.cause = cause;
        RecordBody::DrainBegin { cause, incarnation: self.incarnation, lost_after: self.last_point }
    }

    /// Ends the drain: nothing is owed on any disk. The record this returns is a point again once it is numbered.
    pub(crate) fn end_drain<D>(&mut self, mark: Mark) -> RecordBody<D> {
        debug_assert_eq!(self.mode, Mode::Drain, "a drain ends once");
        self.mode = Mode::Data;
        RecordBody::DrainEnd(mark)
    }

    /// Time of the last record: where a new incarnation of this process may not go behind.
    pub(crate) fn time_floor(&self) -> Timestamp {
        self.last.map_or(self.floor, |last| last.time.max(self.floor))
    }
}

#[cfg(test)]
#[path = "sequencer_tests.rs"]
mod tests;
