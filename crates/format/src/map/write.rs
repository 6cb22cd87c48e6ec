//! Writing a map: runs in order go in, pages are sealed as they fill, and index and header are put before them.

use bytes::Bytes;
use model::{DiskId, LogHead, MachineName, Seq, Timestamp};

use super::{MapDisk, MapIndex, MapRun, Node, PAGE_RUNS_MAX, PageInfo, VERSIONS, page};
use crate::codec::{Compressor, Level};
use crate::keys::Keys;
use crate::manifest::Promoted;
use crate::object::{HEADER_BYTES, OBJECT_BYTES_MAX, ObjectHash, ObjectHeader, ObjectId, ObjectKind, Place};
use crate::seal::{ObjectCipher, Packing, Role};
use crate::segment::{FrameInfo, FrameSealer, TABLE_PLAIN_BYTES_MAX};
use crate::versioned;

/// What the maker of a map states; the rest is computed.
#[derive(Debug, Clone)]
pub struct MapFacts {
    /// Where it goes: a slot of the manifest epoch's maps.
    pub place: Place,
    /// First record in it.
    pub first_seq: Seq,
    /// Time of that record.
    pub first_time: Timestamp,
    /// Stream state at its end.
    pub head: LogHead,
    /// The disks there, by id.
    pub disks: Vec<MapDisk>,
    /// What a merge is made of; empty for a leaf.
    pub children: Vec<Node>,
    /// What a leaf is made of; empty for a merge.
    pub segments: Vec<Promoted>,
    /// Other machines from whose segments runs read, in order of name.
    pub machines: Vec<MachineName>,
}

/// A map ready for its single PUT.
#[derive(Debug, Clone)]
pub struct SealedMap {
    /// Header.
    pub header: ObjectHeader,
    /// The object's bytes, in order, uncopied.
    pub parts: Vec<Bytes>,
}

/// One object cannot hold the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a map of {bytes} bytes does not fit one object of at most {OBJECT_BYTES_MAX}")]
pub struct MapTooLarge {
    /// What it would take, at least.
    pub bytes: u64,
}

/// A map being written.
pub struct MapWriter {
    sealer: FrameSealer,
    packing: Packing,
    compressor: Compressor,
    runs: Vec<MapRun>,
    disk: DiskId,
    pages: Vec<PageInfo>,
    frames: Vec<Bytes>,
    bytes: u64,
}

impl MapWriter {
    /// A new map under a fresh id.
    pub fn new(keys: &Keys) -> Self {
        Self::with(keys, ObjectId::random(), Packing::WhenItPays)
    }

    /// With a given id, which must be fresh: callers other than [`MapWriter::new`] are tests.
    pub(crate) fn with(keys: &Keys, id: ObjectId, packing: Packing) -> Self {
        Self {
            sealer: FrameSealer::new(keys, id),
            packing,
            compressor: Compressor::new(),
            runs: Vec::new(),
            disk: DiskId(0),
            pages: Vec::new(),
            frames: Vec::new(),
            bytes: 0,
        }
    }

    /// Adds a run. Runs ascend by disk and offset and do not overlap. Errors: the map is too large to go on with.
    pub fn push(&mut self, disk: DiskId, run: MapRun) -> Result<(), MapTooLarge> {
        if self.disk != disk || self.runs.len() == PAGE_RUNS_MAX {
            self.close_page();
            self.disk = disk;
        }
        self.runs.push(run);
        match self.bytes > OBJECT_BYTES_MAX {
            true => Err(MapTooLarge { bytes: self.bytes }),
            false => Ok(()),
        }
    }

    fn close_page(&mut self) {
        let (Some(first), Some(last)) = (self.runs.first(), self.runs.last()) else { return };
        let (start, end) = (first.extent.offset(), last.extent.end());
        let plain = page::encode(&self.runs);
        self.runs.clear();
        let plain_bytes = u32::try_from(plain.len()).expect("a page is small");
        let (codec, packed) = match self.packing {
            Packing::WhenItPays => self.compressor.compress(Level::Normal, &plain),
            #[cfg(test)]
            Packing::Raw => (crate::Codec::Raw, plain),
        };
        let number = u32::try_from(self.pages.len()).expect("a map holds few pages");
        let frame = self.sealer.seal(number, codec, plain_bytes, packed);
        let sealed_bytes = u32::try_from(frame.bytes.len()).expect("a page is small");
        let info = FrameInfo { number, offset: self.bytes, sealed_bytes, plain_bytes, codec: codec as u8 };
        self.pages.push(PageInfo { disk: self.disk, start, end, frame: info });
        self.bytes += frame.bytes.len() as u64;
        self.frames.push(frame.bytes);
    }

    /// Puts index and header before the pages. Errors: the map is too large.
    pub fn finish(mut self, keys: &Keys, facts: MapFacts) -> Result<SealedMap, MapTooLarge> {
        self.close_page();
        let MapFacts { place, first_seq, first_time, head, disks, children, segments, machines } = facts;
        let index = MapIndex { disks, children, segments, machines, pages: self.pages };
        let plain = versioned::encode(VERSIONS[0].0, &index);
        let cipher = ObjectCipher::new(keys, self.sealer.id());
        let sealed = cipher.seal_envelope(Role::Table, &plain, self.packing);
        let total_bytes = HEADER_BYTES as u64 + sealed.len() as u64 + self.bytes;
        if total_bytes > OBJECT_BYTES_MAX || plain.len() > TABLE_PLAIN_BYTES_MAX {
            return Err(MapTooLarge { bytes: total_bytes.max(plain.len() as u64) });
        }
        let mut digest = blake3::Hasher::new();
        digest.update(&sealed);
        self.frames.iter().for_each(|frame| _ = digest.update(frame));
        let small = "within 64 MiB, as checked above";
        let header = ObjectHeader {
            kind: ObjectKind::Map,
            total_bytes,
            vault: keys.vault(),
            id: self.sealer.id(),
            place,
            prev_hash: ObjectHash::default(),
            first_seq,
            first_time,
            head,
            gc_seen: 0,
            shared: false,
            frame_count: u32::try_from(self.frames.len()).expect("a map holds few pages"),
            table_sealed_bytes: u32::try_from(sealed.len()).expect(small),
            table_plain_bytes: u32::try_from(plain.len()).expect(small),
            body_digest: *digest.finalize().as_bytes(),
        };
        let mut parts = Vec::with_capacity(2 + self.frames.len());
        parts.push(Bytes::copy_from_slice(&header.encode(keys)));
        parts.push(sealed.into());
        parts.extend(self.frames);
        Ok(SealedMap { header, parts })
    }
}
