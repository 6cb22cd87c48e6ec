//! Dedup: where a chunk of this stream already lies, bounded and forgetful.
//!
//! What must hold: a reference names only the same segment or an earlier one of this stream's accepted chain. The index
//! belongs to one epoch of one stream and dies with it. An entry says in which slot its chunk lies. A job's segment has
//! its slot before the job runs, and that slot is filled with this very job's frames or the epoch ends. So an
//! entry may be used, even before its segment is stored, by any segment with the same or a higher slot: the higher slot
//! is accepted only when every lower one is. A lower slot never uses it. Forgetting an entry costs bytes, never
//! correctness.
//!
//! Chunks of other epochs are found by `share`, which has rules of its own. There is no warm start: a process server keeps
//! nothing over a restart.

use std::hash::{BuildHasherDefault, Hasher};

use format::keys::ChunkId;
use format::object::ObjectId;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};

/// Parts of the index with a lock of their own, for that many workers; fewer when it is small. Fixed, so that what is
/// forgotten does not depend on the cores of the machine.
const SHARDS: usize = 64;

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupEntry {
    /// The segment's id.
    pub segment: ObjectId,
    /// Its slot in the epoch the index belongs to.
    pub slot: u64,
    /// Frame there.
    pub frame: u32,
    /// Offset in the frame's plaintext.
    pub offset: u32,
}

/// Takes eight bytes of a chunk id as its hash: ids are uniform already, and fixed hashing keeps runs repeatable.
#[derive(Default)]
pub(crate) struct ChunkHasher(u64);

impl Hasher for ChunkHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0u8; 8];
            word[..part.len()].copy_from_slice(part);
            self.0 = self.0.rotate_left(7) ^ u64::from_le_bytes(word);
        }
    }

    /// The length of an array that is always 32 says nothing.
    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A bounded map from chunks to where they lie.
pub(crate) type Chunks<T> = Cache<ChunkId, T, UnitWeighter, BuildHasherDefault<ChunkHasher>>;

/// Holds at most `entries_max` chunks, and more than none.
pub(crate) fn chunks<T: Clone>(entries_max: usize) -> Chunks<T> {
    let (mut options, entries) = (OptionsBuilder::new(), entries_max as u64);
    options.shards(SHARDS).estimated_items_capacity(entries_max).weight_capacity(entries);
    let options = options.build().expect("both capacities are given");
    Chunks::with_options(options, UnitWeighter, Default::default(), DefaultLifecycle::default())
}

/// The chunks of one epoch of one stream; shared by the workers.
pub struct DedupIndex {
    chunks: Option<Chunks<DedupEntry>>,
}

impl DedupIndex {
    /// Remembers at most `entries_max` chunks (about 100 bytes each); 0 remembers none.
    pub fn new(entries_max: usize) -> Self {
        DedupIndex { chunks: (entries_max > 0).then(|| chunks(entries_max)) }
    }

    /// Where the chunk lies, if a segment in `slot` may say so.
    pub fn find(&self, chunk: &ChunkId, slot: u64) -> Option<DedupEntry> {
        self.chunks.as_ref()?.get(chunk).filter(|entry| entry.slot <= slot)
    }

    /// Learns a chunk, or a place of it that replaces the one known.
    pub fn learn(&self, chunk: ChunkId, entry: DedupEntry) {
        if let Some(chunks) = &self.chunks {
            chunks.insert(chunk, entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slot: u64) -> DedupEntry {
        DedupEntry { segment: ObjectId([slot as u8; 32]), slot, frame: 1, offset: 2 }
    }

    fn chunk(n: u64) -> ChunkId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        ChunkId(id)
    }

    #[test]
    fn a_segment_never_refers_to_a_later_one() {
        let index = DedupIndex::new(100);
        index.learn(chunk(1), entry(6));
        assert_eq!(index.find(&chunk(1), 5), None, "a later segment may never be accepted");
        assert_eq!(index.find(&chunk(1), 6), Some(entry(6)));
        assert_eq!(index.find(&chunk(1), 7), Some(entry(6)));
        index.learn(chunk(1), entry(5));
        assert_eq!(index.find(&chunk(1), 5), Some(entry(5)));
        assert_eq!(index.find(&chunk(2), 7), None);
    }

    #[test]
    fn the_index_is_bounded_and_may_be_off() {
        let index = DedupIndex::new(64);
        (0..10_000).for_each(|n| index.learn(chunk(n), entry(1)));
        let kept = (0..10_000).filter(|n| index.find(&chunk(*n), 1).is_some()).count();
        assert!((1..=128).contains(&kept), "{kept} kept");
        let off = DedupIndex::new(0);
        off.learn(chunk(1), entry(1));
        assert_eq!(off.find(&chunk(1), 1), None);
    }
}
