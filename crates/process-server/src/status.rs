//! What the process server tells about itself: plain values, cut from live state when asked.

use model::StageStatus;
use serde::Serialize;

/// State of a process server.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessServerStatus {
    /// Its name.
    pub name: String,
    /// Whether it is stopping.
    pub stopping: bool,
    /// Machines it holds a stream of, in order of name.
    pub machines: Vec<MachineStatus>,
    /// Its stages, in the order a byte meets them.
    pub stages: Vec<StageStatus>,
}

/// State of one machine's stream.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MachineStatus {
    /// The machine.
    pub machine: String,
    /// Whether its agent is connected and welcome.
    pub connected: bool,
    /// Where the agent connects from.
    pub address: Option<String>,
    /// The epoch this server writes; none when it owns none.
    pub epoch: Option<u64>,
    /// Last acknowledged slot of that epoch.
    pub slot: u64,
    /// Last record received.
    pub received_seq: u64,
    /// Last record acknowledged as stored.
    pub stored_seq: u64,
    /// Digest of the stream there, as hex.
    pub digest: String,
    /// Seconds since the oldest record that is not stored yet arrived; 0 when all is stored.
    pub lag_seconds: f64,
    /// Payload bytes received since the server started.
    pub bytes_in: u64,
    /// Object bytes acknowledged since the server started.
    pub bytes_out: u64,
    /// Chunks that were already in the stream.
    pub dedup_hits: u64,
    /// Bytes of those chunks.
    pub dedup_bytes: u64,
    /// Bytes received and not yet stored.
    pub in_flight_bytes: u64,
    /// Segments open, being sealed or being uploaded.
    pub segments_pending: usize,
    /// Why the store does not take what we have, while it does not.
    pub store_error: Option<String>,
}
