//! What can go wrong while following a log, keeping replicas and taking a machine's protection away.

use std::path::PathBuf;

use format::FormatError;
use format::map::MapTooLarge;
use model::{DiskName, MachineName, Seq};
use store::{CollectError, Refused, StoreError};

use crate::recover::{ErrorKind, RecoverError};

/// The applier could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ApplierError {
    /// The store failed, is damaged, or fenced us.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Reading the history failed.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// What is garbage cannot be told.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// A file of ours could not be used.
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
    /// Another process keeps the replica in this directory.
    #[error("{path} is in use by another applier: stop it, or give this one its own data_dir")]
    ReplicaInUse {
        /// The lock file.
        path: PathBuf,
    },
    /// The replica stands where the log has nothing, or something else.
    #[error(
        "replica {path} stands at seq {seq}, which is not in this log: the store lost its tail, or the replica is of \
         another store; it is left as it is (move it away to have it built anew)"
    )]
    ReplicaForeign {
        /// Its directory.
        path: PathBuf,
        /// Where it stands.
        seq: Seq,
    },
    /// A replica disk does not fit its block device.
    #[error(
        "replica disk {disk} has {disk_bytes} bytes, its device {path} {device_bytes}: enlarge the device, name a larger \
         one as replica_device, or leave the key out to keep the disk in a file"
    )]
    DeviceTooSmall {
        /// The device.
        path: PathBuf,
        /// The disk.
        disk: DiskName,
        /// Bytes of the device.
        device_bytes: u64,
        /// Bytes of the disk.
        disk_bytes: u64,
    },
    /// A block device holds something that is not this replica.
    #[error(
        "device {path} is not taken for replica disk {disk}: it is not known as this replica's and holds other than zeros, \
         first at byte {at}; name another one, or, if nothing on it is needed, make it blank (`blkdiscard --zeroout {path}`)"
    )]
    DeviceNotBlank {
        /// The device.
        path: PathBuf,
        /// The disk.
        disk: DiskName,
        /// Offset of the first byte that is not zero.
        at: u64,
    },
    /// The process is stopping.
    #[error("stopped half-way: the next start goes on")]
    Stopped,
    /// The whole manifest no longer fits in one object.
    #[error("the manifest of {machine} has {bytes} bytes, more than one object holds: it can grow no further")]
    ManifestTooLarge {
        /// Whose.
        machine: MachineName,
        /// Its size.
        bytes: usize,
    },
    /// A map does not fit in one object.
    #[error("no map can be made of the newest segments of {machine}: {source}")]
    MapTooLarge {
        /// Whose.
        machine: MachineName,
        /// How large.
        #[source]
        source: MapTooLarge,
    },
    /// What the manifest says and what the stream holds do not agree.
    #[error("object {path} is not the one the manifest promoted: run verify")]
    Diverged {
        /// The object.
        path: String,
    },
    /// The vault store holds something else under the name of an object that is to be promoted.
    #[error(
        "{path} in the vault store {vault} is not the object of the cache store {cache}: the cache store was replaced, or \
         something else wrote into the vault store; nothing more is promoted. What was opens with --store {vault}"
    )]
    VaultDiffers {
        /// The object.
        path: String,
        /// The cache store.
        cache: String,
        /// The vault store.
        vault: String,
    },
    /// The cache store gave up what this applier's vault store, or an applier without one, would need.
    #[error(
        "{store} does not keep what is needed of {machine}: {}; promoted is up to epoch {epoch}, and nothing more is. \
         `farshore consumers {machine}` shows whose vault stores have the history",
        why(refused)
    )]
    NotConsumed {
        /// Whose stream.
        machine: MachineName,
        /// The cache store.
        store: String,
        /// The epoch that the manifest has come to.
        epoch: u64,
        /// Why.
        refused: Refused,
    },
    /// Segments of other machines rest on segments of the one to be purged.
    #[error(
        "{machine} cannot be purged: {} still read data in its stream; purge them first, or wait until their points need it \
         no more",
        names(by)
    )]
    Referenced {
        /// The one to be purged.
        machine: MachineName,
        /// Those that need it.
        by: Vec<MachineName>,
    },
    /// Streams of other machines may still come to refer to the one to be purged.
    #[error("{machine} cannot be purged yet: the streams of {} have no new epoch; try again", names(for_))]
    Waits {
        /// The one to be purged.
        machine: MachineName,
        /// Those that are waited for.
        for_: Vec<MachineName>,
    },
    /// Nobody can tell which segments a machine needs.
    #[error(
        "what {machine} reads of others cannot be told, and nothing shared is deleted until it can, or it is purged: {source}"
    )]
    NotWalked {
        /// Which.
        machine: MachineName,
        /// Why.
        #[source]
        source: Box<ApplierError>,
    },
    /// Another machine's stream cannot be read to its end just now.
    #[error(
        "the newest epoch of {machine} is not opened yet, so it is not known whether it refers to this machine's data: \
         wait for its process server, or run `farshore points {machine}` to settle it, then try again"
    )]
    Undecided {
        /// Whose stream.
        machine: MachineName,
    },
    /// Objects keep appearing while they are deleted.
    #[error("objects of {machine} keep appearing while they are deleted: stop its agent, then purge again")]
    StillWritten {
        /// Whose.
        machine: MachineName,
    },
}

fn why(refused: &Refused) -> String {
    match refused {
        Refused::Trimmed(epoch) => {
            format!("epochs of its stream up to {epoch} were given up, when no consumer needed them")
        }
        Refused::Full => "it has as many consumers as there may be, forget one (`--forget`)".to_owned(),
    }
}

fn names(machines: &[MachineName]) -> String {
    machines.iter().map(MachineName::as_str).collect::<Vec<_>>().join(", ")
}

impl ApplierError {
    /// Whether a newer owner has taken over: this one must stop.
    pub fn fenced(&self) -> bool {
        matches!(self, ApplierError::Store(StoreError::Fenced { .. }))
    }

    /// Whether something in the store is lost or not what it must be: trying again does not mend that.
    pub fn is_damage(&self) -> bool {
        self.exit_code() == ErrorKind::Damage.exit_code()
    }

    /// 3 when damage was found, 2 for wrong usage or configuration, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            ApplierError::Store(error) => RecoverError::store_kind(error).exit_code(),
            ApplierError::Recover(error) => error.exit_code(),
            ApplierError::NotWalked { source, .. } => source.exit_code(),
            ApplierError::Diverged { .. }
            | ApplierError::VaultDiffers { .. }
            | ApplierError::NotConsumed { .. }
            | ApplierError::Collect(_) => ErrorKind::Damage.exit_code(),
            _ => 1,
        }
    }

    /// An object at `path` was refused.
    pub(crate) fn damaged(path: String, source: FormatError) -> Self {
        ApplierError::Store(StoreError::Damaged { path, source })
    }
}
