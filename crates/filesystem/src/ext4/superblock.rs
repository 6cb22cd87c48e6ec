//! The superblock: what kind of file system, how large, and which of its features must be understood to read it.

use crate::FsError;
use crate::fields::{Fields, checksum};

/// Where it is.
const OFFSET: u64 = 1024;

/// How long it is.
const BYTES: usize = 1024;

/// Fewest blocks that a group may have: what mke2fs makes at least. It bounds the number of groups.
const GROUP_BLOCKS_MIN: u64 = 256;

/// Features without which, or with which, the file system cannot be read: name, bit, whether this reader knows it.
const INCOMPATIBLE: [(&str, u32, bool); 15] = [
    ("compression", 0x1, false),
    ("filetype", 0x2, true),
    ("needs_recovery", NEEDS_RECOVERY, true),
    ("journal_dev", 0x8, false),
    ("meta_bg", 0x10, false),
    ("extent", 0x40, true),
    ("64bit", WIDE, true),
    ("mmp", 0x100, true),
    ("flex_bg", 0x200, true),
    ("ea_inode", 0x400, true),
    ("dirdata", 0x1000, false),
    ("metadata_csum_seed", SEED_STORED, true),
    ("large_dir", 0x4000, true),
    // Refused file by file.
    ("inline_data", 0x8000, true),
    ("encrypt", 0x1_0000, true),
];

/// Names are compared without regard to case on some directories; here they are always compared as they are.
const CASEFOLD: u32 = 0x2_0000;

const NEEDS_RECOVERY: u32 = 0x4;
const WIDE: u32 = 0x80;
const SEED_STORED: u32 = 0x2000;
const HAS_JOURNAL: u32 = 0x4;
const METADATA_CSUM: u32 = 0x400;

/// What is needed of it.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// Bytes of a block: 1 KiB to 64 KiB, a power of two.
    pub block_bytes: u64,
    /// Blocks of the file system; all lie within the volume.
    pub blocks: u64,
    /// The block of the superblock: 1 for blocks of 1 KiB, else 0.
    pub first_data_block: u64,
    /// Number of groups.
    pub groups: u64,
    /// Inodes of a group, at least 1.
    pub inodes_per_group: u32,
    /// Inodes in all.
    pub inodes: u32,
    /// Bytes of an inode: a power of two, from 128 to a block.
    pub inode_bytes: usize,
    /// Bytes of a group's descriptor: 32, or from 64 to a block.
    pub descriptor_bytes: u64,
    /// Whether metadata carries checksums.
    pub checksums: bool,
    /// What they begin with.
    pub seed: u32,
    /// Whether group descriptors have their high halves.
    pub wide: bool,
    /// Inode of the journal; 0 when it lies elsewhere.
    pub journal_inode: u32,
    compatible: u32,
    incompatible: u32,
}

impl Superblock {
    /// Reads it and checks what the rest rests on.
    pub fn read(
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), FsError>,
        volume_bytes: u64,
    ) -> Result<Self, FsError> {
        let mut bytes = [0; BYTES];
        read(OFFSET, &mut bytes)?;
        let fields = Fields(&bytes);
        let damaged = |what| FsError::damaged(what, "byte", OFFSET);
        if fields.le16(0x38) != 0xef53 {
            return Err(damaged("there is no ext4 superblock"));
        }
        let (compatible, incompatible, read_only) = (fields.le32(0x5c), fields.le32(0x60), fields.le32(0x64));
        let checksums = read_only & METADATA_CSUM != 0;
        if checksums && checksum(!0, &bytes[..0x3fc]) != fields.le32(0x3fc) {
            return Err(damaged("the superblock's checksum does not agree"));
        }
        refuse_unknown(incompatible)?;
        let block_shift = fields.le32(0x18);
        if block_shift > 6 {
            return Err(damaged("the size of a block is out of range"));
        }
        let block_bytes = 1024u64 << block_shift;
        let wide = incompatible & WIDE != 0;
        let blocks = if wide { fields.le64_of(0x4, 0x150) } else { fields.le32(0x4).into() };
        let first_data_block = fields.le32(0x14).into();
        if first_data_block != u64::from(block_shift == 0) && !(block_shift == 0 && first_data_block == 0) {
            return Err(damaged("the first data block is not where it must be"));
        }
        if blocks <= first_data_block || blocks.checked_mul(block_bytes).is_none_or(|bytes| bytes > volume_bytes) {
            return Err(damaged("it is larger than the partition, or empty"));
        }
        let group_blocks = u64::from(fields.le32(0x20));
        if !(GROUP_BLOCKS_MIN..=8 * block_bytes * 8192).contains(&group_blocks) {
            return Err(damaged("the size of a group is out of range"));
        }
        let first_version = fields.le32(0x4c) == 0;
        let inode_bytes = if first_version { 128 } else { usize::from(fields.le16(0x58)) };
        if !inode_bytes.is_power_of_two() || !(128..=block_bytes as usize).contains(&inode_bytes) {
            return Err(damaged("the size of an inode is out of range"));
        }
        let descriptor_bytes = if wide { u64::from(fields.le16(0xfe)) } else { 32 };
        if !descriptor_bytes.is_power_of_two() || !(32..=block_bytes).contains(&descriptor_bytes) {
            return Err(damaged("the size of a group descriptor is out of range"));
        }
        let inodes_per_group = fields.le32(0x28);
        if inodes_per_group == 0 {
            return Err(damaged("a group has no inodes"));
        }
        let seed = match incompatible & SEED_STORED {
            0 => checksum(!0, &bytes[0x68..0x78]),
            _ => fields.le32(0x270),
        };
        let groups = (blocks - first_data_block).div_ceil(group_blocks);
        let wide = wide && descriptor_bytes >= 64;
        Ok(Self {
            block_bytes,
            blocks,
            first_data_block,
            groups,
            inodes_per_group,
            inodes: fields.le32(0x0),
            inode_bytes,
            descriptor_bytes,
            checksums,
            seed,
            wide,
            journal_inode: fields.le32(0xe0),
            compatible,
            incompatible,
        })
    }

    /// Whether the journal holds what the file system does not yet.
    pub fn needs_replay(&self) -> bool {
        self.compatible & HAS_JOURNAL != 0 && self.incompatible & NEEDS_RECOVERY != 0
    }
}

fn refuse_unknown(incompatible: u32) -> Result<(), FsError> {
    if let Some((name, ..)) = INCOMPATIBLE.iter().find(|(_, bit, known)| !known && incompatible & bit != 0) {
        return Err(FsError::unsupported(format!("an ext4 file system with the feature {name}")));
    }
    let listed = INCOMPATIBLE.iter().fold(CASEFOLD, |bits, (_, bit, _)| bits | bit);
    match incompatible & !listed {
        0 => Ok(()),
        unknown => Err(FsError::unsupported(format!("an ext4 file system with the unknown feature 0x{unknown:x}"))),
    }
}
