//! What this crate reads of a file system equals what the kernel shows of it: every name, kind, permission, owner, time
//! and byte. The file systems are made by mke2fs and written by the kernel, through loop devices, so these tests need root.

use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::{Image, Mounted, contents, run, text, tree_of_image};
use crate::trees::{Tree, difference, tree_of_directory};
use filesystem::{Ext4, FsError, InodeKind};

/// A seeded stream of bytes (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

/// A tree with one of everything.
fn furnish(root: &Path, noise: &mut Noise) {
    let file = |name: &str, bytes: &[u8]| std::fs::write(root.join(name), bytes).expect("file is written");
    file("empty", b"");
    file("short", b"hello");
    file("blocks", &noise.bytes(300_000));
    file(&"n".repeat(255), b"the longest name");
    std::fs::set_permissions(root.join("short"), std::fs::Permissions::from_mode(0o4751)).expect("mode is set");
    let deep: PathBuf = (0..60).map(|i| format!("level{i}")).collect();
    std::fs::create_dir_all(root.join(&deep)).expect("directories are made");
    file(&format!("{}/bottom", deep.display()), b"deep");
    std::fs::create_dir(root.join("many")).expect("directory is made");
    for i in 0..3000 {
        file(&format!("many/a file with a name of some length {i}"), format!("{i}").as_bytes());
    }
    symlink("short", root.join("link")).expect("link is made");
    symlink("x".repeat(200), root.join("long link")).expect("link is made");
    symlink("loop b", root.join("loop a")).expect("link is made");
    symlink("loop a", root.join("loop b")).expect("link is made");
    symlink("/level0/../link", root.join("way")).expect("link is made");
    std::fs::hard_link(root.join("blocks"), root.join("hard link")).expect("link is made");
    run("mkfifo", &[text(&root.join("pipe"))]);
    run("mknod", &[text(&root.join("device")), "c", "1", "3"]);
    let sparse = std::fs::File::create(root.join("sparse")).expect("file is made");
    for i in 0..40 {
        sparse.write_all_at(&noise.bytes(5000), i * 300_001).expect("piece is written");
    }
    sparse.set_len(20_000_000).expect("length is set");
    let old = std::fs::File::create(root.join("old")).expect("file is made");
    let before_1970 = std::time::UNIX_EPOCH - std::time::Duration::new(86_400 * 365, 5);
    old.set_modified(before_1970).expect("time is set");
    let new = std::fs::File::create(root.join("new")).expect("file is made");
    new.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(5_000_000_000, 7)).expect("time is set");
}

/// Makes a file system, lets the kernel furnish it, and compares.
fn check(options: &[&str], preallocates: bool) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = dir.path().join("image");
    std::fs::File::create(&image).and_then(|f| f.set_len(256 << 20)).expect("image is made");
    run("mke2fs", &[&["-q", "-F"], options, &[text(&image)]].concat());
    let mounted = Mounted::new(&image, &dir.path().join("mount"), "rw");
    let root = mounted.dir.clone();
    let mut noise = Noise(1);
    // What was here before shows through where something is taken for data that is not.
    std::fs::write(root.join("gone"), noise.bytes(30 << 20)).expect("file is written");
    run("sync", &["-f", text(&root)]);
    std::fs::remove_file(root.join("gone")).expect("file is removed");
    run("sync", &["-f", text(&root)]);
    furnish(&root, &mut noise);
    if preallocates {
        run("fallocate", &["-l", "10M", text(&root.join("preallocated"))]);
        let file = std::fs::File::options().write(true).open(root.join("preallocated")).expect("file opens");
        file.write_all_at(b"in the middle", 5_000_000).expect("file is written");
    }
    let expected = tree_of_directory(&root);
    drop(mounted);
    let fs = Ext4::open(Image::open(&image)).unwrap_or_else(|e| panic!("{options:?}: {e}"));
    assert_eq!(fs.replayed_blocks(), 0, "the file system was unmounted");
    let found = tree_of_image(&fs).unwrap_or_else(|e| panic!("{options:?}: {e}"));
    assert_eq!(difference(&found, &expected), None, "{options:?}");
    assert!(found.len() > 3060, "{} names", found.len());
    resolves(&fs);
    // The comparison can fail: one byte of one file is enough.
    std::fs::File::options()
        .write(true)
        .open(&image)
        .and_then(|mut file| {
            let bytes = std::fs::read(&image)?;
            let place = bytes.windows(16).position(|w| w == b"the longest name").expect("contents are in the image");
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(place as u64))?;
            file.write_all(b"T")
        })
        .expect("a byte is changed");
    let fs = Ext4::open(Image::open(&image)).expect("file system opens");
    let told = difference(&tree_of_image(&fs).expect("tree is read"), &expected).expect("the change is seen");
    assert!(told.starts_with("nnn"), "{told}");
}

/// Links on the way, links at the end, loops, and ways out.
fn resolves(fs: &Ext4) {
    let at = |path: &str, follow| fs.resolve(path.as_bytes(), follow);
    assert_eq!(contents(fs, &at("/link", true).expect("is there")).expect("is read"), b"hello");
    assert_eq!(at("link", false).expect("is there").kind, InodeKind::Link);
    assert_eq!(contents(fs, &at("../..//./level0/../way", true).expect("is there")).expect("is read"), b"hello");
    assert!(matches!(at("loop a", true), Err(FsError::LinkLoop { .. })));
    assert!(matches!(at("loop a/x", false), Err(FsError::LinkLoop { .. })));
    assert!(matches!(at("short/x", true), Err(FsError::NotADirectory { .. })));
    assert!(matches!(at("nobody", true), Err(FsError::NotFound { .. })));
}

#[test]
fn ext4_as_mke2fs_makes_it() {
    check(&["-t", "ext4"], true);
}

#[test]
fn ext4_with_blocks_of_1_kib_without_checksums() {
    check(&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"], true);
}

#[test]
fn ext4_with_large_clusters_and_a_stored_seed() {
    check(&["-t", "ext4", "-b", "2048", "-O", "bigalloc,metadata_csum_seed,large_dir"], true);
}

#[test]
fn ext3_with_its_block_map() {
    check(&["-t", "ext3", "-b", "1024", "-I", "256"], false);
}

#[test]
fn ext2_without_a_journal() {
    check(&["-t", "ext2", "-I", "256", "-O", "^dir_index"], false);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = dir.path().join("image");
    let refused = |options: &[&str]| {
        std::fs::File::create(&image).and_then(|f| f.set_len(32 << 20)).expect("image is made");
        run("mke2fs", &[&["-q", "-F", "-t", "ext4"], options, &[text(&image)]].concat());
        let told = match Ext4::open(Image::open(&image)) {
            Err(error) => error.to_string(),
            Ok(fs) => tree_of_image(&fs).map(|_| ()).expect_err("something is refused").to_string(),
        };
        assert!(told.contains("farshore serve"), "{told}");
        told
    };
    assert!(refused(&["-O", "meta_bg,^resize_inode"]).contains("meta_bg"));
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("small")).expect("directory is made");
    assert!(refused(&["-O", "inline_data", "-d", text(&tree)]).contains("inline_data"));
}

/// Marks the file system as not needing its journal, as a reader without one would take it.
fn without_replay(image: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(image).expect("image is read");
    bytes[1024 + 0x60] &= !4;
    let sum = !crc32c::crc32c(&bytes[1024..1024 + 0x3fc]);
    bytes[1024 + 0x3fc..2048].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What the journals of a run went through.
#[derive(Debug, Default)]
struct Covered {
    replayed: usize,
    revoking: usize,
    escaping: usize,
    wrapped: usize,
    differing_without: usize,
}

/// A file system under load, copied while it is mounted: each copy is what a power cut leaves. The kernel's own recovery of
/// the copy is the oracle.
fn survives_power_cuts(options: &[&str], mount: &str, seed: u64) -> Covered {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
    std::fs::File::create(&image).and_then(|f| f.set_len(48 << 20)).expect("image is made");
    run("mke2fs", &[&["-q", "-F"], options, &[text(&image)]].concat());
    let mounted = Mounted::new(&image, &dir.path().join("mount"), mount);
    let (mut noise, mut covered) = (Noise(seed), Covered::default());
    for round in 0..12 {
        for _ in 0..6 {
            churn(&mounted.dir, &mut noise);
            // A commit, not a checkpoint: the journal is not emptied.
            std::fs::File::create(mounted.dir.join("commit")).and_then(|f| f.sync_all()).expect("commit");
        }
        run("cp", &["--sparse=always", text(&image), text(&copy)]);
        let fs = Ext4::open(Image::open(&copy)).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let found = tree_of_image(&fs).unwrap_or_else(|e| panic!("round {round}: {e}"));
        covered.replayed += usize::from(fs.replayed_blocks() > 0);
        let log = run("debugfs", &["-R", "logdump -a", text(&copy)]);
        covered.revoking += usize::from(log.contains("revoke"));
        // The low bit of a tag's flags.
        covered.escaping +=
            usize::from(["(flags 0x1)", "(flags 0x3)", "(flags 0x9)", "(flags 0xb)"].iter().any(|f| log.contains(f)));
        covered.wrapped += usize::from(wraps(&log));
        let bare = Ext4::open(Arc::new(without_replay(&copy))).and_then(|fs| tree_of_image(&fs));
        let expected = recovered(&copy, &dir.path().join("recovered"));
        assert_eq!(difference(&found, &expected), None, "round {round}");
        covered.differing_without += usize::from(!bare.is_ok_and(|tree| tree == expected));
    }
    covered
}

/// The tree after the kernel has recovered a copy.
fn recovered(copy: &Path, dir: &Path) -> Tree {
    let mounted = Mounted::new(copy, dir, "rw");
    tree_of_directory(&mounted.dir)
}

/// Whether the ring's end lies between two transactions of a dump: a commit below the one before it.
fn wraps(log: &str) -> bool {
    let blocks = log
        .lines()
        .filter(|line| line.contains("commit block"))
        .filter_map(|line| line.rsplit_once("at block ")?.1.trim().trim_end_matches('.').parse::<u64>().ok());
    let blocks: Vec<u64> = blocks.collect();
    blocks.windows(2).any(|pair| pair[1] < pair[0])
}

/// Directories made and removed, and files put where their blocks were: what revocations are for.
fn churn(root: &Path, noise: &mut Noise) {
    let name = |n: u64| root.join(format!("dir{n}"));
    for _ in 0..20 {
        let dir = name(noise.below(12));
        match noise.below(4) {
            0 => drop(std::fs::remove_dir_all(&dir)),
            1 | 2 => {
                std::fs::create_dir_all(&dir).expect("directory is made");
                for i in 0..noise.below(60) {
                    std::fs::write(dir.join(format!("file {i} of some length")), noise.bytes(10)).expect("is written");
                }
            }
            _ => {
                let path = root.join(format!("file{}", noise.below(20)));
                let len = noise.below(40_000) as usize;
                let mut bytes = noise.bytes(len);
                // Blocks that look like the journal's own.
                bytes.chunks_mut(1024).step_by(3).for_each(|b| {
                    let len = b.len().min(4);
                    b[..len].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98][..len]);
                });
                std::fs::File::create(&path)
                    .and_then(|mut f| f.write_all(&bytes).and(f.sync_all()))
                    .expect("is written");
            }
        }
    }
}

#[test]
fn a_copy_of_a_mounted_file_system_is_read_as_the_kernel_recovers_it() {
    let covered = survives_power_cuts(&["-t", "ext4", "-J", "size=4"], "rw", 3);
    println!("{covered:?}");
    assert!(covered.replayed >= 10 && covered.differing_without >= 10, "{covered:?}");
    assert!(covered.revoking > 0 && covered.wrapped > 0, "{covered:?}");
}

#[test]
fn the_same_with_contents_in_the_journal() {
    let covered = survives_power_cuts(&["-t", "ext4", "-b", "1024", "-J", "size=2"], "rw,data=journal", 4);
    println!("{covered:?}");
    assert!(covered.replayed >= 10 && covered.differing_without >= 10, "{covered:?}");
    assert!(covered.escaping > 0 && covered.wrapped > 0, "{covered:?}");
}

#[test]
fn the_same_with_the_journal_of_ext3() {
    let covered = survives_power_cuts(&["-t", "ext3", "-b", "1024", "-J", "size=1"], "rw", 5);
    println!("{covered:?}");
    assert!(covered.replayed >= 10 && covered.differing_without >= 10, "{covered:?}");
    assert!(covered.revoking > 0 && covered.wrapped > 0, "{covered:?}");
}
