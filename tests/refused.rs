//! Agents that must not go on: a reverted source and a clone are refused by name, heal by a compare, and only then go on.

use std::path::Path;

use crate::harness::tools::run;
use crate::harness::{Proc, Site, SiteOptions, eventually};

fn write(site: &Site, disk: &str, command: &str) {
    run("qemu-io", &["-f", "raw", "-c", command, "-c", "flush", &site.nbd_uri("db", disk)]);
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("directory is made");
    for entry in std::fs::read_dir(from).expect("directory is read").map(|e| e.expect("entry")) {
        if entry.file_type().is_ok_and(|t| t.is_file()) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("file is copied");
        }
    }
}

/// Where the agent keeps map and spool.
fn state_dir(site: &Site) -> std::path::PathBuf {
    site.data_dir().join("agent").join("db")
}

/// A snapshot of everything the machine is: sources and agent state.
fn snapshot(site: &Site, to: &str) {
    let dir = site.path(to);
    copy_dir(&state_dir(site), &dir.join("state"));
    for disk in ["root", "data"] {
        std::fs::copy(site.source("db", disk), dir.join(disk)).expect("source is copied");
    }
}

fn revert(site: &Site, from: &str) {
    let dir = site.path(from);
    std::fs::remove_dir_all(state_dir(site)).expect("state is removed");
    copy_dir(&dir.join("state"), &state_dir(site));
    for disk in ["root", "data"] {
        std::fs::copy(dir.join(disk), site.source("db", disk)).expect("source is put back");
    }
}

fn wait_refused(site: &Site) -> String {
    eventually("the agent is refused until a compare", || {
        let status = site.agent_status("db")?;
        let refusal = &status["refusal"];
        if refusal["needs_compare"] == true {
            return Ok(refusal["reason"].as_str().unwrap_or_default().to_owned());
        }
        Err(format!("{status:#}"))
    })
}

fn heal(site: &Site) {
    for disk in ["root", "data"] {
        let source = site.source("db", disk);
        let ran = site.run(&[
            "compare",
            "db",
            "--disk",
            disk,
            "--at",
            "latest",
            "--with",
            &source.to_string_lossy(),
            "--drain",
        ]);
        assert!(ran.code == 0 || ran.code == 3, "compare runs: {ran:?}");
    }
}

fn run_machine(site: &Site) -> Proc {
    site.start_agent("db")
}

#[test]
fn reverted_snapshot_is_refused_and_heals_by_compare() {
    let site = Site::new(SiteOptions::default());
    let _server = site.start(&["process-server"]);
    let agent = run_machine(&site);
    write(&site, "root", "write -P 0x01 0 4M");
    write(&site, "data", "write -P 0x02 0 1M");
    site.wait_stored("db");
    assert!(agent.stop(crate::harness::PATIENCE).success(), "first life stops cleanly");
    snapshot(&site, "snapshot");
    let agent = run_machine(&site);
    write(&site, "root", "write -P 0x03 1M 2M");
    write(&site, "data", "write -P 0x04 4M 1M");
    let before = site.wait_stored("db");
    assert!(agent.stop(crate::harness::PATIENCE).success(), "second life stops cleanly");
    revert(&site, "snapshot");

    let agent = run_machine(&site);
    let reason = wait_refused(&site);
    assert!(["RevertedDisk", "RevertedMemory", "StoreLost"].contains(&reason.as_str()), "refused by name: {reason}");
    // The application is served all the while.
    write(&site, "root", "write -P 0x05 8M 1M");
    let unchanged = site.restore("db", &format!("seq:{before}"), "still-there");
    assert_eq!(unchanged.len(), 2, "old points are kept");
    heal(&site);
    let after = site.wait_stored("db");
    assert!(after > before, "the stream goes on: {before} then {after}");
    let restored = site.restore("db", "latest", "healed");
    site.assert_equals_source("db", &restored);
    drop(agent);
}

#[test]
fn clone_of_a_stopped_agent_is_refused() {
    let site = Site::new(SiteOptions::default());
    let _server = site.start(&["process-server"]);
    let agent = run_machine(&site);
    write(&site, "root", "write -P 0x11 0 1M");
    site.wait_stored("db");
    assert!(agent.stop(crate::harness::PATIENCE).success(), "the original stops cleanly");
    snapshot(&site, "clone");
    // The original goes on for a while, then its clone appears in its place.
    let original = run_machine(&site);
    write(&site, "root", "write -P 0x12 2M 1M");
    site.wait_stored("db");
    original.kill();
    revert(&site, "clone");
    let _clone = run_machine(&site);
    write(&site, "root", "write -P 0x13 3M 1M");
    wait_refused(&site);
    heal(&site);
    site.wait_stored("db");
    let restored = site.restore("db", "latest", "healed");
    site.assert_equals_source("db", &restored);
}
