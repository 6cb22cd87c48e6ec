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

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
pub(crate) type Chunks<K, T> = Cache<K, T, UnitWeighter, BuildHasherDefault<ChunkHasher>>;

/// Holds at most `entries_max` chunks, and more than none.
pub(crate) fn chunks<K: Eq + Hash, T: Clone>(entries_max: usize) -> Chunks<K, T> {
    let (mut options, entries) = (OptionsBuilder::new(), entries_max as u64);
    options.shards(SHARDS).estimated_items_capacity(entries_max).weight_capacity(entries);
    let options = options.build().expect("both capacities are given");
    Chunks::with_options(options, UnitWeighter, Default::default(), DefaultLifecycle::default())
}

/// The memory of all indexes of a process server: its bound does not grow with machines, who share it as they use it.
pub struct Dedup {
    chunks: Option<Chunks<(u64, ChunkId), DedupEntry>>,
    indexes: AtomicU64,
}

impl Dedup {
    /// Remembers at most `entries_max` chunks (about 120 bytes each); 0 remembers none.
    pub fn new(entries_max: usize) -> Self {
        Dedup { chunks: (entries_max > 0).then(|| chunks(entries_max)), indexes: AtomicU64::new(0) }
    }
}

/// The chunks of one epoch of one stream; shared by the workers. Nothing of another index is ever found in it.
pub struct DedupIndex {
    all: Arc<Dedup>,
    number: u64,
}

impl DedupIndex {
    /// An empty index that shares the memory of others.
    pub fn within(all: &Arc<Dedup>) -> Self {
        // Relaxed: only that no two indexes have one number matters.
        DedupIndex { all: all.clone(), number: all.indexes.fetch_add(1, Ordering::Relaxed) }
    }

    /// An index alone.
    pub fn new(entries_max: usize) -> Self {
        Self::within(&Arc::new(Dedup::new(entries_max)))
    }

    /// Where the chunk lies, if a segment in `slot` may say so.
    pub fn find(&self, chunk: &ChunkId, slot: u64) -> Option<DedupEntry> {
        self.all.chunks.as_ref()?.get(&(self.number, *chunk)).filter(|entry| entry.slot <= slot)
    }

    /// Learns a chunk, or a place of it that replaces the one known.
    pub fn learn(&self, chunk: ChunkId, entry: DedupEntry) {
        if let Some(chunks) = &self.all.chunks {
            chunks.insert((self.number, chunk), entry);
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
    fn indexes_share_their_memory_and_nothing_else() {
        let all = Arc::new(Dedup::new(64));
        let (one, other) = (DedupIndex::within(&all), DedupIndex::within(&all));
        one.learn(chunk(1), entry(1));
        assert_eq!(other.find(&chunk(1), 9), None, "an epoch finds its own chunks alone");
        assert_eq!(one.find(&chunk(1), 9), Some(entry(1)));
        (0..10_000).for_each(|n| [&one, &other].iter().for_each(|index| index.learn(chunk(n), entry(1))));
        let kept =
            (0..10_000).map(|n| [&one, &other].iter().filter(|index| index.find(&chunk(n), 1).is_some()).count());
        assert!((1..=128).contains(&kept.sum::<usize>()));
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
