//! Reading packs: header and index in one read, kept while they are in use.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use format::keys::Keys;
use format::object::{HEADER_BYTES, LogKind, ObjectHeader, Place};
use format::pack::{self, PackIndex, PackName, PackRef, PackedSegment};
use format::segment::FrameInfo;
use model::MachineName;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use store::{LogPosition, Store};

use crate::recover::RecoverError;
use crate::segments;

/// Opened indexes kept, in bytes of memory.
const INDEX_CACHE_BYTES: u64 = 16 << 20;

/// About how many indexes that is; a hint for the cache.
const INDEX_CACHE_ITEMS: usize = 128;

/// Parts of the cache with a lock of their own. Fixed, as is the hash: what is dropped first is the same in every run.
const CACHE_SHARDS: usize = 4;

/// A pack whose header and index are open.
pub(crate) struct OpenPack {
    /// Where it lies.
    pub path: String,
    /// Header.
    pub header: ObjectHeader,
    /// Index.
    pub index: PackIndex,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<PackName, Arc<OpenPack>> for ByBytes {
    fn weight(&self, _key: &PackName, open: &Arc<OpenPack>) -> u64 {
        let held = |segment: &PackedSegment| size_of::<PackedSegment>() + segment.frames.len() * size_of::<FrameInfo>();
        (size_of::<OpenPack>() + open.index.segments.iter().map(held).sum::<usize>()) as u64
    }
}

/// Path of a pack.
pub(crate) fn pack_path(machine: &MachineName, name: PackName) -> String {
    format!("{}/pack/{:016x}/{:016x}", segments::machine_prefix(machine), name.epoch, name.number)
}

/// Where a pack belongs.
pub(crate) fn pack_place(machine: &MachineName, name: PackName) -> Place {
    Place { machine: Some(machine.clone()), log: Some(LogKind::Manifest), epoch: name.epoch, slot: name.number }
}

/// Reads the packs that a manifest of one machine names.
pub(crate) struct Packs {
    store: Store,
    keys: Arc<Keys>,
    machine: MachineName,
    named: Arc<[PackRef]>,
    indexes: Cache<PackName, Arc<OpenPack>, ByBytes, BuildHasherDefault<DefaultHasher>>,
}

impl Packs {
    /// Nothing read yet.
    pub fn new(store: Store, keys: Arc<Keys>, machine: MachineName, named: Arc<[PackRef]>) -> Self {
        let mut options = OptionsBuilder::new();
        options.shards(CACHE_SHARDS).estimated_items_capacity(INDEX_CACHE_ITEMS).weight_capacity(INDEX_CACHE_BYTES);
        let options = options.build().expect("both capacities are given");
        let indexes = Cache::with_options(options, ByBytes, Default::default(), DefaultLifecycle::default());
        Self { store, keys, machine, named, indexes }
    }

    /// The pack that stands for a segment of a machine's stream; none when the segment itself is read.
    pub fn covering(&self, machine: &MachineName, position: LogPosition) -> Option<&PackRef> {
        (*machine == self.machine).then(|| pack::covering(&self.named, position.epoch, position.slot)).flatten()
    }

    /// A pack's index: one read. Errors: it is not there, not whole, or not the one that was named.
    pub async fn open(&self, named: &PackRef) -> Result<Arc<OpenPack>, RecoverError> {
        self.indexes.get_or_insert_async(&named.name, self.fetch(named)).await
    }

    async fn fetch(&self, named: &PackRef) -> Result<Arc<OpenPack>, RecoverError> {
        let path = pack_path(&self.machine, named.name);
        let bytes = HEADER_BYTES as u64 + u64::from(named.index_bytes);
        let found = self.store.get_range(&path, 0..bytes).await?;
        let found = found.ok_or_else(|| segments::missing(path.clone(), "points read from it"))?;
        let (header, index) = pack::index_of(&self.keys, &pack_place(&self.machine, named.name), &found)
            .map_err(|source| RecoverError::damaged(path.clone(), source))?;
        let ends = index.segments.first().zip(index.segments.last());
        let ends = ends.map(|(first, last)| ((first.epoch, first.slot), (last.epoch, last.slot)));
        match ends == Some((named.first, named.last)) && header.total_bytes == named.bytes {
            true => Ok(Arc::new(OpenPack { path, header, index })),
            false => {
                let what = "it is not the pack that the manifest names".to_owned();
                Err(RecoverError::Damage { path, what })
            }
        }
    }
}
