//! Where a copy goes: made under a temporary name beside its own, and given its name when it is whole and durable.
//!
//! The temporary name is a directory that only this user can enter, so nobody can put a link in the way of what is written
//! below it. It is removed with everything in it when the copy fails or is stopped; a killed process leaves it.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::failure::usage;

/// A name that will be taken.
pub struct Target {
    path: PathBuf,
    staging: tempfile::TempDir,
    force: bool,
}

impl Target {
    /// Takes `to` as `cp` does: a directory that is there takes the copy under its own `name`, anything else is the new
    /// name. Errors: a usage error when the name is taken (a file or link may be replaced with `force`, a directory
    /// never), and when the directory it lies in is not there.
    pub fn new(to: &Path, name: Option<&OsStr>, force: bool) -> anyhow::Result<Self> {
        let path = match (to.is_dir(), name) {
            (true, Some(name)) => to.join(name),
            _ => to.to_owned(),
        };
        let shown = path.display();
        match path.symlink_metadata() {
            Ok(there) if there.is_dir() => {
                return Err(usage(format!("{shown} is a directory that is there: give another name or remove it")));
            }
            Ok(_) if !force => return Err(usage(format!("{shown} is there: give another name, or --force"))),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot look at {shown}")),
        }
        if path.file_name().is_none() {
            return Err(usage(format!("{shown} is no name for a file")));
        }
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        if !parent.is_dir() {
            return Err(usage(format!("{} is not a directory: make it first", parent.display())));
        }
        let staging = tempfile::Builder::new()
            .prefix(".farshore-cp-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .with_context(|| format!("cannot write in {}", parent.display()))?;
        Ok(Self { path, staging, force })
    }

    /// What it will be called.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether something that is there will be replaced.
    pub fn replaces(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// Where to make the copy; nothing is there.
    pub fn partial(&self) -> PathBuf {
        self.staging.path().join("partial")
    }

    /// Makes the copy durable, gives it its name, and its `restricted` directories their permissions.
    pub fn publish(self, restricted: &[(PathBuf, Permissions)]) -> anyhow::Result<PathBuf> {
        let (partial, path) = (self.partial(), &self.path);
        let staging = std::fs::File::open(self.staging.path()).context("cannot open the partial copy")?;
        rustix::fs::syncfs(&staging).context("cannot make the copy durable")?;
        probe::failpoint_now!("cp-complete");
        rename(&partial, path, self.force)
            .with_context(|| format!("cannot give the copy its name {}", path.display()))?;
        probe::failpoint_now!("cp-renamed");
        for (below, permissions) in restricted {
            let directory = path.join(below);
            std::fs::set_permissions(&directory, permissions.clone())
                .with_context(|| format!("cannot set the permissions of {}", directory.display()))?;
        }
        // The names and permissions given since.
        rustix::fs::syncfs(&staging).with_context(|| format!("cannot make the name {} durable", path.display()))?;
        Ok(self.path)
    }
}

/// Gives a copy its name; without `force` never one that is taken, also not one taken a moment ago.
fn rename(from: &Path, to: &Path, force: bool) -> std::io::Result<()> {
    if force {
        return std::fs::rename(from, to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some network file systems have no such rename: there a name taken in the last moment is not noticed.
        Err(rustix::io::Errno::INVAL) if to.symlink_metadata().is_err() => std::fs::rename(from, to),
        other => Ok(other?),
    }
}
