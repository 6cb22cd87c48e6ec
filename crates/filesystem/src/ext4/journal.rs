//! The journal (jbd2), replayed in memory: a map from a block to where its newer copy lies in the journal.
//!
//! A point is what a power cut leaves, so a file system that was in use has a journal to be replayed: without that its
//! directories and inodes contradict each other. The rules are the kernel's:
//!
//! - The journal is a ring of blocks `first..last`; its transactions begin at `start`, are numbered one by one, and each
//!   counts only when its commit block is there.
//! - A block is taken from the last transaction that holds it, unless the same or a later transaction revokes it: then the
//!   block has become something else, and the old copy would destroy it.
//! - A copy that began with the journal's own magic number was written without it ("escaped") and gets it back.
//!
//! ```text
//! | superblock | … | descriptor: tags | copy | copy | revocations | commit | descriptor … | (older life of the ring)
//!                   ^ start                                                             ^ ends at the first block that is
//!                                                                                         not of the expected transaction
//! ```
//!
//! A transaction whose descriptor, revocations or commit have a wrong checksum was torn by the power cut and ends the
//! journal; a copy with a wrong checksum in a committed one is damage. Nothing is written anywhere.

use std::collections::BTreeMap;

use super::inode::NodeNumber;
use super::runs::Run;
use super::{Ext4, InodeKind};
use crate::FsError;
use crate::fields::{Fields, checksum};
use crate::volume::{Volume, read};

/// Longest journal in blocks.
const JOURNAL_BLOCKS_MAX: u64 = 1 << 21;

const MAGIC: u32 = 0xc03b_3998;
const HEADER_BYTES: usize = 12;

const REVOKE: u32 = 0x1;
const WIDE: u32 = 0x2;
const CHECKSUM_2: u32 = 0x8;
const CHECKSUM_3: u32 = 0x10;

const TAG_ESCAPED: u32 = 0x1;
const TAG_SAME_UUID: u32 = 0x2;
const TAG_LAST: u32 = 0x8;

/// Where the newer copy of a block is.
#[derive(Debug, Clone, Copy)]
struct Copy {
    /// Block of the volume.
    block: u64,
    /// Whether it begins with the magic number, which is not there.
    escaped: bool,
}

/// The blocks that the journal has newer.
#[derive(Default)]
pub(super) struct Replay {
    copies: BTreeMap<u64, Copy>,
}

impl Replay {
    /// How many.
    pub fn len(&self) -> usize {
        self.copies.len()
    }

    /// Lays the copies of all blocks in a range over what was read from their old places.
    pub fn lay_over(&self, volume: &dyn Volume, block_bytes: u64, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        let end = offset + buf.len() as u64;
        for (&number, copy) in self.copies.range(offset / block_bytes..end.div_ceil(block_bytes)) {
            let start = number * block_bytes;
            let (from, to) = (start.max(offset), (start + block_bytes).min(end));
            let mut block = vec![0; block_bytes as usize];
            read(volume, copy.block * block_bytes, &mut block)?;
            if copy.escaped {
                block[..4].copy_from_slice(&MAGIC.to_be_bytes());
            }
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&block[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }
}

/// Reads the journal of a file system that needs it.
pub(super) fn replay(fs: &Ext4) -> Result<Replay, FsError> {
    let number = fs.superblock.journal_inode;
    if number == 0 {
        return Err(FsError::unsupported("an ext4 file system that was in use and has its journal on another device"));
    }
    let inode = fs.inode_any(NodeNumber(number))?;
    if inode.kind != InodeKind::File {
        return Err(FsError::damaged("the journal is not a file", "inode", number));
    }
    let blocks = blocks_of(fs.runs(&inode)?, number)?;
    let Some(journal) = Journal::open(fs, &blocks)? else { return Ok(Replay::default()) };
    let log = journal.scan()?;
    journal.copies(&log)
}

/// The blocks of the journal in order.
fn blocks_of(runs: Vec<Run>, inode: u32) -> Result<Vec<u64>, FsError> {
    let mut blocks = Vec::new();
    for run in runs {
        if run.logical != blocks.len() as u64 || !run.written || run.logical + run.len > JOURNAL_BLOCKS_MAX {
            return Err(FsError::damaged("the journal has holes or is too long", "inode", inode));
        }
        blocks.extend(run.physical..run.physical + run.len);
    }
    Ok(blocks)
}

/// A journal with something in it.
struct Journal<'a> {
    fs: &'a Ext4,
    blocks: &'a [u64],
    first: u32,
    last: u32,
    start: u32,
    sequence: u32,
    features: u32,
    seed: u32,
}

/// What the committed transactions say.
#[derive(Default)]
struct Log {
    /// Copies in the order of the journal, each with its transaction's place.
    tags: Vec<(Tag, u32)>,
    /// For each revoked block the last transaction that revokes it.
    revoked: BTreeMap<u64, u32>,
}

/// One copy.
#[derive(Debug, Clone, Copy)]
struct Tag {
    home: u64,
    at: u32,
    escaped: bool,
    sum: u32,
}

impl<'a> Journal<'a> {
    /// Reads the journal's superblock; `None` when there is nothing to replay.
    fn open(fs: &'a Ext4, blocks: &'a [u64]) -> Result<Option<Self>, FsError> {
        let damaged = |what| FsError::damaged(what, "inode", fs.superblock.journal_inode);
        let superblock = fs.block(*blocks.first().ok_or_else(|| damaged("the journal is empty"))?)?;
        let bytes = &superblock[..1024];
        let fields = Fields(bytes);
        let version = fields.be32(4);
        if fields.be32(0) != MAGIC || !matches!(version, 3 | 4) {
            return Err(damaged("the journal has no superblock"));
        }
        let features = if version == 4 { fields.be32(0x28) } else { 0 };
        let unknown = features & !(REVOKE | WIDE | CHECKSUM_2 | CHECKSUM_3);
        let summed = features & (CHECKSUM_2 | CHECKSUM_3) != 0;
        if summed {
            let sum = checksum(checksum(checksum(!0, &bytes[..0xfc]), &[0; 4]), &bytes[0x100..]);
            if sum != fields.be32(0xfc) {
                return Err(damaged("the checksum of the journal's superblock does not agree"));
            }
        }
        let start = fields.be32(0x1c);
        if start == 0 {
            return Ok(None);
        }
        if unknown != 0 {
            let name = if unknown & 0x20 != 0 { "fast_commit".into() } else { format!("0x{unknown:x}") };
            return Err(FsError::unsupported(format!("an ext4 journal to be replayed with the feature {name}")));
        }
        let (last, first) = (fields.be32(0x10), fields.be32(0x14));
        let sound = u64::from(fields.be32(0xc)) == fs.superblock.block_bytes
            && u64::from(last) <= blocks.len() as u64
            && (1..last).contains(&first)
            && (first..last).contains(&start);
        if !sound {
            return Err(damaged("the journal's superblock does not hold together"));
        }
        let seed = checksum(!0, &bytes[0x30..0x40]);
        Ok(Some(Self { fs, blocks, first, last, start, sequence: fields.be32(0x18), features, seed }))
    }

    fn has(&self, features: u32) -> bool {
        self.features & features != 0
    }

    fn summed(&self) -> bool {
        self.has(CHECKSUM_2 | CHECKSUM_3)
    }

    fn block(&self, at: u32) -> Result<Vec<u8>, FsError> {
        let mut block = vec![0; self.fs.superblock.block_bytes as usize];
        read(&*self.fs.volume, self.blocks[at as usize] * self.fs.superblock.block_bytes, &mut block)?;
        Ok(block)
    }

    /// The place `by` blocks further round the ring.
    fn after(&self, at: u32, by: u32) -> u32 {
        let ring = self.last - self.first;
        self.first + (at - self.first + by) % ring
    }

    /// Walks the transactions, from the first to the last that is committed.
    fn scan(&self) -> Result<Log, FsError> {
        let (mut log, mut open) = (Log::default(), Log::default());
        let (mut at, mut nth, mut walked) = (self.start, 0u32, 0u32);
        while walked < self.last - self.first {
            let block = self.block(at)?;
            let header = Fields(&block);
            if header.be32(0) != MAGIC || header.be32(8) != self.sequence.wrapping_add(nth) {
                break;
            }
            let mut steps = 1;
            match header.be32(4) {
                1 if self.tail_agrees(&block) => {
                    let tags = self.tags(&block, at)?;
                    steps += tags.len() as u32;
                    open.tags.extend(tags.into_iter().map(|tag| (tag, nth)));
                }
                2 if self.commit_agrees(&block) => {
                    log.tags.append(&mut open.tags);
                    log.revoked.append(&mut open.revoked);
                    nth += 1;
                }
                5 if self.tail_agrees(&block) => {
                    let revoked = self.revocations(&block, at)?;
                    open.revoked.extend(revoked.into_iter().map(|block| (block, nth)));
                }
                _ => break,
            }
            at = self.after(at, steps);
            walked += steps;
        }
        Ok(log)
    }

    /// Descriptors and revocations end with the checksum of their block.
    fn tail_agrees(&self, block: &[u8]) -> bool {
        let at = block.len() - 4;
        !self.summed() || checksum(checksum(self.seed, &block[..at]), &[0; 4]) == Fields(block).be32(at)
    }

    fn commit_agrees(&self, block: &[u8]) -> bool {
        let sum = checksum(checksum(checksum(self.seed, &block[..16]), &[0; 4]), &block[20..]);
        !self.summed() || sum == Fields(block).be32(16)
    }

    /// The tags of a descriptor; their copies follow it one by one.
    fn tags(&self, block: &[u8], at: u32) -> Result<Vec<Tag>, FsError> {
        let (tag_bytes, end) = (self.tag_bytes(), block.len() - if self.summed() { 4 } else { 0 });
        let (mut tags, mut offset) = (Vec::new(), HEADER_BYTES);
        while offset + tag_bytes <= end {
            let (mut tag, flags) = self.tag(&block[offset..offset + tag_bytes]);
            tag.at = self.after(at, 1 + tags.len() as u32);
            if tag.home >= self.fs.superblock.blocks || tags.len() as u32 >= self.last - self.first {
                return Err(FsError::damaged("the journal holds a block beyond the end", "block", tag.home));
            }
            tags.push(tag);
            offset += tag_bytes + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    fn tag_bytes(&self) -> usize {
        match (self.has(CHECKSUM_3), self.has(CHECKSUM_2), self.has(WIDE)) {
            (true, ..) => 16,
            (false, summed, wide) => 8 + if summed { 2 } else { 0 } + if wide { 4 } else { 0 },
        }
    }

    fn tag(&self, bytes: &[u8]) -> (Tag, u32) {
        let fields = Fields(bytes);
        let high = if self.has(WIDE) { u64::from(fields.be32(8)) << 32 } else { 0 };
        let home = high | u64::from(fields.be32(0));
        let (flags, sum) = match self.has(CHECKSUM_3) {
            true => (fields.be32(4), fields.be32(12)),
            false => (fields.be16(6).into(), fields.be16(4).into()),
        };
        (Tag { home, at: 0, escaped: flags & TAG_ESCAPED != 0, sum }, flags)
    }

    fn revocations(&self, block: &[u8], at: u32) -> Result<Vec<u64>, FsError> {
        let width = if self.has(WIDE) { 8 } else { 4 };
        let end = Fields(block).be32(HEADER_BYTES) as usize;
        if end > block.len() || end < HEADER_BYTES + 4 {
            return Err(FsError::damaged("a list of revocations does not fit its block", "journal block", at));
        }
        let records = block[HEADER_BYTES + 4..end].chunks_exact(width);
        Ok(records.map(|r| if width == 8 { Fields(r).be64(0) } else { Fields(r).be32(0).into() }).collect())
    }

    /// The last copy of each block that no later transaction revokes.
    fn copies(&self, log: &Log) -> Result<Replay, FsError> {
        let mut replay = Replay::default();
        for (tag, nth) in &log.tags {
            if log.revoked.get(&tag.home).is_some_and(|revoked| revoked >= nth) {
                continue;
            }
            self.verify_copy(tag, *nth)?;
            let copy = Copy { block: self.blocks[tag.at as usize], escaped: tag.escaped };
            replay.copies.insert(tag.home, copy);
        }
        Ok(replay)
    }

    fn verify_copy(&self, tag: &Tag, nth: u32) -> Result<(), FsError> {
        if !self.summed() {
            return Ok(());
        }
        let number = self.sequence.wrapping_add(nth).to_be_bytes();
        let sum = checksum(checksum(self.seed, &number), &self.block(tag.at)?);
        let agrees = if self.has(CHECKSUM_3) { sum == tag.sum } else { sum & 0xffff == tag.sum };
        if agrees { Ok(()) } else { Err(FsError::damaged("a copy in the journal is damaged", "block", tag.home)) }
    }
}
