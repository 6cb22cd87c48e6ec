//! Which block device a path names today.
//!
//! A path such as `/dev/sdb` may name another disk after the next boot. The kernel knows what a device is by: the UUID of a
//! mapped or logical volume, the world-wide name or serial number of a disk, the file behind a loop device, and for a partition
//! those of its disk and where it begins. A device that has none of these is the same only until the host boots again.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the kernel says what a device is, best first.
const NAMES: [&str; 8] =
    ["dm/uuid", "md/uuid", "uuid", "wwid", "device/wwid", "device/serial", "serial", "loop/backing_file"];

/// What makes it another device though the name is the same.
const PARTS: [&str; 2] = ["loop/offset", "loop/sizelimit"];

/// What the kernel knows the block device at `path` by: equal only for the same device. Errors: `InvalidInput` when it is no
/// block device; what the kernel says cannot be read.
pub fn device_identity(path: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(path).map_err(|e| crate::raw::context(e, "open", path))?;
    if !metadata.file_type().is_block_device() {
        let why = format!("{} is no block device", path.display());
        return Err(io::Error::new(ErrorKind::InvalidInput, why));
    }
    let number = metadata.rdev();
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    // The entry is a link to the device's own directory, where a partition lies below its disk.
    let entry = PathBuf::from("/sys/dev/block").join(&number);
    let directory = std::fs::canonicalize(&entry).map_err(|e| crate::raw::context(e, "look up", &entry))?;
    if let (Some(start), Some(disk)) = (said(&directory, "start"), directory.parent()) {
        return Ok(format!("{} from sector {start}", of_disk(disk, &number)?));
    }
    of_disk(&directory, &number)
}

fn of_disk(directory: &Path, number: &str) -> io::Result<String> {
    if let Some((name, value)) = NAMES.iter().find_map(|name| Some((name, said(directory, name)?))) {
        let parts = PARTS.iter().filter_map(|part| said(directory, part).filter(|value| value != "0"));
        return Ok(std::iter::once(format!("{name} {value}")).chain(parts).collect::<Vec<_>>().join(" "));
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let sequence = said(directory, "diskseq").unwrap_or_default();
    Ok(format!("{number} {sequence} of boot {}", boot.trim()))
}

/// One line of what the kernel says, if it says anything.
fn said(directory: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(directory.join(name)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_device_and_a_missing_path_is_named() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        let refused = device_identity(file.path()).expect_err("a file");
        assert!(refused.to_string().ends_with("is no block device"), "{refused}");
        let missing = device_identity(Path::new("/nowhere/disk")).expect_err("missing");
        assert!(missing.to_string().contains("/nowhere/disk"), "{missing}");
    }

    #[test]
    fn a_disk_without_a_name_is_known_until_the_next_boot_only() {
        let directory = tempfile::tempdir().expect("temp dir");
        let nameless = of_disk(directory.path(), "7:0").expect("said");
        assert!(nameless.starts_with("7:0 ") && nameless.contains("of boot"), "{nameless}");
        std::fs::write(directory.path().join("serial"), "  X1\n").expect("written");
        assert_eq!(of_disk(directory.path(), "7:0").expect("said"), "serial X1");
        std::fs::create_dir(directory.path().join("loop")).expect("made");
        std::fs::write(directory.path().join("loop/offset"), "512\n").expect("written");
        assert_eq!(of_disk(directory.path(), "7:0").expect("said"), "serial X1 512");
    }
}
