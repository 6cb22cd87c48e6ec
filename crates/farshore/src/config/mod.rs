//! The configuration a process runs on: read from one TOML file, checked as a whole before anything starts.
//!
//! What passes here is usable: names cannot leave a directory, no two machines or disks share a name or an identity,
//! every number is within its range, every path is absolute. Every refusal is one line that names file and key and says
//! what to write instead. Nothing is created or changed by reading.

mod check;
mod file;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use applier::ReplicaConfig;
use model::{DiskName, MachineName, Retention};
use nbd::ListenAddress;

use check::{Checker, syntax_line};

pub use check::store_url;
pub use file::{
    ApplierTable, ConfigFile, DiskTable, MachineTable, OneOrMany, PolicyTable, ProcessServerTable, RecoverTable,
    SiteTable, StoreTable,
};

/// What `init` writes; `{site}` stands for the site's name.
pub const TEMPLATE: &str = include_str!("template.toml");

/// Bytes of a segment: small enough to upload in parallel, large enough to pay for its PUT.
pub const SEGMENT_BYTES: RangeInclusive<u64> = 256 << 10..=64 << 20;
/// Age at which a segment is sealed.
pub const SEGMENT_AGE: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(60);

/// Time after which a stream goes on in a new epoch.
pub const EPOCH_LIFE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(7 * 86400);
/// Bytes of all machines that are received and not stored.
pub const IN_FLIGHT_BYTES: RangeInclusive<u64> = 1 << 20..=64 << 30;
/// Chunks that an index may remember: some 40 GB of memory.
pub const ENTRIES_MAX: u64 = 1 << 28;
/// Interval of crash points and the RPO target.
pub const POLICY_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// How long every position stays recoverable.
pub const JOURNAL_WINDOW: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(365 * 24 * 3600);
/// Payload bytes an agent holds in memory.
pub const QUEUE_BYTES: RangeInclusive<u64> = 1 << 20..=64 << 30;
/// Payload bytes an agent spills to a file; 0 for none.
pub const SPOOL_BYTES: RangeInclusive<u64> = 0..=16 << 40;
/// Bytes of the read cache.
pub const CACHE_BYTES: RangeInclusive<u64> = applier::recover::CACHE_BYTES_MIN..=64 << 40;
/// Machines in one file.
pub const MACHINES_MAX: usize = 1024;
/// Disks of one machine.
pub const DISKS_MAX: usize = 64;
/// Process servers one agent may try.
pub const PROCESS_SERVERS_MAX: usize = 16;
/// Bytes of a configuration file.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Longest path of a Unix socket (`sun_path` less its final zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The configuration cannot be used; the text says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}: give --config FILE or set FARSHORE_CONFIG, or make one with `farshore init DIR`", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML of the right shape.
    #[error("{}: {why}", file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Line, key and what is wrong.
        why: String,
    },
    /// A value is refused.
    #[error("{}: {key}: {why}", file.display())]
    Value {
        /// Which file.
        file: PathBuf,
        /// Which key, as `table.key`.
        key: String,
        /// What is wrong and what to write.
        why: String,
    },
}

/// Everything, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// The site.
    pub site: Site,
    /// The stores.
    pub store: Stores,
    /// The process server.
    pub process_server: ProcessServer,
    /// The applier.
    pub applier: Applier,
    /// Reading points.
    pub recover: Recover,
    /// Policy.
    pub policy: Policy,
    /// Machines, in the order written.
    pub machines: Vec<Machine>,
}

/// `[store]`, checked: URLs in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stores {
    /// Where the log lives.
    pub cache: String,
    /// Where the history lies, when that is another store.
    pub vault: Option<String>,
}

/// `[site]`, checked.
#[derive(Debug, Clone)]
pub struct Site {
    /// Name.
    pub name: MachineName,
    /// State of the roles.
    pub data_dir: PathBuf,
    /// Vault key file.
    pub vault_key: PathBuf,
    /// Certificate directory.
    pub ca: PathBuf,
}

/// Which carriers to offer and to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TLS 1.3 over TCP.
    Tls,
    /// QUIC.
    Quic,
    /// The server takes both; an agent takes what suits the path (`transport::connect_auto`).
    Auto,
}

/// `[process_server]`, checked.
#[derive(Debug, Clone)]
pub struct ProcessServer {
    /// host:port.
    pub listen: String,
    /// Carriers.
    pub transport: Transport,
    /// Bytes.
    pub segment_bytes: u64,
    /// Age.
    pub segment_age: Duration,
    /// Life of an epoch.
    pub epoch_life: Duration,
    /// Bytes of all machines that may be received and not stored, beside what each is sure of.
    pub in_flight_bytes: u64,
    /// Chunks of all streams together that are found again; 0 finds none.
    pub dedup_entries: usize,
    /// Chunks that the index over all streams remembers; 0 shares nothing.
    pub share_entries: usize,
}

/// `[applier]`, checked.
#[derive(Debug, Clone)]
pub struct Applier {
    /// Whether what the policy keeps no longer is deleted.
    pub gc: bool,
    /// Whether segments that machines share and nobody reads any more are deleted.
    pub gc_shared: bool,
    /// Segments that a map takes in, 1 to 1024.
    pub map_segments: usize,
    /// Whether state digests of points are reckoned.
    pub state_digests: bool,
}

/// `[recover]`, checked.
#[derive(Debug, Clone)]
pub struct Recover {
    /// Directory of the read cache; none when there is no cache.
    pub cache_dir: Option<PathBuf>,
    /// Bytes that it may hold.
    pub cache_bytes: u64,
}

/// `[policy]`, checked.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Interval of crash points.
    pub crash_every: Duration,
    /// How long every position stays recoverable.
    pub journal_window: Duration,
    /// Which points stay after that.
    pub retention: Retention,
    /// Recovery point objective.
    pub rpo_target: Duration,
    /// Lag past which a replica is rebuilt out of maps.
    pub replica_lag: Duration,
}

/// `[[machine]]`, checked.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Name.
    pub name: MachineName,
    /// Process servers, in the order to try.
    pub process_servers: Vec<String>,
    /// Bytes.
    pub queue_bytes: u64,
    /// Bytes.
    pub spool_bytes: u64,
    /// How its replica is kept; none when the store alone keeps its history.
    pub replica: Option<ReplicaConfig>,
    /// Disks, in the order written.
    pub disks: Vec<Disk>,
}

/// `[[machine.disk]]`, checked.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Name.
    pub name: DiskName,
    /// Raw file or block device.
    pub source: PathBuf,
    /// Address of its NBD export; its scheme says whether TLS is required.
    pub listen: ListenAddress,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { file: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(read)?;
        let size = std::fs::metadata(&absolute).map_err(read)?.len();
        if size > FILE_BYTES_MAX {
            let why = format!("the file has {size} bytes; no configuration needs more than {FILE_BYTES_MAX}");
            return Err(ConfigError::Syntax { file: path.to_owned(), why });
        }
        let text = std::fs::read_to_string(&absolute).map_err(read)?;
        Self::parse(&absolute, &text)
    }

    /// Checks the text of a file that lies (or would lie) at `path`, which must be absolute.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: ConfigFile = toml::from_str(text).map_err(|e| ConfigError::Syntax {
            file: path.to_owned(),
            why: syntax_line(text, e.span().map(|s| s.start), e.message()),
        })?;
        Checker { path, base: path.parent().unwrap_or(Path::new("/")) }.config(file)
    }

    /// The machine of that name.
    pub fn machine(&self, name: &MachineName) -> Option<&Machine> {
        self.machines.iter().find(|m| m.name == *name)
    }

    /// Where the agent of a machine keeps its dirty map and spool.
    pub fn agent_dir(&self, machine: &MachineName) -> PathBuf {
        self.site.data_dir.join("agent").join(machine.as_str())
    }

    /// Directory of the control and NBD sockets.
    pub fn run_dir(&self) -> PathBuf {
        self.site.data_dir.join("run")
    }
}
