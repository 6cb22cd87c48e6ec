//! Block devices that replica disks are kept on: which of them are ours to write.
//!
//! What is on a device is lost when a replica is written to it, so one is taken only when it reads as zeros from end to end.
//! From then on it is the replica's: a file beside the state says so, durably before the first write, by what the kernel
//! knows the device by and not by its path. There is no switch to overwrite anything else: whoever wants a device that holds
//! data to be taken makes it blank first. The kernel besides refuses a device that is mounted or otherwise held.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use disk::{Disk, RawDisk};
use model::{DiskName, Extent};
use tokio_util::sync::CancellationToken;

use crate::ApplierError;
use crate::files::sync_directory;

/// Bytes looked at together when a device must be blank.
const LOOK_BYTES: u64 = 8 << 20;

/// No file that names devices is longer.
const CLAIMS_BYTES_MAX: u64 = 1 << 20;

fn claims_path(directory: &Path) -> PathBuf {
    directory.join("devices")
}

fn claim_line(disk: &DiskName, identity: &str) -> String {
    format!("{disk} {}", identity.replace('\n', " "))
}

/// What the kernel knows the device by.
pub(super) fn identity(path: &Path) -> Result<String, ApplierError> {
    disk::device_identity(path).map_err(|source| failed("use", path, source))
}

/// Opens the device of a disk, held alone.
pub(super) fn open(path: &Path, name: &DiskName, size: u64) -> Result<RawDisk, ApplierError> {
    let device = RawDisk::open(path, true).map_err(|source| failed("use", path, source))?;
    check_size(&device, path, name, size)?;
    Ok(device)
}

/// A disk may not be larger than its device.
pub(super) fn check_size(device: &RawDisk, path: &Path, name: &DiskName, size: u64) -> Result<(), ApplierError> {
    if device.size() >= size {
        return Ok(());
    }
    let (path, disk, device_bytes) = (path.to_owned(), name.clone(), device.size());
    Err(ApplierError::DeviceTooSmall { path, disk, device_bytes, disk_bytes: size })
}

/// Takes a device for a disk that begins blank. Errors: `DeviceNotBlank` when it is not ours and holds something.
pub(super) async fn take_blank(
    directory: &Path,
    path: &Path,
    name: &DiskName,
    size: u64,
    stop: &CancellationToken,
) -> Result<RawDisk, ApplierError> {
    let (identity, device) = (identity(path)?, open(path, name, size)?);
    let line = claim_line(name, &identity);
    let claims = read_claims(directory).map_err(|source| failed("read", &claims_path(directory), source))?;
    if claims.lines().any(|claim| claim == line) {
        if let Ok(whole) = Extent::new(0, size) {
            device.zero(whole, true).await.map_err(|source| failed("write", path, source))?;
        }
        return Ok(device);
    }
    check_blank(&device, path, name, stop).await?;
    let claims = format!("{claims}{line}\n");
    save_claims(directory, &claims).map_err(|source| failed("save", &claims_path(directory), source))?;
    Ok(device)
}

async fn check_blank(
    device: &RawDisk,
    path: &Path,
    name: &DiskName,
    stop: &CancellationToken,
) -> Result<(), ApplierError> {
    let Ok(whole) = Extent::new(0, device.size()) else { return Ok(()) };
    for piece in whole.split_at_multiples(LOOK_BYTES) {
        if stop.is_cancelled() {
            return Err(ApplierError::Stopped);
        }
        let bytes = device.read(piece).await.map_err(|source| failed("read", path, source))?;
        if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
            let (path, disk) = (path.to_owned(), name.clone());
            return Err(ApplierError::DeviceNotBlank { path, disk, at: piece.offset() + at as u64 });
        }
    }
    Ok(())
}

fn read_claims(directory: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    match File::open(claims_path(directory)) {
        Ok(file) => file.take(CLAIMS_BYTES_MAX).read_to_string(&mut text).map(|_| text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(text),
        Err(error) => Err(error),
    }
}

fn save_claims(directory: &Path, claims: &str) -> io::Result<()> {
    let fresh = directory.join("devices.new");
    let mut file = File::create(&fresh)?;
    file.write_all(claims.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, claims_path(directory))?;
    sync_directory(directory)
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> ApplierError {
    ApplierError::File { operation, path: path.to_owned(), source }
}
