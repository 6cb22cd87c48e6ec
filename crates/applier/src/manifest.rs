//! The manifest log of a machine: read by anybody, owned by one applier.
//!
//! A commit is sealed once and put again with the same bytes until the store's answer is clear; only after a look does it
//! count. A dead owner leaves at most one put that was never acknowledged: the next owner either continues behind it or
//! leaves it void, and both are right, for nothing was done yet that rests on it.

use std::sync::Arc;

use bytes::Bytes;
use format::FormatError;
use format::keys::Keys;
use format::manifest::{Manifest, ManifestCommit};
use format::object::{
    FRAME_PLAIN_BYTES_MAX, LogKind, ObjectHash, ObjectHeader, ObjectKind, Opening, Place, SmallObject, open_small,
    seal_small,
};
use model::{LogHead, MachineName};
use store::{EpochLog, Genesis, LogEntry, LogPosition, LogWriter, Store};

use crate::{ApplierError, segments};

/// The manifest log of a machine.
pub(crate) fn log(store: &Store, keys: &Arc<Keys>, machine: &MachineName) -> EpochLog {
    EpochLog {
        store: store.clone(),
        keys: keys.clone(),
        machine: machine.clone(),
        kind: LogKind::Manifest,
        base: Arc::new(Genesis),
    }
}

/// The newest manifest. Writes nothing and waits for nobody.
pub(crate) async fn read(log: &EpochLog) -> Result<Manifest, ApplierError> {
    fold(log, &log.read_newest().await?.entries)
}

/// Where an object of a machine's manifest log belongs.
pub(crate) fn place(machine: &MachineName, position: LogPosition) -> Place {
    Place { machine: Some(machine.clone()), log: Some(LogKind::Manifest), epoch: position.epoch, slot: position.slot }
}

/// What one object of the manifest log says.
pub(crate) enum Step {
    /// An opening: everything.
    Whole(Manifest),
    /// A commit: what is new.
    Commit(ManifestCommit),
}

/// Reads one object of the manifest log, found whole at `position`.
pub(crate) fn step(
    keys: &Keys,
    machine: &MachineName,
    position: LogPosition,
    object: &[u8],
) -> Result<Step, FormatError> {
    let place = place(machine, position);
    if position.slot > 0 {
        let (_, body) = open_small(keys, ObjectKind::Manifest, &place, object)?;
        return Ok(Step::Commit(ManifestCommit::decode(&body)?));
    }
    let (_, body) = open_small(keys, ObjectKind::Opening, &place, object)?;
    Ok(Step::Whole(Manifest::decode(&Opening::decode(&body)?.state)?))
}

fn fold(log: &EpochLog, entries: &[LogEntry]) -> Result<Manifest, ApplierError> {
    let mut manifest = Manifest::default();
    for entry in entries {
        let refused = |source| ApplierError::damaged(log.slot_path(entry.position), source);
        match step(&log.keys, &log.machine, entry.position, &entry.bytes).map_err(refused)? {
            Step::Whole(whole) => manifest = whole,
            Step::Commit(commit) => manifest.apply(commit),
        }
    }
    Ok(manifest)
}

struct Pending {
    object: Bytes,
    commit: ManifestCommit,
}

/// The state of an opening, if one object can hold it.
fn whole_state(machine: &MachineName, manifest: &Manifest) -> Result<Vec<u8>, ApplierError> {
    let state = manifest.encode();
    // The opening adds a few bytes of its own to the state.
    match state.len() > FRAME_PLAIN_BYTES_MAX - 64 {
        true => Err(ApplierError::ManifestTooLarge { machine: machine.clone(), bytes: state.len() }),
        false => Ok(state),
    }
}

/// The one who extends a machine's manifest log.
pub(crate) struct ManifestOwner {
    log: EpochLog,
    writer: LogWriter,
    manifest: Manifest,
    next_slot: u64,
    prev_hash: ObjectHash,
    pending: Option<Pending>,
}

impl ManifestOwner {
    /// Owns a fresh epoch and opens it with the whole state of what came before.
    pub async fn attach(store: &Store, keys: &Arc<Keys>, machine: &MachineName) -> Result<Self, ApplierError> {
        let log = log(store, keys, machine);
        // What is damaged or too large is found before an epoch is spent on it.
        whole_state(machine, &fold(&log, &log.read_newest().await?.entries)?)?;
        let attached = log.attach().await?;
        let manifest = fold(&log, attached.newest_entries())?;
        let state = whole_state(machine, &manifest)?;
        let writer = attached.open(state).await?;
        let prev_hash = writer.opening_end().hash;
        Ok(Self { log, writer, manifest, next_slot: 1, prev_hash, pending: None })
    }

    /// What is acknowledged.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Our epoch.
    pub fn epoch(&self) -> u64 {
        self.writer.epoch()
    }

    /// Whether a commit was given that is not acknowledged yet: [`ManifestOwner::finish`] it first.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Gives the next commit. Nothing may be pending.
    pub fn begin(&mut self, commit: ManifestCommit) {
        assert!(self.pending.is_none(), "commits of one owner are made one after the other");
        let position = LogPosition { epoch: self.writer.epoch(), slot: self.next_slot };
        let object = seal_small(
            &self.log.keys,
            &SmallObject {
                kind: ObjectKind::Manifest,
                place: place(&self.log.machine, position),
                prev_hash: self.prev_hash,
                head: LogHead::default(),
                gc_seen: 0,
                body: &commit.encode(),
            },
        );
        self.pending = Some(Pending { object, commit });
    }

    /// Makes the pending commit acknowledged. After an error it is still pending and may be tried again; `Fenced` is
    /// final.
    pub async fn finish(&mut self) -> Result<(), ApplierError> {
        let Some(pending) = &self.pending else { return Ok(()) };
        probe::failpoint!("applier-commit-put-before");
        self.writer.put(self.next_slot, vec![pending.object.clone()]).await?;
        probe::failpoint!("applier-commit-put");
        self.writer.look().await?;
        probe::failpoint!("applier-commit-looked");
        let Pending { object, commit } = self.pending.take().expect("checked above");
        self.prev_hash = ObjectHeader::hash(&object).expect("an object sealed here has a whole header");
        self.next_slot += 1;
        self.manifest.apply(commit);
        Ok(())
    }
}

/// Path of a promoted segment.
pub(crate) fn promoted_path(machine: &MachineName, segment: &format::manifest::Promoted) -> String {
    segments::path(machine, LogKind::Stream, LogPosition { epoch: segment.epoch, slot: segment.slot })
}
