//! What the disks of a point hold, as sums (see [`format::state`]), reckoned from the store: from nothing, or from an earlier
//! point and what was written between the two.

use std::collections::BTreeMap;

use format::keys::Keys;
use format::manifest::{DiskState, Point};
use format::state::StateSum;
use model::{DiskName, Extent, ExtentSet, RecordBody, SECTOR_BYTES, Seq};

use super::map::Source;
use super::{History, PointReader, RecoverError, Resolved};

/// Bytes of a disk read at once.
const PART_BYTES: u64 = 4 << 20;

/// Bytes of a disk whose data is looked for at once.
const WINDOW_BYTES: u64 = 1 << 30;

/// Ranges of disks, by their id in records.
type Changed = BTreeMap<model::DiskId, ExtentSet>;

/// A point of which is known what its disks hold.
pub(crate) struct Reckoned {
    reader: PointReader,
    sums: BTreeMap<DiskName, StateSum>,
    read_bytes: u64,
}

impl Reckoned {
    fn seq(&self) -> Seq {
        self.reader.at().position.seq
    }

    /// Bytes that were read for it.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// As a manifest states it.
    pub fn states(&self) -> Vec<DiskState> {
        self.sums.iter().map(|(disk, sum)| DiskState { disk: disk.clone(), sum: *sum }).collect()
    }
}

impl History {
    /// A point whose disks are known to hold what it states. Errors: as of [`History::open`].
    pub(crate) async fn known(&self, point: &Point) -> Result<Reckoned, RecoverError> {
        let sums = point.states.iter().map(|state| (state.disk.clone(), state.sum)).collect();
        Ok(Reckoned { reader: self.open(&resolved(point)).await?, sums, read_bytes: 0 })
    }

    /// Reckons what the disks of a point hold; from an earlier point, only what was written since is read, as it was and as
    /// it is. Errors: as of [`History::open`], and whatever stops the reading.
    pub(crate) async fn reckon(
        &self,
        keys: &Keys,
        point: &Point,
        earlier: Option<&Reckoned>,
    ) -> Result<Reckoned, RecoverError> {
        let reader = self.open(&resolved(point)).await?;
        let changed = match earlier {
            None => None,
            // The records that led from the one to the other are gone.
            Some(earlier) if earlier.seq() < self.horizon_seq() => Some(differing(&earlier.reader, &reader).await?),
            Some(earlier) => Some(self.changed(earlier.seq(), point.position.seq).await?),
        };
        let (mut sums, mut read_bytes) = (BTreeMap::new(), 0);
        for disk in reader.disks() {
            let ranges = match &changed {
                Some(changed) => changed.get(&disk.id).cloned().unwrap_or_default(),
                None => everything(),
            };
            let before = earlier.and_then(|earlier| Some((earlier.sums.get(&disk.name)?, &earlier.reader)));
            let mut sum = before.map(|(sum, _)| *sum).unwrap_or_default();
            if let Some((_, reader)) = before {
                read_bytes += fold(reader, &disk.name, &ranges, |offset, bytes| sum.take(keys, offset, bytes)).await?;
            }
            read_bytes += fold(&reader, &disk.name, &ranges, |offset, bytes| sum.add(keys, offset, bytes)).await?;
            sums.insert(disk.name, sum);
        }
        Ok(Reckoned { reader, sums, read_bytes })
    }

    /// What the records behind `from` up to `to` may have changed. A disk that came, went or changed its size has changed all
    /// over.
    async fn changed(&self, from: Seq, to: Seq) -> Result<Changed, RecoverError> {
        let (mut at, mut changed) = (from.next(), Changed::new());
        while at <= to {
            let records = self.records_of(at).await?;
            let within = |seq: Seq| at <= seq && seq <= to;
            let all = records.rows.iter().flat_map(|rows| &rows.records);
            for record in all.filter(|record| within(record.seq)) {
                if let RecordBody::Disk { disk, .. } = &record.body {
                    changed.insert(*disk, everything());
                }
                if let Some((disk, extent)) = record.body.extent() {
                    changed.entry(disk).or_default().insert(extent);
                }
            }
            let next = records.head().position.seq.next();
            if next <= at {
                return Err(RecoverError::Foreign { seq: at });
            }
            at = next;
        }
        Ok(changed)
    }
}

fn resolved(point: &Point) -> Resolved {
    Resolved { position: point.position, time: point.time, digest: point.digest }
}

fn everything() -> ExtentSet {
    let all = Extent::new(0, u64::MAX / SECTOR_BYTES * SECTOR_BYTES).expect("whole sectors");
    [all].into_iter().collect()
}

/// The ranges that two points of one history read from different places. A disk that is in one of them only, or has another size
/// there, differs all over.
async fn differing(before: &PointReader, after: &PointReader) -> Result<Changed, RecoverError> {
    let (mut changed, earlier) = (Changed::new(), before.disks());
    for info in after.disks() {
        let same =
            earlier.iter().any(|other| other.name == info.name && other.id == info.id && other.size == info.size);
        let Ok(whole) = Extent::new(0, info.size) else { continue };
        if !same {
            changed.insert(info.id, everything());
            continue;
        }
        let (before, after) = (before.disk(&info.name)?, after.disk(&info.name)?);
        let mut ranges = ExtentSet::new();
        for window in whole.split_at_multiples(WINDOW_BYTES) {
            differing_runs(window, &before.runs_in(window).await?, &after.runs_in(window).await?, &mut ranges);
        }
        // One of them may have been opened again while it was read: then the numbers of objects are not the same.
        changed.insert(info.id, if before.numbers_as(&after) { ranges } else { everything() });
    }
    Ok(changed)
}

/// Adds where two lists of runs differ.
fn differing_runs(window: Extent, before: &[(Extent, Source)], after: &[(Extent, Source)], ranges: &mut ExtentSet) {
    ranges.insert(window);
    let mut left = before.iter().peekable();
    for (extent, source) in after {
        while left.next_if(|(other, _)| other.end() <= extent.offset()).is_some() {}
        for (other, from) in left.clone().take_while(|(other, _)| other.offset() < extent.end()) {
            if let Some(both) = extent.intersection(other)
                && place_at(*source, both.offset() - extent.offset()) == place_at(*from, both.offset() - other.offset())
            {
                ranges.remove(both);
            }
        }
    }
    // What was never written in either reads as zeros in both.
    let mut unwritten = ExtentSet::new();
    unwritten.insert(window);
    before.iter().chain(after).for_each(|(extent, _)| unwritten.remove(*extent));
    unwritten.iter().for_each(|extent| ranges.remove(extent));
}

/// Where a byte of a run comes from: object, frame and offset there; none for zeros.
fn place_at(source: Source, by: u64) -> Option<(u32, u32, u64)> {
    match source {
        Source::Zero => None,
        Source::Data { place, frame, offset } => Some((place, frame, u64::from(offset) + by)),
    }
}

/// Gives everything that a disk holds in the ranges but zeros. Returns how many bytes that were.
async fn fold(
    reader: &PointReader,
    disk: &DiskName,
    ranges: &ExtentSet,
    mut take: impl FnMut(u64, &[u8]),
) -> Result<u64, RecoverError> {
    let (disk, mut read_bytes) = (reader.disk(disk)?, 0);
    let Ok(whole) = Extent::new(0, disk.size()) else { return Ok(0) };
    for range in ranges.iter().filter_map(|range| range.intersection(&whole)) {
        for window in range.split_at_multiples(WINDOW_BYTES) {
            for data in disk.data_extents_in(window).await? {
                for part in data.split_at_multiples(PART_BYTES) {
                    for (offset, bytes) in disk.pieces(part).await? {
                        take(offset, &bytes);
                        read_bytes += bytes.len() as u64;
                    }
                }
            }
        }
    }
    Ok(read_bytes)
}
