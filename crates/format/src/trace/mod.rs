//! Read traces: which ranges of a disk were read first, in order, so that they can be fetched before they are asked for.
//! The layout stands in `FORMAT.md`.

use std::collections::BTreeMap;

use model::Extent;

use crate::FormatError;

/// Versions of a read trace, newest first.
pub const TRACE_VERSIONS: &[(u16, &str)] = &[(1, "first released")];

/// Most bytes of a disk that a trace names.
pub const TRACE_DISK_BYTES_MAX: u64 = 64 << 20;

/// Most ranges of a trace.
pub const TRACE_RANGES_MAX: usize = 16384;

/// Longest encoding in bytes.
pub const TRACE_BYTES_MAX: usize = HEAD_BYTES + TRACE_RANGES_MAX * RANGE_BYTES + HASH_BYTES;

const MAGIC: &[u8; 8] = b"FARSTRCE";
const HEAD_BYTES: usize = 14;
const RANGE_BYTES: usize = 16;
const HASH_BYTES: usize = 16;
const WHAT: &str = "read trace";

/// Ranges of a disk in the order in which they were read; none is named twice.
#[derive(Debug, Clone, Default)]
pub struct ReadTrace {
    ranges: Vec<Extent>,
    /// The same, from start to end, cut as they came.
    seen: BTreeMap<u64, u64>,
    bytes: u64,
}

impl PartialEq for ReadTrace {
    fn eq(&self, other: &Self) -> bool {
        self.ranges == other.ranges
    }
}

impl ReadTrace {
    /// The ranges in order.
    pub fn ranges(&self) -> &[Extent] {
        &self.ranges
    }

    /// Whether it takes no more.
    pub fn is_full(&self) -> bool {
        self.ranges.len() == TRACE_RANGES_MAX || self.bytes == TRACE_DISK_BYTES_MAX
    }

    /// What of a range is not named yet, as starts and ends.
    fn unseen(&self, extent: Extent) -> Vec<(u64, u64)> {
        let (mut at, mut parts) = (extent.offset(), Vec::new());
        if let Some((_, end)) = self.seen.range(..=at).next_back() {
            at = at.max(*end);
        }
        for (start, end) in self.seen.range(at..extent.end().max(at)) {
            if *start > at {
                parts.push((at, *start));
            }
            at = at.max(*end);
        }
        if at < extent.end() {
            parts.push((at, extent.end()));
        }
        parts
    }

    /// Adds what of a range was not read before, as far as there is room. Returns whether anything was added. A range that goes
    /// on where the last one ended becomes part of it.
    pub fn read(&mut self, extent: Extent) -> bool {
        let mut added = false;
        for (start, end) in self.unseen(extent) {
            let room = TRACE_DISK_BYTES_MAX - self.bytes;
            let Ok(part) = Extent::new(start, (end - start).min(room)) else { break };
            let is_full = self.ranges.len() == TRACE_RANGES_MAX;
            match self.ranges.last_mut() {
                Some(last) if last.end() == part.offset() => {
                    let longer = Extent::new(last.offset(), last.len() + part.len());
                    *last = longer.expect("both are of whole sectors, and the end is that of the second");
                }
                _ if is_full => break,
                _ => self.ranges.push(part),
            }
            self.seen.insert(part.offset(), part.end());
            self.bytes += part.len();
            added = true;
        }
        added
    }

    /// The bytes of a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&TRACE_VERSIONS[0].0.to_le_bytes());
        let count = u32::try_from(self.ranges.len()).expect("ranges are few");
        bytes.extend_from_slice(&count.to_le_bytes());
        for range in &self.ranges {
            bytes.extend_from_slice(&range.offset().to_le_bytes());
            bytes.extend_from_slice(&range.len().to_le_bytes());
        }
        let hash = hash_of(&bytes);
        bytes.extend_from_slice(&hash);
        bytes
    }

    /// Reads a file. Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid` (the magic, the hash, a range that is none, one
    /// that was named before, or more than there may be).
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const INVALID: FormatError = FormatError::Invalid { what: WHAT };
        let have = bytes.len() as u64;
        let least = (HEAD_BYTES + HASH_BYTES) as u64;
        let head = bytes.first_chunk::<HEAD_BYTES>().ok_or(FormatError::Truncated { need: least, have })?;
        let (magic, rest) = head.split_first_chunk::<8>().ok_or(INVALID)?;
        let (version, count) = rest.split_first_chunk::<2>().ok_or(INVALID)?;
        let (version, newest) = (u16::from_le_bytes(*version), TRACE_VERSIONS[0].0);
        if magic != MAGIC {
            return Err(INVALID);
        }
        if version != newest {
            return Err(FormatError::Version { what: WHAT, found: version.into(), newest: newest.into() });
        }
        let count = u32::from_le_bytes(*count.first_chunk::<4>().ok_or(INVALID)?) as usize;
        if count > TRACE_RANGES_MAX {
            return Err(INVALID);
        }
        let hashed = HEAD_BYTES + count * RANGE_BYTES;
        let need = (hashed + HASH_BYTES) as u64;
        match have {
            have if have < need => return Err(FormatError::Truncated { need, have }),
            have if have > need => return Err(FormatError::TrailingBytes { extra: have - need }),
            _ => {}
        }
        let (hashed, hash) = bytes.split_at(hashed);
        if hash != hash_of(hashed) {
            return Err(INVALID);
        }
        let mut trace = Self::default();
        for range in hashed[HEAD_BYTES..].as_chunks::<RANGE_BYTES>().0 {
            let (offset, len) = range.split_first_chunk::<8>().ok_or(INVALID)?;
            let len = len.first_chunk::<8>().ok_or(INVALID)?;
            let range = Extent::new(u64::from_le_bytes(*offset), u64::from_le_bytes(*len)).map_err(|_| INVALID)?;
            let before = (trace.ranges.len(), trace.bytes);
            trace.read(range);
            if (trace.ranges.len(), trace.bytes) != (before.0 + 1, before.1 + range.len()) {
                return Err(INVALID);
            }
        }
        Ok(trace)
    }
}

fn hash_of(bytes: &[u8]) -> [u8; HASH_BYTES] {
    *blake3::hash(bytes).as_bytes().first_chunk().expect("a hash is longer than its half")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(offset, len).expect("sectors")
    }

    fn sample() -> ReadTrace {
        crate::samples::trace()
    }

    #[test]
    fn what_was_read_first_stands_first_and_once() {
        let mut trace = sample();
        assert_eq!(trace.ranges(), [extent(1 << 40, 4096), extent(0, 1536), extent(8192, 65536), extent(4096, 4096)]);
        assert!(!trace.read(extent(8192, 4096)), "read before");
        assert!(trace.read(extent(1 << 30, 1 << 30)));
        assert!(trace.is_full() && !trace.read(extent(1 << 41, 512)));
        assert_eq!(trace.bytes, TRACE_DISK_BYTES_MAX);
    }

    #[test]
    fn a_trace_has_a_bounded_number_of_ranges() {
        let mut trace = ReadTrace::default();
        (0..TRACE_RANGES_MAX as u64).for_each(|n| assert!(trace.read(extent(n * 1024, 512))));
        assert!(trace.is_full() && !trace.read(extent(1 << 40, 512)));
        let bytes = trace.encode();
        assert_eq!(bytes.len(), TRACE_BYTES_MAX);
        assert_eq!(ReadTrace::decode(&bytes), Ok(trace));
    }

    #[test]
    fn every_flipped_bit_and_every_other_length_is_refused() {
        let bytes = sample().encode();
        assert_eq!(ReadTrace::decode(&bytes), Ok(sample()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(ReadTrace::decode(&damaged).is_err(), "bit {bit} may flip");
        }
        (0..bytes.len()).for_each(|end| assert!(ReadTrace::decode(&bytes[..end]).is_err(), "{end}"));
        assert!(ReadTrace::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn ranges_that_overlap_or_go_on_are_refused_though_the_hash_is_right() {
        for (first, second) in [((0, 4096), (2048, 4096)), ((0, 4096), (4096, 512)), ((0, 512), (3, 512))] {
            let mut bytes = ReadTrace::default().encode();
            bytes.truncate(HEAD_BYTES);
            bytes[10] = 2;
            for (offset, len) in [first, second] {
                bytes.extend_from_slice(&u64::to_le_bytes(offset));
                bytes.extend_from_slice(&u64::to_le_bytes(len));
            }
            let hash = hash_of(&bytes);
            bytes.extend_from_slice(&hash);
            assert!(ReadTrace::decode(&bytes).is_err(), "{first:?} {second:?}");
        }
    }
}
