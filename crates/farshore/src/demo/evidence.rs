//! Reading recovered disks back, by file and by NBD, and putting them before the judge.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use nbd::Client;

use super::oracle::{self, Action, Bounds, History, Image};
use super::stamps::{BLOCK_BYTES, Content};

/// Bytes read at a time.
const PIECE_BYTES: u32 = 1 << 20;
/// NBD reads in flight.
const READS_IN_FLIGHT: usize = 8;

/// The blocks of a raw image file.
pub async fn blocks_of_file(path: PathBuf, size: u64) -> anyhow::Result<Vec<Content>> {
    tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let mut file = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let have = file.metadata()?.len();
        ensure!(have == size, "{} has {have} bytes, the disk had {size}", path.display());
        let mut blocks = Vec::new();
        let mut piece = vec![0; PIECE_BYTES as usize];
        let mut left = size;
        while left > 0 {
            let take = left.min(u64::from(PIECE_BYTES)) as usize;
            file.read_exact(&mut piece[..take]).with_context(|| format!("cannot read {}", path.display()))?;
            blocks.extend(Image::blocks_of(&piece[..take]));
            left -= take as u64;
        }
        Ok(blocks)
    })
    .await?
}

/// The blocks of an export.
pub async fn blocks_of_export(client: &Client) -> anyhow::Result<Vec<Content>> {
    let size = client.size();
    let pieces = (0..size.div_ceil(u64::from(PIECE_BYTES))).map(|n| async move {
        let offset = n * u64::from(PIECE_BYTES);
        let len = (size - offset).min(u64::from(PIECE_BYTES)) as u32;
        let bytes = client.read(offset, len).await.with_context(|| format!("cannot read the export at {offset}"))?;
        anyhow::Ok(Image::blocks_of(&bytes))
    });
    let pieces: Vec<Vec<Content>> = stream::iter(pieces).buffered(READS_IN_FLIGHT).try_collect().await?;
    Ok(pieces.concat())
}

/// Whether the judge refuses the image once one acknowledged write is taken out of it: a check of the check. None when
/// the image holds no block that could show it.
pub fn refuses_a_lost_write(history: &History, image: &Image, bounds: Bounds) -> Option<bool> {
    let mut damaged = image.clone();
    let zeroed = |disk: u32, block: u64| {
        let touches = |o: &oracle::Operation| o.disk == disk && (o.block..o.block + o.blocks).contains(&block);
        history.operations.iter().any(|o| o.action == Action::Zero && touches(o))
    };
    let lost = image.disks.iter().flatten().find_map(|content| match content {
        Content::Stamped(stamp) if !zeroed(stamp.disk, stamp.block) => Some(*stamp),
        _ => None,
    })?;
    damaged.disks[lost.disk as usize][usize::try_from(lost.block).ok()?] = Content::Zeros;
    Some(oracle::check(history, &damaged, bounds).is_err())
}

/// Blocks on a disk of so many bytes.
pub fn blocks_in(bytes: u64) -> u64 {
    bytes / BLOCK_BYTES as u64
}
