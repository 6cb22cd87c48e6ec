//! Trees of files as they are compared: every name with all that is seen of it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is compared of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it is.
    pub kind: &'static str,
    /// The low 12 bits of its mode.
    pub permissions: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Bytes of a file or link, 0 for a directory.
    pub size: u64,
    /// Contents of a file, target of a link.
    pub contents: Vec<u8>,
}

/// A tree by path.
pub type Tree = BTreeMap<PathBuf, Seen>;

/// The tree as the kernel shows it.
pub fn tree_of_directory(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut rest = vec![root.to_owned()];
    while let Some(dir) = rest.pop() {
        for entry in std::fs::read_dir(&dir).expect("directory is read") {
            let path = entry.expect("entry is read").path();
            let meta = path.symlink_metadata().expect("file is there");
            let seen = Seen {
                kind: kind_of_mode(meta.mode()),
                permissions: meta.mode() & 0o7777,
                owner: (meta.uid(), meta.gid()),
                modified: (meta.mtime(), meta.mtime_nsec()),
                size: if meta.is_dir() { 0 } else { meta.len() },
                contents: match () {
                    () if meta.is_file() => std::fs::read(&path).expect("file is read"),
                    () if meta.is_symlink() => {
                        std::fs::read_link(&path).expect("link is read").as_os_str().as_bytes().to_vec()
                    }
                    () => Vec::new(),
                },
            };
            if meta.is_dir() {
                rest.push(path.clone());
            }
            tree.insert(path.strip_prefix(root).expect("below the root").to_owned(), seen);
        }
    }
    tree
}

fn kind_of_mode(mode: u32) -> &'static str {
    match mode & 0o170_000 {
        0o100_000 => "file",
        0o040_000 => "directory",
        0o120_000 => "symlink",
        0o020_000 => "character device",
        0o060_000 => "block device",
        0o010_000 => "fifo",
        _ => "socket",
    }
}

/// The first difference of two trees, without their contents.
pub fn difference(left: &Tree, right: &Tree) -> Option<String> {
    let told = |seen: Option<&Seen>| match seen {
        None => "nothing".to_owned(),
        Some(s) => format!(
            "{} {:o} {:?} {:?} {} bytes, hash {:016x}",
            s.kind,
            s.permissions,
            s.owner,
            s.modified,
            s.size,
            hash(&s.contents)
        ),
    };
    let paths: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let first = paths.into_iter().find(|path| left.get(*path) != right.get(*path))?;
    Some(format!("{}: {} against {}", first.display(), told(left.get(first)), told(right.get(first))))
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
