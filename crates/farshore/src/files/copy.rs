//! A file, a link or a tree, out of a file system into a directory of this machine.
//!
//! Kept are contents with their holes, permissions without set-user-id and set-group-id, times of change, links, and which
//! names are one file. Owners are not: the copy belongs to who made it. Devices, pipes and sockets are skipped and told.
//!
//! The tree was written by somebody else. Names are single components (the reader refuses others, and so does this file);
//! everything is created new, so that no name can lead through a link that was just made; a directory that is met twice
//! is a loop and an error; and a tree that holds more bytes than its file system has is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow, bail};
use filesystem::{InodeKind, Time};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::tree::{Entry, Node, Tree};
use crate::output::Progress;

/// Grain in which zeros are left out.
const GRAIN_BYTES: usize = 4096;

/// Permissions that are kept.
const KEPT: u32 = 0o1777;

/// Skipped files that are named; the others are counted.
const SKIPPED_NAMED_MAX: usize = 10_000;

/// What was copied.
#[derive(Debug, Default)]
pub struct CopyReport {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes that were written: holes are not.
    pub bytes_written: u64,
    /// Files that were not copied, for what they are.
    pub skipped_count: u64,
    /// Their paths below the source, and what they are.
    pub skipped: Vec<(PathBuf, &'static str)>,
    /// Directories that their own user may not change, below the source, those inside others first. They get their
    /// permissions when the copy has its name: until then it must be possible to fill, to move and to remove them.
    pub restricted: Vec<(PathBuf, Permissions)>,
}

/// A directory that is being copied.
struct Open {
    node: Node,
    path: PathBuf,
    entries: std::vec::IntoIter<Entry>,
}

/// A copy in progress.
pub struct Copier<'a> {
    fs: &'a Tree,
    root: &'a Path,
    stopped: Arc<AtomicBool>,
    progress: Progress,
    bytes_expected: u64,
    report: CopyReport,
    /// Where files with several names already are.
    names: BTreeMap<u64, PathBuf>,
    /// Directories that were met.
    met: BTreeSet<u64>,
}

impl<'a> Copier<'a> {
    /// Copies to `root`, where nothing is yet, until `stopped` is set.
    pub fn new(fs: &'a Tree, root: &'a Path, stopped: Arc<AtomicBool>) -> Self {
        let (report, names, met) = (CopyReport::default(), BTreeMap::new(), BTreeSet::new());
        let (progress, bytes_expected) = (Progress::new("copying"), fs.capacity().unwrap_or_default());
        Self { fs, root, stopped, progress, bytes_expected, report, names, met }
    }

    /// Copies one node and, when it is a directory, everything below.
    pub fn copy(mut self, node: Node) -> anyhow::Result<CopyReport> {
        if node.kind == InodeKind::File {
            self.bytes_expected = node.size;
        }
        let mut open = Vec::new();
        open.extend(self.one(node, self.root.to_owned())?);
        while let Some(directory) = open.last_mut() {
            let Some(entry) = directory.entries.next() else {
                let restricted = finish_directory(directory)?;
                self.restrict(&directory.path.clone(), restricted);
                open.pop();
                continue;
            };
            let path = directory.path.join(component(&entry.name)?);
            let below = self.below(&path);
            let node = self.fs.node(&entry).with_context(|| format!("cannot read {below}"))?;
            open.extend(self.one(node, path).with_context(|| format!("cannot copy {below}"))?);
        }
        Ok(self.report)
    }

    /// A path as it is below the source.
    fn below(&self, path: &Path) -> String {
        path.strip_prefix(self.root).unwrap_or(path).as_os_str().as_bytes().escape_ascii().to_string()
    }

    /// Copies one node; a directory is made and comes back to be filled.
    fn one(&mut self, node: Node, path: PathBuf) -> anyhow::Result<Option<Open>> {
        self.go_on()?;
        match node.kind {
            InodeKind::Directory => return self.directory(node, path).map(Some),
            InodeKind::File | InodeKind::Link if self.is_there(&node, &path)? => {}
            InodeKind::File => self.file(&node, &path)?,
            InodeKind::Link => self.link(&node, &path)?,
            kind => self.skip(&path, kind),
        }
        Ok(None)
    }

    fn go_on(&self) -> anyhow::Result<()> {
        // Relaxed: set once by whoever waits for the copy, and no other memory is published by it.
        if self.stopped.load(Ordering::Relaxed) {
            bail!("stopped; what was copied is removed");
        }
        Ok(())
    }

    fn skip(&mut self, path: &Path, kind: InodeKind) {
        self.report.skipped_count += 1;
        if self.report.skipped.len() < SKIPPED_NAMED_MAX {
            let below = path.strip_prefix(self.root).unwrap_or(path).to_owned();
            self.report.skipped.push((below, kind.name()));
        }
    }

    fn restrict(&mut self, path: &Path, permissions: Option<Permissions>) {
        let below = path.strip_prefix(self.root).unwrap_or(path).to_owned();
        self.report.restricted.extend(permissions.map(|permissions| (below, permissions)));
    }

    fn directory(&mut self, node: Node, path: PathBuf) -> anyhow::Result<Open> {
        if !self.met.insert(node.id) {
            bail!("the file system is damaged: directory {} is below itself or in two places", node.id);
        }
        let entries = self.fs.list(&node)?.into_iter();
        DirBuilder::new().mode(0o700).create(&path)?;
        self.report.directories += 1;
        Ok(Open { node, path, entries })
    }

    /// Whether the file was copied under another of its names; then this one is made a name of it too.
    fn is_there(&mut self, node: &Node, path: &Path) -> anyhow::Result<bool> {
        if node.links < 2 {
            return Ok(false);
        }
        match self.names.get(&node.id) {
            Some(first) => std::fs::hard_link(first, path)?,
            None => {
                self.names.insert(node.id, path.to_owned());
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn file(&mut self, node: &Node, path: &Path) -> anyhow::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let fs = self.fs;
        fs.read_file(node, |offset, bytes| self.write(&file, offset, bytes))?;
        file.set_len(node.size).with_context(|| format!("a file of {} bytes", node.size))?;
        file.set_permissions(permissions(node))?;
        set_times(&file, node.modified)?;
        self.report.files += 1;
        Ok(())
    }

    /// Writes what is not zeros.
    fn write(&mut self, file: &File, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.go_on()?;
        let grains = bytes.chunks(GRAIN_BYTES).map(|grain| grain.iter().any(|byte| *byte != 0));
        let grains: Vec<bool> = grains.collect();
        let mut at = 0;
        for alike in grains.chunk_by(|left, right| left == right) {
            let end = (at + alike.len() * GRAIN_BYTES).min(bytes.len());
            if alike[0] {
                file.write_all_at(&bytes[at..end], offset + at as u64)?;
                self.report.bytes_written += (end - at) as u64;
            }
            at = end;
        }
        if self.fs.capacity().is_some_and(|capacity| self.report.bytes_written > capacity) {
            return Err(anyhow!("the file system is damaged: its files hold more bytes than it has"));
        }
        self.progress.set(self.report.bytes_written, self.bytes_expected);
        Ok(())
    }

    fn link(&mut self, node: &Node, path: &Path) -> anyhow::Result<()> {
        let target = std::ffi::OsString::from_vec(self.fs.link_target(node)?);
        symlink(target, path)?;
        let time = Timespec { tv_sec: node.modified.seconds, tv_nsec: node.modified.nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        self.report.links += 1;
        Ok(())
    }
}

/// A name as one component of a path, and nothing else.
fn component(name: &[u8]) -> anyhow::Result<&OsStr> {
    let name = OsStr::from_bytes(name);
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(one)), None) if one == name => Ok(name),
        _ => Err(anyhow!("the file system is damaged: {:?} is no name of a file", name)),
    }
}

fn permissions(node: &Node) -> Permissions {
    Permissions::from_mode(u32::from(node.permissions) & KEPT)
}

/// A directory gets its own time and permissions when nothing is made in it any more. Permissions that would bar its own
/// user come back, for later.
fn finish_directory(directory: &Open) -> anyhow::Result<Option<Permissions>> {
    let file = File::open(&directory.path)?;
    set_times(&file, directory.node.modified)?;
    let permissions = permissions(&directory.node);
    if permissions.mode() & 0o700 != 0o700 {
        return Ok(Some(permissions));
    }
    file.set_permissions(permissions)?;
    Ok(None)
}

fn set_times(file: &File, time: Time) -> anyhow::Result<()> {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?;
    Ok(())
}
