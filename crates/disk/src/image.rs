//! Images that a restore writes: raw, qcow2, fixed VHD. qemu-img reads each.
//!
//! An image is created under its final name and never replaces a file. If the process dies, or a write fails, what was
//! written stays where it is and errors say so; it is complete only after [`ImageWriter::finish`]. An unfinished VHD has
//! no footer, so nothing opens it as one.

mod qcow2;
#[cfg(test)]
mod tests;
mod vhd;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use model::SECTOR_BYTES;

use crate::raw::{context, sync_parent};
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

/// An image being written. Ranges never written read as zeros and take no space.
#[async_trait]
pub trait ImageWriter: Send + Sync {
    /// Writes at any offset, each range at most once.
    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()>;

    /// Completes the image and makes it durable.
    async fn finish(&self) -> io::Result<()>;
}

/// Creates an image file of `size` bytes (a multiple of 512); refuses one that exists. A VHD is as large as the next
/// whole MiB, because Azure takes no other; the rest reads as zeros.
pub async fn create_image(path: &Path, format: ImageFormat, size: u64) -> io::Result<Box<dyn ImageWriter>> {
    if size == 0 || !size.is_multiple_of(SECTOR_BYTES) {
        let why = format!("an image of {size} bytes cannot be made: a disk is made of whole sectors of {SECTOR_BYTES}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let path = path.to_owned();
    blocking(move || {
        Ok(match format {
            ImageFormat::Raw => {
                Box::new(RawImage { disk: RawDisk::create(&path, size)?, path }) as Box<dyn ImageWriter>
            }
            ImageFormat::Qcow2 => Box::new(qcow2::Qcow2Image::create(path, size)?),
            ImageFormat::Vhd => Box::new(vhd::VhdImage::create(path, size)?),
        })
    })
    .await
}

/// The bytes of the disk and nothing else.
struct RawImage {
    disk: RawDisk,
    path: PathBuf,
}

#[async_trait]
impl ImageWriter for RawImage {
    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        self.disk.write(offset, data).await.map_err(|e| unfinished(e, &self.path))
    }

    async fn finish(&self) -> io::Result<()> {
        self.disk.flush().await.map_err(|e| unfinished(e, &self.path))
    }
}

/// Says what a failure leaves behind: we do not remove it, somebody may want to look.
fn unfinished(error: io::Error, path: &Path) -> io::Error {
    let left = "the unfinished image stays there and is of no use: remove it before the next try";
    io::Error::new(error.kind(), format!("{error}; {} is not complete, {left}", path.display()))
}

/// Runs file work on the blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => Err(io::Error::other(format!("image operation did not run to its end: {join}"))),
    }
}
