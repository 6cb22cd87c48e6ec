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
    manifest.apply(samples::manifest_commit());
    assert_eq!(manifest.folded(), (3, 3));
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
    newer[0] = 2;
    assert_eq!(Manifest::decode(&newer), Err(FormatError::Version { what: "manifest", found: 2, newest: 1 }));
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
    // Version 1, then a list of 2^60 segments and nothing behind it.
    let bytes = [1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert!(matches!(Manifest::decode(&bytes), Err(FormatError::Truncated { .. })));
}
