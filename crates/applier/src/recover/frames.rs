//! Frames on demand: ranged GETs, opened, and kept in a small cache for as long as they are in use.
//!
//! Who wants many frames asks for them together ([`Frames::all`]): those that lie near one another in their object come in
//! one GET ([`stretches`]), several GETs at a time. Concurrent readers of one frame fetch it once: who is to fetch it holds its place in
//! the cache meanwhile. A reader of many never waits for another's while it holds places of its own, so no two wait for
//! each other.
//!
//! The objects are named by small numbers, so that maps stay small; each is authenticated by its header when its first frame is wanted and its table is not known. What is known of tables is
//! bounded too: a disk may have its bytes in more segments than fit in memory. Where the manifest names a pack that stands for a
//! segment, the frames are read from the pack.

use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use format::FormatError;
use format::keys::Keys;
use format::map::{Tag, tag};
use format::object::{HEADER_BYTES, LogKind, ObjectHeader, ObjectId, ObjectKind, Place};
use format::pack::PackRef;
use format::segment::{FrameInfo, FrameOpener, open_table};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use model::MachineName;
use quick_cache::sync::{Cache, DefaultLifecycle, GuardResult, PlaceholderGuard};
use quick_cache::{OptionsBuilder, Weighter};
use store::{LogPosition, Store};
use tokio::sync::Semaphore;

use super::{RecoverError, Sealed, Source, plain};
use crate::packs::Packs;
use crate::segments;
use crate::stages::{Stage, Stages};

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

/// Fetches in flight at once.
const FETCHES_MAX: usize = 16;

/// Of these at most so many for one reader.
const READ_FETCHES_MAX: usize = 8;

/// Largest gap between two frames that are fetched by one GET, in bytes: it costs less than a second GET.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// Most bytes of one GET for frames; a frame that is larger is fetched alone.
const GET_BYTES_MAX: u64 = 4 << 20;

/// So many zeros at its start mean that a frame is not in the cache.
const HOLE_BYTES: usize = 32;

/// Frames opened before others may go on.
const FRAMES_A_TURN: usize = 8;

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

    /// Where a frame lies in the object.
    fn range(&self, frame: &FrameInfo) -> Option<Range<u64>> {
        let start = self.data_start.checked_add(frame.offset)?;
        Some(start..start.checked_add(u64::from(frame.sealed_bytes))?)
    }
}

/// Where the frames of a segment lie.
struct Located {
    layout: Layout,
    /// Path of the pack that they lie in; none when it is the segment itself.
    pack: Option<String>,
    /// All of a segment that is so small that the read of its table brought it.
    whole: Option<Bytes>,
}

/// A frame's place in the cache: who holds it fetches the frame, and whoever else wants it waits.
type FramePlace<'a> = PlaceholderGuard<
    'a,
    (u32, u32),
    Bytes,
    ByBytes,
    BuildHasherDefault<DefaultHasher>,
    DefaultLifecycle<(u32, u32), Bytes>,
>;

/// Places of frames of one object, by number.
type Places<'a> = BTreeMap<u32, FramePlace<'a>>;

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
        (plain::held_bytes(frame.len()) as u64).max(1)
    }
}

impl Weighter<u32, Arc<Located>> for ByBytes {
    fn weight(&self, _key: &u32, located: &Arc<Located>) -> u64 {
        let whole = located.whole.as_ref().map_or(0, Bytes::len);
        (size_of::<Located>() + located.layout.frames.len() * size_of::<FrameInfo>() + whole) as u64
    }
}

/// Fetches, opens and caches frames.
pub(crate) struct Frames {
    sealed: Sealed,
    keys: Arc<Keys>,
    packs: Option<Packs>,
    entries: Mutex<Entries>,
    layouts: Cache<u32, Arc<Located>, ByBytes, BuildHasherDefault<DefaultHasher>>,
    cache: Cache<(u32, u32), Bytes, ByBytes, BuildHasherDefault<DefaultHasher>>,
    fetches: Semaphore,
    stages: Arc<Stages>,
}

impl Frames {
    /// Nothing known yet; reads the store.
    pub fn new(store: Store, keys: Arc<Keys>) -> Self {
        Self::through(Sealed::new(store, None), keys)
    }

    /// Nothing known yet; reads through this.
    pub fn through(sealed: Sealed, keys: Arc<Keys>) -> Self {
        let frames = options(FRAME_CACHE_BYTES, FRAME_CACHE_ITEMS);
        let layouts = options(LAYOUT_CACHE_BYTES, LAYOUT_CACHE_ITEMS);
        Self {
            sealed,
            keys,
            packs: None,
            entries: Mutex::default(),
            layouts: Cache::with_options(layouts, ByBytes, Default::default(), DefaultLifecycle::default()),
            cache: Cache::with_options(frames, ByBytes, Default::default(), DefaultLifecycle::default()),
            fetches: Semaphore::new(FETCHES_MAX),
            stages: Arc::default(),
        }
    }

    /// The same, and these stages count what is fetched and opened.
    pub fn with_stages(self, stages: Arc<Stages>) -> Self {
        Self { stages, ..self }
    }

    /// Where writes of what was brought are counted.
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// Reads what lies before a horizon from the packs that a manifest of the machine names, where it names some.
    pub fn with_packs(mut self, machine: MachineName, named: Arc<[PackRef]>) -> Self {
        self.packs = Some(Packs::new(self.sealed.store().clone(), self.keys.clone(), machine, named));
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
        self.layouts.insert(object, Arc::new(Located { layout, pack: None, whole: None }));
    }

    /// Serves the frames of an object from these bytes of the whole object.
    pub fn set_whole(&self, object: u32, whole: Bytes) {
        *self.entry(object).whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(whole);
    }

    /// The plain bytes of a frame.
    pub async fn frame(&self, object: u32, number: u32) -> Result<Bytes, RecoverError> {
        match self.cache.get_value_or_guard_async(&(object, number)).await {
            Ok(plain) => Ok(plain),
            Err(place) => {
                let mut brought = self.bring(object, BTreeMap::from([(number, place)])).await?;
                Ok(brought.pop().expect("what is asked for is brought, or an error says why not").1)
            }
        }
    }

    /// The plain bytes of all frames that these sources name. The caller bounds how many: all are held at once.
    pub async fn all(
        &self,
        sources: impl IntoIterator<Item = Source>,
    ) -> Result<BTreeMap<(u32, u32), Bytes>, RecoverError> {
        let (mut found, mut ours, mut others) = (BTreeMap::new(), BTreeMap::<u32, Places>::new(), Vec::new());
        for source in sources {
            let Source::Data { place: object, frame: number, .. } = source else { continue };
            if found.contains_key(&(object, number)) || ours.get(&object).is_some_and(|ours| ours.contains_key(&number))
            {
                continue;
            }
            match self.cache.get_value_or_guard(&(object, number), Some(Duration::ZERO)) {
                GuardResult::Value(plain) => _ = found.insert((object, number), plain),
                GuardResult::Guard(place) => _ = ours.entry(object).or_default().insert(number, place),
                GuardResult::Timeout => others.push((object, number)),
            }
        }
        let bring =
            |(object, places)| async move { Ok::<_, RecoverError>((object, self.bring(object, places).await?)) };
        let bringing: Vec<BoxFuture<'_, _>> = ours.into_iter().map(|of| bring(of).boxed()).collect();
        let mut brought = futures::stream::iter(bringing).buffered(READ_FETCHES_MAX);
        while let Some((object, frames)) = brought.try_next().await? {
            found.extend(frames.into_iter().map(|(number, plain)| ((object, number), plain)));
        }
        for (object, number) in others {
            found.insert((object, number), self.frame(object, number).await?);
        }
        Ok(found)
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

    /// Brings frames of an object into their places, and returns them.
    async fn bring(&self, object: u32, mut places: Places<'_>) -> Result<Vec<(u32, Bytes)>, RecoverError> {
        let entry = self.entry(object);
        let located = self.layouts.get_or_insert_async(&object, self.locate(&entry.place)).await?;
        let layout = &located.layout;
        let path = located.pack.clone().unwrap_or_else(|| entry.place.path());
        let damage = |what: String| RecoverError::Damage { path: path.clone(), what };
        let mut wanted = Vec::with_capacity(places.len());
        for number in places.keys() {
            let frame = match (layout.frame(*number), &located.pack) {
                (Some(frame), _) => frame,
                // What no point of the manifest reads is not in it.
                (None, Some(_)) => {
                    return Err(segments::missing(path, "an older manifest needs more of it than it holds"));
                }
                (None, None) => return Err(damage(format!("it has no frame {number}"))),
            };
            let range = layout.range(frame).ok_or_else(|| damage(format!("frame {number} lies nowhere")))?;
            wanted.push(Wanted { frame: *frame, range });
        }
        let told = entry.whole.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let whole = told.or_else(|| located.whole.clone());
        let mut opened = futures::stream::iter(stretches(wanted))
            .map(|stretch| self.open_stretch(whole.clone(), &path, layout.id, stretch))
            .buffered(READ_FETCHES_MAX);
        let mut brought = Vec::with_capacity(places.len());
        while let Some(frames) = opened.try_next().await? {
            for (number, plain) in frames {
                if let Some(place) = places.remove(&number) {
                    // Refused when the place is gone from the cache: then it is just not kept.
                    let _ = place.insert(plain.clone());
                }
                brought.push((number, plain));
            }
        }
        Ok(brought)
    }

    /// The plain bytes of frames that lie near one another.
    async fn open_stretch(
        &self,
        whole: Option<Bytes>,
        path: &str,
        id: ObjectId,
        stretch: Vec<Wanted>,
    ) -> Result<Vec<(u32, Bytes)>, RecoverError> {
        let _permit = self.fetches.acquire().await.expect("the semaphore is never closed");
        let opener = FrameOpener::new(&self.keys, id);
        let (mut opened, mut missed) = (Vec::with_capacity(stretch.len()), stretch);
        if whole.is_none()
            && let Some(cached) = self.sealed.cached(path, range_of(&missed)).await
        {
            let (start, asked) = (range_of(&missed).start, std::mem::take(&mut missed));
            for wanted in asked {
                let sealed = cut(&cached, start, &wanted.range);
                // A hole in a sparse file: no need to try.
                let hole = sealed.iter().take(HOLE_BYTES).all(|byte| *byte == 0);
                match if hole { None } else { open(&opener, &wanted.frame, &sealed).ok() } {
                    Some(plain) => opened.push((wanted.frame.number, plain)),
                    None => missed.push(wanted),
                }
            }
            self.sealed.count(opened.len() as u64, missed.len() as u64);
        }
        for stretch in stretches(missed) {
            let range = range_of(&stretch);
            let bytes = match &whole {
                Some(whole) => cut(whole, 0, &range),
                None => {
                    let fetching = self.stages.at(Stage::Fetch);
                    let fetched = self.sealed.fetch(path, range.clone()).await?;
                    let fetched =
                        fetched.ok_or_else(|| segments::missing(path.to_owned(), "records refer to its data"))?;
                    fetching.moved(fetched.len() as u64);
                    fetched
                }
            };
            for (n, turn) in stretch.chunks(FRAMES_A_TURN).enumerate() {
                if n > 0 {
                    tokio::task::yield_now().await;
                }
                let opening = self.stages.at(Stage::Open);
                for wanted in turn {
                    let plain = open(&opener, &wanted.frame, &cut(&bytes, range.start, &wanted.range));
                    let plain = plain.map_err(|source| RecoverError::damaged(path.to_owned(), source))?;
                    opened.push((wanted.frame.number, plain));
                }
                opening.moved(turn.iter().map(|wanted| u64::from(wanted.frame.plain_bytes)).sum());
            }
            if whole.is_none() {
                self.sealed.keep(path, range.start, bytes);
            }
        }
        Ok(opened)
    }

    /// Where the frames of an object lie that was only named so far.
    async fn locate(&self, place: &ObjectPlace) -> Result<Arc<Located>, RecoverError> {
        let _fetching = self.stages.at(Stage::Fetch);
        let covering = |packs| Packs::covering(packs, &place.machine, place.position);
        let Some((packs, named)) = self.packs.as_ref().and_then(|packs| Some((packs, covering(packs)?))) else {
            return Ok(Arc::new(self.read_layout(place).await?));
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
        Ok(Arc::new(Located { layout, pack: Some(open.path.clone()), whole: None }))
    }

    /// Header and table of a segment, and all of it if it is small.
    async fn read_layout(&self, place: &ObjectPlace) -> Result<Located, RecoverError> {
        let _permit = self.fetches.acquire().await.expect("the semaphore is never closed");
        let path = place.path();
        let refused = |source| RecoverError::damaged(path.clone(), source);
        let gone = || segments::missing(path.clone(), "records refer to its data");
        let belongs = Place {
            machine: Some(place.machine.clone()),
            log: Some(LogKind::Stream),
            epoch: place.position.epoch,
            slot: place.position.slot,
        };
        let layout = |header: &ObjectHeader, sealed: &[u8]| {
            let table = open_table(&self.keys, header, sealed).map_err(refused)?;
            let data_start = segments::data_start(header);
            Ok::<_, RecoverError>(Layout { id: header.id, data_start, frames: table.frames })
        };
        // The header, and the layout if all of the table is there.
        let head = |head: &Bytes| {
            let header = ObjectHeader::parse(&self.keys, head).map_err(refused)?;
            header.expect_place(ObjectKind::Segment, &belongs).map_err(refused)?;
            if tag(&header.id) != place.tag {
                let what = "it is not the segment that records refer to".to_owned();
                return Err(RecoverError::Damage { path: path.clone(), what });
            }
            let end = usize::try_from(segments::data_start(&header)).unwrap_or(usize::MAX);
            let table = head.get(HEADER_BYTES..end).map(|sealed| layout(&header, sealed)).transpose()?;
            // What a cache on disk has may have a hole behind the table.
            let whole = header.check_body(head).is_ok().then(|| head.clone());
            Ok((header, table, whole))
        };
        let (header, table, whole) = self.sealed.open(&path, 0..LAYOUT_READ_BYTES, head).await?.ok_or_else(gone)?;
        let layout = match table {
            Some(layout) => layout,
            None => {
                let range = HEADER_BYTES as u64..segments::data_start(&header);
                self.sealed.open(&path, range, |sealed| layout(&header, sealed)).await?.ok_or_else(gone)?
            }
        };
        Ok(Located { layout, pack: None, whole })
    }
}

/// Opens a frame into memory that is used again.
fn open(opener: &FrameOpener, frame: &FrameInfo, sealed: &[u8]) -> Result<Bytes, FormatError> {
    opener.open_into(frame, sealed, plain::take(frame.plain_bytes as usize)).map(plain::share)
}

/// A frame that is asked for, and where it lies in its object.
struct Wanted {
    frame: FrameInfo,
    range: Range<u64>,
}

/// Puts together what one GET brings: frames in order, with small gaps between them, up to a bound.
fn stretches(mut wanted: Vec<Wanted>) -> Vec<Vec<Wanted>> {
    wanted.sort_unstable_by_key(|wanted| (wanted.range.start, wanted.frame.number));
    let mut stretches: Vec<Vec<Wanted>> = Vec::new();
    for wanted in wanted {
        match stretches.last_mut() {
            Some(stretch) if joins(&range_of(stretch), &wanted.range) => stretch.push(wanted),
            _ => stretches.push(vec![wanted]),
        }
    }
    stretches
}

fn joins(before: &Range<u64>, next: &Range<u64>) -> bool {
    let gap = next.start.saturating_sub(before.end);
    gap <= GAP_BYTES_MAX && next.end.max(before.end) - before.start <= GET_BYTES_MAX
}

/// From the first byte of a stretch to its last.
fn range_of(stretch: &[Wanted]) -> Range<u64> {
    let start = stretch.first().map_or(0, |first| first.range.start);
    start..stretch.iter().map(|wanted| wanted.range.end).max().unwrap_or(start)
}

/// A range of an object out of its bytes from `start` on, as far as they go.
fn cut(bytes: &Bytes, start: u64, range: &Range<u64>) -> Bytes {
    let at = |offset: u64| offset.saturating_sub(start).min(bytes.len() as u64) as usize;
    bytes.slice(at(range.start)..at(range.end).max(at(range.start)))
}

fn options(bytes: u64, items: usize) -> quick_cache::Options {
    let mut options = OptionsBuilder::new();
    options.shards(FRAME_CACHE_SHARDS).estimated_items_capacity(items).weight_capacity(bytes);
    options.build().expect("both capacities are given")
}
