//! Rule 3: put slots, in parallel if you like; acknowledge in slot order, after a look made after the puts.
//!
//! A writer that was fenced once stays fenced: it acknowledges nothing more, whatever the store says later.

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use format::FormatError;
use format::object::{HEADER_BYTES, ObjectHeader};

use super::{EpochLog, LogEnd, LogPosition, LogRules};
use crate::{Created, StoreError};

/// The writer of an opened epoch. Shared by parallel uploads.
pub struct LogWriter {
    log: EpochLog,
    epoch: u64,
    opening: LogEnd,
    gc_seen: u64,
    rules: LogRules,
    put: Mutex<PutSlots>,
    /// What showed that there is a newer writer.
    fenced: OnceLock<String>,
}

/// Which slots are known to be put. `beyond` holds no more than the caller has in flight.
#[derive(Default)]
struct PutSlots {
    /// Every slot up to here.
    through: u64,
    /// Slots put above a gap.
    beyond: BTreeSet<u64>,
}

impl PutSlots {
    fn insert(&mut self, slot: u64, rules: LogRules) {
        if !rules.acks_in_order {
            self.through = self.through.max(slot);
        }
        if slot > self.through {
            self.beyond.insert(slot);
        }
        while self.beyond.remove(&(self.through + 1)) {
            self.through += 1;
        }
    }
}

impl LogWriter {
    pub(super) fn new(log: EpochLog, epoch: u64, opening: LogEnd, gc_seen: u64, rules: LogRules) -> Self {
        Self { log, epoch, opening, gc_seen, rules, put: Mutex::default(), fenced: OnceLock::new() }
    }

    pub(super) fn log(&self) -> &EpochLog {
        &self.log
    }

    /// Our epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The opening: what slot 1 continues (its hash is the opening's own).
    pub fn opening_end(&self) -> LogEnd {
        self.opening
    }

    /// The condemn list that the opening says, and every segment of the epoch says after it.
    pub fn gc_seen(&self) -> u64 {
        self.gc_seen
    }

    /// Every slot from 1 up to this one is put.
    pub fn put_through(&self) -> u64 {
        self.put.lock().unwrap_or_else(PoisonError::into_inner).through
    }

    /// Rule 3, first half: PUT one slot. May run in parallel for different slots; every slot below must be put too
    /// before a higher one may be acknowledged. Retries of an unclear result are the caller's, with the same bytes.
    /// Errors: `Fenced` (other bytes lie there), `Unavailable`, `Unclear`; `Damaged` when the parts are not the object
    /// that belongs into this slot (nothing is written then).
    pub async fn put(&self, slot: u64, parts: Vec<Bytes>) -> Result<(), StoreError> {
        self.check_not_fenced()?;
        let position = LogPosition { epoch: self.epoch, slot };
        let path = self.log.slot_path(position);
        self.check_parts(position, &parts).map_err(|source| self.log.damaged(position, source))?;
        match self.log.create(&path, parts, self.rules).await? {
            Created::Ours => {
                self.put.lock().unwrap_or_else(PoisonError::into_inner).insert(slot, self.rules);
                Ok(())
            }
            Created::Other => Err(self.fence(path)),
        }
    }

    /// Rule 3, second half: no epoch above ours exists at some moment after this call began. What was put before the
    /// call may now be acknowledged, in slot order. Errors: `Fenced`, `Unavailable`, `Damaged`.
    pub async fn look(&self) -> Result<(), StoreError> {
        self.check_not_fenced()?;
        if !self.rules.writer_looks {
            return Ok(());
        }
        let above = self.epoch.saturating_add(1);
        match self.log.epoch_exists(above).await? {
            false => Ok(()),
            true => Err(self.fence(self.log.epoch_path(above))),
        }
    }

    /// The look of rule 6: what was read in our epoch before this call is acknowledged.
    pub(super) async fn look_before_deleting(&self) -> Result<(), StoreError> {
        match self.rules.acknowledged_before_deleting {
            true => self.look().await,
            false => Ok(()),
        }
    }

    /// Both halves' end: the highest slot that may be acknowledged now, together with every slot below it. 0 is none.
    pub async fn acknowledge(&self) -> Result<u64, StoreError> {
        let through = self.put_through();
        self.look().await?;
        Ok(through)
    }

    fn check_not_fenced(&self) -> Result<(), StoreError> {
        match self.fenced.get() {
            None => Ok(()),
            Some(path) => Err(StoreError::Fenced { epoch: self.epoch, path: path.clone() }),
        }
    }

    fn fence(&self, path: String) -> StoreError {
        tracing::warn!(machine = %self.log.machine, log = ?self.log.kind, epoch = self.epoch, path, "writer is fenced");
        let path = self.fenced.get_or_init(|| path).clone();
        StoreError::Fenced { epoch: self.epoch, path }
    }

    /// The parts are an object of our own making for this slot, whole.
    fn check_parts(&self, position: LogPosition, parts: &[Bytes]) -> Result<(), FormatError> {
        let mut head = BytesMut::with_capacity(HEADER_BYTES);
        for part in parts {
            let take = part.len().min(HEADER_BYTES - head.len());
            head.extend_from_slice(&part[..take]);
        }
        let header = ObjectHeader::parse(&self.log.keys, &head)?;
        header.expect_place(self.log.slot_kind(position.slot), &self.log.place(position))?;
        let have: u64 = parts.iter().map(|p| p.len() as u64).sum();
        if position.slot == 0 || have != header.total_bytes {
            return Err(FormatError::Invalid { what: "object given for a slot" });
        }
        Ok(())
    }
}
