//! Small objects: vault, epoch, opening and manifest objects and those of the vault's lists, each a header and one sealed body.

use bytes::Bytes;
use model::LogHead;

use super::{FRAME_PLAIN_BYTES_MAX, HEADER_BYTES, ObjectHash, ObjectHeader, ObjectId, ObjectKind, Place};
use crate::FormatError;
use crate::keys::Keys;
use crate::seal::{ObjectCipher, Packing, Role};

/// What the writer of a small object (vault, epoch, opening, manifest) states; the rest is computed.
#[derive(Debug, Clone)]
pub struct SmallObject<'a> {
    /// What it is.
    pub kind: ObjectKind,
    /// Where it goes.
    pub place: Place,
    /// Hash of the object before it.
    pub prev_hash: ObjectHash,
    /// Stream state it continues; default for kinds that have none.
    pub head: LogHead,
    /// For the opening of a stream: the newest condemn list that its epoch answers for. Else 0.
    pub gc_seen: u64,
    /// Plain body of at most [`FRAME_PLAIN_BYTES_MAX`], sealed as frame 0 (zstd when that pays).
    pub body: &'a [u8],
}

/// Seals a small object under a fresh id. Every call gives other bytes: keep them for a retry.
///
/// # Panics
/// When the body is longer than [`FRAME_PLAIN_BYTES_MAX`]: no reader would take it.
pub fn seal_small(keys: &Keys, object: &SmallObject<'_>) -> Bytes {
    seal_small_with(keys, ObjectId::random(), Packing::WhenItPays, object)
}

/// With a given id, which must be fresh: callers other than [`seal_small`] are tests.
pub(crate) fn seal_small_with(keys: &Keys, id: ObjectId, packing: Packing, object: &SmallObject<'_>) -> Bytes {
    assert!(object.body.len() <= FRAME_PLAIN_BYTES_MAX, "body of {} bytes is over the cap", object.body.len());
    let sealed = ObjectCipher::new(keys, id).seal_envelope(Role::Body, object.body, packing);
    let header = ObjectHeader {
        kind: object.kind,
        total_bytes: (HEADER_BYTES + sealed.len()) as u64,
        vault: keys.vault(),
        id,
        place: object.place.clone(),
        prev_hash: object.prev_hash,
        first_seq: object.head.position.seq.next(),
        first_time: object.head.time,
        head: object.head,
        gc_seen: object.gc_seen,
        shared: false,
        frame_count: 1,
        table_sealed_bytes: 0,
        table_plain_bytes: 0,
        body_digest: *blake3::hash(&sealed).as_bytes(),
    };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + sealed.len());
    bytes.extend_from_slice(&header.encode(keys));
    bytes.extend_from_slice(&sealed);
    bytes.into()
}

/// Opens a small object found at `place`: authenticates, checks its place and kind, returns header and plain body.
/// Errors: those of [`ObjectHeader::parse`], `Misplaced`, those of [`ObjectHeader::check_body`], `Authentication`,
/// `Invalid`.
pub fn open_small(
    keys: &Keys,
    kind: ObjectKind,
    place: &Place,
    object: &[u8],
) -> Result<(ObjectHeader, Vec<u8>), FormatError> {
    let header = ObjectHeader::parse(keys, object)?;
    header.expect_place(kind, place)?;
    let body = open_body(keys, &header, object)?;
    Ok((header, body))
}

/// The plain body of a small object whose header is authenticated.
pub(crate) fn open_body(keys: &Keys, header: &ObjectHeader, object: &[u8]) -> Result<Vec<u8>, FormatError> {
    if header.kind.has_table() {
        return Err(FormatError::Invalid { what: "object kind (a segment or map has no body)" });
    }
    header.check_body(object)?;
    let sealed = object.get(HEADER_BYTES..).unwrap_or_default();
    ObjectCipher::new(keys, header.id).open_envelope(Role::Body, "object body", sealed, FRAME_PLAIN_BYTES_MAX)
}
