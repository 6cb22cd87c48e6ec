//! Real file systems with wrong bytes in them: no panic, and an end within seconds. Mutations of metadata are mostly
//! found by its checksums, so most images have none, and in the others the superblock's is made to agree again.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;
use crate::fields::checksum;

/// Mutations of each image.
const MUTATIONS: u64 = 3000;

/// Longest time for one.
const SECONDS_MAX: Duration = Duration::from_secs(10);

fn run(program: &str, args: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let out = Command::new(program).args(args).env("PATH", path).output();
    let out = out.unwrap_or_else(|e| panic!("cannot run {program} ({e}): `cargo xtask test` installs it"));
    assert!(out.status.success(), "{program} {args:?}: {out:?}");
}

/// A file system of 4 MiB with a small tree, at an offset in a file that may be larger.
fn image(options: &[&str], table: Option<&str>) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (tree, path) = (dir.path().join("tree"), dir.path().join("image"));
    let file = |name: &str, bytes: &[u8]| std::fs::write(tree.join(name), bytes).expect("file is written");
    std::fs::create_dir_all(tree.join("a/b/c")).expect("directories are made");
    file("a/b/c/deep", b"deep");
    file("large", &(0..200_000u32).map(|i| i as u8).collect::<Vec<_>>());
    (0..120).for_each(|i| file(&format!("a/file of some length {i}"), &[i]));
    std::os::unix::fs::symlink("a/b/../b/c/deep", tree.join("way")).expect("link is made");
    std::os::unix::fs::symlink("x".repeat(100), tree.join("long")).expect("link is made");
    let text = |path: &Path| path.to_str().expect("test paths are text").to_owned();
    let (tree, path_text) = (text(&tree), text(&path));
    let offset = if table.is_some() { "offset=1048576" } else { "offset=0" };
    run("mke2fs", &[&["-q", "-F", "-E", offset, "-d", &tree], options, &[&path_text, "3000k"]].concat());
    if let Some(script) = table {
        let file = std::fs::File::options().write(true).open(&path).expect("image opens");
        file.set_len((IMAGE_BLOCKS * BLOCK_BYTES) as u64).expect("image is sized");
        let script_file = dir.path().join("script");
        std::fs::write(&script_file, script).expect("script is written");
        run("sh", &["-c", &format!("sfdisk -q {path_text} < {}", text(&script_file))]);
    }
    let mut bytes = std::fs::read(&path).expect("image is read");
    bytes.resize(IMAGE_BLOCKS * BLOCK_BYTES, 0);
    bytes
}

/// A journal with two transactions that debugfs writes: a block of the root directory, and its revocation.
fn with_journal(options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (path, script, block) = (dir.path().join("image"), dir.path().join("script"), dir.path().join("block"));
    std::fs::write(&path, image(options, None)).expect("image is written");
    std::fs::write(&block, [0x5a; 4096]).expect("block is written");
    let block = block.display();
    let commands = format!("jo\njw -b 2900 {block}\njc\njo\njw -r 2900\njc\njo\njw -b 2901,2902 {block}\njc\n");
    std::fs::write(&script, commands).expect("script is written");
    let (path_text, script) = (path.display().to_string(), script.display().to_string());
    run("debugfs", &["-w", "-f", &script, &path_text]);
    std::fs::read(&path).expect("image is read")
}

struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound as u64) as usize
    }
}

/// Changes a few bytes where there are any; numbers that are at their ends are the likeliest to be wrong.
fn mutate(image: &[u8], places: &[usize], noise: &mut Noise) -> Vec<u8> {
    let mut bytes = image.to_vec();
    for _ in 0..1 + noise.below(6) {
        let place = places[noise.below(places.len())];
        bytes[place] = [0, 1, 0x7f, 0x80, 0xff, noise.below(256) as u8][noise.below(6)];
    }
    for superblock in [1024, 1024 + (1 << 20)] {
        let sum = checksum(!0, &bytes[superblock..superblock + 0x3fc]);
        if noise.below(8) > 0 && bytes[superblock + 0x38..superblock + 0x3a] == [0x53, 0xef] {
            bytes[superblock + 0x3fc..superblock + 0x400].copy_from_slice(&sum.to_le_bytes());
        }
    }
    bytes
}

/// Where the image is not zero and not a file's contents, which are most of it and say nothing.
fn places(image: &[u8]) -> Vec<usize> {
    let counts_up = |at: usize| at > 0 && image[at] == image[at - 1].wrapping_add(1);
    (0..image.len()).filter(|&at| image[at] != 0 && !(counts_up(at) && counts_up(at.saturating_sub(1)))).collect()
}

fn check(name: &str, image: Vec<u8>, seed: u64) {
    let (files, error) = read_everything(Arc::new(image.clone()));
    assert!(files > 120, "{name}: {files} files, {error:?}");
    assert_eq!(decode(&encode(&image)), image, "{name}: an encoded image comes back");
    let (places, mut noise) = (places(&image), Noise(seed));
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for _ in 0..MUTATIONS {
        let mutant = mutate(&image, &places, &mut noise);
        let since = Instant::now();
        refused += usize::from(read_everything(Arc::new(mutant)).1.is_some());
        slowest = slowest.max(since.elapsed());
    }
    println!("{name}: {refused} of {MUTATIONS} refused, the slowest took {slowest:?}");
    assert!(slowest < SECONDS_MAX, "{name}: {slowest:?}");
    assert!(refused > MUTATIONS as usize / 20, "{name}: {refused} refused: the mutations reach what is read");
}

const PLAIN: [&str; 4] = ["-b", "1024", "-O", "^metadata_csum"];

#[test]
fn a_mutated_ext4_never_breaks_its_reader() {
    check("ext4", image(&[&["-t", "ext4"], &PLAIN[..]].concat(), None), 1);
    check("ext4 with checksums", image(&["-t", "ext4", "-b", "1024"], None), 2);
}

#[test]
fn a_mutated_block_map_never_breaks_its_reader() {
    check("ext2", image(&["-t", "ext2", "-b", "1024"], None), 3);
}

#[test]
fn a_mutated_journal_never_breaks_its_reader() {
    check("journal", with_journal(&[&["-t", "ext4"], &PLAIN[..]].concat()), 4);
    check("journal with checksums", with_journal(&["-t", "ext4", "-b", "1024"]), 5);
}

#[test]
fn a_mutated_table_never_breaks_its_reader() {
    let no_journal = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^has_journal"];
    check("gpt", image(&no_journal, Some("label: gpt\nstart=2048,size=6000,type=L\n")), 6);
    let script = "label: dos\nunit: sectors\nstart=2048,size=6000,type=83\nstart=8080,size=110,type=5\nstart=8082,size=20,type=83\nstart=8110,size=20,type=83\n";
    check("mbr", image(&no_journal, Some(script)), 7);
}

/// What debugfs wrote into the journal is what is read: a copy that was not revoked, and one that was.
#[test]
fn copies_in_the_journal_are_read_unless_revoked() {
    for options in [vec!["-t", "ext4", "-b", "1024"], [&["-t", "ext3"], &PLAIN[..]].concat()] {
        let fs = Ext4::open(Arc::new(with_journal(&options))).unwrap_or_else(|e| panic!("{options:?}: {e}"));
        assert_eq!(fs.replayed_blocks(), 2, "{options:?}: 2901 and 2902, not the revoked 2900");
    }
}
