//! A file system on a file or an export, mounted by the kernel; needs root.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::eventually;
use super::tools::{run, try_run};

/// A block device over a file or an export, with a file system mounted; undone when dropped.
pub struct Mounted {
    fuse: Option<(Child, PathBuf)>,
    /// The loop device.
    pub device: String,
    /// Where it is mounted.
    pub dir: PathBuf,
}

impl Mounted {
    /// Attaches a loop device to what a file holds behind `offset`.
    pub fn attach(file: &Path, offset: u64, dir: &Path) -> Self {
        Self::attach_file(file, offset, dir, None)
    }

    fn attach_file(file: &Path, offset: u64, dir: &Path, fuse: Option<(Child, PathBuf)>) -> Self {
        std::fs::create_dir_all(dir).expect("mount point is made");
        let device = run("losetup", &["--find", "--show", "--offset", &offset.to_string(), &file.to_string_lossy()])
            .trim()
            .to_owned();
        Self { fuse, device, dir: dir.to_owned() }
    }

    /// Attaches a loop device to what an NBD export holds behind `offset`, through nbdfuse.
    pub fn attach_export(socket: &Path, offset: u64, dir: &Path) -> Self {
        let fuse_dir = dir.with_extension("fuse");
        std::fs::create_dir_all(&fuse_dir).expect("fuse mount point is made");
        let file = fuse_dir.join("nbd");
        let child = Command::new("nbdfuse")
            .arg(&file)
            .arg("--unix")
            .arg(socket)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run nbdfuse ({e}): `cargo xtask test` installs it"));
        eventually("nbdfuse shows the export", || file.metadata().map(|_| ()).map_err(|e| e.to_string()));
        Self::attach_file(&file, offset, dir, Some((child, fuse_dir)))
    }

    /// A small ext4 file system of its own, mounted.
    pub fn small(dir: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(dir).expect("directory is made");
        let (image, mount) = (dir.join("small.img"), dir.join("small"));
        std::fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("image is made");
        run("mkfs.ext4", &["-q", &image.to_string_lossy()]);
        let small = Self::attach(&image, 0, &mount);
        small.mount();
        small
    }

    /// Takes all space that is left; removing the file that is given makes room again.
    pub fn fill(&self) -> PathBuf {
        let ballast = self.dir.join("ballast");
        try_run("dd", &["if=/dev/zero", &format!("of={}", ballast.to_string_lossy()), "bs=64k"]);
        ballast
    }

    /// Mounts it.
    pub fn mount(&self) {
        run("mount", &[&self.device, &self.dir.to_string_lossy()]);
    }

    /// Unmounts it.
    pub fn unmount(&self) {
        run("umount", &[&self.dir.to_string_lossy()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        try_run("umount", &["-l", &self.dir.to_string_lossy()]);
        try_run("losetup", &["-d", &self.device]);
        if let Some((mut child, dir)) = self.fuse.take() {
            try_run("fusermount3", &["-u", &dir.to_string_lossy()]);
            let _gone_already = child.kill();
            let _gone_already = child.wait();
        }
    }
}
