//! Real file systems and a real database on a protected disk: at many positions the file system is sound, the database
//! intact, and every transaction acknowledged before the position is there.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::mounted::Mounted;
use crate::harness::tools::run;
use crate::harness::{Site, SiteOptions};

/// Positions judged for each file system.
const POSITIONS: usize = 20;

/// Transactions committed while replication runs.
const COMMITS: usize = 150;

/// Commits numbered rows and prints each number once the commit is durable.
const COMMIT_ROWS: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma journal_mode=wal"); db.execute("pragma synchronous=full")
db.execute("create table rows (n integer primary key, body text)")
for n in range(1, int(sys.argv[2]) + 1):
    db.execute("insert into rows values (?, ?)", (n, f"row {n} " * 40))
    print(n, flush=True)
"#;

/// Prints integrity and the rows there are; a table that is not there yet has none.
const COUNT_ROWS: &str = r#"
import sqlite3, sys, os
if not os.path.exists(sys.argv[1]): print("ok 0 0"); sys.exit()
db = sqlite3.connect(sys.argv[1])
check = db.execute("pragma integrity_check").fetchone()[0]
there = db.execute("select count(*) from sqlite_master where name='rows'").fetchone()[0]
count, most = db.execute("select count(*), coalesce(max(n), 0) from rows").fetchone() if there else (0, 0)
print(check, count, most)
"#;

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// When each commit was acknowledged to the program, in microseconds: entry n-1 is row n.
fn commit_rows(database: &Path) -> Arc<Mutex<Vec<u64>>> {
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let mut child = Command::new("python3")
        .args(["-c", COMMIT_ROWS, &database.to_string_lossy(), &COMMITS.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    for line in BufReader::new(child.stdout.take().expect("output is piped")).lines() {
        line.expect("output is text").parse::<u64>().expect("a row number");
        acknowledged.lock().expect("not poisoned").push(micros());
    }
    assert!(child.wait().is_ok_and(|s| s.success()), "the program commits every row");
    acknowledged
}

/// Positions to judge: at flush completions and one record before, spread over the run. With each goes the moment
/// before which an acknowledged commit must be in it.
fn positions(site: &Site) -> Vec<(u64, u64)> {
    let trace = site.control("agent-db", "GET", "/flushes", "").expect("agent answers");
    let micros = |time: &str| model::Timestamp::parse_rfc3339(time).map(|t| t.0);
    let flushes: Vec<(u64, u64)> = trace["flushes"]
        .as_array()
        .expect("agent traces flushes")
        .iter()
        .filter_map(|f| Some((micros(f["time"].as_str()?)?, f["seq"].as_u64()?)))
        .collect();
    assert!(flushes.len() > POSITIONS, "the database flushed: {} times", flushes.len());
    let mut chosen = Vec::new();
    for i in 1..=POSITIONS / 2 {
        let at = i * (flushes.len() - 1) / (POSITIONS / 2);
        let ((before, _), (time, seq)) = (flushes[at - 1], flushes[at]);
        chosen.push((seq, time));
        // One record earlier holds at least what the flush before held.
        chosen.push((seq - 1, before));
    }
    chosen
}

fn judge(site: &Site, kind: &str, index: usize, seq: u64, moment: u64, acknowledged: &[u64]) -> usize {
    let to = format!("at-{kind}-{index}");
    let files = site.restore("db", &format!("seq:{seq}"), &to);
    let mounted = Mounted::attach(&files[0].1, 0, &site.path(&format!("{to}-mount")));
    mounted.mount();
    let database = mounted.dir.join("rows.db");
    let said = run("python3", &["-c", COUNT_ROWS, &database.to_string_lossy()]);
    mounted.unmount();
    match kind {
        "ext4" => drop(run("fsck.ext4", &["-fn", &mounted.device])),
        _ => drop(run("xfs_repair", &["-n", &mounted.device])),
    }
    drop(mounted);
    std::fs::remove_dir_all(site.path(&to)).expect("restored files are removed");
    let words: Vec<&str> = said.split_whitespace().collect();
    let (count, most): (usize, usize) = (words[1].parse().expect("a count"), words[2].parse().expect("a number"));
    let needed = acknowledged.iter().filter(|t| **t < moment).count();
    assert_eq!(words[0], "ok", "position {seq}: integrity_check says {said}");
    assert_eq!(count, most, "position {seq}: rows have no gaps");
    assert!(count >= needed, "position {seq} holds {count} rows, but {needed} were acknowledged before it");
    count
}

fn database_on(kind: &'static str) {
    let machines = vec![("db", vec![("root", 400 << 20)])];
    let site = Site::new(SiteOptions { machines, ..SiteOptions::default() });
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    let source = Mounted::attach_export(&site.socket("db", "root"), 0, &site.path("mount"));
    run(&format!("mkfs.{kind}"), &["-q", &source.device]);
    source.mount();
    let acknowledged = commit_rows(&source.dir.join("rows.db")).lock().expect("not poisoned").clone();
    assert_eq!(acknowledged.len(), COMMITS);
    source.unmount();
    site.wait_stored("db");
    let positions = positions(&site);
    let mut counts = Vec::new();
    for (index, (seq, moment)) in positions.iter().enumerate() {
        // A position before mkfs was through has no file system to judge.
        counts.push(judge(&site, kind, index, *seq, *moment, &acknowledged));
    }
    assert!(counts.iter().max() > counts.iter().min(), "positions differ: {counts:?}");
    eprintln!("{kind}: rows at {} positions: {counts:?}", positions.len());
}

#[test]
fn sqlite_on_ext4_is_intact_at_every_position() {
    database_on("ext4");
}

#[test]
fn sqlite_on_xfs_is_intact_at_every_position() {
    database_on("xfs");
}
