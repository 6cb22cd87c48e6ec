//! ext2, ext3 and ext4, file by file, as a kernel would show them after it had replayed the journal.
//!
//! [`Ext4::open`] reads the superblock, replays the journal into a map from blocks to their newer copies, and from then on
//! every block is read through that map ([`journal`]). Inodes are found through their group's descriptor ([`group`]), the
//! blocks of a file through its extents or block map ([`runs`]), names by reading directories from their first block to
//! their last ([`directory`]): an index of hashes only makes that faster, never different.
//!
//! Paths are resolved here, inode by inode: a link's target is read with a longest length and a largest number of hops,
//! and `..` goes back the way that was come, not where a directory's own entry says.

mod directory;
mod group;
mod inode;
mod journal;
mod resolve;
mod runs;
mod superblock;

use std::sync::Arc;

use crate::FsError;
use crate::volume::{Volume, read};

pub use directory::DirEntry;
pub use inode::{Inode, InodeKind, NodeNumber, Time};

use journal::Replay;
use superblock::Superblock;

/// Longest piece of a file that is read at once.
const PIECE_BYTES: u64 = 4 << 20;

/// Longest target of a symbolic link: the kernel's PATH_MAX.
const TARGET_BYTES_MAX: u64 = 4096;

/// An ext2, ext3 or ext4 file system.
pub struct Ext4 {
    volume: Arc<dyn Volume>,
    superblock: Superblock,
    replay: Replay,
}

impl Ext4 {
    /// Opens the file system of a volume and replays its journal in memory.
    /// Errors: `Damaged`, `Unsupported` (names the feature), `Read`.
    pub fn open(volume: Arc<dyn Volume>) -> Result<Self, FsError> {
        let superblock = Superblock::read(|offset, buf| read(&*volume, offset, buf), volume.size())?;
        let mut fs = Self { volume, superblock, replay: Replay::default() };
        if fs.superblock.needs_replay() {
            fs.replay = journal::replay(&fs)?;
            fs.superblock = Superblock::read(|offset, buf| fs.read_bytes(offset, buf), fs.volume.size())?;
        }
        Ok(fs)
    }

    /// Size of the file system in bytes.
    pub fn size(&self) -> u64 {
        self.superblock.blocks * self.superblock.block_bytes
    }

    /// Blocks whose newer copy is in the journal: 0 after a clean unmount.
    pub fn replayed_blocks(&self) -> usize {
        self.replay.len()
    }

    /// Reads bytes of the file system through the journal's copies; the range may span blocks.
    fn read_bytes(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        read(&*self.volume, offset, buf)?;
        self.replay.lay_over(&*self.volume, self.superblock.block_bytes, offset, buf)
    }

    /// One block.
    fn block(&self, number: u64) -> Result<Vec<u8>, FsError> {
        if number >= self.superblock.blocks {
            return Err(FsError::damaged("it names a block beyond its end", "block", number));
        }
        let mut block = vec![0; self.superblock.block_bytes as usize];
        self.read_bytes(number * self.superblock.block_bytes, &mut block)?;
        Ok(block)
    }

    /// Gives the bytes of a file to `sink` with their offsets, in order and in pieces of at most 4 MiB. Holes, and what was
    /// allocated but never written, are left out: they are zeros.
    pub fn read_file<E: From<FsError>>(
        &self,
        inode: &Inode,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let block_bytes = self.superblock.block_bytes;
        let mut buf = Vec::new();
        for run in self.runs(inode)?.into_iter().filter(|run| run.written) {
            let start = run.logical * block_bytes;
            let len = (run.len * block_bytes).min(inode.size.saturating_sub(start));
            let mut done = 0;
            while done < len {
                buf.resize(PIECE_BYTES.min(len - done) as usize, 0);
                self.read_bytes(run.physical * block_bytes + done, &mut buf)?;
                sink(start + done, &buf)?;
                done += buf.len() as u64;
            }
        }
        Ok(())
    }

    /// Where a symbolic link points: at most 4096 bytes, none of them NUL.
    pub fn link_target(&self, inode: &Inode) -> Result<Vec<u8>, FsError> {
        let damaged = |what| FsError::damaged(what, "inode", inode.number.0);
        if inode.size == 0 || inode.size > TARGET_BYTES_MAX {
            return Err(damaged("a symbolic link has no target, or one that is too long"));
        }
        let mut target = vec![0; inode.size as usize];
        match inode.inline_target() {
            Some(inline) => target.copy_from_slice(inline),
            None => self.read_file(inode, |offset, bytes| {
                target[offset as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok::<_, FsError>(())
            })?,
        }
        if target.contains(&0) {
            return Err(damaged("the target of a symbolic link holds a NUL"));
        }
        Ok(target)
    }
}
