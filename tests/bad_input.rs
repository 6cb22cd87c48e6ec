//! Bad input over real roles: wrong keys and certificates, rubbish on the port, damaged stores, names that are paths.
//!
//! What must hold each time: one clear line that starts with `farshore:`, the right exit code (1 failed, 2 usage or
//! configuration, 3 damage), nothing changed; and a role that is asked nonsense goes on serving everybody else.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use transport::{Authority, Identity, Listener, ListenerLimits, Role, TransportError, TransportKind};

use crate::harness::mounted::Mounted;
use crate::harness::site::{Ran, assert_same};
use crate::harness::tools::run;
use crate::harness::{PATIENCE, Proc, Seed, Site, SiteOptions, eventually};

/// A day: longer than any test.
const DAY: Duration = Duration::from_secs(86_400);

/// Lifetime of a certificate that is to expire under a test: long enough to be loaded once.
const MOMENT: Duration = Duration::from_secs(2);

/// A refusal: this code, and one line for the user that says all of `says`, as the last line.
#[track_caller]
fn refused(ran: &Ran, code: i32, says: &[&str]) {
    assert_eq!(ran.code, code, "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with("farshore: ")).collect();
    assert_eq!(lines.len(), 1, "one line for the user: {ran:?}");
    assert_eq!(ran.stderr.lines().last(), Some(lines[0]), "and nothing behind it: {ran:?}");
    says.iter().for_each(|text| assert!(lines[0].contains(text), "does not say {text:?}: {ran:?}"));
    assert!(lines[0].len() < 1000, "a line that can be read: {ran:?}");
}

/// As [`refused`], for commands that are no roles: nothing else at all is printed.
#[track_caller]
fn command_refused(ran: &Ran, code: i32, says: &[&str]) {
    refused(ran, code, says);
    assert_eq!(ran.stderr.lines().count(), 1, "only that line: {ran:?}");
    assert!(ran.stdout.is_empty(), "nothing on standard output: {ran:?}");
}

/// Every file and directory below a path, with a hash of its contents.
fn tree(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(tree(&path));
            found.insert(path, "directory".into());
        } else if path.is_file() {
            let hash = blake3::hash(&std::fs::read(&path).expect("file is read")).to_string();
            found.insert(path, hash);
        }
    }
    found
}

/// Two machines, so that there is always another one to be served.
fn two_machines() -> SiteOptions {
    let machines = vec![("db", vec![("root", 8 << 20), ("data", 4 << 20)]), ("web", vec![("root", 8 << 20)])];
    SiteOptions { machines, ..SiteOptions::default() }
}

/// Writes `blocks` blocks of 64 KiB that do not compress, from block `first` on.
fn write_noise(site: &Site, machine: &str, seed: &mut Seed, first: u64, blocks: u64) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    runtime.block_on(async {
        let client = nbd::Client::connect(&site.nbd(machine, "root"), "root").await.expect("client connects");
        for block in first..first + blocks {
            let bytes: Vec<u8> = (0..8192).flat_map(|_| seed.next().to_le_bytes()).collect();
            client.write(block * 65536, bytes.into(), false).await.expect("a source write never fails");
        }
        client.flush().await.expect("a source flush never fails");
    });
}

/// A site whose two machines have a history of several segments, with every role dead.
fn recorded() -> Site {
    let mut seed = Seed::from_environment(21);
    let site = Site::new(two_machines());
    let server = site.start(&["process-server"]);
    for machine in ["db", "web"] {
        let agent = site.start_agent(machine);
        for round in 0..6 {
            write_noise(&site, machine, &mut seed, 8 * round, 8);
            site.wait_stored(machine);
        }
        assert!(agent.stop(PATIENCE).success());
    }
    assert!(server.stop(PATIENCE).success());
    site
}

/// The segments of a machine in order, opening first.
fn segments(site: &Site, machine: &str) -> Vec<PathBuf> {
    let epochs = site.path(&format!("site/store/machine/{machine}/stream/seg"));
    let mut files: Vec<PathBuf> = tree(&epochs).into_iter().filter(|(p, _)| p.is_file()).map(|(p, _)| p).collect();
    files.sort();
    files
}

/// A second configuration beside the site's own, with texts replaced; each must occur.
fn other_config(site: &Site, name: &str, replace: &[(&str, &str)]) -> String {
    let mut text = std::fs::read_to_string(site.config()).expect("config is read");
    for (from, to) in replace {
        assert!(text.contains(from), "{from:?} is in the configuration");
        text = text.replace(from, to);
    }
    let path = site.path("site").join(name);
    std::fs::write(&path, text).expect("config is written");
    path.to_string_lossy().into_owned()
}

fn run_with(site: &Site, config: &str, args: &[&str]) -> Ran {
    site.run_bare(&[&["--config", config], args].concat())
}

fn start_with(site: &Site, config: &str, args: &[&str], log: &str) -> Proc {
    let mut command = site.command();
    command.arg("--config").arg(config).args(args).env("FARSHORE_LOG", "info");
    Proc::start(log, command, &site.path(log))
}

fn log_of(site: &Site, log: &str) -> String {
    std::fs::read_to_string(site.path(log)).unwrap_or_default()
}

/// Where the process server listens.
fn server_address(site: &Site) -> String {
    let text = std::fs::read_to_string(site.config()).expect("config is read");
    let line = text.lines().find_map(|l| l.strip_prefix("listen = \"127")).expect("a listen address");
    format!("127{}", line.trim_end_matches('"'))
}

fn pki(site: &Site) -> PathBuf {
    site.path("site/pki")
}

/// Puts a certificate of this role and lifetime where the role looks for it.
fn put_certificate(site: &Site, role: Role, machine: &str, stem: &str, lifetime: Duration) {
    let (certificate, key) = (pki(site).join(format!("{stem}.crt")), pki(site).join(format!("{stem}.key")));
    [&certificate, &key].into_iter().filter(|p| p.exists()).for_each(|p| std::fs::remove_file(p).expect("removed"));
    let authority = Authority::load(&pki(site)).expect("CA loads");
    let issued = authority.issue(role, &machine.parse().expect("a valid name"), lifetime).expect("issued");
    issued.save(&certificate, &key).expect("saved");
}

/// An identity of this site's CA, in memory.
fn identity(site: &Site, role: Role, name: &str, lifetime: Duration) -> Identity {
    let authority = Authority::load(&pki(site)).expect("CA loads");
    let issued = authority.issue(role, &name.parse().expect("a valid name"), lifetime).expect("issued");
    Identity::from_pem(authority.certificate_pem(), &issued.certificate_pem, &issued.key_pem).expect("loads in time")
}

/// What the agent says of why it has no connection.
fn wait_connection_failure(site: &Site, machine: &str, says: &[&str]) {
    eventually("the agent says why it is not connected", || {
        let status = site.agent_status(machine)?;
        let why = status["connection_failure"].as_str().unwrap_or_default();
        match status["connection"].is_null() && says.iter().all(|text| why.contains(text)) {
            true => Ok(()),
            false => Err(format!("{status:#}")),
        }
    });
    let shown = site.run(&["status"]);
    assert!(says.iter().all(|text| shown.stdout.contains(text)), "status shows it: {shown:?}");
}

/// The disk of an agent that nobody will have is a disk all the same.
fn assert_serves(site: &Site, machine: &str) {
    let uri = site.nbd_uri(machine, "root");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x5a 64k 64k", "-c", "flush", "-c", "read -P 0x5a 64k 64k", &uri]);
}

#[test]
fn an_agent_of_another_ca_is_refused_and_serves_its_disk_on() {
    let (site, foreign) = (Site::new(two_machines()), Site::new(SiteOptions::default()));
    let _server = site.start(&["process-server"]);
    let _web = site.start_agent("web");
    let ca = format!("ca = \"{}\"\n[store]", pki(&foreign).to_string_lossy());
    let config = other_config(&site, "foreign.toml", &[("[store]", &ca)]);
    let mut agent = start_with(&site, &config, &["agent", "db"], "foreign.log");
    wait_connection_failure(&site, "db", &["do not trust each other"]);
    assert_serves(&site, "db");
    agent.running().expect("the agent lives on");
    eventually("the server says why", || {
        let log = log_of(&site, "process-server.log");
        let told = log.lines().any(|l| l.contains("connection refused: its handshake failed"));
        if told { Ok(()) } else { Err(log) }
    });
    assert_serves(&site, "web");
    site.wait_stored("web");
    assert!(!site.path("site/store/machine/db").exists(), "the stranger left nothing in the store");
}

#[test]
fn an_expired_certificate_says_since_when_and_what_to_do() {
    let site = Site::new(two_machines());
    for (role, name, stem) in [(Role::Agent, "db", "agent-db"), (Role::ProcessServer, "test", "process-server")] {
        put_certificate(&site, role, name, stem, Duration::ZERO);
    }
    let ca_key = (pki(&site).join("ca.key"), site.path("ca.key"));
    std::fs::rename(&ca_key.0, &ca_key.1).expect("the CA's key is kept elsewhere");
    for stem in ["agent-db", "process-server"] {
        let file = |ending: &str| pki(&site).join(format!("{stem}.{ending}"));
        eventually("the certificate expires", || {
            match Identity::load(&pki(&site).join("ca.crt"), &file("crt"), &file("key")) {
                Err(error) => {
                    assert!(error.to_string().contains("expired at"), "{error}");
                    Ok(())
                }
                Ok(_) => Err("still valid".into()),
            }
        });
    }
    let before = tree(&pki(&site));
    let year = "expired at 20";
    refused(&site.run(&["agent", "db"]), 2, &["agent-db.crt", year, "issue a new certificate"]);
    refused(&site.run(&["process-server"]), 2, &["process-server.crt", year, "issue a new certificate"]);
    assert_eq!(tree(&pki(&site)), before, "nothing was changed");
    assert!(!site.path("site/store/machine").exists(), "nothing was made");
    // The way out: with the CA's key back in its place, both roles renew their certificates by themselves.
    std::fs::rename(&ca_key.1, &ca_key.0).expect("the CA's key is brought");
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    site.wait_stored("db");
}

#[test]
fn a_peer_whose_certificate_expired_meanwhile_is_refused_by_either_side() {
    let site = Site::new(two_machines());
    let address = server_address(&site);
    // The server's certificate expires under it: the agent will not have it, says why, and serves on.
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let expired_server = identity(&site, Role::ProcessServer, "test", MOMENT);
    let expired_agent = identity(&site, Role::Agent, "web", MOMENT);
    let both_expired = Instant::now() + MOMENT + Duration::from_secs(1);
    let listener = runtime.block_on(Listener::bind(
        &address,
        &[TransportKind::Tls],
        &expired_server,
        Role::Agent,
        ListenerLimits::default(),
    ));
    let listener = listener.expect("binds");
    eventually("both are expired", || if Instant::now() > both_expired { Ok(()) } else { Err("not yet".into()) });
    let _agent = site.start_agent("db");
    wait_connection_failure(&site, "db", &["do not trust each other", "xpired"]);
    assert_serves(&site, "db");
    drop(listener);
    // Its accepting tasks let go of the port when they are next run.
    eventually("the port is free", || std::net::TcpListener::bind(&address).map(drop).map_err(|e| e.to_string()));

    // An agent's certificate expires under it: the server will not have it. The first agent heals by itself.
    let _server = site.start(&["process-server"]);
    site.wait_stored("db");
    let told = runtime.block_on(async {
        match transport::connect(&address, TransportKind::Tls, &expired_agent, Role::ProcessServer).await {
            Ok(mut connection) => connection.reader.read().await.map(|frame| format!("{frame:?}")),
            Err(error) => Err(error),
        }
    });
    match told {
        Err(TransportError::Untrusted { why, .. }) => assert!(why.contains("expired"), "{why}"),
        other => panic!("an expired agent is refused: {other:?}"),
    }
    eventually("the server's log says why", || {
        let log = log_of(&site, "process-server.log");
        if log.contains("handshake failed") && log.contains("xpired") { Ok(()) } else { Err(log) }
    });
}

#[test]
fn an_agent_with_another_machines_certificate_does_not_start() {
    let site = Site::new(two_machines());
    put_certificate(&site, Role::Agent, "web", "agent-db", DAY * 365);
    let before = tree(&site.path("site"));
    let ran = site.run(&["agent", "db"]);
    refused(&ran, 2, &["agent-db.crt", "issued to agent web", "agent db"]);
    let left = |tree: BTreeMap<PathBuf, String>| -> Vec<PathBuf> {
        tree.into_keys().filter(|path| !path.starts_with(site.data_dir())).collect()
    };
    assert_eq!(left(tree(&site.path("site"))), left(before), "nothing was changed");
    assert!(!site.data_dir().join("agent").exists(), "no dirty map was made");
    // A server's certificate is no better.
    put_certificate(&site, Role::ProcessServer, "db", "agent-db", DAY * 365);
    refused(&site.run(&["agent", "db"]), 2, &["agent-db.crt", "issued to process-server db"]);
}

/// Resident memory of a process in bytes.
fn resident_bytes(process: &Proc) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("the process runs");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("it has memory");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number") * 1024
}

/// A connection to the server as any agent makes it, but with nothing on it yet: for bytes of our own.
fn raw_tls(site: &Site, machine: &str) -> StreamOwned<ClientConnection, TcpStream> {
    let authority = Authority::load(&pki(site)).expect("CA loads");
    let issued = authority.issue(Role::Agent, &machine.parse().expect("a name"), DAY).expect("issued");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).expect("PEM")).expect("a CA");
    let chain = vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("PEM");
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .expect("key and certificate fit");
    config.alpn_protocols = vec![b"farshore/1".to_vec()];
    let name = ServerName::try_from("process-server.farshore").expect("a valid name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    StreamOwned::new(connection, raw_tcp(site))
}

fn raw_tcp(site: &Site) -> TcpStream {
    let tcp = TcpStream::connect(server_address(site)).expect("the port is open");
    tcp.set_read_timeout(Some(PATIENCE)).expect("timeout is set");
    tcp
}

/// Waits until the server has ended the connection; what it says before does not matter.
fn assert_dropped(what: &str, stream: &mut impl Read) {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                panic!("{what}: the server did not drop the connection within {PATIENCE:?}")
            }
            Err(_) => return,
        }
    }
}

/// A frame's header: that of a real frame, with another kind and length.
fn frame_header(kind: u16, payload_bytes: u32) -> Vec<u8> {
    let mut header: Vec<u8> = format::wire::Frame::Ping(7).encode().concat();
    header.truncate(format::wire::FRAME_HEADER_BYTES);
    header[4..6].copy_from_slice(&kind.to_le_bytes());
    header[8..12].copy_from_slice(&payload_bytes.to_le_bytes());
    header
}

/// What may come over the port: over plain TCP, and from an agent with a valid certificate.
fn rubbish() -> Vec<(&'static str, Vec<u8>)> {
    let mut seed = Seed::from_environment(22);
    let garbage: Vec<u8> = (0..8192).flat_map(|_| seed.next().to_le_bytes()).collect();
    let (hello, data) = (format::wire::FrameKind::Hello as u16, format::wire::FrameKind::Data as u16);
    vec![
        ("garbage", garbage),
        ("an HTTP request", b"GET / HTTP/1.1\r\nhost: farshore\r\n\r\n".to_vec()),
        ("a TLS record of the largest length", vec![0x16, 3, 1, 0xff, 0xff]),
        ("a frame of 4 GiB", frame_header(data, u32::MAX)),
        ("a HELLO larger than any", frame_header(hello, 64 << 20)),
        ("an unknown kind", frame_header(999, 16)),
        ("zeros", vec![0; 4096]),
        ("half a header", frame_header(hello, 100)[..7].to_vec()),
        ("half a frame", [frame_header(hello, 100), vec![1; 50]].concat()),
        ("a frame of the wrong checksum", [frame_header(hello, 50), vec![1; 50]].concat()),
        ("a PING before HELLO", format::wire::Frame::Ping(7).encode().concat()),
    ]
}

/// Connections that announce the largest frame there is and send a part of it.
const GREEDY: usize = 40;

/// Memory that all the rubbish together may cost the server, where announced are over 1.3 GiB.
const MEMORY_BYTES_MAX: u64 = 256 << 20;

#[test]
fn rubbish_on_the_port_costs_its_sender_the_connection_and_nobody_else_anything() {
    let site = Site::new(two_machines());
    let mut server = site.start(&["process-server"]);
    let _web = site.start_agent("web");
    site.wait_stored("web");
    let before = resident_bytes(&server);
    let highest = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (what, bytes) in rubbish() {
            let site = &site;
            scope.spawn(move || {
                let mut tcp = raw_tcp(site);
                // The server may be done with us before we are done writing.
                let _dropped_early = tcp.write_all(&bytes);
                assert_dropped(&format!("{what} over TCP"), &mut tcp);
                let mut tls = raw_tls(site, "db");
                let _dropped_early = tls.write_all(&bytes).and_then(|()| tls.flush());
                assert_dropped(&format!("{what} over TLS"), &mut tls);
            });
        }
        let largest = frame_header(format::wire::FrameKind::Data as u16, format::wire::DATA_BYTES_MAX as u32);
        let mut greedy: Vec<_> = (0..GREEDY).map(|_| raw_tls(&site, "db")).collect();
        for stream in &mut greedy {
            stream.write_all(&largest).and_then(|()| stream.write_all(&[7; 64 << 10])).expect("it is taken");
            stream.flush().expect("it is taken");
        }
        // Served meanwhile, as if nothing were.
        assert_serves(&site, "web");
        site.wait_stored("web");
        highest.store(resident_bytes(&server), std::sync::atomic::Ordering::Relaxed);
        greedy.iter_mut().for_each(|stream| assert_dropped("a greedy frame", stream));
    });
    server.running().expect("the server lives on");
    let grown = highest.into_inner().max(resident_bytes(&server)).saturating_sub(before);
    eprintln!("memory of the process server grew by {} KiB", grown >> 10);
    assert!(grown < MEMORY_BYTES_MAX, "memory is bounded: {grown} bytes more than {before}");
    eventually("strangers, and frames that break the protocol, are logged", || {
        let log = log_of(&site, "process-server.log");
        if log.contains("handshake failed") && log.contains("sent what cannot be read") { Ok(()) } else { Err(log) }
    });
    let log = log_of(&site, "process-server.log");
    assert!(!log.contains("panicked"), "nothing panicked: {log}");
    assert!(!site.path("site/store/machine/db").exists(), "no stream was begun");
    // The machine whose certificate sent all that is served when it behaves.
    let _db = site.start_agent("db");
    site.wait_stored("db");
}

#[test]
fn targets_that_are_taken_or_too_small_stay_as_they_are() {
    let site = recorded();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let restore =
        |to: &Path, format: &str| site.run(&["restore", "db", "--at", "latest", "--to", &text(to), "--format", format]);
    let (taken, file) = (site.path("taken"), site.path("taken/db-root.raw"));
    std::fs::create_dir(&taken).expect("directory is made");
    std::fs::write(&file, b"dear data").expect("file is made");
    let place = tempfile::tempdir().expect("temporary directory");
    let small = Mounted::small(place.path(), 64 << 20);
    small.fill();
    let empty = small.dir.join("empty");
    std::fs::create_dir(&empty).expect("directory is made");

    let before = (tree(&taken), tree(&small.dir), tree(&site.path("site/store")));
    for format in ["raw", "qcow2", "vhd"] {
        command_refused(&restore(&taken, format), 2, &["taken", "not empty", "give a directory"]);
        command_refused(&restore(&file, format), 1, &["db-root.raw"]);
        command_refused(&restore(&empty, format), 1, &["empty", "too small", "bytes are needed"]);
    }
    let listen = format!("unix:{}", text(&site.path("no.sock")));
    let overlay = text(&file);
    let serve =
        site.run(&["serve", "db", "--disk", "root", "--at", "latest", "--listen", &listen, "--overlay", &overlay]);
    command_refused(&serve, 2, &["db-root.raw", "exists"]);
    let nowhere = format!("unix:{}", text(&site.path("no/such/dir/x.sock")));
    let serve = site.run(&["serve", "db", "--disk", "root", "--at", "latest", "--listen", &nowhere]);
    command_refused(&serve, 1, &["no/such/dir"]);
    assert!(!site.path("no.sock").exists(), "no socket was made");
    assert_eq!((tree(&taken), tree(&small.dir), tree(&site.path("site/store"))), before, "nothing was changed");
    // The control: the same command with a good target.
    site.restore("db", "latest", "good");
}

#[test]
fn positions_that_are_none_name_what_there_is() {
    let mut seed = Seed::from_environment(23);
    let machines = vec![("db", vec![("root", 32 << 20), ("data", 4 << 20)]), ("web", vec![("root", 8 << 20)])];
    let site = Site::new(SiteOptions { machines, ..SiteOptions::default() });
    // A source with data: its initial replication is a drain of many records.
    let noise: Vec<u8> = (0..3 << 20).flat_map(|_| seed.next().to_le_bytes()).collect();
    std::fs::write(site.source("db", "root"), &noise).expect("source is filled");
    std::fs::File::options()
        .write(true)
        .open(site.source("db", "root"))
        .and_then(|f| f.set_len(32 << 20))
        .expect("sized");
    let server = site.start(&["process-server"]);
    let agent = site.start_agent("db");
    let head = site.wait_stored("db");
    assert!(agent.stop(PATIENCE).success() && server.stop(PATIENCE).success());
    let before = tree(&site.path("site/store"));
    let to = site.path("out").to_string_lossy().into_owned();
    let listen = format!("unix:{}", site.path("no.sock").to_string_lossy());
    let no_point = format!("id:{}", "0".repeat(32));
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("db", "seq:2".into(), &["seq:2", "inside a drain", "nearest valid"]),
        ("db", format!("seq:{}", head + 1000), &["out of range", "valid positions go from"]),
        ("db", format!("seq:{}", u64::MAX), &["out of range"]),
        ("db", "seq:0".into(), &["seq:0"]),
        ("db", "time:1970-01-01T00:00:00Z".into(), &["out of range"]),
        ("db", no_point, &["no recovery point", "farshore points"]),
        ("db", "latest-processed".into(), &["no replica position"]),
        ("mail", "latest".into(), &["mail", "it holds: db"]),
    ];
    for (machine, at, says) in &cases {
        for args in [
            vec!["restore", machine, "--at", at, "--to", &to, "--format", "raw"],
            vec!["serve", machine, "--disk", "root", "--at", at, "--listen", &listen],
            vec![
                "compare",
                machine,
                "--disk",
                "root",
                "--at",
                at,
                "--with",
                &site.source("db", "root").to_string_lossy(),
            ],
        ] {
            command_refused(&site.run(&args), 2, says);
        }
    }
    let serve = site.run(&["serve", "db", "--disk", "swap", "--at", "latest", "--listen", &listen]);
    command_refused(&serve, 2, &["swap", "data", "root"]);
    let source = site.source("web", "root");
    std::fs::File::create(&source).and_then(|f| f.set_len(1 << 20)).expect("a smaller disk");
    let compare = site.run(&["compare", "db", "--disk", "root", "--at", "latest", "--with", &source.to_string_lossy()]);
    command_refused(&compare, 2, &["equal size"]);
    assert!(!site.path("out").exists() && !site.path("no.sock").exists(), "nothing was made");
    assert_eq!(tree(&site.path("site/store")), before, "nothing was changed");

    // A log that ends inside its initial replication has no point at all, and says so.
    let all = segments(&site, "db");
    assert!(all.len() > 2, "several segments: {all:?}");
    all[2..].iter().for_each(|path| std::fs::remove_file(path).expect("removed"));
    for at in ["latest", "seq:2", "time:2100-01-01T00:00:00Z"] {
        let ran = site.run(&["restore", "db", "--at", at, "--to", &to, "--format", "raw"]);
        command_refused(&ran, 2, &["initial replication"]);
    }
    assert!(!site.path("out").exists(), "nothing was made");
}

/// What somebody does to a store: the segments of two machines in, the object that must be named out.
type Harm = fn(&[PathBuf], &[PathBuf]) -> PathBuf;

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(path).expect("object is read");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("object is written");
    path.to_owned()
}

fn flip(path: &Path, at: impl FnOnce(usize) -> usize) -> PathBuf {
    rewrite(path, |bytes| {
        let at = at(bytes.len());
        bytes[at] ^= 0x04;
    })
}

const HARMS: &[(&str, Harm)] = &[
    ("a segment cut in half", |db, _| rewrite(&db[3], |b| b.truncate(b.len() / 2))),
    ("a segment cut by a byte", |db, _| rewrite(&db[3], |b| b.truncate(b.len() - 1))),
    ("a segment longer by a byte", |db, _| rewrite(&db[3], |b| b.push(0))),
    ("an empty segment", |db, _| rewrite(&db[3], Vec::clear)),
    ("another magic", |db, _| flip(&db[3], |_| 0)),
    ("an altered header", |db, _| flip(&db[3], |_| 100)),
    ("altered data", |db, _| flip(&db[3], |len| len / 2)),
    ("an altered end", |db, _| flip(&db[3], |len| len - 1)),
    ("an altered opening", |db, _| flip(&db[0], |len| len / 2)),
    ("two swapped slots", |db, _| {
        let (one, two) = (std::fs::read(&db[3]).expect("read"), std::fs::read(&db[4]).expect("read"));
        std::fs::write(&db[4], one).expect("written");
        rewrite(&db[3], |b| *b = two)
    }),
    ("a slot twice", |db, _| {
        std::fs::copy(&db[2], &db[3]).expect("copied");
        db[3].clone()
    }),
    ("another machine's object in its place", |db, web| {
        std::fs::copy(&web[3], &db[3]).expect("copied");
        db[3].clone()
    }),
    ("another machine's opening in its place", |db, web| {
        std::fs::copy(&web[0], &db[0]).expect("copied");
        db[0].clone()
    }),
    ("text in its place", |db, _| rewrite(&db[3], |b| *b = b"hello".to_vec())),
];

/// The one harm that restore may not notice: it reads the frames that the table names, and these are whole.
const ONLY_VERIFY_SEES: &str = "a segment longer by a byte";

/// An object's name as the store has it.
fn object_name(site: &Site, path: &Path) -> String {
    path.strip_prefix(site.path("site/store")).expect("in the store").to_string_lossy().into_owned()
}

#[test]
fn damage_is_named_object_by_object_with_exit_code_3() {
    let site = recorded();
    let (db, web) = (segments(&site, "db"), segments(&site, "web"));
    assert!(db.len() > 5 && web.len() > 5, "several segments: {db:?} {web:?}");
    let good: Vec<Vec<u8>> = db.iter().map(|path| std::fs::read(path).expect("read")).collect();
    let out = site.path("out");
    let to = out.to_string_lossy().into_owned();
    let restore = ["restore", "db", "--at", "latest", "--to", &to, "--format", "raw"];
    assert_eq!(site.run(&["verify", "db"]).code, 0, "sound before");
    for (what, harm) in HARMS {
        let name = object_name(&site, &harm(&db, &web));
        let before = tree(&site.path("site/store"));
        let verified = site.run(&["verify", "db"]);
        assert_eq!(verified.code, 3, "{what}: verify finds it: {verified:?}");
        let said = format!("{}{}", verified.stdout, verified.stderr);
        assert!(said.contains(&name), "{what}: verify names {name}: {said}");
        let restored = site.run(&restore);
        if *what == ONLY_VERIFY_SEES && restored.code == 0 {
            // What is read is authenticated frame by frame and nothing of it is altered, so the disks must be right.
            assert_same(&site.source("db", "root"), &out.join("db-root.raw"));
            std::fs::remove_dir_all(&out).expect("removed");
            std::fs::write(&db[3], &good[3]).expect("healed");
            continue;
        }
        assert_eq!(restored.code, 3, "{what}: restore finds it: {restored:?}");
        command_refused(&restored, 3, &[&name]);
        let left: Vec<_> = if out.exists() { tree(&out).into_keys().collect() } else { Vec::new() };
        assert!(left.iter().all(|path| !path.to_string_lossy().ends_with("db-root.raw")), "{what}: no image: {left:?}");
        let _not_made = std::fs::remove_dir_all(&out);
        assert_eq!(tree(&site.path("site/store")), before, "{what}: nothing was changed");
        assert_eq!(site.run(&["verify", "web"]).code, 0, "{what}: the other machine is not hit");
        db.iter().zip(&good).for_each(|(path, bytes)| std::fs::write(path, bytes).expect("healed"));
    }
    assert_eq!(site.run(&["verify", "db"]).code, 0, "sound again");
    site.restore("db", "latest", "out");
}

#[test]
fn a_missing_slot_in_the_middle_is_found_by_a_witness_and_named_by_a_manifest() {
    let site = recorded();
    let db = segments(&site, "db");
    let (gone, away) = (&db[3], site.path("gone"));
    let head = site.json(&["points", "db"])["head"]["seq"].as_u64().expect("a head");
    let witness = head.to_string();
    assert_eq!(site.run(&["verify", "db", "--head", &witness]).code, 0, "sound before");
    std::fs::rename(gone, &away).expect("taken away");
    let before = tree(&site.path("site/store"));
    // In the newest epoch a hole is also what a writer leaves that died with uploads in flight: without a manifest or a
    // witness the two cannot be told apart, and verify says that much.
    let alone = site.run(&["verify", "db"]);
    assert!(alone.stdout.contains("cut off by a missing slot"), "the objects behind the hole are noted: {alone:?}");
    let witnessed = site.run(&["verify", "db", "--head", &witness]);
    assert_eq!(witnessed.code, 3, "the witness finds it: {witnessed:?}");
    assert!(witnessed.stdout.contains("TAIL LOST"), "{witnessed:?}");
    assert_eq!(tree(&site.path("site/store")), before, "nothing was changed");

    // With a manifest that names the segments, the very object is named, without any witness.
    std::fs::rename(&away, gone).expect("put back");
    let applier = site.start(&["applier"]);
    eventually("the manifest reaches the end of the log", || {
        let status = site.control("applier", "GET", "/status", "")?;
        let machines = status["machines"].as_array().cloned().unwrap_or_default();
        let done = machines.iter().any(|m| m["machine"] == "db" && m["processed_seq"].as_u64() == Some(head));
        if done { Ok(()) } else { Err(format!("{status:#}")) }
    });
    assert!(applier.stop(PATIENCE).success());
    std::fs::rename(gone, &away).expect("taken away");
    let name = object_name(&site, gone);
    let before = tree(&site.path("site/store"));
    let verified = site.run(&["verify", "db"]);
    assert_eq!(verified.code, 3, "the manifest finds it: {verified:?}");
    assert!(verified.stdout.contains(&name), "and names {name}: {verified:?}");
    assert_eq!(tree(&site.path("site/store")), before, "nothing was changed");
    std::fs::rename(&away, gone).expect("put back");
    assert_eq!(site.run(&["verify", "db"]).code, 0, "sound again");
}

fn vault_of(key: &str) -> String {
    let key = format::keys::VaultKey::parse(key).expect("a key");
    format::keys::Keys::new(&key).vault().to_string()
}

#[test]
fn a_vault_key_that_is_wrong_missing_or_mistyped_opens_nothing() {
    let (site, other) = (recorded(), Site::new(SiteOptions::default()));
    let key = site.path("site/vault.key");
    let good = std::fs::read_to_string(&key).expect("key is read");
    let mistyped = {
        let (at, last) = good.trim_end().char_indices().last().expect("a key has letters");
        format!("{}{}\n", &good[..at], if last == '0' { '1' } else { '0' })
    };
    let shorter = good.trim_end()[..good.trim_end().len() - 1].to_owned();
    let (own, foreign) = (vault_of(&site.recovery_key), vault_of(&other.recovery_key));
    let cases: Vec<(&str, Option<&str>, Vec<&str>)> = vec![
        ("of another vault", Some(&other.recovery_key), vec![&own, &foreign, "does not open the store"]),
        ("mistyped", Some(&mistyped), vec!["vault.key", "no usable vault key", "compare"]),
        ("a letter short", Some(&shorter), vec!["vault.key", "no usable vault key"]),
        ("empty", Some(""), vec!["vault.key", "no usable vault key"]),
        ("not text", Some("\u{0}\u{1}\u{2}"), vec!["vault.key"]),
        ("not there", None, vec!["vault.key", "cannot read", "--key"]),
    ];
    let store = tree(&site.path("site/store"));
    let to = site.path("out").to_string_lossy().into_owned();
    let listen = format!("unix:{}", site.path("no.sock").to_string_lossy());
    for (what, text, says) in &cases {
        match text {
            Some(text) => std::fs::write(&key, text).expect("key is written"),
            None => std::fs::remove_file(&key).expect("key is removed"),
        }
        for args in [
            &["points", "db"][..],
            &["verify", "db"],
            &["restore", "db", "--at", "latest", "--to", &to, "--format", "raw"],
            &["serve", "db", "--disk", "root", "--at", "latest", "--listen", &listen],
            &["unprotect", "db", "--purge"],
            &["process-server"],
            &["applier"],
        ] {
            let ran = site.run(args);
            refused(&ran, 2, says);
            let shown = ran.stderr.contains(mistyped.trim()) || ran.stderr.contains(good.trim());
            assert!(!shown, "{what}: a key is never repeated: {ran:?}");
        }
        assert_eq!(tree(&site.path("site/store")), store, "{what}: nothing was changed");
        assert!(!site.path("out").exists() && !site.path("no.sock").exists(), "{what}: nothing was made");
    }
    std::fs::write(&key, &good).expect("key is brought back");
    assert_eq!(site.run(&["points", "db"]).code, 0, "the right key opens it");
}

/// Names that would be paths, other names, or no names at all.
fn tricks() -> Vec<String> {
    let fixed = [
        "../x",
        "..",
        ".",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "%2f",
        "a%2fb",
        "a b",
        "a\nb",
        "a\u{1b}[31m",
        "ä",
        "ａ",
        "a\u{202e}b",
        "a.b",
        "A",
        "-a",
        "",
        "a:b",
        "a*",
        "~",
        "$HOME",
        "a;b",
    ];
    let long = ["a".repeat(64), "a".repeat(10_000), "../".repeat(2000)];
    fixed.into_iter().map(str::to_owned).chain(long).collect()
}

#[test]
fn names_that_are_paths_are_refused_before_anything_is_touched() {
    let site = recorded();
    let before = tree(&site.path(""));
    let to = site.path("out").to_string_lossy().into_owned();
    let listen = format!("unix:{}", site.path("no.sock").to_string_lossy());
    let hint = "use 1 to 63 of a-z, 0-9";
    // A dash makes an option of it, which is refused as one.
    let says = |name: &str| if name.starts_with('-') { vec!["see `farshore --help`"] } else { vec![hint] };
    for name in tricks() {
        for args in [
            &["points", &name][..],
            &["restore", &name, "--at", "latest", "--to", &to, "--format", "raw"],
            &["serve", "db", "--disk", &name, "--at", "latest", "--listen", &listen],
            &["unprotect", &name, "--purge"],
            &["agent", &name],
        ] {
            command_refused(&site.run(args), 2, &says(&name));
        }
    }
    let selectors = [
        "seq:../x",
        "id:../../etc",
        "seq:18446744073709551616",
        "time:2026-13-45T00:00:00Z",
        "latest\n",
        "%2f",
        "",
        "säq:1",
        "seq:0x10",
        "id:zz",
    ];
    let long = format!("seq:{}", "9".repeat(10_000));
    for at in selectors.into_iter().chain([long.as_str()]) {
        let restore = site.run(&["restore", "db", "--at", at, "--to", &to, "--format", "raw"]);
        command_refused(&restore, 2, &["names no position", "latest"]);
        command_refused(&site.run(&["verify", "db", "--at", at]), 2, &["names no position"]);
    }
    for listen in
        ["unix:", "unix:a\0b", "tcp:nowhere", "tcp:h:99999", "http://x", &format!("unix:/{}", "a".repeat(200))]
    {
        if listen.contains('\0') {
            continue;
        }
        let serve = site.run(&["serve", "db", "--disk", "root", "--at", "latest", "--listen", listen]);
        command_refused(&serve, 2, &["listen address"]);
    }
    assert_eq!(tree(&site.path("")), before, "nothing was changed");
}

#[test]
fn names_that_are_paths_are_refused_in_the_configuration_too() {
    let site = Site::new(two_machines());
    let before = tree(&site.path("site/store"));
    let quoted = |name: &str| serde_json::to_string(name).expect("a string").replace("\\u001b", "\\u001B");
    for name in tricks().into_iter().chain(["a\0b".to_owned()]) {
        let value = format!("name = {}", quoted(&name));
        for (written, key) in
            [("name = \"test\"", "site.name"), ("name = \"web\"", "machine.name"), ("name = \"data\"", "disk.name")]
        {
            let config = other_config(&site, "tricks.toml", &[(written, &value)]);
            for args in [&["process-server"][..], &["agent", "db"], &["points", "db"]] {
                command_refused(&run_with(&site, &config, args), 2, &["tricks.toml", key, "use 1 to 63"]);
            }
        }
    }
    assert_eq!(tree(&site.path("site/store")), before, "nothing was changed");
    assert!(!site.data_dir().exists(), "no role left anything");
}

#[test]
fn labels_are_one_printable_line() {
    let site = Site::new(two_machines());
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    let seq = site.wait_stored("db");
    let long = ["x".repeat(201), "ä".repeat(101), "x".repeat(100_000)];
    for label in
        ["two\nlines", "\u{1b}[31mred", "tab\tbed", "bell\u{7}"].into_iter().chain(long.iter().map(String::as_str))
    {
        command_refused(&site.run(&["mark", "db", "--label", label]), 2, &["label", "use"]);
        // Nor does the role take it from somebody who does not use the command.
        let body = serde_json::json!({ "label": label }).to_string();
        let told = site.control("agent-db", "POST", "/mark", &body).expect_err("refused");
        assert!(told.contains("label"), "{told}");
    }
    assert_eq!(site.wait_stored("db"), seq, "no refused label became a record");
    // What looks like a path is only a text there, up to the last byte.
    let longest = "ä".repeat(100);
    for label in ["../../etc/passwd", "%2f", "a/b", longest.as_str()] {
        let mark = site.json(&["mark", "db", "--label", label]);
        assert_eq!(mark["label"], label);
    }
    let points = site.json(&["points", "db"]).to_string();
    assert!(points.contains("../../etc/passwd") && points.contains(&longest), "{points}");
}

#[test]
fn a_second_process_server_finds_the_port_or_the_role_taken() {
    let site = Site::new(two_machines());
    let mut server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    site.wait_stored("db");
    refused(&site.run(&["process-server"]), 1, &["process-server already runs", "stop it first"]);
    let elsewhere = site.path("elsewhere").to_string_lossy().into_owned();
    let data_dir = site.data_dir().to_string_lossy().into_owned();
    let config = other_config(&site, "second.toml", &[(&data_dir, &elsewhere)]);
    let ran = run_with(&site, &config, &["process-server"]);
    refused(&ran, 1, &["cannot listen on", &server_address(&site), "another process may hold it"]);
    server.running().expect("the first one lives on");
    assert_serves(&site, "db");
    site.wait_stored("db");
}

#[test]
fn a_second_agent_of_a_machine_is_refused_by_lock_source_or_server() {
    let site = Site::new(two_machines());
    let _server = site.start(&["process-server"]);
    let mut first = site.start_agent("db");
    site.wait_stored("db");
    // The same command again: the first thing it would take is the source, which is held.
    refused(&site.run(&["agent", "db"]), 2, &["db-root.source", "in use by another writer", "stop the agent"]);
    let data_dir = site.data_dir().to_string_lossy().into_owned();
    let elsewhere = site.path("elsewhere").to_string_lossy().into_owned();
    let sockets = site.path("db-").to_string_lossy().into_owned();
    // Another state directory, the same source: the source itself is held.
    let config = other_config(&site, "second.toml", &[(&data_dir, &elsewhere)]);
    let before = std::fs::read(site.source("db", "root")).expect("source is read");
    refused(&run_with(&site, &config, &["agent", "db"]), 2, &["db-root.source", "cannot open source"]);
    assert!(std::fs::read(site.source("db", "root")).expect("source is read") == before, "the source is untouched");

    // Another state directory and a copy of the sources, as on another host: the process server refuses the second.
    let clone = site.path("clone-").to_string_lossy().into_owned();
    for disk in ["root", "data"] {
        std::fs::copy(site.source("db", disk), site.path(&format!("clone-{disk}.source"))).expect("source is copied");
    }
    // With sources of its own but the same state directory, the role's lock stops it.
    let config = other_config(&site, "locked.toml", &[(&sockets, &clone)]);
    refused(&run_with(&site, &config, &["agent", "db"]), 1, &["agent-db already runs", "stop it first"]);
    let config = other_config(&site, "clone.toml", &[(&data_dir, &elsewhere), (&sockets, &clone)]);
    let _second = start_with(&site, &config, &["agent", "db"], "second.log");
    eventually("the second agent is refused by name", || {
        let ran = run_with(&site, &config, &["--json", "status"]);
        let status: serde_json::Value = serde_json::from_str(&ran.stdout).map_err(|e| format!("{e}: {ran:?}"))?;
        let refusal = &status["machines"][0]["agent"]["refusal"];
        let named = refusal["reason"] == "SecondAgent" && refusal["text"].to_string().contains("another agent");
        if named { Ok(()) } else { Err(format!("{status:#}")) }
    });
    let shown = run_with(&site, &config, &["status"]);
    assert!(shown.stdout.contains("refused: another agent of this machine is connected"), "status shows it: {shown:?}");
    eventually("the log says what to do", || {
        let log = log_of(&site, "second.log");
        if log.contains("stop the other agent of this machine") { Ok(()) } else { Err(log) }
    });
    first.running().expect("the first agent lives on");
    assert_serves(&site, "db");
    site.wait_stored("db");
    let restored = site.restore("db", "latest", "out");
    site.assert_equals_source("db", &restored);
}
