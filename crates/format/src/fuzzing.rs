//! Bodies of the fuzz targets, kept here so that ordinary tests run them over the corpus and seeded mutations too.
//!
//! Each takes any bytes, once as an encoding and once as the source of a value. What must hold: nothing panics, whatever
//! is decoded encodes to bytes that decode to it, and whatever is encoded decodes to what it was. How much may be
//! allocated meanwhile is watched by the fuzzer (`fuzz/src/lib.rs`).

use arbitrary::Unstructured;
use bytes::Bytes;
use model::{Extent, SECTOR_BYTES};

use crate::consumers::Consumers;
use crate::hold::HoldRequest;
use crate::keys::{Keys, VaultKey};
use crate::manifest::{Manifest, ManifestCommit};
use crate::map::MapIndex;
use crate::object::{
    HEADER_BYTES, ObjectHeader, ObjectId, ObjectKind, Opening, SmallObject, header_offset, open_small, seal_small_with,
};
use crate::pack::PackIndex;
use crate::seal::{Packing, TABLE_NUMBER};
use crate::segment::{
    ChunkAt, Commit, FrameInfo, FrameOpener, FrameSealer, SealedSegment, SegmentReader, TABLE_VERSIONS, Table,
    assemble, check_table, decode_table, frame_range, open_segment,
};
use crate::trace::ReadTrace;
use crate::wire::{FRAME_HEADER_BYTES, Frame, FrameHeader, FrameKind};
use crate::{Codec, Compressor, FormatError, Level, decompress, dump, map, pack, versioned};

mod build;

/// The key of every golden file and corpus entry. It guards nothing.
pub fn keys() -> Keys {
    Keys::new(&VaultKey::from_bytes(zeroize::Zeroizing::new([7; 32])))
}

/// A whole frame, or a kind byte and a payload.
pub fn wire(data: &[u8]) {
    if let Some((header, payload)) = data.split_first_chunk::<FRAME_HEADER_BYTES>()
        && let Ok(parsed) = FrameHeader::parse(header)
    {
        assert_eq!(parsed.encode(), *header, "every header byte means something");
        let _ = parsed.check(payload);
        payload_of(parsed.kind, payload);
    }
    if let Some((kind, payload)) = data.split_first() {
        payload_of(FrameKind::ALL[usize::from(*kind) % FrameKind::ALL.len()], payload);
    }
    if let Ok(frame) = build::frame(&mut Unstructured::new(data)) {
        frame_comes_back(&frame);
    }
}

fn payload_of(kind: FrameKind, payload: &[u8]) {
    let Ok(frame) = Frame::decode(kind, Bytes::copy_from_slice(payload)) else { return };
    assert_eq!(frame.kind(), kind);
    if !matches!(&frame, Frame::Refused(refused) if refused.text.len() > 4096) {
        frame_comes_back(&frame);
    }
}

fn frame_comes_back(frame: &Frame) {
    let bytes = frame.encode().concat();
    let (header, payload) = bytes.split_first_chunk().expect("encoded frames have a header");
    let header = FrameHeader::parse(header).expect("own header");
    header.check(payload).expect("own checksum");
    assert_eq!(&Frame::decode(header.kind, Bytes::copy_from_slice(payload)).expect("own payload"), frame);
}

/// A plain record table, a sealed segment, or packed frame bytes.
pub fn segment(data: &[u8]) {
    if let Ok(table) = decode_table(data) {
        let again = decode_table(&versioned::encode(TABLE_VERSIONS[0].0, &table));
        assert_eq!(again.as_ref(), Ok(&table));
        checked_table(&table);
    }
    let keys = keys();
    if let Ok(header) = ObjectHeader::parse(&keys, data) {
        let end = (HEADER_BYTES + header.table_sealed_bytes as usize).min(data.len());
        if let Ok(reader) = SegmentReader::new(&keys, header, &data[HEADER_BYTES..end]) {
            checked_table(reader.table());
        }
    }
    if let Some((&[codec, len, ..], packed)) = data.split_first_chunk::<3>()
        && let Ok(codec) = Codec::try_from(codec)
    {
        let plain_len = usize::from(len) * 16;
        if let Ok(plain) = decompress(codec, packed, plain_len) {
            assert_eq!(plain.len(), plain_len);
        }
    }
    let frame = FrameInfo {
        number: 0,
        offset: 0,
        sealed_bytes: u32::try_from(data.len()).unwrap_or(u32::MAX),
        plain_bytes: 512,
        codec: 1,
    };
    let opened = FrameOpener::new(&keys, ObjectId([0; 32])).open(&frame, data);
    assert!(opened.is_err(), "nobody can forge a frame");
    let _ = built_segment(&keys, &mut Unstructured::new(data));
}

/// A whole segment of the fuzzer's choice: sealed, put together, opened.
fn built_segment(keys: &Keys, u: &mut Unstructured) -> arbitrary::Result<()> {
    let (frames, references) = (build::frames(u)?, build::references(u)?);
    let records =
        build::records(u, build::RANGE_SECTORS_MAX, |u, extent| build::pieces(u, extent, &frames, references.len()))?;
    let (place, prev_hash, mut head, gc_seen) = build::segment_place(u)?;
    let last = records.last().expect("at least one");
    (head.position.seq, head.time) = (last.seq, last.time);
    head.map_version = records.iter().map(|record| record.map_version).max().expect("at least one");

    let sealer = FrameSealer::new(keys, ObjectId(u.arbitrary()?));
    let mut compressor = Compressor::new();
    let mut seal = |(number, plain): &(u32, Vec<u8>)| {
        let (codec, packed) = match number % 3 {
            0 => compressor.compress_lz4(plain),
            1 => compressor.compress(Level::Normal, plain),
            _ => (Codec::Raw, plain.clone()),
        };
        sealer.seal(*number, codec, plain.len() as u32, packed)
    };
    let sealed = frames.iter().rev().map(&mut seal).collect();
    let commit = Commit { place: place.clone(), prev_hash, head, gc_seen, shared: gc_seen % 2 == 1 };
    let segment = assemble(keys, &sealer, commit, sealed, references.clone(), records.clone());
    let SealedSegment { header, parts, .. } = segment;

    let object = parts.concat();
    let reader = open_segment(keys, &place, &object).expect("own segment");
    assert_eq!(reader.header(), &header);
    assert_eq!((&reader.table().references, &reader.table().records), (&references, &records));
    for (number, plain) in &frames {
        let range = reader.frame_range(*number).expect("own frame");
        let opened = reader.open(*number, &object[range.start as usize..range.end as usize]);
        assert_eq!(opened.as_ref(), Ok(plain));
    }
    Ok(())
}

/// Gives the table a header that fits its ends; when it passes, every index in it must be usable.
fn checked_table(table: &Table) {
    let (Some(first), Some(last)) = (table.records.first(), table.records.last()) else { return };
    let frames_bytes: u64 = table.frames.iter().map(|frame| u64::from(frame.sealed_bytes)).sum();
    let mut header = blank_segment_header();
    header.total_bytes = HEADER_BYTES as u64 + u64::from(header.table_sealed_bytes) + frames_bytes;
    header.frame_count = u32::try_from(table.frames.len()).unwrap_or(u32::MAX);
    (header.first_seq, header.first_time) = (first.seq, first.time);
    (header.head.position.seq, header.head.time) = (last.seq, last.time);
    header.head.map_version = u64::MAX;
    if check_table(&header, table).is_err() {
        return;
    }
    for record in &table.records {
        let model::RecordBody::Write { extent, data, .. } = &record.body else { continue };
        assert_eq!(data.iter().map(|piece| piece.len).sum::<u64>(), extent.len());
        for piece in data {
            match piece.at {
                ChunkAt::Zero => {}
                ChunkAt::Here { frame, offset } => {
                    let frame = table.frames.iter().find(|f| f.number == frame).expect("checked");
                    assert!(u64::from(offset) + piece.len <= u64::from(frame.plain_bytes));
                }
                ChunkAt::Other { reference, frame, .. } => {
                    assert!((reference as usize) < table.references.len() && frame != TABLE_NUMBER);
                }
            }
        }
    }
}

fn blank_segment_header() -> ObjectHeader {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&ObjectKind::Segment.magic());
    for (at, value) in [
        (header_offset::VERSION, 1),
        (header_offset::KIND, ObjectKind::Segment as u8),
        (header_offset::HEADER_BYTES, 0x80),
        (header_offset::HEADER_BYTES + 1, 0x01),
        (header_offset::TOTAL_BYTES + 1, 0x10),
        (header_offset::MACHINE, 1),
        (header_offset::MACHINE + 1, b'm'),
        (header_offset::LOG, 1),
        (header_offset::SLOT, 1),
        (header_offset::FIRST_SEQ, 1),
        (header_offset::LAST_SEQ, 1),
        (header_offset::TABLE_SEALED_BYTES, 100),
        (header_offset::TABLE_PLAIN_BYTES, 100),
    ] {
        bytes[at] = value;
    }
    ObjectHeader::parse_unauthenticated(&bytes).expect("the smallest segment header")
}

/// Bodies of manifests, commits and openings.
pub fn manifest(data: &[u8]) {
    same_again(data, Manifest::decode, Manifest::encode);
    same_again(data, ManifestCommit::decode, ManifestCommit::encode);
    same_again(data, Opening::decode, Opening::encode);
    same_again(data, HoldRequest::decode, HoldRequest::encode);
    same_again(data, Consumers::decode, Consumers::encode);
    let _ = VaultKey::parse(&String::from_utf8_lossy(data));
    let source = || Unstructured::new(data);
    comes_back(build::manifest(&mut source()), Manifest::decode, Manifest::encode);
    comes_back(build::manifest_commit(&mut source()), ManifestCommit::decode, ManifestCommit::encode);
    comes_back(build::opening(&mut source()), Opening::decode, Opening::encode);
    comes_back(build::hold_request(&mut source()), HoldRequest::decode, HoldRequest::encode);
    comes_back(build::consumers(&mut source()), Consumers::decode, Consumers::encode);
}

/// Index of a pack.
fn pack_index(data: &[u8]) {
    let encode_index = |index: &PackIndex| versioned::encode(pack::VERSIONS[0].0, index);
    same_again(data, pack::decode_index, encode_index);
    let keys = keys();
    if let Ok(header) = ObjectHeader::parse(&keys, data) {
        let end = (HEADER_BYTES + header.table_sealed_bytes as usize).min(data.len());
        if let Ok(index) = pack::open_index(&keys, &header, &data[HEADER_BYTES..end]) {
            let frames = index.segments.iter().flat_map(|segment| &segment.frames);
            let ends = frames.map(|frame| frame_range(&header, frame).end);
            assert!(ends.is_sorted() && !index.segments.is_empty());
        }
    }
}

/// Index and pages of a map, index of a pack.
pub fn map(data: &[u8]) {
    pack_index(data);
    let encode_index = |index: &MapIndex| versioned::encode(map::VERSIONS[0].0, index);
    same_again(data, map::decode_index, encode_index);
    same_again(data, map::decode_page, |runs| map::encode_page(runs));
    if let Ok(runs) = map::decode_page(data) {
        assert!(runs.is_sorted_by(|a, b| a.extent.end() <= b.extent.offset()));
    }
    let keys = keys();
    if let Ok(header) = ObjectHeader::parse(&keys, data) {
        let end = (HEADER_BYTES + header.table_sealed_bytes as usize).min(data.len());
        let _ = map::open_index(&keys, &header, &data[HEADER_BYTES..end]);
    }
    comes_back(build::map_runs(&mut Unstructured::new(data)), map::decode_page, |runs| map::encode_page(runs));
}

fn comes_back<T: PartialEq + std::fmt::Debug>(
    built: arbitrary::Result<T>,
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    if let Ok(value) = built {
        assert_eq!(decode(&encode(&value)).as_ref(), Ok(&value));
    }
}

fn same_again<T: PartialEq + std::fmt::Debug>(
    data: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    if let Ok(value) = decode(data) {
        assert_eq!(decode(&encode(&value)).as_ref(), Ok(&value));
    }
}

/// A whole object; also with its vault and authentication code put right, so that what lies behind them is reached.
pub fn object(data: &[u8]) {
    let keys = keys();
    if let Ok(dump) = dump::dump(None, data) {
        assert!(!dump.authenticated && dump.table.is_none() && dump.body.is_none());
        let _ = dump.to_string();
    }
    let mut bytes = data.to_vec();
    if let Some(header) = bytes.first_chunk_mut::<HEADER_BYTES>() {
        header[header_offset::VAULT..header_offset::ID].copy_from_slice(&keys.vault().0);
        let mac = *keys.header_mac(&header[..header_offset::MAC]).as_bytes();
        header[header_offset::MAC..].copy_from_slice(&mac);
        if let Ok(parsed) = ObjectHeader::parse(&keys, header) {
            assert_eq!(parsed.encode(&keys), *header, "every header byte means something");
        }
    }
    if let Ok(dump) = dump::dump(Some(&keys), &bytes) {
        let _ = dump.to_string();
    }
    let _ = built_object(&keys, &mut Unstructured::new(data));
}

/// A read trace, as it is and with its hash put right; and one of the fuzzer's choice.
pub fn trace(data: &[u8]) {
    trace_comes_back(data);
    if let Some((hashed, _)) = data.split_last_chunk::<16>() {
        trace_comes_back(&[hashed, &blake3::hash(hashed).as_bytes()[..16]].concat());
    }
    let mut trace = ReadTrace::default();
    for numbers in data.as_chunks::<4>().0 {
        let (offset, sectors) =
            (u16::from_le_bytes([numbers[0], numbers[1]]), u16::from_le_bytes([numbers[2], numbers[3]]));
        if let Ok(extent) = Extent::new(u64::from(offset) * SECTOR_BYTES, u64::from(sectors) * SECTOR_BYTES) {
            trace.read(extent);
        }
    }
    trace_comes_back(&trace.encode());
    assert_eq!(ReadTrace::decode(&trace.encode()), Ok(trace));
}

fn trace_comes_back(bytes: &[u8]) {
    if let Ok(trace) = ReadTrace::decode(bytes) {
        assert_eq!(trace.encode(), bytes, "every byte means something");
    }
}

/// A small object of the fuzzer's choice: sealed and opened.
fn built_object(keys: &Keys, u: &mut Unstructured) -> arbitrary::Result<()> {
    let (kind, place, prev_hash, head, gc_seen, body) = build::small(u)?;
    let id = ObjectId(u.arbitrary()?);
    let object = SmallObject { kind, place: place.clone(), prev_hash, head, gc_seen, body: &body };
    let bytes = seal_small_with(keys, id, Packing::WhenItPays, &object);
    let (header, opened) = open_small(keys, kind, &place, &bytes).expect("own object");
    assert_eq!((header.id, header.prev_hash, header.head, header.gc_seen), (id, prev_hash, head, gc_seen));
    assert_eq!(opened, body);
    Ok(())
}

#[cfg(test)]
mod tests;
