//! What an object says, for people: behind `farshore dump FILE`.
//!
//! Damaged objects are what this is for, so it shows as much as can still be read and names everything that cannot. A
//! header whose authentication code was not checked is shown as such: nothing in it may be trusted.

#[cfg(test)]
mod tests;
mod text;

use model::{Record, RecordBody};
use serde::Serialize;

use crate::FormatError;
use crate::consumers::Consumers;
use crate::hold::HoldRequest;
use crate::keys::Keys;
use crate::manifest::{Manifest, ManifestCommit, Point, Promoted};
use crate::map::{self, MapDisk, MapRun, MapSource, Node};
use crate::object::open_body;
use crate::object::{CondemnList, HEADER_BYTES, ObjectHeader, ObjectKind, Opening, RegistryEntry, StreamEpoch};
use crate::pack::{self, PackRef, PackedSegment};
use crate::segment::{
    ChunkAt, FrameInfo, FrameOpener, Piece, SegmentReader, SegmentRef, Table, frame_range, table_range,
};

/// Bytes of a body shown when this crate does not know its form.
const OPAQUE_BYTES_MAX: usize = 256;

/// Everything that could be read of an object. Prints as text; serialises with the same names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dump {
    /// Whether the header's authentication code was checked and right. When false nothing here may be trusted.
    pub authenticated: bool,
    /// What is wrong with the object, or kept it from being shown whole. Empty for a sound one.
    pub problems: Vec<String>,
    /// The header.
    pub header: HeaderDump,
    /// The record table of a segment.
    pub table: Option<TableDump>,
    /// What a map maps.
    pub map: Option<MapDump>,
    /// What a pack holds, segment by segment.
    pub pack: Option<Vec<String>>,
    /// The body of a small object.
    pub body: Option<BodyDump>,
}

/// A header's fields; ids, hashes and digests in hex, times in RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of ObjectHeader")]
pub struct HeaderDump {
    pub kind: &'static str,
    pub place: String,
    pub total_bytes: u64,
    pub vault: String,
    pub id: String,
    pub hash: String,
    pub prev_hash: String,
    pub incarnation: String,
    pub first_seq: u64,
    pub last_seq: u64,
    pub first_time: String,
    pub last_time: String,
    pub map_version: u64,
    pub record_digest: String,
    pub gc_seen: u64,
    pub shared: bool,
    pub frame_count: u32,
    pub table_sealed_bytes: u32,
    pub table_plain_bytes: u32,
    pub body_digest: String,
}

/// A record table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableDump {
    /// Earlier segments named, as `id at machine/epoch/slot`.
    pub references: Vec<String>,
    /// Frames.
    pub frames: Vec<FrameInfo>,
    /// Records.
    pub records: Vec<RecordDump>,
    /// Bytes that writes cover.
    pub written_bytes: u64,
    /// Of these, bytes that are zeros and bytes that lie in earlier segments.
    pub zero_bytes: u64,
    /// See `zero_bytes`.
    pub referenced_bytes: u64,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordDump {
    /// Its number.
    pub seq: u64,
    /// Its time in RFC 3339.
    pub time: String,
    /// Dirty-map version in force.
    pub map_version: u64,
    /// What happened, in words.
    pub what: String,
    /// Where a write's bytes are.
    pub pieces: Vec<String>,
}

/// The body of a small object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyDump {
    /// Slot 0 of an epoch.
    Opening {
        /// Epoch it continues.
        prev_epoch: u64,
        /// Last accepted slot there.
        prev_end: u64,
        /// The whole manifest, in a manifest log.
        state: Option<ManifestDump>,
    },
    /// A step of a manifest.
    Manifest(ManifestDump),
    /// A request to hold a position.
    Hold {
        /// Names the hold.
        id: String,
        /// The position.
        seq: u64,
        /// For how long, in seconds; 0 ends it.
        lasts_seconds: u32,
    },
    /// A state of the list of consumers.
    Consumers {
        /// Epochs up to this one may be gone.
        trimmed: u64,
        /// Each with its cursor and its vault store.
        consumers: Vec<String>,
    },
    /// A condemn list: stream epochs.
    Condemn(Vec<String>),
    /// An entry of the registry: a machine.
    Registry(String),
    /// A body of a form this crate does not know.
    Opaque {
        /// Its length in bytes.
        bytes: u64,
        /// Its beginning in hex.
        hex: String,
    },
}

/// A manifest or a step of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManifestDump {
    /// Maps of the history before those segments.
    pub nodes: Vec<String>,
    /// Segments promoted and in no map yet.
    pub segments: Vec<String>,
    /// Recovery points.
    pub points: Vec<String>,
    /// Packs that stand for segments before the horizon.
    pub packs: Vec<String>,
}

/// A map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MapDump {
    /// Its disks.
    pub disks: Vec<MapDiskDump>,
    /// What a merge is made of.
    pub nodes: Vec<String>,
    /// What a leaf is made of.
    pub segments: Vec<String>,
    /// Other machines from whose segments it reads.
    pub machines: Vec<String>,
}

/// A disk of a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MapDiskDump {
    /// Its name.
    pub name: String,
    /// Its identity in records.
    pub id: u32,
    /// Its size in bytes.
    pub size: u64,
    /// Runs that the map has of it.
    pub runs: u64,
    /// Bytes of data in them.
    pub data_bytes: u64,
    /// Bytes of zeros in them.
    pub zero_bytes: u64,
}

impl MapDiskDump {
    fn new(disk: &MapDisk) -> Self {
        Self { name: disk.name.to_string(), id: disk.id.0, size: disk.size, runs: 0, data_bytes: 0, zero_bytes: 0 }
    }

    fn count(&mut self, run: &MapRun) {
        self.runs += 1;
        let bytes = match run.source {
            MapSource::Zero => &mut self.zero_bytes,
            MapSource::Data { .. } => &mut self.data_bytes,
        };
        // Ranges come from a sealed page; a sum past the end of numbers says no more than the largest one.
        *bytes = bytes.saturating_add(run.extent.len());
    }
}

/// Reads what can be read of `bytes`, which should be a whole object. Without keys only the header is shown, and it
/// says that it is not authenticated. Errors: not even a header can be read (`Truncated`, `Magic`, `Version`,
/// `Invalid`).
pub fn dump(keys: Option<&Keys>, bytes: &[u8]) -> Result<Dump, FormatError> {
    let mut problems = Vec::new();
    let parsed = keys.map(|keys| (keys, ObjectHeader::parse(keys, bytes)));
    let (keys, header) = match parsed {
        Some((keys, Ok(header))) => (Some(keys), header),
        Some((_, Err(problem))) => {
            problems.push(problem.to_string());
            (None, ObjectHeader::parse_unauthenticated(bytes)?)
        }
        None => (None, ObjectHeader::parse_unauthenticated(bytes)?),
    };
    if let Err(problem) = header.check_body(bytes) {
        problems.push(problem.to_string());
    }
    let mut dump = Dump {
        authenticated: keys.is_some(),
        problems,
        header: header_dump(&header, bytes)?,
        table: None,
        map: None,
        pack: None,
        body: None,
    };
    let Some(keys) = keys else { return Ok(dump) };
    let shown = match header.kind {
        ObjectKind::Segment => dump.show_segment(keys, header, bytes),
        ObjectKind::Map => dump.show_map(keys, &header, bytes),
        ObjectKind::Pack => dump.show_pack(keys, &header, bytes),
        _ => dump.show_body(keys, &header, bytes),
    };
    if let Err(problem) = shown {
        dump.note(problem.to_string());
    }
    Ok(dump)
}

impl Dump {
    fn note(&mut self, problem: String) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn show_segment(&mut self, keys: &Keys, header: ObjectHeader, bytes: &[u8]) -> Result<(), FormatError> {
        let table = slice(bytes, table_range(&header))?;
        let reader = SegmentReader::new(keys, header, table)?;
        for frame in &reader.table().frames {
            let opened = slice(bytes, frame_range(reader.header(), frame)).and_then(|b| reader.open(frame.number, b));
            if let Err(problem) = opened {
                self.note(format!("frame {}: {problem}", frame.number));
            }
        }
        self.table = Some(table_dump(reader.table()));
        Ok(())
    }

    fn show_map(&mut self, keys: &Keys, header: &ObjectHeader, bytes: &[u8]) -> Result<(), FormatError> {
        let index = map::open_index(keys, header, slice(bytes, table_range(header))?)?;
        let mut disks: Vec<_> = index.disks.iter().map(MapDiskDump::new).collect();
        for page in &index.pages {
            let opened =
                slice(bytes, map::page_range(header, page)).and_then(|b| map::open_page(keys, header.id, page, b));
            match (opened, disks.iter_mut().find(|disk| disk.id == page.disk.0)) {
                (Ok(runs), Some(disk)) => runs.iter().for_each(|run| disk.count(run)),
                // What was written to a disk that is gone by the map's end.
                (Ok(_), None) => {}
                (Err(problem), _) => self.note(format!("page {}: {problem}", page.frame.number)),
            }
        }
        let nodes = index.children.iter().map(node_dump).collect();
        let machines = index.machines.iter().map(ToString::to_string).collect();
        let segments = index.segments.iter().map(segment_dump).collect();
        self.map = Some(MapDump { disks, nodes, segments, machines });
        Ok(())
    }

    fn show_pack(&mut self, keys: &Keys, header: &ObjectHeader, bytes: &[u8]) -> Result<(), FormatError> {
        let index = pack::open_index(keys, header, slice(bytes, table_range(header))?)?;
        for held in &index.segments {
            let opener = FrameOpener::new(keys, held.id);
            for frame in &held.frames {
                let opened = slice(bytes, frame_range(header, frame)).and_then(|sealed| opener.open(frame, sealed));
                if let Err(problem) = opened {
                    self.note(format!("frame {} of epoch {} slot {}: {problem}", frame.number, held.epoch, held.slot));
                }
            }
        }
        self.pack = Some(index.segments.iter().map(packed_dump).collect());
        Ok(())
    }

    fn show_body(&mut self, keys: &Keys, header: &ObjectHeader, bytes: &[u8]) -> Result<(), FormatError> {
        let plain = open_body(keys, header, bytes)?;
        self.body = Some(match header.kind {
            ObjectKind::Opening => {
                let opening = Opening::decode(&plain)?;
                let state = match opening.state.as_slice() {
                    [] => None,
                    state => Some(
                        Manifest::decode(state).map(|m| manifest_dump(&m.nodes, &m.segments, &m.points, &m.packs))?,
                    ),
                };
                BodyDump::Opening { prev_epoch: opening.prev_epoch, prev_end: opening.prev_end, state }
            }
            ObjectKind::Manifest => {
                let commit = ManifestCommit::decode(&plain)?;
                BodyDump::Manifest(manifest_dump(&commit.nodes, &commit.segments, &commit.points, &commit.packs))
            }
            ObjectKind::Hold => {
                let HoldRequest { id, seq, lasts_seconds } = HoldRequest::decode(&plain)?;
                BodyDump::Hold { id: id.to_string(), seq: seq.0, lasts_seconds }
            }
            ObjectKind::Consumer => {
                let Consumers { trimmed, consumers } = Consumers::decode(&plain)?;
                let shown = consumers.iter().map(|(id, c)| {
                    format!(
                        "{id} at epoch {} slot {}, seq {}, as of {}, in {}",
                        c.epoch, c.slot, c.seq, c.stated, c.vault
                    )
                });
                BodyDump::Consumers { trimmed, consumers: shown.collect() }
            }
            ObjectKind::Condemn => {
                let epoch = |e: &StreamEpoch| format!("{}/stream/epoch {}", e.machine, e.epoch);
                BodyDump::Condemn(CondemnList::decode(&plain)?.epochs.iter().map(epoch).collect())
            }
            ObjectKind::Registry => BodyDump::Registry(RegistryEntry::decode(&plain)?.machine.to_string()),
            _ => opaque(&plain),
        });
        Ok(())
    }
}

fn slice(bytes: &[u8], range: std::ops::Range<u64>) -> Result<&[u8], FormatError> {
    let truncated = FormatError::Truncated { need: range.end, have: bytes.len() as u64 };
    let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
        return Err(truncated);
    };
    bytes.get(start..end).ok_or(truncated)
}

fn header_dump(header: &ObjectHeader, bytes: &[u8]) -> Result<HeaderDump, FormatError> {
    let head = &header.head;
    Ok(HeaderDump {
        kind: header.kind.name(),
        place: header.place.to_string(),
        total_bytes: header.total_bytes,
        vault: header.vault.to_string(),
        id: header.id.to_string(),
        hash: ObjectHeader::hash(&bytes[..HEADER_BYTES.min(bytes.len())])?.to_string(),
        prev_hash: header.prev_hash.to_string(),
        incarnation: head.position.incarnation.to_string(),
        first_seq: header.first_seq.0,
        last_seq: head.position.seq.0,
        first_time: header.first_time.to_string(),
        last_time: head.time.to_string(),
        map_version: head.map_version,
        record_digest: head.digest.to_string(),
        gc_seen: header.gc_seen,
        shared: header.shared,
        frame_count: header.frame_count,
        table_sealed_bytes: header.table_sealed_bytes,
        table_plain_bytes: header.table_plain_bytes,
        body_digest: hex(&header.body_digest),
    })
}

fn table_dump(table: &Table) -> TableDump {
    let reference = |r: &SegmentRef| format!("{} at {}/stream/epoch {} slot {}", r.id, r.machine, r.epoch, r.slot);
    let pieces = || table.records.iter().flat_map(|record| pieces_of(record).iter());
    let sum = |want: fn(&ChunkAt) -> bool| pieces().filter(|piece| want(&piece.at)).map(|piece| piece.len).sum();
    TableDump {
        references: table.references.iter().map(reference).collect(),
        frames: table.frames.clone(),
        records: table.records.iter().map(record_dump).collect(),
        written_bytes: sum(|_| true),
        zero_bytes: sum(|at| matches!(at, ChunkAt::Zero)),
        referenced_bytes: sum(|at| matches!(at, ChunkAt::Other { .. })),
    }
}

fn pieces_of(record: &Record<Vec<Piece>>) -> &[Piece] {
    match &record.body {
        RecordBody::Write { data, .. } => data,
        _ => &[],
    }
}

fn record_dump(record: &Record<Vec<Piece>>) -> RecordDump {
    let what = match &record.body {
        RecordBody::Write { disk, extent, .. } => format!("write disk {disk} {extent}"),
        RecordBody::Zero { disk, extent } => format!("zero disk {disk} {extent}"),
        RecordBody::Mark(mark) => format!("mark {}", mark_text(mark)),
        RecordBody::DrainBegin { cause, incarnation, lost_after } => {
            format!("drain begins: {cause:?}, incarnation {incarnation}, lost after {lost_after}")
        }
        RecordBody::DrainEnd(mark) => format!("drain ends: mark {}", mark_text(mark)),
        RecordBody::Disk { disk, name, size, change } => {
            format!("disk {disk} {name} of {size} bytes: {change:?}").to_lowercase()
        }
    };
    let piece = |piece: &Piece| match piece.at {
        ChunkAt::Zero => format!("{} zeros", piece.len),
        ChunkAt::Here { frame, offset } => format!("{} in frame {frame} at {offset}", piece.len),
        ChunkAt::Other { reference, frame, offset } => {
            format!("{} in reference {reference} frame {frame} at {offset}", piece.len)
        }
    };
    RecordDump {
        seq: record.seq.0,
        time: record.time.to_string(),
        map_version: record.map_version,
        what,
        pieces: pieces_of(record).iter().map(piece).collect(),
    }
}

fn mark_text(mark: &model::Mark) -> String {
    format!("{} {:?} {:?}", hex(&mark.id), mark.kind, mark.label)
}

fn segment_dump(s: &Promoted) -> String {
    let (id, hash, head) = (s.id, s.hash, s.head.position);
    let shared = if s.shared { ", shared" } else { "" };
    format!("epoch {} slot {}: id {id} hash {hash}, {} bytes{shared}, to {head}", s.epoch, s.slot, s.bytes)
}

fn node_dump(node: &Node) -> String {
    let (level, map, end) = (node.level, node.map, &node.end);
    let to = end.head.position;
    format!(
        "map {}/{} of level {level}, {} bytes, to epoch {} slot {}, {to}",
        map.epoch, map.number, node.bytes, end.epoch, end.slot
    )
}

fn packed_dump(held: &PackedSegment) -> String {
    let bytes: u64 = held.frames.iter().map(|frame| u64::from(frame.sealed_bytes)).sum();
    format!("epoch {} slot {}: id {}, {} frames of {bytes} bytes", held.epoch, held.slot, held.id, held.frames.len())
}

fn pack_dump(pack: &PackRef) -> String {
    let PackRef { name, first, last, bytes, .. } = pack;
    format!(
        "pack {}/{} of {bytes} bytes, epoch {} slot {} to epoch {} slot {}",
        name.epoch, name.number, first.0, first.1, last.0, last.1
    )
}

fn manifest_dump(nodes: &[Node], segments: &[Promoted], points: &[Point], packs: &[PackRef]) -> ManifestDump {
    let point = |p: &Point| {
        let mark = p.mark.as_ref().map(|mark| format!(", mark {}", mark_text(mark))).unwrap_or_default();
        let made = p.made.map(|made| format!(", made {} of chain {}", made.at, made.chain)).unwrap_or_default();
        let states = match p.states.len() {
            0 => "",
            _ => ", states reckoned",
        };
        format!("{} at {} {} {:?}{mark}, digest {}{made}{states}", p.id, p.position, p.time, p.kind, p.digest)
    };
    ManifestDump {
        nodes: nodes.iter().map(node_dump).collect(),
        segments: segments.iter().map(segment_dump).collect(),
        points: points.iter().map(point).collect(),
        packs: packs.iter().map(pack_dump).collect(),
    }
}

fn opaque(plain: &[u8]) -> BodyDump {
    BodyDump::Opaque { bytes: plain.len() as u64, hex: hex(&plain[..plain.len().min(OPAQUE_BYTES_MAX)]) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
