//! Writing a pack: sealed frames go in as they are, and index and header are put before them.

use bytes::Bytes;
use model::{LogHead, Seq, Timestamp};

use super::{PackIndex, PackName, PackRef, PackedSegment, VERSIONS};
use crate::keys::Keys;
use crate::object::{HEADER_BYTES, OBJECT_BYTES_MAX, ObjectHash, ObjectHeader, ObjectId, ObjectKind, Place};
use crate::seal::{ObjectCipher, Packing, Role};
use crate::segment::{FrameInfo, TABLE_PLAIN_BYTES_MAX};
use crate::versioned;

/// A pack ready for its single PUT.
#[derive(Debug, Clone)]
pub struct SealedPack {
    /// Header.
    pub header: ObjectHeader,
    /// The object's bytes, in order, uncopied.
    pub parts: Vec<Bytes>,
    first: (u64, u64),
    last: (u64, u64),
}

impl SealedPack {
    /// How a manifest names it, under the name that its place stands for.
    pub fn reference(&self) -> PackRef {
        let Place { epoch, slot, .. } = self.header.place;
        PackRef {
            name: PackName { epoch, number: slot },
            first: self.first,
            last: self.last,
            index_bytes: self.header.table_sealed_bytes,
            bytes: self.header.total_bytes,
        }
    }
}

/// One object cannot hold the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pack of {bytes} bytes does not fit one object of at most {OBJECT_BYTES_MAX}")]
pub struct PackTooLarge {
    /// What it would take.
    pub bytes: u64,
}

/// A pack being written.
pub struct PackWriter {
    id: ObjectId,
    packing: Packing,
    index: PackIndex,
    frames: Vec<Bytes>,
    bytes: u64,
}

impl Default for PackWriter {
    fn default() -> Self {
        Self::with(ObjectId::random(), Packing::WhenItPays)
    }
}

impl PackWriter {
    /// With a given id, which must be fresh: callers other than its default are tests.
    pub(crate) fn with(id: ObjectId, packing: Packing) -> Self {
        Self { id, packing, index: PackIndex::default(), frames: Vec::new(), bytes: 0 }
    }

    /// Bytes of the frames in it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds frames of a segment, by number, each with its sealed bytes; offsets are given here. Segments ascend by epoch
    /// and slot.
    pub fn add(&mut self, epoch: u64, slot: u64, id: ObjectId, frames: Vec<(FrameInfo, Bytes)>) {
        let mut infos = Vec::with_capacity(frames.len());
        for (info, sealed) in frames {
            debug_assert_eq!(info.sealed_bytes as usize, sealed.len(), "a frame is as long as its table says");
            infos.push(FrameInfo { offset: self.bytes, ..info });
            self.bytes += sealed.len() as u64;
            self.frames.push(sealed);
        }
        self.index.segments.push(PackedSegment { epoch, slot, id, frames: infos });
    }

    /// Puts index and header before the frames. Errors: the pack is too large.
    ///
    /// # Panics
    /// When nothing was added.
    pub fn finish(self, keys: &Keys, place: Place) -> Result<SealedPack, PackTooLarge> {
        let ends = self.index.segments.first().zip(self.index.segments.last());
        let (first, last) = ends.expect("a pack holds something of some segment");
        let (first, last) = ((first.epoch, first.slot), (last.epoch, last.slot));
        let plain = versioned::encode(VERSIONS[0].0, &self.index);
        let sealed = ObjectCipher::new(keys, self.id).seal_envelope(Role::Table, &plain, self.packing);
        let total_bytes = HEADER_BYTES as u64 + sealed.len() as u64 + self.bytes;
        if total_bytes > OBJECT_BYTES_MAX || plain.len() > TABLE_PLAIN_BYTES_MAX {
            return Err(PackTooLarge { bytes: total_bytes.max(plain.len() as u64) });
        }
        let mut digest = blake3::Hasher::new();
        digest.update(&sealed);
        self.frames.iter().for_each(|frame| _ = digest.update(frame));
        let small = "within 256 MiB, as checked above";
        let header = ObjectHeader {
            kind: ObjectKind::Pack,
            total_bytes,
            vault: keys.vault(),
            id: self.id,
            place,
            prev_hash: ObjectHash::default(),
            first_seq: Seq(1),
            first_time: Timestamp::default(),
            head: LogHead::default(),
            gc_seen: 0,
            shared: false,
            frame_count: u32::try_from(self.frames.len()).expect(small),
            table_sealed_bytes: u32::try_from(sealed.len()).expect(small),
            table_plain_bytes: u32::try_from(plain.len()).expect(small),
            body_digest: *digest.finalize().as_bytes(),
        };
        let mut parts = Vec::with_capacity(2 + self.frames.len());
        parts.push(Bytes::copy_from_slice(&header.encode(keys)));
        parts.push(sealed.into());
        parts.extend(self.frames);
        Ok(SealedPack { header, parts, first, last })
    }
}
