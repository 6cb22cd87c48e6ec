//! The agent's own files, behind two small traits, so that tests can cut the power and simulation can swap the disk.
//!
//! What must hold for the real one: [`StateDir::replace`] is durable when it returns (file synced, renamed, directory
//! synced), and one agent at a time holds the directory, by a lock on the file `lock` in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

/// One file. Reads and writes are whole or fail.
#[async_trait]
pub trait StateFile: Send + Sync {
    /// Reads exactly `len` bytes.
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;
    /// Writes all of `data`.
    async fn write_at(&self, offset: u64, data: Bytes) -> io::Result<()>;
    /// Everything written before is durable when it returns.
    async fn sync(&self) -> io::Result<()>;
    /// Cuts or extends the file.
    async fn set_len(&self, len: u64) -> io::Result<()>;
}

/// The directory the files lie in.
#[async_trait]
pub trait StateDir: Send + Sync {
    /// All of a file, if it is there; an error if it is longer than `max` bytes.
    async fn read(&self, name: &str, max: u64) -> io::Result<Option<Bytes>>;
    /// Puts a file with this content in place of the old one: after a crash one of the two is there, whole.
    async fn replace(&self, name: &str, content: Bytes) -> io::Result<Arc<dyn StateFile>>;
    /// An empty file for scratch use; whatever had the name is gone.
    async fn scratch(&self, name: &str) -> io::Result<Arc<dyn StateFile>>;
    /// Makes sure, by any means that still work, that nobody takes the file for good again: overwrites the first `len`
    /// bytes, which needs no room, and removes it.
    async fn spoil(&self, name: &str, len: usize) -> io::Result<()>;
}

/// Files of a real directory.
pub(crate) struct RealDir {
    path: PathBuf,
    /// Held for as long as the agent lives: a second agent in the same directory is refused.
    _lock: File,
}

impl RealDir {
    /// Creates the directory if need be, and locks it. `WouldBlock` if another agent holds it.
    pub(crate) async fn open(path: PathBuf) -> io::Result<Self> {
        blocking(move || {
            create_dir_durably(&path)?;
            let lock = OpenOptions::new().create(true).write(true).truncate(false).open(path.join("lock"))?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            Ok(RealDir { path, _lock: lock })
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|died| Err(io::Error::other(died)))
}

/// Creates a directory with all above it. A map that is durable in a directory that is not would be lost with it.
fn create_dir_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    // The parent of a relative name of one part is the empty name.
    let parent = path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let Some(parent) = parent else { return std::fs::create_dir_all(path) };
    create_dir_durably(parent)?;
    std::fs::create_dir_all(path)?;
    sync_dir(parent)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[async_trait]
impl StateDir for RealDir {
    async fn read(&self, name: &str, max: u64) -> io::Result<Option<Bytes>> {
        let path = self.path.join(name);
        blocking(move || {
            let len = match std::fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            };
            if len > max {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{len} bytes long, at most {max} expected"),
                ));
            }
            Ok(Some(std::fs::read(&path)?.into()))
        })
        .await
    }

    async fn replace(&self, name: &str, content: Bytes) -> io::Result<Arc<dyn StateFile>> {
        let (dir, target) = (self.path.clone(), self.path.join(name));
        let next = self.path.join(format!("{name}.next"));
        blocking(move || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&next)?;
            file.write_all_at(&content, 0)?;
            file.sync_all()?;
            probe::failpoint_now!("agent-map-replace-synced");
            std::fs::rename(&next, &target)?;
            probe::failpoint_now!("agent-map-replace-renamed");
            sync_dir(&dir)?;
            Ok(Arc::new(RealFile(Arc::new(file))) as Arc<dyn StateFile>)
        })
        .await
    }

    async fn scratch(&self, name: &str) -> io::Result<Arc<dyn StateFile>> {
        let path = self.path.join(name);
        blocking(move || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
            Ok(Arc::new(RealFile(Arc::new(file))) as Arc<dyn StateFile>)
        })
        .await
    }

    async fn spoil(&self, name: &str, len: usize) -> io::Result<()> {
        let (dir, path) = (self.path.clone(), self.path.join(name));
        blocking(move || {
            let overwritten = OpenOptions::new().write(true).open(&path).and_then(|file| {
                file.write_all_at(&vec![0; len], 0)?;
                file.sync_all()
            });
            let removed = std::fs::remove_file(&path).and_then(|()| sync_dir(&dir));
            match (overwritten, removed) {
                (Err(_), Err(e)) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            }
        })
        .await
    }
}

struct RealFile(Arc<File>);

#[async_trait]
impl StateFile for RealFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = Arc::clone(&self.0);
        blocking(move || {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes.into())
        })
        .await
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> io::Result<()> {
        let file = Arc::clone(&self.0);
        blocking(move || file.write_all_at(&data, offset)).await
    }

    async fn sync(&self) -> io::Result<()> {
        let file = Arc::clone(&self.0);
        blocking(move || file.sync_data()).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let file = Arc::clone(&self.0);
        blocking(move || file.set_len(len)).await
    }
}
