//! Reading a pack: its index; then any frame by a ranged read, as out of a segment.

use super::{PackIndex, PackRef, VERSIONS};
use crate::keys::Keys;
use crate::object::{FRAME_PLAIN_BYTES_MAX, HEADER_BYTES, ObjectHeader, ObjectKind, Place};
use crate::seal::{ObjectCipher, Role, TABLE_NUMBER, TAG_BYTES};
use crate::segment::TABLE_PLAIN_BYTES_MAX;
use crate::{Codec, FormatError, versioned};

/// Opens header and index of a pack found at `place`; `bytes` begin with them. Everything in the result is in range and
/// in order. Errors: those of [`ObjectHeader::parse`], `Misplaced`, those of [`open_index`].
pub fn index_of(keys: &Keys, place: &Place, bytes: &[u8]) -> Result<(ObjectHeader, PackIndex), FormatError> {
    let header = ObjectHeader::parse(keys, bytes)?;
    header.expect_place(ObjectKind::Pack, place)?;
    let need = HEADER_BYTES as u64 + u64::from(header.table_sealed_bytes);
    let have = bytes.len() as u64;
    let end = usize::try_from(need).unwrap_or(usize::MAX);
    let sealed = bytes.get(HEADER_BYTES..end).ok_or(FormatError::Truncated { need, have })?;
    let index = open_index(keys, &header, sealed)?;
    Ok((header, index))
}

/// Opens the index of a pack whose header is authenticated. Errors: `Invalid`, `Truncated`, `TrailingBytes`,
/// `Authentication`, `Version`.
pub fn open_index(keys: &Keys, header: &ObjectHeader, sealed: &[u8]) -> Result<PackIndex, FormatError> {
    const LENGTH: FormatError = FormatError::Invalid { what: "index of a pack (its length differs from the header)" };
    let plain_max = header.table_plain_bytes as usize;
    if sealed.len() != header.table_sealed_bytes as usize || plain_max > TABLE_PLAIN_BYTES_MAX {
        return Err(LENGTH);
    }
    let cipher = ObjectCipher::new(keys, header.id);
    let plain = cipher.open_envelope(Role::Table, "index of a pack", sealed, plain_max)?;
    if plain.len() != plain_max {
        return Err(LENGTH);
    }
    let index = decode_index(&plain)?;
    check_index(header, &index)?;
    Ok(index)
}

/// Reads an index's plain bytes; nothing in the result is checked yet.
pub(crate) fn decode_index(plain: &[u8]) -> Result<PackIndex, FormatError> {
    versioned::decode("index of a pack", VERSIONS[0].0, plain)
}

/// Segments ascend, frames ascend within each, and all lie behind the index one after the other, filling the object to
/// its end.
fn check_index(header: &ObjectHeader, index: &PackIndex) -> Result<(), FormatError> {
    const BAD: FormatError = FormatError::Invalid { what: "frame list of a pack" };
    let (mut end, mut count) = (0u64, 0u64);
    for segment in &index.segments {
        let mut before: Option<u32> = None;
        for frame in &segment.frames {
            Codec::try_from(frame.codec)?;
            let fits = frame.offset == end
                && frame.sealed_bytes as usize > TAG_BYTES
                && (1..=FRAME_PLAIN_BYTES_MAX).contains(&(frame.plain_bytes as usize))
                && frame.number != TABLE_NUMBER
                && before.is_none_or(|before| before < frame.number);
            if !fits {
                return Err(BAD);
            }
            end += u64::from(frame.sealed_bytes);
            count += 1;
            before = Some(frame.number);
        }
    }
    let ascend = index.segments.is_sorted_by(|a, b| (a.epoch, a.slot) < (b.epoch, b.slot));
    let some = !index.segments.is_empty() && index.segments.iter().all(|segment| segment.epoch > 0 && segment.slot > 0);
    let behind = header.total_bytes.checked_sub(HEADER_BYTES as u64 + u64::from(header.table_sealed_bytes));
    match ascend && some && count == u64::from(header.frame_count) && behind == Some(end) {
        true => Ok(()),
        false => Err(BAD),
    }
}

/// What these references say can be read, and they are in order: none overlaps another.
pub(crate) fn packs_are_sound(packs: &[PackRef]) -> bool {
    let sound = |pack: &PackRef| {
        let (first, name) = (pack.first, pack.name);
        first.0 > 0 && first.1 > 0 && first <= pack.last && pack.last.1 > 0 && name.epoch > 0 && name.number > 0
    };
    packs.iter().all(sound) && packs.is_sorted_by(|a, b| a.last < b.first)
}
