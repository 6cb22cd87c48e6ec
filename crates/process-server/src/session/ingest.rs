//! Order: what a session sends must continue the log's head record by record. Pure; knows no connection.
//!
//! What must hold behind this point: seqs have no gap, time and map version never go back, a new life opens with its
//! drain, and every batch carries the stream's head after its last record, digest included. Whatever breaks that ends
//! the session and reaches no segment. A DATA frame is cut into batches of about one job, at record boundaries.

use format::wire::record_cost;
use model::{Incarnation, LogHead, MarkKind, Position, Record, RecordBody, RecordDigester, Seq, Timestamp};
use tokio::time::Instant;

use crate::stream::Admitted;

/// Payload bytes at which a batch is cut: what one worker carries while it is hot in cache.
pub(crate) const BATCH_BYTES: u64 = 1 << 20;

/// Records at which a batch is cut, so that a flood of tiny records is spread over the workers too.
pub(crate) const BATCH_RECORDS_MAX: usize = 4096;

/// Longest label of a mark, in bytes.
const LABEL_BYTES_MAX: usize = 200;

/// Records in order, and the stream's head after the last of them.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Contiguous; never empty.
    pub records: Vec<Record>,
    /// Number of the first.
    pub first_seq: Seq,
    /// After the last.
    pub head: LogHead,
    /// Whether a drain is open before the first.
    pub draining: bool,
    /// What they take of the credit window.
    pub cost: u64,
    /// When they arrived.
    pub arrived: Instant,
}

impl Batch {
    /// Whether somebody waits for one of them to be stored: applications may stand still until a mark is, and behind a drain
    /// every position is a point again.
    pub(crate) fn is_awaited(&self) -> bool {
        self.records.iter().any(|record| match &record.body {
            RecordBody::DrainEnd(_) => true,
            RecordBody::Mark(mark) => mark.kind == MarkKind::Application,
            _ => false,
        })
    }

    /// Whether a drain is open behind the last.
    pub(crate) fn drains_after(&self) -> bool {
        self.records.iter().fold(self.draining, |draining, record| record.body.drains_after(draining))
    }

    /// Takes in the batch that follows, if both together still make one job; gives it back otherwise.
    pub(crate) fn absorb(&mut self, next: Batch) -> Option<Batch> {
        debug_assert_eq!(self.head.position.seq.next(), next.first_seq, "batches of one session are contiguous");
        if self.cost + next.cost > BATCH_BYTES || self.records.len() + next.records.len() > BATCH_RECORDS_MAX {
            return Some(next);
        }
        self.records.extend(next.records);
        self.head = next.head;
        self.cost += next.cost;
        None
    }
}

/// The peer broke the protocol: the session ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// A gap, or a record sent twice.
    #[error("record {found} came where {expected} must come")]
    Gap {
        /// What continues the stream.
        expected: Seq,
        /// What came.
        found: Seq,
    },
    /// Time went back.
    #[error("time of record {seq} lies before the time of the record before it ({time} < {before})")]
    Time {
        /// Which record.
        seq: Seq,
        /// Its time.
        time: Timestamp,
        /// The time before.
        before: Timestamp,
    },
    /// The map version went back.
    #[error("map version of record {seq} is {found}, below {before}")]
    MapVersion {
        /// Which record.
        seq: Seq,
        /// Its version.
        found: u64,
        /// The highest before.
        before: u64,
    },
    /// A new life did not open with its drain.
    #[error("record {seq} is the first of incarnation {incarnation} that matters, but no drain of it was begun")]
    NoDrain {
        /// Which record.
        seq: Seq,
        /// The new life.
        incarnation: Incarnation,
    },
    /// A drain of another life.
    #[error("record {seq} begins a drain of incarnation {found}, the session's is {expected}")]
    ForeignDrain {
        /// Which record.
        seq: Seq,
        /// The session's life.
        expected: Incarnation,
        /// The drain's.
        found: Incarnation,
    },
    /// The payload is not as long as the extent, or a label is too long.
    #[error("record {seq} contradicts itself: {what}")]
    Inconsistent {
        /// Which record.
        seq: Seq,
        /// In what.
        what: &'static str,
    },
    /// A DATA frame without records.
    #[error("a data frame holds no record")]
    Empty,
    /// More was sent than the credit window allows.
    #[error("{in_flight} bytes are in flight, the credit window is {credit}")]
    Credit {
        /// Bytes received and not stored, this frame included.
        in_flight: u64,
        /// The window.
        credit: u64,
    },
    /// A frame that does not belong here.
    #[error("an agent may not send {kind} here")]
    Unexpected {
        /// Which kind of frame.
        kind: &'static str,
    },
}

/// The stream as one session continues it.
pub(crate) struct Ingest {
    head: LogHead,
    digester: RecordDigester,
    incarnation: Incarnation,
    map_version_min: u64,
    /// Whether this life's drain was begun, here or in the log.
    opened: bool,
    /// Whether a drain is open, as far as this server has seen.
    draining: bool,
}

impl Ingest {
    /// Continues where WELCOME said.
    pub(crate) fn new(admitted: &Admitted) -> Self {
        Ingest {
            head: admitted.head,
            digester: RecordDigester::resume(admitted.head.digest),
            incarnation: admitted.incarnation,
            map_version_min: admitted.map_version_min,
            opened: admitted.head.position.incarnation == admitted.incarnation,
            draining: admitted.draining,
        }
    }

    /// Checks the records of one frame and cuts them into batches. After an error the session is over.
    pub(crate) fn take(&mut self, records: Vec<Record>, now: Instant) -> Result<Vec<Batch>, Violation> {
        if records.is_empty() {
            return Err(Violation::Empty);
        }
        let mut batches = Vec::new();
        let mut open: Option<(Batch, u64)> = None;
        for record in records {
            self.check(&record)?;
            self.advance(&record);
            let before = self.draining;
            self.draining = record.body.drains_after(before);
            let cost = record_cost(&record);
            let (batch, bytes) = open.get_or_insert_with(|| {
                let first_seq = record.seq;
                let (records, head) = (Vec::new(), self.head);
                (Batch { records, first_seq, head, draining: before, cost: 0, arrived: now }, 0)
            });
            *bytes += record.body.extent().map_or(0, |(_, extent)| extent.len());
            batch.records.push(record);
            batch.head = self.head;
            batch.cost += cost;
            if *bytes >= BATCH_BYTES || batch.records.len() >= BATCH_RECORDS_MAX {
                batches.extend(open.take().map(|(batch, _)| batch));
            }
        }
        batches.extend(open.map(|(batch, _)| batch));
        Ok(batches)
    }

    fn check(&mut self, record: &Record) -> Result<(), Violation> {
        let seq = record.seq;
        let Some(expected) = self.head.position.seq.0.checked_add(1).map(Seq) else {
            return Err(Violation::Inconsistent { seq, what: "sequence numbers are used up" });
        };
        if seq != expected {
            return Err(Violation::Gap { expected, found: seq });
        }
        if record.time < self.head.time {
            return Err(Violation::Time { seq, time: record.time, before: self.head.time });
        }
        if record.map_version < self.map_version_min {
            return Err(Violation::MapVersion { seq, found: record.map_version, before: self.map_version_min });
        }
        self.check_body(seq, &record.body)
    }

    fn check_body(&mut self, seq: Seq, body: &RecordBody) -> Result<(), Violation> {
        match body {
            RecordBody::Write { extent, data, .. } if extent.len() != data.len() as u64 => {
                return Err(Violation::Inconsistent { seq, what: "its data is not as long as its range" });
            }
            RecordBody::Mark(mark) | RecordBody::DrainEnd(mark) if mark.label.len() > LABEL_BYTES_MAX => {
                return Err(Violation::Inconsistent { seq, what: "its label is longer than 200 bytes" });
            }
            RecordBody::DrainBegin { incarnation, .. } => {
                if *incarnation != self.incarnation {
                    let (expected, found) = (self.incarnation, *incarnation);
                    return Err(Violation::ForeignDrain { seq, expected, found });
                }
                self.opened = true;
            }
            // A disk that appears changes no byte of what was a point, so it may come before the drain that fills it.
            RecordBody::Disk { .. } => return Ok(()),
            _ => {}
        }
        if self.opened { Ok(()) } else { Err(Violation::NoDrain { seq, incarnation: self.incarnation }) }
    }

    fn advance(&mut self, record: &Record) {
        self.map_version_min = record.map_version;
        self.head = LogHead {
            position: Position { incarnation: self.incarnation, seq: record.seq },
            digest: self.digester.push(record),
            map_version: self.head.map_version.max(record.map_version),
            time: record.time,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use model::{DiskChange, DiskId, DrainCause, Extent, Mark, MarkKind};

    const LIFE: Incarnation = Incarnation([1; 16]);

    fn ingest(incarnation: Incarnation, seq: u64) -> Ingest {
        let position = Position { incarnation, seq: Seq(seq) };
        let head = LogHead { position, map_version: 3, time: Timestamp(100), ..LogHead::default() };
        Ingest::new(&Admitted { protocol: 1, head, incarnation: LIFE, map_version_min: 3, draining: false })
    }

    fn record(seq: u64, body: RecordBody) -> Record {
        Record { seq: Seq(seq), time: Timestamp(100 + seq), map_version: 3, body }
    }

    fn write(seq: u64, bytes: usize) -> Record {
        let extent = Extent::new(0, bytes as u64).expect("aligned");
        record(seq, RecordBody::Write { disk: DiskId(1), extent, data: Bytes::from(vec![1; bytes]) })
    }

    fn drain(seq: u64, incarnation: Incarnation) -> Record {
        record(seq, RecordBody::DrainBegin { cause: DrainCause::Initial, incarnation, lost_after: Seq(0) })
    }

    fn disk(seq: u64) -> Record {
        let (disk, name) = (DiskId(1), "a".parse().expect("name"));
        record(seq, RecordBody::Disk { disk, name, size: 4096, change: DiskChange::Added })
    }

    fn take(ingest: &mut Ingest, records: Vec<Record>) -> Result<Vec<Batch>, Violation> {
        ingest.take(records, Instant::now())
    }

    #[test]
    fn batches_carry_the_digest_an_agent_would_compute() {
        let mut ingest = ingest(LIFE, 5);
        let records: Vec<_> = (6..40).map(|seq| write(seq, 128 << 10)).collect();
        let mut digester = RecordDigester::default();
        let digests: Vec<_> = records.iter().map(|r| digester.push(r)).collect();
        let batches = take(&mut ingest, records).expect("in order");
        assert!(batches.len() > 3, "cut at about 1 MiB");
        for batch in &batches {
            let last = batch.head.position.seq.0;
            assert_eq!(batch.head.digest, digests[last as usize - 6]);
            assert_eq!(batch.records.last().map(|r| r.seq.0), Some(last));
            assert_eq!(batch.records[0].seq, batch.first_seq);
        }
        assert!(batches.windows(2).all(|w| w[0].head.position.seq.next() == w[1].first_seq));
    }

    #[test]
    fn what_does_not_continue_the_stream_is_refused() {
        let fails = |records: Vec<Record>| take(&mut ingest(LIFE, 5), records).expect_err("refused");
        assert_eq!(fails(vec![]), Violation::Empty);
        assert_eq!(fails(vec![write(7, 512)]), Violation::Gap { expected: Seq(6), found: Seq(7) });
        assert!(matches!(fails(vec![write(6, 512), write(6, 512)]), Violation::Gap { .. }));
        assert!(matches!(fails(vec![Record { time: Timestamp(99), ..write(6, 512) }]), Violation::Time { .. }));
        let older = Record { map_version: 4, ..write(6, 512) };
        assert!(matches!(fails(vec![older, write(7, 512)]), Violation::MapVersion { found: 3, before: 4, .. }));
        let Record { body: RecordBody::Write { disk, extent, .. }, .. } = write(6, 512) else { unreachable!() };
        let short = record(6, RecordBody::Write { disk, extent, data: Bytes::from_static(&[0; 100]) });
        assert!(matches!(fails(vec![short]), Violation::Inconsistent { .. }));
        let label = Mark { kind: MarkKind::Crash, id: [0; 16], label: "x".repeat(201) };
        assert!(matches!(fails(vec![record(6, RecordBody::Mark(label))]), Violation::Inconsistent { .. }));
    }

    #[test]
    fn a_new_life_opens_with_its_drain() {
        let other = Incarnation([9; 16]);
        let fails = |records| take(&mut ingest(other, 5), records).expect_err("refused");
        assert!(matches!(fails(vec![write(6, 512)]), Violation::NoDrain { .. }));
        assert!(matches!(fails(vec![disk(6), write(7, 512)]), Violation::NoDrain { .. }));
        assert!(matches!(fails(vec![drain(6, other)]), Violation::ForeignDrain { .. }));
        let opens = vec![disk(6), drain(7, LIFE), write(8, 512)];
        take(&mut ingest(other, 5), opens).expect("a disk and then the drain");
    }
}
