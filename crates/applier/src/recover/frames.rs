//! Frames on demand: a ranged GET, opened, and kept in a small cache for as long as it is in use.
//!
//! Concurrent readers of one frame fetch it once. The objects are named by small numbers, so that maps stay small; each
//! is authenticated by its header when its first frame is wanted and its table is not yet known.

use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use format::keys::Keys;
use format::object::{HEADER_BYTES, LogKind, ObjectHeader, ObjectId, ObjectKind, Place};
use format::segment::{FrameInfo, open_frame, open_table};
use model::MachineName;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use store::{LogPosition, Store};
use tokio::sync::{OnceCell, Semaphore};

use super::RecoverError;
use crate::segments;

/// Opened frames kept, in plain bytes.
const FRAME_CACHE_BYTES: u64 = 64 << 20;

/// About how many frames that is; a hint for the cache.
const FRAME_CACHE_ITEMS: usize = 1024;

/// Parts of the cache with a lock of their own. Fixed, as is the hash: so what is dropped first, and with it what is
/// fetched again, is the same in every run.
const FRAME_CACHE_SHARDS: usize = 8;

/// Fetches from the store in flight at once.
const FETCHES_MAX: usize = 16;

/// Where a segment lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectPlace {
    /// Its id.
    pub id: ObjectId,
    /// Whose stream.
    pub machine: MachineName,
    /// Where in it.
    pub position: LogPosition,
}

impl ObjectPlace {
    /// Path in the store.
    pub fn path(&self) -> String {
        segments::path(&self.machine, LogKind::Stream, self.position)
    }
}

/// Where the frames of an object lie.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Offset of the first byte behind the table.
    pub data_start: u64,
    /// Frames by number, ascending.
    pub frames: Vec<FrameInfo>,
}

impl Layout {
    /// The frame of that number.
    pub fn frame(&self, number: u32) -> Option<&FrameInfo> {
        self.frames.binary_search_by_key(&number, |frame| frame.number).ok().map(|i| &self.frames[i])
    }
}

struct Entry {
    place: ObjectPlace,
    layout: OnceCell<Layout>,
    whole: Mutex<Option<Bytes>>,
}

#[derive(Default)]
struct Entries {
    by_id: BTreeMap<ObjectId, u32>,
    entries: Vec<Arc<Entry>>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(u32, u32), Bytes> for ByBytes {
    fn weight(&self, _key: &(u32, u32), frame: &Bytes) -> u64 {
        (frame.len() as u64).max(1)
    }
}

/// Fetches, opens and caches frames.
pub(crate) struct Frames {
    store: Store,
    keys: Arc<Keys>,
    entries: Mutex<Entries>,
    cache: Cache<(u32, u32), Bytes, ByBytes, BuildHasherDefault<DefaultHasher>>,
    fetches: Semaphore,
}

impl Frames {
    /// Nothing known yet.
    pub fn new(store: Store, keys: Arc<Keys>) -> Self {
        let mut options = OptionsBuilder::new();
        options.shards(FRAME_CACHE_SHARDS).estimated_items_capacity(FRAME_CACHE_ITEMS);
        options.weight_capacity(FRAME_CACHE_BYTES);
        let options = options.build().expect("both capacities are given");
        let cache = Cache::with_options(options, ByBytes, Default::default(), DefaultLifecycle::default());
        let fetches = Semaphore::new(FETCHES_MAX);
        Self { store, keys, entries: Mutex::default(), cache, fetches }
    }

    /// The number of an object; the same for the same id.
    pub fn intern(&self, place: ObjectPlace) -> u32 {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = entries.by_id.get(&place.id) {
            return *number;
        }
        let number = u32::try_from(entries.entries.len()).expect("a history is bounded far below 2^32 segments");
        entries.by_id.insert(place.id, number);
        entries.entries.push(Arc::new(Entry { place, layout: OnceCell::new(), whole: Mutex::default() }));
        number
    }

    /// Tells where the frames of an object lie, so that they need not be looked up.
    pub fn set_layout(&self, object: u32, layout: Layout) {
        // Whoever was first read the same authenticated table.
        let _already_known = self.entry(object).layout.set(layout);
    }

    /// Serves the frames of an object from these bytes of the whole object.
    pub fn set_whole(&self, object: u32, whole: Bytes) {
        *self.entry(object).whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(whole);
    }

    /// The plain bytes of a frame.
    pub async fn frame(&self, object: u32, number: u32) -> Result<Bytes, RecoverError> {
        self.cache.get_or_insert_async(&(object, number), self.fetch(object, number)).await
    }

    /// A record wants more of a frame than it has.
    pub fn short_frame(&self, object: u32, number: u32) -> RecoverError {
        let what = format!("frame {number} is shorter than the records that refer to it say");
        RecoverError::Damage { path: self.entry(object).place.path(), what }
    }

    fn entry(&self, object: u32) -> Arc<Entry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.entries[object as usize].clone()
    }

    async fn fetch(&self, object: u32, number: u32) -> Result<Bytes, RecoverError> {
        let entry = self.entry(object);
        let _permit = self.fetches.acquire().await.expect("the semaphore is never closed");
        let layout = entry.layout.get_or_try_init(|| self.read_layout(&entry.place)).await?;
        let damage = |what: String| RecoverError::Damage { path: entry.place.path(), what };
        let info = layout.frame(number).ok_or_else(|| damage(format!("it has no frame {number}")))?;
        let start = layout.data_start.checked_add(info.offset);
        let end = start.and_then(|start| start.checked_add(u64::from(info.sealed_bytes)));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(damage(format!("frame {number} lies nowhere")));
        };
        let sealed = self.sealed(&entry, start..end).await?;
        let plain = open_frame(&self.keys, entry.place.id, info, &sealed)
            .map_err(|source| RecoverError::damaged(entry.place.path(), source))?;
        Ok(Bytes::from(plain))
    }

    async fn sealed(&self, entry: &Entry, range: std::ops::Range<u64>) -> Result<Bytes, RecoverError> {
        let whole = entry.whole.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(whole) = whole {
            let len = whole.len() as u64;
            let cut = range.start.min(len) as usize..range.end.min(len) as usize;
            return Ok(whole.slice(cut));
        }
        let path = entry.place.path();
        self.store.get_range(&path, range).await?.ok_or_else(|| segments::missing(path, "records refer to its data"))
    }

    /// Header and table of an object that was only named so far.
    async fn read_layout(&self, place: &ObjectPlace) -> Result<Layout, RecoverError> {
        let path = place.path();
        let refused = |source| RecoverError::damaged(path.clone(), source);
        let gone = || segments::missing(path.clone(), "records refer to its data");
        let head = self.store.get_range(&path, 0..HEADER_BYTES as u64).await?.ok_or_else(gone)?;
        let header = ObjectHeader::parse(&self.keys, &head).map_err(refused)?;
        let belongs = Place {
            machine: Some(place.machine.clone()),
            log: Some(LogKind::Stream),
            epoch: place.position.epoch,
            slot: place.position.slot,
        };
        header.expect_place(ObjectKind::Segment, &belongs).map_err(refused)?;
        if header.id != place.id {
            let what = "it is not the segment that records refer to".to_owned();
            return Err(RecoverError::Damage { path: path.clone(), what });
        }
        let data_start = segments::data_start(&header);
        let sealed = self.store.get_range(&path, HEADER_BYTES as u64..data_start).await?.ok_or_else(gone)?;
        let table = open_table(&self.keys, &header, &sealed).map_err(refused)?;
        Ok(Layout { data_start, frames: table.frames })
    }
}
