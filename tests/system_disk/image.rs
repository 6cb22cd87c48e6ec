//! A Debian system disk: kernel, systemd and PostgreSQL, made by debootstrap and kept under `target/` between runs.
//!
//! Nothing is mounted: `mke2fs` takes the tree in. The image is made under another name and renamed when it is whole, so a
//! test that dies half-way leaves none. Needs root, as debootstrap does, and a mirror, the first time.

use std::path::{Path, PathBuf};

use crate::harness::tools::run;

/// Bytes of the disk.
pub const BYTES: u64 = 2 << 30;

const RELEASE: &str = "bookworm";
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,postgresql";
const ROLE: &str = include_str!("role.sh");
const SERVICE: &str = include_str!("role.service");

/// Files that nothing needs at run time; less to replicate in a test.
const NEEDLESS: [&str; 6] =
    ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log"];

/// What QEMU starts.
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// The image of this recipe, made if it is not there.
    pub fn get() -> Self {
        let recipe = blake3::hash(format!("{RELEASE} {PACKAGES} {BYTES} {NEEDLESS:?} {ROLE} {SERVICE}").as_bytes());
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/system-disk");
        let dir = base.join(&recipe.to_hex()[..16]);
        if !dir.exists() {
            println!("making {}", dir.display());
            std::fs::create_dir_all(&base).expect("directory is made");
            let making = tempfile::Builder::new().prefix("making-").tempdir_in(&base).expect("directory is made");
            let start = std::time::Instant::now();
            make(making.path());
            std::fs::rename(making.keep(), &dir).expect("a whole image gets its name");
            println!("made in {:.0?}", start.elapsed());
        }
        Self { dir }
    }

    /// The disk, holes and all.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.raw")
    }

    /// The kernel that the disk holds.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initial RAM disk that the disk holds.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }
}

fn make(dir: &Path) {
    let tree = dir.join("tree");
    let tree_text = tree.to_string_lossy();
    let include = format!("--include={PACKAGES}");
    run("debootstrap", &["--variant=minbase", &include, RELEASE, &tree_text]);
    for needless in NEEDLESS {
        run("find", &[&tree.join(needless).to_string_lossy(), "-type", "f", "-delete"]);
    }
    let write = |path: &str, text: &str| std::fs::write(tree.join(path), text).expect("file is written");
    write("etc/fstab", "/dev/vda / ext4 defaults 0 1\n");
    write("etc/hostname", "db\n");
    write("usr/local/sbin/role", ROLE);
    write("etc/systemd/system/role.service", SERVICE);
    run("chmod", &["755", &tree.join("usr/local/sbin/role").to_string_lossy()]);
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, tree.join("etc/systemd/system").join(name)).expect("unit is linked");
    };
    link("/etc/systemd/system/role.service", "multi-user.target.wants/role.service");
    // The console is ours alone, and the machine has no network.
    for unit in ["serial-getty@ttyS0.service", "getty@tty1.service", "apt-daily.timer", "apt-daily-upgrade.timer"] {
        link("/dev/null", unit);
    }
    for (from, to) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
        let boot = std::fs::read_dir(tree.join("boot")).expect("/boot is read");
        let mut paths = boot.map(|entry| entry.expect("/boot is read").path());
        let found = paths.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(from)));
        std::fs::copy(found.unwrap_or_else(|| panic!("/boot holds {from}*")), dir.join(to)).expect("copied");
    }
    let disk = dir.join("disk.raw");
    let size = format!("{}M", BYTES >> 20);
    run("mke2fs", &["-q", "-t", "ext4", "-d", &tree_text, &disk.to_string_lossy(), &size]);
    std::fs::remove_dir_all(&tree).expect("the tree is in the image");
}
