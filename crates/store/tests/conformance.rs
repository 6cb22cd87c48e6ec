//! What Farshore needs of a store, asked of each kind by one suite: memory, `file://`, Azure Blob and S3 by emulators
//! (where `FARSHORE_AZURITE` and `FARSHORE_MOTO` say where their programs are), and whatever real stores
//! `FARSHORE_CONFORMANCE_URL` names, with commas between several (credentials in the environment; objects go below a
//! fresh prefix and are deleted at the end).
//!
//! Credentials come from the environment, and a process cannot safely change its own: an emulator is asked by this same
//! program, run once more with the emulator's environment.

mod common;
#[path = "common/emulators.rs"]
mod emulators;
#[path = "common/ports.rs"]
mod ports;

use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use common::{append, keys, log, stream};
use emulators::Emulator;
use format::object::{LogKind, ObjectId};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, PutMode, PutOptions};
use store::{Created, LogEnd, LogReader, Next, ReadMode, Store, StoreError, create_vault, list_machines, open_vault};

/// Names the stores to be asked.
const URLS: &str = "FARSHORE_CONFORMANCE_URL";

/// The test that asks them.
const ASKING: &str = "the_stores_in_the_environment_conform";

/// Runs the whole suite; `label` says which store failed.
async fn run(store: &Store, label: &str) {
    create_is_once(store, label).await;
    the_store_itself_refuses_a_second_create(store, label).await;
    race_has_one_winner(store, label).await;
    nothing_is_ever_overwritten(store, label).await;
    ranges_are_cut(store, label).await;
    parts_make_one_object(store, label).await;
    odd_names_are_refused(store, label).await;
    listing_and_deleting(store, label).await;
    probe_finds_nothing_and_leaves_nothing(store, label).await;
    vault(store, label).await;
    epoch_log(store, label).await;
}

async fn create_is_once(store: &Store, label: &str) {
    let (mine, yours) = (vec![Bytes::from_static(b"mine")], vec![Bytes::from_static(b"yours")]);
    assert_eq!(store.get("check/once").await.expect(label), None, "{label}");
    assert_eq!(store.create("check/once", mine.clone()).await.expect(label), Created::Ours, "{label}");
    assert_eq!(store.create("check/once", mine).await.expect(label), Created::Ours, "{label}: same bytes");
    assert_eq!(store.create("check/once", yours).await.expect(label), Created::Other, "{label}: other bytes");
    assert_eq!(store.get("check/once").await.expect(label).as_deref(), Some(b"mine".as_ref()), "{label}");
}

/// A create as the store answers it, with nothing resolved by us.
async fn raw_create(store: &Store, path: &str, text: &str) -> Result<(), Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    store.object_store().put_opts(&Path::from(path), bytes.into(), options).await.map(drop)
}

async fn the_store_itself_refuses_a_second_create(store: &Store, label: &str) {
    assert_eq!(store.get("check/raw").await.expect(label), None, "{label}");
    raw_create(store, "check/raw", "first").await.expect(label);
    assert_eq!(store.get("check/raw").await.expect(label).expect("at once"), "first", "{label}: read after create");
    for text in ["second", "first", ""] {
        let again = raw_create(store, "check/raw", text).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{label}: {again:?}");
        let held = store.get("check/raw").await.expect(label).expect("there");
        assert_eq!(held, "first", "{label}: read after a create that failed");
    }
}

async fn race_has_one_winner(store: &Store, label: &str) {
    for round in 0..5 {
        let path = format!("check/race-{round}");
        let race = (0..16).map(|i| store.create(&path, vec![Bytes::from(format!("writer {i}"))]));
        let results = futures::future::join_all(race).await;
        let winners: Vec<usize> = (0..16).filter(|i| matches!(results[*i], Ok(Created::Ours))).collect();
        assert!(results.iter().all(Result::is_ok), "{label}: {results:?}");
        assert_eq!(winners.len(), 1, "{label}");
        let held = store.get(&path).await.expect(label).expect("the winner's");
        assert_eq!(held, format!("writer {}", winners[0]), "{label}: read after write");
    }
}

async fn nothing_is_ever_overwritten(store: &Store, label: &str) {
    let first = Bytes::from(vec![7; 5000]);
    assert_eq!(store.create("check/kept", vec![first.clone()]).await.expect(label), Created::Ours, "{label}");
    for bytes in [0, 1, 4999, 5000, 5001, 1 << 20] {
        let other = vec![Bytes::from(vec![8; bytes])];
        assert_eq!(store.create("check/kept", other).await.expect(label), Created::Other, "{label}: {bytes} bytes");
    }
    assert!(store.get("check/kept").await.expect(label).expect("there") == first, "{label}");
    assert_eq!(store.create("check/empty", Vec::new()).await.expect(label), Created::Ours, "{label}");
    assert_eq!(store.create("check/empty", vec![first]).await.expect(label), Created::Other, "{label}: empty is there");
    assert_eq!(store.get("check/empty").await.expect(label).expect("there"), "", "{label}");
    assert_eq!(store.get_range("check/empty", 0..9).await.expect(label).expect("there"), "", "{label}");
}

async fn odd_names_are_refused(store: &Store, label: &str) {
    for bad in ["", "/", "../x", "a//b", "a/../b", "a/./b", "A", "a b", "a%2f", "a/", "/a", "ä", "a\0", "a\n", "a\\b"]
    {
        assert!(store.create(bad, vec![Bytes::from_static(b"x")]).await.is_err(), "{label}: {bad:?}");
        assert!(store.get(bad).await.is_err(), "{label}: {bad:?}");
        assert!(store.get_range(bad, 0..1).await.is_err(), "{label}: {bad:?}");
        assert!(store.delete(bad).await.is_err(), "{label}: {bad:?}");
    }
}

async fn probe_finds_nothing_and_leaves_nothing(store: &Store, label: &str) {
    store.probe().await.expect(label);
    assert_eq!(store.list("probe").await.expect(label), [], "{label}");
}

async fn ranges_are_cut(store: &Store, label: &str) {
    assert_eq!(store.create("check/range", vec![Bytes::from_static(b"0123456789")]).await.expect(label), Created::Ours);
    let cases = [(0..4, "0123"), (8..100, "89"), (0..10, "0123456789"), (10..20, ""), (50..60, ""), (3..3, "")];
    for (range, expected) in cases {
        let got = store.get_range("check/range", range.clone()).await.expect(label).expect("there");
        assert_eq!(got, expected, "{label}: {range:?}");
    }
    for range in [0..4, 5..5] {
        assert_eq!(store.get_range("check/nothing", range).await.expect(label), None, "{label}");
    }
}

async fn parts_make_one_object(store: &Store, label: &str) {
    let parts: Vec<Bytes> = (0..16u8).map(|i| Bytes::from(vec![i; 1 << 20])).collect();
    assert_eq!(store.create("check/parts", parts.clone()).await.expect(label), Created::Ours, "{label}");
    let whole = store.get("check/parts").await.expect(label).expect("there");
    assert!(whole == parts.concat(), "{label}: 16 MiB come back");
    let middle = store.get_range("check/parts", (1 << 20) - 1..(1 << 20) + 1).await.expect(label);
    assert_eq!(middle.as_deref(), Some([0, 1].as_ref()), "{label}");
}

async fn listing_and_deleting(store: &Store, label: &str) {
    let paths: Vec<(String, u64)> = (0..12u64).map(|i| (format!("check/list/{i:02}/x"), i)).collect();
    for (path, size) in paths.iter().rev() {
        store.create(path, vec![Bytes::from(vec![0; *size as usize])]).await.expect(label);
    }
    assert_eq!(store.list("check/list").await.expect(label), paths, "{label}: sorted, with sizes");
    assert_eq!(store.list("check/lis").await.expect(label), [], "{label}: a prefix is whole segments");
    for (path, _) in &paths {
        store.delete(path).await.expect(label);
        store.delete(path).await.expect("absent is fine");
    }
    assert_eq!(store.list("check/list").await.expect(label), [], "{label}");
}

async fn vault(store: &Store, label: &str) {
    let (ours, theirs) = (keys(), keys());
    assert!(matches!(open_vault(store, &ours).await, Err(StoreError::Missing { .. })), "{label}");
    create_vault(store, &ours).await.expect(label);
    open_vault(store, &ours).await.expect(label);
    assert!(matches!(create_vault(store, &theirs).await, Err(StoreError::WrongKey { .. })), "{label}");
}

async fn epoch_log(store: &Store, label: &str) {
    let keys = keys();
    let stream = stream(store, &keys);
    for _ in 0..3 {
        let writer = stream.attach().await.expect(label).open(Vec::new()).await.expect(label);
        append(&writer, &keys, writer.opening_end(), 4).await;
        assert_eq!(writer.acknowledge().await.expect(label), 4, "{label}");
    }
    for mode in [ReadMode::Table, ReadMode::Whole] {
        let mut reader = LogReader::new(stream.clone(), LogEnd::default(), mode);
        let mut read = 0;
        while let Next::Entry(_) = reader.next().await.expect(label) {
            read += 1;
        }
        assert_eq!(read, 15, "{label}: three openings, twelve segments");
    }
    let mut attaching = Vec::new();
    for _ in 0..8 {
        attaching.push(stream.attach());
    }
    let attached = futures::future::join_all(attaching).await;
    let mut epochs: Vec<u64> = attached.into_iter().map(|a| a.expect(label).epoch()).collect();
    epochs.sort_unstable();
    assert_eq!(epochs, (4..12).collect::<Vec<_>>(), "{label}: racing writers own one epoch each, none skipped");
    assert!(log(store, &keys, LogKind::Manifest).read_newest().await.expect(label).entries.is_empty(), "{label}");
    let names: Vec<String> = list_machines(store).await.expect(label).into_iter().map(String::from).collect();
    assert_eq!(names, ["db-01"], "{label}");
}

#[tokio::test]
async fn memory_conforms() {
    run(&Store::from_object_store(Arc::new(InMemory::new())), "memory").await;
}

#[tokio::test]
async fn file_conforms() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(&format!("file://{}/store", dir.path().display())).expect("open");
    run(&store, "file").await;
}

/// Runs the asking test in a process of its own, in which the URL means the emulator.
fn ask(emulator: &Emulator) {
    let mut command = Command::new(std::env::current_exe().expect("this program's path"));
    command.args(["--exact", ASKING, "--nocapture"]).env(URLS, emulator.url).envs(emulator.environment.clone());
    let out = command.output().expect("this program starts");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains(&format!("{} conforms", emulator.url)), "{said}");
}

#[test]
fn azure_blob_conforms() {
    match Emulator::azurite() {
        Some(emulator) => ask(&emulator),
        None => println!("FARSHORE_AZURITE is not set: Azure Blob was not asked"),
    }
}

#[test]
fn s3_conforms() {
    match Emulator::moto() {
        Some(emulator) => ask(&emulator),
        None => println!("FARSHORE_MOTO is not set: S3 was not asked"),
    }
}

#[tokio::test]
async fn the_stores_in_the_environment_conform() {
    let Ok(urls) = std::env::var(URLS) else { return println!("{URLS} is not set: no real store was asked") };
    for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        let run_id: String = ObjectId::random().0[..8].iter().map(|b| format!("{b:02x}")).collect();
        let store = Store::open(&format!("{}/conformance-{run_id}", url.trim_end_matches('/'))).expect("open");
        run(&store, url).await;
        for prefix in ["check", "machine"] {
            for (path, _) in store.list(prefix).await.expect("list") {
                store.delete(&path).await.expect("delete");
            }
        }
        store.delete("vault").await.expect("delete");
        println!("{url} conforms");
    }
}
