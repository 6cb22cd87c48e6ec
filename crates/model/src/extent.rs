//! Byte ranges of a disk, and sets of them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Every offset and length in a record is a multiple of this.
pub const SECTOR_BYTES: u64 = 512;

/// A range of a disk in bytes: `offset..offset + len`. The end never overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64)", into = "(u64, u64)")]
pub struct Extent {
    offset: u64,
    len: u64,
}

/// A range was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("range at {offset} of {len} bytes is empty, unaligned to 512 bytes, or ends past 2^64")]
pub struct ExtentError {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Extent {
    /// A non-empty range aligned to 512 bytes.
    pub fn new(offset: u64, len: u64) -> Result<Self, ExtentError> {
        let aligned = offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES);
        if len == 0 || !aligned || offset.checked_add(len).is_none() {
            return Err(ExtentError { offset, len });
        }
        Ok(Extent { offset, len })
    }

    /// First byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length in bytes; never zero.
    #[expect(clippy::len_without_is_empty, reason = "an extent is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// First byte after the range.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Extent) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// The shared part.
    pub fn intersection(&self, other: &Extent) -> Option<Extent> {
        let offset = self.offset.max(other.offset);
        let end = self.end().min(other.end());
        (offset < end).then(|| Extent { offset, len: end - offset })
    }

    /// Pieces that never cross a multiple of `boundary` (itself a multiple of 512).
    pub fn split_at_multiples(self, boundary: u64) -> impl Iterator<Item = Extent> {
        let mut at = self.offset;
        let end = self.end();
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let next = (at / boundary).saturating_add(1).saturating_mul(boundary).min(end);
                let piece = Extent { offset: at, len: next - at };
                at = next;
                piece
            })
        })
    }
}

impl TryFrom<(u64, u64)> for Extent {
    type Error = ExtentError;
    fn try_from((offset, len): (u64, u64)) -> Result<Self, ExtentError> {
        Extent::new(offset, len)
    }
}

impl From<Extent> for (u64, u64) {
    fn from(extent: Extent) -> (u64, u64) {
        (extent.offset, extent.len)
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}

/// Disjoint ranges, merged where they touch. Iterates in order of offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtentSet {
    /// offset -> end.
    ranges: BTreeMap<u64, u64>,
}

impl ExtentSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a range.
    pub fn insert(&mut self, extent: Extent) {
        let (mut start, mut end) = (extent.offset, extent.end());
        if let Some((&left, &left_end)) = self.ranges.range(..=start).next_back()
            && left_end >= start
        {
            start = left;
            end = end.max(left_end);
        }
        while let Some((&right, &right_end)) = self.ranges.range(start..=end).next() {
            self.ranges.remove(&right);
            end = end.max(right_end);
        }
        self.ranges.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, extent: Extent) {
        let (start, end) = (extent.offset, extent.end());
        if let Some((&left, &left_end)) = self.ranges.range(..start).next_back()
            && left_end > start
        {
            self.ranges.insert(left, start);
            if left_end > end {
                self.ranges.insert(end, left_end);
            }
        }
        while let Some((&right, &right_end)) = self.ranges.range(start..end).next() {
            self.ranges.remove(&right);
            if right_end > end {
                self.ranges.insert(end, right_end);
            }
        }
    }

    /// Whether any byte of the range is in the set.
    pub fn overlaps(&self, extent: &Extent) -> bool {
        self.ranges.range(..extent.end()).next_back().is_some_and(|(_, &end)| end > extent.offset)
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.ranges.iter().map(|(&offset, &end)| Extent { offset, len: end - offset })
    }

    /// Sum of the lengths in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.iter().map(|e| e.len).sum()
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut set = ExtentSet::new();
        extents.into_iter().for_each(|e| set.insert(e));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(offset * 512, len * 512).expect("aligned by construction")
    }

    #[test]
    fn unaligned_empty_and_overflowing_ranges_are_refused() {
        for (offset, len) in [(0, 0), (1, 512), (0, 100), (u64::MAX - 511, 512)] {
            assert!(Extent::new(offset, len).is_err(), "{offset}+{len}");
        }
    }

    #[test]
    fn pieces_stay_within_the_boundary() {
        let pieces: Vec<_> = extent(127, 130).split_at_multiples(64 << 10).collect();
        assert_eq!(pieces, vec![extent(127, 1), extent(128, 128), extent(256, 1)]);
    }

    proptest! {
        /// A set behaves as one bit for each sector.
        #[test]
        fn set_equals_a_bitmap(ops in proptest::collection::vec((any::<bool>(), 0u64..60, 1u64..20), 1..60)) {
            let mut set = ExtentSet::new();
            let mut bits = [false; 80];
            for (add, at, len) in ops {
                if add { set.insert(extent(at, len)) } else { set.remove(extent(at, len)) }
                bits[at as usize..(at + len) as usize].fill(add);
            }
            for (sector, bit) in bits.iter().enumerate() {
                prop_assert_eq!(set.overlaps(&extent(sector as u64, 1)), *bit);
            }
            prop_assert_eq!(set.total_bytes(), bits.iter().filter(|b| **b).count() as u64 * 512);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|w| w[0].end() < w[1].offset()), "merged where they touch");
        }
    }
}
