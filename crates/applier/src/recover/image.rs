//! How images are named.

use disk::ImageFormat;
use model::{DiskName, MachineName};

/// `<machine>-<disk>.<ext>`.
pub(super) fn image_name(machine: &MachineName, disk: &DiskName, format: ImageFormat) -> String {
    let extension = match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Vhd => "vhd",
    };
    format!("{machine}-{disk}.{extension}")
}
