//! When certificates are issued, issued again, kept and refused, judged by what lies in the directory afterwards.

use ::nbd::ListenAddress;

use super::*;

struct Site {
    dir: tempfile::TempDir,
    machine: MachineName,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        Authority::generate("here").and_then(|ca| ca.save(dir.path())).expect("CA");
        Self { dir, machine: "db".parse().expect("name") }
    }

    fn serve(&self, listen: &str) -> anyhow::Result<bool> {
        let listen: ListenAddress = listen.parse().expect(listen);
        nbd::server_config(self.dir.path(), &self.machine, &listen).map(|config| config.is_some())
    }

    fn hosts(&self) -> Vec<String> {
        let hosts = read(&self.dir.path().join("nbd-db.crt"), hosts_of).expect("a certificate");
        hosts.into_iter().collect()
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
    }
}

#[test]
fn addresses_in_the_clear_need_no_certificate() {
    let site = Site::new();
    assert!(!site.serve("tcp:127.0.0.1:10809").expect("served"));
    assert!(!site.serve("unix:/run/x.sock").expect("served"));
    assert!(!site.dir.path().join("nbd-db.crt").exists() && !site.dir.path().join("nbd-client").exists());
}

#[test]
fn an_nbd_certificate_names_the_host_and_is_issued_once() {
    let site = Site::new();
    assert!(site.serve("tls:10.0.0.5:10809").expect("served"));
    assert_eq!(site.hosts(), ["10.0.0.5"]);
    let files = ["nbd-db.crt", "nbd-db.key", "nbd-client/client-cert.pem", "nbd-client/client-key.pem"];
    let before = files.map(|file| site.bytes(file));
    assert!(site.serve("tls:10.0.0.5:10810").expect("served"));
    assert_eq!(files.map(|file| site.bytes(file)), before);
    assert_eq!(site.bytes("nbd-client/ca-cert.pem"), site.bytes("ca.crt"));
}

#[test]
fn another_host_is_added_to_those_the_certificate_names() {
    let site = Site::new();
    for listen in ["tls:NBD.example.org:1", "tls:[::1]:1", "tls:10.0.0.5:1"] {
        assert!(site.serve(listen).expect("served"));
    }
    let (key, client) = (site.bytes("nbd-db.key"), site.bytes("nbd-client/client-cert.pem"));
    assert_eq!(site.hosts(), ["10.0.0.5", "::1", "nbd.example.org"]);
    assert!(site.serve("tls:[::1]:2").expect("served"));
    assert_eq!(site.bytes("nbd-db.key"), key, "nothing is missing, nothing is issued");
    assert!(site.serve("tls:0.0.0.0:1").expect("served"));
    assert_eq!(site.hosts(), ["10.0.0.5", "127.0.0.1", "::1", "db", "localhost", "nbd.example.org"]);
    assert_eq!(site.bytes("nbd-client/client-cert.pem"), client, "clients are not concerned");
}

#[test]
fn hosts_of_long_ago_are_forgotten_at_the_bound() {
    let site = Site::new();
    let many = (1..=nbd::HOSTS_MAX).map(|n| format!("10.0.0.{n}")).collect();
    let authority = Authority::load(site.dir.path()).expect("CA");
    let full = authority.issue_nbd_server(&site.machine, &many, LIFETIME).expect("issued");
    full.save(&site.dir.path().join("nbd-db.crt"), &site.dir.path().join("nbd-db.key")).expect("saved");
    assert!(site.serve("tls:10.0.0.7:1").expect("served"));
    assert_eq!(site.hosts().len(), nbd::HOSTS_MAX);
    assert!(site.serve("tls:10.1.0.1:1").expect("served"));
    assert_eq!(site.hosts(), ["10.1.0.1"]);
}

#[test]
fn without_the_ca_key_a_missing_host_or_certificate_is_refused_with_what_to_do() {
    let site = Site::new();
    assert!(site.serve("tls:10.0.0.5:1").expect("served"));
    std::fs::remove_file(site.dir.path().join("ca.key")).expect("removed");
    assert!(site.serve("tls:10.0.0.5:1").expect("what is there is enough"));
    let told = site.serve("tls:10.0.0.6:1").expect_err("another host").to_string();
    assert!(told.contains("nbd-db.crt is not for 10.0.0.6") && told.contains("ca.key"), "{told}");
    std::fs::remove_file(site.dir.path().join("nbd-db.key")).expect("removed");
    let told = site.serve("tls:10.0.0.5:1").expect_err("no key").to_string();
    assert!(told.contains("nbd-db.key") && told.contains("ca.key"), "{told}");
}

#[test]
fn a_certificate_near_its_end_is_renewed_where_the_ca_key_is() {
    let site = Site::new();
    let hosts = ["10.0.0.5".to_owned()].into();
    let authority = Authority::load(site.dir.path()).expect("CA");
    let short = authority.issue_nbd_server(&site.machine, &hosts, RENEW_BEFORE / 2).expect("issued");
    short.save(&site.dir.path().join("nbd-db.crt"), &site.dir.path().join("nbd-db.key")).expect("saved");
    assert!(site.serve("tls:10.0.0.5:1").expect("served"));
    assert_ne!(site.bytes("nbd-db.crt"), short.certificate_pem.as_bytes());
    assert_eq!(read(&site.dir.path().join("nbd-db.crt"), expires_soon), Some(false));
}
