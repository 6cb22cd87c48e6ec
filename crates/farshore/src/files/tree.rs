//! A file system of a point, whoever reads it: [`filesystem::Ext4`] here, or libguestfs in a virtual machine of its own.

use std::sync::Arc;

use anyhow::bail;
use filesystem::{Ext4, FsKind, Inode, InodeKind, NodeNumber, Time, Volume};

use super::guestfs::Guestfs;

/// A file system that was opened.
pub enum Tree {
    /// ext2, ext3 or ext4.
    Ext4(Box<Ext4>),
    /// What libguestfs knows.
    Guestfs(Box<Guestfs>),
}

/// Where a node is found again.
#[derive(Debug, Clone)]
enum At {
    Inode(Box<Inode>),
    Path(Vec<u8>),
}

/// A file, a directory or whatever else has a name.
#[derive(Debug, Clone)]
pub struct Node {
    /// The same for every name of one file.
    pub id: u64,
    /// What it is.
    pub kind: InodeKind,
    /// Permissions with set-user-id, set-group-id and sticky: the low 12 bits.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Names it has.
    pub links: u64,
    /// When its contents were last changed.
    pub modified: Time,
    at: At,
}

/// A name in a directory; [`Tree::node`] says what it names.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name: no slash, no NUL, neither `.` nor `..`.
    pub name: Vec<u8>,
    child: Child,
}

#[derive(Debug, Clone)]
enum Child {
    Inode(NodeNumber),
    Path(Vec<u8>),
}

impl Tree {
    /// Opens a file system of this kind on a volume; `partition` is its number there, none where the volume is the file system.
    /// `whole` is the disk. Errors: a sentence that says what to install or do for one that nobody here can read.
    pub fn open(
        kind: FsKind,
        window: Arc<dyn Volume>,
        whole: Arc<dyn Volume>,
        partition: Option<u32>,
    ) -> anyhow::Result<Self> {
        match kind {
            FsKind::Ext => Ok(Tree::Ext4(Box::new(Ext4::open(window)?))),
            _ => Ok(Tree::Guestfs(Box::new(Guestfs::open(whole, partition)?))),
        }
    }

    /// Bytes that its files can hold together; none where files may share bytes or be packed.
    pub fn capacity(&self) -> Option<u64> {
        match self {
            Tree::Ext4(fs) => Some(fs.size()),
            Tree::Guestfs(_) => None,
        }
    }

    /// What a path from the root names; `follow` when it is a link.
    pub fn resolve(&self, path: &[u8], follow: bool) -> anyhow::Result<Node> {
        match self {
            Tree::Ext4(fs) => Ok(Node::of_inode(fs.resolve(path, follow)?)),
            Tree::Guestfs(fs) => node_of_path(fs, path.to_owned(), follow),
        }
    }

    /// The names in a directory.
    pub fn list(&self, directory: &Node) -> anyhow::Result<Vec<Entry>> {
        match (self, &directory.at) {
            (Tree::Ext4(fs), At::Inode(inode)) => {
                let names = fs.list(inode)?.into_iter();
                Ok(names.map(|entry| Entry { name: entry.name, child: Child::Inode(entry.inode) }).collect())
            }
            (Tree::Guestfs(fs), At::Path(path)) => {
                let child = |name: &Vec<u8>| Child::Path([&path[..], b"/", name].concat());
                let names = fs.list(path)?.into_iter();
                Ok(names.map(|name| Entry { child: child(&name), name }).collect())
            }
            _ => unreachable!("nodes stay with the tree that gave them"),
        }
    }

    /// What an entry names.
    pub fn node(&self, entry: &Entry) -> anyhow::Result<Node> {
        match (self, &entry.child) {
            (Tree::Ext4(fs), Child::Inode(number)) => Ok(Node::of_inode(fs.inode(*number)?)),
            (Tree::Guestfs(fs), Child::Path(path)) => node_of_path(fs, path.clone(), false),
            _ => unreachable!("entries stay with the tree that gave them"),
        }
    }

    /// Where a symbolic link points.
    pub fn link_target(&self, link: &Node) -> anyhow::Result<Vec<u8>> {
        match (self, &link.at) {
            (Tree::Ext4(fs), At::Inode(inode)) => Ok(fs.link_target(inode)?),
            (Tree::Guestfs(fs), At::Path(path)) => fs.link_target(path),
            _ => unreachable!("nodes stay with the tree that gave them"),
        }
    }

    /// Gives the bytes of a file to `sink` with their offsets, in order, in pieces of at most 4 MiB; holes may be left out.
    pub fn read_file(&self, file: &Node, mut sink: impl FnMut(u64, &[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        match (self, &file.at) {
            (Tree::Ext4(fs), At::Inode(inode)) => fs.read_file(inode, sink),
            (Tree::Guestfs(fs), At::Path(path)) => fs.read_file(path, file.size, &mut sink),
            _ => unreachable!("nodes stay with the tree that gave them"),
        }
    }
}

fn node_of_path(fs: &Guestfs, path: Vec<u8>, follow: bool) -> anyhow::Result<Node> {
    // A slash at the end asks to follow, which `follow` says; of a path alone it would ask for a directory.
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let path = [if path.starts_with(b"/") && end > 0 { &b""[..] } else { b"/" }, &path[..end]].concat();
    let stat = fs.stat(&path, follow)?;
    let mode = stat.mode;
    let Some(kind) = InodeKind::of_mode(mode) else {
        bail!("{}: mode {mode:o} is no kind of file", path.escape_ascii())
    };
    Ok(Node {
        id: stat.inode,
        kind,
        permissions: mode & 0o7777,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        links: stat.links,
        modified: stat.modified,
        at: At::Path(path),
    })
}

impl Node {
    fn of_inode(inode: Inode) -> Self {
        Self {
            id: inode.number.0.into(),
            kind: inode.kind,
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            links: inode.links.into(),
            modified: inode.modified,
            at: At::Inode(Box::new(inode)),
        }
    }
}
