//! Entry points for fuzzers: every parser of the agent's own files. None may panic, whatever it is given; what is read is
//! written to bytes that read the same, and what is written is read as it was.

use arbitrary::{Result, Unstructured};
use bytes::{Bytes, BytesMut};
use model::{Incarnation, LogHead, MachineName, Position, RecordDigest, SECTOR_BYTES, Seq, Timestamp};

use crate::bits::BitSet;
use crate::config::{REGION_BYTES_MAX, REGION_BYTES_MIN};
use crate::map::{
    DiskEntry, HEADER_SLOT_BYTES, Header, MapFileState, PAGE_BYTES, PAGE_REGIONS, PAGES_OFFSET, encode_map, parse_map,
};
use crate::spool::SpoolCipher;

/// Most disks in a map that is built: a few suffice, and each needs pages.
const DISKS_MAX: usize = 6;

/// Most pages of a disk in a map that is built.
const PAGES_MAX: u64 = 4;

/// Reads a slot of the spool file, under a key that is always the same, in which the first 8 bytes stand for the seq that
/// is expected; and, since no input is likely to carry a right seal, writes and reads one with the same payload.
pub fn spool(data: &[u8]) {
    let (seq, slot) = data.split_at(data.len().min(8));
    let mut number = [0; 8];
    number[..seq.len()].copy_from_slice(seq);
    let (cipher, seq) = (SpoolCipher::with_key(&[7; 32]), Seq(u64::from_le_bytes(number)));
    if let Ok(payload) = cipher.open(seq, Bytes::copy_from_slice(slot)) {
        spool_comes_back(&cipher, seq, &payload);
    }
    spool_comes_back(&cipher, seq, slot);
}

fn spool_comes_back(cipher: &SpoolCipher, seq: Seq, payload: &[u8]) {
    let mut slot = BytesMut::new();
    cipher.seal(seq, payload, &mut slot);
    assert_eq!(slot.len() as u64, crate::spool::slot_bytes(payload.len()));
    let slot = slot.freeze();
    assert_eq!(cipher.open(seq, slot.clone()).as_deref(), Ok(payload));
    let other = cipher.open(Seq(seq.0 ^ 1), slot);
    assert!(other.is_err(), "a slot was taken for another record's");
}

/// Reads a dirty map, as it is and with its checksums put right; and writes and reads one of the fuzzer's choice.
pub fn dirty_map(data: &[u8]) {
    map_comes_back(data);
    let mut file = data.to_vec();
    let (headers, pages) = file.split_at_mut(data.len().min(PAGES_OFFSET as usize));
    headers.chunks_exact_mut(HEADER_SLOT_BYTES).for_each(put_checksum_right);
    pages.chunks_exact_mut(PAGE_BYTES).for_each(put_checksum_right);
    map_comes_back(&file);
    if let Ok((header, bits)) = built_map(&mut Unstructured::new(data)) {
        let state = parse_map(&encode_map(&header, bits.iter())).expect("just written");
        let map_version = header.map_version;
        assert_eq!(state, MapFileState { header, bits, map_version, bad_pages: 0 });
    }
}

fn put_checksum_right(block: &mut [u8]) {
    let crc = crc32c::crc32c(&block[4..]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
}

fn map_comes_back(file: &[u8]) {
    let Ok(state) = parse_map(file) else { return };
    let again = parse_map(&encode_map(&state.header, state.bits.iter())).expect("just written");
    assert_eq!((&again.header, &again.bits), (&state.header, &state.bits));
}

fn built_map(u: &mut Unstructured) -> Result<(Header, Vec<BitSet>)> {
    let (mut disks, mut all_bits) = (Vec::new(), Vec::new());
    for n in 0..u.int_in_range(1..=DISKS_MAX)? {
        let region_bytes = 1 << u.int_in_range(REGION_BYTES_MIN.ilog2()..=REGION_BYTES_MAX.ilog2())?;
        let regions = u.int_in_range(1..=PAGES_MAX * PAGE_REGIONS)?;
        let size = regions * region_bytes - SECTOR_BYTES * u.int_in_range(0..=region_bytes / SECTOR_BYTES - 1)?;
        let disk = DiskEntry { name: format!("disk-{n}").parse().expect("a name"), size, region_bytes };
        let mut bits = BitSet::new(disk.regions());
        for _ in 0..u.int_in_range(0..=32)? {
            bits.set(u.int_in_range(0..=disk.regions() - 1)?);
        }
        disks.push(disk);
        all_bits.push(bits);
    }
    let machine: MachineName = format!("m{}", u.arbitrary::<u16>()?).parse().expect("a name");
    let stored = LogHead {
        position: Position { seq: Seq(u.arbitrary()?), incarnation: Incarnation(u.arbitrary()?) },
        digest: RecordDigest(u.arbitrary()?),
        map_version: u.arbitrary()?,
        time: Timestamp(u.arbitrary()?),
    };
    let (generation, map_version, clean) = (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?);
    let (incarnation, taken) = (Incarnation(u.arbitrary()?), Incarnation(u.arbitrary()?));
    // The file has room for every version but the last.
    let attested = u.arbitrary::<Option<u64>>()?.map(|version| version.min(u64::MAX - 1));
    let header = Header { generation, map_version, incarnation, stored, clean, attested, taken, machine, disks };
    Ok((header, all_bits))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn over_corpus(target: &str, body: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let files: Vec<_> =
            std::fs::read_dir(&dir).expect("corpus").map(|entry| entry.expect("entry").path()).collect();
        assert!(!files.is_empty(), "{} holds nothing", dir.display());
        files.iter().for_each(|file| body(&std::fs::read(file).expect("corpus file")));
    }

    #[test]
    fn spool_takes_its_corpus() {
        over_corpus("spool", super::spool);
    }

    #[test]
    fn dirty_map_takes_its_corpus() {
        over_corpus("dirty_map", super::dirty_map);
    }
}
