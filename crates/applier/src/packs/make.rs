//! Making packs: what is needed is counted, copied and put.
//!
//! A step looks at a bounded number of objects and puts a bounded number of bytes, so that promotion waits for little; the rest comes
//! with the next one. One pack at a time is held in memory. A frame is opened before it is copied: a pack must not bury a damage
//! that the segment's own digest would have shown, nor the sound copy that somebody may still have of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use format::keys::Keys;
use format::map::{Owner, SegmentName, tag};
use format::object::{HEADER_BYTES, LogKind, ObjectHeader, ObjectId, ObjectKind, Place};
use format::pack::{PackName, PackRef, PackWriter, covering};
use format::segment::{FrameInfo, FrameOpener, open_table};
use futures::StreamExt;
use model::MachineName;
use probe::{Rule, Rules};
use store::{Created, LogPosition, Store, StoreError};

use super::choose::{Unit, groups};
use super::read::{OpenPack, Packs, pack_path, pack_place};
use crate::needed::{FrameSet, Marks};
use crate::recover::{ErrorKind, RecoverError};
use crate::segments;

/// Objects whose needed bytes are counted in one step.
const STEP_COUNTED: usize = 1024;

/// Packs put in one step, and full packs' worth of bytes.
const STEP_PACKS: usize = 16;
const STEP_FULL_PACKS: u64 = 4;

/// Tables read at once.
const READS_MAX: usize = 16;

/// First read of a segment whose table is wanted: holds most tables.
const TABLE_READ_BYTES: u64 = 32 << 10;

/// Bytes that are read though nobody wants them, rather than in two reads.
const GAP_BYTES: u64 = 128 << 10;

/// Bytes read at once.
const READ_BYTES_MAX: u64 = 8 << 20;

/// What a step has done, for the next commit to say.
#[derive(Debug, Default)]
pub(crate) struct Repacked {
    /// Packs put.
    pub packs: Vec<PackRef>,
    /// Packs that are needed no longer.
    pub unpacked: Vec<PackName>,
    /// Objects for which the new packs stand.
    pub objects: u64,
    /// Whether there is more to do.
    pub more: bool,
    /// What of it could not be read: it stays as it is.
    pub trouble: Option<RecoverError>,
}

impl Repacked {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.unpacked.is_empty()
    }
}

/// Makes packs under a manifest epoch.
#[derive(Default)]
pub(crate) struct Packing {
    /// The manifest epoch, and the number of the last pack put under it.
    last: (u64, u64),
    /// Of objects counted before, how many frames were needed and how many bytes these have. Needed only becomes less: as long as
    /// the number is the same, so are the frames. A pack has other bytes than what it stands for, so each object counts for itself.
    counted: BTreeMap<Object, (u64, u64)>,
    /// Objects of which a needed frame did not open, under this manifest epoch: they stay as they are, and their neighbours do not
    /// stay with them.
    damaged: BTreeSet<Object>,
}

/// The first segment for which an object stands, and its name if it is a pack.
type Object = (LogPosition, Option<PackName>);

/// Frames of one segment with their sealed bytes.
type Copied = (SegmentName, ObjectId, Vec<(FrameInfo, Bytes)>);

/// What a step goes by.
pub(crate) struct Sources<'a> {
    pub store: &'a Store,
    pub keys: &'a Arc<Keys>,
    pub machine: &'a MachineName,
    /// Packs that the acknowledged manifest names.
    pub named: &'a Arc<[PackRef]>,
    /// What it needs.
    pub marks: &'a Marks,
    /// Needed segments that are segments still, with their bytes.
    pub kept: &'a BTreeMap<LogPosition, u64>,
    /// Bytes of a full pack; 0 for none.
    pub pack_bytes: u64,
    pub rules: Rules,
}

impl Packing {
    /// Puts packs under the owner's `epoch` where that is worth it. Errors: the store; what is damaged is in the result.
    pub async fn step(&mut self, epoch: u64, from: &Sources<'_>) -> Result<Repacked, RecoverError> {
        if self.last.0 != epoch {
            self.last = (epoch, 0);
            self.damaged.clear();
        }
        let reader = Packs::new(from.store.clone(), from.keys.clone(), from.machine.clone(), from.named.clone());
        let mut repacked = Repacked::default();
        let needless = |pack: &&PackRef| from.frames_of(&unit_of(pack)).next().is_none();
        repacked.unpacked.extend(from.named.iter().filter(needless).map(|pack| pack.name));
        if from.pack_bytes == 0 {
            return Ok(repacked);
        }
        let stretches = self.count(from, &reader, &mut repacked).await?;
        let mut bytes = 0;
        for units in stretches {
            for group in groups(&units, from.pack_bytes) {
                if repacked.packs.len() == STEP_PACKS || bytes >= from.pack_bytes.saturating_mul(STEP_FULL_PACKS) {
                    repacked.more = true;
                    return Ok(repacked);
                }
                let group = &units[group];
                let put = self.put(from, &reader, group).await;
                let Some(put) = hear(&mut repacked.trouble, put)? else {
                    repacked.more = true;
                    continue;
                };
                let Some(pack) = put else { continue };
                bytes += pack.bytes;
                repacked.objects += group.len() as u64;
                repacked.unpacked.extend(group.iter().filter_map(|unit| unit.pack.as_ref().map(|pack| pack.name)));
                repacked.packs.push(pack);
            }
        }
        Ok(repacked)
    }

    /// Every object of which something is needed, in order, in stretches without a damaged or a shared segment in between. A later
    /// epoch may refer to any frame of what is shared, so no pack may stand for it.
    async fn count(
        &mut self,
        from: &Sources<'_>,
        reader: &Packs,
        repacked: &mut Repacked,
    ) -> Result<Vec<Vec<Unit>>, RecoverError> {
        let mut units: Vec<_> =
            from.named.iter().map(unit_of).filter(|unit| from.frames_of(unit).next().is_some()).collect();
        let packable =
            |at: &LogPosition| covering(from.named, at.epoch, at.slot).is_none() && !from.marks.needed.is_shared(at);
        let segments = from.kept.iter().filter(|(at, _)| packable(at));
        units.extend(segments.map(|(at, bytes)| Unit { first: *at, last: *at, pack: None, bytes: *bytes, needed: 0 }));
        units.sort_unstable_by_key(|unit| unit.first);
        let frames = |unit: &Unit| from.frames_of(unit).map(|(_, frames)| frames.count()).sum::<u64>();
        let mut known = BTreeMap::new();
        let mut unknown = Vec::new();
        for (index, unit) in units.iter().enumerate() {
            let (object, count) = (object_of(unit), frames(unit));
            if self.damaged.contains(&object) {
                continue;
            }
            match self.counted.get(&object).filter(|(before, _)| *before == count) {
                Some(counted) => _ = known.insert(object, *counted),
                None => unknown.push((index, object, count)),
            }
        }
        repacked.more |= unknown.len() > STEP_COUNTED;
        // In order, so that what is not looked at now lies behind everything that is.
        let end = unknown.get(STEP_COUNTED).map_or(units.len(), |(index, ..)| *index);
        unknown.truncate(STEP_COUNTED);
        let units_of = &units;
        let mut reads =
            futures::stream::iter(unknown)
                .map(|(index, object, count)| async move {
                    (object, count, from.needed_bytes(reader, &units_of[index]).await)
                })
                .buffered(READS_MAX);
        while let Some((object, count, bytes)) = reads.next().await {
            if let Some(bytes) = hear(&mut repacked.trouble, bytes)? {
                known.insert(object, (count, bytes));
            }
        }
        drop(reads);
        let mut stretches: Vec<Vec<Unit>> = vec![Vec::new()];
        for unit in units.drain(..end) {
            let left = stretches.last().and_then(|stretch| stretch.last());
            if left.is_some_and(|left| from.marks.needed.shares_between(&left.last, &unit.first)) {
                stretches.push(Vec::new());
            }
            match known.get(&object_of(&unit)) {
                Some((_, needed)) => {
                    stretches.last_mut().expect("never empty").push(Unit { needed: *needed, ..unit });
                }
                None => stretches.push(Vec::new()),
            }
        }
        self.counted = known;
        Ok(stretches)
    }

    /// Copies what is needed of these objects into one pack and puts it. None when nothing is.
    async fn put(
        &mut self,
        from: &Sources<'_>,
        reader: &Packs,
        group: &[Unit],
    ) -> Result<Option<PackRef>, RecoverError> {
        let (mut writer, mut copied) = (PackWriter::default(), false);
        for unit in group {
            let found = from.copy(reader, unit).await;
            if found.as_ref().is_err_and(|error| error.kind() == ErrorKind::Damage) {
                self.damaged.insert(object_of(unit));
            }
            for (segment, id, frames) in found? {
                writer.add(segment.epoch, segment.slot, id, frames);
                copied = true;
            }
        }
        if !copied {
            return Ok(None);
        }
        self.last.1 += 1;
        let name = PackName { epoch: self.last.0, number: self.last.1 };
        let path = pack_path(from.machine, name);
        let sealed = writer.finish(from.keys, pack_place(from.machine, name));
        let sealed = sealed.map_err(|error| RecoverError::Damage { path: path.clone(), what: error.to_string() })?;
        let pack = sealed.reference();
        probe::failpoint!("applier-pack-put-before");
        let created = from.store.create(&path, sealed.parts).await?;
        probe::failpoint!("applier-pack-put");
        if created == Created::Other {
            return Err(StoreError::Unclear { path }.into());
        }
        if !from.rules.hold(Rule::PackNamedFirst) {
            // Careless: their bytes are safe in the pack, surely.
            for unit in group.iter().filter(|unit| unit.pack.is_none()) {
                from.store.delete(&segments::path(from.machine, LogKind::Stream, unit.first)).await?;
            }
        }
        let machine = from.machine.to_string();
        metrics::counter!("applier_packs_total", "machine" => machine.clone()).increment(1);
        metrics::counter!("applier_pack_bytes_total", "machine" => machine).increment(pack.bytes);
        Ok(Some(pack))
    }
}

/// Damage leaves things as they are, and the first one is remembered.
fn hear<T>(trouble: &mut Option<RecoverError>, done: Result<T, RecoverError>) -> Result<Option<T>, RecoverError> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind() == ErrorKind::Damage => {
            trouble.get_or_insert(error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn object_of(unit: &Unit) -> Object {
    (unit.first, unit.pack.as_ref().map(|pack| pack.name))
}

fn unit_of(pack: &PackRef) -> Unit {
    let at = |(epoch, slot)| LogPosition { epoch, slot };
    Unit { first: at(pack.first), last: at(pack.last), pack: Some(pack.clone()), bytes: pack.bytes, needed: 0 }
}

/// A segment's header and frames.
struct SegmentFrames {
    path: String,
    header: ObjectHeader,
    frames: Vec<FrameInfo>,
}

impl Sources<'_> {
    /// What is needed of the segments for which an object stands.
    fn frames_of(&self, unit: &Unit) -> impl Iterator<Item = (&SegmentName, &FrameSet)> {
        let name = |at: LogPosition, tag| SegmentName { owner: Owner::SELF, epoch: at.epoch, slot: at.slot, tag };
        self.marks.frames.range(name(unit.first, [0; 8])..=name(unit.last, [u8::MAX; 8]))
    }

    async fn needed_bytes(&self, reader: &Packs, unit: &Unit) -> Result<u64, RecoverError> {
        let sum = |frames: &[FrameInfo]| frames.iter().map(|frame| u64::from(frame.sealed_bytes)).sum::<u64>();
        let mut bytes = 0;
        let Some(pack) = &unit.pack else {
            for (segment, wanted) in self.frames_of(unit) {
                let found = self.segment(segment).await?;
                bytes += sum(&pick(&found.path, &found.frames, wanted)?);
            }
            return Ok(bytes);
        };
        let open = reader.open(pack).await?;
        for (segment, wanted) in self.frames_of(unit) {
            bytes += sum(&packed(&open, segment, wanted)?.1);
        }
        // With their share of header and index: else a pack of small frames would look sparse for ever.
        let all = open.index.segments.iter().map(|segment| sum(&segment.frames)).sum::<u64>().max(1);
        Ok((u128::from(pack.bytes) * u128::from(bytes) / u128::from(all)) as u64)
    }

    /// The needed frames of an object.
    async fn copy(&self, reader: &Packs, unit: &Unit) -> Result<Vec<Copied>, RecoverError> {
        let mut copied = Vec::new();
        for (segment, wanted) in self.frames_of(unit) {
            let (id, frames) = match &unit.pack {
                Some(pack) => {
                    let open = reader.open(pack).await?;
                    let (id, frames) = packed(&open, segment, wanted)?;
                    (id, self.read_frames(&open.path, &open.header, id, frames).await?)
                }
                None => {
                    let SegmentFrames { path, header, frames } = self.segment(segment).await?;
                    let frames = pick(&path, &frames, wanted)?;
                    (header.id, self.read_frames(&path, &header, header.id, frames).await?)
                }
            };
            copied.push((*segment, id, frames));
        }
        Ok(copied)
    }

    /// Header and table of a segment, authenticated, in its place, and the one that maps name.
    async fn segment(&self, name: &SegmentName) -> Result<SegmentFrames, RecoverError> {
        let at = LogPosition { epoch: name.epoch, slot: name.slot };
        let path = segments::path(self.machine, LogKind::Stream, at);
        let refused = |source| RecoverError::damaged(path.clone(), source);
        let gone = || segments::missing(path.clone(), "points read from it");
        let head = self.store.get_range(&path, 0..TABLE_READ_BYTES).await?.ok_or_else(gone)?;
        let header = ObjectHeader::parse(self.keys, &head).map_err(refused)?;
        let (machine, log) = (Some(self.machine.clone()), Some(LogKind::Stream));
        let place = Place { machine, log, epoch: name.epoch, slot: name.slot };
        header.expect_place(ObjectKind::Segment, &place).map_err(refused)?;
        if tag(&header.id) != name.tag {
            let what = "it is not the segment that maps name".to_owned();
            return Err(RecoverError::Damage { path, what });
        }
        let end = segments::data_start(&header);
        let start = HEADER_BYTES as u64;
        let sealed = match usize::try_from(end).ok().filter(|end| *end <= head.len()) {
            Some(end) => head.slice(HEADER_BYTES..end),
            None => self.store.get_range(&path, start..end).await?.ok_or_else(gone)?,
        };
        let table = open_table(self.keys, &header, &sealed).map_err(refused)?;
        Ok(SegmentFrames { frames: table.frames, path, header })
    }

    /// Frames of an object, each proven, with as few reads as pay.
    async fn read_frames(
        &self,
        path: &str,
        header: &ObjectHeader,
        id: ObjectId,
        frames: Vec<FrameInfo>,
    ) -> Result<Vec<(FrameInfo, Bytes)>, RecoverError> {
        let (opener, start) = (FrameOpener::new(self.keys, id), segments::data_start(header));
        let end = |frame: &FrameInfo| frame.offset + u64::from(frame.sealed_bytes);
        let mut read = Vec::with_capacity(frames.len());
        let mut left = frames.as_slice();
        while let Some(first) = left.first() {
            let near = |pair: &[FrameInfo]| {
                pair[1].offset - end(&pair[0]) <= GAP_BYTES && end(&pair[1]) - first.offset <= READ_BYTES_MAX
            };
            let count = 1 + left.windows(2).take_while(|pair| near(pair)).count();
            let (now, rest) = left.split_at(count);
            let range = start + first.offset..start + end(&now[count - 1]);
            let found = self.store.get_range(path, range).await?;
            let found = found.ok_or_else(|| segments::missing(path.to_owned(), "points read from it"))?;
            for frame in now {
                let at = (frame.offset - first.offset) as usize;
                let sealed = found.get(at..at + frame.sealed_bytes as usize).unwrap_or_default();
                opener.open(frame, sealed).map_err(|source| RecoverError::damaged(path.to_owned(), source))?;
                // A slice would hold what lies between, too.
                read.push((*frame, Bytes::copy_from_slice(sealed)));
            }
            left = rest;
        }
        Ok(read)
    }
}

/// The wanted ones of these frames, which ascend by number. Errors: one is not among them.
fn pick(path: &str, frames: &[FrameInfo], wanted: &FrameSet) -> Result<Vec<FrameInfo>, RecoverError> {
    let find = |number: u32| frames.binary_search_by_key(&number, |frame| frame.number).map(|at| frames[at]);
    let missing = |number| RecoverError::Damage { path: path.to_owned(), what: format!("it has no frame {number}") };
    wanted.iter().map(|number| find(number).map_err(|_| missing(number))).collect()
}

/// The same of what a pack holds of a segment, and the segment's id.
fn packed(
    open: &OpenPack,
    segment: &SegmentName,
    wanted: &FrameSet,
) -> Result<(ObjectId, Vec<FrameInfo>), RecoverError> {
    let held = open.index.segment(segment.epoch, segment.slot).filter(|held| tag(&held.id) == segment.tag);
    let held = held.ok_or_else(|| {
        let what = format!("it does not hold what is needed of epoch {} slot {}", segment.epoch, segment.slot);
        RecoverError::Damage { path: open.path.clone(), what }
    })?;
    Ok((held.id, pick(&open.path, &held.frames, wanted)?))
}
