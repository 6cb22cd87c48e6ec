//! What an operator sees of an agent: one serialisable value, taken at one moment.

use format::wire::Refusal;
use model::{Event, Incarnation, LogHead, MachineName, Seq, Timestamp};
use serde::Serialize;

/// How an agent stands.
#[derive(Debug, Clone, Serialize)]
pub struct AgentStatus {
    /// Whose agent.
    pub machine: MachineName,
    /// `data`, `bitmap` or `drain`.
    pub mode: &'static str,
    /// Address of the process server in use, or nothing while there is none.
    pub connection: Option<String>,
    /// How that connection is carried: TLS or QUIC, whether we chose BBR for it, and the round trip that was measured.
    pub carrier: Option<String>,
    /// How far the session is: `none`, `hello` until log and agent have agreed where they stand, `live`.
    #[serde(skip)]
    pub session: &'static str,
    /// Why the last try gave no connection; nothing while there is one, and before the first try.
    pub connection_failure: Option<String>,
    /// The present incarnation.
    pub incarnation: String,
    /// The same, as a value.
    #[serde(skip)]
    pub incarnation_id: Incarnation,
    /// The number the next record gets; nothing until a new incarnation has heard the log's head.
    pub next_seq: Option<Seq>,
    /// The log's head as last heard in `stored`.
    pub stored: LogHead,
    /// Version of the dirty map in force.
    pub map_version: u64,
    /// Whether the dirty map is kept on disk; if not, the next start needs a compare.
    pub map_kept: bool,
    /// Payload bytes in memory.
    pub queue_bytes_used: u64,
    /// Their bound.
    pub queue_bytes_max: u64,
    /// Bytes taken in the spool file.
    pub spool_bytes_used: u64,
    /// Their bound.
    pub spool_bytes_max: u64,
    /// Bytes of regions that wait to be drained.
    pub to_drain_bytes: u64,
    /// Regions whose bit stands in the dirty map, because their writes are not yet both stored and flushed, or are to be
    /// drained: an unclean stop now would drain at most these.
    pub active_regions: u64,
    /// Age in seconds of the oldest change that is not stored; 0 if there is none.
    pub rpo_seconds: f64,
    /// The drain that runs, if one does.
    pub drain: Option<DrainProgress>,
    /// Totals since the agent started.
    pub counters: Counters,
    /// Why the process server will not have us, if so.
    pub refusal: Option<RefusalStatus>,
    /// The latest events, oldest first.
    pub events: Vec<Event>,
    /// The seq at each of the latest completed client flushes.
    pub flushes: Vec<(Timestamp, Seq)>,
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DrainProgress {
    /// When it began.
    pub since: Timestamp,
    /// Bytes sent by it so far, holes included.
    pub done_bytes: u64,
    /// Bytes that wait.
    pub left_bytes: u64,
}

/// Totals since the agent started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Bytes that clients wrote.
    pub written_bytes: u64,
    /// Payload bytes given to connections, repeats included.
    pub sent_bytes: u64,
    /// Payload bytes sent again after a reconnect.
    pub resent_bytes: u64,
    /// Payload bytes read back from the sources by drains.
    pub drained_bytes: u64,
    /// Writes that waited for a map sync because their region was cold.
    pub cold_region_syncs: u64,
    /// How long they waited in all, in microseconds.
    pub cold_region_wait_micros: u64,
    /// Times the set of active regions was over its bound with none to clear.
    pub active_regions_over: u64,
    /// Incarnations opened since the agent started.
    pub incarnations: u64,
}

/// Why the process server will not have us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusalStatus {
    /// By name.
    #[serde(serialize_with = "refusal_name")]
    pub reason: Refusal,
    /// In words.
    pub text: String,
    /// Whether only a compare helps.
    pub needs_compare: bool,
}

fn refusal_name<S: serde::Serializer>(reason: &Refusal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{reason:?}"))
}
