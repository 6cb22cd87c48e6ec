//! The state directory of a simulated agent: files that lose what was not synced, tear at sectors, and run out of room.
//!
//! A rename is atomic and durable only with the directory, so `replace` is modelled as its steps: until the last one a
//! power cut brings the old file back.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::{StateDir, StateFile};
use async_trait::async_trait;
use bytes::Bytes;
use store::SplitMix64;

use crate::world::Boot;

const SECTOR: usize = 512;

/// Longest time of a sync.
const SYNC_MAX: Duration = Duration::from_millis(6);

#[derive(Debug, Clone, Default)]
struct Contents {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync.
    unsynced: Vec<(usize, Bytes)>,
}

#[derive(Debug)]
struct Inner {
    files: BTreeMap<String, Arc<Mutex<Contents>>>,
    /// Every write and sync fails.
    full: bool,
    rng: SplitMix64,
}

/// The directory: survives the host.
#[derive(Debug, Clone)]
pub struct SimFiles(Arc<Mutex<Inner>>);

fn put(target: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if target.len() < offset + data.len() {
        target.resize(offset + data.len(), 0);
    }
    target[offset..offset + data.len()].copy_from_slice(data);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimFiles {
    /// An empty directory.
    pub fn new(rng: SplitMix64) -> Self {
        Self(Arc::new(Mutex::new(Inner { files: BTreeMap::new(), full: false, rng })))
    }

    /// Whether there is no room from now on.
    pub fn set_full(&self, full: bool) {
        lock(&self.0).full = full;
    }

    /// Of everything not synced each sector survives or not.
    pub fn power_cut(&self) {
        let mut inner = lock(&self.0);
        let Inner { files, rng, .. } = &mut *inner;
        for file in files.values() {
            let mut contents = lock(file);
            for (offset, data) in std::mem::take(&mut contents.unsynced) {
                for (index, sector) in data.chunks(SECTOR).enumerate() {
                    if rng.below(2) == 0 {
                        put(&mut contents.durable, offset + index * SECTOR, sector);
                    }
                }
            }
            contents.visible = contents.durable.clone();
        }
    }

    /// What the files hold, as a snapshot would.
    pub fn snapshot(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = lock(&self.0);
        inner.files.iter().map(|(name, file)| (name.clone(), lock(file).visible.clone())).collect()
    }

    /// Sets everything back to a snapshot.
    pub fn restore(&self, snapshot: &BTreeMap<String, Vec<u8>>) {
        let mut inner = lock(&self.0);
        inner.files = snapshot
            .iter()
            .map(|(name, bytes)| {
                let contents = Contents { visible: bytes.clone(), durable: bytes.clone(), unsynced: Vec::new() };
                (name.clone(), Arc::new(Mutex::new(contents)))
            })
            .collect();
    }

    /// The directory as one life of a host uses it.
    pub fn seen_from(&self, boot: &Boot) -> Arc<dyn StateDir> {
        Arc::new(Directory { files: self.clone(), boot: boot.clone() })
    }

    fn file(&self, name: &str) -> Option<Arc<Mutex<Contents>>> {
        lock(&self.0).files.get(name).cloned()
    }

    fn set(&self, name: &str, bytes: &[u8]) -> Arc<Mutex<Contents>> {
        let contents = Contents { visible: bytes.to_vec(), durable: bytes.to_vec(), unsynced: Vec::new() };
        let file = Arc::new(Mutex::new(contents));
        lock(&self.0).files.insert(name.to_owned(), file.clone());
        file
    }

    fn check_room(&self) -> io::Result<()> {
        if lock(&self.0).full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    async fn sync_time(&self, boot: &Boot) {
        let time = lock(&self.0).rng.duration(Duration::ZERO, SYNC_MAX);
        tokio::time::sleep(time).await;
        boot.live().await;
    }
}

struct Directory {
    files: SimFiles,
    boot: Boot,
}

struct OpenFile {
    files: SimFiles,
    boot: Boot,
    contents: Arc<Mutex<Contents>>,
}

impl Directory {
    fn open(&self, contents: Arc<Mutex<Contents>>) -> Arc<dyn StateFile> {
        Arc::new(OpenFile { files: self.files.clone(), boot: self.boot.clone(), contents })
    }
}

#[async_trait]
impl StateDir for Directory {
    async fn read(&self, name: &str, max: u64) -> io::Result<Option<Bytes>> {
        self.boot.live().await;
        let Some(file) = self.files.file(name) else { return Ok(None) };
        let bytes = Bytes::from(lock(&file).visible.clone());
        if bytes.len() as u64 > max { Err(io::ErrorKind::InvalidData.into()) } else { Ok(Some(bytes)) }
    }

    async fn replace(&self, name: &str, content: Bytes) -> io::Result<Arc<dyn StateFile>> {
        // The new file is written and synced, renamed, and the directory synced: before the last nothing is sure.
        self.files.sync_time(&self.boot).await;
        self.files.check_room()?;
        self.files.sync_time(&self.boot).await;
        Ok(self.open(self.files.set(name, &content)))
    }

    async fn scratch(&self, name: &str) -> io::Result<Arc<dyn StateFile>> {
        self.boot.live().await;
        self.files.check_room()?;
        Ok(self.open(self.files.set(name, &[])))
    }

    async fn spoil(&self, name: &str, _len: usize) -> io::Result<()> {
        self.files.sync_time(&self.boot).await;
        lock(&self.files.0).files.remove(name);
        Ok(())
    }
}

#[async_trait]
impl StateFile for OpenFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.boot.live().await;
        let contents = lock(&self.contents);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let range = contents.visible.get(start..start + len).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Bytes::copy_from_slice(range))
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> io::Result<()> {
        self.boot.live().await;
        self.files.check_room()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let mut contents = lock(&self.contents);
        put(&mut contents.visible, start, &data);
        contents.unsynced.push((start, data));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        // What is written while a sync runs is not covered by it.
        let covered = lock(&self.contents).unsynced.len();
        self.files.sync_time(&self.boot).await;
        self.files.check_room()?;
        let mut contents = lock(&self.contents);
        let covered = covered.min(contents.unsynced.len());
        let done: Vec<_> = contents.unsynced.drain(..covered).collect();
        for (offset, data) in done {
            put(&mut contents.durable, offset, &data);
        }
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.boot.live().await;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut contents = lock(&self.contents);
        contents.visible.resize(len, 0);
        contents.durable.resize(len, 0);
        contents.unsynced.retain(|(offset, _)| *offset < len);
        Ok(())
    }
}
