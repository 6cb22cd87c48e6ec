//! The inputs, made the same way everywhere: an ext4 image with a real /usr tree and a database in it, the same image
//! at two later times, a disk of database pages, and bytes that do not compress.
//!
//! The tree is a drawn share of the files of /usr, picked by the hash of their paths; later, a tenth of the database's 4 KiB
//! blocks is changed in place (half of them edited in 64 bytes, half whole new pages), and later still there are new files, a
//! fifth of the image, out of the share that was not picked. No root is needed: `mkfs.ext4 -d` and `debugfs` write the images.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use benches::{Numbers, random, table_pages};

/// Bytes of a block of the file system, and of a page of the database.
pub const PAGE: usize = 4096;

/// Larger files of /usr are left out: one of them would be the image.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Everything that sections work on.
pub struct Inputs {
    /// The image with the tree and the database.
    pub image: PathBuf,
    /// The same with scattered pages of the database changed.
    pub paged: PathBuf,
    /// That with new files.
    pub later: PathBuf,
    /// Bytes of 4 KiB blocks in which each of the two differs from the one before.
    pub changed: [u64; 2],
    /// Bytes of an image.
    pub bytes: u64,
    /// Bytes of 4 KiB blocks of the first image that are not zeros.
    pub data: u64,
    /// Bytes that do not compress, half as many.
    pub noise: PathBuf,
    /// A disk of database pages, a quarter as large.
    pub database: PathBuf,
}

impl Inputs {
    /// Makes them in a directory of their own.
    pub fn make(dir: &Path, mib: u64) -> Result<Self> {
        let bytes = mib << 20;
        let at = |name: &str| dir.join(name);
        let [image, paged, later, noise, database] = ["image", "paged", "later", "noise", "database"].map(at);
        std::fs::create_dir_all(at("tree/db"))?;
        let all = tree_files()?;
        let total: u64 = all.iter().map(|file| file.bytes).sum();
        // What the image is to hold, and what is to come, by thousandths of /usr.
        let share = |wanted: u64| (wanted * 1000).div_ceil(total).min(1000);
        let (first, more) = (share(bytes * 45 / 100), share(bytes * 65 / 100));
        for file in all.iter().filter(|file| file.draw < first) {
            let copy = at("tree").join(file.path.strip_prefix("/").unwrap_or(&file.path));
            std::fs::create_dir_all(copy.parent().context("a file has a directory")?)?;
            std::fs::copy(&file.path, &copy).with_context(|| format!("cannot copy {}", file.path.display()))?;
        }
        std::fs::write(at("tree/db/orders"), table_pages((bytes / 5) as usize, 1))?;
        File::create(&image)?.set_len(bytes)?;
        run(dir, "mkfs.ext4", &["-q", "-F", "-b", "4096", "-d", "tree", "image"])?;
        std::fs::remove_dir_all(at("tree"))?;
        run(dir, "cp", &["--sparse=always", "image", "paged"])?;
        change_database(dir, &paged)?;
        run(dir, "cp", &["--sparse=always", "paged", "later"])?;
        add_files(dir, all.iter().filter(|file| (first..more).contains(&file.draw)))?;
        std::fs::write(&noise, random((bytes / 2) as usize, 2))?;
        std::fs::write(&database, table_pages((bytes / 4) as usize, 5))?;
        let bytes_between = |one, other| different(one, other).map(|runs| runs.iter().map(|(_, bytes)| bytes).sum());
        let changed = [bytes_between(&image, &paged)?, bytes_between(&paged, &later)?];
        let data = data_bytes(&image)?;
        Ok(Self { image, paged, later, changed, bytes, data, noise, database })
    }
}

/// Changes a tenth of the database's blocks where they lie.
fn change_database(dir: &Path, paged: &Path) -> Result<()> {
    let paged = File::options().write(true).open(paged)?;
    let (mut numbers, fresh) = (Numbers(3), table_pages(16 << 20, 4));
    let mut next = || numbers.next().expect("endless");
    for block in database_blocks(dir)? {
        if next() % 10 == 0 {
            let (at, whole) = (next() as usize % (fresh.len() - PAGE), next() % 2 == 0);
            let (within, bytes) = if whole { (0, PAGE) } else { (next() % 63 * 64, 64) };
            paged.write_all_at(&fresh[at..at + bytes], block * PAGE as u64 + within)?;
        }
    }
    Ok(())
}

/// The blocks of the image that hold the database, out of debugfs's table of extents: level and depth, number and count,
/// first and last logical block, first and last physical block, and more.
fn database_blocks(dir: &Path) -> Result<Vec<u64>> {
    let table = run(dir, "debugfs", &["-R", "dump_extents -l /db/orders", "image"])?;
    let mut blocks = Vec::new();
    for line in table.lines().skip(1) {
        let spaced = line.replace(['/', '-'], " ");
        let numbers: Vec<u64> = spaced.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let [_, _, _, _, _, _, first, last, ..] = numbers[..] else { bail!("debugfs said: {line}") };
        blocks.extend(first..=last);
    }
    ensure!(!blocks.is_empty(), "debugfs names the database's blocks: {table}");
    Ok(blocks)
}

/// Writes new files into the later image.
fn add_files<'a>(dir: &Path, new: impl Iterator<Item = &'a TreeFile>) -> Result<()> {
    let lines = new.enumerate().map(|(n, file)| format!("write {} new-{n}\n", file.path.display()));
    std::fs::write(dir.join("commands"), lines.collect::<String>())?;
    run(dir, "debugfs", &["-w", "-f", "commands", "later"])?;
    // A file system that was broken by this would be no input.
    run(dir, "e2fsck", &["-f", "-n", "later"]).map(|_| ())
}

/// Bytes of 4 KiB blocks that are not zeros.
fn data_bytes(image: &Path) -> Result<u64> {
    let (file, mut page, mut bytes) = (File::open(image)?, [0; PAGE], 0);
    for at in (0..file.metadata()?.len()).step_by(PAGE) {
        file.read_exact_at(&mut page, at)?;
        bytes += if page == [0; PAGE] { 0 } else { PAGE as u64 };
    }
    Ok(bytes)
}

/// Where two images differ: runs of 4 KiB blocks, by offset and length, none longer than a MiB.
pub fn different(one: &Path, other: &Path) -> Result<Vec<(u64, u64)>> {
    const PART: usize = 1 << 20;
    let (one, other) = (File::open(one)?, File::open(other)?);
    let (len, mut runs) = (one.metadata()?.len(), Vec::<(u64, u64)>::new());
    let (mut left, mut right) = (vec![0; PART], vec![0; PART]);
    for part in (0..len).step_by(PART) {
        one.read_exact_at(&mut left, part)?;
        other.read_exact_at(&mut right, part)?;
        for (n, _) in left.chunks(PAGE).zip(right.chunks(PAGE)).enumerate().filter(|(_, (l, r))| l != r) {
            let at = part + (n * PAGE) as u64;
            match runs.last_mut() {
                Some((begin, bytes)) if *begin + *bytes == at && at != part => *bytes += PAGE as u64,
                _ => runs.push((at, PAGE as u64)),
            }
        }
    }
    Ok(runs)
}

/// A file of /usr.
struct TreeFile {
    path: PathBuf,
    bytes: u64,
    /// 0 to 999, by its path.
    draw: u64,
}

/// The regular files of /usr, in order of path.
fn tree_files() -> Result<Vec<TreeFile>> {
    let (mut files, mut folders) = (Vec::new(), vec![PathBuf::from("/usr")]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let (path, meta) = (entry.path(), entry.metadata()?);
            let plain = path.to_str().is_some_and(|text| !text.contains([' ', '"', '\n']));
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_file() && plain && meta.len() <= FILE_BYTES_MAX && File::open(&path).is_ok() {
                let hash = blake3::hash(path.as_os_str().as_encoded_bytes());
                let draw = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes")) % 1000;
                files.push(TreeFile { path, bytes: meta.len(), draw });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    ensure!(!files.is_empty(), "there are files in /usr");
    Ok(files)
}

/// Runs a program of e2fsprogs or coreutils; its output is part of the error.
fn run(dir: &Path, program: &str, args: &[&str]) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).env("PATH", path).stdin(Stdio::null());
    let out = command.output().with_context(|| format!("cannot run {program}: install it"))?;
    if !out.status.success() {
        bail!("{program} {args:?} failed: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
