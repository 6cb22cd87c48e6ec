//! What agent and process server say to each other, over any reliable byte stream.
//!
//! ```text
//! frame: │ magic u32 │ kind u16 │ reserved u16 │ payload bytes u32 │ CRC-32C of payload u32 │ payload … │
//! agent:  HELLO, then DATA…, PING, BYE          server: WELCOME or REFUSED, then STORED, CREDIT, PONG
//! ```
//! HELLO and WELCOME come before any state exists. Who the agent is comes from its certificate, never from a frame.
//! The checksum catches bugs and bad memory; adversaries are met by TLS.

use model::{DiskName, DrainCause, Incarnation, LogHead, Record, RecordDigest, Seq};
use serde::{Deserialize, Serialize};

mod data;
mod payload;
#[cfg(test)]
mod tests;

/// Versions of the protocol, newest first.
pub const VERSIONS: &[(u16, &str)] = &[(PROTOCOL_VERSION, "first released")];

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 16;

/// Newest protocol version.
pub const PROTOCOL_VERSION: u16 = 1;

/// Largest payload of a DATA frame: one NBD write of 32 MiB and its headers.
pub const DATA_BYTES_MAX: usize = 34 << 20;

/// Largest part of a DATA payload that is record headers and not data, in bytes: room for 30,000 plain writes. A batch
/// that would need more is cut in two by its sender.
pub const DATA_META_BYTES_MAX: usize = 2 << 20;

/// Largest payload of any other frame.
pub const CONTROL_BYTES_MAX: usize = 64 << 10;

/// Kind of a frame; the number is part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// Agent: who I am in the stream.
    Hello = 1,
    /// Server: go on from here.
    Welcome = 2,
    /// Server: no, and why.
    Refused = 3,
    /// Agent: records.
    Data = 4,
    /// Server: all up to here is in the store for good.
    Stored = 5,
    /// Server: so many more payload bytes may be sent.
    Credit = 6,
    /// Agent: are you there.
    Ping = 7,
    /// Server: yes.
    Pong = 8,
    /// Agent: I stop; nothing more follows.
    Bye = 9,
}

impl FrameKind {
    /// Every kind, by number.
    pub const ALL: [FrameKind; 9] = [
        FrameKind::Hello,
        FrameKind::Welcome,
        FrameKind::Refused,
        FrameKind::Data,
        FrameKind::Stored,
        FrameKind::Credit,
        FrameKind::Ping,
        FrameKind::Pong,
        FrameKind::Bye,
    ];

    /// Largest payload of this kind in bytes.
    pub fn payload_bytes_max(self) -> usize {
        match self {
            FrameKind::Data => DATA_BYTES_MAX,
            _ => CONTROL_BYTES_MAX,
        }
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Kind.
    pub kind: FrameKind,
    /// Payload bytes; within the kind's cap.
    pub payload_bytes: u32,
    /// CRC-32C of the payload.
    pub crc: u32,
}

/// How the agent's sequence goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// The same incarnation: nothing was lost.
    Resume,
    /// A new incarnation, which will open with a drain.
    New {
        /// Why.
        cause: DrainCause,
        /// Set when a compare has run against this position of the log.
        compared_to: Option<Seq>,
    },
}

/// The agent's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol version spoken.
    pub protocol: u16,
    /// Random for each start of the agent's process: tells a reconnect from a second live agent.
    pub instance: [u8; 16],
    /// Current incarnation.
    pub incarnation: Incarnation,
    /// Same life or a new one.
    pub start: Start,
    /// The number the agent would give next; 0 for a new incarnation, which takes it from WELCOME.
    pub next_seq: Seq,
    /// Version of the agent's dirty map.
    pub map_version: u64,
    /// Head of the log as the agent last heard it in `stored`; zero when it never did.
    pub stored: LogHead,
    /// Disks and their sizes in bytes.
    pub disks: Vec<(DiskName, u64)>,
}

/// The server's answer when the agent may go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Protocol version to speak.
    pub protocol: u16,
    /// The log's head. The agent frees nothing until its own digest at this position agrees.
    pub head: LogHead,
    /// Payload bytes that may be in flight.
    pub credit: u64,
}

/// Why a server says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// No protocol version in common.
    Protocol,
    /// The certificate names a machine this server does not take.
    UnknownMachine,
    /// Another agent of this machine is connected and alive.
    SecondAgent,
    /// The agent's dirty map is older than one the log has seen: its disk was reverted.
    RevertedDisk,
    /// The agent would number records the log already has, or its digest differs: reverted memory or a clone.
    RevertedMemory,
    /// The agent saw a head the log no longer has: the store lost its tail.
    StoreLost,
    /// The compare the agent rests on is older than the log's head.
    StaleCompare,
    /// The store cannot be reached now; try again.
    StoreUnavailable,
    /// This server was fenced by another or is stopping; try again.
    Busy,
}

impl Refusal {
    /// Whether only a compare helps: such an agent is refused, by name, until a compare has run.
    pub fn needs_compare(self) -> bool {
        matches!(self, Refusal::RevertedDisk | Refusal::RevertedMemory | Refusal::StoreLost | Refusal::StaleCompare)
    }
}

/// The server's answer when the agent may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub reason: Refusal,
    /// The same in words, with the values that differ.
    pub text: String,
}

/// All records up to `seq` can be read back from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Up to and including.
    pub seq: Seq,
    /// The log's digest there.
    pub digest: RecordDigest,
}

/// Any frame, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// See [`FrameKind::Hello`].
    Hello(Hello),
    /// See [`FrameKind::Welcome`].
    Welcome(Welcome),
    /// See [`FrameKind::Refused`].
    Refused(Refused),
    /// Records, in order of seq without gaps.
    Data(Vec<Record>),
    /// See [`FrameKind::Stored`].
    Stored(Stored),
    /// More payload bytes that may be sent.
    Credit(u64),
    /// An echo request.
    Ping(u64),
    /// Its answer.
    Pong(u64),
    /// See [`FrameKind::Bye`].
    Bye,
}

/// Payload bytes a batch of records takes against the credit window: the sum of data lengths plus 64 for each record.
pub fn credit_cost(records: &[Record]) -> u64 {
    records.iter().map(record_cost).sum()
}

/// See [`credit_cost`].
pub fn record_cost(record: &Record) -> u64 {
    let data = match &record.body {
        model::RecordBody::Write { data, .. } => data.len() as u64,
        _ => 0,
    };
    data + 64
}
