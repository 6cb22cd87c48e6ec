//! Fetching maps: header and index in one read, pages by ranged reads, kept while they are in use.

use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use format::FormatError;
use format::keys::Keys;
use format::map::{self, MapIndex, MapName, MapRun, Node, Owner, SegmentName};
use format::object::{HEADER_BYTES, LogKind, ObjectHeader, Place};
use model::{DiskId, Extent, MachineName};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use store::Store;
use tokio::sync::Semaphore;

use crate::recover::{RecoverError, Sealed};
use crate::segments;

/// Opened pages kept, in bytes of memory.
const PAGE_CACHE_BYTES: u64 = 64 << 20;

/// About how many pages that is; a hint for the cache.
const PAGE_CACHE_ITEMS: usize = 512;

/// Opened indexes kept, in bytes of memory. Those of an open chain are held by the chain besides.
const INDEX_CACHE_BYTES: u64 = 16 << 20;

/// Parts of a cache with a lock of their own. Fixed, as is the hash: what is dropped first is the same in every run.
const CACHE_SHARDS: usize = 4;

/// Fetches in flight at once.
const FETCHES_MAX: usize = 16;

type PageKey = (MapName, u32);

#[derive(Clone)]
struct ByBytes;

impl Weighter<PageKey, Arc<Vec<MapRun>>> for ByBytes {
    fn weight(&self, _key: &PageKey, runs: &Arc<Vec<MapRun>>) -> u64 {
        (runs.len() * size_of::<MapRun>()).max(1) as u64
    }
}

impl Weighter<MapName, Arc<OpenMap>> for ByBytes {
    fn weight(&self, _key: &MapName, map: &Arc<OpenMap>) -> u64 {
        // A page's entry in the index, and what else there is, in rough figures.
        (4096 + map.index.pages.len() * 64 + (map.index.segments.len() + map.index.children.len()) * 256) as u64
    }
}

/// A map whose header and index are open.
pub(crate) struct OpenMap {
    /// Which.
    pub name: MapName,
    /// Header.
    pub header: ObjectHeader,
    /// Index.
    pub index: MapIndex,
}

impl OpenMap {
    /// Numbers of the pages that may say something of the range.
    pub fn pages_in(&self, disk: DiskId, extent: Extent) -> std::ops::Range<usize> {
        let pages = &self.index.pages;
        let first = pages.partition_point(|page| (page.disk, page.end) <= (disk, extent.offset()));
        let end = pages.partition_point(|page| (page.disk, page.start) < (disk, extent.end()));
        first..end.max(first)
    }

    /// Numbers of all pages of a disk.
    pub fn pages_of(&self, disk: DiskId) -> std::ops::Range<usize> {
        let pages = &self.index.pages;
        pages.partition_point(|page| page.disk < disk)..pages.partition_point(|page| page.disk <= disk)
    }
}

/// Why a map that is not there is missed, and the way around.
const MISSED: &str = "positions open through it, unless the log is read instead: --without-maps";

/// A map is a view: the log still has what it said.
fn damaged(path: String, source: &FormatError) -> RecoverError {
    RecoverError::Damage { path, what: format!("{source}; read the log instead: --without-maps") }
}

/// Path of a map.
pub(crate) fn map_path(machine: &MachineName, name: MapName) -> String {
    format!("{}/map/{:016x}/{:016x}", segments::machine_prefix(machine), name.epoch, name.number)
}

/// Where a map belongs.
pub(crate) fn map_place(machine: &MachineName, name: MapName) -> Place {
    Place { machine: Some(machine.clone()), log: Some(LogKind::Manifest), epoch: name.epoch, slot: name.number }
}

/// Reads the maps of one machine.
pub(crate) struct Maps {
    sealed: Sealed,
    keys: Arc<Keys>,
    machine: MachineName,
    /// Other machines that the indexes read so far name.
    others: Mutex<BTreeMap<Owner, MachineName>>,
    indexes: Cache<MapName, Arc<OpenMap>, ByBytes, BuildHasherDefault<DefaultHasher>>,
    pages: Cache<PageKey, Arc<Vec<MapRun>>, ByBytes, BuildHasherDefault<DefaultHasher>>,
    fetches: Semaphore,
}

fn options(bytes: u64, items: usize) -> quick_cache::Options {
    let mut options = OptionsBuilder::new();
    options.shards(CACHE_SHARDS).estimated_items_capacity(items).weight_capacity(bytes);
    options.build().expect("both capacities are given")
}

impl Maps {
    /// Nothing read yet; reads the store.
    pub fn new(store: Store, keys: Arc<Keys>, machine: MachineName) -> Self {
        Self::through(Sealed::new(store, None), keys, machine)
    }

    /// Nothing read yet; reads through this.
    pub fn through(sealed: Sealed, keys: Arc<Keys>, machine: MachineName) -> Self {
        let indexes = options(INDEX_CACHE_BYTES, PAGE_CACHE_ITEMS);
        let pages = options(PAGE_CACHE_BYTES, PAGE_CACHE_ITEMS);
        Self {
            sealed,
            keys,
            machine,
            others: Mutex::default(),
            indexes: Cache::with_options(indexes, ByBytes, Default::default(), DefaultLifecycle::default()),
            pages: Cache::with_options(pages, ByBytes, Default::default(), DefaultLifecycle::default()),
            fetches: Semaphore::new(FETCHES_MAX),
        }
    }

    /// Whose.
    pub fn machine(&self) -> &MachineName {
        &self.machine
    }

    /// Whose segment it is that a run of one of these maps names. Errors: no map that was opened spells the machine out.
    pub fn owner_of(&self, segment: &SegmentName) -> Result<MachineName, RecoverError> {
        if segment.owner == Owner::SELF {
            return Ok(self.machine.clone());
        }
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.get(&segment.owner).cloned().ok_or_else(|| {
            let what = "a map names a segment of a machine that its index does not spell out".to_owned();
            RecoverError::Damage { path: segments::machine_prefix(&self.machine), what }
        })
    }

    /// The store they are in.
    pub fn store(&self) -> &Store {
        self.sealed.store()
    }

    /// Keys of its vault.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The map of a node: one read. Errors: it is not there, not whole, or not the one that was named.
    pub async fn open(&self, node: &Node) -> Result<Arc<OpenMap>, RecoverError> {
        let opened = self.indexes.get_or_insert_async(&node.map, self.fetch_index(node)).await?;
        match opened.header.head == node.end.head {
            true => Ok(opened),
            false => {
                let what = "it ends elsewhere than its node says".to_owned();
                Err(RecoverError::Damage { path: map_path(&self.machine, node.map), what })
            }
        }
    }

    async fn fetch_index(&self, node: &Node) -> Result<Arc<OpenMap>, RecoverError> {
        let path = map_path(&self.machine, node.map);
        let _permit = self.fetches.acquire().await.expect("the semaphore is never closed");
        let bytes = HEADER_BYTES as u64 + u64::from(node.index_bytes);
        let open = |found: &Bytes| {
            map::index_of(&self.keys, &map_place(&self.machine, node.map), found)
                .map_err(|source| damaged(path.clone(), &source))
        };
        let opened = self.sealed.open(&path, 0..bytes, open).await?;
        let (header, index) = opened.ok_or_else(|| segments::missing(path, MISSED))?;
        if !index.machines.is_empty() {
            let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
            others.extend(index.machines.iter().map(|machine| (Owner::of(machine), machine.clone())));
        }
        Ok(Arc::new(OpenMap { name: node.map, header, index }))
    }

    /// The runs of a page.
    pub async fn page(&self, of: &OpenMap, number: usize) -> Result<Arc<Vec<MapRun>>, RecoverError> {
        let key = (of.name, u32::try_from(number).expect("an index has few pages"));
        self.pages.get_or_insert_async(&key, self.fetch_page(of, number)).await
    }

    async fn fetch_page(&self, of: &OpenMap, number: usize) -> Result<Arc<Vec<MapRun>>, RecoverError> {
        let path = map_path(&self.machine, of.name);
        let info = &of.index.pages[number];
        let _permit = self.fetches.acquire().await.expect("the semaphore is never closed");
        let open = |found: &Bytes| {
            let runs = map::open_page(&self.keys, of.header.id, info, found);
            runs.map_err(|source| damaged(path.clone(), &source))
        };
        let runs = self.sealed.open(&path, map::page_range(&of.header, info), open).await?;
        Ok(Arc::new(runs.ok_or_else(|| segments::missing(path, MISSED))?))
    }
}
