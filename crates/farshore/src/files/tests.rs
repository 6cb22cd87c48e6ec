//! File systems that were made to harm who copies out of them, and those that cannot be read. Real ones, with a few bytes
//! or names changed: what they lead to must not be touched, and nothing may be left.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use filesystem::Ext4;

use super::{Copier, CopyReport, Place, Target, Tree};
use crate::failure::one_line;

fn run(program: &str, args: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let out = Command::new(program).args(args).env("PATH", path).output();
    let out = out.unwrap_or_else(|e| panic!("cannot run {program} ({e}): `cargo xtask test` installs it"));
    assert!(out.status.success(), "{program} {args:?}: {out:?}");
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// A tree to be made a file system of: a link out, a directory, a file.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("bb/inner")).expect("directories are made");
        std::fs::create_dir(dir.path().join("outside")).expect("directory is made");
        symlink(dir.path().join("outside"), tree.join("aa")).expect("link is made");
        std::fs::write(tree.join("bb/file"), b"harmful").expect("file is written");
        std::fs::write(tree.join("zeros"), vec![0; 100_000]).expect("file is written");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The image, without checksums, so that what is changed in it is believed.
    fn image(&self, commands: &[&str]) -> Vec<u8> {
        let (tree, image) = (self.path("tree"), self.path("image"));
        let text = |path: &Path| path.to_str().expect("test paths are text").to_owned();
        let (tree, image_text) = (text(&tree), text(&image));
        let _not_there_yet = std::fs::remove_file(&image);
        run("mke2fs", &["-q", "-F", "-t", "ext4", "-O", "^metadata_csum", "-d", &tree, &image_text, "4M"]);
        for command in commands {
            run("debugfs", &["-w", "-R", command, &image_text]);
        }
        std::fs::read(&image).expect("image is read")
    }

    fn copy(&self, image: Vec<u8>) -> anyhow::Result<CopyReport> {
        let fs = Tree::Ext4(Box::new(Ext4::open(Arc::new(image))?));
        let target = Target::new(&self.path("copy"), None, false)?;
        let partial = target.partial();
        let report = Copier::new(&fs, &partial, Arc::new(AtomicBool::new(false))).copy(fs.resolve(b"/", true)?)?;
        target.publish(&report.restricted)?;
        Ok(report)
    }

    /// The copy fails for the reason given, and leaves nothing.
    fn refuses(&self, image: Vec<u8>, why: &str) {
        let told = one_line(&self.copy(image).expect_err(why));
        assert!(told.contains(why), "{told}");
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path()).expect("is read").flatten().collect();
        names.retain(|entry| !["tree", "image", "outside"].iter().any(|known| entry.file_name() == *known));
        assert!(names.is_empty(), "{names:?}");
        assert_eq!(std::fs::read_dir(self.path("outside")).expect("is read").count(), 0, "nothing got out");
    }
}

/// Changes the one place where `from` is the name of an entry with that many bytes.
fn rename_entry(mut image: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let entry = |kind: u8| [&[from.len() as u8, kind][..], from].concat();
    let place = (1..=7).find_map(|kind| image.windows(from.len() + 2).position(|window| window == entry(kind)));
    let place = place.expect("the name is in the image") + 2;
    image[place..place + to.len()].copy_from_slice(to);
    image
}

#[test]
fn a_sound_tree_is_copied_and_its_link_out_is_a_link() {
    let bench = Bench::new();
    let report = bench.copy(bench.image(&[])).expect("the copy works");
    assert_eq!((report.files, report.links), (2, 1));
    assert_eq!(report.bytes_written, 7, "zeros are left out");
    assert_eq!(std::fs::read(bench.path("copy/zeros")).expect("is read"), vec![0; 100_000]);
    assert!(bench.path("copy/aa").symlink_metadata().expect("is there").is_symlink());
    assert_eq!(std::fs::read(bench.path("copy/bb/file")).expect("is read"), b"harmful");
    let left = std::fs::read_dir(bench.dir.path()).expect("is read").count();
    assert_eq!(left, 4, "the temporary directory is gone");
}

#[test]
fn a_directory_with_the_name_of_a_link_does_not_lead_through_it() {
    let bench = Bench::new();
    bench.refuses(rename_entry(bench.image(&[]), b"bb", b"aa"), "exists");
}

#[test]
fn a_name_with_a_slash_is_damage() {
    let bench = Bench::new();
    bench.refuses(rename_entry(bench.image(&[]), b"bb", b"/b"), "a name that no file can have");
}

#[test]
fn a_directory_below_itself_ends_the_copy() {
    let bench = Bench::new();
    bench.refuses(bench.image(&["ln bb bb/inner/again"]), "below itself");
}

#[test]
fn a_file_that_holds_more_than_its_file_system_ends_the_copy() {
    let bench = Bench::new();
    // Inodes that all have the same blocks: each alone is no more than there is.
    let noise: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
    std::fs::write(bench.path("tree/noise"), noise).expect("file is written");
    let copies: Vec<String> = (0..5).map(|i| format!("copy_inode noise copy{i}")).collect();
    (0..5).for_each(|i| std::fs::write(bench.path(&format!("tree/copy{i}")), b"").expect("file is written"));
    let commands: Vec<&str> = copies.iter().map(String::as_str).collect();
    bench.refuses(bench.image(&commands), "more bytes than it has");
}

#[test]
fn what_is_taken_is_not_replaced_unless_it_may_be() {
    let bench = Bench::new();
    let taken = bench.path("taken");
    std::fs::write(&taken, b"mine").expect("file is written");
    assert!(Target::new(&taken, None, false).is_err());
    let (late, forced) = (bench.path("late"), Target::new(&taken, None, true).expect("may be replaced"));
    let target = Target::new(&late, None, false).expect("is free");
    for target in [&target, &forced] {
        std::fs::write(target.partial(), b"copy").expect("file is written");
    }
    std::fs::write(&late, b"mine").expect("somebody takes the name meanwhile");
    assert!(target.publish(&[]).is_err());
    assert_eq!(std::fs::read(&late).expect("is read"), b"mine");
    assert_eq!(forced.publish(&[]).expect("replaces"), taken);
    assert_eq!(std::fs::read(&taken).expect("is read"), b"copy");
    let target = Target::new(&bench.path("x"), None, false).expect("is free");
    let partial = target.partial();
    let staging = partial.parent().expect("it lies in a directory").metadata().expect("is there");
    assert_eq!(staging.permissions().mode() & 0o777, 0o700, "nobody else can enter");
}

#[test]
fn what_cannot_be_read_is_named_with_the_way_out() {
    let mut btrfs = vec![0; 1 << 20];
    btrfs[65_536 + 64..][..8].copy_from_slice(b"_BHRfS_M");
    let place = Place { disk: "root".parse().expect("a name"), partition: None };
    for (volume, why) in [(btrfs, "holds btrfs"), (vec![0; 1 << 20], "no file system that is known")] {
        let told = one_line(&place.open(Arc::new(volume)).err().expect("is refused"));
        assert!(told.contains(why) && told.contains("farshore serve"), "{told}");
    }
}
