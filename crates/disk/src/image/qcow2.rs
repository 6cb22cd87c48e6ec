//! qcow2, written by the imago library: version 3, 64 KiB clusters, allocated as they are written.
//!
//! The library works on a file that we have created, so that it can never open another. Its calls block and run on the
//! blocking pool. It keeps tables in memory until it is flushed: the image is whole only once finished.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};

use super::{ImageWriter, blocking, context, sync_parent, unfinished};
use crate::bounds::check_write;
use crate::raw::create_new;

/// What imago reads and writes.
type Storage = imago::file::File;

/// A qcow2 file being written.
pub(super) struct Qcow2Image {
    inner: Arc<Inner>,
}

struct Inner {
    image: FormatAccess<Storage>,
    /// A second handle of the same file, to sync it whole.
    file: File,
    path: PathBuf,
    size: u64,
}

impl Qcow2Image {
    pub(super) fn create(path: PathBuf, size: u64) -> io::Result<Self> {
        let file = create_new(&path)?;
        let image = file
            .try_clone()
            .and_then(Storage::try_from)
            .and_then(|storage| {
                Qcow2::<Storage>::create_builder(storage).size(size).create_open(DenyImplicitOpenGate::default(), |s| {
                    Ok(Qcow2::<Storage>::builder(s).backing(None).write(true))
                })
            })
            .map_err(|e| unfinished(context(e, "lay out", &path), &path))?;
        Ok(Self { inner: Arc::new(Inner { image: FormatAccess::new(image), file, path, size }) })
    }
}

#[async_trait]
impl ImageWriter for Qcow2Image {
    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        if check_write(offset, data.len(), self.inner.size)?.is_none() {
            return Ok(());
        }
        let inner = self.inner.clone();
        blocking(move || {
            inner.image.write(&data[..], offset).map_err(|e| unfinished(context(e, "write", &inner.path), &inner.path))
        })
        .await
    }

    async fn finish(&self) -> io::Result<()> {
        let inner = self.inner.clone();
        blocking(move || {
            let durable = inner
                .image
                .flush()
                .and_then(|()| inner.image.sync())
                .and_then(|()| inner.file.sync_all())
                .and_then(|()| sync_parent(&inner.path));
            durable.map_err(|e| unfinished(context(e, "complete", &inner.path), &inner.path))
        })
        .await
    }
}
