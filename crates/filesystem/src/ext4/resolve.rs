//! From a path to an inode, link by link, never above the root.

use super::inode::ROOT;
use super::{Ext4, Inode, InodeKind};
use crate::FsError;

/// Most links on one way: the kernel's own limit.
const HOPS_MAX: usize = 40;

/// Longest path, links laid out, in components.
const COMPONENTS_MAX: usize = 4096;

impl Ext4 {
    /// The inode of a path from the root. Links on the way are followed, a last one only when `follow` says so.
    /// Errors: `NotFound`, `NotADirectory`, `LinkLoop`, `Damaged`, `Unsupported`, `Read`.
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<Inode, FsError> {
        let shown = || path.escape_ascii().to_string();
        let mut way = vec![self.inode(ROOT)?];
        // The components still to go, the next one last.
        let mut rest = components(path);
        let mut hops = 0;
        while let Some(name) = rest.pop() {
            let here = way.last().expect("the root is never left");
            if here.kind != InodeKind::Directory {
                return Err(FsError::NotADirectory { path: shown() });
            }
            if name == b".." {
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            let Some(number) = self.find(here, &name)? else { return Err(FsError::NotFound { path: shown() }) };
            let next = self.inode(number)?;
            if next.kind != InodeKind::Link || (rest.is_empty() && !follow) {
                way.push(next);
                continue;
            }
            hops += 1;
            let target = self.link_target(&next)?;
            rest.extend(components(&target));
            if hops > HOPS_MAX || rest.len() > COMPONENTS_MAX {
                return Err(FsError::LinkLoop { path: shown() });
            }
            if target[0] == b'/' {
                way.truncate(1);
            }
        }
        Ok(way.pop().expect("the root is never left"))
    }
}

/// The components of a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(<[u8]>::to_vec).collect()
}
