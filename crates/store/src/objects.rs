//! One store: get, ranged get, create-only put with unclear results resolved, list, delete.
//!
//! What must hold: no object is ever overwritten; a create whose answer is lost is never reported as anything it is not;
//! an object reported as [`Created::Ours`] is durable. If the process dies in the middle of a create, the object is there
//! as a whole, or not, or appears later; the epoch log above is built to take all three.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use format::FormatError;
use format::object::OBJECT_BYTES_MAX;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::StoreError;
use crate::local::LocalRoot;
use crate::two::Cache;

/// Times the same bytes are put before a create is given up as unclear.
const CREATE_TRIES_MAX: u32 = 3;

/// Wait before the second try of a create; doubled for each further one.
const CREATE_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Objects one listing may return: about 2 GiB of names. List a narrower prefix when there are more.
const LIST_OBJECTS_MAX: usize = 16 << 20;

/// How a create ended, once it is clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object holds our bytes (written now, or by an earlier try of ours).
    Ours,
    /// The object holds other bytes.
    Other,
}

/// A store opened from a URL. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    /// Set for `file://`: the directory whose entries must be synced before they count.
    local: Option<Arc<LocalRoot>>,
    /// The URL it was opened by, for messages.
    url: Option<Arc<str>>,
    /// Where streams are written, when that is another store.
    pub(crate) cache: Option<Arc<Cache>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cache() {
            None => write!(f, "Store({})", self.inner),
            Some(cache) => write!(f, "Store({} behind {})", cache.inner, self.inner),
        }
    }
}

impl Store {
    /// Opens `file:///dir` (created if absent, fsync on, refused on a network filesystem), `az://container/prefix`,
    /// `s3://bucket/prefix`, `gs://bucket/prefix`. Credentials come from the environment.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        crate::url::open(url)
    }

    /// Wraps any object store: tests, faults.
    pub fn from_object_store(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, local: None, url: None, cache: None }
    }

    pub(crate) fn from_local(inner: Arc<dyn ObjectStore>, root: LocalRoot) -> Self {
        Self { inner, local: Some(Arc::new(root)), url: None, cache: None }
    }

    pub(crate) fn with_url(self, url: &str) -> Self {
        Self { url: Some(url.into()), ..self }
    }

    /// As messages call it: the URL it was opened by, or the kind of store.
    pub fn name(&self) -> String {
        self.url.as_ref().map_or_else(|| self.inner.to_string(), |url| url.to_string())
    }

    /// The object store below; of two stores, that of the vault store.
    pub fn object_store(&self) -> &Arc<dyn ObjectStore> {
        &self.inner
    }

    /// [`Store::create`] in this store, whatever lies behind it.
    pub(crate) async fn create_here(&self, path: &str, parts: Vec<Bytes>) -> Result<Created, StoreError> {
        let location = self.location("create", path)?;
        let payload = PutPayload::from_iter(parts.iter().cloned());
        let mut delay = CREATE_RETRY_DELAY;
        for attempt in 1..=CREATE_TRIES_MAX {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let put = observe("create", self.inner.put_opts(&location, payload.clone(), options)).await;
            let Err(cause) = put else { return Ok(Created::Ours) };
            match self.get_here(path).await {
                Ok(Some(found)) if !same_bytes(&found, &parts) => return Ok(Created::Other),
                Ok(Some(_)) => {
                    self.settle_found(path, &cause).await?;
                    return Ok(Created::Ours);
                }
                Ok(None) if is_refusal(&cause) => return Err(unavailable("create", path, cause)),
                Ok(None) => tracing::debug!(path, attempt, error = %cause, "create is unclear: the object is absent"),
                Err(damaged @ StoreError::Damaged { .. }) => return Err(damaged),
                Err(_) => return Err(unavailable("create", path, cause)),
            }
            if attempt < CREATE_TRIES_MAX {
                tokio::time::sleep(delay).await;
                delay *= 2;
            }
        }
        Err(StoreError::Unclear { path: path.to_owned() })
    }

    /// [`Store::get`] of this store.
    pub(crate) async fn get_here(&self, path: &str) -> Result<Option<Bytes>, StoreError> {
        let location = self.location("read", path)?;
        match observe("get", self.inner.get_opts(&location, GetOptions::default())).await {
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(unavailable("read", path, source)),
            Ok(found) if found.meta.size > OBJECT_BYTES_MAX => Err(too_large(path)),
            Ok(found) => match whole_body(found).await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(source) => Err(unavailable("read", path, source)),
            },
        }
    }

    /// [`Store::get_range`] of this store.
    pub(crate) async fn get_range_here(&self, path: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let location = self.location("read", path)?;
        if range.end.saturating_sub(range.start) > OBJECT_BYTES_MAX {
            return Err(too_large(path));
        }
        if range.start >= range.end {
            return Ok(self.size(path, &location).await?.map(|_| Bytes::new()));
        }
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let got = match observe("get", self.inner.get_opts(&location, options)).await {
            Ok(found) => whole_body(found).await,
            Err(source) => Err(source),
        };
        match got {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            // Stores differ in how they answer a range that starts at or past the end: the size decides.
            Err(source) => match self.size(path, &location).await {
                Ok(None) => Ok(None),
                Ok(Some(size)) if range.start >= size => Ok(Some(Bytes::new())),
                _ => Err(unavailable("read", path, source)),
            },
        }
    }

    /// Where an object lies; refused where that is not within the store.
    fn location(&self, operation: &'static str, path: &str) -> Result<Path, StoreError> {
        let location = location(operation, path)?;
        match &self.local {
            None => Ok(location),
            Some(root) => {
                root.contains(path).map_err(|e| unavailable(operation, path, generic(e)))?;
                Ok(location)
            }
        }
    }

    /// Whether this store holds an object there.
    pub(crate) async fn holds_here(&self, path: &str) -> Result<bool, StoreError> {
        let location = self.location("read", path)?;
        Ok(self.size(path, &location).await?.is_some())
    }

    async fn size(&self, path: &str, location: &Path) -> Result<Option<u64>, StoreError> {
        match observe("head", self.inner.head(location)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(unavailable("read", path, source)),
        }
    }

    /// [`Store::list`] of this store.
    pub(crate) async fn list_here(&self, prefix: &str) -> Result<Vec<(String, u64)>, StoreError> {
        let location = self.location("list", prefix.strip_suffix('/').unwrap_or(prefix))?;
        let mut stream = self.inner.list(Some(&location));
        let mut found = Vec::new();
        loop {
            match observe("list", stream.try_next()).await {
                Err(object_store::Error::NotFound { .. }) | Ok(None) => break,
                Ok(Some(_)) if found.len() == LIST_OBJECTS_MAX => {
                    let source = generic(format!("more than {LIST_OBJECTS_MAX} objects: list a narrower prefix"));
                    return Err(unavailable("list", prefix, source));
                }
                Ok(Some(meta)) => {
                    let path = meta.location.to_string();
                    if let Some(root) = &self.local {
                        root.contains(&path).map_err(|e| unavailable("list", &path, generic(e)))?;
                    }
                    found.push((path, meta.size));
                }
                Err(source) => return Err(unavailable("list", prefix, source)),
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// [`Store::list_names`] of this store.
    pub(crate) async fn list_names_here(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let location = self.location("list", prefix)?;
        match observe("list", self.inner.list_with_delimiter(Some(&location))).await {
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(source) => Err(unavailable("list", prefix, source)),
            Ok(found) => {
                let last = |p: &Path| p.filename().map(str::to_owned);
                let mut names: Vec<String> = found.common_prefixes.iter().filter_map(last).collect();
                names.sort_unstable();
                Ok(names)
            }
        }
    }

    /// Deletes an object, of two stores in the vault store alone; absent is fine. On `file://` a power cut may bring it back,
    /// which every caller must bear anyway: a late PUT can do the same.
    pub async fn delete(&self, path: &str) -> Result<(), StoreError> {
        let location = self.location("delete", path)?;
        match observe("delete", self.inner.delete(&location)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(unavailable("delete", path, source)),
        }
    }

    /// [`Store::settle`] in this store.
    pub(crate) async fn settle_here(&self, path: &str) -> Result<(), StoreError> {
        match &self.local {
            None => Ok(()),
            Some(root) => root.settle(path).await.map_err(|e| unavailable("sync", path, generic(e))),
        }
    }

    /// Removes the folder of deleted objects. Object stores have no folders; on `file://` one that is not empty stays.
    pub(crate) async fn forget_folder(&self, folder: &str) {
        if let Some(root) = &self.local {
            root.remove_empty(folder).await;
        }
    }

    /// The object is there with our bytes although the create did not say so.
    async fn settle_found(&self, path: &str, cause: &object_store::Error) -> Result<(), StoreError> {
        if let Some(root) = &self.local
            && !matches!(cause, object_store::Error::AlreadyExists { .. })
        {
            // The file was linked but the sync behind it failed. A second sync may succeed without having written what
            // the first one dropped, so nothing this process does here can be called durable any more.
            root.condemn();
        }
        self.settle_here(path).await
    }
}

/// The body of an answer. One that ends early is a failed read: taken for the object, our own bytes read back would pass
/// for another writer's, and a sound object for a damaged one.
async fn whole_body(found: GetResult) -> object_store::Result<Bytes> {
    let promised = found.range.end.saturating_sub(found.range.start);
    let bytes = found.bytes().await?;
    if bytes.len() as u64 == promised {
        return Ok(bytes);
    }
    Err(generic(format!("the body ended after {} of {promised} bytes", bytes.len())))
}

/// Errors with which a store surely says no, and will say no again: retrying is of no use.
fn is_refusal(error: &object_store::Error) -> bool {
    use object_store::Error;
    matches!(
        error,
        Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::NotImplemented { .. }
            | Error::NotSupported { .. }
            | Error::InvalidPath { .. }
            | Error::UnknownConfigurationKey { .. }
    )
}

/// Whether `found` is exactly the concatenation of `parts`.
fn same_bytes(found: &[u8], parts: &[Bytes]) -> bool {
    let mut rest = found;
    for part in parts {
        match rest.strip_prefix(part.as_ref()) {
            Some(behind) => rest = behind,
            None => return false,
        }
    }
    rest.is_empty()
}

/// Our own generated paths are lower-case hex, names and slashes; anything else is refused before it reaches a store.
fn location(operation: &'static str, path: &str) -> Result<Path, StoreError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let segment = |s: &str| !s.is_empty() && s.bytes().all(plain);
    if path.split('/').all(segment) {
        return Ok(Path::from(path));
    }
    Err(unavailable(operation, path, generic("not a path of a Farshore object".to_owned())))
}

pub(crate) fn generic(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic { store: "farshore", source: why.into() }
}

pub(crate) fn unavailable(operation: &'static str, path: &str, source: object_store::Error) -> StoreError {
    StoreError::Unavailable { operation, path: path.to_owned(), source }
}

fn too_large(path: &str) -> StoreError {
    let source = FormatError::Invalid { what: "object size" };
    StoreError::Damaged { path: path.to_owned(), source }
}

/// Runs one request of the store and counts how long it took and whether it failed; "not found" and "already exists"
/// are answers, not failures.
async fn observe<T>(
    operation: &'static str,
    request: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    use object_store::Error::{AlreadyExists, NotFound};
    let start = tokio::time::Instant::now();
    let result = request.await;
    metrics::histogram!("store_request_seconds", "operation" => operation).record(start.elapsed().as_secs_f64());
    if let Err(error) = &result
        && !matches!(error, NotFound { .. } | AlreadyExists { .. })
    {
        metrics::counter!("store_request_errors_total", "operation" => operation).increment(1);
    }
    result
}
