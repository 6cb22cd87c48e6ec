//! Fixed VHD: the bytes of the disk and a footer of 512 bytes, all its fields big-endian ("Virtual Hard Disk Image Format
//! Specification", Microsoft, 2006).
//!
//! ```text
//! 0  "conectix"    8 features 2        12 version 1.0     16 data offset: all ones, for a fixed disk
//! 24 seconds since 2000               28 creator        32 its version      36 its host     40 original size
//! 48 current size  56 cylinders, heads, sectors           60 type 2: fixed    64 checksum     68 unique id   84 zeros
//! ```
//! Two readings of the size exist: Virtual PC takes cylinders times heads times sectors, which cuts most disks short;
//! Hyper-V and Azure take the current size. Readers such as QEMU choose by the creator field, so we write Hyper-V's
//! (`win `): the current size holds exactly.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use model::SECTOR_BYTES;

/// A footer.
pub(super) const FOOTER_BYTES: u64 = 512;

/// Virtual sizes are multiples of this: Azure takes no other.
const SIZE_UNIT_BYTES: u64 = 1 << 20;

/// The largest disk the format may hold: 2040 GiB.
const SIZE_BYTES_MAX: u64 = 2040 << 30;

/// Seconds from 1970 to 2000, where the format's time begins.
const EPOCH_2000_SECONDS: u64 = 946_684_800;

/// Where the footer says when it was made, the checksum and the unique id.
const SECONDS_AT: usize = 24;
const CHECKSUM_AT: usize = 64;
const ID_AT: usize = 68;

/// The bytes that the footer of a disk of `size` bytes speaks of.
pub(super) fn virtual_size(size: u64) -> io::Result<u64> {
    if size > SIZE_BYTES_MAX {
        let why = format!("a VHD holds at most 2040 GiB, this disk has {size} bytes: choose raw or qcow2");
        return Err(io::Error::new(ErrorKind::InvalidInput, why));
    }
    Ok(size.next_multiple_of(SIZE_UNIT_BYTES))
}

/// A footer with the time and an id of its own.
pub(super) fn new_footer(virtual_size: u64) -> io::Result<Bytes> {
    Ok(Bytes::copy_from_slice(&footer(virtual_size, Stamp::now()?)))
}

/// Whether these bytes are a footer that [`new_footer`] made for this size, at whatever time.
pub(super) fn is_footer(bytes: &[u8], virtual_size: u64) -> bool {
    let Some(stamp) = Stamp::of(bytes) else { return false };
    footer(virtual_size, stamp) == *bytes
}

/// What makes one image differ from another: the wall clock and randomness come in here and nowhere else.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    seconds_since_2000: u32,
    id: [u8; 16],
}

impl Stamp {
    fn now() -> io::Result<Self> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let seconds_since_2000 = u32::try_from(unix.saturating_sub(EPOCH_2000_SECONDS)).unwrap_or(u32::MAX);
        let mut id = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut id)?;
        Ok(Self { seconds_since_2000, id })
    }

    /// That of a footer.
    fn of(footer: &[u8]) -> Option<Self> {
        let seconds_since_2000 = u32::from_be_bytes(*footer.get(SECONDS_AT..)?.first_chunk()?);
        Some(Self { seconds_since_2000, id: *footer.get(ID_AT..)?.first_chunk()? })
    }
}

fn footer(size: u64, stamp: Stamp) -> [u8; FOOTER_BYTES as usize] {
    let (cylinders, heads, sectors) = geometry(size / SECTOR_BYTES);
    let mut footer = [0; FOOTER_BYTES as usize];
    let mut put = |at: usize, bytes: &[u8]| footer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"conectix");
    put(8, &2u32.to_be_bytes());
    put(12, &0x0001_0000u32.to_be_bytes());
    put(16, &u64::MAX.to_be_bytes());
    put(SECONDS_AT, &stamp.seconds_since_2000.to_be_bytes());
    put(28, b"win ");
    put(32, &0x000a_0000u32.to_be_bytes());
    put(36, b"Wi2k");
    put(40, &size.to_be_bytes());
    put(48, &size.to_be_bytes());
    put(56, &cylinders.to_be_bytes());
    put(58, &[heads, sectors]);
    put(60, &2u32.to_be_bytes());
    put(ID_AT, &stamp.id);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

/// Cylinders, heads and sectors for a disk of so many sectors, by the specification's appendix. What is larger than the
/// largest geometry gets the largest.
fn geometry(sectors_total: u64) -> (u16, u8, u8) {
    let total = sectors_total.min(65_535 * 16 * 255);
    let (heads, sectors, cylinder_heads);
    if total >= 65_535 * 16 * 63 {
        (heads, sectors) = (16, 255);
        cylinder_heads = total / sectors;
    } else {
        let mut trial = (total / 17, (total / 17).div_ceil(1024).max(4), 17);
        if trial.0 >= trial.1 * 1024 || trial.1 > 16 {
            trial = (total / 31, 16, 31);
        }
        if trial.0 >= trial.1 * 1024 {
            trial = (total / 63, 16, 63);
        }
        (cylinder_heads, heads, sectors) = trial;
    }
    // By the bounds above: at most 65535, 16 and 255.
    ((cylinder_heads / heads) as u16, heads as u8, sectors as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { seconds_since_2000: 0x0102_0304, id: [0xab; 16] };

    #[test]
    fn the_footer_s_fields_lie_where_the_specification_says() {
        let footer = footer(3 << 20, STAMP);
        assert_eq!(&footer[..8], b"conectix");
        assert_eq!(&footer[8..16], &[0, 0, 0, 2, 0, 1, 0, 0]);
        assert_eq!(&footer[16..24], &[0xff; 8]);
        assert_eq!(&footer[24..40], b"\x01\x02\x03\x04win \x00\x0a\x00\x00Wi2k");
        assert_eq!(&footer[40..48], &(3u64 << 20).to_be_bytes());
        assert_eq!(&footer[48..56], &(3u64 << 20).to_be_bytes());
        assert_eq!(&footer[60..64], &[0, 0, 0, 2]);
        assert_eq!(&footer[68..84], &[0xab; 16]);
        assert!(footer[84..].iter().all(|byte| *byte == 0));
        // The checksum is the complement of the sum of all bytes but its own.
        let sum: u32 = footer[..64].iter().chain(&footer[68..]).map(|b| u32::from(*b)).sum();
        assert_eq!(&footer[64..68], &(!sum).to_be_bytes());
    }

    #[test]
    fn a_footer_is_known_again_and_any_flipped_bit_is_noticed() {
        let whole = new_footer(3 << 20).expect("footer");
        assert!(is_footer(&whole, 3 << 20) && !is_footer(&whole, 4 << 20) && !is_footer(&whole[..511], 3 << 20));
        for at in 0..whole.len() {
            let mut damaged = whole.to_vec();
            damaged[at] ^= 1;
            assert!(!is_footer(&damaged, 3 << 20), "byte {at}");
        }
    }

    #[test]
    fn geometry_is_as_the_specification_computes_it() {
        for (mib, expected) in [
            (3, (90, 4, 17)),
            (64, (963, 8, 17)),
            (128, (963, 16, 17)),
            (1 << 10, (2080, 16, 63)),
            (127 << 10, (65_278, 16, 255)),
            (2040 << 10, (65_535, 16, 255)),
        ] {
            let sectors = (mib << 20) / 512;
            let got = geometry(sectors);
            let capacity = u64::from(got.0) * u64::from(got.1) * u64::from(got.2);
            assert!(capacity <= sectors, "{mib} MiB: the geometry never exceeds the disk");
            assert_eq!(got, expected, "{mib} MiB");
        }
    }
}
