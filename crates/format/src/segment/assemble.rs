//! Writing a segment: sealing frames while their bytes are hot, and putting table and commit header before them.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use model::Record;

use super::{
    Commit, FrameInfo, Piece, SealedFrame, SealedSegment, SegmentRef, TABLE_PLAIN_BYTES_MAX, TABLE_VERSIONS, Table,
    validate,
};
use crate::Codec;
use crate::keys::Keys;
use crate::object::{FRAME_PLAIN_BYTES_MAX, HEADER_BYTES, OBJECT_BYTES_MAX, ObjectHeader, ObjectId, ObjectKind};
use crate::seal::{FrameName, ObjectCipher, Packing, Role, TABLE_NUMBER};
use crate::versioned;

/// Seals frames of one segment; shared by the workers that fill it. The caller never gives one number twice.
pub struct FrameSealer {
    cipher: ObjectCipher,
    /// Numbers sealed so far. Two frames under one nonce would give both away, so this is checked in every build; it
    /// costs a hundredth of sealing.
    sealed: Mutex<BTreeSet<u32>>,
}

impl FrameSealer {
    /// For a new segment with this fresh random id.
    pub fn new(keys: &Keys, id: ObjectId) -> Self {
        Self { cipher: ObjectCipher::new(keys, id), sealed: Mutex::default() }
    }

    /// The segment's id.
    pub fn id(&self) -> ObjectId {
        self.cipher.id()
    }

    /// Seals one compressed frame in place (the tag is appended to `packed`).
    ///
    /// # Panics
    /// When the number was sealed before or is `u32::MAX`, or the frame is empty or over
    /// [`FRAME_PLAIN_BYTES_MAX`].
    pub fn seal(&self, number: u32, codec: Codec, plain_bytes: u32, mut packed: Vec<u8>) -> SealedFrame {
        assert!(number != TABLE_NUMBER, "frame number {number} is the table's");
        assert!(
            (1..=FRAME_PLAIN_BYTES_MAX).contains(&(plain_bytes as usize)),
            "a frame of {plain_bytes} bytes has no reader"
        );
        self.claim(number);
        self.cipher.seal(&FrameName { number, role: Role::Data, codec, plain_bytes }, &mut packed);
        SealedFrame { number, codec, plain_bytes, bytes: packed.into() }
    }

    fn claim(&self, number: u32) {
        let fresh = self.sealed.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
        assert!(fresh, "frame {number} of segment {} would be sealed twice under one nonce", self.id());
    }
}

/// Adds table and commit header to sealed frames. `records` must be non-empty and without gaps in seq. The table's
/// `frames` are computed here from `frames`, whose order does not matter: they lie in the object by number.
///
/// # Panics
/// When called twice with one sealer, or when what was given does not make a segment that a reader takes: no records,
/// a table over [`TABLE_PLAIN_BYTES_MAX`], an object over [`OBJECT_BYTES_MAX`]. Builds with debug assertions check
/// everything [`super::open_table`] checks.
pub fn assemble(
    keys: &Keys,
    sealer: &FrameSealer,
    commit: Commit,
    frames: Vec<SealedFrame>,
    references: Vec<SegmentRef>,
    records: Vec<Record<Vec<Piece>>>,
) -> SealedSegment {
    assemble_with(keys, sealer, commit, frames, references, records, Packing::WhenItPays)
}

pub(crate) fn assemble_with(
    keys: &Keys,
    sealer: &FrameSealer,
    commit: Commit,
    mut frames: Vec<SealedFrame>,
    references: Vec<SegmentRef>,
    records: Vec<Record<Vec<Piece>>>,
    packing: Packing,
) -> SealedSegment {
    sealer.claim(TABLE_NUMBER);
    frames.sort_unstable_by_key(|frame| frame.number);
    let table = Table { references, frames: frame_infos(&frames), records };
    let plain = versioned::encode(TABLE_VERSIONS[0].0, &table);
    assert!(plain.len() <= TABLE_PLAIN_BYTES_MAX, "a table of {} bytes is over the cap", plain.len());
    let sealed_table = sealer.cipher.seal_envelope(Role::Table, &plain, packing);

    let mut digest = blake3::Hasher::new();
    digest.update(&sealed_table);
    frames.iter().for_each(|frame| _ = digest.update(&frame.bytes));
    let frames_bytes: u64 = frames.iter().map(|frame| frame.bytes.len() as u64).sum();
    let total_bytes = HEADER_BYTES as u64 + sealed_table.len() as u64 + frames_bytes;
    assert!(total_bytes <= OBJECT_BYTES_MAX, "a segment of {total_bytes} bytes is over the cap");

    let first = table.records.first().expect("a segment holds at least one record: the caller says so");
    let small = "tables are within 64 MiB";
    let header = ObjectHeader {
        kind: ObjectKind::Segment,
        total_bytes,
        vault: keys.vault(),
        id: sealer.id(),
        place: commit.place,
        prev_hash: commit.prev_hash,
        first_seq: first.seq,
        first_time: first.time,
        head: commit.head,
        gc_seen: commit.gc_seen,
        shared: commit.shared,
        frame_count: u32::try_from(frames.len()).expect("frame numbers are u32 and differ"),
        table_sealed_bytes: u32::try_from(sealed_table.len()).expect(small),
        table_plain_bytes: u32::try_from(plain.len()).expect(small),
        body_digest: *digest.finalize().as_bytes(),
    };
    debug_assert_eq!(validate::table(&header, &table), Ok(()), "a segment that no reader takes");
    let encoded = header.encode(keys);
    let hash = ObjectHeader::hash(&encoded).expect("an encoded header is a whole one");
    let mut parts = Vec::with_capacity(2 + frames.len());
    parts.push(Bytes::copy_from_slice(&encoded));
    parts.push(sealed_table.into());
    parts.extend(frames.into_iter().map(|frame| frame.bytes));
    SealedSegment { header, hash, parts }
}

fn frame_infos(frames: &[SealedFrame]) -> Vec<FrameInfo> {
    let mut offset = 0;
    let info = |frame: &SealedFrame| {
        let sealed_bytes = u32::try_from(frame.bytes.len()).expect("frames are within 64 MiB");
        let info = FrameInfo {
            number: frame.number,
            offset,
            sealed_bytes,
            plain_bytes: frame.plain_bytes,
            codec: frame.codec as u8,
        };
        offset += u64::from(sealed_bytes);
        info
    };
    frames.iter().map(info).collect()
}
