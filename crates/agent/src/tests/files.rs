//! State files in memory that lose power, fail and can be damaged, as real ones do.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;

use super::rig::Rng;
use crate::state_dir::{StateDir, StateFile};

#[derive(Default)]
struct Contents {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, by sector.
    unsynced: Vec<(usize, Vec<u8>)>,
    syncs: u64,
    failing: bool,
}

#[derive(Clone, Default)]
pub(super) struct MemoryFile(Arc<Mutex<Contents>>);

#[derive(Clone, Default)]
pub(super) struct MemoryDir(Arc<Mutex<BTreeMap<String, MemoryFile>>>);

fn put(target: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if target.len() < offset + data.len() {
        target.resize(offset + data.len(), 0);
    }
    target[offset..offset + data.len()].copy_from_slice(data);
}

impl MemoryFile {
    fn contents(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.0.lock().expect("no panic while held")
    }

    pub(super) fn fail(&self, failing: bool) {
        self.contents().failing = failing;
    }

    pub(super) fn syncs(&self) -> u64 {
        self.contents().syncs
    }

    pub(super) fn visible(&self) -> Vec<u8> {
        self.contents().visible.clone()
    }

    /// Changes bytes behind the program's back.
    pub(super) fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut contents = self.contents();
        change(&mut contents.visible);
        contents.durable = contents.visible.clone();
    }

    /// Of what was not synced, each sector survives or not.
    fn power_cut(&self, rng: &mut Rng) {
        let mut contents = self.contents();
        for (offset, data) in std::mem::take(&mut contents.unsynced) {
            for (index, sector) in data.chunks(512).enumerate() {
                if rng.below(2) == 0 {
                    put(&mut contents.durable, offset + index * 512, sector);
                }
            }
        }
        contents.visible = contents.durable.clone();
    }
}

impl MemoryDir {
    pub(super) fn file(&self, name: &str) -> Option<MemoryFile> {
        self.0.lock().expect("no panic while held").get(name).cloned()
    }

    pub(super) fn remove(&self, name: &str) {
        self.0.lock().expect("no panic while held").remove(name);
    }

    /// Puts a file there, durably: as if it had been restored from a snapshot.
    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) {
        let file = MemoryFile::default();
        *file.contents() = Contents { visible: bytes.clone(), durable: bytes, ..Contents::default() };
        self.0.lock().expect("no panic while held").insert(name.to_owned(), file);
    }

    pub(super) fn power_cut(&self, rng: &mut Rng) {
        self.0.lock().expect("no panic while held").values().for_each(|file| file.power_cut(rng));
    }
}

#[async_trait]
impl StateFile for MemoryFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        tokio::task::yield_now().await;
        let contents = self.contents();
        let start = offset as usize;
        let range = contents.visible.get(start..start + len).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Bytes::copy_from_slice(range))
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut contents = self.contents();
        if contents.failing {
            return Err(io::ErrorKind::StorageFull.into());
        }
        put(&mut contents.visible, offset as usize, &data);
        contents.unsynced.push((offset as usize, data.to_vec()));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        // What is written while a sync runs is not covered by it.
        let covered = self.contents().unsynced.len();
        waiting::takes(std::time::Duration::from_micros(200)).await;
        let mut contents = self.contents();
        if contents.failing {
            return Err(io::ErrorKind::StorageFull.into());
        }
        contents.syncs += 1;
        let done: Vec<_> = contents.unsynced.drain(..covered).collect();
        for (offset, data) in done {
            put(&mut contents.durable, offset, &data);
        }
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let mut contents = self.contents();
        contents.visible.resize(len as usize, 0);
        contents.durable.resize(len as usize, 0);
        contents.unsynced.clear();
        Ok(())
    }
}

#[async_trait]
impl StateDir for MemoryDir {
    async fn read(&self, name: &str, _max: u64) -> io::Result<Option<Bytes>> {
        Ok(self.file(name).map(|file| file.visible().into()))
    }

    async fn replace(&self, name: &str, content: Bytes) -> io::Result<Arc<dyn StateFile>> {
        if self.file(name).is_some_and(|file| file.contents().failing) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.put(name, content.to_vec());
        Ok(Arc::new(self.file(name).expect("just put")))
    }

    async fn scratch(&self, name: &str) -> io::Result<Arc<dyn StateFile>> {
        self.put(name, Vec::new());
        Ok(Arc::new(self.file(name).expect("just put")))
    }

    async fn spoil(&self, name: &str, _len: usize) -> io::Result<()> {
        if self.file(name).is_some_and(|file| file.contents().failing) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.remove(name);
        Ok(())
    }
}
