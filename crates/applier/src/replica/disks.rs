//! The files of a replica's disks: made, resized, removed, written and synced.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use disk::{Disk, RawDisk};
use futures::StreamExt;
use model::{DiskId, DiskName, Extent};

use super::state::{ReplicaDisk, sync_directory};
use crate::ApplierError;
use crate::recover::{Frames, Source, read_run};

/// Bytes of one write.
const PIECE_BYTES: u64 = 1 << 20;

/// Writes in flight at once.
const WRITES_INFLIGHT: usize = 8;

struct Open {
    name: DiskName,
    size: u64,
    file: RawDisk,
}

/// The open files of a replica.
pub(super) struct ReplicaDisks {
    directory: PathBuf,
    open: BTreeMap<DiskId, Open>,
}

fn file_path(directory: &Path, name: &DiskName) -> PathBuf {
    directory.join(format!("{name}.raw"))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ApplierError + use<> {
    let path = path.to_owned();
    move |source| ApplierError::File { operation, path, source }
}

impl ReplicaDisks {
    /// Opens the files of a known state, bringing sizes back to what they were there: an interrupted move may have
    /// changed them. None when one is missing: the replica must be built anew.
    pub fn open(directory: &Path, disks: &[ReplicaDisk]) -> Result<Option<Self>, ApplierError> {
        let mut opened = Self { directory: directory.to_owned(), open: BTreeMap::new() };
        for disk in disks {
            let path = file_path(directory, &disk.name);
            match std::fs::metadata(&path) {
                Ok(found) if found.len() < disk.size => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed("open", &path)(error)),
            }
            opened.resize(disk.id, disk.name.clone(), disk.size)?;
        }
        Ok(Some(opened))
    }

    /// What there is, for the state file.
    pub fn list(&self) -> Vec<ReplicaDisk> {
        let disk = |(id, open): (&DiskId, &Open)| ReplicaDisk { id: *id, name: open.name.clone(), size: open.size };
        self.open.iter().map(disk).collect()
    }

    /// A disk appeared or has a new size. One that was not there begins blank, whatever file an interrupted move left.
    pub fn announce(&mut self, id: DiskId, name: DiskName, size: u64) -> Result<(), ApplierError> {
        if !self.open.contains_key(&id) {
            let path = file_path(&self.directory, &name);
            remove_file(&path).map_err(failed("remove", &path))?;
            RawDisk::create(&path, size).map_err(failed("create", &path))?;
        }
        self.resize(id, name, size)
    }

    fn resize(&mut self, id: DiskId, name: DiskName, size: u64) -> Result<(), ApplierError> {
        // A disk has one writer at a time: ours must be closed before it is opened again.
        drop(self.open.remove(&id));
        let path = file_path(&self.directory, &name);
        let file = OpenOptions::new().write(true).open(&path).map_err(failed("open", &path))?;
        if file.metadata().map_err(failed("measure", &path))?.len() != size {
            file.set_len(size).map_err(failed("resize", &path))?;
        }
        let file = RawDisk::open(&path, true).map_err(failed("open", &path))?;
        self.open.insert(id, Open { name, size, file });
        Ok(())
    }

    /// A disk left.
    pub fn remove(&mut self, id: DiskId) -> Result<(), ApplierError> {
        let Some(open) = self.open.remove(&id) else { return Ok(()) };
        let path = file_path(&self.directory, &open.name);
        remove_file(&path).map_err(failed("remove", &path))
    }

    /// Writes runs that do not overlap. All writes begun have ended when this returns, also when it fails: none may land
    /// after a later one.
    pub async fn write_runs(
        &self,
        frames: &Frames,
        id: DiskId,
        runs: Vec<(Extent, Source)>,
    ) -> Result<(), ApplierError> {
        let Some(open) = self.open.get(&id) else { return Ok(()) };
        let pieces = runs.into_iter().flat_map(|(run, source)| {
            // A run of zeros is one operation, however long it is.
            let boundary = if source == Source::Zero { run.end() } else { PIECE_BYTES };
            run.split_at_multiples(boundary).map(move |piece| (piece, source.advance(piece.offset() - run.offset())))
        });
        let results = futures::stream::iter(pieces)
            .map(|(piece, source)| self.write_run(frames, open, piece, source))
            .buffer_unordered(WRITES_INFLIGHT)
            .collect::<Vec<_>>();
        results.await.into_iter().collect()
    }

    async fn write_run(&self, frames: &Frames, open: &Open, run: Extent, source: Source) -> Result<(), ApplierError> {
        let path = file_path(&self.directory, &open.name);
        match source {
            Source::Zero => open.file.zero(run, true).await.map_err(failed("write", &path)),
            Source::Data { .. } => {
                let bytes = read_run(frames, run, source).await.map_err(ApplierError::Recover)?;
                open.file.write(run.offset(), bytes).await.map_err(failed("write", &path))
            }
        }
    }

    /// Makes everything durable: contents, sizes, names.
    pub async fn flush(&self) -> Result<(), ApplierError> {
        for open in self.open.values() {
            let path = file_path(&self.directory, &open.name);
            open.file.flush().await.map_err(failed("sync", &path))?;
        }
        let directory = self.directory.clone();
        let synced = tokio::task::spawn_blocking(move || sync_directory(&directory)).await;
        synced.expect("syncing does not panic and is not cancelled").map_err(failed("sync", &self.directory))
    }

    /// Removes every disk file of a replica that is built anew.
    pub fn clear(directory: &Path) -> Result<(), ApplierError> {
        let list = |e| failed("list", directory)(e);
        for entry in std::fs::read_dir(directory).map_err(list)? {
            let path = entry.map_err(list)?.path();
            if path.extension().is_some_and(|extension| extension == "raw") {
                remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        sync_directory(directory).map_err(failed("sync", directory))
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
