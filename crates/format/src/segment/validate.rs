//! What must hold of a record table before anybody indexes by what it says.

use model::{Extent, RecordBody, SECTOR_BYTES};

use super::{CHUNK_BYTES_MAX, ChunkAt, FrameInfo, Piece, Table};
use crate::object::{FRAME_PLAIN_BYTES_MAX, HEADER_BYTES, ObjectHeader};
use crate::seal::{TABLE_NUMBER, TAG_BYTES};
use crate::{Codec, FormatError, check};

/// Everything in the table is in range and agrees with the header.
pub(crate) fn table(header: &ObjectHeader, table: &Table) -> Result<(), FormatError> {
    frames(header, &table.frames)?;
    records_agree_with(header, table)?;
    for record in &table.records {
        if let RecordBody::Write { extent, data, .. } = &record.body {
            pieces(table, *extent, data)?;
        }
    }
    Ok(())
}

/// Frames ascend by number and lie behind the table one after the other, filling the object to its end.
fn frames(header: &ObjectHeader, frames: &[FrameInfo]) -> Result<(), FormatError> {
    const BAD: FormatError = FormatError::Invalid { what: "frame list of the record table" };
    let mut end = 0u64;
    let mut before: Option<u32> = None;
    for frame in frames {
        Codec::try_from(frame.codec)?;
        let plain = frame.plain_bytes as usize;
        let fits = frame.offset == end
            && frame.sealed_bytes as usize > TAG_BYTES
            && (1..=FRAME_PLAIN_BYTES_MAX).contains(&plain)
            && frame.number != TABLE_NUMBER
            && before.is_none_or(|before| before < frame.number);
        if !fits {
            return Err(BAD);
        }
        end += u64::from(frame.sealed_bytes);
        before = Some(frame.number);
    }
    let behind_table = header.total_bytes.checked_sub(HEADER_BYTES as u64 + u64::from(header.table_sealed_bytes));
    if frames.len() != header.frame_count as usize || behind_table != Some(end) {
        return Err(BAD);
    }
    Ok(())
}

fn records_agree_with(header: &ObjectHeader, table: &Table) -> Result<(), FormatError> {
    check::run_of_records(&table.records)?;
    let (Some(first), Some(last)) = (table.records.first(), table.records.last()) else {
        return Err(FormatError::Invalid { what: "record list (empty)" });
    };
    let head = &header.head;
    let ends = first.seq == header.first_seq
        && first.time == header.first_time
        && last.seq == head.position.seq
        && last.time == head.time;
    if !ends {
        return Err(FormatError::Invalid { what: "record table (its ends differ from the header)" });
    }
    if table.records.iter().any(|record| record.map_version > head.map_version) {
        return Err(FormatError::Invalid { what: "record map version (above the header's)" });
    }
    Ok(())
}

/// Pieces sum to the extent; each is whole sectors within a chunk's bounds, and where it says it is exists.
fn pieces(table: &Table, extent: Extent, pieces: &[Piece]) -> Result<(), FormatError> {
    const BAD: FormatError = FormatError::Invalid { what: "pieces of a record" };
    let mut at = extent.offset();
    for piece in pieces {
        if piece.len == 0 || !piece.len.is_multiple_of(SECTOR_BYTES) || piece.len > extent.end() - at {
            return Err(BAD);
        }
        let is_chunk = at % CHUNK_BYTES_MAX + piece.len.min(2 * CHUNK_BYTES_MAX) <= CHUNK_BYTES_MAX;
        let exists = match piece.at {
            ChunkAt::Zero => true,
            ChunkAt::Here { frame, offset } => {
                is_chunk && find(&table.frames, frame).is_some_and(|f| ends_within(offset, piece.len, f.plain_bytes))
            }
            ChunkAt::Other { reference, frame, offset } => {
                is_chunk
                    && (reference as usize) < table.references.len()
                    && frame != TABLE_NUMBER
                    && ends_within(offset, piece.len, FRAME_PLAIN_BYTES_MAX as u32)
            }
        };
        if !exists {
            return Err(BAD);
        }
        at += piece.len;
    }
    if at != extent.end() {
        return Err(BAD);
    }
    Ok(())
}

fn ends_within(offset: u32, len: u64, plain_bytes: u32) -> bool {
    u64::from(offset) + len <= u64::from(plain_bytes)
}

/// The frame of a number; `frames` ascend by number.
pub(super) fn find(frames: &[FrameInfo], number: u32) -> Option<&FrameInfo> {
    let at = frames.binary_search_by_key(&number, |frame| frame.number).ok()?;
    frames.get(at)
}
