//! Dumps of sound, damaged and foreign objects.

use super::*;
use crate::samples;
use crate::seal::Packing;

fn segment() -> Vec<u8> {
    samples::segment(Packing::WhenItPays).parts.concat()
}

#[test]
fn a_segment_is_shown_whole() {
    let dump = dump(Some(&samples::keys()), &segment()).expect("sound");
    assert!(dump.authenticated && dump.problems.is_empty());
    let table = dump.table.as_ref().expect("segments have one");
    assert_eq!((table.written_bytes, table.zero_bytes, table.referenced_bytes), (48 << 10, 32 << 10, 4 << 10));
    let text = dump.to_string();
    for part in [
        "header authenticated",
        "db-01/stream/epoch 3 slot 4",
        "before upgrade",
        "in frame 7 at 4096",
        "write disk",
        "shared        true",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn without_a_key_the_header_is_shown_as_not_authenticated() {
    let dump = dump(None, &segment()).expect("sound");
    assert!(!dump.authenticated && dump.table.is_none() && dump.body.is_none() && dump.problems.is_empty());
    assert!(dump.to_string().contains("NOT authenticated"));
}

#[test]
fn another_vaults_object_and_a_forged_header_are_named() {
    let foreign = dump(Some(&samples::other_keys()), &segment()).expect("its header reads");
    assert!(!foreign.authenticated && foreign.problems[0].contains("belongs to vault"), "{foreign}");
    let mut forged = segment();
    forged[248] ^= 1;
    let forged = dump(Some(&samples::keys()), &forged).expect("its header reads");
    assert!(!forged.authenticated && forged.problems[0].contains("does not authenticate"), "{forged}");
}

#[test]
fn a_damaged_frame_is_named_and_the_rest_is_shown() {
    let mut object = segment();
    *object.last_mut().expect("not empty") ^= 1;
    let dump = dump(Some(&samples::keys()), &object).expect("its header reads");
    assert!(dump.authenticated && dump.table.is_some());
    assert_eq!(dump.problems.len(), 2, "{dump}");
    assert!(dump.problems[1].starts_with("frame 7: "), "{dump}");
}

#[test]
fn a_truncated_object_shows_its_table() {
    let object = segment();
    let dump = dump(Some(&samples::keys()), &object[..object.len() - 1]).expect("its header reads");
    assert!(dump.table.is_some());
    assert!(dump.problems[0].starts_with("truncated"), "{dump}");
}

#[test]
fn small_objects_show_their_bodies() {
    for (name, kind, place, body) in samples::smalls() {
        let object = samples::seal(kind, place, &body, Packing::WhenItPays);
        let dump = dump(Some(&samples::keys()), &object).expect(name);
        assert!(dump.authenticated && dump.problems.is_empty(), "{dump}");
        let text = dump.to_string();
        let part = match kind {
            ObjectKind::Vault => "body: 8 bytes: 616e7920626f6479",
            ObjectKind::Epoch => "body: 16 bytes: 0909",
            ObjectKind::Opening => "continues epoch 2, whose last accepted slot is 17",
            ObjectKind::Hold => "for 7200 s",
            ObjectKind::Consumer => "consumer 5d5d5d5d5d5d5d5d at epoch 3 slot 8",
            ObjectKind::Condemn => "condemned: db-02/stream/epoch 1",
            ObjectKind::Registry => "machine db-01",
            _ => "1 maps, 1 segments behind them, 1 points",
        };
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn a_map_shows_its_disks_and_what_it_is_made_of() {
    let object = samples::map(Packing::WhenItPays).parts.concat();
    let dump = dump(Some(&samples::keys()), &object).expect("its header reads");
    assert!(dump.authenticated && dump.problems.is_empty(), "{dump}");
    let text = dump.to_string();
    for part in [
        "map of 1 disks, made of 2 segments and 0 maps",
        "4 runs, 70656 bytes of data, 1073741824 of zeros",
        "reads from segments of db-02",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let mut damaged = object;
    *damaged.last_mut().expect("not empty") ^= 1;
    let dump = super::dump(Some(&samples::keys()), &damaged).expect("its header reads");
    assert!(dump.map.is_some() && dump.problems[1].starts_with("page 0: "), "{dump}");
}

#[test]
fn a_pack_shows_what_it_holds_of_each_segment() {
    let object = samples::pack(Packing::WhenItPays).parts.concat();
    let dump = dump(Some(&samples::keys()), &object).expect("its header reads");
    assert!(dump.authenticated && dump.problems.is_empty(), "{dump}");
    let text = dump.to_string();
    for part in ["pack of frames of 1 segments", "epoch 3 slot 4: id 45", "2 frames of "] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let mut damaged = object;
    *damaged.last_mut().expect("not empty") ^= 1;
    let dump = super::dump(Some(&samples::keys()), &damaged).expect("its header reads");
    assert!(dump.pack.is_some() && dump.problems[1].starts_with("frame 7 of epoch 3 slot 4: "), "{dump}");
}
