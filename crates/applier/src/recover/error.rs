//! Why a recovery could not be done, grouped by what the operator must do.

use std::path::PathBuf;

use format::FormatError;
use model::{DiskName, MachineName, PointId, Seq};
use store::StoreError;

/// A recovery could not be done.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The store failed or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object's contents do not hold together, though its own seal may be whole.
    #[error("object {path} is damaged: {what}; run verify to see which points it hits")]
    Damage {
        /// The object.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The machine has no stream.
    #[error("the store holds nothing of machine {machine}; it holds: {known}")]
    UnknownMachine {
        /// Asked for.
        machine: MachineName,
        /// What there is.
        known: String,
    },
    /// The newest epoch was never opened, and we could not open one.
    #[error(
        "epoch {epoch} of the stream was never opened, so where the log ends is not decided, and this process could not \
         decide it: start a process server, or give this command write access to the store"
    )]
    Undecided {
        /// The epoch.
        epoch: u64,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// A position inside a drain was asked for.
    #[error(
        "{asked} lies inside a drain and is not a recovery point; nearest valid positions: {before} before, {after} after"
    )]
    NotAPoint {
        /// What was asked for.
        asked: String,
        /// The nearest valid one before, as a selector, or `none`.
        before: String,
        /// The nearest valid one after, as a selector, or `none`.
        after: String,
    },
    /// A position that the policy keeps no longer was asked for.
    #[error(
        "{asked} lies before seq:{horizon}, from where on every position opens, and is no recovery point; nearest ones that \
         open: {before} before, {after} after"
    )]
    BeforeHorizon {
        /// What was asked for.
        asked: String,
        /// The horizon.
        horizon: Seq,
        /// The nearest point before, as a selector, or `none`.
        before: String,
        /// The nearest position after, as a selector, or `none`.
        after: String,
    },
    /// The log was to be read from its beginning, and is not whole any more.
    #[error(
        "machine {machine}: the log is whole behind seq:{horizon} only, for older segments were collected as the policy says; \
         nothing opens without maps"
    )]
    LogCollected {
        /// Which.
        machine: MachineName,
        /// The horizon.
        horizon: Seq,
    },
    /// The store has the stream's end alone, and no manifest.
    #[error(
        "machine {machine}: this store has its stream behind epoch {epoch} only; what was before lies in the vault stores that have \
         promoted it ({vaults}): name one with --store"
    )]
    Trimmed {
        /// Which.
        machine: MachineName,
        /// Up to here everything may be gone.
        epoch: u64,
        /// The vault stores of its consumers.
        vaults: String,
    },
    /// A position outside the stream was asked for.
    #[error("{asked} is out of range: valid positions go from {from} to {to}")]
    OutOfRange {
        /// What was asked for.
        asked: String,
        /// First valid position.
        from: String,
        /// Last valid position.
        to: String,
    },
    /// Nothing is recoverable yet.
    #[error("machine {machine} has no recovery point yet: its initial replication has not ended")]
    NoPoint {
        /// Which.
        machine: MachineName,
    },
    /// No point has this id.
    #[error("no recovery point has id {id}: list them with `farshore points`")]
    UnknownPoint {
        /// The id.
        id: PointId,
    },
    /// There is no replica to take the position from.
    #[error(
        "no replica position is known here: no replica is kept, or it is being built or rebuilt; use latest, or run where the \
         applier keeps its data_dir"
    )]
    NotProcessed,
    /// The position was resolved in another history.
    #[error("position seq:{seq} is not in this history: resolve it again")]
    Foreign {
        /// The position.
        seq: Seq,
    },
    /// The point has no such disk.
    #[error("disk {disk} does not exist at this position; there are: {known}")]
    UnknownDisk {
        /// Asked for.
        disk: DiskName,
        /// What there is.
        known: String,
    },
    /// The history does not fit in memory.
    #[error(
        "the record tables of {machine} take more than {bytes_max} bytes of memory: this version opens no longer history"
    )]
    TooLong {
        /// Which.
        machine: MachineName,
        /// The bound.
        bytes_max: u64,
    },
    /// The target of a restore or overlay cannot be used as it is.
    #[error("target {path} {why}")]
    Target {
        /// The target.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// The target holds an unfinished restore of something else.
    #[error(
        "target {path} holds an unfinished restore of {found}; asked for is {asked}: finish that one first, or give \
         another directory"
    )]
    OtherRestore {
        /// The target.
        path: PathBuf,
        /// What it is being made into.
        found: String,
        /// What was asked for.
        asked: String,
    },
    /// The state file of a verify cannot be gone on with.
    #[error("state file {path} {why}")]
    VerifyState {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// What was written to an image does not come back from the medium.
    #[error(
        "image {path} is not what was written to it, from offset {offset} of the {of} on: its medium lost or changed data; \
         remove its directory, and restore to a medium that keeps what it is given"
    )]
    Altered {
        /// The image.
        path: PathBuf,
        /// What the offset counts in: the disk, or the file where no byte of the disk is meant.
        of: &'static str,
        /// First byte of the part that differs.
        offset: u64,
    },
    /// The target has too little room.
    #[error("target {path} is too small: {need} bytes are needed and {free} are free")]
    TargetTooSmall {
        /// The target.
        path: PathBuf,
        /// Bytes needed.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// Two disks that should be equal have different sizes.
    #[error("the recovery point has {point} bytes, the other disk {other}: only disks of equal size can be compared")]
    SizeDiffers {
        /// Size of the point's disk.
        point: u64,
        /// Size of the other.
        other: u64,
    },
    /// A range ends past the disk or is too long for one read.
    #[error("range {extent} ends past the disk of {size} bytes or is longer than one read may be")]
    Range {
        /// The range.
        extent: model::Extent,
        /// The disk's size.
        size: u64,
    },
    /// A local file or disk failed.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The disk compared with failed.
    #[error("the disk to compare with failed at {extent}")]
    OtherDisk {
        /// Where.
        extent: model::Extent,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

/// What the operator must do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Ask for something else, or fix the configuration.
    Usage,
    /// Data is damaged: run verify.
    Damage,
    /// Try again, or repair what failed.
    Failed,
}

impl ErrorKind {
    /// Exit code of the command line.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Damage => 3,
        }
    }
}

impl RecoverError {
    /// What the operator must do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RecoverError::Store(error) => Self::store_kind(error),
            RecoverError::Damage { .. } => ErrorKind::Damage,
            RecoverError::UnknownMachine { .. }
            | RecoverError::NotAPoint { .. }
            | RecoverError::BeforeHorizon { .. }
            | RecoverError::LogCollected { .. }
            | RecoverError::Trimmed { .. }
            | RecoverError::OutOfRange { .. }
            | RecoverError::NoPoint { .. }
            | RecoverError::UnknownPoint { .. }
            | RecoverError::NotProcessed
            | RecoverError::Foreign { .. }
            | RecoverError::UnknownDisk { .. }
            | RecoverError::Range { .. }
            | RecoverError::SizeDiffers { .. }
            | RecoverError::OtherRestore { .. }
            | RecoverError::VerifyState { .. }
            | RecoverError::Target { .. } => ErrorKind::Usage,
            RecoverError::Undecided { .. }
            | RecoverError::TooLong { .. }
            | RecoverError::TargetTooSmall { .. }
            | RecoverError::Altered { .. }
            | RecoverError::File { .. }
            | RecoverError::OtherDisk { .. } => ErrorKind::Failed,
        }
    }

    /// The object that is lost or damaged, where it is one.
    pub fn object(&self) -> Option<String> {
        match self {
            RecoverError::Damage { path, .. }
            | RecoverError::Store(StoreError::Missing { path, .. } | StoreError::Damaged { path, .. }) => {
                Some(path.clone())
            }
            _ => None,
        }
    }

    /// An object is not there: it is lost, or was collected while somebody read by an older manifest.
    pub fn is_missing(&self) -> bool {
        matches!(self, RecoverError::Store(StoreError::Missing { .. }))
    }

    /// 3 when damage was found, 2 for a wrong selector or usage, else 1.
    pub fn exit_code(&self) -> u8 {
        self.kind().exit_code()
    }

    /// The same for an error of the store.
    pub(crate) fn store_kind(error: &StoreError) -> ErrorKind {
        match error {
            StoreError::Damaged { .. } | StoreError::Missing { .. } | StoreError::CacheLost { .. } => ErrorKind::Damage,
            StoreError::Url { .. } | StoreError::WrongKey { .. } | StoreError::Unfit { .. } => ErrorKind::Usage,
            StoreError::Unavailable { .. }
            | StoreError::CacheUnavailable { .. }
            | StoreError::Unclear { .. }
            | StoreError::Fenced { .. } => ErrorKind::Failed,
        }
    }

    /// An object at `path` was refused.
    pub(crate) fn damaged(path: String, source: FormatError) -> Self {
        RecoverError::Store(StoreError::Damaged { path, source })
    }
}
