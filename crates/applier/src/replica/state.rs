//! The state file of a replica: where its disks stand and where they are being moved to.
//!
//! ```text
//! 0        8         12        16               16 + len      + 32
//! │ magic  │ version │ len     │ postcard body  │ BLAKE3 of all before │
//! ```
//! It is replaced whole: written under another name, synced, renamed, and the directory synced. A crash leaves the old
//! state or the new one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use model::{DiskId, DiskName, MachineName, Position, RecordDigest, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use crate::files::sync_directory;

const MAGIC: &[u8; 8] = b"FSREPLST";
const VERSION: u32 = 2;
const PREFIX_BYTES: usize = 16;
const SUM_BYTES: usize = 32;

/// No state file is larger.
const STATE_BYTES_MAX: u64 = 1 << 20;

/// Where a replica stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplicaState {
    /// Whose it is.
    pub machine: MachineName,
    /// The position the disks stand at; zero before the first.
    pub position: Position,
    /// Time of its last record.
    pub time: Timestamp,
    /// Digest over record headers up to it.
    pub digest: RecordDigest,
    /// The disks there.
    pub disks: Vec<ReplicaDisk>,
    /// A move that has begun and not ended: what it writes may be on the disks already.
    pub intent: Option<Intent>,
}

/// A move that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// Where to, at least.
    pub to: Seq,
    /// Whether the disks are laid out of maps, in no order of time: they stand nowhere until that has ended.
    pub rebuild: bool,
}

/// A disk of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplicaDisk {
    /// Its identity in records.
    pub id: DiskId,
    /// Its name, which is its file's.
    pub name: DiskName,
    /// Its size in bytes.
    pub size: u64,
    /// Where its bytes are.
    pub place: DiskPlace,
}

/// Where the bytes of a replica disk are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DiskPlace {
    /// In a raw file.
    Raw,
    /// In a qcow2 image.
    Qcow2,
    /// In a fixed VHD image.
    Vhd,
    /// On the block device that the kernel knows by this ([`disk::device_identity`]).
    Device(String),
}

impl ReplicaState {
    /// Before the first record.
    pub fn empty(machine: MachineName) -> Self {
        Self {
            machine,
            position: Position::default(),
            time: Timestamp::default(),
            digest: RecordDigest::default(),
            disks: Vec::new(),
            intent: None,
        }
    }

    /// The position that the disks stand at, or stood at before the move that has begun. None when they stand nowhere.
    pub fn claim(&self) -> Option<Seq> {
        let rebuilt = self.intent.is_some_and(|intent| intent.rebuild);
        Some(self.position.seq).filter(|seq| *seq > Seq::ZERO && !rebuilt)
    }

    fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("plain values always encode");
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + body.len() + SUM_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(body.len()).expect("a handful of disks").to_le_bytes());
        bytes.extend_from_slice(&body);
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
        let (prefix, body) = content.split_at_checked(PREFIX_BYTES)?;
        let whole = blake3::hash(content).as_bytes() == sum
            && prefix[..8] == *MAGIC
            && prefix[8..12] == VERSION.to_le_bytes()
            && prefix[12..] == u32::try_from(body.len()).ok()?.to_le_bytes();
        if !whole {
            return None;
        }
        postcard::take_from_bytes(body).ok().filter(|(_, rest)| rest.is_empty()).map(|(state, _)| state)
    }
}

/// Where the replica of a machine lies.
pub(crate) fn directory(data_dir: &Path, machine: &MachineName) -> PathBuf {
    data_dir.join("replica").join(machine.as_str())
}

fn path(directory: &Path) -> PathBuf {
    directory.join("state")
}

/// The state, if a whole one of this machine is there.
pub(super) fn load(directory: &Path, machine: &MachineName) -> io::Result<Option<ReplicaState>> {
    let file = match File::open(path(directory)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(STATE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(ReplicaState::decode(&bytes).filter(|state| state.machine == *machine))
}

/// Replaces the state durably.
pub(super) fn save(directory: &Path, state: &ReplicaState) -> io::Result<()> {
    let fresh = directory.join("state.new");
    let mut file = File::create(&fresh)?;
    file.write_all(&state.encode())?;
    file.sync_all()?;
    probe::failpoint_now!("applier-replica-state-synced");
    std::fs::rename(&fresh, path(directory))?;
    probe::failpoint_now!("applier-replica-state-renamed");
    sync_directory(directory)
}

/// Takes the state away durably: whatever disks there are stand for nothing from here on.
pub(super) fn forget(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(path(directory)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_directory(directory),
    }
}

/// Removes everything of a machine's replica: its state first, so that a crash leaves no state without its disks.
/// Returns the number of files removed.
pub(crate) fn remove(data_dir: &Path, machine: &MachineName) -> io::Result<u64> {
    let directory = directory(data_dir, machine);
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    forget(&directory)?;
    std::fs::remove_dir_all(&directory)?;
    if let Some(parent) = directory.parent() {
        sync_directory(parent)?;
    }
    Ok(entries.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ReplicaState {
        let mut state = ReplicaState::empty("db".parse().expect("valid"));
        state.position.seq = Seq(7);
        state.intent = Some(Intent { to: Seq(9), rebuild: true });
        let name: DiskName = "root".parse().expect("valid");
        let place = DiskPlace::Device("wwid x".to_owned());
        state.disks.push(ReplicaDisk { id: name.id(), name, size: 4096, place });
        state
    }

    #[test]
    fn a_state_reads_back_and_any_flipped_bit_is_noticed() {
        let bytes = state().encode();
        assert_eq!(ReplicaState::decode(&bytes), Some(state()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(ReplicaState::decode(&damaged), None, "byte {at}");
            assert_eq!(ReplicaState::decode(&bytes[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn a_state_of_another_machine_is_none() {
        let directory = tempfile::tempdir().expect("temp dir");
        save(directory.path(), &state()).expect("saved");
        let load = |name: &str| load(directory.path(), &name.parse().expect("valid")).expect("read");
        assert_eq!(load("db"), Some(state()));
        assert_eq!(load("web"), None);
    }
}
