//! The spool file: payloads that memory has no room for, sealed. Layout in `spool/FORMAT.md`.
//!
//! The spool is a cache of this process's memory, no more: it is discarded at start, because an agent that stopped with
//! anything unsent opens with a drain anyway. So nothing here is synced, and no order between writes matters. What must
//! hold:
//! - A payload read back is the payload written for that record: number and length are authenticated with it, and a slot
//!   is given out again only after its payload was freed.
//! - What lies on the disk is of no use to whoever finds it: the source may be encrypted where the agent's directory is
//!   not. The key is random, made when the agent starts and written nowhere, so it dies with the process.
//! - No nonce is ever used twice under that key. A nonce is a number taken from one 64-bit counter that only goes up; a
//!   payload that is written again after a failure takes a new number, and a restart takes a new key.
//!
//! [`SpoolSpace`] is the pure half (which bytes of the file are taken); reading and writing are the callers'.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use model::{Extent, ExtentSet, SECTOR_BYTES, Seq};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// First bytes of each payload in the file.
const MAGIC: u32 = u32::from_le_bytes(*b"FSPL");

/// The part of a slot's header that the seal covers: all but the tag.
const FIELDS_BYTES: usize = 24;

/// Bytes of the seal.
const TAG_BYTES: usize = 16;

/// Bytes in front of each payload.
pub(crate) const SLOT_HEADER_BYTES: usize = FIELDS_BYTES + TAG_BYTES;

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
    #[error("the slot does not open: it was altered")]
    Altered,
}

/// Bytes of the file that a payload of `len` bytes takes.
pub(crate) fn slot_bytes(len: usize) -> u64 {
    ((SLOT_HEADER_BYTES + len) as u64).next_multiple_of(SECTOR_BYTES)
}

/// Seals and opens the payloads of one run of the agent.
pub(crate) struct SpoolCipher {
    key: LessSafeKey,
    /// The next nonce. Relaxed: only that each number is given once matters, no other memory hangs on it.
    next: AtomicU64,
}

impl SpoolCipher {
    /// With a key that nobody else has, and that nobody will know again.
    pub(crate) fn new() -> Self {
        let mut key = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *key).expect("the kernel gives random bits once it has booted");
        Self::with_key(&key)
    }

    /// With a known key: for fuzzing, which repeats itself.
    pub(crate) fn with_key(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are a key of AES-256");
        Self { key: LessSafeKey::new(key), next: AtomicU64::new(0) }
    }

    /// Appends a payload as it lies in the file: header, sealed payload, padding. It is copied once and sealed in place.
    pub(crate) fn seal(&self, seq: Seq, payload: &[u8], out: &mut BytesMut) {
        let start = out.len();
        let len = u32::try_from(payload.len()).expect("a record is at most 33 MiB: bounded by the export");
        // Relaxed: see the field.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let fields = fields(len, seq, number);
        out.put_slice(&fields);
        out.put_bytes(0, TAG_BYTES);
        out.put_slice(payload);
        let sealed = start + SLOT_HEADER_BYTES;
        let tag = self.key.seal_in_place_separate_tag(nonce(number), Aad::from(fields), &mut out[sealed..]);
        let tag = tag.expect("a record is far below the 64 GiB that AES-GCM takes");
        out[start + FIELDS_BYTES..sealed].copy_from_slice(tag.as_ref());
        let padded = start + usize::try_from(slot_bytes(payload.len())).expect("bounded as len is");
        out.resize(padded, 0);
    }

    /// Reads a payload back; anything but the payload of record `seq` is damage. Opened in place where the caller holds
    /// the only handle to the bytes.
    pub(crate) fn open(&self, seq: Seq, slot: Bytes) -> Result<Bytes, SlotDamage> {
        let Some((header, _)) = slot.split_first_chunk::<SLOT_HEADER_BYTES>() else {
            return Err(SlotDamage::Truncated);
        };
        let (fields, tag) = header.split_first_chunk::<FIELDS_BYTES>().expect("the header is longer than its fields");
        let word = |at: usize| u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if word(0) != MAGIC || long(8) != seq.0 || word(4) > PAYLOAD_BYTES_MAX {
            return Err(SlotDamage::Misplaced);
        }
        let end = SLOT_HEADER_BYTES + word(4) as usize;
        if slot.len() < end {
            return Err(SlotDamage::Truncated);
        }
        let (nonce, aad) = (nonce(long(16)), Aad::from(*fields));
        let tag = Tag::try_from(tag).map_err(|_| SlotDamage::Truncated)?;
        let mut bytes = slot.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        self.key
            .open_in_place_separate_tag(nonce, aad, tag, &mut bytes[SLOT_HEADER_BYTES..end], 0..)
            .map_err(|_| SlotDamage::Altered)?;
        Ok(bytes.freeze().slice(SLOT_HEADER_BYTES..end))
    }
}

/// What a slot says of itself in the clear, and what is authenticated with its payload.
fn fields(len: u32, seq: Seq, number: u64) -> [u8; FIELDS_BYTES] {
    let mut fields = [0; FIELDS_BYTES];
    fields[..4].copy_from_slice(&MAGIC.to_le_bytes());
    fields[4..8].copy_from_slice(&len.to_le_bytes());
    fields[8..16].copy_from_slice(&seq.0.to_le_bytes());
    fields[16..].copy_from_slice(&number.to_le_bytes());
    fields
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
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

    fn sealed(cipher: &SpoolCipher, seq: u64, payload: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        cipher.seal(Seq(seq), payload, &mut out);
        out.freeze()
    }

    #[test]
    fn a_payload_comes_back_as_it_was() {
        let cipher = SpoolCipher::new();
        for len in [0usize, 1, 472, 473, 4096] {
            let payload = vec![7; len];
            let slot = sealed(&cipher, 9, &payload);
            assert_eq!(slot.len() as u64, slot_bytes(len));
            assert_eq!(cipher.open(Seq(9), slot.clone()).as_deref(), Ok(&payload[..]), "from shared bytes");
            assert_eq!(cipher.open(Seq(9), slot).as_deref(), Ok(&payload[..]), "in place");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let cipher = SpoolCipher::new();
        let slot = sealed(&cipher, 9, &[5; 40]);
        for bit in 0..(SLOT_HEADER_BYTES + 40) * 8 {
            let mut bytes = slot.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(cipher.open(Seq(9), bytes.into()).is_err(), "bit {bit}");
        }
        for cut in 0..SLOT_HEADER_BYTES + 40 {
            assert!(cipher.open(Seq(9), slot.slice(..cut)).is_err(), "cut at {cut}");
        }
        assert_eq!(cipher.open(Seq(10), slot), Err(SlotDamage::Misplaced));
    }

    /// Made by another program from `FORMAT.md` alone; the same file is a seed of the fuzzer.
    #[test]
    fn a_slot_is_as_its_format_says() {
        let file = Bytes::from_static(include_bytes!("../../../fuzz/corpus/spool/payload"));
        let cipher = SpoolCipher::with_key(&[7; 32]);
        assert_eq!(cipher.open(Seq(9), file.slice(8..)).as_deref(), Ok(&b"payload of a record"[..]));
        assert_eq!(sealed(&cipher, 9, b"payload of a record"), file.slice(8..));
    }

    #[test]
    fn a_slot_opens_under_the_key_of_its_run_alone() {
        let (this, next) = (SpoolCipher::new(), SpoolCipher::new());
        let slot = sealed(&this, 9, &[5; 40]);
        assert_eq!(next.open(Seq(9), slot.clone()), Err(SlotDamage::Altered));
        assert!(this.open(Seq(9), slot).is_ok(), "the control");
    }

    #[test]
    fn no_two_slots_have_one_nonce_and_none_shows_its_payload() {
        let cipher = SpoolCipher::new();
        let payload = *b"FARSHORE PLAINTEXT MARKER, 40 BYTES LONG";
        // The same record again, as after a write that failed.
        let slots: Vec<Bytes> = (0..200).map(|_| sealed(&cipher, 9, &payload)).collect();
        let mut seen = std::collections::BTreeSet::new();
        for slot in &slots {
            assert!(seen.insert(slot[16..24].to_vec()), "a nonce came twice");
            assert!(!slot.windows(8).any(|part| payload.windows(8).any(|plain| plain == part)), "plaintext");
        }
        let opened = cipher.open(Seq(9), slots[7].clone()).expect("opens");
        assert!(opened.windows(8).any(|part| part == &payload[..8]), "the control: the search finds what is there");
    }
}
