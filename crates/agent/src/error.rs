//! What can go wrong with an agent, grouped by what the caller must do.

use model::DiskName;

/// An agent could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration cannot work: fix it.
    #[error("{why}")]
    Config {
        /// What is wrong and what to do.
        why: String,
    },
    /// No such disk: fix the name.
    #[error("this agent has no disk {disk}: use one of its configured disks")]
    UnknownDisk {
        /// The name given.
        disk: DiskName,
    },
    /// A mark needs a consistent stream, and there is none at present: try again later.
    #[error("no mark can be set in {mode} mode: {todo}")]
    NotConsistent {
        /// The mode: bitmap or drain.
        mode: &'static str,
        /// What to do.
        todo: &'static str,
    },
    /// The mark was sequenced, but the incarnation ended before it was stored: set it again.
    #[error("the mark was lost because the agent had to open a new incarnation: set it again once the drain has ended")]
    MarkLost,
    /// The label is too long: shorten it.
    #[error("label of {bytes} bytes is too long: use at most {max}")]
    Label {
        /// Its length.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// The label would break the lines of whoever prints it: leave control characters out.
    #[error("the label holds a line break or another control character: use printable text")]
    LabelText,
    /// A compare named what is not on the disk: run it again.
    #[error(
        "compare result {extent} lies outside disk {disk} of {size} bytes: run the compare against the disk as it is now"
    )]
    CompareRange {
        /// The disk.
        disk: DiskName,
        /// The range.
        extent: model::Extent,
        /// Bytes of the disk.
        size: u64,
    },
    /// The agent is stopping.
    #[error("the agent is stopping: nothing more can be asked of it")]
    Stopping,
}
