//! Manifests: round trips and refusals.

use super::*;
use crate::samples;

#[test]
fn manifests_and_commits_read_back() {
    let (manifest, commit) = (samples::manifest(), samples::manifest_commit());
    assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    assert_eq!(ManifestCommit::decode(&commit.encode()), Ok(commit));
    assert_eq!(Manifest::decode(&Manifest::default().encode()), Ok(Manifest::default()));
}

#[test]
fn a_commit_moves_the_fold_on() {
    let mut manifest = Manifest::default();
    assert_eq!(manifest.folded(), (0, 0));
    manifest
        .apply(ManifestCommit { nodes: Vec::new(), horizon: None, packs: Vec::new(), ..samples::manifest_commit() })
        .expect("it fits");
    assert_eq!(manifest.folded(), (3, 3));
    assert_eq!(manifest.ends, [EpochEnd { epoch: 3, slot: 3 }]);
    assert_eq!(manifest.points.len(), 1);
}

#[test]
fn any_other_length_or_version_is_refused() {
    let bytes = samples::manifest().encode();
    for end in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..end]).is_err(), "{end}");
    }
    let long = [bytes.as_slice(), &[0]].concat();
    assert_eq!(Manifest::decode(&long), Err(FormatError::TrailingBytes { extra: 1 }));
    let mut newer = bytes;
    newer[0] = 3;
    assert_eq!(Manifest::decode(&newer), Err(FormatError::Version { what: "manifest", found: 3, newest: 2 }));
    newer[0] = 1;
    assert_eq!(Manifest::decode(&newer), Err(FormatError::Version { what: "manifest", found: 1, newest: 2 }));
}

#[test]
fn a_leaf_takes_segments_in_and_a_merge_takes_nodes() {
    let mut manifest = Manifest::default();
    for slot in 1..=2 * FANOUT as u64 {
        let commit = ManifestCommit { segments: vec![samples::promoted(slot)], ..ManifestCommit::default() };
        manifest.apply(commit).expect("segments follow one another");
        if slot % 2 == 0 {
            let mut nodes = vec![samples::node(0, slot)];
            if slot == 2 * FANOUT as u64 {
                nodes.push(samples::node(1, slot));
            }
            manifest.apply(ManifestCommit { nodes, ..ManifestCommit::default() }).expect("the map fits");
            assert!(manifest.segments.is_empty());
        }
        assert_eq!(manifest.folded(), (3, slot));
    }
    assert_eq!(manifest.nodes, [samples::node(1, 2 * FANOUT as u64)]);
}

#[test]
fn a_map_of_what_is_not_there_is_refused() {
    let commit = |node| ManifestCommit { nodes: vec![node], ..ManifestCommit::default() };
    let mut manifest = samples::manifest();
    assert!(manifest.clone().apply(commit(samples::node(0, 9))).is_err());
    assert!(manifest.clone().apply(commit(samples::node(1, 2))).is_err());
    assert!(manifest.apply(commit(samples::node(0, 2))).is_ok());
    assert!(manifest.apply(commit(samples::node(1, 2))).is_err());
}

#[test]
fn segments_out_of_order_and_long_labels_are_refused() {
    let mut manifest = samples::manifest();
    manifest.segments.swap(0, 1);
    assert!(matches!(Manifest::decode(&manifest.encode()), Err(FormatError::Invalid { .. })));
    manifest.segments[0] = manifest.segments[1].clone();
    assert!(matches!(Manifest::decode(&manifest.encode()), Err(FormatError::Invalid { .. })));
    let mut commit = samples::manifest_commit();
    commit.points[0].mark = Some(samples::mark(&"x".repeat(201)));
    assert!(matches!(ManifestCommit::decode(&commit.encode()), Err(FormatError::Invalid { .. })));
}

#[test]
fn a_claimed_length_reserves_no_memory() {
    // Version 2, then a list of 2^60 nodes and nothing behind it.
    let bytes = [2, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert!(matches!(Manifest::decode(&bytes), Err(FormatError::Truncated { .. })));
}

#[test]
fn a_dropped_point_is_gone_and_one_of_the_same_commit_stays() {
    let mut manifest = samples::manifest();
    let other = Point { id: PointId([7; 16]), ..samples::point() };
    let dropped = vec![samples::point().id, PointId([9; 16])];
    let commit = ManifestCommit { points: vec![other.clone()], dropped, ..ManifestCommit::default() };
    manifest.apply(commit).expect("it fits");
    assert_eq!(manifest.points, [other]);
}

#[test]
fn a_pin_holds_until_it_is_taken_out() {
    let mut manifest = Manifest::default();
    let id = PointId([3; 16]);
    for (pinned, unpinned, held) in [(vec![id], vec![], true), (vec![id], vec![], true), (vec![], vec![id], false)] {
        manifest.apply(ManifestCommit { pinned, unpinned, ..ManifestCommit::default() }).expect("it fits");
        assert_eq!(manifest.pins.contains(&id), held);
    }
}

#[test]
fn a_horizon_moves_to_the_end_of_an_epoch_that_maps_hold() {
    let at = |epoch, slot| Promoted { epoch, ..samples::promoted(slot) };
    let node = |end| Node { end, ..samples::node(0, 1) };
    let whole = Manifest {
        nodes: vec![node(at(1, 2)), node(at(2, 1))],
        ends: vec![EpochEnd { epoch: 1, slot: 2 }, EpochEnd { epoch: 2, slot: 3 }],
        ..Manifest::default()
    };
    let to = |horizon| ManifestCommit { horizon: Some(horizon), ..ManifestCommit::default() };
    let mut passed = whole.clone();
    passed.apply(to(at(1, 2))).expect("it fits");
    assert_eq!((passed.horizon.clone(), passed.ends.len()), (Some(at(1, 2)), 1));
    assert_eq!(Manifest::decode(&passed.encode()).expect("sound"), passed);
    assert!(passed.apply(to(at(1, 2))).is_err(), "it is there already");
    assert!(whole.clone().apply(to(at(2, 1))).is_err(), "nothing would be whole");
    let unmapped = Manifest { nodes: Vec::new(), ..whole };
    assert!(unmapped.clone().apply(to(at(1, 2))).is_err(), "no map holds it");
    let kept_end = Manifest { horizon: Some(at(1, 2)), ..unmapped };
    assert!(Manifest::decode(&kept_end.encode()).is_err(), "an end before the horizon");
}

#[test]
fn the_map_of_a_point_goes_with_it() {
    let mut manifest = samples::manifest();
    assert_eq!(manifest.point_maps.len(), 1);
    let dropped = vec![samples::point().id];
    manifest.apply(ManifestCommit { dropped, ..ManifestCommit::default() }).expect("it fits");
    assert!(manifest.point_maps.is_empty());
}

#[test]
fn packs_stand_for_what_lies_before_the_horizon_and_never_overlap() {
    let whole = samples::manifest();
    let (one, two) = (whole.packs[0].clone(), whole.packs[1].clone());
    let commit = |packs, unpacked| ManifestCommit { packs, unpacked, ..ManifestCommit::default() };
    let applied = |commit: ManifestCommit| {
        let mut manifest = whole.clone();
        manifest.apply(commit).map(|()| manifest.packs)
    };
    let three = samples::pack_ref(3, (1, 2), (2, 1));
    assert_eq!(applied(commit(Vec::new(), vec![one.name])), Ok(vec![two.clone()]));
    assert_eq!(applied(commit(vec![three.clone()], vec![one.name, two.name])), Ok(vec![three.clone()]));
    let behind = samples::pack_ref(4, (2, 4), (2, 10));
    for bad in [commit(vec![three], vec![one.name]), commit(vec![behind.clone()], Vec::new())] {
        assert_eq!(applied(bad), Err(FormatError::Invalid { what: "pack of a manifest" }));
    }
    let bytes = Manifest { packs: vec![behind], ..whole.clone() }.encode();
    assert_eq!(Manifest::decode(&bytes), Err(FormatError::Invalid { what: "pack of a manifest" }));
    let bytes = commit(vec![two, one], Vec::new()).encode();
    assert_eq!(ManifestCommit::decode(&bytes), Err(FormatError::Invalid { what: "pack of a manifest" }));
}
