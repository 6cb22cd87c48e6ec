//! The records of a stretch of the stream, as its segments' tables have them.
//!
//! Memory: about 100 bytes for each record and 24 for each piece. A leaf's worth is small; what lies behind the last map
//! is as long as the applier has been away, so it is bounded by [`RECORDS_BYTES_MAX`].

use std::sync::Arc;

use format::keys::Keys;
use format::map::{Node, tag};
use format::object::LogKind;
use format::segment::{Piece, Table};
use model::{Incarnation, LogHead, MachineName, Record, RecordBody, RecordDigest, RecordDigester, Seq, Timestamp};
use store::{LogEntry, LogPosition};

use super::{Disks, Frames, Layout, ObjectPlace, RecoverError};
use crate::points::incarnation_after;
use crate::segments;

/// Most memory that the records of one stretch may take.
const RECORDS_BYTES_MAX: u64 = 8 << 30;

/// A record's pieces within its segment's list.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceRun {
    first: u32,
    count: u32,
}

/// One segment's table.
pub(super) struct Rows {
    position: LogPosition,
    pub(super) first_seq: Seq,
    /// Stream state before its first record.
    pub(super) before: LogHead,
    pub(super) after: LogHead,
    pub(super) records: Vec<Record<PieceRun>>,
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

    fn bytes(&self) -> u64 {
        let records = self.records.len() * size_of::<Record<PieceRun>>();
        let pieces = self.pieces.len() * size_of::<Piece>();
        (records + pieces + size_of::<Rows>() + self.references.len() * 4) as u64
    }
}

/// Records behind some maps.
pub(super) struct Records {
    machine: MachineName,
    /// Nodes of everything before, oldest first.
    pub(super) before: Vec<Node>,
    /// Stream state there.
    start: LogHead,
    pub(super) rows: Vec<Arc<Rows>>,
    bytes: u64,
}

impl Records {
    /// None yet, behind these nodes.
    pub fn behind(machine: MachineName, before: Vec<Node>) -> Self {
        let start = before.last().map(|node| node.end.head).unwrap_or_default();
        Self { machine, before, start, rows: Vec::new(), bytes: 0 }
    }

    /// None yet, where the stream stands at `start`; what lies before is not at hand.
    pub fn from(machine: MachineName, start: LogHead) -> Self {
        Self { machine, before: Vec::new(), start, rows: Vec::new(), bytes: 0 }
    }

    /// These records and those that continue them. Errors: `TooLong`.
    pub fn and(mut self, next: &Self) -> Result<Self, RecoverError> {
        next.rows.iter().try_for_each(|rows| self.push(rows.clone()))?;
        Ok(self)
    }

    /// Stream state after the last record.
    pub fn head(&self) -> LogHead {
        self.rows.last().map_or(self.start, |rows| rows.after)
    }

    /// Stream state before the first record.
    pub fn start(&self) -> LogHead {
        self.start
    }

    /// Takes the next segment in and gives its rows. Errors: `Damage`, `TooLong`.
    pub fn take(&mut self, keys: &Keys, frames: &Frames, entry: LogEntry) -> Result<&Rows, RecoverError> {
        let path = segments::path(&self.machine, LogKind::Stream, entry.position);
        let table = segments::table(keys, &entry.header, &entry.bytes)
            .map_err(|source| RecoverError::damaged(path.clone(), source))?;
        let rows = self.intern(frames, &entry, table);
        let mut digester = RecordDigester::resume(self.head().digest);
        rows.records.iter().for_each(|record| _ = digester.push(record));
        if digester.digest() != entry.header.head.digest {
            let what = "the digest over its records is not the one its header states".to_owned();
            return Err(RecoverError::Damage { path, what });
        }
        self.push(Arc::new(rows))?;
        Ok(self.rows.last().expect("just pushed"))
    }

    fn push(&mut self, rows: Arc<Rows>) -> Result<(), RecoverError> {
        self.bytes += rows.bytes();
        if self.bytes > RECORDS_BYTES_MAX {
            return Err(RecoverError::TooLong { machine: self.machine.clone(), bytes_max: RECORDS_BYTES_MAX });
        }
        self.rows.push(rows);
        Ok(())
    }

    fn intern(&self, frames: &Frames, entry: &LogEntry, table: Table) -> Rows {
        let (header, position) = (&entry.header, entry.position);
        let object = frames.intern(ObjectPlace { machine: self.machine.clone(), position, tag: tag(&header.id) });
        let references = table.references.into_iter().map(|r| {
            let position = LogPosition { epoch: r.epoch, slot: r.slot };
            frames.intern(ObjectPlace { machine: r.machine, position, tag: tag(&r.id) })
        });
        let references = references.collect();
        let (data_start, layout_frames) = (segments::data_start(header), table.frames);
        frames.set_layout(object, Layout { id: header.id, data_start, frames: layout_frames });
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
        let (first_seq, after) = (header.first_seq, header.head);
        Rows { position, first_seq, before: self.head(), after, records, pieces, references, object }
    }

    fn rows_with(&self, seq: Seq) -> Option<&Rows> {
        let at = self.rows.partition_point(|rows| rows.after.position.seq < seq);
        self.rows.get(at).map(Arc::as_ref).filter(|rows| rows.first_seq <= seq && seq > Seq::ZERO)
    }

    /// The time of a record, if it is here.
    pub fn time_of(&self, seq: Seq) -> Option<Timestamp> {
        let rows = self.rows_with(seq)?;
        rows.records.get(usize::try_from(seq.0 - rows.first_seq.0).ok()?).map(|record| record.time)
    }

    /// The last record not later than `time`, or what lies before the first.
    pub fn last_not_after(&self, time: Timestamp) -> Seq {
        let rows = self.rows.partition_point(|rows| rows.after.time <= time);
        let within = self.rows.get(rows).and_then(|rows| {
            let count = rows.records.partition_point(|record| record.time <= time);
            count.checked_sub(1).map(|last| rows.records[last].seq)
        });
        let before = rows.checked_sub(1).map_or(self.start.position.seq, |rows| self.rows[rows].after.position.seq);
        within.unwrap_or(before)
    }

    /// Incarnation and digest after a record, if it is here.
    pub fn state_after(&self, seq: Seq) -> Option<(Incarnation, RecordDigest)> {
        let rows = self.rows_with(seq)?;
        let mut digester = RecordDigester::resume(rows.before.digest);
        let mut incarnation = rows.before.position.incarnation;
        for record in rows.records.iter().take_while(|record| record.seq <= seq) {
            digester.push(record);
            incarnation = incarnation_after(incarnation, record);
        }
        Some((incarnation, digester.digest()))
    }

    /// Lays all records up to `seq` over the disks.
    pub fn lay_over(&self, disks: &mut Disks, seq: Seq) -> Result<(), RecoverError> {
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
        Ok(())
    }
}
