//! The map file: what is written is read, and whatever else is read is noticed or counts as all set.

use super::*;
use proptest::prelude::*;

fn header(sizes: &[u64], generation: u64) -> Header {
    let disk = |(n, size): (usize, &u64)| DiskEntry {
        name: format!("d{n}").parse().expect("a name"),
        size: *size,
        region_bytes: REGION_BYTES_MIN,
    };
    Header {
        generation,
        map_version: 5,
        incarnation: Incarnation([3; 16]),
        stored: LogHead {
            position: Position { incarnation: Incarnation([3; 16]), seq: Seq(77) },
            digest: RecordDigest([4; 32]),
            map_version: 4,
            time: Timestamp(99),
        },
        attested: generation.is_multiple_of(3).then_some(generation),
        taken: Incarnation([7; 16]),
        clean: generation.is_multiple_of(2),
        machine: "m1".parse().expect("a name"),
        disks: sizes.iter().enumerate().map(disk).collect(),
    }
}

fn bits(entry: &DiskEntry, set: &[u64]) -> BitSet {
    let mut bits = BitSet::new(entry.regions());
    set.iter().for_each(|n| {
        bits.set(n % entry.regions());
    });
    bits
}

fn sample() -> (Header, Vec<BitSet>, Vec<u8>) {
    let header = header(&[5000 * REGION_BYTES_MIN, 3 * REGION_BYTES_MIN - 512], 2);
    let all: Vec<_> = header.disks.iter().map(|entry| bits(entry, &[0, 2, 3903, 3904, 4999])).collect();
    let file = encode_map(&header, all.iter()).to_vec();
    (header, all, file)
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        sizes in proptest::collection::vec(1u64..9000, 1..5),
        set in proptest::collection::vec(any::<u64>(), 0..60),
    ) {
        let sizes: Vec<u64> = sizes.iter().map(|regions| regions * REGION_BYTES_MIN - 512).collect();
        let header = header(&sizes, 8);
        let all: Vec<_> = header.disks.iter().map(|entry| bits(entry, &set)).collect();
        let state = parse_map(&encode_map(&header, all.iter())).expect("just written");
        prop_assert_eq!(&state.bits, &all);
        prop_assert_eq!(&state.header, &header);
        prop_assert_eq!((state.map_version, state.bad_pages), (5, 0));
    }
}

#[test]
fn sizes_and_offsets_stand_as_documented() {
    let (_, _, file) = sample();
    assert_eq!(file.len(), 32768 + 3 * 512, "5000 regions take two pages, 3 take one");
    assert_eq!(&file[4..8], b"FMAP");
    assert_eq!(u64::from_le_bytes(file[48..56].try_into().expect("8")), 77);
    assert_eq!(file[120], 1, "the clean-stop marker");
    assert_eq!(&file[128..131], b"\x02m1");
    assert_eq!(&file[256..259], b"\x02d0");
    assert_eq!(
        u64::from_le_bytes(file[256 + 96 + 80..][..8].try_into().expect("8")),
        2,
        "first page of the second disk"
    );
    assert_eq!(&file[32768 + 4..32768 + 8], b"FMPG");
    assert_eq!(file[32768 + 24], 0b101);
}

#[test]
fn a_torn_header_leaves_the_older_one() {
    let (old, all, mut file) = sample();
    let newer = Header { generation: 3, clean: false, ..old.clone() };
    file[HEADER_SLOT_BYTES..2 * HEADER_SLOT_BYTES].copy_from_slice(&encode_header(&newer));
    assert_eq!(parse_map(&file).expect("whole").header, newer);
    file[HEADER_SLOT_BYTES + 512..HEADER_SLOT_BYTES + 1024].fill(0xff);
    let state = parse_map(&file).expect("one header is whole");
    assert_eq!((state.header, state.bits), (old, all));
}

#[test]
fn a_page_that_cannot_be_trusted_is_all_set() {
    let (_, all, file) = sample();
    for bit in 0..512 * 8 {
        let mut damaged = file.clone();
        damaged[32768 + bit / 8] ^= 1 << (bit % 8);
        let state = parse_map(&damaged).expect("headers are whole");
        assert_eq!((state.bad_pages, state.bits[0].ones()), (1, 3904 + 2), "bit {bit}");
        assert_eq!(state.bits[1], all[1]);
    }
    let mut swapped = file.clone();
    swapped.copy_within(32768..32768 + 512, 32768 + 512);
    assert_eq!(parse_map(&swapped).expect("headers are whole").bad_pages, 1, "a page in another's place");
}

#[test]
fn cut_files_and_newer_versions_say_so() {
    let (header, _, file) = sample();
    for cut in [0, 1, 16383, 16384, 20000, 32767, 32768, file.len() - 1] {
        assert!(parse_map(&file[..cut]).is_err(), "cut at {cut}");
    }
    let mut slot = encode_header(&header).to_vec();
    slot[8] = 9;
    let crc = crc32c::crc32c(&slot[4..]);
    slot[..4].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(parse_map(&slot), Err(MapDamage::Version(9)));
}

#[test]
fn deterministic_mutations_never_panic() {
    let (_, _, file) = sample();
    let mut noise = 0x1234_5678_9abc_def1u64;
    for _ in 0..3000 {
        let mut mutated = file.clone();
        for _ in 0..4 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            let at = (noise >> 8) as usize % 1024;
            mutated[at] = noise as u8;
        }
        // With right checksums too, so that the fields behind them are reached.
        for slot in 0..2 {
            let start = slot * HEADER_SLOT_BYTES;
            let crc = crc32c::crc32c(&mutated[start + 4..start + HEADER_SLOT_BYTES]);
            mutated[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        }
        crate::fuzzing::dirty_map(&mutated);
        crate::fuzzing::spool(&mutated[..noise as usize % 2000]);
    }
}
