//! The fuzz targets over their committed corpus, and over seeded mutations of it: no fuzzer needed.

use std::path::Path;

/// Mutations made of each corpus file that a person named.
const ROUNDS: u64 = 1000;

/// A small fixed generator (splitmix64): the same mutations in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        // Most fields stand in the first hundreds of bytes, whatever the length.
        let reach = if random.below(4) == 0 { bytes.len() } else { bytes.len().min(400) };
        let at = random.below(reach);
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at.min(bytes.len()), random.next() as u8),
            2 if at < bytes.len() => _ = bytes.remove(at),
            3 => bytes.extend((0..random.below(20)).map(|n| n as u8)),
            4 if at < bytes.len() => bytes[at] = [0, 0xff, 0x7f, 0x80][random.below(4)],
            _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => {}
        }
    }
}

fn run(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("directory entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds nothing", dir.display());
    let mut random = Random(1);
    body(&[]);
    for path in paths {
        let original = std::fs::read(&path).expect("corpus file");
        body(&original);
        // Finds of the fuzzer, named by their hash, are mutations already.
        let rounds = if path.file_name().is_some_and(|name| name.len() == 40) { 0 } else { ROUNDS };
        for _ in 0..rounds {
            let mut bytes = original.clone();
            mutate(&mut random, &mut bytes);
            body(&bytes);
        }
    }
}

#[test]
fn wire_survives_any_bytes() {
    run("wire", super::wire);
}

#[test]
fn segment_survives_any_bytes() {
    run("segment", super::segment);
}

#[test]
fn manifest_survives_any_bytes() {
    run("manifest", super::manifest);
}

#[test]
fn object_survives_any_bytes() {
    run("object", super::object);
}

#[test]
fn map() {
    run("map", super::map);
}

#[test]
fn trace_survives_any_bytes() {
    run("trace", super::trace);
}
