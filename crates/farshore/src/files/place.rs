//! Which file system is meant: of a disk, the partition asked for, or the only one that can be read.

use std::sync::Arc;

use filesystem::{FsKind, PartitionTable, TableKind, Volume, Window, kind_of, partitions};
use model::DiskName;

use super::guestfs;
use super::tree::Tree;
use crate::failure::usage;

/// How a disk is divided and what its parts hold.
pub struct DiskLayout {
    /// The disk.
    pub disk: DiskName,
    /// Its size in bytes.
    pub size: u64,
    /// Its partitions.
    pub table: PartitionTable,
    /// What the disk as a whole holds.
    pub whole: Option<FsKind>,
    /// What each partition holds, in the order of the table.
    pub holds: Vec<Option<FsKind>>,
}

/// Where a file system is looked for.
#[derive(Debug, Clone)]
pub struct Place {
    /// The disk.
    pub disk: DiskName,
    /// The partition, when it was said.
    pub partition: Option<u32>,
}

/// A file system that was found.
pub struct Found {
    /// The partition; `None` when the disk as a whole is the file system.
    pub partition: Option<u32>,
    /// It.
    pub fs: Tree,
}

/// Reads how a disk is divided.
pub fn layout(disk: DiskName, volume: &Arc<dyn Volume>) -> anyhow::Result<DiskLayout> {
    let table = partitions(&**volume)?;
    let whole = match table.kind {
        TableKind::None => kind_of(&**volume)?,
        TableKind::Gpt | TableKind::Mbr => None,
    };
    let part = |p: &filesystem::Partition| kind_of(&Window::new(volume.clone(), p.offset, p.size));
    let holds = table.partitions.iter().map(part).collect::<Result<_, _>>()?;
    Ok(DiskLayout { disk, size: volume.size(), table, whole, holds })
}

impl Place {
    /// Opens the file system. Errors: a usage error when the choice is not clear or there is no such partition;
    /// a sentence with the way out for a file system that cannot be read.
    pub fn open(&self, volume: Arc<dyn Volume>) -> anyhow::Result<Found> {
        let layout = layout(self.disk.clone(), &volume)?;
        let Some(index) = self.choose(&layout)? else {
            let kind = layout.whole.unwrap_or(FsKind::Ext);
            return Ok(Found { partition: None, fs: Tree::open(kind, volume.clone(), volume, None)? });
        };
        let (chosen, kind) = (&layout.table.partitions[index], layout.holds[index].unwrap_or(FsKind::Ext));
        let window = Arc::new(Window::new(volume.clone(), chosen.offset, chosen.size));
        Ok(Found { partition: Some(chosen.number), fs: Tree::open(kind, window, volume, Some(chosen.number))? })
    }

    /// The partition's index in the table, or none for the whole disk.
    fn choose(&self, layout: &DiskLayout) -> anyhow::Result<Option<usize>> {
        let disk = &self.disk;
        let parts = || layout.table.partitions.iter().zip(&layout.holds);
        if let Some(number) = self.partition {
            let Some((index, (_, holds))) = parts().enumerate().find(|(_, (p, _))| p.number == number) else {
                return Err(usage(format!("disk {disk} has no partition {number}; {}", told(layout))));
            };
            refuse_others(*holds, &format!("partition {number} of disk {disk}"))?;
            return Ok(Some(index));
        }
        if layout.table.kind == TableKind::None {
            refuse_others(layout.whole, &format!("disk {disk}"))?;
            return Ok(None);
        }
        let of = |wanted: fn(FsKind) -> bool| -> Vec<usize> {
            let fitting = parts().enumerate().filter(|(_, (_, holds))| holds.is_some_and(wanted));
            fitting.map(|(index, _)| index).collect()
        };
        // What needs no help comes first.
        let own = of(|kind| kind == FsKind::Ext);
        let readable = if own.is_empty() && guestfs::is_installed() { of(with_help) } else { own };
        match &readable[..] {
            [index] => Ok(Some(*index)),
            [] => anyhow::bail!("no partition of disk {disk} can be read: {}; {WAY_OUT}", told(layout)),
            _ => Err(usage(format!("disk {disk} has several: choose one with --partition; {}", told(layout)))),
        }
    }
}

/// What to do about a file system that is not read here.
const WAY_OUT: &str = "farshore reads ext2, ext3 and ext4, and where libguestfs (guestfish) is installed xfs and ntfs; for others \
                       export the disk with `farshore serve` and mount it";

/// What libguestfs reads for us.
fn with_help(kind: FsKind) -> bool {
    matches!(kind, FsKind::Xfs | FsKind::Ntfs)
}

fn refuse_others(holds: Option<FsKind>, what: &str) -> anyhow::Result<()> {
    match holds {
        Some(FsKind::Ext) => Ok(()),
        Some(kind) if with_help(kind) && guestfs::is_installed() => Ok(()),
        Some(other) => anyhow::bail!("{what} holds {}: {WAY_OUT}", other.name()),
        None => anyhow::bail!("{what} holds no file system that is known: {WAY_OUT}"),
    }
}

/// The partitions in a line.
fn told(layout: &DiskLayout) -> String {
    if layout.table.partitions.is_empty() {
        return "it has no partitions".into();
    }
    let parts = layout.table.partitions.iter().zip(&layout.holds);
    let parts = parts.map(|(p, holds)| format!("{} ({})", p.number, holds.map_or("unknown", FsKind::name)));
    format!("it has {}", parts.collect::<Vec<_>>().join(", "))
}
