//! The records of a segment: laid over those before, so that it is known which positions read from what is damaged.

use format::object::ObjectHeader;
use format::segment::{ChunkAt, Piece, Table};
use model::{DiskChange, Extent, PointId, Record, RecordBody, RecordDigester};
use store::LogPosition;

use super::Walk;
use crate::recover::verify::{Hits, KnownPoint};

impl Walk<'_> {
    /// Takes in every record of a segment.
    pub(super) fn records(&mut self, position: LogPosition, path: &str, header: &ObjectHeader, table: &Table) {
        let mut digester = self.digest.map(RecordDigester::resume);
        for record in &table.records {
            let digest = digester.as_mut().map(|digester| digester.push(record));
            self.walked.validity.push(record.seq, &record.body);
            if self.witness == Some(record.seq) {
                self.walked.witnessed = digest;
            }
            if let RecordBody::Mark(mark) | RecordBody::DrainEnd(mark) = &record.body {
                let id = PointId(mark.id).to_string();
                self.walked.points.push(KnownPoint { seq: record.seq, id });
            }
            if self.asked.contains(&record.seq) {
                self.walked.point_digests.extend(digest.map(|digest| (record.seq, digest)));
            }
            self.lay_over(position, path, table, record);
            for damage in &self.hitting {
                if let Some(hits) = self.findings.hits(Some(*damage)) {
                    hits.after(record.seq);
                }
            }
        }
        match digester {
            Some(digester) if digester.digest() != header.head.digest => {
                let problem = "the digest over its records is not the one its header states";
                self.findings.damage(path, problem);
            }
            // Behind an unreadable object the digest goes on from the header, which is authenticated.
            _ if self.witness == Some(header.head.position.seq) => self.walked.witnessed = Some(header.head.digest),
            _ => {}
        }
    }

    fn lay_over(&mut self, position: LogPosition, path: &str, table: &Table, record: &Record<Vec<Piece>>) {
        if let RecordBody::Disk { disk, size, change, .. } = &record.body {
            let size = if *change == DiskChange::Removed { 0 } else { *size };
            self.each_hitting(|hits| hits.cut(*disk, size));
        }
        let Some((disk, extent)) = record.body.extent() else { return };
        self.each_hitting(|hits| hits.lay_over(disk, extent));
        let RecordBody::Write { data, .. } = &record.body else { return };
        let mut at = extent.offset();
        for piece in data {
            let part = Extent::new(at, piece.len);
            at += piece.len;
            let Err(damage) = self.check_piece(position, path, table, piece) else { continue };
            if let (Ok(part), Some(index)) = (part, damage) {
                self.hitting.insert(index);
                if let Some(hits) = self.findings.hits(damage) {
                    hits.lose(disk, part);
                }
            }
        }
    }

    fn each_hitting(&mut self, mut change: impl FnMut(&mut Hits)) {
        for damage in &self.hitting {
            if let Some(hits) = self.findings.hits(Some(*damage)) {
                change(hits);
            }
        }
    }

    /// Whether the bytes of a piece are there. The error is the damage that hides them.
    fn check_piece(
        &mut self,
        position: LogPosition,
        path: &str,
        table: &Table,
        piece: &Piece,
    ) -> Result<(), Option<usize>> {
        let (key, id, frame, offset) = match piece.at {
            ChunkAt::Zero => return Ok(()),
            ChunkAt::Here { frame, offset } => ((self.machine.clone(), position), None, frame, offset),
            ChunkAt::Other { reference, frame, offset } => match table.references.get(reference as usize) {
                None => return Err(self.findings.damage(path, "a record refers to a segment that is not listed")),
                Some(r) => {
                    let position = LogPosition { epoch: r.epoch, slot: r.slot };
                    ((r.machine.clone(), position), Some(r.id), frame, offset)
                }
            },
        };
        let Some(Some(held)) = self.held.get(&key) else {
            return Err(self.findings.damage(path, "a record refers to a segment that is not in the log before it"));
        };
        match held.frames.get(&frame) {
            None if held.damage.is_some() => Err(held.damage),
            Some(plain) if u64::from(offset) + piece.len <= u64::from(*plain) && id.is_none_or(|id| id == held.id) => {
                Ok(())
            }
            _ => Err(self.findings.damage(path, "a record refers to bytes that are not where it says")),
        }
    }
}
