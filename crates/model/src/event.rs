//! Events: what an operator is told about a machine, as it happens and afterwards.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Something an operator may need to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// How bad.
    pub severity: Severity,
    /// What, from a closed list.
    pub kind: EventKind,
    /// One sentence with the values that matter.
    pub message: String,
}

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Look when you can.
    Warning,
    /// Protection is at risk: look now.
    Critical,
}

/// What happened, from a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The agent or another role started.
    Started,
    /// The agent went from data to bitmap mode or back.
    ModeChanged,
    /// A drain began, ended, or was extended.
    Drain,
    /// A drain does not converge: writes dirty regions faster than they are sent.
    DrainStalled,
    /// The process server was lost or came back.
    Connection,
    /// The process server refused the agent.
    Refused,
    /// The recovery point objective was missed or is met again.
    Rpo,
    /// A source disk answered with an error.
    SourceError,
    /// The agent's spool or dirty map failed.
    AgentState,
    /// The store failed or came back.
    Store,
    /// A recovery point was made.
    Point,
    /// A compare ran.
    Compare,
    /// Prefix GC deleted something, or stopped.
    Collection,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            EventKind::Started => "started",
            EventKind::ModeChanged => "mode-changed",
            EventKind::Drain => "drain",
            EventKind::DrainStalled => "drain-stalled",
            EventKind::Connection => "connection",
            EventKind::Refused => "refused",
            EventKind::Rpo => "rpo",
            EventKind::SourceError => "source-error",
            EventKind::AgentState => "agent-state",
            EventKind::Store => "store",
            EventKind::Point => "point",
            EventKind::Compare => "compare",
            EventKind::Collection => "collection",
        };
        f.write_str(text)
    }
}
