//! A disk in memory that knows its holes: the export of tests, here and in other crates.
//!
//! It is a plain model with deterministic answers where the protocol leaves a choice: a trimmed range always reads as
//! zeros, and whole pages of it become holes. Memory grows with the pages written, not with the size.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::{BlockStatus, Errno, Export, ZeroFlags};

/// Unit in which holes are tracked, in bytes.
pub const PAGE_BYTES: u64 = 4096;

type Pages = BTreeMap<u64, Box<[u8]>>;

/// An export in memory, all holes at first.
#[derive(Debug)]
pub struct MemoryExport {
    size: u64,
    read_only: bool,
    minimum_block: u32,
    pages: Mutex<Pages>,
    /// Counts flushes and FUA requests; relaxed, it orders nothing.
    flushes: AtomicU64,
}

impl MemoryExport {
    /// A writable disk of `size` bytes with blocks of 512 bytes.
    pub fn new(size: u64) -> Self {
        Self { size, read_only: false, minimum_block: 512, pages: Mutex::default(), flushes: AtomicU64::new(0) }
    }

    /// A disk that holds `contents`; pages of zeros are holes.
    pub fn from_contents(contents: &[u8]) -> Self {
        let export = Self::new(contents.len() as u64);
        for (index, page) in contents.chunks(PAGE_BYTES as usize).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                store(&mut export.pages(), index as u64 * PAGE_BYTES, page);
            }
        }
        export
    }

    /// Refuses writes from now on.
    pub fn into_read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// Changes the smallest block, in bytes: 1 or 512.
    pub fn with_minimum_block(self, minimum_block: u32) -> Self {
        Self { minimum_block, ..self }
    }

    /// Everything on the disk.
    pub fn contents(&self) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(self.size).expect("a disk in memory fits in memory")];
        load(&self.pages(), 0, &mut all);
        all
    }

    /// Bytes that are not holes.
    pub fn allocated_bytes(&self) -> u64 {
        self.pages().len() as u64 * PAGE_BYTES
    }

    /// Flushes and FUA requests so far.
    pub fn flushes(&self) -> u64 {
        // Relaxed: a count.
        self.flushes.load(Ordering::Relaxed)
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("no operation panics while it holds the pages")
    }

    fn durable(&self, fua: bool) {
        if fua {
            // Relaxed: a count.
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn check(&self, offset: u64, len: u64, write: bool) -> Result<(), Errno> {
        if write && self.read_only {
            return Err(Errno::Permission);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Errno::Invalid),
        }
    }
}

/// Pieces of a range, one per page: page, start in the page, length.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (page, start) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let part = (PAGE_BYTES - start).min(end - at);
            at += part;
            (page, start as usize, part as usize)
        })
    })
}

fn store(pages: &mut Pages, offset: u64, mut data: &[u8]) {
    for (page, start, len) in pieces(offset, data.len() as u64) {
        let (part, rest) = data.split_at(len);
        let page = pages.entry(page).or_insert_with(|| vec![0; PAGE_BYTES as usize].into());
        page[start..start + len].copy_from_slice(part);
        data = rest;
    }
}

fn load(pages: &Pages, offset: u64, mut out: &mut [u8]) {
    for (page, start, len) in pieces(offset, out.len() as u64) {
        let (part, rest) = out.split_at_mut(len);
        match pages.get(&page) {
            Some(page) => part.copy_from_slice(&page[start..start + len]),
            None => part.fill(0),
        }
        out = rest;
    }
}

/// Whole pages become holes, the rest is filled with zeros where it is not a hole already.
fn punch(pages: &mut Pages, offset: u64, len: u64, size: u64) {
    let end = offset + len;
    let first_whole = offset.div_ceil(PAGE_BYTES);
    let end_whole = if end == size { end.div_ceil(PAGE_BYTES) } else { end / PAGE_BYTES };
    if first_whole < end_whole {
        let mut above = pages.split_off(&first_whole);
        pages.append(&mut above.split_off(&end_whole));
    }
    let edges = [(offset, end.min(first_whole * PAGE_BYTES)), (offset.max(end_whole * PAGE_BYTES), end)];
    for (from, to) in edges {
        for (page, start, len) in pieces(from, to.saturating_sub(from)) {
            if let Some(page) = pages.get_mut(&page) {
                page[start..start + len].fill(0);
            }
        }
    }
}

#[async_trait]
impl Export for MemoryExport {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn minimum_block(&self) -> u32 {
        self.minimum_block
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        self.check(offset, u64::from(len), false)?;
        let mut data = BytesMut::zeroed(len as usize);
        load(&self.pages(), offset, &mut data);
        Ok(data.freeze())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        self.check(offset, data.len() as u64, true)?;
        store(&mut self.pages(), offset, &data);
        self.durable(fua);
        Ok(())
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.durable(true);
        Ok(())
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.check(offset, len, true)?;
        punch(&mut self.pages(), offset, len, self.size);
        self.durable(fua);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        self.check(offset, len, true)?;
        let mut pages = self.pages();
        if flags.no_hole {
            for (page, start, len) in pieces(offset, len) {
                let page = pages.entry(page).or_insert_with(|| vec![0; PAGE_BYTES as usize].into());
                page[start..start + len].fill(0);
            }
        } else {
            punch(&mut pages, offset, len, self.size);
        }
        self.durable(flags.fua);
        Ok(())
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockStatus>, Errno> {
        self.check(offset, len, false)?;
        let end = offset + len;
        let mut runs = Vec::new();
        let mut at = offset;
        let pages = self.pages();
        for page in pages.range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(|(page, _)| page * PAGE_BYTES) {
            if at < page {
                runs.push(BlockStatus { len: page - at, hole: true, zero: true });
            }
            let stop = end.min(page + PAGE_BYTES);
            runs.push(BlockStatus { len: stop - page.max(offset), hole: false, zero: false });
            at = stop;
        }
        if at < end {
            runs.push(BlockStatus { len: end - at, hole: true, zero: true });
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: BlockStatus = BlockStatus { len: 4096, hole: false, zero: false };

    fn hole(len: u64) -> BlockStatus {
        BlockStatus { len, hole: true, zero: true }
    }

    #[tokio::test]
    async fn a_new_disk_is_one_hole_and_a_write_allocates_its_pages() {
        let disk = MemoryExport::new(65536);
        assert_eq!(disk.block_status(0, 65536).await.unwrap(), [hole(65536)]);
        disk.write(8192 + 512, Bytes::from_static(&[7; 512]), false).await.unwrap();
        assert_eq!(disk.block_status(0, 65536).await.unwrap(), [hole(8192), DATA, hole(65536 - 12288)]);
        let part = disk.block_status(8192 + 1024, 4096).await.unwrap();
        assert_eq!(part, [BlockStatus { len: 3072, ..DATA }, hole(1024)]);
        assert_eq!(disk.allocated_bytes(), 4096);
    }

    #[tokio::test]
    async fn a_trim_frees_whole_pages_and_zeroes_the_edges() {
        let disk = MemoryExport::from_contents(&[9; 16384]);
        disk.trim(512, 12288, false).await.unwrap();
        let mut expected = vec![9; 16384];
        expected[512..12800].fill(0);
        assert_eq!(disk.contents(), expected);
        assert_eq!(disk.allocated_bytes(), 8192);
    }

    #[tokio::test]
    async fn a_trim_inside_one_page_keeps_the_page() {
        let disk = MemoryExport::from_contents(&[9; 4096]);
        disk.trim(512, 512, false).await.unwrap();
        let mut expected = vec![9; 4096];
        expected[512..1024].fill(0);
        assert_eq!(disk.contents(), expected);
    }

    #[tokio::test]
    async fn zeros_without_holes_stay_allocated() {
        let disk = MemoryExport::new(8192);
        disk.write_zeroes(0, 4096, ZeroFlags { no_hole: true, ..ZeroFlags::default() }).await.unwrap();
        assert_eq!(disk.block_status(0, 8192).await.unwrap(), [DATA, hole(4096)]);
    }

    #[tokio::test]
    async fn a_disk_that_ends_inside_a_page_frees_that_page_too() {
        let disk = MemoryExport::from_contents(&[9; 4608]);
        disk.trim(0, 4608, false).await.unwrap();
        assert_eq!((disk.allocated_bytes(), disk.contents()), (0, vec![0; 4608]));
    }

    #[tokio::test]
    async fn a_read_only_disk_refuses_writes() {
        let disk = MemoryExport::new(4096).into_read_only();
        assert_eq!(disk.write(0, Bytes::from_static(&[1; 512]), false).await, Err(Errno::Permission));
        assert_eq!(disk.trim(0, 512, false).await, Err(Errno::Permission));
    }
}
