//! Reading segments by the names that a manifest gives them: how a stream is read where its openings are gone.
//!
//! The chain stays provable without the openings. A manifest names each segment with its hash, which covers the whole
//! object, so none can be altered or swapped; it names them in order, and record numbers have no gaps, so none can be
//! left out. The running record digest, which every consumer of a stream recomputes, ties them together once more.

use format::FormatError;
use format::manifest::Promoted;
use futures::future::join_all;

use super::entry::Extent;
use super::{EpochLog, LogEnd, LogEntry, LogPosition, ReadMode, SCAN_WIDTH_MAX};
use crate::StoreError;

impl EpochLog {
    /// The first of these segments, at most 16, which follow `end` in a manifest's list. Errors: `Missing` and `Damaged`
    /// name the first that is not there, is not the one named, or does not continue the one before.
    pub async fn read_promoted(
        &self,
        mut end: LogEnd,
        segments: &[Promoted],
        mode: ReadMode,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let now = &segments[..segments.len().min(SCAN_WIDTH_MAX as usize)];
        let reads = now.iter().map(|named| self.read_slot(position_of(named), Extent::from(mode)));
        let mut entries = Vec::with_capacity(now.len());
        for (named, found) in now.iter().zip(join_all(reads).await) {
            let Some(entry) = found? else {
                let because = "the manifest has promoted it".to_owned();
                return Err(StoreError::Missing { path: self.slot_path(position_of(named)), because });
            };
            self.check_promoted(&end, named, &entry)?;
            end = entry.end();
            entries.push(entry);
        }
        Ok(entries)
    }

    fn check_promoted(&self, end: &LogEnd, named: &Promoted, entry: &LogEntry) -> Result<(), StoreError> {
        if entry.hash != named.hash {
            let source = FormatError::Misplaced {
                found: format!("a segment with hash {}", entry.hash),
                expected: format!("the one that the manifest promoted, with hash {}", named.hash),
            };
            return Err(self.damaged(entry.position, source));
        }
        match entry.position == end.position.next_slot() {
            true => self.check_continues(end, entry),
            // The opening in between may be gone.
            false => self.check_numbers(end, entry),
        }
    }
}

fn position_of(named: &Promoted) -> LogPosition {
    LogPosition { epoch: named.epoch, slot: named.slot }
}
