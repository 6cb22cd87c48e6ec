//! Sealed bytes of objects: from the cache on disk where it has them, else from the store.
//!
//! Nothing here is trusted. What the cache gives counts as a hit only once it has opened: torn, missing, altered or foreign
//! bytes do not, so they are fetched from the store like bytes that were never there, and written over.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use store::{Store, StoreError};

use super::{ReadCache, RecoverError};

/// A store and, where there is one, the cache before it.
#[derive(Clone)]
pub(crate) struct Sealed {
    store: Store,
    cache: Option<Arc<ReadCache>>,
}

impl Sealed {
    /// Reads this store, through this cache.
    pub fn new(store: Store, cache: Option<Arc<ReadCache>>) -> Self {
        Self { store, cache }
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Opens a range of an object; none when there is no object. What is cached and does not open is read from the store.
    pub async fn open<T>(
        &self,
        path: &str,
        range: Range<u64>,
        open: impl Fn(&Bytes) -> Result<T, RecoverError>,
    ) -> Result<Option<T>, RecoverError> {
        if let Some(cached) = self.cached(path, range.clone()).await {
            let opened = open(&cached);
            self.count(opened.is_ok() as u64, opened.is_err() as u64);
            if let Ok(opened) = opened {
                return Ok(Some(opened));
            }
        }
        let Some(bytes) = self.fetch(path, range.clone()).await? else { return Ok(None) };
        let opened = open(&bytes)?;
        self.keep(path, range.start, bytes);
        Ok(Some(opened))
    }

    /// What the cache has there, cut at its end, whatever it is; none without a cache. Whoever asks says by
    /// [`Sealed::count`] what came of it.
    pub async fn cached(&self, path: &str, range: Range<u64>) -> Option<Bytes> {
        match &self.cache {
            Some(cache) => Some(cache.read(path, range).await),
            None => None,
        }
    }

    /// Counts what the cache had and had not.
    pub fn count(&self, hits: u64, misses: u64) {
        if let Some(cache) = &self.cache {
            cache.count(hits, misses);
        }
    }

    /// The same from the store; none when there is no object.
    pub async fn fetch(&self, path: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.store.get_range(path, range).await
    }

    /// Gives the cache what was fetched and has opened.
    pub fn keep(&self, path: &str, offset: u64, bytes: Bytes) {
        if let Some(cache) = &self.cache {
            cache.keep(path, offset, bytes);
        }
    }
}
