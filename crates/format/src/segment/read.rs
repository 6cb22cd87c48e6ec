//! Reading a segment: its table, one frame by a ranged read, or the whole object at once.

use std::ops::Range;

use model::{RecordDigest, RecordDigester};

use super::{FrameInfo, TABLE_PLAIN_BYTES_MAX, TABLE_VERSIONS, Table, validate};
use crate::codec::decompress_into;
use crate::keys::Keys;
use crate::object::{FRAME_PLAIN_BYTES_MAX, HEADER_BYTES, ObjectHeader, ObjectId, ObjectKind, Place};
use crate::seal::{FrameName, ObjectCipher, Role, TABLE_NUMBER};
use crate::{Codec, FormatError, versioned};

/// Opens the table of a segment whose header is authenticated; `sealed` is the `table_sealed_bytes` behind the header
/// ([`table_range`]). Everything in the result is in range: pieces sum to extents, frames and references exist, seqs
/// run from `header.first_seq` to `header.head.position.seq`. The running digest is not looked at: see
/// [`recompute_digest`]. Errors: `Invalid`, `Truncated`, `TrailingBytes`, `Authentication`, `Version`.
pub fn open_table(keys: &Keys, header: &ObjectHeader, sealed: &[u8]) -> Result<Table, FormatError> {
    open_table_with(&ObjectCipher::new(keys, header.id), header, sealed)
}

fn open_table_with(cipher: &ObjectCipher, header: &ObjectHeader, sealed: &[u8]) -> Result<Table, FormatError> {
    const LENGTH: FormatError = FormatError::Invalid { what: "record table (its length differs from the header)" };
    if header.kind != ObjectKind::Segment {
        return Err(FormatError::Invalid { what: "object kind (only a segment has a table)" });
    }
    if sealed.len() != header.table_sealed_bytes as usize || header.table_plain_bytes as usize > TABLE_PLAIN_BYTES_MAX {
        return Err(LENGTH);
    }
    let plain_max = header.table_plain_bytes as usize;
    let plain = cipher.open_envelope(Role::Table, "record table", sealed, plain_max)?;
    if plain.len() != plain_max {
        return Err(LENGTH);
    }
    let table = decode_table(&plain)?;
    validate::table(header, &table)?;
    Ok(table)
}

/// Reads a table's plain bytes; nothing in the result is checked yet.
pub(crate) fn decode_table(plain: &[u8]) -> Result<Table, FormatError> {
    versioned::decode("record table", TABLE_VERSIONS[0].0, plain)
}

/// Opens one frame of segment `id` to its plaintext. For many frames of one segment use [`FrameOpener`].
/// Errors: `Invalid`, `Authentication`.
pub fn open_frame(keys: &Keys, id: ObjectId, frame: &FrameInfo, sealed: &[u8]) -> Result<Vec<u8>, FormatError> {
    FrameOpener::new(keys, id).open(frame, sealed)
}

/// Opens frames of one segment, deriving its key once.
pub struct FrameOpener {
    cipher: ObjectCipher,
}

impl FrameOpener {
    /// For segment `id`.
    pub fn new(keys: &Keys, id: ObjectId) -> Self {
        Self { cipher: ObjectCipher::new(keys, id) }
    }

    /// Opens one frame to its plaintext. Errors: `Invalid`, `Authentication`.
    pub fn open(&self, frame: &FrameInfo, sealed: &[u8]) -> Result<Vec<u8>, FormatError> {
        self.open_into(frame, sealed, Vec::new())
    }

    /// The same into this memory if the frame is compressed; its contents go.
    pub fn open_into(&self, frame: &FrameInfo, sealed: &[u8], memory: Vec<u8>) -> Result<Vec<u8>, FormatError> {
        if sealed.len() != frame.sealed_bytes as usize {
            return Err(FormatError::Invalid { what: "frame (its length differs from the table)" });
        }
        let plain_bytes = frame.plain_bytes as usize;
        if plain_bytes > FRAME_PLAIN_BYTES_MAX || frame.number == TABLE_NUMBER {
            return Err(FormatError::Invalid { what: "frame (its plain length or number is out of range)" });
        }
        let codec = Codec::try_from(frame.codec)?;
        let name = FrameName { number: frame.number, role: Role::Data, codec, plain_bytes: frame.plain_bytes };
        let packed = self.cipher.open(&name, "frame", sealed)?;
        if codec == Codec::Raw && packed.len() == plain_bytes {
            return Ok(packed);
        }
        decompress_into(codec, &packed, plain_bytes, memory)
    }
}

/// Where the sealed table lies in a segment.
pub fn table_range(header: &ObjectHeader) -> Range<u64> {
    let start = HEADER_BYTES as u64;
    start..start + u64::from(header.table_sealed_bytes)
}

/// Where a frame of the segment's table lies in the object.
pub fn frame_range(header: &ObjectHeader, frame: &FrameInfo) -> Range<u64> {
    let start = table_range(header).end.saturating_add(frame.offset);
    start..start.saturating_add(u64::from(frame.sealed_bytes))
}

/// The running digest after the table's last record, counted on from the digest before its first. A whole check of a
/// stream compares it with `header.head.digest`.
pub fn recompute_digest(before: RecordDigest, table: &Table) -> RecordDigest {
    let mut digester = RecordDigester::resume(before);
    table.records.iter().for_each(|record| _ = digester.push(record));
    digester.digest()
}

/// A segment whose header and table are open: from here on any frame takes one ranged read.
pub struct SegmentReader {
    header: ObjectHeader,
    table: Table,
    opener: FrameOpener,
}

impl SegmentReader {
    /// From an authenticated header and the sealed table behind it. Errors: those of [`open_table`].
    pub fn new(keys: &Keys, header: ObjectHeader, sealed_table: &[u8]) -> Result<Self, FormatError> {
        let opener = FrameOpener::new(keys, header.id);
        let table = open_table_with(&opener.cipher, &header, sealed_table)?;
        Ok(Self { header, table, opener })
    }

    /// The header.
    pub fn header(&self) -> &ObjectHeader {
        &self.header
    }

    /// The table, checked as [`open_table`] says.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Frame `number`, when the segment has it. A piece that is `Here` names one it has.
    pub fn frame(&self, number: u32) -> Option<&FrameInfo> {
        validate::find(&self.table.frames, number)
    }

    /// Where frame `number` lies in the object, when the segment has it.
    pub fn frame_range(&self, number: u32) -> Option<Range<u64>> {
        self.frame(number).map(|frame| frame_range(&self.header, frame))
    }

    /// Opens the bytes read at [`SegmentReader::frame_range`]. Errors: `Invalid` (no such frame, or wrong length),
    /// `Authentication`.
    pub fn open(&self, number: u32, sealed: &[u8]) -> Result<Vec<u8>, FormatError> {
        let frame = self.frame(number).ok_or(FormatError::Invalid { what: "frame number (not in the segment)" })?;
        self.opener.open(frame, sealed)
    }
}

/// Opens a whole segment found at `place`: authenticates the header, checks its place, the digest of every byte and the
/// table. Frames stay sealed. Errors: those of [`ObjectHeader::parse`], `Misplaced`, those of
/// [`ObjectHeader::check_body`] and [`open_table`].
pub fn open_segment(keys: &Keys, place: &Place, object: &[u8]) -> Result<SegmentReader, FormatError> {
    let header = ObjectHeader::parse(keys, object)?;
    header.expect_place(ObjectKind::Segment, place)?;
    header.check_body(object)?;
    let table = HEADER_BYTES..HEADER_BYTES + header.table_sealed_bytes as usize;
    let sealed = object.get(table).ok_or(FormatError::Invalid { what: "record table (longer than the object)" })?;
    SegmentReader::new(keys, header, sealed)
}
