//! Limits of the machine, measured in the same rounds as everything else: each part of the work by itself, with nothing
//! around it. What is made of parts can be at best as fast as the slowest, and cost at least their sum.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustix::fs::OFlags;

use crate::Bench;
use crate::inputs::PAGE;
use crate::measure::{Cost, Runner, Side, own_cpu};
use crate::report::Table;
use crate::tls;

/// Bytes compressed, hashed and sealed at a time: those of a frame and of a chunk.
const PIECE: usize = 64 << 10;

/// Most bytes that a kernel works on.
const SAMPLE_BYTES_MAX: u64 = 192 << 20;

/// Bytes written at a time.
const WRITE_BYTES: usize = 8 << 20;

/// What was measured.
pub struct Limits {
    sides: Vec<Side>,
    /// Bytes that each worked on, in the order of the sides.
    bytes: Vec<u64>,
}

/// In the order of the table.
const NAMES: [&str; 8] = [
    "memory copy",
    "BLAKE3, keyed, 64 KiB",
    "zstd level 1, frames of 64 KiB",
    "lz4, frames of 64 KiB",
    "AES-256-GCM, 64 KiB",
    "TLS 1.3 over loopback",
    "disk write, fsync at the end",
    "disk write past the page cache, fsync",
];
pub const COPY: usize = 0;
pub const BLAKE3: usize = 1;
pub const ZSTD: usize = 2;
pub const AES: usize = 4;
pub const TLS: usize = 5;
pub const DISK: usize = 6;

/// Data out of the image, evenly from all of it, without pieces that are all zeros.
pub fn sample(bench: &Bench) -> Result<Vec<u8>> {
    let file = File::open(&bench.inputs.image)?;
    let step = (bench.inputs.bytes / SAMPLE_BYTES_MAX.min(bench.inputs.bytes)).max(1) * PIECE as u64;
    let (mut data, mut piece) = (Vec::new(), vec![0; PIECE]);
    for at in (0..bench.inputs.bytes - PIECE as u64).step_by(step as usize) {
        file.read_exact_at(&mut piece, at)?;
        if piece.iter().any(|byte| *byte != 0) {
            data.extend_from_slice(&piece);
        }
    }
    ensure!(!data.is_empty(), "the image has data");
    Ok(data)
}

/// Runners for [`crate::measure::rounds`], in the order of the names.
pub fn runners<'a>(bench: &'a Bench, data: &'a [u8]) -> Vec<Runner<'a>> {
    let file = bench.dir.join("written");
    let cached = file.clone();
    let tls_bytes = bench.inputs.bytes;
    let work: Vec<Box<dyn FnMut() -> Result<()> + 'a>> = vec![
        Box::new(move || copy(data)),
        Box::new(move || blake3_all(data)),
        Box::new(move || zstd_all(data)),
        Box::new(move || lz4_all(data)),
        Box::new(move || seal_all(data)),
        Box::new(move || tls::send(data, tls_bytes)),
        Box::new(move || write_all(&cached, data, tls_bytes / 2, OFlags::empty())),
        Box::new(move || write_all(&file, data, tls_bytes / 2, OFlags::DIRECT)),
    ];
    NAMES.iter().zip(work).map(|(name, work)| ((*name).to_owned(), timed(work))).collect()
}

impl Limits {
    /// Of the sides that those runners gave.
    pub fn new(bench: &Bench, data: &[u8], sides: Vec<Side>) -> Self {
        let (own, image) = (data.len() as u64, bench.inputs.bytes);
        Self { sides, bytes: vec![own, own, own, own, own, image, image / 2, image / 2] }
    }

    /// MB/s, median.
    pub fn speed(&self, which: usize) -> f64 {
        self.bytes[which] as f64 / 1e6 / self.sides[which].wall().median
    }

    /// CPU seconds for a GB, median.
    pub fn cpu(&self, which: usize) -> f64 {
        self.sides[which].cpu().median / (self.bytes[which] as f64 / 1e9)
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new(&["limit", "MB/s", "range", "CPU-s/GB"]);
        for (at, side) in self.sides.iter().enumerate() {
            let (mb, wall) = (self.bytes[at] as f64 / 1e6, side.wall());
            let range = format!("{:.0} to {:.0}", mb / wall.high, mb / wall.low);
            table.row([side.name.clone(), format!("{:.0}", self.speed(at)), range, format!("{:.3}", self.cpu(at))]);
        }
        table
    }
}

/// Wall and CPU time of work in this process.
pub fn timed<'a>(mut work: Box<dyn FnMut() -> Result<()> + 'a>) -> Box<dyn FnMut() -> Result<Cost> + 'a> {
    Box::new(move || {
        let (begun, cpu) = (Instant::now(), own_cpu()?);
        work()?;
        Ok(Cost { wall: begun.elapsed().as_secs_f64(), cpu: own_cpu()? - cpu, ..Cost::default() })
    })
}

/// From the data to a buffer of the size of what is on its way at once, as a copy on a data path goes.
fn copy(data: &[u8]) -> Result<()> {
    let mut target = vec![1; 16 << 20];
    for part in data.chunks(target.len()) {
        target[..part.len()].copy_from_slice(part);
        std::hint::black_box(&target);
    }
    Ok(())
}

fn blake3_all(data: &[u8]) -> Result<()> {
    data.chunks(PIECE).for_each(|piece| {
        std::hint::black_box(blake3::keyed_hash(&[7; 32], piece));
    });
    Ok(())
}

fn zstd_all(data: &[u8]) -> Result<()> {
    let mut zstd = zstd::bulk::Compressor::new(1)?;
    let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(PIECE));
    for piece in data.chunks(PIECE) {
        out.clear();
        zstd.compress_to_buffer(piece, &mut out)?;
        std::hint::black_box(&out);
    }
    Ok(())
}

fn lz4_all(data: &[u8]) -> Result<()> {
    let mut out = vec![0; lz4_flex::block::get_maximum_output_size(PIECE)];
    for piece in data.chunks(PIECE) {
        lz4_flex::block::compress_into(piece, &mut out)?;
        std::hint::black_box(&out);
    }
    Ok(())
}

fn seal_all(data: &[u8]) -> Result<()> {
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).ok().context("a key has 32 bytes")?;
    let (key, mut buffer) = (LessSafeKey::new(key), vec![0; PIECE]);
    for (n, piece) in (0u32..).zip(data.chunks(PIECE)) {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&n.to_le_bytes());
        let buffer = &mut buffer[..piece.len()];
        buffer.copy_from_slice(piece);
        let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), buffer);
        let _tag = tag.ok().context("sealing works")?;
        std::hint::black_box(&buffer);
    }
    Ok(())
}

/// A new file of so many bytes out of the data, in large writes from memory on a page.
fn write_all(path: &std::path::Path, data: &[u8], bytes: u64, flags: OFlags) -> Result<()> {
    let open = |flags| File::options().create(true).truncate(true).write(true).custom_flags(flags).open(path);
    // Not every file system goes past the cache; what it does then is its speed.
    let mut file = open(flags.bits() as i32).or_else(|_| open(0))?;
    let mut buffer = vec![0; WRITE_BYTES + PAGE];
    let start = buffer.as_ptr().addr().next_multiple_of(PAGE) - buffer.as_ptr().addr();
    let (mut left, mut parts) = (bytes as usize, data.chunks_exact(WRITE_BYTES.min(data.len())).cycle());
    while left > 0 {
        let part = parts.next().context("data are not empty")?;
        let part = &part[..part.len().min(left)];
        buffer[start..start + part.len()].copy_from_slice(part);
        file.write_all(&buffer[start..start + part.len()])?;
        left -= part.len();
    }
    file.sync_all()?;
    drop(file);
    Ok(std::fs::remove_file(path)?)
}
