//! A store that keeps what it was given.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// A store under object lock: nothing is put over what is there, and nothing is deleted until the lock is over.
#[derive(Debug, Clone)]
pub(crate) struct LockedStore {
    inner: Arc<dyn ObjectStore>,
    locked: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
}

impl LockedStore {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, locked: Arc::new(AtomicBool::new(true)), refused: Arc::default() }
    }

    /// From now on objects may be deleted. Gives how many deletions were refused until now.
    pub fn unlock(&self) -> u64 {
        // Relaxed: the test unlocks while nobody else works on the store.
        self.locked.store(false, Ordering::Relaxed);
        self.refused.load(Ordering::Relaxed)
    }

    fn refusal(&self, path: &Path, doing: &str) -> object_store::Error {
        // Relaxed: counts alone.
        self.refused.fetch_add(1, Ordering::Relaxed);
        let source = format!("{doing}: the object is locked").into();
        object_store::Error::PermissionDenied { path: path.to_string(), source }
    }
}

impl std::fmt::Display for LockedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LockedStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for LockedStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match options.mode {
            object_store::PutMode::Create => self.inner.put_opts(at, payload, options).await,
            _ => Err(self.refusal(at, "put")),
        }
    }

    async fn put_multipart_opts(&self, at: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(self.refusal(at, "put in parts"))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        // Relaxed: as above.
        if !self.locked.load(Ordering::Relaxed) {
            return self.inner.delete_stream(paths);
        }
        let locked = self.clone();
        paths.map(move |path| path.and_then(|path| Err(locked.refusal(&path, "delete")))).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, to: &Path, _: CopyOptions) -> Result<()> {
        Err(self.refusal(to, "copy"))
    }
}
