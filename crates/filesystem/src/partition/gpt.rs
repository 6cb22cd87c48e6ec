//! The GUID partition table, front or back. The library's types decode header and entries and compute the checksums.

use gpt_disk_types::{BlockSize, GptHeader, GptPartitionEntry, GptPartitionEntryArray};

use super::{Partition, within};
use crate::FsError;
use crate::volume::{Volume, read};

/// Sizes a sector may have: the table does not say which it was made for.
const SECTOR_BYTES: [u64; 2] = [512, 4096];

/// Longest array of entries that is read: 128 entries of 128 bytes are usual.
const ENTRIES_BYTES_MAX: u64 = 4 << 20;

/// The partitions of a disk that has a GPT.
pub(super) fn read_table(disk: &dyn Volume) -> Result<Option<Vec<Partition>>, FsError> {
    for sector_bytes in SECTOR_BYTES {
        let last = (disk.size() / sector_bytes).saturating_sub(1);
        for sector in [1, last] {
            if let Some(partitions) = read_at(disk, sector, sector_bytes)? {
                return Ok(Some(partitions));
            }
        }
    }
    Ok(None)
}

/// The table whose header is in this sector, if there is one and it is whole.
fn read_at(disk: &dyn Volume, sector: u64, sector_bytes: u64) -> Result<Option<Vec<Partition>>, FsError> {
    let at = sector * sector_bytes;
    let mut bytes = [0; size_of::<GptHeader>()];
    if sector == 0 || at + bytes.len() as u64 > disk.size() {
        return Ok(None);
    }
    read(disk, at, &mut bytes)?;
    let header: GptHeader = bytemuck::pod_read_unaligned(&bytes);
    if !header.is_signature_valid() || header.header_crc32 != header.calculate_header_crc32() {
        return Ok(None);
    }
    let Ok(layout) = header.get_partition_entry_array_layout() else { return Ok(None) };
    let block_size = BlockSize::new(sector_bytes as u32).expect("both sizes are large enough");
    let Some(len) = layout.num_bytes_rounded_to_block(block_size).filter(|len| *len <= ENTRIES_BYTES_MAX) else {
        return Ok(None);
    };
    let start = layout.start_lba.to_u64().checked_mul(sector_bytes);
    let Some(start) = start.filter(|start| start.checked_add(len).is_some_and(|end| end <= disk.size())) else {
        return Ok(None);
    };
    let mut storage = vec![0; len as usize];
    read(disk, start, &mut storage)?;
    let Ok(array) = GptPartitionEntryArray::new(layout, block_size, &mut storage) else { return Ok(None) };
    if array.calculate_crc32() != header.partition_entry_array_crc32 {
        return Ok(None);
    }
    let entries = (0..layout.num_entries).filter_map(|index| {
        let entry = array.get_partition_entry(index).filter(|entry| entry.is_used())?;
        partition(disk, index + 1, entry, sector_bytes)
    });
    Ok(Some(entries.collect()))
}

fn partition(disk: &dyn Volume, number: u32, entry: &GptPartitionEntry, sector_bytes: u64) -> Option<Partition> {
    let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let (offset, size) = within(disk, first, sectors, sector_bytes)?;
    let table_type = { entry.partition_type_guid }.0.to_string();
    let name = { entry.name }.chars().collect();
    Some(Partition { number, offset, size, table_type, name })
}
