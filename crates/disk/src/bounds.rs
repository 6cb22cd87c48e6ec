//! The one check that a request lies within its disk, shared by every kind of disk.

use std::io;

use model::Extent;

/// Refuses a range that ends past the disk.
pub(crate) fn check_extent(extent: Extent, size: u64) -> io::Result<()> {
    if extent.end() <= size {
        return Ok(());
    }
    let why = format!("range {extent} ends past the disk of {size} bytes");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// The range a write covers; `None` for an empty one, which is nothing to do.
pub(crate) fn check_write(offset: u64, len: usize, size: u64) -> io::Result<Option<Extent>> {
    if len == 0 {
        return Ok(None);
    }
    let invalid = |e| io::Error::new(io::ErrorKind::InvalidInput, e);
    let extent = Extent::new(offset, len as u64).map_err(invalid)?;
    check_extent(extent, size)?;
    Ok(Some(extent))
}
