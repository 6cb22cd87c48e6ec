//! What each range of a disk reads as: records laid over one another, the latest on top.
//!
//! Ranges that nothing was ever written to are not in the map and read as zeros. Zeros are kept as runs of their own
//! only on demand: a reader does not need them, a replica that lays a batch over older contents does.

use std::collections::BTreeMap;

use model::Extent;

/// Where the bytes of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: zeros.
    Zero,
    /// In a frame.
    Data {
        /// Number of the object, as [`super::Frames`] gave it.
        place: u32,
        /// Frame in it.
        frame: u32,
        /// Offset in the frame's plain bytes.
        offset: u32,
    },
}

impl Source {
    /// The same source `by` bytes further on. Pieces lie within their frame (checked when a table is opened), so the
    /// offset stays below the largest frame.
    pub fn advance(self, by: u64) -> Self {
        match self {
            Source::Zero => Source::Zero,
            Source::Data { place, frame, offset } => {
                let by = u32::try_from(by).expect("a run of data lies within one frame");
                Source::Data { place, frame, offset: offset + by }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Run {
    len: u64,
    source: Source,
}

/// The map of one disk.
#[derive(Debug, Clone)]
pub(crate) struct ExtentMap {
    runs: BTreeMap<u64, Run>,
    keep_zeros: bool,
}

impl ExtentMap {
    /// An empty map; `keep_zeros` keeps runs of zeros apart from ranges never written.
    pub fn new(keep_zeros: bool) -> Self {
        Self { runs: BTreeMap::new(), keep_zeros }
    }

    /// Lays a run over what was there.
    pub fn overlay(&mut self, extent: Extent, source: Source) {
        self.punch(extent);
        if source == Source::Zero && !self.keep_zeros {
            return;
        }
        if let Some((&at, left)) = self.runs.range_mut(..extent.offset()).next_back()
            && at + left.len == extent.offset()
            && continues(left, source)
        {
            left.len += extent.len();
            return;
        }
        self.runs.insert(extent.offset(), Run { len: extent.len(), source });
    }

    /// Takes a range out.
    pub fn punch(&mut self, extent: Extent) {
        let (start, end) = (extent.offset(), extent.end());
        if let Some((&at, &run)) = self.runs.range(..start).next_back()
            && at + run.len > start
        {
            self.runs.insert(at, Run { len: start - at, ..run });
            self.insert_tail(at, run, end);
        }
        while let Some((&at, &run)) = self.runs.range(start..end).next() {
            self.runs.remove(&at);
            self.insert_tail(at, run, end);
        }
    }

    /// Puts back what of `run` at `at` lies at or behind `end`.
    fn insert_tail(&mut self, at: u64, run: Run, end: u64) {
        let run_end = at + run.len;
        if run_end > end {
            self.runs.insert(end, Run { len: run_end - end, source: run.source.advance(end - at) });
        }
    }

    /// Forgets everything at and behind `size`.
    pub fn truncate(&mut self, size: u64) {
        let len = (u64::MAX - size) / model::SECTOR_BYTES * model::SECTOR_BYTES;
        if let Ok(extent) = Extent::new(size, len) {
            self.punch(extent);
        }
    }

    /// The runs within `extent`, cut to it, in order.
    pub fn runs_in(&self, extent: Extent) -> impl Iterator<Item = (Extent, Source)> + '_ {
        let left = self.runs.range(..extent.offset()).next_back();
        left.into_iter().chain(self.runs.range(extent.offset()..extent.end())).filter_map(move |(&at, run)| {
            let whole = Extent::new(at, run.len).expect("runs are cut at sectors");
            let part = whole.intersection(&extent)?;
            Some((part, run.source.advance(part.offset() - at)))
        })
    }

    /// All runs in order.
    pub fn runs(&self) -> impl Iterator<Item = (Extent, Source)> + '_ {
        self.runs.iter().map(|(&at, run)| (Extent::new(at, run.len).expect("runs are cut at sectors"), run.source))
    }
}

fn continues(left: &Run, right: Source) -> bool {
    match (left.source, right) {
        (Source::Zero, Source::Zero) => true,
        (
            Source::Data { place, frame, offset },
            Source::Data { place: right_place, frame: right_frame, offset: right_offset },
        ) => (place, frame, u64::from(offset) + left.len) == (right_place, right_frame, u64::from(right_offset)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECTOR: u64 = model::SECTOR_BYTES;

    proptest! {
        /// The map equals one source for each sector, whatever is laid over, punched and truncated.
        #[test]
        fn map_equals_a_source_for_each_sector(
            keep_zeros: bool,
            ops in proptest::collection::vec((0u8..8, 0u64..60, 1u64..20, 0u32..3), 1..60),
        ) {
            let mut map = ExtentMap::new(keep_zeros);
            let mut model: Vec<Option<Source>> = vec![None; 80];
            for (kind, at, sectors, frame) in ops {
                let extent = Extent::new(at * SECTOR, sectors * SECTOR).expect("aligned");
                let range = at as usize..(at + sectors) as usize;
                match kind {
                    0 => { map.punch(extent); model[range].fill(None); }
                    1 => {
                        map.overlay(extent, Source::Zero);
                        model[range].fill(keep_zeros.then_some(Source::Zero));
                    }
                    2 => { map.truncate(at * SECTOR); model[at as usize..].fill(None); }
                    _ => {
                        let source = Source::Data { place: 1, frame, offset: (at * SECTOR) as u32 };
                        map.overlay(extent, source);
                        for (i, slot) in model[range].iter_mut().enumerate() {
                            *slot = Some(source.advance(i as u64 * SECTOR));
                        }
                    }
                }
            }
            for (sector, expected) in model.iter().enumerate() {
                let extent = Extent::new(sector as u64 * SECTOR, SECTOR).expect("aligned");
                let found: Vec<_> = map.runs_in(extent).collect();
                prop_assert_eq!(found.first().map(|(_, source)| *source), *expected);
            }
            let total: u64 = map.runs().map(|(extent, _)| extent.len()).sum();
            prop_assert_eq!(total, model.iter().flatten().count() as u64 * SECTOR);
        }
    }
}
