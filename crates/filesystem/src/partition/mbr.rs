//! The master boot record: four entries, one of which may hold a chain of boot records with the logical partitions.

use super::{Partition, within};
use crate::FsError;
use crate::fields::Fields;
use crate::volume::{Volume, read};

/// Bytes of a sector: an MBR counts in nothing else here.
const SECTOR_BYTES: u64 = 512;

/// Types that hold a chain of logical partitions.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Longest chain: the kernel's own limit is lower.
const LOGICAL_MAX: u32 = 256;

struct Entry {
    table_type: u8,
    start: u64,
    sectors: u64,
}

/// The four entries of a boot record; `None` when it is none.
fn entries(disk: &dyn Volume, sector: u64) -> Result<Option<[Entry; 4]>, FsError> {
    let mut bytes = [0; SECTOR_BYTES as usize];
    let Some((at, _)) = within(disk, sector, 1, SECTOR_BYTES) else { return Ok(None) };
    read(disk, at, &mut bytes)?;
    let record = Fields(&bytes);
    let entry = |index: usize| {
        let at = 446 + 16 * index;
        Entry { table_type: bytes[at + 4], start: record.le32(at + 8).into(), sectors: record.le32(at + 12).into() }
    };
    let flags_known = (0..4).all(|index| bytes[446 + 16 * index] & 0x7f == 0);
    let signed = bytes[510..] == [0x55, 0xaa];
    Ok((signed && flags_known).then(|| std::array::from_fn(entry)))
}

/// The partitions of a disk that has an MBR with at least one.
pub(super) fn read_table(disk: &dyn Volume) -> Result<Option<Vec<Partition>>, FsError> {
    let Some(primary) = entries(disk, 0)? else { return Ok(None) };
    let mut partitions = Vec::new();
    for (entry, number) in primary.iter().zip(1..) {
        if EXTENDED.contains(&entry.table_type) {
            partitions.extend(logical(disk, entry)?);
        } else {
            partitions.extend(partition(disk, number, entry, 0));
        }
    }
    partitions.sort_by_key(|partition| partition.number);
    Ok((!partitions.is_empty()).then_some(partitions))
}

fn partition(disk: &dyn Volume, number: u32, entry: &Entry, base: u64) -> Option<Partition> {
    let (offset, size) = within(disk, base.checked_add(entry.start)?, entry.sectors, SECTOR_BYTES)?;
    let table_type = format!("0x{:02x}", entry.table_type);
    (entry.table_type != 0).then(|| Partition { number, offset, size, table_type, name: String::new() })
}

/// The chain of an extended partition. Each record names one logical partition, relative to itself, and the next record,
/// relative to the extended partition. A chain that goes in a circle ends at its longest length.
fn logical(disk: &dyn Volume, extended: &Entry) -> Result<Vec<Partition>, FsError> {
    let mut partitions = Vec::new();
    let mut record = extended.start;
    for _ in 0..LOGICAL_MAX {
        let Some([this, next, ..]) = entries(disk, record)? else { break };
        let number = 5 + partitions.len() as u32;
        partitions.extend(partition(disk, number, &this, record));
        if !EXTENDED.contains(&next.table_type) || next.start == 0 {
            break;
        }
        record = extended.start + next.start;
    }
    Ok(partitions)
}
