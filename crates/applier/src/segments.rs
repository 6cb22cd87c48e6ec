//! Small facts about the objects of a log that following, recovering and verifying share.

use bytes::Bytes;
use format::FormatError;
use format::keys::Keys;
use format::object::{HEADER_BYTES, LogKind, ObjectHeader};
use format::segment::{Table, open_table};
use model::MachineName;
use store::{LogPosition, StoreError};

use crate::recover::RecoverError;

/// Folder of everything of a machine, as a LIST takes it.
pub(crate) fn machine_prefix(machine: &MachineName) -> String {
    format!("machine/{machine}")
}

/// Prefix of a log of a machine.
pub(crate) fn log_prefix(machine: &MachineName, log: LogKind) -> String {
    let log = match log {
        LogKind::Stream => "stream",
        LogKind::Manifest => "manifest",
    };
    format!("machine/{machine}/{log}/")
}

/// Path of a slot.
pub(crate) fn path(machine: &MachineName, log: LogKind, at: LogPosition) -> String {
    format!("{}seg/{:016x}/{:016x}", log_prefix(machine, log), at.epoch, at.slot)
}

/// Path of an epoch object.
pub(crate) fn epoch_path(machine: &MachineName, log: LogKind, epoch: u64) -> String {
    format!("{}epoch/{epoch:016x}", log_prefix(machine, log))
}

/// Offset of the first byte behind the table.
pub(crate) fn data_start(header: &ObjectHeader) -> u64 {
    HEADER_BYTES as u64 + u64::from(header.table_sealed_bytes)
}

/// The table of a segment of which at least header and table are there.
pub(crate) fn table(keys: &Keys, header: &ObjectHeader, bytes: &Bytes) -> Result<Table, FormatError> {
    let need = data_start(header);
    let range = HEADER_BYTES..usize::try_from(need).unwrap_or(usize::MAX);
    let have = bytes.len() as u64;
    let sealed = bytes.get(range).ok_or(FormatError::Truncated { need, have })?;
    open_table(keys, header, sealed)
}

/// An object that must be there is not.
pub(crate) fn missing(path: String, because: &str) -> RecoverError {
    RecoverError::Store(StoreError::Missing { path, because: because.to_owned() })
}
