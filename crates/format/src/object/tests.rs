//! Objects: pinned layout, and what happens to damaged, foreign and misplaced ones.

use super::*;
use crate::samples;
use crate::seal::Packing;

fn all_objects() -> Vec<(ObjectKind, Place, Vec<u8>)> {
    let seal = |(_, kind, place, body): (_, _, Place, Vec<u8>)| {
        let object = samples::seal(kind, place.clone(), &body, Packing::WhenItPays).to_vec();
        (kind, place, object)
    };
    samples::smalls().into_iter().map(seal).collect()
}

fn manifest_object() -> (ObjectKind, Place, Vec<u8>) {
    all_objects().into_iter().find(|(kind, ..)| *kind == ObjectKind::Manifest).expect("there is one")
}

#[test]
fn magics_are_the_hash_of_the_kind_name() {
    for kind in ObjectKind::ALL {
        let hash = blake3::hash(format!("farshore object {}", kind.name()).as_bytes());
        assert_eq!(kind.magic(), hash.as_bytes()[..8], "{}", kind.name());
    }
}

#[test]
fn header_fields_lie_where_they_always_lay() {
    let (_, _, object) = manifest_object();
    let header = ObjectHeader::parse(&samples::keys(), &object).expect("sound");
    let u64_at = |at: usize| u64::from_le_bytes(object[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(&object[8..16], [1, 0, 5, 0, 0x80, 1, 0, 0]);
    assert_eq!(u64_at(16), object.len() as u64);
    assert_eq!(object[24..40], samples::keys().vault().0);
    assert_eq!(object[40..72], header.id.0);
    assert_eq!(&object[72..78], b"\x05db-01");
    assert_eq!((object[136], u64_at(144), u64_at(152)), (2, 3, 1));
    assert_eq!(object[160..192], [0x66; 32]);
    assert_eq!(object[304..336], header.body_digest);
    assert_eq!(object[352..384], *samples::keys().header_mac(&object[..352]).as_bytes());
}

#[test]
fn small_objects_open_to_what_was_sealed() {
    for ((_, kind, place, body), (_, _, object)) in samples::smalls().into_iter().zip(all_objects()) {
        let (header, opened) = open_small(&samples::keys(), kind, &place, &object).expect("sound");
        assert_eq!((header.kind, header.place, opened), (kind, place, body));
    }
}

#[test]
fn an_empty_body_is_sealed_and_opened() {
    let place = samples::place(LogKind::Stream, 1, 0);
    let object = samples::seal(ObjectKind::Epoch, place.clone(), &[], Packing::WhenItPays);
    assert_eq!(open_small(&samples::keys(), ObjectKind::Epoch, &place, &object).expect("sound").1, []);
}

#[test]
fn sealing_twice_gives_other_ids_and_other_bytes() {
    let (_, kind, place, body) = samples::smalls().remove(1);
    let (prev_hash, head) = (ObjectHash::default(), LogHead::default());
    let object = SmallObject { kind, place, prev_hash, head, gc_seen: 0, body: &body };
    let (a, b) = (seal_small(&samples::keys(), &object), seal_small(&samples::keys(), &object));
    assert_ne!(a[40..72], b[40..72]);
    assert_ne!(a[384..], b[384..]);
}

#[test]
fn every_single_flipped_bit_is_detected() {
    let (kind, place, object) = manifest_object();
    for bit in 0..object.len() * 8 {
        let mut damaged = object.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let opened = open_small(&samples::keys(), kind, &place, &damaged);
        assert!(opened.is_err(), "bit {bit} may flip");
        if bit < HEADER_BYTES * 8 {
            assert!(ObjectHeader::parse(&samples::keys(), &damaged).is_err(), "header bit {bit} may flip");
        }
    }
}

#[test]
fn a_flipped_body_bit_does_not_authenticate_even_with_a_fitting_digest() {
    let (kind, place, object) = manifest_object();
    for at in HEADER_BYTES..object.len() {
        let mut damaged = object.clone();
        damaged[at] ^= 1;
        let mut header = ObjectHeader::parse(&samples::keys(), &object).expect("sound");
        header.body_digest = *blake3::hash(&damaged[HEADER_BYTES..]).as_bytes();
        damaged[..HEADER_BYTES].copy_from_slice(&header.encode(&samples::keys()));
        let refused = open_small(&samples::keys(), kind, &place, &damaged).expect_err("altered");
        assert_eq!(refused, FormatError::Authentication { what: "object body" });
    }
}

#[test]
fn an_object_of_any_other_length_is_refused() {
    let (kind, place, object) = manifest_object();
    for end in 0..object.len() {
        let refused = open_small(&samples::keys(), kind, &place, &object[..end]).expect_err("truncated");
        assert!(matches!(refused, FormatError::Truncated { .. }), "{end}: {refused}");
    }
    let long = [object.as_slice(), &[0, 0]].concat();
    let refused = open_small(&samples::keys(), kind, &place, &long).expect_err("over-long");
    assert_eq!(refused, FormatError::TrailingBytes { extra: 2 });
}

#[test]
fn another_vaults_key_is_named() {
    let (kind, place, object) = manifest_object();
    let refused = open_small(&samples::other_keys(), kind, &place, &object).expect_err("wrong key");
    let (found, expected) = (samples::keys().vault().to_string(), samples::other_keys().vault().to_string());
    assert_eq!(refused, FormatError::OtherVault { found, expected });
}

#[test]
fn an_unknown_version_is_named() {
    let (_, _, mut object) = manifest_object();
    object[8] = 2;
    let refused = ObjectHeader::parse(&samples::keys(), &object).expect_err("newer");
    assert_eq!(refused, FormatError::Version { what: "object", found: 2, newest: 1 });
    object[0] ^= 1;
    let refused = ObjectHeader::parse(&samples::keys(), &object).expect_err("foreign");
    assert_eq!(refused, FormatError::Magic { what: "object" });
}

#[test]
fn an_object_in_anothers_place_is_named() {
    let (kind, place, object) = manifest_object();
    let other_machine = Some("db-02".parse().expect("valid name"));
    for elsewhere in [
        Place { slot: 2, ..place.clone() },
        Place { epoch: 4, ..place.clone() },
        Place { log: Some(LogKind::Stream), ..place.clone() },
        Place { machine: other_machine, ..place.clone() },
    ] {
        let refused = open_small(&samples::keys(), kind, &elsewhere, &object).expect_err("transplanted");
        assert!(matches!(refused, FormatError::Misplaced { .. }), "{elsewhere}: {refused}");
    }
    let refused = open_small(&samples::keys(), ObjectKind::Opening, &place, &object).expect_err("other kind");
    assert!(matches!(refused, FormatError::Misplaced { .. }), "{refused}");
}

#[test]
fn a_body_under_another_objects_header_is_refused() {
    let keys = samples::keys();
    let objects = all_objects();
    let (kind, place, object) = &objects[3];
    let mut header = ObjectHeader::parse(&keys, object).expect("sound");
    let foreign = &objects[2].2[HEADER_BYTES..];
    header.body_digest = *blake3::hash(foreign).as_bytes();
    header.total_bytes = (HEADER_BYTES + foreign.len()) as u64;
    let forged = [header.encode(&keys).as_slice(), foreign].concat();
    let refused = open_small(&keys, *kind, place, &forged).expect_err("transplanted body");
    assert_eq!(refused, FormatError::Authentication { what: "object body" });
}

#[test]
fn authenticated_headers_with_impossible_fields_are_refused() {
    let keys = samples::keys();
    let (_, _, object) = manifest_object();
    for (at, value) in [
        (10, 4),    // kind
        (12, 0),    // header length
        (20, 1),    // total bytes over the cap
        (72, 64),   // machine name too long
        (73, b'D'), // machine name in upper case
        (90, 1),    // bytes behind the machine name
        (136, 3),   // log
        (137, 1),   // reserved
        (152, 0),   // slot 0
        (208, 9),   // first record number
        (288, 2),   // frame count
        (292, 1),   // a table
        (296, 1),   // a table
        (300, 1),   // reserved
        (336, 1),   // shared, and no segment
        (336, 2),   // unknown flag
        (337, 1),   // reserved
        (351, 1),   // reserved
    ] {
        let mut bytes = object[..HEADER_BYTES].to_vec();
        bytes[at] = value;
        let mac = keys.header_mac(&bytes[..352]);
        bytes[352..].copy_from_slice(mac.as_bytes());
        let refused = ObjectHeader::parse(&keys, &bytes).expect_err("impossible");
        assert!(matches!(refused, FormatError::Invalid { .. }), "byte {at}: {refused}");
    }
}

#[test]
fn the_chain_hash_covers_every_header_byte() {
    let (_, _, object) = manifest_object();
    let hash = ObjectHeader::hash(&object).expect("whole");
    for at in 0..HEADER_BYTES {
        let mut other = object.clone();
        other[at] ^= 1;
        assert_ne!(ObjectHeader::hash(&other).expect("whole"), hash);
    }
    assert!(ObjectHeader::hash(&object[..383]).is_err());
}

#[test]
fn openings_read_back_and_refuse_other_versions_and_lengths() {
    let opening = samples::opening();
    let bytes = opening.encode();
    assert_eq!(Opening::decode(&bytes), Ok(opening));
    for end in 0..OPENING_HEAD_BYTES {
        assert!(matches!(Opening::decode(&bytes[..end]), Err(FormatError::Truncated { .. })));
    }
    assert!(matches!(Opening::decode(&[2; 20]), Err(FormatError::Version { found: 0x202, .. })));
    assert!(matches!(Opening::decode(&[0; 20]), Err(FormatError::Version { found: 0, .. })));
}
