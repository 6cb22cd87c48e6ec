//! What simulated clients write: every sector says who wrote it, where it belongs and what its writer had seen.
//!
//! ```text
//! 0       8         16      20     24      32               64     68                  512
//! │ magic │ op      │machine│ disk │ sector│ seen (4 × u64)  │ crc  │ marker … noise … │
//! ```
//! So any image can be judged alone: a sector is zero, or it carries a whole stamp of this very place. `seen` names, for
//! each machine, the last operation there that was acknowledged before this one was issued: by it, effects without their
//! causes are found across machines. The marker is plaintext that must never be found in a store or a spool.

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Most machines of one run.
pub const MACHINES_MAX: usize = 4;

/// Text in every sector that a client writes.
pub const MARKER: &[u8] = b"PLAINTEXT-OF-A-CUSTOMER";

const MAGIC: &[u8; 8] = b"FSSTAMP1";
const CRC_AT: usize = 64;
const BODY_AT: usize = 68;
const MARKERS: usize = 10;

/// What one sector says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the operation on its machine, from 1; 0 is what was there before the first.
    pub op: u64,
    /// Which machine.
    pub machine: u32,
    /// Which of its disks.
    pub disk: u32,
    /// Which sector of it.
    pub sector: u64,
    /// Last acknowledged operation of each machine when this one was issued.
    pub seen: [u64; MACHINES_MAX],
}

/// What a sector turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Zeros.
    Zero,
    /// A whole stamp.
    Stamp(Stamp),
    /// Neither.
    Garbage,
}

impl Stamp {
    /// Appends the sector.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.op.to_le_bytes());
        out.extend_from_slice(&self.machine.to_le_bytes());
        out.extend_from_slice(&self.disk.to_le_bytes());
        out.extend_from_slice(&self.sector.to_le_bytes());
        self.seen.iter().for_each(|seen| out.extend_from_slice(&seen.to_le_bytes()));
        out.extend_from_slice(&[0; BODY_AT - CRC_AT]);
        for _ in 0..MARKERS {
            out.extend_from_slice(MARKER);
        }
        let mut noise = self.op.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.sector.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        while out.len() < start + SECTOR {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            out.push((noise >> 56) as u8);
        }
        let crc = checksum(&out[start..]);
        out[start + CRC_AT..start + BODY_AT].copy_from_slice(&crc);
    }

    /// Reads a sector.
    pub fn read(bytes: &[u8]) -> Found {
        if bytes.iter().all(|byte| *byte == 0) {
            return Found::Zero;
        }
        if bytes.len() != SECTOR || bytes[..8] != *MAGIC || checksum(bytes) != bytes[CRC_AT..BODY_AT] {
            return Found::Garbage;
        }
        let long = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("a sector is longer"));
        let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("a sector is longer"));
        Found::Stamp(Stamp {
            op: long(8),
            machine: word(16),
            disk: word(20),
            sector: long(24),
            seen: [long(32), long(40), long(48), long(56)],
        })
    }
}

/// Over everything but the checksum itself.
fn checksum(sector: &[u8]) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&sector[..CRC_AT]);
    hasher.update(&sector[BODY_AT..]);
    *hasher.finalize().as_bytes().first_chunk().expect("a hash is longer")
}

/// Judges an image by itself: every sector is zero or belongs where it is. Says where the first one is that does not.
pub fn judge_alone(machine: u32, disk: u32, image: &[u8]) -> Result<(), String> {
    for (sector, bytes) in image.chunks(SECTOR).enumerate() {
        let right = match Stamp::read(bytes) {
            Found::Zero => true,
            Found::Stamp(stamp) => (stamp.machine, stamp.disk, stamp.sector) == (machine, disk, sector as u64),
            Found::Garbage => false,
        };
        if !right {
            return Err(format!(
                "machine {machine} disk {disk} sector {sector} is neither zero nor stamped for its place"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(sector: u64) -> Stamp {
        Stamp { op: 7, machine: 1, disk: 0, sector, seen: [1, 2, 3, 4] }
    }

    fn image(sectors: u64) -> Vec<u8> {
        let mut image = Vec::new();
        (0..sectors).for_each(|sector| stamp(sector).write(&mut image));
        image
    }

    #[test]
    fn a_stamp_reads_back() {
        let image = image(3);
        assert_eq!(image.len(), 3 * SECTOR);
        assert_eq!(Stamp::read(&image[SECTOR..2 * SECTOR]), Found::Stamp(stamp(1)));
        assert_eq!(Stamp::read(&[0; SECTOR]), Found::Zero);
    }

    #[test]
    fn an_image_is_judged_alone_and_any_fault_is_found() {
        judge_alone(1, 0, &image(4)).expect("whole");
        let mut flipped = image(4);
        flipped[SECTOR + 300] ^= 1;
        assert!(judge_alone(1, 0, &flipped).is_err(), "a flipped bit");
        let mut swapped = image(4);
        swapped.copy_within(0..SECTOR, SECTOR);
        assert!(judge_alone(1, 0, &swapped).is_err(), "a misplaced sector");
        assert!(judge_alone(1, 1, &image(1)).is_err(), "another disk");
        assert!(judge_alone(1, 0, &[5; SECTOR]).is_err(), "garbage");
    }
}
