//! What the tests that end processes judge by: what the agent says in numbers, and points kept from before.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::site::difference;
use super::{Site, eventually};

/// Bytes of a region of the dirty map, as agents have it by default.
pub const REGION_BYTES: u64 = 1 << 20;

/// What the agent says, in numbers.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// The last record heard to be stored.
    pub stored: u64,
    /// Payload kept in memory and spool.
    pub queue: u64,
    /// Bytes that wait to be drained.
    pub to_drain: u64,
    /// Regions whose bit may stand in the map.
    pub active: u64,
    /// Payload bytes that drains of this process read.
    pub drained: u64,
    /// Payload bytes that this process sent again.
    pub resent: u64,
}

/// Asks the agent of `db`.
pub fn numbers(site: &Site) -> Numbers {
    let status = site.agent_status("db").expect("agent answers");
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    Numbers {
        stored: number(&status["stored"]["seq"]),
        queue: number(&status["queue_bytes_used"]) + number(&status["spool_bytes_used"]),
        to_drain: number(&status["to_drain_bytes"]),
        active: number(&status["active_regions"]),
        drained: number(&status["counters"]["drained_bytes"]),
        resent: number(&status["counters"]["resent_bytes"]),
    }
}

/// Lets time go by: a seeded moment, not a condition.
pub fn wait(duration: Duration) {
    let start = Instant::now();
    while let Some(left) = duration.checked_sub(start.elapsed()) {
        std::thread::park_timeout(left);
    }
}

/// A point kept from before, with its bytes.
pub struct Kept {
    id: String,
    /// Each disk's bytes as they were restored then.
    pub files: Vec<(String, PathBuf)>,
}

/// Sets a mark, when no drain keeps it from that, and restores it into the folder of that name.
pub fn keep_point(site: &Site, name: &str) -> Kept {
    eventually("every position is a point", || {
        let status = site.agent_status("db")?;
        if status["mode"] == "data" { Ok(()) } else { Err(format!("{status:#}")) }
    });
    let mark = site.json(&["mark", "db", "--label", name]);
    let id = mark["id"].as_str().expect("a mark has an id").to_owned();
    let files = site.restore("db", &format!("id:{id}"), name);
    Kept { id, files }
}

impl Kept {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How the point differs today from what it was, if it does. `to` is a folder for scratch.
    pub fn changed(&self, site: &Site, to: &str) -> Option<String> {
        if site.path(to).exists() {
            std::fs::remove_dir_all(site.path(to)).expect("what was restored before is removed");
        }
        site.restore("db", &format!("id:{}", self.id), to);
        let now = |before: &Path| site.path(to).join(before.file_name().expect("a file of its own"));
        let pairs = self.files.iter().map(|(disk, before)| (disk, difference(before, &now(before))));
        let found = pairs.filter_map(|(disk, why)| Some((disk, why?))).next();
        found.map(|(disk, why)| format!("kept point {}, disk {disk}: {why}", self.id))
    }
}
