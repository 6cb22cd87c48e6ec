//! Adversaries against real roles: whoever reads everything that Farshore writes, and whoever holds a stolen certificate.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::harness::site::Ran;
use crate::harness::{PATIENCE, Proc, Seed, Site, SiteOptions, eventually};

/// What is written to the disks, in the midst of noise that no compression removes.
const MARKER: &[u8] = b"FARSHORE-PLAINTEXT-MARKER-7f3a9c51";

/// Bytes between two markers on the disks.
const MARKER_EVERY: usize = 4096;

/// Something that must be found nowhere.
struct Secret {
    name: String,
    bytes: Vec<u8>,
}

fn secret(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Secret {
    let secret = Secret { name: name.into(), bytes: bytes.into() };
    assert!(secret.bytes.len() >= 16, "{} is too short to be told from chance", secret.name);
    secret
}

/// The 256 bits of a key text: Crockford base32, most significant bit first, behind `FARSHORE-KEY-1-`.
fn bits_of(key_text: &str) -> Vec<u8> {
    let digits = key_text.strip_prefix("FARSHORE-KEY-1-").expect("a key").bytes().filter(|b| *b != b'-');
    let value = |b: u8| b"0123456789ABCDEFGHJKMNPQRSTVWXYZ".iter().position(|a| *a == b).expect("a digit");
    let bits: Vec<bool> = digits.map(value).flat_map(|v| (0..5).map(move |bit| v >> (4 - bit) & 1 == 1)).collect();
    bits.chunks(8).take(32).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | u8::from(*bit))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The vault key in every form, and every private key of the site's directory of certificates.
fn secrets(site: &Site) -> Vec<Secret> {
    let text = std::fs::read_to_string(site.path("site/vault.key")).expect("the key is read").trim().to_owned();
    assert_eq!(text, site.recovery_key, "the recovery key is the vault key");
    let raw = bits_of(&text);
    let mut all = vec![
        secret("the marker", MARKER),
        secret("the vault key as text", text.as_bytes()),
        secret("the vault key as text without dashes", text.replace('-', "").into_bytes()),
        secret("the vault key's bits", raw.clone()),
        secret("the vault key in hexadecimal", hex(&raw)),
        secret("the vault key in hexadecimal, upper case", hex(&raw).to_uppercase()),
    ];
    for file in files(&site.path("site/pki")).into_iter().filter(|file| is_private_key(file)) {
        let pem = std::fs::read(&file).expect("a key is read");
        let der = PrivateKeyDer::from_pem_slice(&pem).expect("a private key").secret_der().to_vec();
        // PKCS#8 holds the number itself as an octet string of 32 bytes.
        let at = der.windows(2).position(|two| two == [0x04, 0x20]).expect("a key of P-256") + 2;
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        all.push(secret(format!("the number of {name}"), &der[at..at + 32]));
        all.push(secret(format!("the number of {name} in hexadecimal"), hex(&der[at..at + 32])));
        let line = String::from_utf8_lossy(&pem).lines().nth(1).expect("a line of base64").to_owned();
        all.push(secret(format!("{name} as PEM"), line));
    }
    all
}

fn is_private_key(file: &Path) -> bool {
    let name = file.file_name().expect("a name").to_string_lossy();
    name.ends_with(".key") || name.ends_with("-key.pem")
}

/// Every regular file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().map(|e| e.expect("entry")) {
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

/// Which secrets a file holds.
fn found_in(file: &Path, secrets: &[Secret]) -> Vec<String> {
    let bytes = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut first = vec![false; 1 << 16];
    let pair = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    secrets.iter().for_each(|secret| first[pair(&secret.bytes)] = true);
    let mut found = std::collections::BTreeSet::new();
    for at in 0..bytes.len().saturating_sub(1) {
        if first[pair(&bytes[at..])] {
            let rest = &bytes[at..];
            found.extend(secrets.iter().filter(|s| rest.starts_with(&s.bytes)).map(|s| s.name.clone()));
        }
    }
    found.into_iter().collect()
}

/// Starts a role that logs all it can.
fn start_traced(site: &Site, role: &[&str]) -> Proc {
    let mut command = site.command();
    command.arg("--config").arg(site.config()).args(role).env("FARSHORE_LOG", "trace").env("RUST_BACKTRACE", "full");
    Proc::start(&role.join(" "), command, &site.path(&format!("{}.log", role.join("-"))))
}

fn start_traced_agent(site: &Site) -> Proc {
    let mut agent = start_traced(site, &["agent", "db"]);
    eventually("the disk is served", || {
        agent.running()?;
        std::os::unix::net::UnixStream::connect(site.socket("db", "root")).map_err(|e| e.to_string())
    });
    agent
}

/// Writes blocks of 64 KiB from `first` on: noise, with a marker at the start of every 4 KiB. Waits before each MiB until
/// `ready`, so that the agent is never outrun.
fn write_marked(site: &Site, seed: &mut Seed, first: u64, blocks: u64, ready: impl Fn() -> Result<(), String>) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let client = runtime.block_on(nbd::Client::connect(&site.nbd("db", "root"), "root")).expect("client connects");
    for block in first..first + blocks {
        if block % 16 == 0 {
            eventually("the agent keeps up", &ready);
        }
        let mut bytes: Vec<u8> = (0..8192).flat_map(|_| seed.next().to_le_bytes()).collect();
        bytes.chunks_mut(MARKER_EVERY).for_each(|part| part[..MARKER.len()].copy_from_slice(MARKER));
        runtime.block_on(client.write(block * 65536, bytes.into(), false)).expect("a source write never fails");
    }
    runtime.block_on(client.flush()).expect("a source flush never fails");
}

/// Everything an operator may type, right and wrong, and what was printed.
fn everything_an_operator_types(site: &Site) -> Vec<Ran> {
    let path = |name: &str| site.path(name).to_string_lossy().into_owned();
    let key = path("site/vault.key");
    let other = format::keys::VaultKey::generate().to_text();
    std::fs::write(site.path("other.key"), other.as_bytes()).expect("written");
    let mistyped = site.recovery_key.replace("KEY-1-", "KEY-1-0");
    std::fs::write(site.path("mistyped.key"), &mistyped).expect("written");
    let cut: String = site.recovery_key.chars().take(40).collect();
    std::fs::write(site.path("cut.key"), cut).expect("written");
    let objects = files(&site.path("site/store"));
    let mut ran = Vec::new();
    for args in [
        &["status"][..],
        &["--json", "status"],
        &["points", "db"],
        &["--json", "points", "db"],
        &["verify", "db"],
        &["--json", "verify", "db"],
        &["mark", "db", "--label", "before"],
        &["restore", "db", "--at", "latest", "--to", &path("restored"), "--format", "raw"],
        &["restore", "db", "--at", "latest", "--to", &path("restored"), "--format", "raw"],
        &["restore", "db", "--at", "seq:999999", "--to", &path("none"), "--format", "raw"],
        &["compare", "db", "--disk", "root", "--at", "latest", "--with", &path("db-root.source")],
        &["key", "check", "--file", &key],
        &["key", "check", "--file", &path("other.key")],
        &["key", "check", "--file", &path("mistyped.key")],
        &["key", "check", "--file", &path("cut.key")],
        &["--key", &path("other.key"), "points", "db"],
        &["--key", &path("mistyped.key"), "points", "db"],
        &["--key", &path("db-root.source"), "points", "db"],
        &["--key", &path("site/pki/ca.key"), "points", "db"],
        &["dump", &key],
        &["dump", &path("site/pki/ca.key")],
        &["dump", &path("db-root.source")],
        &["revoke", &path("site/pki/ca.key")],
        &["revoke", &path("site/pki/agent-db.key")],
        &["revoke"],
        &["unprotect", "db"],
    ] {
        ran.push(site.run(args));
    }
    ran.extend(objects.iter().map(|object| site.run(&["dump", &object.to_string_lossy()])));
    ran.extend(objects.iter().take(4).map(|object| site.run(&["--json", "dump", &object.to_string_lossy()])));
    ran
}

#[test]
fn no_key_and_no_plaintext_is_ever_in_store_spool_logs_or_output() {
    let mut seed = Seed::from_environment(81);
    let site = Site::new(SiteOptions {
        machines: vec![("db", vec![("root", 32 << 20)])],
        queue_bytes: "4MiB",
        spool_bytes: "64MiB",
        environment: vec![("FARSHORE_LOG".into(), "trace".into())],
        ..SiteOptions::default()
    });
    let server = start_traced(&site, &["process-server"]);
    let applier = start_traced(&site, &["applier"]);
    let agent = start_traced_agent(&site);
    write_marked(&site, &mut seed, 0, 64, || Ok(()));
    site.wait_stored("db");
    let mut secrets = secrets(&site);

    // An outage: what memory has no room for goes to the spool.
    server.kill();
    let spooling = || {
        let status = site.agent_status("db")?;
        let fits = status["queue_bytes_used"].as_u64() <= Some(2 << 20) && status["mode"] == "data";
        if fits { Ok(()) } else { Err(status.to_string()) }
    };
    write_marked(&site, &mut seed, 64, 128, spooling);
    eventually("the spool is used", || {
        let used = site.agent_status("db")?["spool_bytes_used"].as_u64().unwrap_or(0);
        if used > 4 << 20 { Ok(()) } else { Err(format!("{used} bytes")) }
    });
    let spool = site.data_dir().join("agent/db/spool");
    let spooled = std::fs::read(&spool).expect("the spool is read");
    assert!(spooled.iter().filter(|byte| **byte != 0).count() > 3 << 20, "the spool holds payloads");
    assert_eq!(found_in(&spool, &secrets), Vec::<String>::new(), "in the spool while it is full");
    let kept = site.path("spool-while-full");
    std::fs::copy(&spool, &kept).expect("copied");

    let server = start_traced(&site, &["process-server"]);
    site.wait_stored("db");
    eventually("a point is there, and the replica follows", || {
        let replica = site.data_dir().join("replica/db/root.raw");
        if replica.exists() { Ok(()) } else { Err("no replica yet".into()) }
    });
    let mut printed = everything_an_operator_types(&site);
    for (role, path) in
        [("agent-db", "/status"), ("agent-db", "/metrics"), ("process-server", "/status"), ("applier", "/status")]
    {
        let answer = site.control(role, "GET", path, "").map_or_else(|e| e, |v| v.to_string());
        printed.push(Ran { code: 0, stdout: answer, stderr: String::new() });
    }
    // A kill in the middle leaves the spool and the map as they were; an orderly stop says its farewells.
    write_marked(&site, &mut seed, 0, 16, || Ok(()));
    agent.kill();
    assert!(server.stop(PATIENCE).success() && applier.stop(PATIENCE).success());
    std::fs::create_dir(site.path("printed")).expect("made");
    for (at, ran) in printed.iter().enumerate() {
        let text = format!("{}\n{}\n{}", ran.code, ran.stdout, ran.stderr);
        std::fs::write(site.path(&format!("printed/{at}")), text).expect("written");
    }
    secrets.push(secret("another vault's key", std::fs::read(site.path("other.key")).expect("read")));
    secrets.push(secret("a mistyped key", std::fs::read(site.path("mistyped.key")).expect("read")));
    secrets.push(secret("a part of the key", std::fs::read(site.path("cut.key")).expect("read")));
    judge(&site, &secrets);
}

/// Looks everywhere. Where a secret belongs it must be found, or the search finds nothing at all; elsewhere never.
fn judge(site: &Site, secrets: &[Secret]) {
    let relative = |file: &Path| file.strip_prefix(site.path("")).expect("below").to_string_lossy().into_owned();
    let (mut searched, mut bytes) = (0, 0);
    let mut belongs = std::collections::BTreeMap::new();
    for file in files(&site.path("")) {
        let name = relative(&file);
        let found = found_in(&file, secrets);
        let plain = name == "db-root.source" || name.starts_with("restored/") || name.ends_with("replica/db/root.raw");
        let key = name.ends_with(".key") || name.ends_with("-key.pem");
        if plain || key {
            belongs.insert(name, found);
            continue;
        }
        assert_eq!(found, Vec::<String>::new(), "in {name}");
        searched += 1;
        bytes += std::fs::metadata(&file).expect("metadata").len();
    }
    for (file, holds) in [
        ("db-root.source", "the marker"),
        ("restored/db-root.raw", "the marker"),
        ("site/data/replica/db/root.raw", "the marker"),
        ("site/vault.key", "the vault key as text"),
        ("site/pki/ca.key", "ca.key as PEM"),
        ("site/pki/agent-db.key", "agent-db.key as PEM"),
    ] {
        let found = belongs.get(file).unwrap_or_else(|| panic!("{file} is there: {belongs:?}"));
        assert!(found.iter().any(|name| name == holds), "the control: {file} holds {holds}, and {found:?} was found");
    }
    eprintln!("searched {searched} files of {bytes} bytes for {} secrets", secrets.len());
    let log = std::fs::read_to_string(site.path("process-server.log")).expect("the log");
    assert!(["TRACE", "DEBUG"].iter().any(|level| log.contains(level)), "the roles logged all they can: {log}");
    assert!(files(&site.path("site/store")).len() > 10, "the store holds the log");
}

#[test]
fn the_search_for_secrets_finds_each_in_any_place() {
    let dir = tempfile::tempdir().expect("directory");
    let secrets = [secret("one", &b"0123456789abcdef"[..]), secret("two", &b"0123456789abcdeX"[..])];
    for (text, finds) in [
        (&b"xx0123456789abcdefyy"[..], vec!["one"]),
        (b"0123456789abcdeX", vec!["two"]),
        (b"0123456789abcde0123456789abcdeX0123456789abcdef", vec!["one", "two"]),
        (b"0123456789abcde", vec![]),
        (b"", vec![]),
    ] {
        let file = dir.path().join("file");
        std::fs::write(&file, text).expect("written");
        assert_eq!(found_in(&file, &secrets), finds, "{text:?}");
    }
    let bits: Vec<u8> = (0..32).collect();
    let key = format::keys::VaultKey::from_bytes(zeroize::Zeroizing::new(bits.clone().try_into().expect("32 bytes")));
    assert_eq!(bits_of(&key.to_text()), bits, "a key's text is read as its bits");
}

/// How an agent stands with its process server.
fn connection(site: &Site, machine: &str) -> (bool, String) {
    let status = site.agent_status(machine).expect("the agent answers");
    let failure = status["connection_failure"].as_str().unwrap_or_default().to_owned();
    (!status["connection"].is_null(), failure)
}

#[test]
fn a_revoked_agent_is_cut_off_in_time_and_heals_with_another_certificate() {
    let machines = vec![("db", vec![("root", 8 << 20)]), ("web", vec![("root", 8 << 20)])];
    let site = Site::new(SiteOptions { machines, ..SiteOptions::default() });
    let server = site.start(&["process-server"]);
    let db = site.start_agent("db");
    let _web = site.start_agent("web");
    site.wait_stored("db");
    site.wait_stored("web");
    let certificate = site.path("site/pki/agent-db.crt").to_string_lossy().into_owned();
    assert!(connection(&site, "db").0, "the control: connected until it is revoked");
    let said = site.json(&["revoke", &certificate]);
    let since = Instant::now();
    assert_eq!((said["added"][0]["holder"].as_str(), &said["number"]), (Some("agent db"), &1.into()), "{said}");
    let cut = eventually("the revoked agent is cut off, and told why", || match connection(&site, "db") {
        (false, why) if why.contains("revoked") => Ok(since.elapsed()),
        (connected, why) => Err(format!("connected: {connected}, {why}")),
    });
    // The word reaches the status with the next try to connect, which waits a moment.
    assert!(cut < transport::CUT_WITHIN + Duration::from_secs(10), "cut off after {cut:?}");
    let log = std::fs::read_to_string(site.path("process-server.log")).expect("the log");
    assert!(log.contains("was revoked"), "{log}");

    // The source is served on, and nobody else is concerned.
    let write = |machine: &str| {
        let uri = site.nbd_uri(machine, "root");
        crate::harness::tools::run("qemu-io", &["-f", "raw", "-c", "write -P 0x5a 1M 1M", "-c", "flush", &uri]);
    };
    write("db");
    write("web");
    site.wait_stored("web");
    assert!(connection(&site, "web").0);

    // Where the CA's key is another one is issued at the next start, and what was written meanwhile arrives.
    let before = std::fs::read(&certificate).expect("read");
    assert!(db.stop(PATIENCE).success());
    let db = site.start_agent("db");
    site.wait_stored("db");
    assert_ne!(std::fs::read(&certificate).expect("read"), before, "another certificate");
    site.assert_equals_source("db", &site.restore("db", "latest", "restored"));

    // The stolen pair is of no use to a host without the CA's key, and the list says so to whoever asks.
    let shown = site.json(&["revoke"]);
    assert_eq!(shown["revoked"].as_array().map(Vec::len), Some(1), "{shown}");
    std::fs::write(site.path("stolen.crt"), before).expect("written");
    let again = site.json(&["revoke", &site.path("stolen.crt").to_string_lossy()]);
    assert_eq!((again["added"].as_array().map(Vec::len), &again["number"]), (Some(0), &1.into()), "{again}");

    // A list that cannot be used keeps roles from starting, by the file's name.
    let list = site.path("site/pki/ca.crl");
    let good = std::fs::read(&list).expect("the list");
    std::fs::write(&list, &good[..good.len() / 2]).expect("damaged");
    assert!(db.stop(PATIENCE).success() && server.stop(PATIENCE).success());
    for role in [&["process-server"][..], &["agent", "db"], &["revoke"], &["revoke", &certificate]] {
        let ran = site.run(role);
        assert_eq!(ran.code, 2, "{role:?}: {ran:?}");
        assert!(ran.stderr.contains("ca.crl") && ran.stderr.contains("nobody is let in"), "{role:?}: {ran:?}");
    }
    std::fs::write(&list, &good).expect("put back");
    let _server = site.start(&["process-server"]);
    let _db = site.start_agent("db");
    site.wait_stored("db");
}
