//! Partitions and file systems of a volume, read only.
//!
//! Knows nothing of points and stores: a [`Volume`] is anything that gives bytes at an offset. [`partitions`] says how a
//! disk is divided, [`kind_of`] what a partition holds, and [`Ext4`] reads ext2, ext3 and ext4 as they are after their
//! journal has been replayed, which is done in memory.
//!
//! What is on a disk was written by somebody else. Whatever it says, nothing here panics, loops without an end or
//! allocates beyond the limits named in each file: every count is checked against the volume, every tree has a depth and
//! every list a longest length. Where the file system keeps checksums they are verified.

mod error;
mod ext4;
mod fields;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod kind;
mod partition;
mod volume;

pub use error::FsError;
pub use ext4::{DirEntry, Ext4, Inode, InodeKind, NodeNumber, Time};
pub use kind::{FsKind, kind_of};
pub use partition::{Partition, PartitionTable, TableKind, partitions};
pub use volume::{Cached, ReadError, Volume, Window};
