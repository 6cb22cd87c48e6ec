//! The map file as bytes, both ways. See `FORMAT.md` for the layout, field for field.
//!
//! Parsing takes whatever the disk gives: it never panics, and what it allocates is bounded by the file's own length,
//! because a disk's pages must all be there before its bits are.

use bytes::{BufMut, Bytes, BytesMut};
use model::{DiskName, Incarnation, LogHead, MachineName, Position, RecordDigest, SECTOR_BYTES, Seq, Timestamp};

use crate::bits::BitSet;
use crate::config::{DISKS_MAX, REGION_BYTES_MAX, REGION_BYTES_MIN};

const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"FMAP");
const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"FMPG");

/// Newest version of the map file.
const VERSION: u16 = 1;

/// Bytes of each of the two header slots.
pub(crate) const HEADER_SLOT_BYTES: usize = 16 << 10;

/// Where the pages begin.
pub(crate) const PAGES_OFFSET: u64 = 2 * HEADER_SLOT_BYTES as u64;

/// Bytes of a page: one sector.
pub(crate) const PAGE_BYTES: usize = 512;
const PAGE_HEADER_BYTES: usize = 24;

/// Regions whose bits one page holds.
pub(crate) const PAGE_REGIONS: u64 = ((PAGE_BYTES - PAGE_HEADER_BYTES) * 8) as u64;

const DISKS_OFFSET: usize = 256;
const NAME_BYTES: usize = 64;

/// A disk in the header's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskEntry {
    pub(crate) name: DiskName,
    pub(crate) size: u64,
    pub(crate) region_bytes: u64,
}

impl DiskEntry {
    /// Regions of the disk.
    pub(crate) fn regions(&self) -> u64 {
        self.size.div_ceil(self.region_bytes)
    }

    /// Pages its bits take.
    pub(crate) fn pages(&self) -> u64 {
        self.regions().div_ceil(PAGE_REGIONS)
    }
}

/// The header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) generation: u64,
    pub(crate) map_version: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) stored: LogHead,
    pub(crate) clean: bool,
    /// The version that HELLO must still answer for: what an earlier life left, while no log has taken it since.
    pub(crate) attested: Option<u64>,
    /// The last incarnation of this agent that a log has taken: no other one may have extended the log since.
    pub(crate) taken: Incarnation,
    pub(crate) machine: MachineName,
    pub(crate) disks: Vec<DiskEntry>,
}

/// A map file that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MapFileState {
    pub(crate) header: Header,
    /// Bits of each disk of the table.
    pub(crate) bits: Vec<BitSet>,
    /// Highest version of header and pages.
    pub(crate) map_version: u64,
    /// Pages that could not be trusted and count as all set.
    pub(crate) bad_pages: u64,
}

impl MapFileState {
    /// The version that stands for what this map knows: versions raised since, by lives that no log has taken, do not.
    pub(crate) fn attested(&self) -> u64 {
        self.header.attested.unwrap_or(self.map_version)
    }
}

/// A map file that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MapDamage {
    #[error("both headers are damaged")]
    Headers,
    #[error("it was written by a newer program: map version {0}")]
    Version(u16),
    #[error("it is shorter than its disk table needs")]
    Truncated,
}

fn put_name(out: &mut BytesMut, name: &str) {
    let start = out.len();
    out.put_u8(u8::try_from(name.len()).expect("names have at most 63 bytes"));
    out.put_slice(name.as_bytes());
    out.resize(start + NAME_BYTES, 0);
}

/// Bytes of a header slot.
pub(crate) fn encode_header(header: &Header) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_SLOT_BYTES);
    out.put_u32_le(0);
    out.put_u32_le(HEADER_MAGIC);
    out.put_u16_le(VERSION);
    out.put_u16_le(u16::try_from(header.disks.len()).expect("at most 128 disks: checked at start"));
    out.put_u32_le(PAGE_BYTES as u32);
    out.put_u64_le(header.generation);
    out.put_u64_le(header.map_version);
    out.put_slice(&header.incarnation.0);
    out.put_u64_le(header.stored.position.seq.0);
    out.put_slice(&header.stored.position.incarnation.0);
    out.put_slice(&header.stored.digest.0);
    out.put_u64_le(header.stored.map_version);
    out.put_u64_le(header.stored.time.0);
    out.put_u64_le(u64::from(header.clean));
    put_name(&mut out, header.machine.as_str());
    out.put_u64_le(header.attested.map_or(0, |version| version.saturating_add(1)));
    out.put_slice(&header.taken.0);
    out.resize(DISKS_OFFSET, 0);
    let mut first_page = 0;
    for disk in &header.disks {
        put_name(&mut out, disk.name.as_str());
        out.put_u64_le(disk.size);
        out.put_u64_le(disk.region_bytes);
        out.put_u64_le(first_page);
        out.put_u64_le(0);
        first_page += disk.pages();
    }
    out.resize(HEADER_SLOT_BYTES, 0);
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// Appends page `page_of_disk` of a disk whose first page is `first_page`.
pub(crate) fn encode_page(first_page: u64, page_of_disk: u64, map_version: u64, bits: &BitSet, out: &mut BytesMut) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u32_le(PAGE_MAGIC);
    out.put_u64_le(first_page + page_of_disk);
    out.put_u64_le(map_version);
    out.resize(start + PAGE_BYTES, 0);
    let first = page_of_disk * PAGE_REGIONS;
    let mut at = bits.next(first);
    while let Some(region) = at.filter(|region| *region < first + PAGE_REGIONS) {
        let bit = (region - first) as usize;
        out[start + PAGE_HEADER_BYTES + bit / 8] |= 1 << (bit % 8);
        at = bits.next(region + 1);
    }
    let crc = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A whole map file, as written at start.
pub(crate) fn encode_map<'a>(header: &Header, bits: impl Iterator<Item = &'a BitSet>) -> Bytes {
    let mut out = BytesMut::new();
    let slot = encode_header(header);
    out.put_slice(&slot);
    out.put_slice(&slot);
    let mut first_page = 0;
    for (disk, bits) in header.disks.iter().zip(bits) {
        (0..disk.pages()).for_each(|page| encode_page(first_page, page, header.map_version, bits, &mut out));
        first_page += disk.pages();
    }
    out.freeze()
}

/// Fields in order, each taken off the front; `None` when there are no more.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn name<T: std::str::FromStr>(&mut self) -> Option<T> {
        let field = self.take(NAME_BYTES)?;
        let name = field[1..].get(..usize::from(field[0]))?;
        std::str::from_utf8(name).ok()?.parse().ok()
    }
}

/// Reads one header slot; nothing if it is not whole or makes no sense.
fn parse_header(slot: &[u8]) -> Option<Result<Header, MapDamage>> {
    let mut fields = Fields(slot.get(..HEADER_SLOT_BYTES)?);
    if fields.u32()? != crc32c::crc32c(&slot[4..HEADER_SLOT_BYTES]) || fields.u32()? != HEADER_MAGIC {
        return None;
    }
    let version = fields.u16()?;
    if version != VERSION {
        return Some(Err(MapDamage::Version(version)));
    }
    let disks = usize::from(fields.u16()?);
    if fields.u32()? as usize != PAGE_BYTES || disks == 0 || disks > DISKS_MAX {
        return None;
    }
    let (generation, map_version) = (fields.u64()?, fields.u64()?);
    let incarnation = Incarnation(fields.array()?);
    let stored = LogHead {
        position: Position { seq: Seq(fields.u64()?), incarnation: Incarnation(fields.array()?) },
        digest: RecordDigest(fields.array()?),
        map_version: fields.u64()?,
        time: Timestamp(fields.u64()?),
    };
    let clean = fields.u64()? == 1;
    let machine = fields.name()?;
    let attested = fields.u64()?.checked_sub(1);
    let taken = Incarnation(fields.array()?);
    fields.take(DISKS_OFFSET - 216)?;
    let disks = (0..disks).map(|_| parse_disk(&mut fields)).collect::<Option<Vec<_>>>()?;
    Some(Ok(Header { generation, map_version, incarnation, stored, clean, attested, taken, machine, disks }))
}

fn parse_disk(fields: &mut Fields) -> Option<DiskEntry> {
    let name = fields.name()?;
    let (size, region_bytes) = (fields.u64()?, fields.u64()?);
    fields.take(16)?;
    let regions_ok = region_bytes.is_power_of_two() && (REGION_BYTES_MIN..=REGION_BYTES_MAX).contains(&region_bytes);
    (regions_ok && size > 0 && size.is_multiple_of(SECTOR_BYTES)).then_some(DiskEntry { name, size, region_bytes })
}

/// Reads the bits of a page into `bits`; a page that cannot be trusted sets them all. Returns its version if it can.
fn parse_page(page: &[u8], number: u64, page_of_disk: u64, bits: &mut BitSet) -> Option<u64> {
    let first = page_of_disk * PAGE_REGIONS;
    let end = (first + PAGE_REGIONS).min(bits.len());
    let mut fields = Fields(page);
    let good = fields.u32() == Some(crc32c::crc32c(&page[4..]))
        && fields.u32() == Some(PAGE_MAGIC)
        && fields.u64() == Some(number);
    if !good {
        (first..end).for_each(|region| {
            bits.set(region);
        });
        return None;
    }
    let version = fields.u64()?;
    for region in first..end {
        let bit = (region - first) as usize;
        if fields.0[bit / 8] & (1 << (bit % 8)) != 0 {
            bits.set(region);
        }
    }
    Some(version)
}

/// Reads a whole map file.
pub(crate) fn parse_map(file: &[u8]) -> Result<MapFileState, MapDamage> {
    let slot = |n: usize| file.get(n * HEADER_SLOT_BYTES..).and_then(parse_header);
    let header = match (slot(0), slot(1)) {
        (Some(Err(newer)), _) | (_, Some(Err(newer))) => return Err(newer),
        (Some(Ok(a)), Some(Ok(b))) => {
            if b.generation > a.generation {
                b
            } else {
                a
            }
        }
        (Some(Ok(one)), None) | (None, Some(Ok(one))) => one,
        (None, None) => return Err(MapDamage::Headers),
    };
    let pages = file.get(PAGES_OFFSET as usize..).ok_or(MapDamage::Truncated)?;
    let have = (pages.len() / PAGE_BYTES) as u64;
    let need = header.disks.iter().try_fold(0u64, |sum, disk| sum.checked_add(disk.pages()));
    if need.is_none_or(|need| need > have) {
        return Err(MapDamage::Truncated);
    }
    let (mut number, mut bad_pages, mut map_version) = (0, 0, header.map_version);
    let mut all_bits = Vec::with_capacity(header.disks.len());
    for disk in &header.disks {
        let mut bits = BitSet::new(disk.regions());
        for page_of_disk in 0..disk.pages() {
            let start = number as usize * PAGE_BYTES;
            match parse_page(&pages[start..start + PAGE_BYTES], number, page_of_disk, &mut bits) {
                Some(version) => map_version = map_version.max(version),
                None => bad_pages += 1,
            }
            number += 1;
        }
        all_bits.push(bits);
    }
    Ok(MapFileState { header, bits: all_bits, map_version, bad_pages })
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
