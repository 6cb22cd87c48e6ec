//! What a partition holds, told by the magic numbers that file systems put at fixed places.

use crate::volume::{Volume, read};

/// What a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsKind {
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// NTFS.
    Ntfs,
    /// Btrfs.
    Btrfs,
    /// exFAT.
    Exfat,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// Linux swap space.
    Swap,
    /// A physical volume of LVM.
    Lvm,
    /// A LUKS container.
    Luks,
    /// A member of a Linux software RAID.
    Raid,
    /// ISO 9660.
    Iso9660,
    /// SquashFS.
    SquashFs,
}

impl FsKind {
    /// Its name in lower case, as `blkid` would say it.
    pub fn name(self) -> &'static str {
        match self {
            FsKind::Ext => "ext4",
            FsKind::Xfs => "xfs",
            FsKind::Ntfs => "ntfs",
            FsKind::Btrfs => "btrfs",
            FsKind::Exfat => "exfat",
            FsKind::Fat => "vfat",
            FsKind::Swap => "swap",
            FsKind::Lvm => "lvm",
            FsKind::Luks => "luks",
            FsKind::Raid => "raid",
            FsKind::Iso9660 => "iso9660",
            FsKind::SquashFs => "squashfs",
        }
    }
}

/// Magic numbers: what they say, where they stand, what they are. Containers come before what may show through them.
const MAGICS: &[(FsKind, u64, &[u8])] = &[
    (FsKind::Luks, 0, b"LUKS\xba\xbe"),
    (FsKind::Lvm, 512, b"LABELONE"),
    (FsKind::Raid, 4096, b"\xfc\x4e\x2b\xa9"),
    (FsKind::Xfs, 0, b"XFSB"),
    (FsKind::SquashFs, 0, b"hsqs"),
    (FsKind::Ntfs, 3, b"NTFS    "),
    (FsKind::Exfat, 3, b"EXFAT   "),
    (FsKind::Fat, 82, b"FAT32   "),
    (FsKind::Fat, 54, b"FAT12   "),
    (FsKind::Fat, 54, b"FAT16   "),
    (FsKind::Ext, 1024 + 0x38, b"\x53\xef"),
    (FsKind::Btrfs, 65_536 + 64, b"_BHRfS_M"),
    (FsKind::Swap, 4096 - 10, b"SWAPSPACE2"),
    (FsKind::Iso9660, 32_768 + 1, b"CD001"),
];

/// What the volume holds, if it is known here. Errors: `Read`.
pub fn kind_of(volume: &dyn Volume) -> Result<Option<FsKind>, crate::FsError> {
    for (kind, at, magic) in MAGICS {
        let mut found = [0; 16];
        let found = &mut found[..magic.len()];
        if at + magic.len() as u64 <= volume.size() {
            read(volume, *at, found)?;
            if found == *magic {
                return Ok(Some(*kind));
            }
        }
    }
    Ok(None)
}
