//! Frames on demand: a ranged GET, opened, and kept in a small cache for as long as it is in use.
//!
//! Concurrent readers of one frame fetch it once. The objects are named by small numbers, so that maps stay small; each
//! is authenticated by its header when its first frame is wanted and its table is not known. What is known of tables is
//! bounded too: a disk may have its bytes in more segments than fit in memory. Where the manifest names a pack that stands for a
//! segment, the frames are read from the pack.

use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use format::keys::Keys;
use format::map::{Tag, tag};
use format::object::{HEADER_BYTES, LogKind, ObjectHeader, ObjectId, ObjectKind, Place};
use format::pack::PackRef;
use format::segment::{FrameInfo, open_frame, open_table};
use model::MachineName;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use store::{LogPosition, Store};
use tokio::sync::Semaphore;

use super::RecoverError;
use crate::packs::Packs;
use crate::segments;

/// Opened frames kept, in plain bytes.
const FRAME_CACHE_BYTES: u64 = 64 << 20;

/// About how many frames that is; a hint for the cache.
const FRAME_CACHE_ITEMS: usize = 1024;

/// Layouts kept, in bytes of memory.
const LAYOUT_CACHE_BYTES: u64 = 32 << 20;

/// About how many layouts that is.
const LAYOUT_CACHE_ITEMS: usize = 4096;

/// Bytes read of an object whose table is wanted: most tables lie within them.
const LAYOUT_READ_BYTES: u64 = 32 << 10;

/// Parts of a cache with a lock of their own. Fixed, as is the hash: so what is dropped first, and with it what is
/// fetched again, is the same in every run.
const FRAME_CACHE_SHARDS: usize = 8;

/// Fetches from the store in flight at once.
const FETCHES_MAX: usize = 16;

/// Where a segment lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectPlace {
    /// Whose stream.
    pub machine: MachineName,
    /// Where in it.
    pub position: LogPosition,
    /// Of its id.
    pub tag: Tag,
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
    /// The object.
    pub id: ObjectId,
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

/// Where the frames of a segment lie, and the path of the pack that they lie in; none when it is the segment itself.
struct Located {
    layout: Layout,
    pack: Option<String>,
}

struct Entry {
    place: ObjectPlace,
    whole: Mutex<Option<Bytes>>,
}

#[derive(Default)]
struct Entries {
    by_place: BTreeMap<ObjectPlace, u32>,
    entries: Vec<Arc<Entry>>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(u32, u32), Bytes> for ByBytes {
    fn weight(&self, _key: &(u32, u32), frame: &Bytes) -> u64 {
        (frame.len() as u64).max(1)
    }
}

impl Weighter<u32, Arc<Located>> for ByBytes {
    fn weight(&self, _key: &u32, located: &Arc<Located>) -> u64 {
        (size_of::<Located>() + located.layout.frames.len() * size_of::<FrameInfo>()) as u64
    }
}

/// Fetches, opens and caches frames.
pub(crate) struct Frames {
    store: Store,
    keys: Arc<Keys>,
    packs: Option<Packs>,
    entries: Mutex<Entries>,
    layouts: Cache<u32, Arc<Located>, ByBytes, BuildHasherDefault<DefaultHasher>>,
    cache: Cache<(u32, u32), Bytes, ByBytes, BuildHasherDefault<DefaultHasher>>,
    fetches: Semaphore,
}

impl Frames {
    /// Nothing known yet.
    pub fn new(store: Store, keys: Arc<Keys>) -> Self {
        let frames = options(FRAME_CACHE_BYTES, FRAME_CACHE_ITEMS);
        let layouts = options(LAYOUT_CACHE_BYTES, LAYOUT_CACHE_ITEMS);
        Self {
            store,
            keys,
            packs: None,
            entries: Mutex::default(),
            layouts: Cache::with_options(layouts, ByBytes, Default::default(), DefaultLifecycle::default()),
            cache: Cache::with_options(frames, ByBytes, Default::default(), DefaultLifecycle::default()),
            fetches: Semaphore::new(FETCHES_MAX),
        }
    }

    /// Reads what lies before a horizon from the packs that a manifest of the machine names, where it names some.
    pub fn with_packs(mut self, machine: MachineName, named: Arc<[PackRef]>) -> Self {
        self.packs = Some(Packs::new(self.store.clone(), self.keys.clone(), machine, named));
        self
    }

    /// The number of an object; the same for the same object.
    pub fn intern(&self, place: ObjectPlace) -> u32 {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = entries.by_place.get(&place) {
            return *number;
        }
        let number = u32::try_from(entries.entries.len()).expect("a history is bounded far below 2^32 segments");
        entries.by_place.insert(place.clone(), number);
        entries.entries.push(Arc::new(Entry { place, whole: Mutex::default() }));
        number
    }

    /// Tells where the frames of an object lie, so that they need not be looked up.
    pub fn set_layout(&self, object: u32, layout: Layout) {
        self.layouts.insert(object, Arc::new(Located { layout, pack: None }));
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
        let located = self.layouts.get_or_insert_async(&object, self.locate(&entry.place)).await?;
        let layout = &located.layout;
        let path = located.pack.clone().unwrap_or_else(|| entry.place.path());
        let damage = |what: String| RecoverError::Damage { path: path.clone(), what };
        let info = match (layout.frame(number), &located.pack) {
            (Some(info), _) => info,
            // What no point of the manifest reads is not in it.
            (None, Some(_)) => return Err(segments::missing(path, "an older manifest needs more of it than it holds")),
            (None, None) => return Err(damage(format!("it has no frame {number}"))),
        };
        let start = layout.data_start.checked_add(info.offset);
        let end = start.and_then(|start| start.checked_add(u64::from(info.sealed_bytes)));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(damage(format!("frame {number} lies nowhere")));
        };
        let sealed = self.sealed(&entry, &path, start..end).await?;
        let plain =
            open_frame(&self.keys, layout.id, info, &sealed).map_err(|source| RecoverError::damaged(path, source))?;
        Ok(Bytes::from(plain))
    }

    async fn sealed(&self, entry: &Entry, path: &str, range: std::ops::Range<u64>) -> Result<Bytes, RecoverError> {
        let whole = entry.whole.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(whole) = whole {
            let len = whole.len() as u64;
            let cut = range.start.min(len) as usize..range.end.min(len) as usize;
            return Ok(whole.slice(cut));
        }
        let missing = || segments::missing(path.to_owned(), "records refer to its data");
        self.store.get_range(path, range).await?.ok_or_else(missing)
    }

    /// Where the frames of an object lie that was only named so far.
    async fn locate(&self, place: &ObjectPlace) -> Result<Arc<Located>, RecoverError> {
        let covering = |packs| Packs::covering(packs, &place.machine, place.position);
        let Some((packs, named)) = self.packs.as_ref().and_then(|packs| Some((packs, covering(packs)?))) else {
            let layout = self.read_layout(place).await?;
            return Ok(Arc::new(Located { layout, pack: None }));
        };
        let open = packs.open(named).await?;
        let because = "an older manifest needs a segment of which it holds nothing";
        let held = open.index.segment(place.position.epoch, place.position.slot);
        let held = held.ok_or_else(|| segments::missing(open.path.clone(), because))?;
        if tag(&held.id) != place.tag {
            let what = "it holds another segment than the one that maps name".to_owned();
            return Err(RecoverError::Damage { path: open.path.clone(), what });
        }
        let (data_start, frames) = (segments::data_start(&open.header), held.frames.clone());
        let layout = Layout { id: held.id, data_start, frames };
        Ok(Arc::new(Located { layout, pack: Some(open.path.clone()) }))
    }

    /// Header and table of a segment.
    async fn read_layout(&self, place: &ObjectPlace) -> Result<Layout, RecoverError> {
        let path = place.path();
        let refused = |source| RecoverError::damaged(path.clone(), source);
        let gone = || segments::missing(path.clone(), "records refer to its data");
        let head = self.store.get_range(&path, 0..LAYOUT_READ_BYTES).await?.ok_or_else(gone)?;
        let header = ObjectHeader::parse(&self.keys, &head).map_err(refused)?;
        let belongs = Place {
            machine: Some(place.machine.clone()),
            log: Some(LogKind::Stream),
            epoch: place.position.epoch,
            slot: place.position.slot,
        };
        header.expect_place(ObjectKind::Segment, &belongs).map_err(refused)?;
        if tag(&header.id) != place.tag {
            let what = "it is not the segment that records refer to".to_owned();
            return Err(RecoverError::Damage { path: path.clone(), what });
        }
        let data_start = segments::data_start(&header);
        let sealed = match head.get(HEADER_BYTES..usize::try_from(data_start).unwrap_or(usize::MAX)) {
            Some(_) => head.slice(HEADER_BYTES..data_start as usize),
            None => self.store.get_range(&path, HEADER_BYTES as u64..data_start).await?.ok_or_else(gone)?,
        };
        let table = open_table(&self.keys, &header, &sealed).map_err(refused)?;
        Ok(Layout { id: header.id, data_start, frames: table.frames })
    }
}

fn options(bytes: u64, items: usize) -> quick_cache::Options {
    let mut options = OptionsBuilder::new();
    options.shards(FRAME_CACHE_SHARDS).estimated_items_capacity(items).weight_capacity(bytes);
    options.build().expect("both capacities are given")
}
