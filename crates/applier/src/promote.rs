//! Promotion into a vault store of its own (docs/rfcs/0008-two-stores.md): what a commit is about to name is copied from the
//! cache store first, byte for byte, with the openings and epoch objects on the way.
//!
//! ```text
//!  cache   epoch/1  seg/1/0 1/1 1/2 ┊ 1/3    epoch/2 (never opened)  epoch/3  seg/3/0 3/1 3/2 …
//!  order     ③        ②    ④   ⑤               ⑧                       ⑦        ⑥   ⑨   ⑩
//! ```
//! What must hold at every instant, for a process may die at any and the cache store be gone for good a moment later:
//!
//! - What a commit names lies in the vault store before the commit is put, durable, and was read whole and found to be the
//!   object that was accepted. So does whatever its records read from: a segment refers to earlier segments of its own epoch,
//!   and one that refers elsewhere is not copied.
//! - The vault store alone is a log. An epoch is begun when all that its opening continues is there; its opening goes first and
//!   epoch objects from the newest down, so that nobody who counts upwards meets an epoch that is not opened. Such an epoch a
//!   reader would have to end by one of its own, and the two stores would no longer hold the same log.
//! - Copying again is nothing new: every object is created or found there with the same bytes. Other bytes end it for good.

use format::keys::Keys;
use format::manifest::Promoted;
use format::object::{LogKind, ObjectHash, ObjectHeader, ObjectKind, Place, open_small};
use format::segment::{SegmentRef, Table};
use futures::stream::{self, TryStreamExt};
use store::{Created, EpochLog, LogEntry, LogPosition, Store};

use crate::recover::RecoverError;
use crate::{ApplierError, segments};

/// Segments copied at once: each is in memory whole, at most 64 MiB.
const COPIES_INFLIGHT: usize = 4;

/// What lies in the vault store of a stream, and what is to be copied before the next segments.
pub(crate) struct Promotion {
    /// Epoch objects up to this one, and the openings on the way.
    through: u64,
    /// Openings behind that, in order.
    openings: Vec<(LogPosition, ObjectHash)>,
}

impl Promotion {
    /// Goes on where an acknowledged manifest has folded the stream up to this epoch.
    pub fn behind(epoch: u64) -> Self {
        Self { through: epoch, openings: Vec::new() }
    }

    /// The stream goes on with this opening.
    pub fn crosses(&mut self, opening: &LogEntry) {
        let last = self.openings.last().map_or(self.through, |(position, _)| position.epoch);
        if opening.position.epoch > last {
            self.openings.push((opening.position, opening.hash));
        }
    }

    /// Copies these segments, which follow what was copied before, and what must be there before them. With one store there is
    /// nothing to copy. May be called again after any error. Errors: `VaultDiffers`, `Damage` and `Missing` are final.
    pub async fn copy(&mut self, log: &EpochLog, segments: &[Promoted]) -> Result<(), ApplierError> {
        let Some(cache) = log.store.cache() else { return Ok(()) };
        let copier = Copier { log, cache: cache.name(), vault: log.store.vault() };
        for of_epoch in segments.chunk_by(|one, next| one.epoch == next.epoch) {
            self.begin(&copier, of_epoch[0].epoch).await?;
            let copies = stream::iter(of_epoch.iter().map(Ok));
            copies.try_for_each_concurrent(COPIES_INFLIGHT, |segment| copier.segment(segment)).await?;
        }
        Ok(())
    }

    /// Everything below this epoch is there: its opening, those passed over on the way, and then the epoch objects.
    async fn begin(&mut self, copier: &Copier<'_>, epoch: u64) -> Result<(), ApplierError> {
        if epoch <= self.through {
            return Ok(());
        }
        probe::failpoint!("applier-promote-before");
        let passed = self.openings.partition_point(|(position, _)| position.epoch <= epoch);
        if self.openings[..passed].last().is_none_or(|(position, _)| position.epoch != epoch) {
            let path = copier.log.slot_path(LogPosition { epoch, slot: 0 });
            return Err(segments::missing(path, "segments of its epoch were read").into());
        }
        for (position, hash) in &self.openings[..passed] {
            copier.object(*position, *hash).await?;
            probe::failpoint!("applier-promote-opening");
        }
        for epoch in (self.through + 1..=epoch).rev() {
            copier.epoch(epoch).await?;
            probe::failpoint!("applier-promote-epoch");
        }
        self.through = epoch;
        self.openings.drain(..passed);
        Ok(())
    }
}

/// Copies single objects.
struct Copier<'a> {
    log: &'a EpochLog,
    /// Its name.
    cache: String,
    vault: Store,
}

impl Copier<'_> {
    fn keys(&self) -> &Keys {
        &self.log.keys
    }

    async fn segment(&self, segment: &Promoted) -> Result<(), ApplierError> {
        let position = LogPosition { epoch: segment.epoch, slot: segment.slot };
        self.object(position, segment.hash).await?;
        probe::failpoint!("applier-promote-segment");
        Ok(())
    }

    /// A slot, if it is the one that was accepted, whole, and refers to nothing that the vault store does not hold.
    async fn object(&self, position: LogPosition, hash: ObjectHash) -> Result<(), ApplierError> {
        let path = self.log.slot_path(position);
        let bytes = self.read(&path).await?;
        let damaged = |source| ApplierError::damaged(path.clone(), source);
        let header = ObjectHeader::parse(self.keys(), &bytes).map_err(damaged)?;
        header.check_body(&bytes).map_err(damaged)?;
        if ObjectHeader::hash(&bytes).map_err(damaged)? != hash {
            let what = "it is not the object that was read there before".to_owned();
            return Err(RecoverError::Damage { path, what }.into());
        }
        if position.slot > 0 {
            let table = segments::table(self.keys(), &header, &bytes).map_err(damaged)?;
            self.check_closed(&path, position, &table)?;
        }
        self.put(path, bytes).await
    }

    /// Promotion is closed under references: earlier slots of the same epoch were copied before, or are with it.
    fn check_closed(&self, path: &str, at: LogPosition, table: &Table) -> Result<(), ApplierError> {
        let earlier = |to: &SegmentRef| to.epoch == at.epoch && (1..at.slot).contains(&to.slot);
        match table.references.iter().find(|to| to.machine != self.log.machine || !earlier(to)) {
            None => Ok(()),
            Some(to) => {
                let to = segments::path(&to.machine, LogKind::Stream, LogPosition { epoch: to.epoch, slot: to.slot });
                let why = "is no earlier segment of its epoch: it is not promoted (share_entries needs one store)";
                let what = format!("it refers to {to}, which {why}");
                Err(RecoverError::Damage { path: path.to_owned(), what }.into())
            }
        }
    }

    async fn epoch(&self, epoch: u64) -> Result<(), ApplierError> {
        let path = self.log.epoch_path(epoch);
        let bytes = self.read(&path).await?;
        let place = Place { machine: Some(self.log.machine.clone()), log: Some(LogKind::Stream), epoch, slot: 0 };
        open_small(self.keys(), ObjectKind::Epoch, &place, &bytes)
            .map_err(|source| ApplierError::damaged(path.clone(), source))?;
        self.put(path, bytes).await
    }

    async fn read(&self, path: &str) -> Result<bytes::Bytes, ApplierError> {
        let because = "the stream goes on behind it in the cache store";
        match self.log.store.get_of_cache(path).await? {
            Some(bytes) => Ok(bytes),
            None => Err(segments::missing(path.to_owned(), because).into()),
        }
    }

    async fn put(&self, path: String, bytes: bytes::Bytes) -> Result<(), ApplierError> {
        match self.vault.create(&path, vec![bytes]).await? {
            Created::Ours => Ok(()),
            Created::Other => {
                Err(ApplierError::VaultDiffers { path, cache: self.cache.clone(), vault: self.vault.name() })
            }
        }
    }
}
