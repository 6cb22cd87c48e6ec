//! Images made by real programs, read by this crate and mounted by the kernel.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use filesystem::{Ext4, FsError, Inode, InodeKind, ReadError, Volume};

use crate::trees::{Seen, Tree};

/// A file as a volume.
pub struct Image(std::fs::File, u64);

impl Image {
    /// Opens it.
    pub fn open(path: &Path) -> Arc<dyn Volume> {
        let file = std::fs::File::open(path).expect("image opens");
        let len = file.metadata().expect("image is there").len();
        Arc::new(Image(file, len))
    }
}

impl Volume for Image {
    fn size(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        Ok(self.0.read_exact_at(buf, offset)?)
    }
}

/// Runs a program that must succeed (e2fsck may also have repaired).
pub fn run(program: &str, args: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let out = Command::new(program).args(args).env("PATH", path).output();
    let out = out.unwrap_or_else(|e| panic!("cannot run {program} ({e}): `cargo xtask test` installs it"));
    let code = out.status.code().unwrap_or(-1);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(code == 0 || (program == "e2fsck" && code == 1), "{program} {args:?}: {text}{:?}", out);
    text
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// A whole file.
pub fn contents(fs: &Ext4, inode: &Inode) -> Result<Vec<u8>, FsError> {
    let mut bytes = vec![0; inode.size as usize];
    fs.read_file(inode, |offset, piece| {
        bytes[offset as usize..][..piece.len()].copy_from_slice(piece);
        Ok::<_, FsError>(())
    })?;
    Ok(bytes)
}

/// The tree as this crate reads it.
pub fn tree_of_image(fs: &Ext4) -> Result<Tree, FsError> {
    let mut tree = Tree::new();
    let mut rest = vec![(PathBuf::new(), fs.resolve(b"/", true)?)];
    while let Some((dir, inode)) = rest.pop() {
        for entry in fs.list(&inode)? {
            let path = dir.join(std::ffi::OsStr::from_bytes(&entry.name));
            let inode = fs.inode(entry.inode)?;
            let is_dir = inode.kind == InodeKind::Directory;
            let seen = Seen {
                kind: inode.kind.name(),
                permissions: inode.permissions.into(),
                owner: (inode.uid, inode.gid),
                modified: (inode.modified.seconds, inode.modified.nanos.into()),
                size: if is_dir { 0 } else { inode.size },
                contents: match inode.kind {
                    InodeKind::File => contents(fs, &inode)?,
                    InodeKind::Link => fs.link_target(&inode)?,
                    _ => Vec::new(),
                },
            };
            if is_dir {
                rest.push((path.clone(), inode));
            }
            assert!(tree.insert(path.clone(), seen).is_none(), "{path:?} is there once");
        }
    }
    Ok(tree)
}

/// A file system mounted through a loop device; undone when dropped.
pub struct Mounted {
    /// Where.
    pub dir: PathBuf,
}

impl Mounted {
    /// Mounts an image.
    pub fn new(image: &Path, dir: &Path, options: &str) -> Self {
        std::fs::create_dir_all(dir).expect("mount point is made");
        run("mount", &["-o", &format!("loop,{options}"), text(image), text(dir)]);
        Mounted { dir: dir.to_owned() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whatever was started meanwhile may hold a file for a moment.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !Command::new("umount").arg(&self.dir).output().is_ok_and(|out| out.status.success()) {
            assert!(std::time::Instant::now() < deadline, "{} can be unmounted", self.dir.display());
            std::thread::yield_now();
        }
    }
}
