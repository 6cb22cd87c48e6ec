//! This crate against real programs: what mke2fs, sfdisk and the kernel wrote is read as they themselves read it.

mod common;
mod ext4;
mod partitions;
mod trees;
