//! Zombies: a role that is stopped under load while another takes its place, and goes on when nobody waits for it.
//!
//! What must hold: it finds out by itself that it is no longer the one (fenced, or refused by name), nothing that it says
//! from then on counts, and the log is whole and equals the source of the one that took over.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::harness::judge::numbers;
use crate::harness::load::{Load, Writer};
use crate::harness::site::assert_same;
use crate::harness::tools::run;
use crate::harness::{PATIENCE, Seed, Site, SiteOptions, eventually};

fn options() -> SiteOptions {
    let machines = vec![("db", vec![("root", 24 << 20), ("data", 16 << 20)])];
    SiteOptions { machines, second_server: true, ..SiteOptions::default() }
}

fn load() -> Load {
    Load { in_flight: 8, start: 0, bytes: 8 << 20, blocks_max: 16, pace: Some(Duration::from_millis(10)) }
}

/// Load until the log has some of it.
fn loaded(site: &Site, seed: u64) -> Writer {
    let writer = Writer::start(site, load(), Seed::from_environment(seed));
    eventually("writes are stored", || match (writer.written(), numbers(site).stored) {
        (written, stored) if written > 200 && stored > 200 => Ok(()),
        counts => Err(format!("{counts:?}")),
    });
    writer
}

fn goes_on(writer: &Writer) {
    let before = writer.written();
    eventually("the client is served", || {
        if writer.written() > before + 100 { Ok(()) } else { Err(format!("{} operations", writer.written())) }
    });
}

/// The numbers in the newest event of the agent that tells of a connection to this port: the log's head there.
fn head_when_connected(site: &Site, port: u16) -> Result<u64, String> {
    let status = site.agent_status("db")?;
    let events = status["events"].as_array().cloned().unwrap_or_default();
    let wanted = format!("connected to process server 127.0.0.1:{port}; the log's head is seq ");
    let head = |text: &str| text.strip_prefix(&wanted)?.split(';').next()?.parse().ok();
    let mut heads = events.iter().filter_map(|event| head(event["message"].as_str()?));
    heads.next_back().ok_or_else(|| format!("{status:#}"))
}

fn machine_status(site: &Site, role: &str) -> Result<Value, String> {
    let status = site.control(role, "GET", "/status", "")?;
    let machine = &status["machines"][0];
    if machine.is_null() { Err(format!("{status:#}")) } else { Ok(machine.clone()) }
}

/// Every client flush that the agent answered is at or before the log's end.
fn assert_flushes_are_there(site: &Site, head: u64) {
    let answer = site.control("agent-db", "GET", "/flushes", "").expect("agent answers");
    let flushes = answer["flushes"].as_array().cloned().unwrap_or_default();
    assert!(!flushes.is_empty(), "the client flushed");
    assert!(flushes.iter().all(|flush| flush["seq"].as_u64().is_some_and(|seq| seq <= head)), "{flushes:?}");
}

#[test]
fn process_server_that_was_stopped_acknowledges_nothing_more() {
    let site = Site::new(options());
    let twin = site.sibling("twin", options());
    let zombie = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    site.wait_stored("db");
    let second = twin.start(&["process-server"]);
    let writer = loaded(&site, 401);
    zombie.signal("STOP");
    goes_on(&writer);
    let stopped = numbers(&site);
    assert!(stopped.queue > 0, "it was stopped with records that it had not stored");
    let head = eventually("the agent goes to the second server", || head_when_connected(&site, twin.port()));
    assert!(head >= stopped.stored, "stored {} was lost: the log ends at {head}", stopped.stored);
    eventually("the second server stores", || match numbers(&site).stored {
        stored if stored > head => Ok(()),
        stored => Err(format!("{stored}")),
    });
    zombie.signal("CONT");
    eventually("the zombie finds out", || {
        let machine = machine_status(&site, "process-server")?;
        if machine["epoch"].is_null() && zombie.said("fenced") { Ok(()) } else { Err(format!("{machine:#}")) }
    });
    // What it acknowledged last is in what the second server went on from.
    let machine = machine_status(&site, "process-server").expect("the zombie answers");
    assert!(machine["stored_seq"].as_u64().is_some_and(|seq| seq <= head), "it acknowledged more: {machine:#}");
    goes_on(&writer);
    writer.finish();
    let end = site.wait_stored("db");
    assert_flushes_are_there(&site, end);
    assert_eq!(head_when_connected(&site, twin.port()), Ok(head), "the agent never left the second server");
    site.assert_equals_source("db", &site.restore("db", "latest", "out"));
    assert_eq!(site.run(&["verify", "db"]).code, 0, "the log is whole");
    assert!(zombie.stop(PATIENCE).success(), "the zombie stops cleanly");
    drop(second);
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("directory is made");
    for entry in std::fs::read_dir(from).expect("directory is read").map(|entry| entry.expect("entry")) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("file is copied");
    }
}

fn refusal(site: &Site) -> Result<(String, bool), String> {
    let status = site.agent_status("db")?;
    let refusal = &status["refusal"];
    let reason = refusal["reason"].as_str().ok_or_else(|| format!("{status:#}"))?;
    Ok((reason.to_owned(), refusal["needs_compare"] == true))
}

fn wait_refused(site: &Site, wanted: &[&str], needs_compare: bool) {
    eventually(&format!("refused as {wanted:?}"), || match refusal(site)? {
        (reason, needs) if wanted.contains(&reason.as_str()) && needs == needs_compare => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn agent_that_was_stopped_is_refused_once_its_clone_took_over() {
    let site = Site::new(options());
    let twin = site.sibling("twin", options());
    let _server = site.start(&["process-server"]);
    let zombie = site.start_agent("db");
    site.wait_stored("db");
    let writer = loaded(&site, 402);
    zombie.signal("STOP");
    copy_files(&site.data_dir().join("agent/db"), &twin.data_dir().join("agent/db"));
    for disk in ["root", "data"] {
        std::fs::copy(site.source("db", disk), twin.source("db", disk)).expect("source is copied");
    }
    let clone = twin.start_agent("db");
    wait_refused(&twin, &["SecondAgent"], false);
    twin.wait_stored("db");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x2f 2M 1M", "-c", "flush", &twin.nbd_uri("db", "root")]);
    let head = twin.wait_stored("db");
    zombie.signal("CONT");
    wait_refused(&site, &["SecondAgent"], false);
    goes_on(&writer);
    assert!(clone.stop(PATIENCE).success(), "the clone stops cleanly");
    wait_refused(&site, &["RevertedMemory", "RevertedDisk"], true);
    goes_on(&writer);
    writer.finish();
    // Nothing of the zombie went behind what the clone had stored.
    assert_eq!(twin.json(&["points", "db"])["head"]["seq"], head);
    twin.assert_equals_source("db", &twin.restore("db", "latest", "out"));
    assert_eq!(twin.run(&["verify", "db"]).code, 0, "the log is whole");
}

#[test]
fn applier_that_was_stopped_commits_nothing_more() {
    let site = Site::new(options());
    let twin = site.sibling("twin", options());
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    let zombie = site.start(&["applier"]);
    let writer = loaded(&site, 403);
    let owned = eventually("the first applier commits", || {
        let machine = machine_status(&site, "applier")?;
        let epoch = machine["manifest_epoch"].as_u64().unwrap_or(0);
        if epoch > 0 && machine["segments"].as_u64() > Some(2) { Ok(epoch) } else { Err(format!("{machine:#}")) }
    });
    zombie.signal("STOP");
    let _second = twin.start(&["applier"]);
    eventually("the second applier commits", || {
        let machine = machine_status(&twin, "applier")?;
        let taken = machine["manifest_epoch"].as_u64() > Some(owned) && machine["segments"].as_u64() > Some(2);
        if taken { Ok(()) } else { Err(format!("{machine:#}")) }
    });
    zombie.signal("CONT");
    eventually("the zombie finds out", || {
        let machine = machine_status(&site, "applier")?;
        let told = machine["last_error"].as_str().is_some_and(|error| error.contains("another applier"));
        if told && machine["manifest_epoch"] == 0 { Ok(()) } else { Err(format!("{machine:#}")) }
    });
    writer.finish();
    let head = site.wait_stored("db");
    eventually("the second applier's replica stands at the end", || {
        let machine = machine_status(&twin, "applier")?;
        if machine["replica"]["seq"] == head { Ok(()) } else { Err(format!("{machine:#}")) }
    });
    for disk in ["root", "data"] {
        assert_same(&site.source("db", disk), &twin.data_dir().join("replica/db").join(format!("{disk}.raw")));
    }
    site.assert_equals_source("db", &site.restore("db", "latest", "out"));
    assert_eq!(site.run(&["verify", "db"]).code, 0, "stream and manifest log are whole");
}
