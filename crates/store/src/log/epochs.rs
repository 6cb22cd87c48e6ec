//! Which epoch is the highest.
//!
//! Epoch numbers are created one by one, never skipped and never deleted, so the existing ones are exactly 1 to the
//! highest. Whatever is read, the answer rests on one last probe: of the number right above an epoch object that was
//! itself read, made after the call began, and absent. LIST is never asked.

use format::object::{ObjectKind, SEES_ALL, open_small};

use super::{EpochLog, LogPosition, RESTARTS_MAX};
use crate::StoreError;

/// A probe costs a few hundred bytes; this many in one look means a store that invents epochs.
const PROBES_MAX: u32 = 100_000;

impl EpochLog {
    /// Whether the epoch is owned. Errors: `Damaged` when something else than an epoch object lies there.
    pub(super) async fn epoch_exists(&self, epoch: u64) -> Result<bool, StoreError> {
        let path = self.epoch_path(epoch);
        let Some(object) = self.store.get(&path).await? else { return Ok(false) };
        let place = self.place(LogPosition { epoch, slot: 0 });
        match open_small(&self.keys, ObjectKind::Epoch, &place, &object) {
            Ok(_) => Ok(true),
            Err(source) => Err(StoreError::Damaged { path, source }),
        }
    }

    /// The highest epoch that exists; 0 for a log that nobody owned yet.
    pub async fn highest(&self) -> Result<u64, StoreError> {
        self.highest_epoch(0).await
    }

    /// The condemn list for which the accepted head answers: what the opening of the highest epoch says, if a look after reading
    /// it finds no higher one. Whatever this log accepts behind that head answers for it too, or for a newer one. None while
    /// the newest epoch is not opened; [`SEES_ALL`] for a log that nobody owned yet.
    pub async fn head_seen(&self) -> Result<Option<u64>, StoreError> {
        let mut top = self.highest_epoch(0).await?;
        for _ in 0..RESTARTS_MAX {
            if top == 0 {
                return Ok(Some(SEES_ALL));
            }
            let opening = self.read_opening(top).await?;
            let now = self.highest_epoch(top).await?;
            if now == top {
                return Ok(opening.map(|(entry, _)| entry.header.gc_seen));
            }
            top = now;
        }
        Err(self.restless())
    }

    /// A look: the highest epoch at some moment after this call began. `hint` is 0 or an epoch whose object was read.
    pub(super) async fn highest_epoch(&self, hint: u64) -> Result<u64, StoreError> {
        let mut known = hint;
        let mut stride = 1u64;
        for _ in 0..PROBES_MAX {
            let next = known.saturating_add(stride);
            match self.epoch_exists(next).await? {
                // Far behind: stride wider.
                true => (known, stride) = (next, stride.saturating_mul(2)),
                // The probe right above the highest known is the look.
                false if stride == 1 => return Ok(known),
                // Overshot: narrow down.
                false => stride /= 2,
            }
        }
        let because = format!("{PROBES_MAX} probes did not find the last epoch before it");
        Err(StoreError::Missing { path: self.epoch_path(known), because })
    }
}
