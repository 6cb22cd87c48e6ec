//! Certificates as files: what is made, and what an operator is told about what cannot be used.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::TransportError;

struct Files {
    _dir: tempfile::TempDir,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn files(site: &Site, issued: &IssuedCertificate) -> Files {
    let dir = tempfile::tempdir().expect("dir");
    site.authority.save(dir.path()).expect("CA saved");
    let (certificate, key) = (dir.path().join("agent.crt"), dir.path().join("agent.key"));
    issued.save(&certificate, &key).expect("saved");
    Files { ca: dir.path().join("ca.crt"), certificate, key, _dir: dir }
}

fn why(files: &Files) -> (String, String) {
    match Identity::load(&files.ca, &files.certificate, &files.key) {
        Err(TransportError::Credentials { file, why }) => (file, why),
        other => panic!("expected to be refused: {other:?}"),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777
}

#[test]
fn what_is_saved_loads_again_and_is_not_overwritten() {
    let site = Site::new();
    let files = files(&site, &site.issue(Role::Agent, "db-01"));
    let identity = Identity::load(&files.ca, &files.certificate, &files.key).expect("loads");
    assert_eq!(identity.peer().to_string(), "agent db-01");
    let dir = files.ca.parent().expect("dir");
    assert_eq!((mode(&files.ca), mode(&dir.join("ca.key")), mode(&files.key)), (0o644, 0o600, 0o600));

    let before = std::fs::read(dir.join("ca.key")).expect("key");
    let told = site.authority.save(dir).expect_err("exists");
    assert!(told.to_string().contains("exists already"), "{told}");
    assert_eq!(std::fs::read(dir.join("ca.key")).expect("key"), before);

    // A loaded CA issues what the first one's trust accepts.
    let again = Authority::load(dir).expect("CA loads");
    let issued = again.issue(Role::Applier, &name("target"), DAY).expect("issued");
    Identity::from_pem(site.authority.certificate_pem(), &issued.certificate_pem, &issued.key_pem).expect("accepted");
}

#[test]
fn each_unusable_file_is_named_with_what_to_do() {
    let site = Site::new();
    let issued = site.issue(Role::Agent, "db-01");
    let ends = |(file, why): (String, String), name: &str, says: &str| {
        assert!(file.ends_with(name) && why.contains(says), "{file}: {why}");
    };

    let broken = files(&site, &issued);
    std::fs::remove_file(&broken.ca).expect("remove");
    ends(why(&broken), "ca.crt", "copy ca.crt");

    let broken = files(&site, &issued);
    std::fs::remove_file(&broken.key).expect("remove");
    ends(why(&broken), "agent.key", "is not there");

    let broken = files(&site, &issued);
    std::fs::write(&broken.certificate, "hello").expect("write");
    ends(why(&broken), "agent.crt", "no PEM certificate");

    let broken = files(&site, &issued);
    std::fs::write(&broken.key, "hello").expect("write");
    ends(why(&broken), "agent.key", "not a PEM private key");

    let broken = files(&site, &issued);
    std::fs::write(&broken.key, site.issue(Role::Agent, "db-01").key_pem).expect("write");
    ends(why(&broken), "agent.key", "not the key of");

    let broken = files(&site, &Site::new().issue(Role::Agent, "db-01"));
    ends(why(&broken), "agent.crt", "issue it from this CA");

    let broken = files(&site, &issued);
    std::fs::copy(&broken.ca, &broken.certificate).expect("copy");
    ends(why(&broken), "agent.crt", "farshore role");
}

#[test]
fn an_expired_certificate_says_since_when() {
    let site = Site::new();
    // 2026-01-01T00:00:00Z, for a day.
    let issued = site.authority.issue_at(Role::Agent, &name("db-01"), 1_767_225_600, DAY).expect("issued");
    let (file, why) = why(&files(&site, &issued));
    assert!(file.ends_with("agent.crt") && why.contains("expired at 2026-01-02T00:00:00"), "{file}: {why}");

    let next_year = crate::clock::unix_seconds() + 365 * DAY.as_secs();
    let issued = site.authority.issue_at(Role::Agent, &name("db-01"), next_year, DAY).expect("issued");
    let (_, why) = super::identity::why(&files(&site, &issued));
    assert!(why.contains("not valid before"), "{why}");
}

#[test]
fn a_ca_whose_files_do_not_belong_together_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let told = Authority::load(dir.path()).expect_err("empty");
    assert!(told.to_string().contains("farshore init"), "{told}");
    Site::new().authority.save(dir.path()).expect("saved");
    let other = tempfile::tempdir().expect("dir");
    Site::new().authority.save(other.path()).expect("saved");
    std::fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).expect("copy");
    let told = Authority::load(dir.path()).expect_err("mixed");
    assert!(told.to_string().contains("restore both files together"), "{told}");
}

#[test]
fn a_site_with_an_unprintable_name_is_refused() {
    for bad in ["", "a\nb"] {
        Authority::generate(bad).expect_err("refused");
    }
    Authority::generate(&"long".repeat(50)).expect("cut to what a common name may hold");
}

#[test]
fn debug_output_holds_no_secret() {
    let site = Site::new();
    let issued = site.issue(Role::Agent, "db-01");
    let identity = site.identity(Role::Agent, "db-01");
    for text in [format!("{:?}", site.authority), format!("{issued:?}"), format!("{identity:?}")] {
        assert!(!text.contains("PRIVATE"), "{text}");
    }
    assert!(issued.key_pem.contains("PRIVATE"), "the control: this is what a leak would look like");
}
