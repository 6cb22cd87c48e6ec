//! What an agent runs on, and the checks that make it safe to run on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::{DiskName, MachineName, SECTOR_BYTES};

use crate::AgentError;

/// Most disks of one machine: the dirty map's disk table has room for as many.
pub const DISKS_MAX: usize = 128;

/// Smallest region of the dirty map in bytes: smaller ones would make nearly every write wait for a map sync.
pub const REGION_BYTES_MIN: u64 = 64 << 10;

/// Largest region of the dirty map in bytes: what one unclean stop re-sends for a single write.
pub const REGION_BYTES_MAX: u64 = 64 << 20;

/// Smallest queue in bytes: room for the largest write twice over would be 64 MiB; one write that does not fit merely
/// puts the agent in bitmap mode, so that small machines may choose less.
pub const QUEUE_BYTES_MIN: u64 = 1 << 20;

/// Most regions of one disk: 16 MiB of bits in memory for each of the few sets that are kept.
pub const REGIONS_MAX: u64 = 1 << 27;

/// One agent's configuration, validated when it starts.
#[derive(Clone)]
pub struct AgentConfig {
    /// Whose agent this is.
    pub machine: MachineName,
    /// Where dirty map and spool lie; created if it is not there.
    pub state_dir: PathBuf,
    /// `host:port` of process servers, tried in turn.
    pub process_servers: Vec<String>,
    /// Most payload bytes kept in memory.
    pub queue_bytes: u64,
    /// Most bytes of the spool file; 0 for none.
    pub spool_bytes: u64,
    /// Bytes of a region of the dirty map; a power of two. Holds for new maps: an existing one keeps its own.
    pub region_bytes: u64,
    /// Regions kept active before the coldest are cleared.
    pub active_regions_max: usize,
    /// The lag behind which an event is raised.
    pub rpo_target: Duration,
    /// The disks, under one sequence.
    pub disks: Vec<AgentDisk>,
}

/// A disk to protect.
#[derive(Clone)]
pub struct AgentDisk {
    /// Its name.
    pub name: DiskName,
    /// Where its bytes are.
    pub source: Arc<dyn disk::Disk>,
    /// The source guarantees zeros after TRIM, as regular files do.
    pub trim_zeroes: bool,
}

impl AgentConfig {
    /// Region size when nothing else is wanted: 1 MiB.
    pub const REGION_BYTES: u64 = 1 << 20;

    /// Active regions when nothing else is wanted.
    pub const ACTIVE_REGIONS_MAX: usize = 4096;

    /// Refuses what cannot work, with a sentence that says what to change.
    pub fn validate(&self) -> Result<(), AgentError> {
        let bad = |why: String| Err(AgentError::Config { why });
        if self.disks.is_empty() || self.disks.len() > DISKS_MAX {
            return bad(format!("machine {} has {} disks: give 1 to {DISKS_MAX}", self.machine, self.disks.len()));
        }
        if self.process_servers.is_empty() {
            return bad(format!("machine {} has no process server: give at least one address", self.machine));
        }
        let in_range = (REGION_BYTES_MIN..=REGION_BYTES_MAX).contains(&self.region_bytes);
        if !self.region_bytes.is_power_of_two() || !in_range {
            return bad(format!(
                "region of {} bytes: use a power of two from {REGION_BYTES_MIN} to {REGION_BYTES_MAX}",
                self.region_bytes
            ));
        }
        if self.queue_bytes < QUEUE_BYTES_MIN {
            return bad(format!("queue of {} bytes: use {QUEUE_BYTES_MIN} or more", self.queue_bytes));
        }
        if self.active_regions_max == 0 {
            return bad("active_regions_max is 0: use 1 or more".to_owned());
        }
        self.validate_disks()
    }

    fn validate_disks(&self) -> Result<(), AgentError> {
        let mut ids = BTreeSet::new();
        for disk in &self.disks {
            let size = disk.source.size();
            let why = if size == 0 || !size.is_multiple_of(SECTOR_BYTES) {
                format!("disk {} has {size} bytes: a disk is a whole number of 512-byte sectors", disk.name)
            } else if size.div_ceil(self.region_bytes) > REGIONS_MAX {
                format!("disk {} has more than {REGIONS_MAX} regions: use a larger region_bytes", disk.name)
            } else if !ids.insert(disk.name.id()) {
                format!("disk {} shares its id with another disk of the machine: use another name", disk.name)
            } else {
                continue;
            };
            return Err(AgentError::Config { why });
        }
        Ok(())
    }
}
