//! Group descriptors: where the inodes of a group are. They are read one at a time, for a large file system has millions.

use super::Ext4;
use crate::FsError;
use crate::fields::{Fields, checksum};

impl Ext4 {
    /// First block of a group's table of inodes.
    pub(super) fn inode_table(&self, group: u64) -> Result<u64, FsError> {
        let sb = &self.superblock;
        if group >= sb.groups {
            return Err(FsError::damaged("an inode's group does not exist", "group", group));
        }
        let per_block = sb.block_bytes / sb.descriptor_bytes;
        let block = self.block(sb.first_data_block.max(superblock_block(sb.block_bytes)) + 1 + group / per_block)?;
        let at = (group % per_block * sb.descriptor_bytes) as usize;
        let bytes = &block[at..at + sb.descriptor_bytes as usize];
        let fields = Fields(bytes);
        if sb.checksums {
            let mut sum = checksum(sb.seed, &(group as u32).to_le_bytes());
            sum = checksum(checksum(checksum(sum, &bytes[..0x1e]), &[0; 2]), &bytes[0x20..]);
            if sum as u16 != fields.le16(0x1e) {
                return Err(FsError::damaged("a group descriptor's checksum does not agree", "group", group));
            }
        }
        Ok(if sb.wide { fields.le64_of(0x8, 0x28) } else { fields.le32(0x8).into() })
    }
}

/// The block that holds the superblock.
fn superblock_block(block_bytes: u64) -> u64 {
    u64::from(block_bytes == 1024)
}
