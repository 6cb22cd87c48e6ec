//! The spool file: payloads that memory has no room for. Layout in `spool/FORMAT.md`.
//!
//! The spool is a cache of this process's memory, no more: it is discarded at start, because an agent that stopped with
//! anything unsent opens with a drain anyway. So nothing here is synced, and no order between writes matters. What must
//! hold is that a payload read back is the payload written: each carries its number and a checksum, and a slot is given
//! out again only after its payload was freed.
//!
//! [`SpoolSpace`] is the pure half (which bytes of the file are taken); reading and writing are the callers'.

use bytes::{BufMut, Bytes, BytesMut};
use model::{Extent, ExtentSet, SECTOR_BYTES, Seq};

/// First bytes of each payload in the file.
const MAGIC: u32 = u32::from_le_bytes(*b"FSPL");

/// Bytes in front of each payload.
pub(crate) const SLOT_HEADER_BYTES: usize = 24;

/// Largest payload of one record.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 33 << 20;

/// Where a payload lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Its bytes of the file: header, payload and padding.
    pub(crate) extent: Extent,
    /// Bytes of the payload.
    pub(crate) len: u32,
}

/// A payload could not be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SlotDamage {
    #[error("the slot is shorter than its header says")]
    Truncated,
    #[error("the slot holds something else")]
    Misplaced,
    #[error("the checksum does not match")]
    Checksum,
}

/// Bytes of the file that a payload of `len` bytes takes.
pub(crate) fn slot_bytes(len: usize) -> u64 {
    ((SLOT_HEADER_BYTES + len) as u64).next_multiple_of(SECTOR_BYTES)
}

/// Appends a payload as it lies in the file: header, payload, padding.
pub(crate) fn encode_slot(seq: Seq, payload: &[u8], out: &mut BytesMut) {
    let start = out.len();
    let len = u32::try_from(payload.len()).expect("a record is at most 33 MiB: bounded by the export");
    let crc = crc32c::crc32c_append(crc32c::crc32c(&seq.0.to_le_bytes()), payload);
    out.put_u32_le(MAGIC);
    out.put_u32_le(len);
    out.put_u64_le(seq.0);
    out.put_u32_le(crc);
    out.put_u32_le(0);
    out.put_slice(payload);
    let padded = start + usize::try_from(slot_bytes(payload.len())).expect("bounded as len is");
    out.resize(padded, 0);
}

/// Reads a payload back; anything but the payload of record `seq` is damage.
pub(crate) fn decode_slot(seq: Seq, slot: &Bytes) -> Result<Bytes, SlotDamage> {
    if slot.len() < SLOT_HEADER_BYTES {
        return Err(SlotDamage::Truncated);
    }
    let word = |at: usize| u32::from_le_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]]);
    let found = u64::from(word(8)) | u64::from(word(12)) << 32;
    if word(0) != MAGIC || found != seq.0 || word(4) > PAYLOAD_BYTES_MAX {
        return Err(SlotDamage::Misplaced);
    }
    let end = SLOT_HEADER_BYTES + word(4) as usize;
    if slot.len() < end {
        return Err(SlotDamage::Truncated);
    }
    let payload = slot.slice(SLOT_HEADER_BYTES..end);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&seq.0.to_le_bytes()), &payload);
    if crc != word(16) {
        return Err(SlotDamage::Checksum);
    }
    Ok(payload)
}

/// Which bytes of the spool file are free.
#[derive(Debug)]
pub(crate) struct SpoolSpace {
    free: ExtentSet,
    max: u64,
    used: u64,
}

impl SpoolSpace {
    /// A file of at most `max` bytes.
    pub(crate) fn new(max: u64) -> Self {
        let max = max - max % SECTOR_BYTES;
        SpoolSpace { free: Extent::new(0, max).into_iter().collect(), max, used: 0 }
    }

    /// Bytes taken.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Bytes there are.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// Takes a run of `len` bytes (whole sectors): the first that fits, so that the file stays short.
    pub(crate) fn take(&mut self, len: u64) -> Option<Extent> {
        let room = self.free.iter().find(|run| run.len() >= len)?;
        let taken = Extent::new(room.offset(), len).ok()?;
        self.free.remove(taken);
        self.used += len;
        Some(taken)
    }

    /// Gives a run back.
    pub(crate) fn give_back(&mut self, run: Extent) {
        debug_assert!(!self.free.overlaps(&run), "a slot is given back once");
        self.free.insert(run);
        self.used -= run.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slots_never_overlap_and_all_come_back(ops in proptest::collection::vec((any::<bool>(), 1u64..12), 1..120)) {
            let mut space = SpoolSpace::new(40 * SECTOR_BYTES + 100);
            let mut held: Vec<Extent> = Vec::new();
            for (take, n) in ops {
                if take {
                    if let Some(run) = space.take(n * SECTOR_BYTES) {
                        prop_assert!(run.end() <= space.max());
                        prop_assert!(held.iter().all(|other| !other.overlaps(&run)));
                        held.push(run);
                    }
                } else if !held.is_empty() {
                    space.give_back(held.remove(n as usize % held.len()));
                }
                prop_assert_eq!(space.used(), held.iter().map(Extent::len).sum::<u64>());
            }
            held.into_iter().for_each(|run| space.give_back(run));
            prop_assert!(space.take(40 * SECTOR_BYTES).is_some(), "one whole run again");
        }
    }

    fn encoded(seq: u64, payload: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        encode_slot(Seq(seq), payload, &mut out);
        out.freeze()
    }

    #[test]
    fn a_payload_comes_back_as_it_was() {
        for len in [0usize, 1, 488, 489, 4096] {
            let payload = vec![7; len];
            let slot = encoded(9, &payload);
            assert_eq!(slot.len() as u64, slot_bytes(len));
            assert_eq!(decode_slot(Seq(9), &slot).as_deref(), Ok(&payload[..]));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let slot = encoded(9, &[5; 40]);
        for bit in (0..(SLOT_HEADER_BYTES + 40) * 8).filter(|bit| !(20 * 8..24 * 8).contains(bit)) {
            let mut bytes = slot.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_slot(Seq(9), &bytes.into()).is_err(), "bit {bit}");
        }
        for cut in 0..SLOT_HEADER_BYTES + 40 {
            assert!(decode_slot(Seq(9), &slot.slice(..cut)).is_err(), "cut at {cut}");
        }
        assert_eq!(decode_slot(Seq(10), &slot), Err(SlotDamage::Misplaced));
    }
}
