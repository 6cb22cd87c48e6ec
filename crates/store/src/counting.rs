//! A store that counts what is read from it, for tests and benches that hold a bound on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// Passes everything on to the store below.
#[derive(Debug, Clone)]
pub struct CountingStore {
    inner: Arc<dyn ObjectStore>,
    gets: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    folders: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl CountingStore {
    /// Nothing counted yet.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, gets: Arc::default(), bytes: Arc::default(), folders: Arc::default() }
    }

    /// GETs (and HEADs), and the bytes they gave, since this was asked last.
    pub fn take(&self) -> (u64, u64) {
        // Relaxed: asked after what it counts is done.
        (self.gets.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
    }

    /// GETs in each folder since this was asked last, of all machines and epochs together: `stream/seg`, `map`.
    pub fn take_folders(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.folders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A path without its machine and its numbers.
fn folder_of(path: &str) -> String {
    let of_machine = path.strip_prefix("machine/").and_then(|rest| rest.split_once('/')).map_or(path, |(_, rest)| rest);
    let is_number = |part: &&str| part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words: Vec<_> = of_machine.split('/').filter(|part| !is_number(part)).collect();
    words.join("/")
}

impl std::fmt::Display for CountingStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CountingStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for CountingStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        // Relaxed: counts alone.
        self.gets.fetch_add(1, Ordering::Relaxed);
        *self.folders.lock().unwrap_or_else(PoisonError::into_inner).entry(folder_of(at.as_ref())).or_default() += 1;
        let answer = self.inner.get_opts(at, options).await?;
        // Relaxed: as above.
        self.bytes.fetch_add(answer.range.end - answer.range.start, Ordering::Relaxed);
        Ok(answer)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
