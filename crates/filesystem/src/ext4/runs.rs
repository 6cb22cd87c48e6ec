//! Which blocks a file has: its extent tree, or the block map of ext2 and ext3, as a list of runs.

use super::inode::Inode;
use super::{Ext4, InodeKind};
use crate::FsError;
use crate::fields::{Fields, checksum};

/// Most runs of one file.
const RUNS_MAX: usize = 1 << 21;

/// Most blocks of an extent tree or block map that are read for one file.
const NODES_MAX: usize = 1 << 19;

/// Deepest extent tree.
const DEPTH_MAX: u16 = 5;

/// Longest extent that was written; longer ones say so of one that was not.
const WRITTEN_LEN_MAX: u16 = 32_768;

/// Blocks that follow each other in the file and on the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First block in the file.
    pub logical: u64,
    /// First block on the volume.
    pub physical: u64,
    /// Number of blocks.
    pub len: u64,
    /// Whether they were ever written; what was only allocated reads as zeros.
    pub written: bool,
}

/// The runs found so far, in the order of the file.
struct Runs<'a> {
    fs: &'a Ext4,
    inode: &'a Inode,
    found: Vec<Run>,
    nodes: usize,
    blocks: u64,
}

impl Ext4 {
    /// The runs of a file, in order, without overlaps. All lie on the volume.
    /// Errors: `Damaged`, `Unsupported` (inline data, encryption, more than two million runs), `Read`.
    pub(super) fn runs(&self, inode: &Inode) -> Result<Vec<Run>, FsError> {
        inode.refuse_unreadable()?;
        if !matches!(inode.kind, InodeKind::File | InodeKind::Directory | InodeKind::Link) {
            return Ok(Vec::new());
        }
        let mut runs = Runs { fs: self, inode, found: Vec::new(), nodes: 0, blocks: 0 };
        if inode.has_extents() {
            runs.extents(&inode.map, None)?;
        } else {
            runs.block_map()?;
        }
        Ok(runs.found)
    }
}

impl Runs<'_> {
    fn damaged(&self, what: &'static str) -> FsError {
        FsError::damaged(what, "inode", self.inode.number.0)
    }

    /// One more block of the tree or map.
    fn node(&mut self, number: u64) -> Result<Vec<u8>, FsError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(self.damaged("the map of a file's blocks does not end"));
        }
        self.fs.block(number)
    }

    fn push(&mut self, run: Run) -> Result<(), FsError> {
        let beyond = |end: Option<u64>, limit: u64| end.is_none_or(|end| end > limit);
        let end = self.found.last().map_or(0, |last| last.logical + last.len);
        if run.logical < end || beyond(run.physical.checked_add(run.len), self.fs.superblock.blocks) {
            return Err(self.damaged("a file's blocks overlap or lie beyond the end"));
        }
        // No block is in a file twice: who reads a file reads no more than there is.
        self.blocks += run.len;
        if self.blocks > self.fs.superblock.blocks {
            return Err(self.damaged("a file has more blocks than the file system"));
        }
        let full = self.found.len() == RUNS_MAX;
        match self.found.last_mut() {
            Some(last)
                if last.written == run.written && end == run.logical && last.physical + last.len == run.physical =>
            {
                last.len += run.len;
            }
            _ if full => {
                return Err(FsError::unsupported(format!("a file in more than {RUNS_MAX} pieces")));
            }
            _ => self.found.push(run),
        }
        Ok(())
    }

    /// A node of the extent tree: a header of 12 bytes, then entries of 12 bytes. `depth` is what its parent expects.
    /// It calls itself at most five deep, for depths count down.
    fn extents(&mut self, node: &[u8], expected: Option<u16>) -> Result<(), FsError> {
        let header = Fields(node);
        let (entries, most, depth) = (header.le16(2), header.le16(4), header.le16(6));
        let fits = 12 + 12 * usize::from(entries) <= node.len() && entries <= most;
        if header.le16(0) != 0xf30a || !fits || depth > DEPTH_MAX || expected.is_some_and(|e| e != depth) {
            return Err(self.damaged("an extent tree's node does not hold together"));
        }
        if expected.is_some() {
            self.verify(node, most)?;
        }
        for index in 0..usize::from(entries) {
            let entry = Fields(&node[12 + 12 * index..][..12]);
            if depth == 0 {
                self.extent(entry)?;
            } else {
                let child = u64::from(entry.le16(8)) << 32 | u64::from(entry.le32(4));
                let child = self.node(child)?;
                self.extents(&child, Some(depth - 1))?;
            }
        }
        Ok(())
    }

    fn extent(&mut self, entry: Fields) -> Result<(), FsError> {
        let len = entry.le16(4);
        let written = len <= WRITTEN_LEN_MAX;
        let len = u64::from(if written { len } else { len - WRITTEN_LEN_MAX });
        let physical = u64::from(entry.le16(6)) << 32 | u64::from(entry.le32(8));
        if len == 0 {
            return Err(self.damaged("an extent is empty"));
        }
        self.push(Run { logical: entry.le32(0).into(), physical, len, written })
    }

    /// The checksum stands behind the last entry there is room for.
    fn verify(&self, node: &[u8], most: u16) -> Result<(), FsError> {
        let at = 12 + 12 * usize::from(most);
        if !self.fs.superblock.checksums {
            return Ok(());
        }
        if at + 4 > node.len() || checksum(self.inode.seed, &node[..at]) != Fields(node).le32(at) {
            return Err(self.damaged("the checksum of an extent tree's node does not agree"));
        }
        Ok(())
    }

    /// Twelve blocks, then one block of numbers, one of numbers of such blocks, and one more level.
    fn block_map(&mut self) -> Result<(), FsError> {
        let map = self.inode.map;
        let fields = Fields(&map);
        let blocks = self.inode.size.div_ceil(self.fs.superblock.block_bytes);
        let mut logical = 0;
        for (index, level) in (0..12).map(|index| (index, 0)).chain([(12, 1), (13, 2), (14, 3)]) {
            if logical < blocks {
                self.pointer(fields.le32(4 * index), level, &mut logical, blocks)?;
            }
        }
        Ok(())
    }

    /// A number at `level` above the data; 0 is a hole. It calls itself at most three deep.
    fn pointer(&mut self, number: u32, level: u32, logical: &mut u64, blocks: u64) -> Result<(), FsError> {
        let per_block = self.fs.superblock.block_bytes / 4;
        if number == 0 {
            *logical += per_block.pow(level);
            return Ok(());
        }
        if level == 0 {
            self.push(Run { logical: *logical, physical: number.into(), len: 1, written: true })?;
            *logical += 1;
            return Ok(());
        }
        let node = self.node(number.into())?;
        for at in (0..node.len()).step_by(4) {
            if *logical >= blocks {
                break;
            }
            self.pointer(Fields(&node).le32(at), level - 1, logical, blocks)?;
        }
        Ok(())
    }
}
