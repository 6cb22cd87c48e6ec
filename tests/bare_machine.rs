//! Bare-machine recovery: nothing is left but the store's directory and the recovery key on paper.

use crate::harness::site::assert_same;
use crate::harness::tools::{run, try_run};
use crate::harness::{Site, SiteOptions, eventually};

#[test]
fn store_and_recovery_key_are_enough() {
    let site = Site::new(SiteOptions::default());
    let server = site.start(&["process-server"]);
    let applier = site.start(&["applier"]);
    let agent = site.start_agent("db");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x77 0 3M", "-c", "flush", &site.nbd_uri("db", "root")]);
    let seq = site.wait_stored("db");
    agent.kill();
    server.kill();
    applier.kill();
    // Only the store moves; the site with its key file, CA and state is gone.
    let store = site.path("carried");
    std::fs::rename(site.path("site/store"), &store).expect("store is carried away");
    std::fs::remove_dir_all(site.path("site")).expect("site burns down");
    let key = site.path("paper.txt");
    std::fs::write(&key, format!("  {}\n", site.recovery_key.to_lowercase())).expect("key is typed in");

    let url = format!("file://{}", store.to_string_lossy());
    let key = key.to_string_lossy().into_owned();
    let with = |args: &[&str]| site.run_bare(&[&["--store", &url, "--key", &key], args].concat());
    let points = with(&["--json", "points", "db"]);
    assert_eq!(points.code, 0, "points works: {points:?}");
    let to = site.path("out");
    let restored =
        with(&["restore", "db", "--at", &format!("seq:{seq}"), "--to", &to.to_string_lossy(), "--format", "raw"]);
    assert_eq!(restored.code, 0, "restore works: {restored:?}");
    assert_same(&site.source("db", "root"), &to.join("db-root.raw"));
    let verified = with(&["verify", "db"]);
    assert_eq!(verified.code, 0, "verify works: {verified:?}");

    let socket = site.path("bare.sock");
    let mut serve = site.command();
    let listen = format!("unix:{}", socket.to_string_lossy());
    serve
        .args(["--store", &url, "--key", &key, "serve", "db", "--disk", "root", "--at", "latest", "--listen", &listen]);
    let _serve = crate::harness::Proc::start("serve", serve, &site.path("serve.log"));
    eventually("serve works", || {
        let target = format!("nbd+unix:///root?socket={}", socket.to_string_lossy());
        let out = try_run("qemu-img", &["compare", "-f", "raw", &site.source("db", "root").to_string_lossy(), &target]);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });

    let wrong = site.path("wrong.txt");
    let other = Site::new(SiteOptions::default());
    std::fs::write(&wrong, &other.recovery_key).expect("key is written");
    let refused = site.run_bare(&["--store", &url, "--key", &wrong.to_string_lossy(), "points", "db"]);
    assert_ne!(refused.code, 0, "another vault's key does not open this store");
    assert!(refused.stderr.contains("vault"), "and the message says so: {refused:?}");
}

#[test]
fn damage_is_named_with_exit_code_3() {
    let site = Site::new(SiteOptions::default());
    let server = site.start(&["process-server"]);
    let agent = site.start_agent("db");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x31 0 2M", "-c", "flush", &site.nbd_uri("db", "root")]);
    site.wait_stored("db");
    agent.kill();
    server.kill();
    assert_eq!(site.run(&["verify", "db"]).code, 0, "clean before");
    let segment = largest_file(&site.path("site/store/machine/db/stream/seg"));
    let mut bytes = std::fs::read(&segment).expect("segment is read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&segment, &bytes).expect("a bit is flipped");
    let found = site.run(&["verify", "db"]);
    assert_eq!(found.code, 3, "a flipped bit is damage: {found:?}");
    let name = segment.file_name().expect("segment has a name").to_string_lossy().into_owned();
    assert!(format!("{}{}", found.stdout, found.stderr).contains(&name), "the object is named: {found:?}");
    for (share, code) in [("100%", 3), ("0%", 2)] {
        let sampled = site.run(&["verify", "db", "--sample", share]);
        assert_eq!(sampled.code, code, "a sample of {share}: {sampled:?}");
    }
    let dumped = site.run(&["dump", &segment.to_string_lossy()]);
    assert_eq!(dumped.code, 3, "dump says that the object is damaged: {dumped:?}");
    std::fs::write(&segment, &bytes[..middle]).expect("segment is cut");
    assert_eq!(site.run(&["verify", "db"]).code, 3, "a truncated segment is damage");
}

fn largest_file(dir: &std::path::Path) -> std::path::PathBuf {
    let mut best = (0, std::path::PathBuf::new());
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("store is listed").map(|e| e.expect("entry")) {
            let meta = entry.metadata().expect("metadata");
            if meta.is_dir() {
                open.push(entry.path());
            } else if meta.len() > best.0 {
                best = (meta.len(), entry.path());
            }
        }
    }
    best.1
}
