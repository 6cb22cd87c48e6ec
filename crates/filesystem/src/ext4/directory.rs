//! Directories: names and the inodes they lead to, block by block.
//!
//! The blocks of an index of hashes hold an entry without an inode that covers them, so that who reads every block in
//! order sees each name once and no index.

use super::{Ext4, Inode, InodeKind, NodeNumber};
use crate::FsError;
use crate::fields::{Fields, checksum};

/// Most names of one directory that are read.
const ENTRIES_MAX: usize = 1 << 20;

/// Bytes of the entry that holds a block's checksum.
const TAIL_BYTES: usize = 12;

/// A name in a directory: 1 to 255 bytes, neither `.` nor `..`, without `/` and NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Vec<u8>,
    /// The inode it leads to.
    pub inode: NodeNumber,
}

impl Ext4 {
    /// The names of a directory in the order of the directory. Errors: `Damaged`, `NotADirectory`, `Unsupported` (more than
    /// a million names; see also [`Ext4::read_file`]), `Read`.
    pub fn list(&self, directory: &Inode) -> Result<Vec<DirEntry>, FsError> {
        let mut entries = Vec::new();
        self.visit(directory, |name, inode| {
            if entries.len() == ENTRIES_MAX {
                return Err(FsError::unsupported(format!("a directory of more than {ENTRIES_MAX} names")));
            }
            entries.push(DirEntry { name: name.to_owned(), inode });
            Ok(true)
        })?;
        Ok(entries)
    }

    /// The inode of a name in a directory.
    pub(super) fn find(&self, directory: &Inode, name: &[u8]) -> Result<Option<NodeNumber>, FsError> {
        let mut found = None;
        self.visit(directory, |other, inode| {
            if other == name {
                found = Some(inode);
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Shows every name to `visitor` until it says that it has seen enough.
    fn visit(
        &self,
        directory: &Inode,
        mut visitor: impl FnMut(&[u8], NodeNumber) -> Result<bool, FsError>,
    ) -> Result<(), FsError> {
        if directory.kind != InodeKind::Directory {
            return Err(FsError::NotADirectory { path: format!("inode {}", directory.number.0) });
        }
        let blocks = directory.size.div_ceil(self.superblock.block_bytes);
        for run in self.runs(directory)?.into_iter().filter(|run| run.written && run.logical < blocks) {
            for index in 0..run.len.min(blocks - run.logical) {
                let block = self.block(run.physical + index)?;
                let is_root = directory.has_index() && run.logical + index == 0;
                if !is_root && !is_index_node(&block) {
                    self.verify_block(directory, &block)?;
                }
                if !visit_block(directory, &block, &mut visitor)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The checksum of a block of names is in a last entry without a name. Blocks of the index have theirs elsewhere, and
    /// may have remains of such an entry; nothing is read from them.
    fn verify_block(&self, directory: &Inode, block: &[u8]) -> Result<(), FsError> {
        let at = block.len() - TAIL_BYTES;
        let tail = Fields(&block[at..]);
        let is_tail = tail.le32(0) == 0 && tail.le16(4) == TAIL_BYTES as u16 && tail.le16(6) == 0xde00;
        if self.superblock.checksums && is_tail && checksum(directory.seed, &block[..at]) != tail.le32(8) {
            return Err(FsError::damaged(
                "the checksum of a directory's block does not agree",
                "inode",
                directory.number.0,
            ));
        }
        Ok(())
    }
}

/// Whether a block belongs to the index: one entry without an inode covers all of it, the place of a checksum too.
fn is_index_node(block: &[u8]) -> bool {
    let entry = Fields(block);
    entry.le32(0) == 0 && entry_len(entry, block) == block.len()
}

/// Length of an entry of a block. In blocks of 64 KiB the length of a whole block does not fit its field.
fn entry_len(entry: Fields, block: &[u8]) -> usize {
    match entry.le16(4) {
        0 | u16::MAX if block.len() == 1 << 16 => block.len(),
        len => usize::from(len),
    }
}

/// Shows the names of one block; false when the visitor has seen enough.
fn visit_block(
    directory: &Inode,
    block: &[u8],
    visitor: &mut impl FnMut(&[u8], NodeNumber) -> Result<bool, FsError>,
) -> Result<bool, FsError> {
    let damaged = |what| FsError::damaged(what, "inode", directory.number.0);
    let mut at = 0;
    while at + 8 <= block.len() {
        let entry = Fields(&block[at..]);
        let (inode, name_len) = (entry.le32(0), usize::from(block[at + 6]));
        let len = entry_len(entry, block);
        if len < 8 + name_len || !len.is_multiple_of(4) || at + len > block.len() {
            return Err(damaged("a directory's entry does not fit its block"));
        }
        let name = &block[at + 8..at + 8 + name_len];
        at += len;
        if inode == 0 || name == b"." || name == b".." {
            continue;
        }
        if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(damaged("a directory holds a name that no file can have"));
        }
        if !visitor(name, NodeNumber(inode))? {
            return Ok(false);
        }
    }
    Ok(true)
}
