//! Segments: round trips, damage, transplants, and tables that claim what is not so.

use model::{Mark, RecordBody, Seq, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::keys::Keys;
use crate::object::{HEADER_BYTES, LogKind, ObjectKind};
use crate::samples::{self, KIB};
use crate::seal::{ObjectCipher, Packing, Role};
use crate::{Compressor, FormatError, Level, versioned};

fn object() -> Vec<u8> {
    samples::segment(Packing::WhenItPays).parts.concat()
}

fn place() -> Place {
    samples::commit().place
}

#[test]
fn a_segment_opens_to_what_was_assembled() {
    for packing in [Packing::Raw, Packing::WhenItPays] {
        let sealed = samples::segment(packing);
        let object = sealed.parts.concat();
        assert_eq!(sealed.hash, ObjectHeader::hash(&object).expect("whole"));
        let reader = open_segment(&samples::keys(), &place(), &object).expect("sound");
        assert_eq!(*reader.header(), sealed.header);
        assert_eq!(reader.table().records, samples::table_records());
        assert_eq!(reader.table().references, samples::references());
        assert_eq!(reader.table().frames.iter().map(|f| f.number).collect::<Vec<_>>(), [2, 7]);
        for number in [2, 7] {
            let range = reader.frame_range(number).expect("there");
            let bytes = &object[range.start as usize..range.end as usize];
            assert_eq!(reader.open(number, bytes).expect("sound"), samples::frame_plain(number));
            let info = reader.frame(number).expect("there");
            let alone = open_frame(&samples::keys(), reader.header().id, info, bytes);
            assert_eq!(alone.expect("sound"), samples::frame_plain(number));
        }
        assert!(reader.frame(3).is_none() && reader.open(3, &[]).is_err());
        let digest = recompute_digest(model::RecordDigest([0x33; 32]), reader.table());
        assert_eq!(digest, reader.header().head.digest);
    }
}

#[test]
fn every_flipped_bit_is_detected() {
    let object = object();
    for bit in 0..object.len() * 8 {
        let mut damaged = object.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(open_segment(&samples::keys(), &place(), &damaged).is_err(), "bit {bit} may flip");
    }
}

#[test]
fn a_flipped_bit_in_table_or_frame_does_not_authenticate() {
    let (keys, object) = (samples::keys(), object());
    let header = ObjectHeader::parse(&keys, &object).expect("sound");
    let range = table_range(&header);
    let sealed = &object[range.start as usize..range.end as usize];
    for bit in 0..sealed.len() * 8 {
        let mut damaged = sealed.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let refused = open_table(&keys, &header, &damaged).expect_err("altered");
        assert_eq!(refused, FormatError::Authentication { what: "record table" });
    }
    let reader = SegmentReader::new(&keys, header, sealed).expect("sound");
    let range = reader.frame_range(7).expect("there");
    let sealed = &object[range.start as usize..range.end as usize];
    for bit in 0..sealed.len() * 8 {
        let mut damaged = sealed.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(reader.open(7, &damaged), Err(FormatError::Authentication { what: "frame" }));
    }
    for end in 0..sealed.len() {
        assert!(reader.open(7, &sealed[..end]).is_err());
    }
}

#[test]
fn any_other_length_is_refused() {
    let object = object();
    for end in 0..object.len() {
        assert!(open_segment(&samples::keys(), &place(), &object[..end]).is_err(), "{end}");
    }
    let long = [object.as_slice(), &[0]].concat();
    let refused = open_segment(&samples::keys(), &place(), &long).err();
    assert_eq!(refused, Some(FormatError::TrailingBytes { extra: 1 }));
}

#[test]
fn another_key_or_place_is_named() {
    let refused = open_segment(&samples::other_keys(), &place(), &object()).err();
    assert!(matches!(refused, Some(FormatError::OtherVault { .. })));
    let elsewhere = samples::place(LogKind::Stream, 3, 5);
    let refused = open_segment(&samples::keys(), &elsewhere, &object()).err();
    assert!(matches!(refused, Some(FormatError::Misplaced { .. })));
}

#[test]
fn a_frame_opens_under_no_other_name() {
    let keys = samples::keys();
    let id = ObjectId([1; 32]);
    let sealed = FrameSealer::new(&keys, id).seal(4, Codec::Raw, 512, vec![9; 512]);
    let named = |number, codec: Codec, plain_bytes| FrameInfo {
        number,
        offset: 0,
        sealed_bytes: sealed.bytes.len() as u32,
        plain_bytes,
        codec: codec as u8,
    };
    let open = |id, info: FrameInfo| open_frame(&keys, id, &info, &sealed.bytes);
    assert_eq!(open(id, named(4, Codec::Raw, 512)), Ok(vec![9; 512]));
    let wrong = Err(FormatError::Authentication { what: "frame" });
    assert_eq!(open(id, named(5, Codec::Raw, 512)), wrong, "number");
    assert_eq!(open(id, named(4, Codec::Lz4, 512)), wrong, "codec");
    assert_eq!(open(id, named(4, Codec::Raw, 1024)), wrong, "plain length");
    assert_eq!(open(ObjectId([2; 32]), named(4, Codec::Raw, 512)), wrong, "object");
    let as_body = ObjectCipher::new(&keys, id).open_envelope(Role::Body, "body", &sealed.bytes, 1 << 20);
    assert!(as_body.is_err(), "role");
}

#[test]
#[should_panic(expected = "sealed twice")]
fn one_number_is_never_sealed_twice() {
    let sealer = FrameSealer::new(&samples::keys(), ObjectId([1; 32]));
    sealer.seal(1, Codec::Raw, 1, vec![0]);
    sealer.seal(1, Codec::Raw, 1, vec![1]);
}

#[test]
#[should_panic(expected = "sealed twice")]
fn one_segment_is_never_assembled_twice() {
    let sealer = FrameSealer::new(&samples::keys(), ObjectId([1; 32]));
    let records = || vec![samples::table_records().remove(5)];
    let commit = samples::commit();
    for _ in 0..2 {
        assemble(&samples::keys(), &sealer, commit.clone(), vec![], vec![], records());
    }
}

#[test]
fn a_frame_that_unpacks_to_more_than_it_states_is_refused() {
    let keys = samples::keys();
    let bomb = Compressor::new().compress(Level::Normal, &vec![0; 8 << 20]).1;
    let sealer = FrameSealer::new(&keys, ObjectId([1; 32]));
    let sealed = sealer.seal(0, Codec::Zstd, 4096, bomb);
    let sealed_bytes = sealed.bytes.len() as u32;
    let info = FrameInfo { number: 0, offset: 0, sealed_bytes, plain_bytes: 4096, codec: 1 };
    assert!(matches!(open_frame(&keys, sealer.id(), &info, &sealed.bytes), Err(FormatError::Invalid { .. })));
}

/// Seals a table as it is, with a header that fits whatever it says, and opens it.
fn open_forged(keys: &Keys, table: &Table, change: impl FnOnce(&mut ObjectHeader)) -> Result<Table, FormatError> {
    let id = ObjectId([0x99; 32]);
    let plain = versioned::encode(TABLE_VERSIONS[0].0, table);
    let sealed = ObjectCipher::new(keys, id).seal_envelope(Role::Table, &plain, Packing::WhenItPays);
    let mut header = samples::segment(Packing::Raw).header;
    header.id = id;
    header.table_sealed_bytes = sealed.len() as u32;
    header.table_plain_bytes = plain.len() as u32;
    let frames: u64 = table.frames.iter().map(|f| u64::from(f.sealed_bytes)).sum();
    header.total_bytes = HEADER_BYTES as u64 + sealed.len() as u64 + frames;
    header.frame_count = table.frames.len() as u32;
    change(&mut header);
    open_table(keys, &header, &sealed)
}

fn sound_table() -> Table {
    open_segment(&samples::keys(), &place(), &object()).expect("sound").table().clone()
}

fn write_pieces(table: &mut Table) -> &mut Vec<Piece> {
    let body = table.records.iter_mut().map(|r| &mut r.body).find(|b| matches!(b, RecordBody::Write { .. }));
    let Some(RecordBody::Write { data, .. }) = body else { panic!("the sample holds a write") };
    data
}

fn refused(what: &str, change: impl FnOnce(&mut Table)) {
    let mut table = sound_table();
    change(&mut table);
    let opened = open_forged(&samples::keys(), &table, |_| {});
    assert!(matches!(opened, Err(FormatError::Invalid { .. })), "{what}: {opened:?}");
}

#[test]
fn a_forged_but_sound_table_opens() {
    assert_eq!(open_forged(&samples::keys(), &sound_table(), |_| {}), Ok(sound_table()));
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    refused("piece missing", |t| _ = write_pieces(t).pop());
    refused("piece too many", |t| write_pieces(t).push(Piece { len: 512, at: ChunkAt::Zero }));
    refused("piece empty", |t| write_pieces(t).push(Piece { len: 0, at: ChunkAt::Zero }));
    refused("huge piece", |t| write_pieces(t)[2].len = u64::MAX - 511);
    refused("odd lengths", |t| {
        write_pieces(t)[0].len += 1;
        write_pieces(t)[2].len -= 1;
    });
    refused("no such frame", |t| write_pieces(t)[0].at = ChunkAt::Here { frame: 3, offset: 0 });
    refused("past the frame", |t| write_pieces(t)[0].at = ChunkAt::Here { frame: 7, offset: 4608 });
    refused("no such reference", |t| {
        write_pieces(t)[1].at = ChunkAt::Other { reference: 1, frame: 0, offset: 0 };
    });
    refused("past any frame", |t| {
        write_pieces(t)[1].at = ChunkAt::Other { reference: 0, frame: 0, offset: u32::MAX };
    });
    refused("the table's own number", |t| {
        write_pieces(t)[1].at = ChunkAt::Other { reference: 0, frame: u32::MAX, offset: 0 };
    });
    // The write begins 8 KiB before a multiple of 64 KiB.
    refused("across a chunk boundary", |t| {
        let pieces = write_pieces(t);
        pieces[0].at = ChunkAt::Here { frame: 7, offset: 0 };
        pieces[0].len = 12 * KIB;
        pieces.remove(1);
    });
}

#[test]
fn frames_that_do_not_fill_the_object_are_refused() {
    refused("gap", |t| t.frames[1].offset += 1);
    refused("overlap", |t| t.frames[1].offset -= 1);
    refused("order", |t| t.frames.swap(0, 1));
    refused("number twice", |t| t.frames[1].number = 2);
    refused("the table's number", |t| t.frames[1].number = u32::MAX);
    refused("codec", |t| t.frames[0].codec = 3);
    refused("no plain bytes", |t| t.frames[0].plain_bytes = 0);
    refused("plain bytes over the cap", |t| t.frames[0].plain_bytes = u32::MAX);
    refused("only a tag", |t| {
        t.frames[0].sealed_bytes = 16;
        t.frames[1].offset = 16;
    });
    for change in [-1i64, 1] {
        let opened = open_forged(&samples::keys(), &sound_table(), |header| {
            header.total_bytes = header.total_bytes.saturating_add_signed(change);
        });
        assert!(matches!(opened, Err(FormatError::Invalid { .. })));
    }
    let opened = open_forged(&samples::keys(), &sound_table(), |header| header.frame_count += 1);
    assert!(matches!(opened, Err(FormatError::Invalid { .. })));
}

#[test]
fn records_that_do_not_fit_the_header_are_refused() {
    refused("none", |t| t.records.clear());
    refused("first missing", |t| _ = t.records.remove(0));
    refused("last missing", |t| _ = t.records.pop());
    refused("gap", |t| _ = t.records.remove(1));
    refused("twice", |t| t.records[1].seq = t.records[0].seq);
    refused("time goes back", |t| t.records[1].time = Timestamp(1 << 60));
    refused("map version", |t| t.records[0].map_version = 7);
    refused("label", |t| {
        let mark = Mark { label: "x".repeat(201), ..samples::mark("") };
        t.records[1].body = RecordBody::Mark(mark);
    });
    refused("past the last number", |t| (0..).zip(&mut t.records).for_each(|(n, r)| r.seq = Seq(u64::MAX - 5 + n)));
}

#[test]
fn a_table_of_another_length_kind_or_version_is_refused() {
    let keys = samples::keys();
    for change in [-1i32, 1] {
        let opened = open_forged(&keys, &sound_table(), |header| {
            header.table_plain_bytes = header.table_plain_bytes.saturating_add_signed(change);
        });
        assert!(matches!(opened, Err(FormatError::Invalid { .. })));
    }
    let opened = open_forged(&keys, &sound_table(), |header| header.table_plain_bytes = u32::MAX);
    assert!(matches!(opened, Err(FormatError::Invalid { .. })));
    let opened = open_forged(&keys, &sound_table(), |header| header.kind = ObjectKind::Manifest);
    assert!(matches!(opened, Err(FormatError::Invalid { .. })));
    let mut plain = versioned::encode(1, &sound_table());
    plain[0] = 2;
    let newer = FormatError::Version { what: "record table", found: 2, newest: 1 };
    assert_eq!(read::decode_table(&plain), Err(newer));
}

#[test]
fn a_table_read_without_memory_for_its_claims_is_refused() {
    // Version 1, no references, then 2^60 frames.
    let bytes = [1, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert!(matches!(read::decode_table(&bytes), Err(FormatError::Truncated { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Writes of any shape, their chunks in any frames, come back as they were.
    #[test]
    fn any_segment_reads_back(
        writes in proptest::collection::vec((0u64..4096, 1u64..300, 0u32..4, any::<bool>()), 1..20),
        id: [u8; 32],
    ) {
        let keys = samples::keys();
        let sealer = FrameSealer::new(&keys, ObjectId(id));
        let plain = |frame: u32| vec![frame as u8; 64 << 10];
        let frames = (0..4).rev().map(|n| {
            let (codec, packed) = Compressor::new().compress(Level::Fast, &plain(n));
            sealer.seal(n, codec, 64 << 10, packed)
        }).collect();
        let record = |(n, &(at, len, frame, zero)): (u64, &(u64, u64, u32, bool))| {
            let extent = samples::extent(at * 512, len * 512);
            let here = if zero { ChunkAt::Zero } else { ChunkAt::Here { frame, offset: 0 } };
            let data = extent.split_at_multiples(CHUNK_BYTES_MAX).map(|e| Piece { len: e.len(), at: here }).collect();
            let body = RecordBody::Write { disk: samples::disk().id(), extent, data };
            Record { seq: Seq(n), time: Timestamp(n / 2), map_version: 0, body }
        };
        let records: Vec<_> = (1..).zip(&writes).map(record).collect();
        let mut commit = samples::commit();
        let last = records.last().expect("not empty");
        (commit.head.position.seq, commit.head.time) = (last.seq, last.time);
        let sealed = assemble(&keys, &sealer, commit, frames, vec![], records.clone());
        let object = sealed.parts.concat();
        let reader = open_segment(&keys, &place(), &object).expect("sound");
        prop_assert_eq!(&reader.table().records, &records);
        for n in 0..4 {
            let range = reader.frame_range(n).expect("there");
            prop_assert_eq!(reader.open(n, &object[range.start as usize..range.end as usize]), Ok(plain(n)));
        }
    }
}
