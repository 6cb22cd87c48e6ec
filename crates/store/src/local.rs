//! What `file://` needs beyond a directory: a private root, no network filesystem below it, no way out of it, and
//! directory entries synced before anything rests on them.
//!
//! The epoch log needs create-if-absent that is atomic for every writer, and reads that see the newest state. Network
//! filesystems cache names and attributes and replay requests, so they are refused rather than trusted.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Only the owner may look inside: names of machines are nobody else's business.
const ROOT_MODE: u32 = 0o700;

/// Directories remembered as anchored; when there are more, all are forgotten and synced again.
const ANCHORED_MAX: usize = 4096;

/// The root directory of a `file://` store.
#[derive(Debug)]
pub(crate) struct LocalRoot {
    root: PathBuf,
    /// A sync failed: what this process has written may be gone, whatever a later sync says. Set once, never cleared;
    /// relaxed ordering is enough because it guards no other memory.
    condemned: AtomicBool,
    /// Directories below the root whose own entry in their parent is known to be durable: it stays so.
    anchored: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl LocalRoot {
    /// Creates the directory when it is absent and refuses a network filesystem. Errors: one line for the operator.
    pub(crate) fn open(root: &Path) -> Result<Self, String> {
        let existing = root.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        refuse_network_filesystem(existing)?;
        create_durably(root, existing).map_err(|e| format!("cannot create the directory: {e}"))?;
        let meta = std::fs::metadata(root).map_err(|e| format!("cannot read the directory: {e}"))?;
        if !meta.is_dir() {
            return Err("it is not a directory".to_owned());
        }
        Ok(Self { root: root.to_owned(), condemned: AtomicBool::new(false), anchored: Arc::default() })
    }

    /// Refuses a path that a symbolic link leads elsewhere: whoever can write into the directory must not make us read,
    /// create or delete files outside it. The root itself may be one, by the operator's choice. A link made between this
    /// look and the operation is not seen: that takes somebody who may as well replace the objects themselves. A handful of
    /// lookups of names that are in use anyway, so it is done in place.
    pub(crate) fn contains(&self, path: &str) -> io::Result<()> {
        let mut at = self.root.clone();
        for part in Path::new(path) {
            at.push(part);
            match std::fs::symlink_metadata(&at) {
                Ok(found) if found.is_symlink() => {
                    let why = format!("{} is a symbolic link, and a store holds none: take it away", at.display());
                    return Err(io::Error::other(why));
                }
                Ok(_) => {}
                // What lies below is not there either; any other fault is the operation's to tell.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// From now on every `settle` fails: the process must be restarted before it can call anything durable.
    pub(crate) fn condemn(&self) {
        // Relaxed: its partner is the load in `settle`; see the field.
        self.condemned.store(true, Ordering::Relaxed);
    }

    /// Syncs the directory of `path`, and every directory above it up to the root that was not synced before.
    pub(crate) async fn settle(&self, path: &str) -> io::Result<()> {
        // Relaxed: its partner is the store in `condemn`; see the field.
        if self.condemned.load(Ordering::Relaxed) {
            return Err(io::Error::other("an earlier sync of this store failed: check the disk, then restart"));
        }
        let (root, leaf, anchored) = (self.root.clone(), self.root.join(path), self.anchored.clone());
        let synced = tokio::task::spawn_blocking(move || sync_and_anchor(&leaf, &root, &anchored)).await?;
        if synced.is_err() {
            self.condemn();
        }
        synced
    }

    /// Removes a directory below the root if it is empty; whether it was is of no matter to anyone.
    pub(crate) async fn remove_empty(&self, folder: &str) {
        let dir = self.root.join(folder);
        let _stays = tokio::task::spawn_blocking(move || std::fs::remove_dir(dir)).await;
    }
}

fn sync_upwards(leaf: &Path, root: &Path) -> io::Result<()> {
    let inside = |dir: &&Path| dir.starts_with(root);
    leaf.ancestors().skip(1).take_while(inside).try_for_each(|dir| File::open(dir)?.sync_all())
}

fn sync_and_anchor(leaf: &Path, root: &Path, anchored: &Mutex<BTreeSet<PathBuf>>) -> io::Result<()> {
    let Some(dir) = leaf.parent() else { return Ok(()) };
    if anchored.lock().unwrap_or_else(PoisonError::into_inner).contains(dir) {
        return File::open(dir)?.sync_all();
    }
    sync_upwards(leaf, root)?;
    let mut anchored = anchored.lock().unwrap_or_else(PoisonError::into_inner);
    if anchored.len() >= ANCHORED_MAX {
        anchored.clear();
    }
    anchored.insert(dir.to_owned());
    Ok(())
}

/// Creates `root` and syncs every directory that gained an entry by it.
fn create_durably(root: &Path, existing: &Path) -> io::Result<()> {
    if root == existing {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(ROOT_MODE).create(root)?;
    sync_upwards(&root.join("any"), existing)
}

/// Filesystem magic numbers (`statfs(2)`) of filesystems whose names or contents other hosts change.
const NETWORK: [(u64, &str); 11] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x564C, "NCP"),
    (0x7375_7245, "Coda"),
    (0x5346_414F, "AFS"),
    (0x0102_1997, "9P"),
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
    (0x786F_4256, "VirtualBox shared folder"),
];

/// FUSE hides what lies behind it; the mount table tells.
const FUSE_MAGIC: u64 = 0x6573_5546;

/// FUSE filesystems on a local block device.
const LOCAL_FUSE: [&str; 5] = ["fuseblk", "fuse.fuse2fs", "fuse.ext2", "fuse.ext3", "fuse.ext4"];

fn refuse_network_filesystem(dir: &Path) -> Result<(), String> {
    let stat = rustix::fs::statfs(dir).map_err(|e| format!("cannot tell its filesystem: {e}"))?;
    #[allow(clippy::unnecessary_cast, reason = "the type of f_type differs by platform")]
    let magic = (stat.f_type as u64) & 0xFFFF_FFFF;
    let advice = "use a local filesystem, or an object store";
    if let Some((_, name)) = NETWORK.iter().find(|(number, _)| *number == magic) {
        return Err(format!("it lies on a network filesystem ({name}), which cannot keep two writers apart: {advice}"));
    }
    if magic != FUSE_MAGIC {
        return Ok(());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("cannot read mounts: {e}"))?;
    let real = dir.canonicalize().map_err(|e| format!("cannot resolve the directory: {e}"))?;
    match mount_type(&mounts, &real) {
        Some(kind) if LOCAL_FUSE.contains(&kind) => Ok(()),
        kind => Err(format!("it lies on {}, which may be a network filesystem: {advice}", kind.unwrap_or("FUSE"))),
    }
}

/// The type of the last mount that covers `dir`, from the text of `/proc/self/mountinfo` (`proc(5)`).
fn mount_type<'a>(mounts: &'a str, dir: &Path) -> Option<&'a str> {
    let entry = |line: &'a str| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        dir.starts_with(&point).then(|| Some((point.len(), after.split(' ').next()?))).flatten()
    };
    mounts.lines().filter_map(entry).max_by_key(|(len, _)| *len).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        40 22 0:44 / /mnt/far rw,nosuid shared:2 - fuse.sshfs host:/ rw\n\
        41 22 8:17 / /mnt/near\\040by rw - fuseblk /dev/sdb1 rw\n";

    #[test]
    fn the_longest_mount_point_decides_the_type() {
        assert_eq!(mount_type(MOUNTS, Path::new("/mnt/far/store")), Some("fuse.sshfs"));
        assert_eq!(mount_type(MOUNTS, Path::new("/mnt/near by/store")), Some("fuseblk"));
        assert_eq!(mount_type(MOUNTS, Path::new("/mnt/farther")), Some("ext4"));
    }

    #[test]
    fn the_root_is_made_private_and_a_file_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().join("a/b");
        LocalRoot::open(&root).expect("a local directory is fine");
        assert_eq!(std::fs::metadata(&root).expect("made").permissions().mode() & 0o777, 0o700);
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").expect("write");
        assert!(LocalRoot::open(&file).is_err());
    }

    #[tokio::test]
    async fn after_a_failed_sync_nothing_is_called_durable_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = LocalRoot::open(&dir.path().join("store")).expect("open");
        root.settle("vault").await.expect("the root exists");
        assert!(root.settle("no/such/path").await.is_err(), "its directory cannot be synced");
        assert!(root.settle("vault").await.is_err(), "the first failure counts for good");
    }
}
