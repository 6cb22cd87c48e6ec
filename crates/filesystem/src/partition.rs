//! How a disk is divided: GPT, MBR with its chain of extended partitions, or not at all.
//!
//! A GPT is taken when its header's checksum and the checksum of its entries agree, first at the front of the disk and
//! then, when the front is damaged, at its end. An MBR is taken when its signature is there, its entries lie within the
//! disk and no file system begins at the first sector, for boot sectors of file systems carry the same signature.

mod gpt;
mod mbr;

use crate::FsError;
use crate::kind::{FsKind, kind_of};
use crate::volume::Volume;

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// A GUID partition table.
    Gpt,
    /// A master boot record.
    Mbr,
    /// No table: the disk as a whole is one file system, or nothing known.
    None,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number as the kernel counts: the N of `sdaN`; logical partitions of an MBR begin at 5.
    pub number: u32,
    /// First byte on the disk.
    pub offset: u64,
    /// Size in bytes; it lies within the disk.
    pub size: u64,
    /// Its type in the table: a GUID, or `0x83`.
    pub table_type: String,
    /// Its name in the table; empty for MBR.
    pub name: String,
}

/// A disk's partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTable {
    /// Which table it has.
    pub kind: TableKind,
    /// In the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// Reads how a disk is divided. Errors: `Read`.
pub fn partitions(disk: &dyn Volume) -> Result<PartitionTable, FsError> {
    if let Some(partitions) = gpt::read_table(disk)? {
        return Ok(PartitionTable { kind: TableKind::Gpt, partitions });
    }
    let bare = PartitionTable { kind: TableKind::None, partitions: Vec::new() };
    match kind_of(disk)? {
        // A disk image that boots from both carries a table and an ISO 9660 file system.
        None | Some(FsKind::Iso9660) => {}
        Some(_) => return Ok(bare),
    }
    Ok(match mbr::read_table(disk)? {
        Some(partitions) => PartitionTable { kind: TableKind::Mbr, partitions },
        None => bare,
    })
}

/// A partition of `sectors` sectors at `start`; `None` when it is empty or does not lie within the disk.
fn within(disk: &dyn Volume, start: u64, sectors: u64, sector_bytes: u64) -> Option<(u64, u64)> {
    let offset = start.checked_mul(sector_bytes)?;
    let size = sectors.checked_mul(sector_bytes)?;
    (size > 0 && offset.checked_add(size)? <= disk.size()).then_some((offset, size))
}
