//! The configuration as written: one struct for each table, every default visible, unknown keys refused.
//!
//! Nothing here is checked beyond its type; [`super::Config`] is what the process runs on.

use model::ByteSize;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// `[site]`
    pub site: SiteTable,
    /// `[store]`
    pub store: StoreTable,
    /// `[process_server]`
    #[serde(default)]
    pub process_server: ProcessServerTable,
    /// `[applier]`
    #[serde(default)]
    pub applier: ApplierTable,
    /// `[recover]`
    #[serde(default)]
    pub recover: RecoverTable,
    /// `[policy]`
    #[serde(default)]
    pub policy: PolicyTable,
    /// `[[machine]]`
    #[serde(default)]
    pub machine: Vec<MachineTable>,
}

/// `[site]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteTable {
    /// Name of this site.
    pub name: String,
    /// State of the roles on this host.
    #[serde(default = "default_data_dir")]
    pub data_dir: String,
    /// File with the vault key.
    #[serde(default = "default_vault_key")]
    pub vault_key: String,
    /// Directory of the certificate authority and the certificates.
    #[serde(default = "default_ca")]
    pub ca: String,
}

/// `[store]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreTable {
    /// URL of the cache store.
    pub cache: String,
    /// URL of the vault store.
    pub vault: Option<String>,
}

/// `[process_server]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessServerTable {
    /// host:port to accept agents on.
    pub listen: String,
    /// `tls`, `quic` or `auto`.
    pub transport: String,
    /// Segment size.
    pub segment_bytes: ByteSize,
    /// Segment age.
    pub segment_age: String,
    /// Life of an epoch.
    pub epoch_life: String,
    /// Bytes of all machines that are received and not stored.
    pub in_flight_bytes: ByteSize,
    /// Chunks that are found again within a stream.
    pub dedup_entries: u64,
    /// Chunks that the index over all streams remembers.
    pub share_entries: u64,
}

/// `[applier]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApplierTable {
    /// Whether what the policy keeps no longer is deleted.
    pub gc: bool,
    /// Whether segments that machines share and nobody reads any more are deleted.
    pub gc_shared: bool,
    /// Segments that a map takes in.
    pub map_segments: u32,
    /// Whether state digests of points are reckoned.
    pub state_digests: bool,
}

/// `[recover]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecoverTable {
    /// Directory of the read cache.
    pub cache_dir: Option<String>,
    /// Bytes that it may hold.
    pub cache_bytes: ByteSize,
}

/// `[policy]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyTable {
    /// Interval of crash-consistent points.
    pub crash_every: String,
    /// How long every position stays recoverable.
    pub journal_window: String,
    /// Which points stay, in tiers.
    pub retention: String,
    /// Recovery point objective.
    pub rpo_target: String,
    /// Lag past which a replica is rebuilt out of maps.
    pub replica_lag: String,
}

/// `[[machine]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineTable {
    /// Name.
    pub name: String,
    /// Where to send.
    pub process_server: Option<OneOrMany>,
    /// Memory for payload.
    #[serde(default = "default_queue_bytes")]
    pub queue_bytes: ByteSize,
    /// File for payload.
    #[serde(default = "default_spool_bytes")]
    pub spool_bytes: ByteSize,
    /// `warm` or `none`.
    #[serde(default = "default_replica")]
    pub replica: String,
    /// `raw`, `qcow2` or `vhd`.
    #[serde(default = "default_replica_format")]
    pub replica_format: String,
    /// `[[machine.disk]]`
    #[serde(default)]
    pub disk: Vec<DiskTable>,
}

/// `[[machine.disk]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskTable {
    /// Name.
    pub name: String,
    /// Raw file or block device.
    pub source: String,
    /// Address of the NBD export.
    pub listen: Option<String>,
    /// Block device of the replica disk.
    pub replica_device: Option<String>,
}

/// One address or a list of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "write one address such as \"10.0.0.5:9443\", or a list of them")]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several, tried in turn.
    Many(Vec<String>),
}

impl Default for ProcessServerTable {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9443".into(),
            transport: "tls".into(),
            segment_bytes: ByteSize(8 << 20),
            segment_age: "1s".into(),
            epoch_life: "6h".into(),
            in_flight_bytes: ByteSize(96 << 20),
            dedup_entries: 1 << 18,
            share_entries: 0,
        }
    }
}

impl Default for ApplierTable {
    fn default() -> Self {
        Self { gc: true, gc_shared: false, map_segments: 8, state_digests: true }
    }
}

impl Default for RecoverTable {
    fn default() -> Self {
        Self { cache_dir: None, cache_bytes: ByteSize(8 << 30) }
    }
}

impl Default for PolicyTable {
    fn default() -> Self {
        Self {
            crash_every: "60s".into(),
            journal_window: "24h".into(),
            retention: "24h:all, 7d:1h, 30d:1d, 1y:1w".into(),
            rpo_target: "30s".into(),
            replica_lag: "10m".into(),
        }
    }
}

fn default_data_dir() -> String {
    "data".into()
}

fn default_vault_key() -> String {
    "vault.key".into()
}

fn default_ca() -> String {
    "pki".into()
}

fn default_replica() -> String {
    "warm".into()
}

fn default_replica_format() -> String {
    "raw".into()
}

fn default_queue_bytes() -> ByteSize {
    ByteSize(64 << 20)
}

fn default_spool_bytes() -> ByteSize {
    ByteSize(1 << 30)
}
