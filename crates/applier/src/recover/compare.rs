//! Compare: a point against a disk, the detector of silent divergence. Its result can feed a drain. The disk is read past
//! its page cache: after a failed flush the cache shows what the medium never took.

use futures::{StreamExt, TryStreamExt};
use model::{Extent, ExtentSet};
use serde::Serialize;

use super::progress::tell;
use super::{PointDisk, ProgressFn, RecoverError, Stage};

/// Differences are told apart at this grain in bytes.
const GRAIN_BYTES: u64 = 4096;

/// Bytes of one piece of work.
const PIECE_BYTES: u64 = 1 << 20;

/// Pieces in work at once.
const PIECES_INFLIGHT: usize = 8;

/// How a point and a disk differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CompareReport {
    /// Ranges that differ, in blocks of 4 KiB, merged where they touch; as [offset, length].
    pub differing: Vec<Extent>,
    /// Bytes of the disk that were compared: all of it, ranges empty on both sides included.
    pub bytes_compared: u64,
}

/// Compares every byte of a point's disk with another disk of the same size. Ranges that neither side has allocated are
/// equal without being read. Errors: `SizeDiffers`, `OtherDisk`, and whatever stops the reading of the point.
pub async fn compare(
    disk: &PointDisk,
    with: &dyn disk::Disk,
    progress: Option<ProgressFn>,
) -> Result<CompareReport, RecoverError> {
    let size = disk.size();
    if with.size() != size {
        return Err(RecoverError::SizeDiffers { point: size, other: with.size() });
    }
    let Ok(whole) = Extent::new(0, size) else { return Ok(CompareReport::default()) };
    let progress = &progress;
    let mut results = futures::stream::iter(whole.split_at_multiples(PIECE_BYTES))
        .map(|piece| async move { Ok::<_, RecoverError>((piece, compare_piece(disk, with, piece).await?)) })
        .buffered(PIECES_INFLIGHT);
    let (mut differing, mut done) = (ExtentSet::new(), 0);
    while let Some((piece, found)) = results.try_next().await? {
        found.into_iter().for_each(|extent| differing.insert(extent));
        done += piece.len();
        tell(progress, Stage::Comparing, done, size);
    }
    Ok(CompareReport { differing: differing.iter().collect(), bytes_compared: done })
}

async fn compare_piece(disk: &PointDisk, with: &dyn disk::Disk, piece: Extent) -> Result<Vec<Extent>, RecoverError> {
    let other = |source| RecoverError::OtherDisk { extent: piece, source };
    if disk.data_extents_in(piece).await?.is_empty() && with.allocated(piece).await.map_err(other)?.is_empty() {
        return Ok(Vec::new());
    }
    with.drop_cache(piece).await.map_err(other)?;
    let (ours, theirs) = (disk.read(piece).await?, with.read(piece).await.map_err(other)?);
    let part = |block: &Extent| {
        let start = (block.offset() - piece.offset()) as usize;
        start..start + block.len() as usize
    };
    Ok(piece.split_at_multiples(GRAIN_BYTES).filter(|block| ours[part(block)] != theirs[part(block)]).collect())
}
