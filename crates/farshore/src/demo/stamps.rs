//! Self-describing blocks: each 4 KiB block of the workload says which disk, which place and which write it is.
//!
//! ```text
//! 0       8            12           16         24         32            48
//! │ magic │ disk index │ reserved 0 │ block no │ write no │ checksum    │ filler … 4096 │
//! ```
//! All numbers little-endian. The checksum is the first 16 bytes of BLAKE3 over everything else in the block, so a torn,
//! flipped or mixed block cannot pass for any write. The filler is a function of the three numbers: half repeats a
//! sentence (it compresses), half is noise (it does not), as on a real disk.

/// Bytes of a block, the unit of the workload.
pub const BLOCK_BYTES: usize = 4096;

const MAGIC: [u8; 8] = *b"FARBLOCK";
const HEADER_BYTES: usize = 48;
const CHECKSUM: std::ops::Range<usize> = 32..48;
/// Where the noise begins.
const NOISE_AT: usize = HEADER_BYTES + (BLOCK_BYTES - HEADER_BYTES) / 2;
const SENTENCE: &[u8] = b"the log is the truth; disks are views of it. ";

/// What a block says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Index of the disk in the workload.
    pub disk: u32,
    /// Number of the block on the disk.
    pub block: u64,
    /// Number of the write in the client's history.
    pub write: u64,
}

/// What a 4 KiB block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Only zeros.
    Zeros,
    /// An intact block of the workload.
    Stamped(Stamp),
    /// Anything else: torn, damaged, or not ours.
    Foreign,
}

/// Fills one block.
pub fn fill(block: &mut [u8; BLOCK_BYTES], stamp: Stamp) {
    block[..8].copy_from_slice(&MAGIC);
    block[8..12].copy_from_slice(&stamp.disk.to_le_bytes());
    block[12..16].fill(0);
    block[16..24].copy_from_slice(&stamp.block.to_le_bytes());
    block[24..32].copy_from_slice(&stamp.write.to_le_bytes());
    for (i, byte) in block[HEADER_BYTES..NOISE_AT].iter_mut().enumerate() {
        *byte = SENTENCE[i % SENTENCE.len()];
    }
    let mut noise = Noise::new(stamp.write ^ stamp.block.rotate_left(32) ^ u64::from(stamp.disk).rotate_left(56));
    for chunk in block[NOISE_AT..].chunks_mut(8) {
        let word = noise.next_u64().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    let sum = checksum(block);
    block[CHECKSUM].copy_from_slice(&sum);
}

/// The payload of a write of `blocks` blocks from `stamp.block` on.
pub fn payload(stamp: Stamp, blocks: u64) -> Vec<u8> {
    let mut data = Vec::new();
    let mut block = [0; BLOCK_BYTES];
    for i in 0..blocks {
        fill(&mut block, Stamp { block: stamp.block + i, ..stamp });
        data.extend_from_slice(&block);
    }
    data
}

/// Reads one block. Anything that is not exactly one block long is foreign.
pub fn read(block: &[u8]) -> Content {
    let Ok(block) = <&[u8; BLOCK_BYTES]>::try_from(block) else { return Content::Foreign };
    if block.iter().all(|b| *b == 0) {
        return Content::Zeros;
    }
    let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes were sliced"));
    let intact = block[..8] == MAGIC && block[12..16] == [0; 4] && block[CHECKSUM] == checksum(block);
    if !intact {
        return Content::Foreign;
    }
    let disk = u32::from_le_bytes(block[8..12].try_into().expect("four bytes were sliced"));
    Content::Stamped(Stamp { disk, block: word(16), write: word(24) })
}

fn checksum(block: &[u8; BLOCK_BYTES]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&block[..CHECKSUM.start]).update(&block[CHECKSUM.end..]);
    let mut sum = [0; 16];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    sum
}

/// A small deterministic generator (splitmix64): the workload is the same in every run.
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Noise(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { disk: 1, block: 77, write: 12345 };

    fn block() -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        fill(&mut block, STAMP);
        block
    }

    #[test]
    fn a_block_says_what_it_is() {
        assert_eq!(read(&block()), Content::Stamped(STAMP));
        assert_eq!(read(&[0; BLOCK_BYTES]), Content::Zeros);
        assert_eq!(read(&payload(STAMP, 3)[BLOCK_BYTES * 2..]), Content::Stamped(Stamp { block: 79, ..STAMP }));
    }

    #[test]
    fn any_flipped_bit_makes_a_block_foreign() {
        for bit in (0..BLOCK_BYTES * 8).step_by(97) {
            let mut bad = block();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&bad), Content::Foreign, "bit {bit}");
        }
        assert_eq!(read(&block()[..4095]), Content::Foreign);
    }

    #[test]
    fn a_torn_block_is_foreign_at_every_sector() {
        let mut newer = [0; BLOCK_BYTES];
        fill(&mut newer, Stamp { write: 12346, ..STAMP });
        for cut in (512..BLOCK_BYTES).step_by(512) {
            let mut torn = block();
            torn[..cut].copy_from_slice(&newer[..cut]);
            assert_eq!(read(&torn), Content::Foreign, "torn at {cut}");
        }
    }
}
