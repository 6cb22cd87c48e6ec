//! Single files out of a position: which disk, which partition, which file system, and a tree copied out of it.
//!
//! The crate `filesystem` reads a volume, and a disk of a point is one ([`volume`]); what it cannot read libguestfs may ([`tree`]). Both block, so they run in a
//! thread of their own ([`on_its_own_thread`]): whatever a file system does to its reader ends there as an error.

mod copy;
mod guestfs;
mod place;
mod target;
mod tree;
mod volume;

pub use copy::{Copier, CopyReport};
pub use place::{DiskLayout, Found, Place, layout};
pub use target::Target;
pub use tree::{Node, Tree};
pub use volume::volume_of;

use anyhow::Context;

/// Runs what blocks, to its end.
pub async fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.context(
        "the file system broke its reader, which is a fault of Farshore: export the disk with `farshore serve`",
    )?
}

#[cfg(test)]
mod tests;
