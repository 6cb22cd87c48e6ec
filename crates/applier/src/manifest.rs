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
use store::{EpochLog, Genesis, LogPosition, LogRules, LogWriter, Store, StoreError};

use crate::{ApplierError, segments};

/// Commits of one epoch before a fresh one is thought of.
pub(crate) const EPOCH_COMMITS: u64 = 32;

/// Commits of one epoch, whatever a fresh one costs: whoever opens a position reads each of them.
pub(crate) const EPOCH_COMMITS_MAX: u64 = 256;

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
pub(crate) async fn read(log: &EpochLog, rules: LogRules) -> Result<Manifest, ApplierError> {
    Ok(log.manifest_of(&log.read_newest_with(rules).await?.entries)?)
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
    rules: LogRules,
    writer: LogWriter,
    manifest: Manifest,
    next_slot: u64,
    /// Plain bytes of our opening's state, and of the commits behind it.
    opening_bytes: u64,
    commit_bytes: u64,
    prev_hash: ObjectHash,
    pending: Option<Pending>,
}

impl ManifestOwner {
    /// Owns a fresh epoch and opens it with the whole state of what came before.
    pub async fn attach(
        store: &Store,
        keys: &Arc<Keys>,
        machine: &MachineName,
        rules: LogRules,
    ) -> Result<Self, ApplierError> {
        Self::attach_to(log(store, keys, machine), rules, None).await
    }

    /// Goes on under a fresh epoch: what a reader has to read of the manifest is one opening again. Nothing may be
    /// pending. Errors: `Fenced` when another owner has taken over meanwhile.
    pub async fn renew(&mut self) -> Result<(), ApplierError> {
        assert!(self.pending.is_none(), "an owner finishes what it began");
        let ours = LogPosition { epoch: self.epoch(), slot: self.next_slot - 1 };
        *self = Self::attach_to(self.log.clone(), self.rules, Some(ours)).await?;
        Ok(())
    }

    /// With `ours`, our last slot, nobody else may have written behind it.
    async fn attach_to(log: EpochLog, rules: LogRules, ours: Option<LogPosition>) -> Result<Self, ApplierError> {
        // What is damaged or too large is found before an epoch is spent on it.
        let newest = log.read_newest_with(rules).await?;
        whole_state(&log.machine, &log.manifest_of(&newest.entries)?)?;
        let check = |end: LogPosition| match ours.filter(|ours| *ours != end) {
            Some(ours) => Err(StoreError::Fenced { epoch: ours.epoch, path: log.slot_path(end) }),
            None => Ok(()),
        };
        check(newest.end.position)?;
        let attached = log.attach_with(rules).await?;
        // Another owner may have come and gone since: what it wrote our caller knows nothing of.
        check(attached.end().position)?;
        let manifest = log.manifest_of(attached.newest_entries())?;
        let state = whole_state(&log.machine, &manifest)?;
        let opening_bytes = state.len() as u64;
        let writer = attached.open(state).await?;
        let prev_hash = writer.opening_end().hash;
        Ok(Self {
            log,
            rules,
            writer,
            manifest,
            next_slot: 1,
            opening_bytes,
            commit_bytes: 0,
            prev_hash,
            pending: None,
        })
    }

    /// What is acknowledged.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The writer of our epoch.
    pub fn writer(&self) -> &LogWriter {
        &self.writer
    }

    /// Our epoch.
    pub fn epoch(&self) -> u64 {
        self.writer.epoch()
    }

    /// Whether it is time for a fresh epoch: a reader then reads one opening instead of an older one and all these commits.
    /// While there are few, what renewing writes stays below half of what commits write.
    pub fn is_long(&self) -> bool {
        let commits = self.next_slot - 1;
        let pays = commits >= EPOCH_COMMITS && self.commit_bytes >= 2 * self.opening_bytes;
        pays || commits >= EPOCH_COMMITS_MAX
    }

    /// Whether a commit was given that is not acknowledged yet: [`ManifestOwner::finish`] it first.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Gives the next commit. Nothing may be pending.
    pub fn begin(&mut self, commit: ManifestCommit) {
        assert!(self.pending.is_none(), "commits of one owner are made one after the other");
        let position = LogPosition { epoch: self.writer.epoch(), slot: self.next_slot };
        let body = commit.encode();
        self.commit_bytes += body.len() as u64;
        let object = seal_small(
            &self.log.keys,
            &SmallObject {
                kind: ObjectKind::Manifest,
                place: place(&self.log.machine, position),
                prev_hash: self.prev_hash,
                head: LogHead::default(),
                gc_seen: 0,
                body: &body,
            },
        );
        self.pending = Some(Pending { object, commit });
    }

    /// The first half of [`ManifestOwner::finish`]: a test lets its owner stall behind it.
    #[cfg(test)]
    pub async fn put_pending(&self) -> Result<(), ApplierError> {
        let pending = self.pending.as_ref().expect("given before");
        Ok(self.writer.put(self.next_slot, vec![pending.object.clone()]).await?)
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
        self.manifest.apply(commit).expect("a commit was made for the manifest that it is applied to");
        Ok(())
    }
}

/// Path of a promoted segment.
pub(crate) fn promoted_path(machine: &MachineName, segment: &format::manifest::Promoted) -> String {
    segments::path(machine, LogKind::Stream, LogPosition { epoch: segment.epoch, slot: segment.slot })
}
