//! Inodes: what a file is, whose, how long, and where its blocks begin.

use super::Ext4;
use crate::FsError;
use crate::fields::{Fields, checksum};

/// Number of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeNumber(pub u32);

/// The root directory.
pub(super) const ROOT: NodeNumber = NodeNumber(2);

/// Bytes of the field that holds the root of the extents, the block map, or a short link's target.
pub(super) const MAP_BYTES: usize = 60;

const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_INDEX: u32 = 0x1000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl InodeKind {
    /// By the upper four bits of a mode, as stat(2) has them.
    pub fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode & 0xf000 {
            0x8000 => InodeKind::File,
            0x4000 => InodeKind::Directory,
            0xa000 => InodeKind::Link,
            0x2000 => InodeKind::CharDevice,
            0x6000 => InodeKind::BlockDevice,
            0x1000 => InodeKind::Fifo,
            0xc000 => InodeKind::Socket,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            InodeKind::File => "file",
            InodeKind::Directory => "directory",
            InodeKind::Link => "symlink",
            InodeKind::CharDevice => "character device",
            InodeKind::BlockDevice => "block device",
            InodeKind::Fifo => "fifo",
            InodeKind::Socket => "socket",
        }
    }
}

/// A moment: seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Seconds; from 1901 to 2446.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// One inode.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Its number.
    pub number: NodeNumber,
    /// What it is.
    pub kind: InodeKind,
    /// Permissions with set-user-id, set-group-id and sticky: the low 12 bits.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Names it has.
    pub links: u16,
    /// When its contents were last changed.
    pub modified: Time,
    flags: u32,
    /// What the checksums of its blocks begin with.
    pub(super) seed: u32,
    pub(super) map: [u8; MAP_BYTES],
}

impl Inode {
    /// Whether its blocks are in an extent tree; else in a block map.
    pub(super) fn has_extents(&self) -> bool {
        self.flags & FLAG_EXTENTS != 0
    }

    /// Whether it is a directory whose first block is the root of an index.
    pub(super) fn has_index(&self) -> bool {
        self.flags & FLAG_INDEX != 0
    }

    /// The target of a short symbolic link.
    pub(super) fn inline_target(&self) -> Option<&[u8]> {
        let short = self.size < MAP_BYTES as u64 && !self.has_extents();
        short.then(|| &self.map[..self.size as usize])
    }

    /// Refuses what this reader cannot show as it is.
    pub(super) fn refuse_unreadable(&self) -> Result<(), FsError> {
        if self.flags & FLAG_ENCRYPTED != 0 {
            return Err(FsError::unsupported(format!("inode {}, which is encrypted,", self.number.0)));
        }
        if self.flags & FLAG_INLINE != 0 {
            return Err(FsError::unsupported(format!("inode {} with the feature inline_data", self.number.0)));
        }
        Ok(())
    }
}

impl Ext4 {
    /// Reads an inode. Errors: `Damaged` also for one that is not in use.
    pub fn inode(&self, number: NodeNumber) -> Result<Inode, FsError> {
        let inode = self.inode_any(number)?;
        if inode.links == 0 {
            return Err(FsError::damaged("a name leads to an inode that is not in use", "inode", number.0));
        }
        Ok(inode)
    }

    /// The same, whether a name leads to it or not: the journal has no name.
    pub(super) fn inode_any(&self, number: NodeNumber) -> Result<Inode, FsError> {
        let sb = &self.superblock;
        let damaged = |what| FsError::damaged(what, "inode", number.0);
        if number.0 == 0 || number.0 > sb.inodes {
            return Err(damaged("an inode's number is out of range"));
        }
        let (group, index) = ((number.0 - 1) / sb.inodes_per_group, (number.0 - 1) % sb.inodes_per_group);
        let table = self.inode_table(group.into())?;
        let at = u64::from(index) * sb.inode_bytes as u64;
        let block = self.block(table.saturating_add(at / sb.block_bytes))?;
        let at = (at % sb.block_bytes) as usize;
        decode(number, &block[at..at + sb.inode_bytes], sb.checksums.then_some(sb.seed)).map_err(damaged)
    }
}

/// Decodes an inode, and verifies it when there is a seed.
fn decode(number: NodeNumber, bytes: &[u8], seed: Option<u32>) -> Result<Inode, &'static str> {
    let fields = Fields(bytes);
    let extra = if bytes.len() >= 130 { usize::from(fields.le16(0x80)).min(bytes.len() - 128) } else { 0 };
    let own_seed = seed.map(|seed| {
        let seed = checksum(seed, &number.0.to_le_bytes());
        checksum(seed, &bytes[0x64..0x68])
    });
    if let Some(seed) = own_seed {
        verify(bytes, extra, seed)?;
    }
    let mode = fields.le16(0x0);
    let kind = InodeKind::of_mode(mode).ok_or("an inode is of no known kind")?;
    let modified = time(fields.le32(0x10), if extra >= 12 { fields.le32(0x88) } else { 0 });
    Ok(Inode {
        number,
        kind,
        permissions: mode & 0xfff,
        uid: u32::from(fields.le16(0x78)) << 16 | u32::from(fields.le16(0x2)),
        gid: u32::from(fields.le16(0x7a)) << 16 | u32::from(fields.le16(0x18)),
        size: match kind {
            InodeKind::File | InodeKind::Directory | InodeKind::Link => fields.le64_of(0x4, 0x6c),
            _ => 0,
        },
        links: fields.le16(0x1a),
        modified,
        flags: fields.le32(0x20),
        seed: own_seed.unwrap_or_default(),
        map: bytes[0x28..0x28 + MAP_BYTES].try_into().expect("the range has that length"),
    })
}

fn verify(bytes: &[u8], extra: usize, seed: u32) -> Result<(), &'static str> {
    let fields = Fields(bytes);
    let mut sum = checksum(checksum(seed, &bytes[..0x7c]), &[0; 2]);
    sum = checksum(sum, &bytes[0x7e..0x80]);
    let mut expected = u32::from(fields.le16(0x7c));
    let mut mask = 0xffff;
    if bytes.len() > 128 {
        sum = checksum(sum, &bytes[0x80..0x82]);
        if extra >= 4 {
            sum = checksum(sum, &[0; 2]);
            expected |= u32::from(fields.le16(0x82)) << 16;
            mask = u32::MAX;
        } else {
            sum = checksum(sum, &bytes[0x82..0x84]);
        }
        sum = checksum(sum, &bytes[0x84..]);
    }
    if sum & mask == expected { Ok(()) } else { Err("an inode's checksum does not agree") }
}

/// The low two bits of `extra` go above the signed seconds, the others are nanoseconds.
fn time(seconds: u32, extra: u32) -> Time {
    let seconds = i64::from(seconds as i32) + (i64::from(extra & 3) << 32);
    Time { seconds, nanos: (extra >> 2).min(999_999_999) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038_are_told_apart() {
        assert_eq!(time(u32::MAX, 0).seconds, -1);
        assert_eq!(time(0x8000_0000, 1), Time { seconds: 0x8000_0000, nanos: 0 });
        assert_eq!(time(5, 7 << 2), Time { seconds: 5, nanos: 7 });
    }
}
