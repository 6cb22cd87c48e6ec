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
    manifest.apply(ManifestCommit { nodes: Vec::new(), ..samples::manifest_commit() }).expect("it fits");
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
