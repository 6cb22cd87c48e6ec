//! The door for the fuzzer: any bytes as a disk. It is read as `ls` and a recursive `cp` read it, under their rules: a
//! directory is entered once, a file is read once, and no more is read than the file system has.
//!
//! An image is mostly zeros, so it comes as numbered blocks. The unit test below walks the same door with mutations of
//! real file systems, so that each build tries some thousands.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::{Ext4, FsError, Inode, InodeKind, Volume, Window, kind_of, partitions};

/// Bytes of one block of an encoded image.
pub const BLOCK_BYTES: usize = 1024;

/// Blocks of an image.
pub const IMAGE_BLOCKS: usize = 4096;

/// Links that are followed: each may cost forty walks through directories.
const LINKS_MAX: usize = 16;

/// Any bytes as an encoded image.
pub fn image(data: &[u8]) {
    read_everything(Arc::new(decode(data)));
}

/// Numbers of two bytes, each with its block.
fn decode(data: &[u8]) -> Vec<u8> {
    let mut image = vec![0; IMAGE_BLOCKS * BLOCK_BYTES];
    for record in data.chunks(2 + BLOCK_BYTES).filter(|record| record.len() > 2) {
        let number = usize::from(u16::from_le_bytes([record[0], record[1]])) % IMAGE_BLOCKS;
        image[number * BLOCK_BYTES..][..record.len() - 2].copy_from_slice(&record[2..]);
    }
    image
}

/// The image as [`image`] reads it.
pub fn encode(image: &[u8]) -> Vec<u8> {
    let blocks = image.chunks(BLOCK_BYTES).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0));
    blocks.flat_map(|(number, block)| (number as u16).to_le_bytes().into_iter().chain(block.iter().copied())).collect()
}

/// What was read: files, and whether an error ended it.
pub(crate) fn read_everything(disk: Arc<dyn Volume>) -> (usize, Option<FsError>) {
    let table = partitions(&*disk).expect("memory is read without errors");
    let mut parts: Vec<Arc<dyn Volume>> = Vec::new();
    for partition in table.partitions.iter().take(8) {
        assert!(partition.offset + partition.size <= disk.size(), "{partition:?} lies within the disk");
        parts.push(Arc::new(Window::new(disk.clone(), partition.offset, partition.size)));
    }
    if parts.is_empty() {
        parts.push(disk);
    }
    let mut told = (0, None);
    for part in parts {
        let _known = kind_of(&*part).expect("memory is read without errors");
        match Ext4::open(part).and_then(|fs| walk(&fs)) {
            Ok(files) => told.0 += files,
            Err(error) => told.1 = Some(error),
        }
    }
    told
}

fn walk(fs: &Ext4) -> Result<usize, FsError> {
    let (mut met, mut links, mut files, mut bytes) = (BTreeSet::new(), 0, 0, 0u64);
    let mut rest: Vec<Inode> = vec![fs.resolve(b"/", true)?];
    while let Some(directory) = rest.pop() {
        if !met.insert(directory.number) {
            continue;
        }
        for entry in fs.list(&directory)? {
            assert!(!entry.name.contains(&b'/') && !matches!(&entry.name[..], b"" | b"." | b".."));
            let inode = fs.inode(entry.inode)?;
            files += 1;
            match inode.kind {
                InodeKind::Directory => rest.push(inode),
                InodeKind::Link if links < LINKS_MAX => {
                    links += 1;
                    assert!(fs.link_target(&inode)?.len() <= 4096);
                    let _may_lead_nowhere = fs.resolve(&entry.name, true);
                }
                InodeKind::File if met.insert(inode.number) => fs.read_file(&inode, |offset, piece| {
                    assert!(offset + piece.len() as u64 <= inode.size, "bytes lie within the file");
                    bytes += piece.len() as u64;
                    match bytes > fs.size() {
                        true => Err(FsError::damaged("more bytes than it has", "inode", inode.number.0)),
                        false => Ok(()),
                    }
                })?,
                _ => {}
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
#[path = "hostile_tests.rs"]
mod tests;
