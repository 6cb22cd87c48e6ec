//! qcow2: version 3, clusters of 64 KiB ("QCOW2 image format", docs/interop/qcow2.rst of QEMU). All numbers big-endian.
//!
//! ```text
//!   0        1..                                                            first data cluster ..
//! │ header │ refcount table │ refcount blocks │ L1 table │ L2 tables in use │ data clusters, in the disk's order │
//! ```
//! Which clusters hold data is known before the first is written, so every table is a function of that set: nothing is
//! allocated on the way, no table changes, and the order of writes is free. Each cluster of the file is used once, so
//! every refcount is 1; there are no snapshots and no backing file.

use bytes::{Bytes, BytesMut};
use model::Extent;

use super::Part;

/// 2 to this power are the bytes of a cluster.
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;

/// Bytes of an entry of the L1, L2 and refcount tables.
const ENTRY_BYTES: u64 = 8;

/// Entries of one cluster of them.
const ENTRIES: u64 = CLUSTER_BYTES / ENTRY_BYTES;

/// Refcounts of 2 bytes in one block.
const REFCOUNTS: u64 = CLUSTER_BYTES / 2;

/// 2 to this power are the bits of a refcount.
const REFCOUNT_ORDER: u32 = 4;

/// Bytes of the header's fields, for version 3.
const HEADER_BYTES: u32 = 104;

/// Says of a table entry that the refcount of what it points to is 1.
const COPIED: u64 = 1 << 63;

/// Clusters of tables made and written at once.
const TABLES_AT_ONCE: u64 = 64;

/// Where everything of one image lies. Clusters are counted from the start of the disk, or of the file.
#[derive(Debug)]
pub(super) struct Qcow2Layout {
    /// Bytes of the disk.
    size: u64,
    /// The disk's clusters that hold data, in order and apart.
    runs: Vec<Run>,
    /// Entries of the L1 table that have an L2 table, in order.
    l2: Vec<u64>,
    /// First cluster in the file of the refcount blocks, the L1 table, the L2 tables and the data; all clusters.
    blocks_at: u64,
    l1_at: u64,
    l2_at: u64,
    data_at: u64,
    clusters: u64,
}

/// Clusters of the disk that follow each other, in the file too.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    count: u64,
    /// Data clusters before it.
    before: u64,
}

impl Run {
    fn end(&self) -> u64 {
        self.first + self.count
    }
}

impl Qcow2Layout {
    /// For a disk of `size` bytes whose data lies in these ranges, given in order.
    pub fn new(size: u64, data: &[Extent]) -> Self {
        let runs = runs(data);
        let mut l2: Vec<u64> = runs.iter().flat_map(|r| r.first / ENTRIES..=(r.end() - 1) / ENTRIES).collect();
        l2.dedup();
        let data_clusters = runs.last().map_or(0, |run| run.before + run.count);
        let l1_clusters = size.div_ceil(CLUSTER_BYTES).div_ceil(ENTRIES).div_ceil(ENTRIES);
        let others = 1 + l1_clusters + l2.len() as u64 + data_clusters;
        let (table, blocks) = refcount_clusters(others);
        let blocks_at = 1 + table;
        let l1_at = blocks_at + blocks;
        let l2_at = l1_at + l1_clusters;
        let data_at = l2_at + l2.len() as u64;
        Self { size, runs, l2, blocks_at, l1_at, l2_at, data_at, clusters: data_at + data_clusters }
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.clusters * CLUSTER_BYTES
    }

    /// Where the bytes of `extent` lie.
    pub fn parts(&self, extent: Extent) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = extent.offset();
        while at < extent.end() {
            let cluster = at / CLUSTER_BYTES;
            let next = self.runs.get(self.runs.partition_point(|run| run.end() <= cluster));
            let (end, place) = match next {
                Some(run) if run.first <= cluster => (run.end(), Some(self.place(run, cluster) + at % CLUSTER_BYTES)),
                Some(run) => (run.first, None),
                None => (u64::MAX / CLUSTER_BYTES, None),
            };
            let end = (end * CLUSTER_BYTES).min(extent.end());
            let part = Extent::new(at, end - at).expect("cut at sectors, and not empty");
            parts.push((part, place));
            at = end;
        }
        parts
    }

    /// Offset in the file of a cluster of `run`.
    fn place(&self, run: &Run, cluster: u64) -> u64 {
        (self.data_at + run.before + cluster - run.first) * CLUSTER_BYTES
    }

    /// The first cluster of the file: what makes it a qcow2.
    pub fn header(&self) -> Bytes {
        let mut header = BytesMut::zeroed(CLUSTER_BYTES as usize);
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &3u32.to_be_bytes());
        put(20, &CLUSTER_BITS.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &(self.l1_entries() as u32).to_be_bytes());
        put(40, &(self.l1_at * CLUSTER_BYTES).to_be_bytes());
        put(48, &CLUSTER_BYTES.to_be_bytes());
        put(56, &((self.blocks_at - 1) as u32).to_be_bytes());
        put(96, &REFCOUNT_ORDER.to_be_bytes());
        put(100, &HEADER_BYTES.to_be_bytes());
        header.freeze()
    }

    fn l1_entries(&self) -> u64 {
        self.size.div_ceil(CLUSTER_BYTES).div_ceil(ENTRIES)
    }

    /// All tables, a few clusters at a time: their offset in the file and their bytes.
    pub fn tables(&self) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        (1..self.data_at).step_by(TABLES_AT_ONCE as usize).map(|first| {
            let last = (first + TABLES_AT_ONCE).min(self.data_at);
            let mut bytes = BytesMut::zeroed(((last - first) * CLUSTER_BYTES) as usize);
            for (cluster, table) in (first..last).zip(bytes.chunks_mut(CLUSTER_BYTES as usize)) {
                self.fill_table(cluster, table);
            }
            (first * CLUSTER_BYTES, bytes.freeze())
        })
    }

    /// One cluster of tables, given as zeros.
    fn fill_table(&self, cluster: u64, table: &mut [u8]) {
        if cluster < self.blocks_at {
            let first = (cluster - 1) * ENTRIES;
            let blocks = (self.l1_at - self.blocks_at).saturating_sub(first);
            fill(table, (0..ENTRIES.min(blocks)).map(|i| (i, (self.blocks_at + first + i) * CLUSTER_BYTES)));
        } else if cluster < self.l1_at {
            let first = (cluster - self.blocks_at) * REFCOUNTS;
            let used = self.clusters.saturating_sub(first).min(REFCOUNTS);
            table[..2 * used as usize].chunks_mut(2).for_each(|count| count.copy_from_slice(&1u16.to_be_bytes()));
        } else if cluster < self.l2_at {
            let first = (cluster - self.l1_at) * ENTRIES;
            let here = self.l2.iter().zip(self.l2_at..).filter(|(entry, _)| (first..first + ENTRIES).contains(entry));
            fill(table, here.map(|(entry, l2)| (entry - first, (l2 * CLUSTER_BYTES) | COPIED)));
        } else {
            let first = self.l2[(cluster - self.l2_at) as usize] * ENTRIES;
            let runs = self.runs[self.runs.partition_point(|run| run.end() <= first)..].iter();
            let runs = runs.take_while(|run| run.first < first + ENTRIES);
            let mapped = runs.flat_map(|run| {
                let part = run.first.max(first)..run.end().min(first + ENTRIES);
                part.map(move |cluster| (cluster - first, self.place(run, cluster) | COPIED))
            });
            fill(table, mapped);
        }
    }
}

/// Puts entries into a table.
fn fill(table: &mut [u8], entries: impl Iterator<Item = (u64, u64)>) {
    for (i, entry) in entries {
        let at = (i * ENTRY_BYTES) as usize;
        table[at..at + ENTRY_BYTES as usize].copy_from_slice(&entry.to_be_bytes());
    }
}

/// The clusters that these ranges touch.
fn runs(data: &[Extent]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for extent in data {
        let (first, end) = (extent.offset() / CLUSTER_BYTES, extent.end().div_ceil(CLUSTER_BYTES));
        match runs.last_mut() {
            Some(last) if first <= last.end() => last.count = end.max(last.end()) - last.first,
            last => {
                let before = last.map_or(0, |run| run.before + run.count);
                runs.push(Run { first, count: end - first, before });
            }
        }
    }
    runs
}

/// Clusters of the refcount table and of its blocks, which count themselves too, beside `others`.
fn refcount_clusters(others: u64) -> (u64, u64) {
    let (mut table, mut blocks) = (1, 1);
    loop {
        let wanted = (others + table + blocks).div_ceil(REFCOUNTS);
        if wanted <= blocks {
            return (table, blocks);
        }
        (blocks, table) = (wanted, wanted.div_ceil(ENTRIES));
    }
}
