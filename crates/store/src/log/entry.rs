//! Reading one object of a log, and checking that it is what it says, lies where it belongs and continues the chain.

use bytes::{Bytes, BytesMut};
use format::FormatError;
use format::object::{
    HEADER_BYTES, LogKind, OBJECT_BYTES_MAX, ObjectHash, ObjectHeader, ObjectKind, Opening, open_small,
};
use futures::future::join_all;

use super::{EpochLog, LogEnd, LogEntry, LogPosition, ReadMode, SCAN_WIDTH_MAX};
use crate::StoreError;

/// First read of a segment's head in bytes; holds the table of all but the fullest segments.
const TABLE_FIRST_READ_BYTES: u64 = 64 << 10;

/// How much of an object is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The header alone: enough to walk the chain.
    Header,
    /// Header and table.
    Table,
    /// Everything, with the body digest checked.
    Whole,
}

impl From<ReadMode> for Extent {
    fn from(mode: ReadMode) -> Self {
        match mode {
            ReadMode::Table => Extent::Table,
            ReadMode::Whole => Extent::Whole,
        }
    }
}

impl EpochLog {
    pub(super) fn damaged(&self, position: LogPosition, source: FormatError) -> StoreError {
        StoreError::Damaged { path: self.slot_path(position), source }
    }

    /// The object at `position`, authenticated and in its place; none when there is none. Openings come whole.
    pub(super) async fn read_slot(
        &self,
        position: LogPosition,
        extent: Extent,
    ) -> Result<Option<LogEntry>, StoreError> {
        if position.epoch == 0 {
            return Ok(None);
        }
        let path = self.slot_path(position);
        let extent = if position.slot == 0 { Extent::Whole } else { extent };
        let found = match extent {
            Extent::Header => self.store.get_range(&path, 0..HEADER_BYTES as u64).await?,
            Extent::Table => self.store.get_range(&path, 0..TABLE_FIRST_READ_BYTES).await?,
            Extent::Whole => self.store.get(&path).await?,
        };
        let Some(mut bytes) = found else { return Ok(None) };
        let damaged = |source| self.damaged(position, source);
        let (header, hash) = self.check_header(position, &bytes).map_err(damaged)?;
        if extent == Extent::Table {
            match self.complete_table(&path, &header, bytes).await? {
                Some(complete) => bytes = complete,
                None => return Ok(None),
            }
        }
        if extent == Extent::Whole {
            header.check_body(&bytes).map_err(damaged)?;
        }
        Ok(Some(LogEntry { position, header, hash, bytes }))
    }

    fn check_header(&self, position: LogPosition, bytes: &[u8]) -> Result<(ObjectHeader, ObjectHash), FormatError> {
        let header = ObjectHeader::parse(&self.keys, bytes)?;
        header.expect_place(self.slot_kind(position.slot), &self.place(position))?;
        if header.total_bytes > OBJECT_BYTES_MAX {
            return Err(FormatError::Invalid { what: "object size" });
        }
        Ok((header, ObjectHeader::hash(bytes)?))
    }

    /// Exactly header and table, of which `have` is a prefix or more. None when the object is gone meanwhile.
    async fn complete_table(
        &self,
        path: &str,
        header: &ObjectHeader,
        have: Bytes,
    ) -> Result<Option<Bytes>, StoreError> {
        let need = HEADER_BYTES as u64 + u64::from(header.table_sealed_bytes);
        let damaged = |source| StoreError::Damaged { path: path.to_owned(), source };
        if need > header.total_bytes {
            return Err(damaged(FormatError::Invalid { what: "table size" }));
        }
        let got = have.len() as u64;
        if got >= need {
            return Ok(Some(have.slice(..need as usize)));
        }
        let Some(rest) = self.store.get_range(path, got..need).await? else { return Ok(None) };
        if got + rest.len() as u64 != need {
            return Err(damaged(FormatError::Truncated { need, have: got + rest.len() as u64 }));
        }
        let mut whole = BytesMut::with_capacity(need as usize);
        whole.extend_from_slice(&have);
        whole.extend_from_slice(&rest);
        Ok(Some(whole.freeze()))
    }

    /// The opening of an epoch with its body; none when it is not opened (or gone).
    pub(super) async fn read_opening(&self, epoch: u64) -> Result<Option<(LogEntry, Opening)>, StoreError> {
        let position = LogPosition { epoch, slot: 0 };
        let Some(entry) = self.read_slot(position, Extent::Whole).await? else { return Ok(None) };
        let open = || {
            let (_, body) = open_small(&self.keys, ObjectKind::Opening, &self.place(position), &entry.bytes)?;
            let opening = Opening::decode(&body)?;
            // Links point down only: a walk along them ends.
            if opening.prev_epoch >= epoch || (opening.prev_epoch == 0 && opening.prev_end != 0) {
                return Err(FormatError::Invalid { what: "opening's previous epoch" });
            }
            Ok(opening)
        };
        match open() {
            Ok(opening) => Ok(Some((entry, opening))),
            Err(source) => Err(self.damaged(position, source)),
        }
    }

    /// Refuses an object that does not continue `end`: the chain of hashes, and for a stream the record numbers too.
    pub(super) fn check_continues(&self, end: &LogEnd, entry: &LogEntry) -> Result<(), StoreError> {
        let header = &entry.header;
        if header.prev_hash != end.hash {
            let place = end.position;
            let source = FormatError::Misplaced {
                found: format!("one that follows an object with hash {}", short(&header.prev_hash)),
                expected: format!(
                    "one that follows epoch {} slot {} with hash {}",
                    place.epoch,
                    place.slot,
                    short(&end.hash)
                ),
            };
            return Err(self.damaged(entry.position, source));
        }
        match self.kind {
            LogKind::Manifest => Ok(()),
            LogKind::Stream => self.check_numbers(end, entry),
        }
    }

    /// Refuses an object of a stream whose record numbers do not continue `end`.
    pub(super) fn check_numbers(&self, end: &LogEnd, entry: &LogEntry) -> Result<(), StoreError> {
        let header = &entry.header;
        let (before, first, last) = (end.head.position.seq.0, header.first_seq.0, header.head.position.seq.0);
        let follows = before.checked_add(1) == Some(first) && last >= before;
        let opening_moves = entry.position.slot == 0 && header.head != end.head;
        if !follows || opening_moves {
            let source = FormatError::Misplaced {
                found: format!("one that holds records {first} to {last}"),
                expected: format!("one that continues record {before}"),
            };
            return Err(self.damaged(entry.position, source));
        }
        Ok(())
    }

    /// Follows the slots of one epoch behind `end` to the first hole and hands each to `take`. Returns the end.
    ///
    /// Slots are read side by side, and the hole may be seen before a slot below it: an acknowledged slot was there
    /// before the caller's own epoch (or the look that will follow) existed, so any hole seen now is behind it.
    pub(super) async fn scan(
        &self,
        mut end: LogEnd,
        extent: Extent,
        mut take: impl FnMut(LogEntry),
    ) -> Result<LogEnd, StoreError> {
        let mut width = 1;
        if end.position.epoch == 0 {
            return Ok(end);
        }
        loop {
            let first = end.position.slot;
            let slots = (1..=width).map(|i| LogPosition { slot: first.saturating_add(i), ..end.position });
            for found in join_all(slots.map(|position| self.read_slot(position, extent))).await {
                let Some(entry) = found? else { return Ok(end) };
                self.check_continues(&end, &entry)?;
                end = entry.end();
                take(entry);
            }
            width = (width * 2).min(SCAN_WIDTH_MAX);
        }
    }
}

fn short(hash: &ObjectHash) -> String {
    hash.0[..8].iter().map(|b| format!("{b:02x}")).collect()
}
