//! One disk on its way into an image.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Image, ImageFormat};
use model::Extent;

use super::journal::{Journal, Sums};
use super::{PIECE_BYTES, piece, target};
use crate::files::{blocking, failed, sync_directory};
use crate::recover::{PointDisk, RecoverError};

/// What of a disk is to be written.
pub(super) struct Plan {
    /// The disk.
    pub disk: Arc<PointDisk>,
    /// Its ranges that may hold other than zeros, in order.
    pub data: Vec<Extent>,
    /// Digest of these ranges: where data lies in an image follows from them.
    pub digest: [u8; 32],
    /// Pieces with data, and how many bytes of it.
    pub pieces: BTreeMap<u64, u64>,
}

impl Plan {
    /// For all data of a disk.
    pub async fn of(disk: Arc<PointDisk>) -> Result<Self, RecoverError> {
        let data = disk.data_extents().await?;
        let (mut pieces, mut digest) = (BTreeMap::new(), blake3::Hasher::new());
        for extent in &data {
            digest.update(&extent.offset().to_le_bytes()).update(&extent.len().to_le_bytes());
            for part in extent.split_at_multiples(PIECE_BYTES) {
                *pieces.entry(part.offset() / PIECE_BYTES).or_default() += part.len();
            }
        }
        Ok(Self { disk, data, digest: digest.finalize().into(), pieces })
    }

    /// Data bytes.
    pub fn bytes(&self) -> u64 {
        self.pieces.values().sum()
    }

    /// Data bytes of those pieces that have a digest.
    pub fn bytes_in(&self, sums: &Sums) -> u64 {
        self.pieces.iter().filter(|(number, _)| sums.contains_key(number)).map(|(_, bytes)| bytes).sum()
    }

    /// The ranges with data within `extent`, in order.
    pub fn data_in(&self, extent: Extent) -> impl Iterator<Item = Extent> + '_ {
        let first = self.data.partition_point(|data| data.end() <= extent.offset());
        self.data[first..].iter().map_while(move |data| data.intersection(&extent))
    }
}

/// A disk, and the image that it is written to.
pub(super) struct Job {
    /// Its number in the journal.
    pub number: usize,
    /// What is to be written.
    pub plan: Plan,
    /// Where.
    pub image: Image,
    /// The image's final name.
    pub path: PathBuf,
    /// Whether it has that name already: an earlier life wrote and read back all of it.
    pub named: bool,
}

impl Job {
    /// Opens the image that an earlier life left, or creates it. Only what the journal calls durable is ever gone on with:
    /// an image of which it knows nothing is made anew.
    pub async fn open(
        number: usize,
        plan: Plan,
        to: &Path,
        format: ImageFormat,
        journal: &Journal,
    ) -> Result<Self, RecoverError> {
        let path = target::image_path(to, journal.goal(), number);
        let partial = partial(&path);
        let (size, sums) = (plan.disk.size(), journal.sums(number));
        let named = path.exists();
        let found = if named { &path } else { &partial };
        if named || !sums.is_empty() {
            match Image::open(found, format, size, &plan.data).await {
                Ok(image) if !named || plan.pieces.keys().all(|piece| sums.contains_key(piece)) => {
                    return Ok(Self { number, plan, image, path, named });
                }
                Ok(_) => return Err(target::unknown_image(to)),
                Err(error) if named || !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => {
                    return Err(failed("open", found)(error));
                }
                Err(error) => {
                    tracing::warn!(image = %partial.display(), %error, "not what the journal speaks of: begun anew");
                }
            }
        }
        // Before the file goes: no crash may leave an empty image of which the journal says that pieces are durable.
        journal.forget(number).await?;
        let image = create(&partial, format, &plan).await?;
        Ok(Self { number, plan, image, path, named: false })
    }

    /// The pieces that are not durable yet.
    pub fn missing(&self, journal: &Journal) -> Vec<u64> {
        let sums = journal.sums(self.number);
        self.plan.pieces.keys().filter(|number| !sums.contains_key(number)).copied().collect()
    }

    /// The range of a piece.
    pub fn piece(&self, number: u64) -> Extent {
        piece(number, self.plan.disk.size())
    }

    /// Completes the image, durably, under the name it has.
    pub async fn finish(&self) -> Result<(), RecoverError> {
        self.image.finish().await.map_err(failed("complete", self.image.path()))?;
        probe::failpoint!("restore-image-complete");
        Ok(())
    }

    /// Gives a complete image its name, durably.
    pub async fn publish(&self, to: &Path) -> Result<(), RecoverError> {
        let (partial, path, directory) = (self.image.path().to_owned(), self.path.clone(), to.to_owned());
        let renamed = blocking(move || std::fs::rename(partial, path)).await;
        renamed.map_err(failed("rename", self.image.path()))?;
        probe::failpoint!("restore-image-renamed");
        blocking(move || sync_directory(&directory)).await.map_err(failed("sync", to))
    }
}

async fn create(partial: &Path, format: ImageFormat, plan: &Plan) -> Result<Image, RecoverError> {
    match tokio::fs::remove_file(partial).await {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", partial)(error)),
        _ => {}
    }
    let image =
        Image::create(partial, format, plan.disk.size(), &plan.data).await.map_err(failed("create", partial))?;
    probe::failpoint!("restore-image-created");
    Ok(image)
}

/// What an image is called until it is whole.
pub(super) fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}
