//! Images of a disk as files: raw, qcow2, fixed VHD. qemu-img reads each.
//!
//! Where every byte of the disk lies in the file is known before the first is written, from the disk's size and the
//! ranges that may hold data. So a write is a plain write in place: it may be repeated, and after a crash whoever knows
//! which ranges were durable goes on with the rest. What makes the file an image of its format (a VHD's footer, a qcow2's
//! tables and header) is written last, by [`Image::finish`]: nothing takes an unfinished file for a whole one. The
//! exception is raw, which has nothing but the disk's bytes; whoever writes one must give it its name last.

mod qcow2;
#[cfg(test)]
mod tests;
mod vhd;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use model::{Extent, SECTOR_BYTES};

use self::qcow2::Qcow2Layout;
use crate::bounds::{check_extent, check_write};
use crate::direct::cut;
use crate::{Disk, RawDisk};

/// Format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Raw, sparse.
    Raw,
    /// qcow2.
    Qcow2,
    /// Fixed VHD ("vpc"): raw bytes and a 512-byte footer.
    Vhd,
}

/// The text names no image format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image format: use raw, qcow2 or vhd")]
pub struct ImageFormatError {
    /// What was given, cut to a printable length.
    pub text: String,
}

impl ImageFormat {
    /// Every format.
    pub const ALL: [ImageFormat; 3] = [ImageFormat::Raw, ImageFormat::Qcow2, ImageFormat::Vhd];

    /// What files of this format are called, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vhd => "vhd",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

impl FromStr for ImageFormat {
    type Err = ImageFormatError;
    fn from_str(text: &str) -> Result<Self, ImageFormatError> {
        let named = Self::ALL.into_iter().find(|format| format.extension() == text);
        named.ok_or_else(|| ImageFormatError { text: text.chars().take(80).collect() })
    }
}

/// An image file, held alone: written, gone on with, or read back. Offsets are those of the disk, in bytes.
#[derive(Debug)]
pub struct Image {
    file: RawDisk,
    path: PathBuf,
    /// Bytes of the disk.
    size: u64,
    layout: Layout,
}

/// Where the disk's bytes lie in the file, and what else is in it.
#[derive(Debug)]
enum Layout {
    /// The bytes of the disk and nothing else.
    Raw,
    /// The bytes of the disk, zeros up to the size that the footer speaks of, the footer.
    Vhd { virtual_size: u64 },
    /// Tables, then the clusters that hold data.
    Qcow2(Qcow2Layout),
}

/// A part of the disk, and where it lies in the file; absent, it is a hole.
type Part = (Extent, Option<u64>);

impl Layout {
    fn new(format: ImageFormat, size: u64, data: &[Extent]) -> io::Result<Self> {
        if size == 0 || !size.is_multiple_of(SECTOR_BYTES) {
            let why =
                format!("an image of {size} bytes cannot be made: a disk is made of whole sectors of {SECTOR_BYTES}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        data.iter().try_for_each(|extent| check_extent(*extent, size))?;
        Ok(match format {
            ImageFormat::Raw => Layout::Raw,
            ImageFormat::Vhd => Layout::Vhd { virtual_size: vhd::virtual_size(size)? },
            ImageFormat::Qcow2 => Layout::Qcow2(Qcow2Layout::new(size, data)),
        })
    }

    fn file_bytes(&self, size: u64) -> u64 {
        match self {
            Layout::Raw => size,
            Layout::Vhd { virtual_size } => virtual_size + vhd::FOOTER_BYTES,
            Layout::Qcow2(layout) => layout.file_bytes(),
        }
    }

    fn parts(&self, extent: Extent) -> Vec<Part> {
        match self {
            Layout::Raw | Layout::Vhd { .. } => vec![(extent, Some(extent.offset()))],
            Layout::Qcow2(layout) => layout.parts(extent),
        }
    }
}

impl Image {
    /// Creates an image file of a disk of `size` bytes (a multiple of 512), durable by name; refuses one that exists.
    /// `data` names the ranges that may be written. A VHD is as large as the next whole MiB, because Azure takes no
    /// other; the rest reads as zeros.
    pub async fn create(path: &Path, format: ImageFormat, size: u64, data: &[Extent]) -> io::Result<Self> {
        let layout = Layout::new(format, size, data)?;
        let (path, bytes) = (path.to_owned(), layout.file_bytes(size));
        blocking(move || Ok(Self { file: RawDisk::create(&path, bytes)?, path, size, layout })).await
    }

    /// Opens a file that [`Image::create`] made with the same values. Errors: `InvalidData` when it is shorter or longer.
    pub async fn open(path: &Path, format: ImageFormat, size: u64, data: &[Extent]) -> io::Result<Self> {
        let layout = Layout::new(format, size, data)?;
        let (path, bytes) = (path.to_owned(), layout.file_bytes(size));
        blocking(move || {
            let file = RawDisk::open(&path, true)?;
            if file.size() == bytes {
                return Ok(Self { file, path, size, layout });
            }
            let why = format!("{} has {} bytes, this image of the disk {bytes}", path.display(), file.size());
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        })
        .await
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes at any offset of the ranges that may be written, again if need be.
    pub async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        self.write_parts(offset, vec![data]).await
    }

    /// The same with parts that lie one behind the other. Large writes go past the page cache, where the file can.
    pub async fn write_parts(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let len = parts.iter().map(Bytes::len).sum();
        let Some(extent) = check_write(offset, len, self.size)? else { return Ok(()) };
        for (part, at) in self.layout.parts(extent) {
            let Some(at) = at else {
                let why = format!("range {part} is a hole of image {} and cannot be written", self.path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            };
            let start = (part.offset() - offset) as usize;
            let of_part = cut(&parts, start, start + part.len() as usize).map(|(_, piece)| piece);
            self.file.write_parts(at, of_part.collect()).await?;
        }
        Ok(())
    }

    /// Makes a range of those that may be written read as zeros, and gives its space back where the file system can.
    pub async fn zero(&self, extent: Extent) -> io::Result<()> {
        check_extent(extent, self.size)?;
        for (part, at) in self.layout.parts(extent) {
            // A hole reads as zeros.
            let Some(at) = at else { continue };
            let place = Extent::new(at, part.len()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
            self.file.zero(place, true).await?;
        }
        Ok(())
    }

    /// Every write completed before the call is durable when it returns.
    pub async fn sync(&self) -> io::Result<()> {
        self.file.flush().await
    }

    /// Completes the image and makes it durable; may be repeated.
    pub async fn finish(&self) -> io::Result<()> {
        self.file.flush().await?;
        match &self.layout {
            Layout::Raw => return Ok(()),
            Layout::Vhd { virtual_size } => self.file.write(*virtual_size, vhd::new_footer(*virtual_size)?).await?,
            Layout::Qcow2(layout) => {
                for (at, tables) in layout.tables() {
                    self.file.write(at, tables).await?;
                }
                self.file.flush().await?;
                self.file.write(0, layout.header()).await?;
            }
        }
        self.file.flush().await
    }

    /// The bytes of `extent` as a reader of the finished image sees them, from the medium: what was written must be durable
    /// before, and the system's cache of it is dropped. Where the file system cannot drop it, the cache answers.
    pub async fn read_back(&self, extent: Extent) -> io::Result<Bytes> {
        check_extent(extent, self.size)?;
        let mut bytes = BytesMut::zeroed(extent.len() as usize);
        for (part, at) in self.layout.parts(extent) {
            let Some(at) = at else { continue };
            let start = (part.offset() - extent.offset()) as usize;
            bytes[start..start + part.len() as usize].copy_from_slice(&self.read_file(at, part.len()).await?);
        }
        Ok(bytes.freeze())
    }

    /// The parts of `extent` that may read as other than zeros, in order.
    pub async fn allocated(&self, extent: Extent) -> io::Result<Vec<Extent>> {
        check_extent(extent, self.size)?;
        match self.layout {
            Layout::Raw | Layout::Vhd { .. } => self.file.allocated(extent).await,
            Layout::Qcow2(_) => {
                Ok(self.layout.parts(extent).into_iter().filter_map(|(part, at)| at.and(Some(part))).collect())
            }
        }
    }

    /// Whether everything in the file but the disk's bytes is as [`Image::finish`] writes it; reads as
    /// [`Image::read_back`]. Otherwise the offset in the file of the part that is not.
    pub async fn altered_frame(&self) -> io::Result<Option<u64>> {
        match &self.layout {
            Layout::Raw => Ok(None),
            Layout::Vhd { virtual_size } => {
                let padding = *virtual_size - self.size;
                if padding > 0 && self.read_file(self.size, padding).await?.iter().any(|byte| *byte != 0) {
                    return Ok(Some(self.size));
                }
                let footer = self.read_file(*virtual_size, vhd::FOOTER_BYTES).await?;
                Ok((!vhd::is_footer(&footer, *virtual_size)).then_some(*virtual_size))
            }
            Layout::Qcow2(layout) => {
                for (at, wanted) in std::iter::once((0, layout.header())).chain(layout.tables()) {
                    if self.read_file(at, wanted.len() as u64).await? != wanted {
                        return Ok(Some(at));
                    }
                }
                Ok(None)
            }
        }
    }

    /// Bytes of the file, past the cache.
    async fn read_file(&self, at: u64, len: u64) -> io::Result<Bytes> {
        let extent = Extent::new(at, len).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        self.file.drop_cache(extent).await?;
        self.file.read(extent).await
    }
}

/// Runs file work on the blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => Err(io::Error::other(format!("image operation did not run to its end: {join}"))),
    }
}
