//! Restore: the disks of a point written out as image files.
//!
//! An image is written under a `.partial` name and renamed once it is durable: a file with the final name is whole,
//! whenever the process died. Only ranges that may hold other than zeros are written, so images stay sparse.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use disk::{ImageFormat, create_image};
use futures::TryStreamExt;
use model::{DiskName, Extent, Seq};
use serde::Serialize;

use super::image::image_name;
use super::progress::tell;
use super::{PointDisk, PointReader, ProgressFn, RecoverError, Stage};

/// Bytes of one piece of work.
const PIECE_BYTES: u64 = 1 << 20;

/// Pieces in work at once.
const PIECES_INFLIGHT: usize = 8;

/// Room an image needs beside its data: headers and mapping tables.
const IMAGE_OVERHEAD_BYTES: u64 = 1 << 20;

/// A mapping table takes about one part in so many of the data it maps.
const IMAGE_OVERHEAD_PART: u64 = 4096;

/// What a restore wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreReport {
    /// The position.
    pub seq: Seq,
    /// Time of its last record, RFC 3339.
    pub time: String,
    /// One image for each disk.
    pub disks: Vec<RestoredDisk>,
    /// Data bytes written in all.
    pub bytes_written: u64,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredDisk {
    /// The disk.
    pub name: DiskName,
    /// Its size in bytes.
    pub size: u64,
    /// Data bytes written; the rest is a hole.
    pub bytes_written: u64,
    /// The image file.
    pub path: PathBuf,
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RecoverError + use<> {
    let path = path.to_owned();
    move |source| RecoverError::File { operation, path, source }
}

/// Writes the disks of a point (all, or those named) into directory `to`, which is created if absent and must be empty.
/// Errors: `Target`, `TargetTooSmall` (nothing was written), `UnknownDisk`, and whatever stops the reading or writing;
/// images that were not complete are removed again.
pub async fn restore(
    point: &PointReader,
    disks: Option<&[DiskName]>,
    to: &Path,
    format: ImageFormat,
    progress: Option<ProgressFn>,
) -> Result<RestoreReport, RecoverError> {
    let names = match disks {
        Some(names) => names.to_vec(),
        None => point.disks().into_iter().map(|disk| disk.name).collect(),
    };
    let chosen = names.iter().map(|name| point.disk(name)).collect::<Result<Vec<_>, _>>()?;
    prepare_target(to, &chosen).await?;
    let total = chosen.iter().map(|disk| data_bytes(disk)).sum();
    let (done, mut report) = (AtomicU64::new(0), Vec::new());
    for disk in &chosen {
        let path = to.join(image_name(point.machine(), &disk.info().name, format));
        let told = |bytes| {
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            tell(&progress, Stage::Restoring, done, total);
        };
        write_image(disk, &path, format, told).await?;
        let info = disk.info();
        report.push(RestoredDisk { name: info.name.clone(), size: info.size, bytes_written: data_bytes(disk), path });
    }
    let at = point.at();
    Ok(RestoreReport { seq: at.position.seq, time: at.time.to_string(), disks: report, bytes_written: total })
}

fn data_bytes(disk: &PointDisk) -> u64 {
    disk.data_extents().iter().map(Extent::len).sum()
}

async fn prepare_target(to: &Path, disks: &[Arc<PointDisk>]) -> Result<(), RecoverError> {
    tokio::fs::create_dir_all(to).await.map_err(file("create", to))?;
    let mut entries = tokio::fs::read_dir(to).await.map_err(file("list", to))?;
    if entries.next_entry().await.map_err(file("list", to))?.is_some() {
        let why = "is not empty: give a directory that is empty or does not exist";
        return Err(RecoverError::Target { path: to.to_owned(), why });
    }
    let need: u64 = disks.iter().map(|disk| data_bytes(disk) + data_bytes(disk) / IMAGE_OVERHEAD_PART).sum();
    let need = need + disks.len() as u64 * IMAGE_OVERHEAD_BYTES;
    let stat = rustix::fs::statvfs(to).map_err(|e| file("measure", to)(e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    match free < need {
        true => Err(RecoverError::TargetTooSmall { path: to.to_owned(), need, free }),
        false => Ok(()),
    }
}

async fn write_image(
    disk: &Arc<PointDisk>,
    path: &Path,
    format: ImageFormat,
    told: impl Fn(u64),
) -> Result<(), RecoverError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = fill_image(disk, &partial, format, told).await;
    let named = match written {
        Ok(()) => publish(&partial, path, least_bytes(disk.size(), format)).await,
        Err(error) => Err(error),
    };
    if named.is_err()
        && let Err(error) = tokio::fs::remove_file(&partial).await
    {
        tracing::warn!(path = %partial.display(), %error, "incomplete image could not be removed");
    }
    named
}

async fn fill_image(
    disk: &Arc<PointDisk>,
    path: &Path,
    format: ImageFormat,
    told: impl Fn(u64),
) -> Result<(), RecoverError> {
    let image = create_image(path, format, disk.size()).await.map_err(file("create", path))?;
    probe::failpoint!("restore-image-created");
    let pieces = disk.data_extents().into_iter().flat_map(|extent| extent.split_at_multiples(PIECE_BYTES));
    futures::stream::iter(pieces.map(Ok::<_, RecoverError>))
        .try_for_each_concurrent(PIECES_INFLIGHT, |piece| {
            let (image, told) = (&image, &told);
            async move {
                let bytes = disk.read(piece).await?;
                image.write(piece.offset(), bytes).await.map_err(file("write", path))?;
                told(piece.len());
                Ok(())
            }
        })
        .await?;
    image.finish().await.map_err(file("complete", path))
}

/// No image of that format is shorter.
fn least_bytes(disk_bytes: u64, format: ImageFormat) -> u64 {
    match format {
        ImageFormat::Raw => disk_bytes,
        ImageFormat::Vhd => disk_bytes + 512,
        ImageFormat::Qcow2 => 512,
    }
}

/// Gives a finished image its name, durably.
async fn publish(partial: &Path, path: &Path, least: u64) -> Result<(), RecoverError> {
    let len = tokio::fs::metadata(partial).await.map_err(file("measure", partial))?.len();
    if len < least {
        let short = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the image is shorter than its disk");
        return Err(file("complete", partial)(short));
    }
    probe::failpoint!("restore-image-complete");
    tokio::fs::rename(partial, path).await.map_err(file("rename", partial))?;
    probe::failpoint!("restore-image-renamed");
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    let opened = tokio::fs::File::open(directory).await.map_err(file("open", directory))?;
    opened.sync_all().await.map_err(file("sync", directory))
}
