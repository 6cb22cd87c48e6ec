//! Packs: what is copied in opens as it did in its segment; and what must be refused.

use bytes::Bytes;

use super::*;
use crate::FormatError;
use crate::object::{HEADER_BYTES, LogKind};
use crate::samples;
use crate::seal::Packing;
use crate::segment::{frame_range, open_frame, open_segment};

fn whole(pack: &SealedPack) -> Vec<u8> {
    pack.parts.concat()
}

#[test]
fn a_frame_opens_out_of_a_pack_as_out_of_its_segment() {
    let keys = samples::keys();
    for packing in [Packing::Raw, Packing::WhenItPays] {
        let pack = samples::pack(packing);
        let object = whole(&pack);
        pack.header.check_body(&object).expect("own digest");
        let (header, index) = index_of(&keys, &samples::pack_place(), &object).expect("own pack");
        let held = index.segment(3, 4).expect("put in");
        assert_eq!(held.frames.iter().map(|frame| frame.number).collect::<Vec<_>>(), [2, 7]);
        for frame in &held.frames {
            let range = frame_range(&header, frame);
            let sealed = &object[range.start as usize..range.end as usize];
            assert_eq!(open_frame(&keys, held.id, frame, sealed), Ok(samples::frame_plain(frame.number)));
            // Under any other segment's id it does not.
            let other = open_frame(&keys, crate::object::ObjectId([1; 32]), frame, sealed);
            assert_eq!(other, Err(FormatError::Authentication { what: "frame" }));
        }
        assert_eq!(index.segment(3, 5), None);
    }
}

#[test]
fn header_and_index_are_one_read() {
    let pack = samples::pack(Packing::WhenItPays);
    let object = whole(&pack);
    let end = HEADER_BYTES + pack.reference().index_bytes as usize;
    index_of(&samples::keys(), &samples::pack_place(), &object[..end]).expect("own index");
    let short = index_of(&samples::keys(), &samples::pack_place(), &object[..end - 1]);
    assert!(matches!(short, Err(FormatError::Truncated { .. })), "{short:?}");
    let elsewhere = index_of(&samples::keys(), &samples::place(LogKind::Manifest, 2, 7), &object);
    assert!(matches!(elsewhere, Err(FormatError::Misplaced { .. })), "{elsewhere:?}");
}

#[test]
fn a_pack_that_does_not_hold_together_is_refused() {
    let keys = samples::keys();
    let segment = whole_segment();
    let reader = open_segment(&keys, &samples::commit().place, &segment).expect("own segment");
    let frame = |number| {
        let range = reader.frame_range(number).expect("there");
        let sealed = Bytes::copy_from_slice(&segment[range.start as usize..range.end as usize]);
        (*reader.frame(number).expect("there"), sealed)
    };
    let refused = |fill: &dyn Fn(&mut PackWriter)| {
        let mut writer = PackWriter::default();
        fill(&mut writer);
        let pack = writer.finish(&keys, samples::pack_place()).expect("small");
        let read = index_of(&keys, &samples::pack_place(), &whole(&pack));
        assert!(matches!(read, Err(FormatError::Invalid { .. })), "{read:?}");
    };
    let id = reader.header().id;
    refused(&|writer| writer.add(3, 4, id, vec![frame(7), frame(2)]));
    refused(&|writer| writer.add(3, 4, id, vec![frame(2), frame(2)]));
    refused(&|writer| writer.add(0, 4, id, vec![frame(2)]));
    refused(&|writer| {
        writer.add(3, 5, id, vec![frame(2)]);
        writer.add(3, 4, id, vec![frame(7)]);
    });
    refused(&|writer| {
        let (info, sealed) = frame(2);
        writer.add(3, 4, id, vec![(crate::segment::FrameInfo { codec: 9, ..info }, sealed)]);
    });
}

fn whole_segment() -> Vec<u8> {
    samples::segment(Packing::Raw).parts.concat()
}

#[test]
fn the_pack_that_stands_for_a_segment_is_found() {
    let pack =
        |number, first, last| PackRef { name: PackName { epoch: 1, number }, first, last, index_bytes: 9, bytes: 9 };
    let packs = [pack(1, (1, 2), (1, 9)), pack(2, (2, 1), (4, 1)), pack(3, (4, 3), (4, 3))];
    assert!(packs_are_sound(&packs));
    let found = |epoch, slot| covering(&packs, epoch, slot).map(|pack| pack.name.number);
    let expected = [
        ((1, 1), None),
        ((1, 2), Some(1)),
        ((1, 9), Some(1)),
        ((1, 10), None),
        ((3, 77), Some(2)),
        ((4, 2), None),
        ((4, 3), Some(3)),
        ((9, 1), None),
    ];
    for ((epoch, slot), number) in expected {
        assert_eq!(found(epoch, slot), number, "{epoch}/{slot}");
    }
    for bad in [
        vec![pack(1, (1, 2), (1, 1))],
        vec![pack(1, (0, 2), (1, 1))],
        vec![pack(0, (1, 1), (1, 1))],
        vec![pack(1, (1, 1), (2, 4)), pack(2, (2, 4), (2, 5))],
    ] {
        assert!(!packs_are_sound(&bad), "{bad:?}");
    }
}
