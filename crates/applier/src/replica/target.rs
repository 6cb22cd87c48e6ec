//! Where the bytes of one replica disk go: a raw file, a qcow2 or VHD image, or a block device.
//!
//! All are written in place, so that a crash leaves each sector old or new and the same move writes it again. An image is
//! made with room for every byte of its disk: its tables are whole before the first byte, and never change.

use std::io::{self, ErrorKind};
use std::path::Path;

use bytes::Bytes;
use disk::{Disk, Image, ImageFormat, RawDisk};
use model::Extent;

/// Bytes copied at once from an image to one of another size.
const COPY_BYTES: u64 = 4 << 20;

/// An open replica disk.
pub(super) enum Target {
    /// A raw file or a block device.
    Raw(RawDisk),
    /// An image.
    Image(Image),
}

impl Target {
    /// Makes a blank file, which must not be there yet.
    pub async fn create(path: &Path, format: ImageFormat, size: u64) -> io::Result<Self> {
        if format == ImageFormat::Raw {
            return RawDisk::create(path, size).map(Target::Raw);
        }
        let image = Image::create(path, format, size, &whole(size)).await?;
        image.finish().await?;
        Ok(Target::Image(image))
    }

    /// Opens a file as it was at this size: a raw one may have been resized since and is brought back. None when it is
    /// missing, or another than the one that was made.
    pub async fn open(path: &Path, format: ImageFormat, size: u64) -> io::Result<Option<Self>> {
        let opened = match format {
            ImageFormat::Raw => open_raw(path, size),
            _ => open_image(path, format, size).await,
        };
        match opened {
            Ok(target) => Ok(Some(target)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes parts one behind the other from any offset of the disk on.
    pub async fn write(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        match self {
            Target::Raw(raw) => raw.write_parts(offset, parts).await,
            Target::Image(image) => image.write_parts(offset, parts).await,
        }
    }

    /// Makes a range read as zeros.
    pub async fn zero(&self, extent: Extent) -> io::Result<()> {
        match self {
            Target::Raw(raw) => raw.zero(extent, true).await,
            Target::Image(image) => image.zero(extent).await,
        }
    }

    /// Makes everything written durable.
    pub async fn flush(&self) -> io::Result<()> {
        match self {
            Target::Raw(raw) => raw.flush().await,
            Target::Image(image) => image.sync().await,
        }
    }
}

/// All of a disk, as the ranges that may be written.
fn whole(size: u64) -> Vec<Extent> {
    Extent::new(0, size).into_iter().collect()
}

/// An image whose header, tables or footer are not those of this size was resized by a move that died, or changed by others.
async fn open_image(path: &Path, format: ImageFormat, size: u64) -> io::Result<Target> {
    let image = Image::open(path, format, size, &whole(size)).await?;
    match image.altered_frame().await? {
        None => Ok(Target::Image(image)),
        Some(at) => {
            let why = format!("{} is not a {format} of {size} bytes, as byte {at} says", path.display());
            Err(io::Error::new(ErrorKind::InvalidData, why))
        }
    }
}

fn open_raw(path: &Path, size: u64) -> io::Result<Target> {
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    let found = file.metadata()?.len();
    if found < size {
        let why = format!("{} has {found} bytes of {size}", path.display());
        return Err(io::Error::new(ErrorKind::InvalidData, why));
    }
    if found > size {
        file.set_len(size)?;
    }
    RawDisk::open(path, true).map(Target::Raw)
}

/// Gives a raw file another size.
pub(super) fn resize_raw(path: &Path, size: u64) -> io::Result<Target> {
    std::fs::OpenOptions::new().write(true).open(path)?.set_len(size)?;
    RawDisk::open(path, true).map(Target::Raw)
}

/// Gives an image another size. Its tables depend on it, so it is made again beside the old one, which it then replaces. If
/// the process dies in between there is the old one or the new; the new one does not fit a state that knows the old size, and
/// is then built anew. A state that knows the old size may still meet tables of the same length: so they are compared.
pub(super) async fn resize_image(path: &Path, format: ImageFormat, old_size: u64, size: u64) -> io::Result<Target> {
    let beside = path.with_added_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let old = Image::open(path, format, old_size, &whole(old_size)).await?;
    let new = Image::create(&beside, format, size, &whole(size)).await?;
    for kept in whole(old_size.min(size)) {
        for piece in kept.split_at_multiples(COPY_BYTES) {
            let bytes = old.read_back(piece).await?;
            if bytes.iter().any(|byte| *byte != 0) {
                new.write(piece.offset(), bytes).await?;
            }
        }
    }
    new.finish().await?;
    std::fs::rename(&beside, path)?;
    Ok(Target::Image(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_image_of_another_size_is_not_taken_for_the_one_that_was_made() {
        let directory = tempfile::tempdir().expect("temp dir");
        let path = directory.path().join("root.qcow2");
        let (old, new) = (128 << 10, (128 << 10) - 512);
        drop(Target::create(&path, ImageFormat::Qcow2, old).await.expect("made"));
        let opens = async |size| Target::open(&path, ImageFormat::Qcow2, size).await.expect("read").is_some();
        assert!(opens(old).await && !opens(new).await, "of one length, and yet not the same");
        drop(resize_image(&path, ImageFormat::Qcow2, old, new).await.expect("resized"));
        assert!(opens(new).await && !opens(old).await);
        std::fs::remove_file(&path).expect("removed");
        assert!(!opens(new).await);
    }
}
