//! Reading a map: its index, then any page by a ranged read.

use std::ops::Range;

use super::{FANOUT, LEVEL_MAX, MapIndex, MapRun, Node, PAGE_PLAIN_BYTES_MAX, PageInfo, VERSIONS, page};
use crate::keys::Keys;
use crate::object::{HEADER_BYTES, ObjectHeader, ObjectId, ObjectKind, Place};
use crate::seal::{ObjectCipher, Role, TABLE_NUMBER, TAG_BYTES};
use crate::segment::{FrameOpener, TABLE_PLAIN_BYTES_MAX};
use crate::{Codec, FormatError, versioned};

/// Opens header and index of a map found at `place`; `bytes` begin with them. Everything in the result is in range and
/// in order, and agrees with the header. Errors: those of [`ObjectHeader::parse`], `Misplaced`, those of [`open_index`].
pub fn index_of(keys: &Keys, place: &Place, bytes: &[u8]) -> Result<(ObjectHeader, MapIndex), FormatError> {
    let header = ObjectHeader::parse(keys, bytes)?;
    header.expect_place(ObjectKind::Map, place)?;
    let need = HEADER_BYTES as u64 + u64::from(header.table_sealed_bytes);
    let have = bytes.len() as u64;
    let end = usize::try_from(need).unwrap_or(usize::MAX);
    let sealed = bytes.get(HEADER_BYTES..end).ok_or(FormatError::Truncated { need, have })?;
    let index = open_index(keys, &header, sealed)?;
    Ok((header, index))
}

/// Opens the index of a map whose header is authenticated. Errors: `Invalid`, `Truncated`, `TrailingBytes`,
/// `Authentication`, `Version`.
pub fn open_index(keys: &Keys, header: &ObjectHeader, sealed: &[u8]) -> Result<MapIndex, FormatError> {
    const LENGTH: FormatError = FormatError::Invalid { what: "index of a map (its length differs from the header)" };
    let plain_max = header.table_plain_bytes as usize;
    if sealed.len() != header.table_sealed_bytes as usize || plain_max > TABLE_PLAIN_BYTES_MAX {
        return Err(LENGTH);
    }
    let cipher = ObjectCipher::new(keys, header.id);
    let plain = cipher.open_envelope(Role::Table, "index of a map", sealed, plain_max)?;
    if plain.len() != plain_max {
        return Err(LENGTH);
    }
    let index = decode_index(&plain)?;
    check_pages(header, &index.pages)?;
    check_parts(header, &index)?;
    Ok(index)
}

/// Reads an index's plain bytes; nothing in the result is checked yet.
pub(crate) fn decode_index(plain: &[u8]) -> Result<MapIndex, FormatError> {
    versioned::decode("index of a map", VERSIONS[0].0, plain)
}

/// Where a page lies in its map.
pub fn page_range(header: &ObjectHeader, page: &PageInfo) -> Range<u64> {
    let start = (HEADER_BYTES as u64 + u64::from(header.table_sealed_bytes)).saturating_add(page.frame.offset);
    start..start.saturating_add(u64::from(page.frame.sealed_bytes))
}

/// Opens the bytes read at [`page_range`]. Errors: `Invalid`, `Truncated`, `TrailingBytes`, `Authentication`, `Version`.
pub fn open_page(keys: &Keys, map: ObjectId, info: &PageInfo, sealed: &[u8]) -> Result<Vec<MapRun>, FormatError> {
    let runs = page::decode(&FrameOpener::new(keys, map).open(&info.frame, sealed)?)?;
    let ends = runs.first().zip(runs.last()).map(|(first, last)| (first.extent.offset(), last.extent.end()));
    match ends == Some((info.start, info.end)) {
        true => Ok(runs),
        false => Err(FormatError::Invalid { what: "page of a map (its ends differ from the index)" }),
    }
}

/// Pages ascend, and their frames lie behind the index one after the other, filling the object to its end.
fn check_pages(header: &ObjectHeader, pages: &[PageInfo]) -> Result<(), FormatError> {
    const BAD: FormatError = FormatError::Invalid { what: "page list of a map" };
    let (mut at, mut before) = (0u64, None);
    for (number, page) in (0u32..).zip(pages) {
        let frame = &page.frame;
        Codec::try_from(frame.codec)?;
        let fits = frame.number == number
            && number != TABLE_NUMBER
            && frame.offset == at
            && frame.sealed_bytes as usize > TAG_BYTES
            && (1..=PAGE_PLAIN_BYTES_MAX).contains(&(frame.plain_bytes as usize))
            && page.start < page.end
            && before.is_none_or(|(disk, end)| (disk, end) <= (page.disk, page.start));
        if !fits {
            return Err(BAD);
        }
        at += u64::from(frame.sealed_bytes);
        before = Some((page.disk, page.end));
    }
    let behind = header.total_bytes.checked_sub(HEADER_BYTES as u64 + u64::from(header.table_sealed_bytes));
    match pages.len() == header.frame_count as usize && behind == Some(at) {
        true => Ok(()),
        false => Err(BAD),
    }
}

/// A leaf has segments, a merge has nodes of one level, and both end where the header says.
fn check_parts(header: &ObjectHeader, index: &MapIndex) -> Result<(), FormatError> {
    const BAD: FormatError = FormatError::Invalid { what: "parts of a map" };
    if !index.disks.is_sorted_by(|a, b| a.id < b.id) || !index.machines.is_sorted_by(|a, b| a < b) {
        return Err(BAD);
    }
    let last = match (index.segments.last(), index.children.last()) {
        (Some(last), None) => last,
        (None, Some(last)) => &last.end,
        _ => return Err(BAD),
    };
    let place = |segment: &crate::manifest::Promoted| (segment.epoch, segment.slot, segment.head.position.seq);
    let ordered = index.segments.is_sorted_by(|a, b| place(a) < place(b))
        && index.children.is_sorted_by(|a, b| a.level == b.level && place(&a.end) < place(&b.end));
    let merged = index.children.is_empty() || index.children.len() == FANOUT;
    match ordered && merged && last.head == header.head && index.children.iter().all(node_is_sound) {
        true => Ok(()),
        false => Err(BAD),
    }
}

/// What a node says of its map can be read.
pub(crate) fn node_is_sound(node: &Node) -> bool {
    node.level < LEVEL_MAX && node.map.epoch > 0 && node.map.number > 0
}
