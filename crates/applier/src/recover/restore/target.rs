//! The directory of a restore: empty, or left by an unfinished restore of the same.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::job::{Plan, partial};
use super::journal::{Goal, Journal, Opened, STATE};
use crate::files::{blocking, directory_of, failed, sync_directory};
use crate::recover::RecoverError;

/// Room an image needs beside its data: headers and mapping tables.
const IMAGE_OVERHEAD_BYTES: u64 = 1 << 20;

/// A mapping table takes about one part in so many of the data it maps.
const IMAGE_OVERHEAD_PART: u64 = 4096;

/// Makes the directory if need be, and opens or begins its journal. Errors: `Target`, `OtherRestore`, `TargetTooSmall`;
/// nothing was changed then, but that the directory may have been made.
pub(super) async fn prepare(to: &Path, goal: Goal, plans: &[Plan]) -> Result<Journal, RecoverError> {
    let directory = to.to_owned();
    let found = blocking(move || list(&directory)).await.map_err(failed("list", to))?;
    let refused = |why| Err(RecoverError::Target { path: to.to_owned(), why });
    if !found.is_empty() && !found.contains(OsStr::new(STATE)) {
        return refused(
            "is not empty: give a directory that is empty, is absent, or holds an unfinished restore of the same",
        );
    }
    let images: Vec<_> = (0..goal.disks.len()).map(|number| image_path(to, &goal, number)).collect();
    check_room(to, plans, &images)?;
    let opened = Opened::at(to.join(STATE)).await?;
    if let Some(other) = opened.goal().filter(|other| !other.is_of_the_same(&goal)) {
        let (found, asked) = (other.describe(), goal.describe());
        return Err(RecoverError::OtherRestore { path: to.to_owned(), found, asked });
    }
    let ours = images.iter().flat_map(|image| [image.clone(), partial(image)]);
    let ours: BTreeSet<_> = ours.filter_map(|path| path.file_name().map(OsString::from)).collect();
    if found.iter().any(|name| name != STATE && !ours.contains(name)) {
        return refused("holds files that are not of this restore: move them away, or give another directory");
    }
    if opened.goal() != Some(&goal) && images.iter().any(|image| image.exists()) {
        return Err(unknown_image(to));
    }
    opened.into_journal(goal).await
}

/// An image has its final name, and the journal does not know what was written to it.
pub(super) fn unknown_image(to: &Path) -> RecoverError {
    let why =
        "holds a finished image of which its damaged journal says nothing: move it away, or give another directory";
    RecoverError::Target { path: to.to_owned(), why }
}

/// `<machine>-<disk>.<ext>`.
pub(super) fn image_path(to: &Path, goal: &Goal, number: usize) -> PathBuf {
    to.join(format!("{}-{}.{}", goal.machine, goal.disks[number].name, goal.format))
}

/// The names in a directory, which is made if it is absent.
fn list(to: &Path) -> std::io::Result<BTreeSet<OsString>> {
    if !to.exists() {
        std::fs::create_dir_all(to)?;
        sync_directory(directory_of(to))?;
    }
    std::fs::read_dir(to)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// What earlier lives took counts as free: it is written to again, or need not be written.
fn check_room(to: &Path, plans: &[Plan], images: &[PathBuf]) -> Result<(), RecoverError> {
    let need: u64 = plans.iter().map(|p| p.bytes() + p.bytes() / IMAGE_OVERHEAD_PART + IMAGE_OVERHEAD_BYTES).sum();
    let files = images.iter().flat_map(|image| [image.clone(), partial(image)]);
    let taken: u64 = files.filter_map(|path| path.metadata().ok()).map(|found| found.blocks() * 512).sum();
    let need = need.saturating_sub(taken);
    let stat = rustix::fs::statvfs(to).map_err(|e| failed("measure", to)(e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    match free < need {
        true => Err(RecoverError::TargetTooSmall { path: to.to_owned(), need, free }),
        false => Ok(()),
    }
}
