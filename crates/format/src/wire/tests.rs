//! Frames: pinned bytes, round trips, damage, and payloads that claim what is not so.

use bytes::Bytes;
use model::{Extent, Record, RecordBody, Seq, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::{FormatError, samples};

fn split(bytes: &[u8]) -> (FrameHeader, Bytes) {
    let (header, payload) = bytes.split_first_chunk().expect("whole header");
    (FrameHeader::parse(header).expect("sound header"), Bytes::copy_from_slice(payload))
}

fn payload_of(frame: &Frame) -> Vec<u8> {
    split(&frame.encode().concat()).1.to_vec()
}

#[test]
fn the_magic_is_the_hash_of_its_name() {
    assert_eq!(payload::FRAME_MAGIC, blake3::hash(b"farshore wire frame").as_bytes()[..4]);
}

#[test]
fn a_frame_header_is_as_it_always_was() {
    let header = FrameHeader::of(FrameKind::Ping, &[1, 0, 5]);
    let bytes = header.encode();
    assert_eq!(bytes[..12], [0x69, 0xfb, 0xb5, 0xec, 7, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(bytes[12..], crc32c::crc32c(&[1, 0, 5]).to_le_bytes());
    assert_eq!(FrameHeader::parse(&bytes), Ok(header));
}

#[test]
fn hello_is_as_it_always_was() {
    let hello = Hello {
        protocol: 0x0201,
        instance: [0x11; 16],
        incarnation: model::Incarnation([0x22; 16]),
        start: Start::New { cause: DrainCause::UncleanStop, compared_to: Some(Seq(7)) },
        next_seq: Seq(5),
        map_version: 300,
        stored: LogHead {
            position: model::Position { incarnation: model::Incarnation([0x33; 16]), seq: Seq(4) },
            digest: RecordDigest([0x44; 32]),
            map_version: 6,
            time: Timestamp(8),
        },
        disks: vec![("a".parse().expect("valid name"), 512)],
    };
    let mut expected = b"FARSHORE\x01\x02".to_vec();
    expected.extend([0x11; 16]);
    expected.extend([0x22; 16]);
    expected.extend([1, 1, 1, 7]); // new, unclean stop, compared to 7
    expected.push(5);
    expected.extend([0xac, 0x02]); // 300
    expected.extend([0x33; 16]);
    expected.push(4);
    expected.extend([0x44; 32]);
    expected.extend([6, 8]);
    expected.extend([1, 1, b'a', 0x80, 0x04]); // one disk, its name, 512
    let frame = Frame::Hello(hello);
    assert_eq!(payload_of(&frame), expected);
    assert_eq!(Frame::decode(FrameKind::Hello, expected.into()), Ok(frame));
}

#[test]
fn a_hello_of_another_protocol_is_read_and_one_of_none_is_not() {
    let (_, hello) = samples::frames().remove(0);
    let mut payload = payload_of(&hello);
    payload[8..10].copy_from_slice(&[0xff, 0xff]);
    let read = Frame::decode(FrameKind::Hello, payload.clone().into()).expect("its shape never changes");
    assert!(matches!(read, Frame::Hello(Hello { protocol: 0xffff, .. })));
    payload[8..10].copy_from_slice(&[0, 0]);
    assert!(matches!(Frame::decode(FrameKind::Hello, payload.clone().into()), Err(FormatError::Invalid { .. })));
    payload[0] ^= 1;
    assert_eq!(Frame::decode(FrameKind::Hello, payload.into()), Err(FormatError::Magic { what: "HELLO" }));
}

#[test]
fn every_frame_reads_back() {
    for (name, frame) in samples::frames() {
        let (header, payload) = split(&frame.encode().concat());
        header.check(&payload).expect(name);
        assert_eq!(header.kind, frame.kind());
        assert_eq!(Frame::decode(header.kind, payload).expect(name), frame);
    }
}

#[test]
fn kinds_are_numbered_from_one() {
    for (kind, number) in FrameKind::ALL.into_iter().zip(1u16..) {
        assert_eq!(kind as u16, number);
    }
}

#[test]
fn every_flipped_header_bit_is_refused_or_fails_the_check() {
    for (name, frame) in samples::frames() {
        let bytes = frame.encode().concat();
        let (header, payload) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().expect("whole header");
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut damaged = *header;
            damaged[bit / 8] ^= 1 << (bit % 8);
            // The kind is the one field the checksum does not cover: another kind must not pass for this one.
            let same_kind = |parsed: &FrameHeader| parsed.kind == frame.kind() && parsed.check(payload).is_ok();
            assert!(!FrameHeader::parse(&damaged).is_ok_and(|p| same_kind(&p)), "{name} bit {bit}");
        }
    }
}

#[test]
fn a_damaged_payload_fails_the_check() {
    let (_, frame) = samples::frames().remove(4);
    let (header, payload) = split(&frame.encode().concat());
    for bit in 0..payload.len() * 8 {
        let mut damaged = payload.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(header.check(&damaged), Err(FormatError::Checksum { what: "frame payload" }));
    }
    assert!(matches!(header.check(&payload[1..]), Err(FormatError::Truncated { .. })));
    assert_eq!(header.check(&[&payload[..], &[0]].concat()), Err(FormatError::TrailingBytes { extra: 1 }));
}

#[test]
fn a_length_over_its_kinds_cap_is_refused_from_the_header_alone() {
    for kind in FrameKind::ALL {
        let cap = kind.payload_bytes_max() as u32;
        let header = |payload_bytes| FrameHeader { kind, payload_bytes, crc: 0 }.encode();
        assert!(FrameHeader::parse(&header(cap)).is_ok());
        assert!(matches!(FrameHeader::parse(&header(cap + 1)), Err(FormatError::Invalid { .. })));
        assert!(matches!(FrameHeader::parse(&header(u32::MAX)), Err(FormatError::Invalid { .. })));
        let long = Bytes::from(vec![0; kind.payload_bytes_max() + 1]);
        assert!(matches!(Frame::decode(kind, long), Err(FormatError::Invalid { .. })));
    }
}

#[test]
fn payloads_of_any_other_length_are_refused() {
    for (name, frame) in samples::frames() {
        let payload = payload_of(&frame);
        let ends = (0..payload.len()).filter(|end| *end < 400 || end % 997 == 0);
        for end in ends {
            let cut = Bytes::copy_from_slice(&payload[..end]);
            assert!(Frame::decode(frame.kind(), cut).is_err(), "{name} cut to {end}");
        }
        let long = Bytes::from([payload.as_slice(), &[0]].concat());
        assert_eq!(Frame::decode(frame.kind(), long), Err(FormatError::TrailingBytes { extra: 1 }), "{name}");
    }
}

#[test]
fn control_payloads_of_another_version_are_refused() {
    for (name, frame) in samples::frames() {
        if matches!(frame, Frame::Hello(_) | Frame::Data(_)) {
            continue;
        }
        let mut payload = payload_of(&frame);
        payload[0] = 2;
        let refused = Frame::decode(frame.kind(), payload.into()).expect_err(name);
        assert!(matches!(refused, FormatError::Version { found: 2, newest: 1, .. }), "{name}: {refused}");
    }
}

#[test]
fn a_long_refusal_is_cut_and_not_refused() {
    let text = "ä".repeat(5000);
    let frame = Frame::Refused(Refused { reason: Refusal::Busy, text: text.clone() });
    let Ok(Frame::Refused(read)) = Frame::decode(FrameKind::Refused, payload_of(&frame).into()) else {
        panic!("refused")
    };
    assert!(read.text.len() == 4096 && text.starts_with(&read.text));
}

#[test]
fn record_data_are_never_copied() {
    let data = Bytes::from(vec![0x5a; 48 << 10]);
    let frame = Frame::Data(samples::bodies(data.clone()));
    let parts = frame.encode();
    assert_eq!(parts.len(), 2);
    assert_eq!(parts[1].as_ptr(), data.as_ptr(), "encoding copied");
    let (header, payload) = split(&parts.concat());
    let Ok(Frame::Data(records)) = Frame::decode(header.kind, payload.clone()) else { panic!("refused") };
    let RecordBody::Write { data, .. } = &records[2].body else { panic!("the third is a write") };
    let start = payload.as_ptr() as usize;
    assert!((start..start + payload.len()).contains(&(data.as_ptr() as usize)), "decoding copied");
}

/// DATA with these record headers and this much data behind them.
fn forged(metas: &[Record<()>], data_bytes: usize) -> Result<Frame, FormatError> {
    let metas = postcard::to_stdvec(metas).expect("in memory");
    let payload = [(metas.len() as u32).to_le_bytes().as_slice(), &metas, &vec![0; data_bytes]].concat();
    Frame::decode(FrameKind::Data, payload.into())
}

#[test]
fn data_that_does_not_fit_its_records_is_refused() {
    let metas = samples::bodies(());
    let fits = 48 << 10;
    assert!(forged(&metas, fits).is_ok());
    assert!(matches!(forged(&metas, fits - 1), Err(FormatError::Truncated { .. })));
    assert_eq!(forged(&metas, fits + 1), Err(FormatError::TrailingBytes { extra: 1 }));
    let change = |change: fn(&mut Vec<Record<()>>)| {
        let mut metas = metas.clone();
        change(&mut metas);
        forged(&metas, fits)
    };
    let invalid = |result| matches!(result, Err(FormatError::Invalid { .. }));
    assert!(invalid(change(|m| m[1].seq = Seq(99))), "gap");
    assert!(invalid(change(|m| m[1].seq = m[0].seq)), "twice");
    assert!(invalid(change(|m| (0..).zip(m).for_each(|(n, r)| r.seq = Seq(n)))), "number zero");
    assert!(invalid(change(|m| (0..).zip(m).for_each(|(n, r)| r.seq = Seq(u64::MAX - 5 + n)))), "last number");
    assert!(invalid(change(|m| m[1].time = Timestamp(u64::MAX))), "time goes back");
    assert!(invalid(change(|m| m[5].body = RecordBody::Mark(samples::mark(&"x".repeat(201))))), "label");
    assert!(invalid(forged(&[], 0)), "no records");
    let huge = Extent::new(0, u64::MAX - 511).expect("aligned");
    let disk = samples::disk().id();
    let write = |n| Record {
        seq: Seq(n),
        time: Timestamp(0),
        map_version: 0,
        body: RecordBody::Write { disk, extent: huge, data: () },
    };
    assert!(matches!(forged(&[write(1)], 512), Err(FormatError::Truncated { .. })), "more than memory");
    assert!(invalid(forged(&[write(1), write(2)], 512)), "sum overflows");
}

#[test]
fn record_headers_over_their_cap_are_refused() {
    let mut payload = vec![0; DATA_META_BYTES_MAX + 8];
    payload[..4].copy_from_slice(&(DATA_META_BYTES_MAX as u32 + 1).to_le_bytes());
    assert!(matches!(Frame::decode(FrameKind::Data, payload.into()), Err(FormatError::Invalid { .. })));
}

#[test]
fn names_that_leave_a_directory_are_refused_in_records_too() {
    let metas = postcard::to_stdvec(&samples::bodies(())).expect("in memory");
    let at = metas.windows(4).position(|w| w == b"root").expect("the disk's name");
    let mut evil = metas;
    evil[at..at + 4].copy_from_slice(b"../x");
    let payload = [(evil.len() as u32).to_le_bytes().as_slice(), &evil, &vec![0; 48 << 10]].concat();
    assert!(matches!(Frame::decode(FrameKind::Data, payload.into()), Err(FormatError::Invalid { .. })));
}

proptest! {
    #[test]
    fn any_batch_reads_back(
        first in 1u64..1 << 60,
        writes in proptest::collection::vec((0u64..1 << 40, 1u64..20, any::<u8>(), 0u64..1000), 1..20),
    ) {
        let mut time = 0;
        let records: Vec<Record> = (first..).zip(writes).map(|(n, (at, len, fill, later))| {
            time += later;
            let extent = samples::extent(at * 512, len * 512);
            let disk = samples::disk().id();
            let body = match fill {
                0..50 => RecordBody::Zero { disk, extent },
                _ => RecordBody::Write { disk, extent, data: vec![fill; extent.len() as usize].into() },
            };
            Record { seq: Seq(n), time: Timestamp(time), map_version: time, body }
        }).collect();
        let frame = Frame::Data(records);
        let (header, payload) = split(&frame.encode().concat());
        prop_assert_eq!(header.check(&payload), Ok(()));
        prop_assert_eq!(Frame::decode(header.kind, payload), Ok(frame));
    }
}
