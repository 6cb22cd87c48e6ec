//! Who an NBD server lets in, and what its certificate says to clients.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{RevocationList, Serial, TransportError, nbd_server_config};

struct Files {
    _dir: tempfile::TempDir,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn files(site: &Site, issued: &IssuedCertificate) -> Files {
    let dir = tempfile::tempdir().expect("dir");
    site.authority.save(dir.path()).expect("CA saved");
    let (certificate, key) = (dir.path().join("nbd.crt"), dir.path().join("nbd.key"));
    issued.save(&certificate, &key).expect("saved");
    Files { ca: dir.path().join("ca.crt"), certificate, key, _dir: dir }
}

fn server(site: &Site) -> IssuedCertificate {
    let hosts: BTreeSet<String> = ["nbd.example.org", "127.0.0.1", "::1"].map(String::from).into();
    site.authority.issue_nbd_server(&name("db-01"), &hosts, DAY).expect("issued")
}

/// A client that trusts `site` and shows a certificate, if any.
fn client(site: &Site, shows: Option<&IssuedCertificate>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(site.authority.certificate_pem().as_bytes()).expect("PEM");
    roots.add(ca).expect("CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let Some(shows) = shows else { return builder.with_no_client_auth() };
    let chain = vec![CertificateDer::from_pem_slice(shows.certificate_pem.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(shows.key_pem.as_bytes()).expect("PEM");
    builder.with_client_auth_cert(chain, key).expect("client")
}

/// What the client and then the server say of a handshake between them.
async fn shake(files: &Files, client: ClientConfig, host: &'static str) -> (Result<(), String>, Result<(), String>) {
    let config = nbd_server_config(&files.ca, &files.certificate, &files.key).expect("server");
    let (near, far) = tokio::io::duplex(1 << 16);
    let connector = TlsConnector::from(Arc::new(client));
    let acceptor = TlsAcceptor::from(config.config);
    let connecting = connector.connect(ServerName::try_from(host).expect("name"), near);
    let (c, s) = tokio::join!(async { connecting.await.map(drop) }, async { acceptor.accept(far).await.map(drop) });
    (c.map_err(|e| format!("{e:?}")), s.map_err(|e| format!("{e:?}")))
}

#[tokio::test]
async fn only_certificates_for_nbd_clients_of_this_site_are_let_in() {
    // One has another name, one the same.
    let other = Site { authority: Authority::generate("other").expect("CA") };
    let (site, double) = (Site::new(), Site::new());
    let files = files(&site, &server(&site));
    let good = site.authority.issue_nbd_client(DAY).expect("issued");
    for host in ["nbd.example.org", "127.0.0.1", "::1"] {
        assert_eq!(shake(&files, client(&site, Some(&good)), host).await, (Ok(()), Ok(())), "{host}");
    }
    let (said, _) = shake(&files, client(&site, Some(&good)), "other.example.org").await;
    assert!(said.expect_err("another host").contains("NotValidForName"));

    let stranger = other.authority.issue_nbd_client(DAY).expect("issued");
    let namesake = double.authority.issue_nbd_client(DAY).expect("issued");
    let agent = site.issue(Role::Agent, "db-01");
    let itself = server(&site);
    for (shows, why) in [
        (None, "NoCertificatesPresented"),
        (Some(&stranger), "UnknownIssuer"),
        (Some(&namesake), "BadSignature"),
        (Some(&agent), "ApplicationVerificationFailure"),
        (Some(&itself), "InvalidPurpose"),
    ] {
        let (_, said) = shake(&files, client(&site, shows), "nbd.example.org").await;
        let said = said.expect_err(why);
        assert!(said.contains(why), "{said} should say {why}");
    }
}

#[test]
fn nbd_certificates_are_no_identity_of_a_role() {
    let site = Site::new();
    for issued in [server(&site), site.authority.issue_nbd_client(DAY).expect("issued")] {
        let ca = site.authority.certificate_pem();
        let refused = Identity::from_pem(ca, &issued.certificate_pem, &issued.key_pem).expect_err("refused");
        assert!(matches!(refused, TransportError::Credentials { .. }), "{refused}");
    }
}

#[test]
fn unusable_files_of_an_nbd_server_are_named() {
    let (site, other) = (Site::new(), Site::new());
    let ends = |files: &Files, name: &str, says: &str| {
        let told = nbd_server_config(&files.ca, &files.certificate, &files.key).map(|_| ()).expect_err(says);
        let TransportError::Credentials { file, why } = told else { panic!("{told}") };
        assert!(file.ends_with(name) && why.contains(says), "{file}: {why}");
    };
    ends(&files(&site, &server(&other)), "nbd.crt", "issue it from this CA");
    ends(&files(&site, &site.authority.issue_nbd_client(DAY).expect("issued")), "nbd.crt", "not accepted");
    let mixed = IssuedCertificate { key_pem: server(&site).key_pem, ..server(&site) };
    ends(&files(&site, &mixed), "nbd.key", "not the key of");
    let gone = files(&site, &server(&site));
    std::fs::remove_file(&gone.key).expect("removed");
    ends(&gone, "nbd.key", "is not there");
}

#[tokio::test]
async fn a_revoked_nbd_client_is_refused_and_one_that_is_in_must_go() {
    let site = Site::new();
    let files = files(&site, &server(&site));
    let (bad, good) = (site.authority.issue_nbd_client(DAY), site.authority.issue_nbd_client(DAY));
    let (bad, good) = (bad.expect("issued"), good.expect("issued"));
    let der =
        |issued: &IssuedCertificate| CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("PEM");
    let running = nbd_server_config(&files.ca, &files.certificate, &files.key).expect("server");
    assert!(!(running.lapsed)(&der(&bad)), "the control: not revoked yet");

    let serial = Serial::of(&der(&bad)).expect("serial");
    let list = RevocationList::default().with([serial]);
    std::fs::write(RevocationList::file(&files.ca), site.authority.sign_list(&list).expect("signed")).expect("written");
    let (_, said) = shake(&files, client(&site, Some(&bad)), "nbd.example.org").await;
    assert!(said.expect_err("revoked").contains("Revoked"));
    assert_eq!(shake(&files, client(&site, Some(&good)), "nbd.example.org").await, (Ok(()), Ok(())));
    eventually("a running server hears of it", || (running.lapsed)(&der(&bad))).await;
    assert!(!(running.lapsed)(&der(&good)));

    let list = list.with([Serial::of(&der(&server_of(&files))).expect("serial")]);
    std::fs::write(RevocationList::file(&files.ca), site.authority.sign_list(&list).expect("signed")).expect("written");
    let told = nbd_server_config(&files.ca, &files.certificate, &files.key).map(|_| ()).expect_err("its own");
    assert!(told.to_string().contains("nbd.crt") && told.to_string().contains("revoked"), "{told}");
}

fn server_of(files: &Files) -> IssuedCertificate {
    let certificate_pem = std::fs::read_to_string(&files.certificate).expect("read");
    IssuedCertificate { certificate_pem, key_pem: String::new() }
}
