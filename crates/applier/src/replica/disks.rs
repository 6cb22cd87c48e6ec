//! The disks of a replica: made, resized, removed, written and synced, wherever each is kept.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use disk::ImageFormat;
use futures::StreamExt;
use model::{DiskId, DiskName, Extent};
use tokio_util::sync::CancellationToken;

use super::ReplicaConfig;
use super::device;
use super::state::{DiskPlace, ReplicaDisk};
use super::target::{Target, resize_image, resize_raw};
use crate::ApplierError;
use crate::files::sync_directory;
use crate::recover::{Frames, Source, piece_of};
use crate::stages::Stage;

/// Most bytes of one write.
const WRITE_BYTES_MAX: u64 = 1 << 20;

/// Writes in flight at once.
const WRITES_INFLIGHT: usize = 8;

/// Of these, those of one lot.
const WRITES_AT_ONCE: usize = 4;

/// Pieces of one lot: their frames are asked for together, so that neighbours come in one GET.
const PIECES_TOGETHER: usize = 64;

struct Open {
    name: DiskName,
    size: u64,
    place: DiskPlace,
    path: PathBuf,
    target: Target,
}

/// The open disks of a replica.
pub(super) struct ReplicaDisks {
    directory: PathBuf,
    config: ReplicaConfig,
    stop: CancellationToken,
    open: BTreeMap<DiskId, Open>,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ApplierError + use<> {
    let path = path.to_owned();
    move |source| ApplierError::File { operation, path, source }
}

impl ReplicaDisks {
    /// None yet, to be kept in `directory` and on the devices that `config` names.
    pub fn none(directory: &Path, config: &ReplicaConfig, stop: &CancellationToken) -> Self {
        let (directory, config, stop) = (directory.to_owned(), config.clone(), stop.clone());
        Self { directory, config, stop, open: BTreeMap::new() }
    }

    /// Opens the disks of a known state, bringing sizes back to what they were there: an interrupted move may have changed
    /// them. None when one is missing or is to be kept elsewhere now: the replica must be built anew.
    pub async fn open(mut self, disks: &[ReplicaDisk]) -> Result<Option<Self>, ApplierError> {
        for disk in disks {
            let (place, path) = self.place_of(&disk.name)?;
            if place != disk.place {
                tracing::warn!(disk = %disk.name, path = %path.display(), "replica disk is to be kept here from now on");
                return Ok(None);
            }
            let target = match place {
                DiskPlace::Device(_) => Some(Target::Raw(device::open(&path, &disk.name, disk.size)?)),
                _ => Target::open(&path, self.config.format, disk.size).await.map_err(failed("open", &path))?,
            };
            let Some(target) = target else {
                tracing::error!(path = %path.display(), "replica disk is missing or not as it was left");
                return Ok(None);
            };
            self.open.insert(disk.id, Open { name: disk.name.clone(), size: disk.size, place, path, target });
        }
        Ok(Some(self))
    }

    /// Where a disk is kept.
    fn place_of(&self, name: &DiskName) -> Result<(DiskPlace, PathBuf), ApplierError> {
        if let Some(path) = self.config.devices.get(name) {
            return Ok((DiskPlace::Device(device::identity(path)?), path.clone()));
        }
        let place = match self.config.format {
            ImageFormat::Raw => DiskPlace::Raw,
            ImageFormat::Qcow2 => DiskPlace::Qcow2,
            ImageFormat::Vhd => DiskPlace::Vhd,
        };
        Ok((place, self.directory.join(format!("{name}.{}", self.config.format))))
    }

    /// What there is, for the state file.
    pub fn list(&self) -> Vec<ReplicaDisk> {
        let disk = |(id, open): (&DiskId, &Open)| {
            let (name, place) = (open.name.clone(), open.place.clone());
            ReplicaDisk { id: *id, name, size: open.size, place }
        };
        self.open.iter().map(disk).collect()
    }

    /// A disk appeared or has a new size. One that was not there begins blank, whatever an interrupted move left.
    pub async fn announce(&mut self, id: DiskId, name: DiskName, size: u64) -> Result<(), ApplierError> {
        // A disk has one writer at a time: ours must be closed before it is opened again.
        let opened = match self.open.remove(&id) {
            Some(open) if open.size == size => open,
            Some(open) => self.resize(open, size).await?,
            None => self.create(name, size).await?,
        };
        self.open.insert(id, opened);
        Ok(())
    }

    async fn create(&self, name: DiskName, size: u64) -> Result<Open, ApplierError> {
        let (place, path) = self.place_of(&name)?;
        let target = match place {
            DiskPlace::Device(_) => {
                Target::Raw(device::take_blank(&self.directory, &path, &name, size, &self.stop).await?)
            }
            _ => {
                remove_file(&path).map_err(failed("remove", &path))?;
                Target::create(&path, self.config.format, size).await.map_err(failed("create", &path))?
            }
        };
        Ok(Open { name, size, place, path, target })
    }

    async fn resize(&self, open: Open, size: u64) -> Result<Open, ApplierError> {
        let Open { name, size: old_size, place, path, target } = open;
        let target = match (target, &place) {
            (Target::Raw(raw), DiskPlace::Device(_)) => {
                device::check_size(&raw, &path, &name, size)?;
                let target = Target::Raw(raw);
                if let Ok(gained) = Extent::new(old_size, size.saturating_sub(old_size)) {
                    target.zero(gained).await.map_err(failed("write", &path))?;
                }
                target
            }
            (Target::Raw(raw), _) => {
                drop(raw);
                resize_raw(&path, size).map_err(failed("resize", &path))?
            }
            (Target::Image(image), _) => {
                drop(image);
                let format = self.config.format;
                resize_image(&path, format, old_size, size).await.map_err(failed("resize", &path))?
            }
        };
        Ok(Open { name, size, place, path, target })
    }

    /// A disk left. Its file goes; a device is left as it is.
    pub fn remove(&mut self, id: DiskId) -> Result<(), ApplierError> {
        match self.open.remove(&id) {
            Some(Open { path, place: DiskPlace::Raw | DiskPlace::Qcow2 | DiskPlace::Vhd, .. }) => {
                remove_file(&path).map_err(failed("remove", &path))
            }
            _ => Ok(()),
        }
    }

    /// Removes every disk but these.
    pub fn retain(&mut self, kept: impl Fn(DiskId) -> bool) -> Result<(), ApplierError> {
        let gone: Vec<_> = self.open.keys().copied().filter(|id| !kept(*id)).collect();
        gone.into_iter().try_for_each(|id| self.remove(id))
    }

    /// Writes runs that do not overlap. All writes begun have ended when this returns, also when it fails: none may land
    /// after a later one.
    pub async fn write_runs(
        &self,
        frames: &Frames,
        id: DiskId,
        runs: Vec<(Extent, Source)>,
    ) -> Result<(), ApplierError> {
        let Some(open) = self.open.get(&id).filter(|_| !runs.is_empty()) else { return Ok(()) };
        let pieces = runs.into_iter().flat_map(|(run, source)| {
            // A run of zeros is one operation, however long it is.
            let boundary = if source == Source::Zero { run.end() } else { WRITE_BYTES_MAX };
            run.split_at_multiples(boundary).map(move |piece| (piece, source.advance(piece.offset() - run.offset())))
        });
        let pieces: Vec<_> = pieces.collect();
        let lots: Vec<_> = pieces.chunks(PIECES_TOGETHER).map(<[_]>::to_vec).collect();
        let mut writes = futures::stream::iter(lots)
            .map(|together| write_pieces(frames, open, together))
            .buffer_unordered(WRITES_INFLIGHT / WRITES_AT_ONCE);
        let mut result = Ok(());
        while let Some(written) = writes.next().await {
            result = result.and(written);
        }
        probe::failpoint!("applier-replica-runs-written");
        result
    }

    /// Makes everything durable: contents, sizes, names.
    pub async fn flush(&self) -> Result<(), ApplierError> {
        for open in self.open.values() {
            open.target.flush().await.map_err(failed("sync", &open.path))?;
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
            let made =
                |path: &Path| ImageFormat::ALL.iter().any(|f| path.extension().is_some_and(|e| e == f.extension()));
            let beside = path.extension().is_some_and(|e| e == "new") && made(&path.with_extension(""));
            if made(&path) || beside {
                remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        sync_directory(directory).map_err(failed("sync", directory))
    }
}

/// One operation on a disk.
enum Change {
    Zero(Extent),
    /// Parts one behind the other from an offset on.
    Write(u64, Vec<Bytes>),
}

/// Writes pieces whose frames are asked for together.
async fn write_pieces(frames: &Frames, open: &Open, pieces: Vec<(Extent, Source)>) -> Result<(), ApplierError> {
    let plain = frames.all(pieces.iter().map(|(_, source)| *source)).await.map_err(ApplierError::Recover)?;
    let writing = frames.stages().at(Stage::Write);
    let bytes = pieces.iter().filter(|(_, source)| *source != Source::Zero).map(|(piece, _)| piece.len()).sum();
    let mut changes = Vec::new();
    for (piece, source) in pieces {
        let data = piece_of(frames, &plain, piece, source).map_err(ApplierError::Recover)?;
        join(&mut changes, piece, data);
    }
    let mut writes = futures::stream::iter(changes)
        .map(|change| async {
            let written = match change {
                Change::Zero(extent) => open.target.zero(extent).await,
                Change::Write(offset, parts) => open.target.write(offset, parts).await,
            };
            written.map_err(failed("write", &open.path))
        })
        .buffer_unordered(WRITES_AT_ONCE);
    let mut result = Ok(());
    while let Some(written) = writes.next().await {
        result = result.and(written);
    }
    if result.is_ok() {
        writing.moved(bytes);
    }
    result
}

/// Adds a piece to what there is to do: to the write before it, if it goes on where that ends.
fn join(changes: &mut Vec<Change>, piece: Extent, data: Option<Bytes>) {
    let Some(data) = data else { return changes.push(Change::Zero(piece)) };
    if let Some(Change::Write(offset, parts)) = changes.last_mut() {
        let len = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        if *offset + len == piece.offset() && len + piece.len() <= WRITE_BYTES_MAX {
            return parts.push(data);
        }
    }
    changes.push(Change::Write(piece.offset(), vec![data]));
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
