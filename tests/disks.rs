//! Disks that come, grow and go while the agent runs and a client writes: it stays connected, no operation of it fails, and
//! every point from before opens as it was.
//!
//! `FARSHORE_SEED` sets the seed.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::judge::keep_point;
use crate::harness::load::{Load, Writer};
use crate::harness::site::{assert_same, difference};
use crate::harness::tools::{run, try_run};
use crate::harness::{Proc, Seed, Site, SiteOptions, eventually};

const MIB: u64 = 1 << 20;
const EXTRA_BYTES: u64 = 24 * MIB;

fn load() -> Load {
    Load { in_flight: 8, start: 0, bytes: 8 * MIB, blocks_max: 16, pace: Some(Duration::from_millis(5)) }
}

fn noise(seed: &mut Seed, bytes: u64) -> Vec<u8> {
    (0..bytes / 8).flat_map(|_| seed.next().to_le_bytes()).collect()
}

fn reload(site: &Site) -> Value {
    site.json(&["reload", "db"])
}

/// The client goes on, over the connection it has.
fn goes_on(writer: &Writer) {
    let before = writer.written();
    eventually("the client is served", || match writer.written() {
        now if now > before + 100 => Ok(()),
        now => Err(format!("{now} operations")),
    });
    assert_eq!(writer.connected(), 1, "no operation failed");
}

/// What the agent that began last had to drain.
fn to_drain(site: &Site) -> Option<u64> {
    let status = site.agent_status("db").expect("status");
    let started = status["events"].as_array()?.iter().find(|event| event["kind"] == "started")?.clone();
    let words: Vec<&str> = started["message"].as_str()?.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "bytes")?;
    words[at - 1].parse().ok()
}

#[test]
fn disks_come_grow_and_go_under_a_client_that_stays_connected() {
    let mut seed = Seed::from_environment(91);
    let mut site = Site::new(SiteOptions::default());
    let _server = site.start(&["process-server"]);
    let _applier = site.start(&["applier"]);
    let mut agent = site.start_agent("db");
    let writer = Writer::start(&site, load(), seed.fork());
    goes_on(&writer);
    let mut kept = vec![keep_point(&site, "two-disks")];

    // One comes, and brings content with it.
    site.change_disks("db", vec![("root", 64 * MIB), ("data", 32 * MIB), ("extra", EXTRA_BYTES)]);
    let extra = std::fs::File::options().write(true).open(site.source("db", "extra")).expect("source opens");
    extra.write_all_at(&noise(&mut seed, 4 * MIB), MIB).expect("source is filled");
    let changed = reload(&site);
    assert_eq!(changed["added"], json!(["extra"]), "{changed}");
    if changed["unclean"].is_null() {
        assert_eq!(to_drain(&site), Some(EXTRA_BYTES), "what was there before is not drained again");
    }
    goes_on(&writer);
    kept.push(keep_point(&site, "three-disks"));
    assert_eq!(kept[1].files.len(), 3);
    assert_same(&site.source("db", "extra"), &kept[1].files[2].1);

    // One grows; a client that connects now writes in what is new.
    site.change_disks("db", vec![("root", 64 * MIB), ("data", 48 * MIB), ("extra", EXTRA_BYTES)]);
    let changed = reload(&site);
    assert_eq!((&changed["added"], &changed["resized"]), (&json!([]), &json!(["data"])), "{changed}");
    let beyond = "write -P 0x5a 40M 1M";
    run("qemu-io", &["-f", "raw", "-c", beyond, "-c", "flush", &site.nbd_uri("db", "data")]);
    goes_on(&writer);
    kept.push(keep_point(&site, "grown"));

    // One goes.
    site.change_disks("db", vec![("root", 64 * MIB), ("data", 48 * MIB)]);
    let changed = reload(&site);
    assert_eq!(changed["removed"], json!(["extra"]), "{changed}");
    assert!(!try_run("qemu-img", &["info", &site.nbd_uri("db", "extra")]).status.success(), "it is served no longer");
    goes_on(&writer);
    kept.push(keep_point(&site, "without"));

    // Nothing changed: nothing is drained.
    let changed = reload(&site);
    if changed["unclean"].is_null() {
        assert_eq!(to_drain(&site), None, "the incarnation goes on");
    }
    goes_on(&writer);
    agent.running().expect("it was one process all the time");
    writer.finish();
    let head = site.wait_stored("db");
    let latest = site.restore("db", "latest", "latest");
    site.assert_equals_source("db", &latest);
    eventually("the applier stands at the end", || {
        let status = site.control("applier", "GET", "/status", "")?;
        if status["machines"][0]["replica"]["seq"] == head { Ok(()) } else { Err(format!("{status:#}")) }
    });
    for (disk, path) in &latest {
        assert_same(path, &site.data_dir().join(format!("replica/db/{disk}.raw")));
    }
    for (number, point) in kept.iter().enumerate() {
        assert_eq!(point.changed(&site, &format!("again-{number}")), None);
    }
    assert!(difference(&kept[0].files[1].1, &kept[2].files[1].1).is_some(), "the control: points differ");
    assert_eq!(site.run(&["verify", "db"]).code, 0);
}

/// The agent is as it was: same size, same disks, clients served.
fn assert_untouched(site: &Site, agent: &mut Proc, started: &Value) {
    agent.running().expect("the agent runs");
    let status = site.agent_status("db").expect("status");
    assert_eq!(&status["events"][0], started, "no other agent began");
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 0 4k", &site.nbd_uri("db", "root")]);
}

#[test]
fn a_reload_that_cannot_be_is_refused_before_anything_stops() {
    let mut site = Site::new(SiteOptions::default());
    let _server = site.start(&["process-server"]);
    let mut agent = site.start_agent("db");
    site.wait_stored("db");
    let started = site.agent_status("db").expect("status")["events"][0].clone();
    let good = std::fs::read_to_string(site.config()).expect("config");
    let source = site.source("db", "data").to_string_lossy().into_owned();
    let elsewhere = site.path("elsewhere").to_string_lossy().into_owned();
    std::fs::File::create(&elsewhere).and_then(|file| file.set_len(MIB)).expect("another source");
    for (what, from, to, says) in [
        ("no file", source.as_str(), "/nonexistent/source", "cannot move"),
        ("another source", source.as_str(), elsewhere.as_str(), "give the new source a name of its own"),
        ("a machine less", "name = \"db\"", "name = \"other\"", "no machine db"),
        ("no TOML", "[policy]", "[policy", "farshore.toml"),
        ("a state directory elsewhere", "data_dir = \"", "data_dir = \"/tmp/", "no role answers"),
    ] {
        std::fs::write(site.config(), good.replace(from, to)).expect("config is written");
        let ran = site.run(&["reload", "db"]);
        assert!(ran.code != 0 && ran.stderr.contains(says), "{what}: {ran:?}");
        assert_untouched(&site, &mut agent, &started);
    }
    // A disk whose source is not there.
    site.change_disks("db", vec![("root", 64 * MIB), ("data", 32 * MIB), ("extra", MIB)]);
    std::fs::remove_file(site.source("db", "extra")).expect("the new source is gone");
    let ran = site.run(&["reload", "db"]);
    assert!(ran.code != 0 && ran.stderr.contains("cannot open source"), "{ran:?}");
    assert_untouched(&site, &mut agent, &started);
    // And with everything in place it is taken up.
    site.change_disks("db", vec![("root", 64 * MIB), ("data", 32 * MIB), ("extra", MIB)]);
    assert_eq!(reload(&site)["added"], json!(["extra"]));
    site.wait_stored("db");
    site.assert_equals_source("db", &site.restore("db", "latest", "latest"));
}

#[test]
fn a_reload_without_a_process_server_loses_nothing() {
    let mut seed = Seed::from_environment(92);
    let mut site = Site::new(SiteOptions::default());
    let server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    let writer = Writer::start(&site, load(), seed.fork());
    goes_on(&writer);
    let kept = keep_point(&site, "before");
    server.kill();
    goes_on(&writer);
    site.change_disks("db", vec![("root", 96 * MIB), ("data", 32 * MIB)]);
    let changed = reload(&site);
    assert_eq!(changed["resized"], json!(["root"]), "{changed}");
    assert!(changed["unclean"].is_string(), "what could not be stored is drained: {changed}");
    goes_on(&writer);
    let _server = site.start(&["process-server"]);
    goes_on(&writer);
    writer.finish();
    site.wait_stored("db");
    site.assert_equals_source("db", &site.restore("db", "latest", "latest"));
    assert_eq!(kept.changed(&site, "again"), None);
}
