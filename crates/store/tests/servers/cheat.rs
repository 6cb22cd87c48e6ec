//! A store in memory that breaks one promise.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// The promise that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// None.
    Honest,
    /// A create overwrites.
    IgnoresCreate,
    /// A create of what exists is refused, and overwrites.
    ReplacesAndRefuses,
    /// A create looks first and puts then: two at once both win, a later one is refused.
    ChecksThenPuts,
    /// Of several creates at once one is told that it won, and the last one stays.
    LastOfRaceStays,
    /// There is no create-if-absent.
    HasNoCreate,
    /// Who asked for an object before it was there is told for ever that it is not.
    RemembersAbsence,
    /// Every read is of the whole object.
    IgnoresRange,
    /// A ranged read begins one byte late.
    ShiftsRange,
}

pub struct Cheat {
    inner: Arc<InMemory>,
    how: How,
    absent: Mutex<Vec<Path>>,
}

impl Cheat {
    pub fn new(inner: Arc<InMemory>, how: How) -> Self {
        Self { inner, how, absent: Mutex::default() }
    }

    async fn overwrite(&self, location: &Path, payload: PutPayload) -> Result<PutResult> {
        self.inner.put_opts(location, payload, PutOptions::default()).await
    }
}

fn exists(location: &Path) -> Error {
    Error::AlreadyExists { path: location.to_string(), source: "it is there".into() }
}

impl fmt::Display for Cheat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cheat({:?})", self.how)
    }
}

impl fmt::Debug for Cheat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for Cheat {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if opts.mode != PutMode::Create {
            return self.inner.put_opts(location, payload, opts).await;
        }
        match self.how {
            How::IgnoresCreate => self.overwrite(location, payload).await,
            How::ReplacesAndRefuses => match self.inner.head(location).await {
                Ok(_) => self.overwrite(location, payload).await.and(Err(exists(location))),
                Err(_) => self.overwrite(location, payload).await,
            },
            How::ChecksThenPuts => {
                let there = self.inner.head(location).await.is_ok();
                tokio::task::yield_now().await;
                if there { Err(exists(location)) } else { self.overwrite(location, payload).await }
            }
            How::LastOfRaceStays => {
                let there = self.inner.head(location).await.is_ok();
                tokio::task::yield_now().await;
                let won = self.inner.head(location).await.is_err();
                match (there, won) {
                    (true, _) => Err(exists(location)),
                    (false, true) => self.overwrite(location, payload).await,
                    (false, false) => self.overwrite(location, payload).await.and(Err(exists(location))),
                }
            }
            How::HasNoCreate => {
                Err(Error::NotImplemented { operation: "put_opts".to_owned(), implementer: self.to_string() })
            }
            _ => self.inner.put_opts(location, payload, opts).await,
        }
    }

    async fn get_opts(&self, location: &Path, mut options: GetOptions) -> Result<GetResult> {
        match self.how {
            How::IgnoresRange => options.range = None,
            How::ShiftsRange => {
                if let Some(GetRange::Bounded(range)) = &mut options.range {
                    *range = range.start + 1..range.end + 1;
                }
            }
            _ => {}
        }
        let remembers = self.how == How::RemembersAbsence;
        if remembers && self.absent.lock().expect("not poisoned").contains(location) {
            return Err(Error::NotFound { path: location.to_string(), source: "from the cache".into() });
        }
        let answer = self.inner.get_opts(location, options).await;
        if remembers && answer.is_err() {
            self.absent.lock().expect("not poisoned").push(location.clone());
        }
        answer
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
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
