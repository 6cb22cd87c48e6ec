//! The oracle: reads a stream back as any reader would, and compares it with what an agent numbered.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use format::keys::Keys;
use format::object::{LogKind, ObjectHeader, ObjectId, ObjectKind, Place};
use format::segment::{ChunkAt, Piece, SegmentReader, Table, open_segment};
use model::{Record, RecordDigest, RecordDigester};
use store::{EpochLog, LogEnd, LogPosition, LogReader, Next, ReadMode};
use waiting::Deadline;

/// A segment as it was read.
struct Read {
    position: LogPosition,
    segment: SegmentReader,
    object: Bytes,
}

/// Follows one machine's stream.
pub struct Witness {
    keys: Arc<Keys>,
    log: EpochLog,
    reader: LogReader,
    segments: BTreeMap<ObjectId, Read>,
    digester: RecordDigester,
    /// Every record of the log, rebuilt.
    pub records: Vec<Record>,
    /// Digest after each.
    pub digests: Vec<RecordDigest>,
    /// Bytes of segments.
    pub object_bytes: u64,
}

impl Witness {
    pub fn new(log: EpochLog) -> Self {
        Witness {
            keys: log.keys.clone(),
            log: log.clone(),
            reader: LogReader::new(log, LogEnd::default(), ReadMode::Whole),
            segments: BTreeMap::new(),
            digester: RecordDigester::default(),
            records: Vec::new(),
            digests: Vec::new(),
            object_bytes: 0,
        }
    }

    /// Reads to the end. While a new writer has not opened its epoch yet the end is not decided: waits for it.
    pub async fn catch_up(&mut self) {
        let deadline = Deadline::after(std::time::Duration::from_secs(60));
        loop {
            match self.reader.next().await.expect("the log reads back") {
                Next::Entry(entry) => {
                    if entry.header.kind == ObjectKind::Segment {
                        let segment =
                            open_segment(&self.keys, &entry.header.place, &entry.bytes).expect("an intact segment");
                        self.object_bytes += entry.header.total_bytes;
                        self.fetch_others(segment.table()).await;
                        self.take(Read { position: entry.position, segment, object: entry.bytes });
                    }
                }
                Next::End => return,
                Next::Unopened { .. } => deadline.look_again("an epoch is opened").await,
                Next::Folded(_) => panic!("nothing is ever folded here"),
            }
        }
    }

    /// Segments of other epochs that were not met on the way.
    async fn fetch_others(&mut self, table: &Table) {
        for named in table.references.iter().filter(|named| named.machine != self.log.machine) {
            let (machine, log) = (Some(named.machine.clone()), Some(LogKind::Stream));
            let place = Place { machine, log, epoch: named.epoch, slot: named.slot };
            let path = format!("machine/{}/stream/seg/{:016x}/{:016x}", named.machine, named.epoch, named.slot);
            let object =
                self.log.store.get(&path).await.expect("memory answers").expect("what is referred to is there");
            let segment = open_segment(&self.keys, &place, &object).expect("an intact segment");
            assert_eq!(segment.header().id, named.id, "it is the segment that is named");
            let position = LogPosition { epoch: named.epoch, slot: named.slot };
            self.segments.insert(named.id, Read { position, segment, object });
        }
    }

    fn take(&mut self, read: Read) {
        let id = read.segment.header().id;
        self.segments.insert(id, read);
        let read = &self.segments[&id];
        for reference in &read.segment.table().references {
            let named = &self.segments.get(&reference.id).expect("a reference names what was accepted before");
            assert_eq!((named.position.epoch, named.position.slot), (reference.epoch, reference.slot));
            let own = reference.machine == self.log.machine;
            assert!(!own || named.position < read.position, "a reference names an earlier segment");
        }
        let mut frames = BTreeMap::new();
        let records: Vec<Record> = read
            .segment
            .table()
            .records
            .iter()
            .cloned()
            .map(|record| {
                let Record { seq, time, map_version, body } = record;
                let body = body.map_data(|_, pieces| self.rebuild(&mut frames, read, &pieces));
                Record { seq, time, map_version, body }
            })
            .collect();
        for record in &records {
            self.digests.push(self.digester.push(record));
        }
        self.records.extend(records);
        let read = &self.segments[&id];
        assert_eq!(read.segment.header().head.digest, self.digester.digest(), "the header's digest is the stream's");
    }

    fn rebuild(&self, frames: &mut BTreeMap<(ObjectId, u32), Vec<u8>>, read: &Read, pieces: &[Piece]) -> Bytes {
        let mut data = Vec::new();
        for piece in pieces {
            let len = usize::try_from(piece.len).expect("small");
            let (from, frame, offset) = match piece.at {
                ChunkAt::Zero => {
                    data.resize(data.len() + len, 0);
                    continue;
                }
                ChunkAt::Here { frame, offset } => (read, frame, offset as usize),
                ChunkAt::Other { reference, frame, offset } => {
                    let id = read.segment.table().references[reference as usize].id;
                    (&self.segments[&id], frame, offset as usize)
                }
            };
            let plain = frames.entry((from.segment.header().id, frame)).or_insert_with(|| {
                let range = from.segment.frame_range(frame).expect("a frame named is there");
                from.segment.open(frame, &from.object[range.start as usize..range.end as usize]).expect("it opens")
            });
            data.extend_from_slice(&plain[offset..offset + len]);
        }
        data.into()
    }

    /// Segments in order: header, and the machines and epochs to which they refer.
    pub fn all(&self) -> Vec<(ObjectHeader, Vec<(String, u64)>)> {
        let own = |read: &&Read| read.segment.header().place.machine.as_ref() == Some(&self.log.machine);
        let mut all: Vec<_> = self.segments.values().filter(own).collect();
        all.sort_by_key(|read| read.position);
        let named = |read: &Read| {
            let references = &read.segment.table().references;
            references.iter().map(|named| (named.machine.to_string(), named.epoch)).collect()
        };
        all.into_iter().map(|read| (read.segment.header().clone(), named(read))).collect()
    }

    /// Whether the log holds at least everything up to `stored`, and nothing but what the agent numbered.
    pub fn check(&self, numbered: &[Record], stored: u64, digest: RecordDigest) -> Result<(), String> {
        compare(numbered, &self.records, stored)?;
        match stored.checked_sub(1).map(|last| self.digests[last as usize]) {
            Some(found) if found != digest => Err(format!("digest at {stored} differs")),
            _ => Ok(()),
        }
    }
}

/// Whether `log` is a prefix of `numbered` that reaches to `stored`.
pub fn compare(numbered: &[Record], log: &[Record], stored: u64) -> Result<(), String> {
    if (log.len() as u64) < stored {
        return Err(format!("{stored} records are acknowledged, {} can be read back", log.len()));
    }
    if log.len() > numbered.len() {
        return Err(format!("{} records in the log, {} numbered", log.len(), numbered.len()));
    }
    match log.iter().zip(numbered).find(|(found, expected)| found != expected) {
        Some((found, expected)) => Err(format!("record {} is not what was sent as {}", found.seq, expected.seq)),
        None => Ok(()),
    }
}

#[test]
fn a_log_that_lost_swapped_or_changed_a_record_is_noticed() {
    use super::workload::{Workload, record};
    let mut workload = Workload::new(1);
    let sent: Vec<Record> = (1..=20).map(|seq| record(seq, 1, workload.next())).collect();
    assert_eq!(compare(&sent, &sent, 20), Ok(()));
    assert_eq!(compare(&sent, &sent[..15], 15), Ok(()), "what is not acknowledged may be missing");
    compare(&sent, &sent[..15], 16).expect_err("an acknowledged record is missing");
    let mut dropped = sent.clone();
    dropped.remove(7);
    compare(&sent, &dropped, 19).expect_err("one record dropped");
    let mut swapped = sent.clone();
    swapped.swap(3, 4);
    compare(&sent, &swapped, 20).expect_err("two records swapped");
    let mut changed = sent.clone();
    let at = changed.iter().position(|r| matches!(r.body, model::RecordBody::Write { .. })).expect("a write");
    if let model::RecordBody::Write { data, .. } = &mut changed[at].body {
        let mut bytes = data.to_vec();
        bytes[100] ^= 1;
        *data = bytes.into();
    }
    compare(&sent, &changed, 20).expect_err("one bit changed");
    let mut more = sent.clone();
    more.push(record(21, 1, workload.next()));
    compare(&sent, &more, 20).expect_err("a record nobody sent");
}
