//! Revoked certificates: refused on every carrier by whoever verifies, and cut off where they were in; and a list that
//! cannot be trusted lets nobody in. Every list here is a file that changes under running listeners.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::*;
use crate::revoked::Revocations;
use crate::{CUT_WITHIN, Connection, Issued, RevocationList, Serial, TransportError, connect};

const BOTH: [TransportKind; 2] = [TransportKind::Tls, TransportKind::Quic];

/// A site whose certificates and list lie in files, as on a real host.
struct Home {
    site: Site,
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let home = Self { site: Site::new(), dir: tempfile::tempdir().expect("dir") };
        home.site.authority.save(home.dir.path()).expect("CA saved");
        home
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    fn list(&self) -> PathBuf {
        RevocationList::file(&self.ca())
    }

    fn save(&self, issued: &IssuedCertificate, stem: &str) -> PathBuf {
        let certificate = self.path(&format!("{stem}.crt"));
        issued.save(&certificate, &self.path(&format!("{stem}.key"))).expect("saved");
        certificate
    }

    fn load(&self, stem: &str) -> Result<Identity, TransportError> {
        Identity::load(&self.ca(), &self.path(&format!("{stem}.crt")), &self.path(&format!("{stem}.key")))
    }

    fn identity(&self, role: Role, holder: &str, stem: &str) -> Identity {
        self.save(&self.site.issue(role, holder), stem);
        self.load(stem).expect("identity")
    }

    async fn listener(&self, kind: TransportKind, stem: &str) -> Listener {
        let identity = self.identity(Role::ProcessServer, "gateway", stem);
        Listener::bind("127.0.0.1:0", &[kind], &identity, Role::Agent, ListenerLimits::default()).await.expect("bind")
    }

    /// What `farshore revoke` does.
    fn revoke(&self, stems: &[&str]) {
        let serials = stems
            .iter()
            .map(|stem| Issued::read(&self.ca(), &self.path(&format!("{stem}.crt"))).expect("issued").serial);
        let list = RevocationList::load(&self.ca()).expect("list").with(serials);
        self.put(self.site.authority.sign_list(&list).expect("signed"));
    }

    /// Puts a list there in one step.
    fn put(&self, list: impl AsRef<[u8]>) {
        let new = self.path(".new");
        std::fs::write(&new, list).expect("written");
        std::fs::rename(&new, self.list()).expect("in place");
    }
}

/// Connects and exchanges a first frame.
async fn meet(listener: &mut Listener, kind: TransportKind, client: &Identity) -> (Connection, Connection) {
    let address = listener.local_addr().to_string();
    let mut ours = connect(&address, kind, client, Role::ProcessServer).await.expect("connect");
    ours.writer.write(&Frame::Ping(0)).await.expect("first frame");
    ours.writer.flush().await.expect("flush");
    let mut theirs = listener.accept().await;
    assert_eq!(theirs.reader.read().await.expect("first frame"), Frame::Ping(0));
    (ours, theirs)
}

/// What a client is told that is not taken.
async fn told(listener: &Listener, kind: TransportKind, client: &Identity) -> Result<(), TransportError> {
    let address = listener.local_addr().to_string();
    let mut ours = connect(&address, kind, client, Role::ProcessServer).await?;
    // Under TLS 1.3 the client hears of it at its first read; one that is taken hears nothing at all.
    let _ = ours.writer.write(&Frame::Ping(0)).await;
    let _ = ours.writer.flush().await;
    match tokio::time::timeout(Duration::from_millis(300), ours.reader.read()).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(frame)) => panic!("a frame from nowhere: {frame:?}"),
        Err(_) => Ok(()),
    }
}

/// Polls until a client is refused, and returns what it was told.
async fn refused_soon(listener: &Listener, kind: TransportKind, client: &Identity) -> TransportError {
    let deadline = tokio::time::Instant::now() + CUT_WITHIN;
    loop {
        match told(listener, kind, client).await {
            Err(error) => return error,
            Ok(()) => assert!(tokio::time::Instant::now() < deadline, "{kind:?}: still let in after {CUT_WITHIN:?}"),
        }
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_by_listeners_that_run_and_no_other_is() {
    let home = Home::new();
    let (bad, good) = (home.identity(Role::Agent, "db-01", "bad"), home.identity(Role::Agent, "db-02", "good"));
    let tls = home.listener(TransportKind::Tls, "tls").await;
    let quic = home.listener(TransportKind::Quic, "quic").await;
    for (kind, listener) in BOTH.into_iter().zip([&tls, &quic]) {
        told(listener, kind, &bad).await.expect("the control: not revoked yet");
    }
    home.revoke(&["bad"]);
    for (kind, listener) in BOTH.into_iter().zip([&tls, &quic]) {
        let error = refused_soon(listener, kind, &bad).await;
        assert!(
            matches!(&error, TransportError::Untrusted { why, .. } if why.contains("revoked")),
            "{kind:?}: {error:?}"
        );
        told(listener, kind, &good).await.expect("not revoked");
    }
}

#[tokio::test]
async fn a_session_of_a_revoked_certificate_is_cut_in_time_idle_or_busy_and_others_stay() {
    let home = Home::new();
    let (bad, good) = (home.identity(Role::Agent, "db-01", "bad"), home.identity(Role::Agent, "db-02", "good"));
    let mut tls = home.listener(TransportKind::Tls, "tls").await;
    let mut quic = home.listener(TransportKind::Quic, "quic").await;
    let mut idle = Vec::new();
    for (kind, listener) in BOTH.into_iter().zip([&mut tls, &mut quic]) {
        idle.push(meet(listener, kind, &bad).await);
    }
    let (mut busy, mut busy_end) = meet(&mut tls, TransportKind::Tls, &bad).await;
    let (mut other, mut other_end) = meet(&mut tls, TransportKind::Tls, &good).await;
    home.revoke(&["bad"]);
    let since = tokio::time::Instant::now();
    let cut = |error: TransportError| {
        let said = matches!(&error, TransportError::Untrusted { why, .. } if why.contains("agent db-01") && why.contains("revoked"));
        assert!(said, "{error:?}");
        assert!(since.elapsed() <= CUT_WITHIN, "cut after {:?}", since.elapsed());
    };
    // A peer that never stops sending must not keep its connection by that.
    let sending = async {
        while busy.writer.write(&Frame::Ping(1)).await.is_ok() && busy.writer.flush().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let receiving = async {
        loop {
            match busy_end.reader.read().await {
                Ok(frame) => assert_eq!(frame, Frame::Ping(1)),
                Err(error) => break error,
            }
        }
    };
    let ends = idle.iter_mut().map(|(_, end)| end.reader.read());
    let (first, ends) = tokio::join!(
        async {
            tokio::select! { error = receiving => error, () = sending => panic!("the sender ends only when cut") }
        },
        async {
            let mut all = Vec::new();
            for end in ends {
                all.push(end.await.expect_err("cut"));
            }
            all
        }
    );
    cut(first);
    assert_eq!(ends.len(), 2);
    ends.into_iter().for_each(cut);
    other.writer.write(&Frame::Ping(7)).await.expect("stands");
    other.writer.flush().await.expect("flush");
    assert_eq!(other_end.reader.read().await.expect("stands"), Frame::Ping(7));
}

#[tokio::test]
async fn a_revoked_server_is_refused_and_left_by_its_clients() {
    let home = Home::new();
    let client = home.identity(Role::Agent, "db-01", "agent");
    for (kind, stem) in BOTH.into_iter().zip(["tls", "quic"]) {
        let mut listener = home.listener(kind, stem).await;
        let (mut ours, _theirs) = meet(&mut listener, kind, &client).await;
        home.revoke(&[stem]);
        let since = tokio::time::Instant::now();
        let error = ours.reader.read().await.expect_err("left");
        assert!(matches!(&error, TransportError::Untrusted { why, .. } if why.contains("revoked")), "{error:?}");
        assert!(since.elapsed() <= CUT_WITHIN, "left after {:?}", since.elapsed());
        let address = listener.local_addr().to_string();
        let error = connect(&address, kind, &client, Role::ProcessServer).await.expect_err("refused");
        assert!(matches!(&error, TransportError::Untrusted { why, .. } if why.contains("revoked")), "{error:?}");
    }
}

#[tokio::test]
async fn a_list_damaged_under_a_listener_lets_nobody_in_until_it_is_whole_and_leaves_sessions() {
    let home = Home::new();
    let client = home.identity(Role::Agent, "db-01", "agent");
    home.save(&home.site.issue(Role::Agent, "db-02"), "other");
    home.revoke(&["other"]);
    let mut listener = home.listener(TransportKind::Tls, "tls").await;
    let (mut ours, mut theirs) = meet(&mut listener, TransportKind::Tls, &client).await;
    let good = std::fs::read(home.list()).expect("list");
    home.put(&good[..good.len() / 2]);
    let error = refused_soon(&listener, TransportKind::Tls, &client).await;
    assert!(matches!(error, TransportError::Untrusted { .. }), "{error:?}");
    ours.writer.write(&Frame::Ping(7)).await.expect("stands");
    ours.writer.flush().await.expect("flush");
    assert_eq!(theirs.reader.read().await.expect("stands"), Frame::Ping(7));
    home.put(&good);
    let deadline = tokio::time::Instant::now() + CUT_WITHIN;
    while told(&listener, TransportKind::Tls, &client).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the list is whole again, and still nobody is let in");
    }
}

/// Each way in which a list can be wrong, and what is said of it.
fn wrong_lists(home: &Home) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = std::fs::read(home.list()).expect("list");
    let text = String::from_utf8(good.clone()).expect("PEM");
    let list = RevocationList::load(&home.ca()).expect("list");
    let strangers = Site::new().authority.sign_list(&list).expect("signed by another CA of the same name");
    let middle = text.len() / 2;
    let flipped: String = text
        .char_indices()
        .map(|(at, c)| {
            if at != middle {
                c
            } else if c == 'A' {
                'B'
            } else {
                'A'
            }
        })
        .collect();
    vec![
        ("empty", Vec::new(), "no list"),
        ("not a list", b"hello".to_vec(), "no list"),
        ("a certificate", home.site.authority.certificate_pem().as_bytes().to_vec(), "no list"),
        ("cut in the middle", good[..middle].to_vec(), "damaged"),
        ("cut at its last line", text.trim_end().rsplit_once('\n').expect("lines").0.as_bytes().to_vec(), "damaged"),
        ("a changed letter", flipped.into_bytes(), "list of revoked certificates"),
        ("signed by another CA", strangers.into_bytes(), "not signed by this site's CA"),
        ("too long", vec![b'x'; 2 << 20], "larger than"),
    ]
}

#[test]
fn every_list_that_cannot_be_used_is_refused_at_start_by_name() {
    let home = Home::new();
    home.save(&home.site.issue(Role::Agent, "db-01"), "agent");
    home.save(&home.site.issue(Role::Agent, "db-02"), "other");
    home.revoke(&["other"]);
    for (what, bytes, says) in wrong_lists(&home) {
        home.put(bytes);
        let error = home.load("agent").expect_err(what);
        let TransportError::Credentials { file, why } = error else { panic!("{what}: {error:?}") };
        assert!(file.ends_with("ca.crl") && why.contains(says), "{what}: {file}: {why}");
    }
    std::fs::remove_file(home.list()).expect("removed");
    std::fs::create_dir(home.list()).expect("a directory in its place");
    let error = home.load("agent").expect_err("a directory").to_string();
    assert!(error.contains("ca.crl") && error.contains("cannot be read"), "{error}");
    std::fs::remove_dir(home.list()).expect("removed");
    home.load("agent").expect("the control: no list was ever there");
}

#[test]
fn every_list_that_turns_bad_while_in_force_lets_nobody_in() {
    let home = Home::new();
    let agent = home.save(&home.site.issue(Role::Agent, "db-01"), "agent");
    home.save(&home.site.issue(Role::Agent, "db-02"), "other");
    home.save(&home.site.issue(Role::Agent, "db-03"), "third");
    let der = |file: &Path| CertificateDer::from_pem_slice(&std::fs::read(file).expect("read")).expect("PEM");
    home.revoke(&["other"]);
    let old = std::fs::read(home.list()).expect("list");
    home.revoke(&["third"]);
    let good = std::fs::read(home.list()).expect("list");
    let list = Revocations::beside(&home.ca(), vec![der(&home.ca())]).expect("in force");
    let admits = |list: &Revocations| {
        list.look_again();
        list.admit(&der(&agent)).map_err(|error| error.to_string())
    };
    let mut cases = wrong_lists(&home);
    cases.push(("an older one", old, "older (number 1)"));
    for (what, bytes, says) in cases {
        home.put(bytes);
        let why = admits(&list).expect_err(what);
        assert!(why.contains("ca.crl") && why.contains(says), "{what}: {why}");
        // Those who were revoked before it turned bad stay so.
        assert!(list.lists(&Serial::of(&der(&home.path("third.crt"))).expect("serial")), "{what}");
        home.put(&good);
        assert_eq!(admits(&list), Ok(()), "{what}: whole again");
    }
    std::fs::remove_file(home.list()).expect("taken away");
    assert!(admits(&list).expect_err("taken away").contains("was taken away"));
}

#[test]
fn a_role_does_not_start_with_a_certificate_of_its_own_that_was_revoked() {
    let home = Home::new();
    home.save(&home.site.issue(Role::Agent, "db-01"), "agent");
    home.save(&home.site.issue(Role::ProcessServer, "gateway"), "server");
    home.revoke(&["agent", "server"]);
    for stem in ["agent", "server"] {
        let error = home.load(stem).expect_err("revoked").to_string();
        assert!(error.contains(stem) && error.contains("was revoked") && error.contains("issue another"), "{error}");
    }
}

#[test]
fn only_certificates_of_this_ca_can_be_revoked() {
    let (home, other) = (Home::new(), Home::new());
    let strangers = other.save(&other.site.issue(Role::Agent, "db-01"), "agent");
    let error = Issued::read(&home.ca(), &strangers).expect_err("another CA's").to_string();
    assert!(error.contains("did not issue it"), "{error}");
    let error = Issued::read(&home.ca(), &home.ca()).expect_err("the CA itself").to_string();
    assert!(error.contains("cannot be revoked"), "{error}");
    // An expired one can: clocks may be wrong elsewhere.
    let long_ago = crate::clock::unix_seconds() - 10 * DAY.as_secs();
    let expired = home.site.authority.issue_at(Role::Agent, &name("db-09"), long_ago, DAY).expect("issued");
    let issued = Issued::read(&home.ca(), &home.save(&expired, "expired")).expect("issued here");
    assert_eq!(issued.holder, "agent db-09");
}

#[test]
fn a_list_keeps_what_it_held_and_counts_up() {
    let home = Home::new();
    assert_eq!(RevocationList::load(&home.ca()).expect("none"), RevocationList::default());
    let mut serials = Vec::new();
    for n in 1..=5u64 {
        let stem = format!("agent-{n}");
        home.save(&home.site.issue(Role::Agent, &stem), &stem);
        home.revoke(&[&stem]);
        serials.push(Issued::read(&home.ca(), &home.path(&format!("{stem}.crt"))).expect("issued").serial);
        let list = RevocationList::load(&home.ca()).expect("list");
        assert_eq!((list.number(), list.certificates().count()), (n, serials.len()));
        assert!(serials.iter().all(|serial| list.names(serial)));
    }
    let before: Vec<_> =
        RevocationList::load(&home.ca()).expect("list").certificates().map(|(s, at)| (s.clone(), at)).collect();
    home.revoke(&["agent-1"]);
    let again: Vec<_> =
        RevocationList::load(&home.ca()).expect("list").certificates().map(|(s, at)| (s.clone(), at)).collect();
    assert_eq!(before, again, "revoking twice changes nothing but the number");
}

#[test]
fn a_serial_number_is_read_as_tools_write_it() {
    let read = |text: &str| text.parse::<Serial>().map(|serial| serial.to_string());
    for (text, is) in [("0A:0b", "0a0b"), ("00ff", "ff"), ("f", "0f"), ("5F3A", "5f3a")] {
        assert_eq!(read(text).as_deref(), Ok(is), "{text}");
    }
    for bad in ["", "0", "00:00", "0x12", "xyz", "é1", &"1".repeat(41), "1 2"] {
        assert!(read(bad).expect_err(bad).contains("hexadecimal"), "{bad}");
    }
}
