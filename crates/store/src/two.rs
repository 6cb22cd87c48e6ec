//! Two stores as one (docs/rfcs/0008-two-stores.md): the cache store, where streams are written, behind the vault store, where
//! everything else lies and what an applier has promoted is copied to. This is the one place that knows of both; whoever
//! holds a [`Store`] reads and writes one layout.
//!
//! ```text
//!  machine/<m>/stream/…     read: the vault store, then the cache store where it is absent there
//!                           created: in the cache store (an epoch that recovery opens to end a stream)
//!  everything else          the vault store alone
//! ```
//! What must hold: an absent object was absent in both, so that a look still means that no higher epoch exists. That the cache
//! store did not answer is an error and never an absence. Nor is it an absence when the whole cache store is gone, which
//! object stores answer as they answer for one object: an epoch counts as absent only if the cache store still holds the first
//! epoch of that very log. Objects are created once, so it does not matter which of two copies is read; both are checked alike.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::error::CacheRequest;
use crate::{Created, Store, StoreError};

/// The cache store behind a vault store.
pub(crate) struct Cache {
    store: Store,
    /// First epochs of logs, as the vault store holds them: they never change.
    firsts: Mutex<BTreeMap<String, Bytes>>,
}

impl Store {
    /// This store as the vault store of streams that are written to `cache`.
    pub fn with_cache(mut self, cache: Store) -> Self {
        assert!(self.cache.is_none() && cache.cache.is_none(), "a vault store has one cache store, which has none");
        self.cache = Some(Arc::new(Cache { store: cache, firsts: Mutex::default() }));
        self
    }

    /// The cache store, when it is another one.
    pub fn cache(&self) -> Option<&Store> {
        self.cache.as_ref().map(|cache| &cache.store)
    }

    /// This store alone, without a cache store behind it.
    pub fn vault(&self) -> Store {
        let mut vault = self.clone();
        vault.cache = None;
        vault
    }

    /// An object of a stream as the cache store has it; with one store, as [`Store::get`] has it.
    pub async fn get_of_cache(&self, path: &str) -> Result<Option<Bytes>, StoreError> {
        match self.cache() {
            None => self.get_here(path).await,
            Some(cache) => cache.get_here(path).await.map_err(|error| self.of_cache(error)),
        }
    }

    /// Creates `path` if absent with exactly these bytes. After anything but clean success reads back and compares byte
    /// for byte (rule 7).
    ///
    /// An error never proves that nothing was written: a request that timed out, here or in the retries of the client
    /// below, may land minutes later. So an absent object is put again with the same bytes a few times, which ends in
    /// clean success, in our own bytes, or in another's; and when it does not, the error says so. After an error the
    /// caller may retry the same bytes at the same path or abandon the path for good, and nothing else.
    /// Errors: `Unavailable` or `CacheUnavailable` (the store answered neither the create nor the reading back, or refused the
    /// create), `Unclear` (the store can be read and holds nothing there, yet did not take the object either).
    pub async fn create(&self, path: &str, parts: Vec<Bytes>) -> Result<Created, StoreError> {
        match self.cache_of(path) {
            None => self.create_here(path, parts).await,
            Some(cache) => cache.create_here(path, parts).await.map_err(|error| self.of_cache(error)),
        }
    }

    /// The whole object, or none. Refuses objects over `OBJECT_BYTES_MAX`.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>, StoreError> {
        let found = self.get_here(path).await?;
        let (None, Some(cache)) = (&found, self.cache_of(path)) else { return Ok(found) };
        let found = cache.get_here(path).await.map_err(|error| self.of_cache(error))?;
        if found.is_none() {
            self.confirm_absence(path).await?;
        }
        Ok(found)
    }

    /// Bytes `start..end`, cut at the object's end; none when there is no object. Empty when start is at or past the end.
    pub async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let found = self.get_range_here(path, range.clone()).await?;
        let (None, Some(cache)) = (&found, self.cache_of(path)) else { return Ok(found) };
        cache.get_range_here(path, range).await.map_err(|error| self.of_cache(error))
    }

    /// Paths below the folder `prefix`, whole names only (`machine/db` and `machine/db/` leave out `machine/db-2`), with
    /// their sizes, in order. For display, purge and sweeping: no safety rests on it.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, StoreError> {
        let found = self.list_here(prefix).await?;
        let Some(cache) = self.cache() else { return Ok(found) };
        let theirs = cache.list_here(prefix).await.map_err(|error| self.of_cache(error))?;
        let mut all: BTreeMap<_, _> = theirs.into_iter().filter(|(path, _)| is_of_stream(path)).collect();
        all.extend(found);
        Ok(all.into_iter().collect())
    }

    /// Names of the "directories" right below `prefix`, in order.
    pub(crate) async fn list_names(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut names = self.list_names_here(prefix).await?;
        if let Some(cache) = self.cache() {
            names.extend(cache.list_names_here(prefix).await.map_err(|error| self.of_cache(error))?);
            names.sort_unstable();
            names.dedup();
        }
        Ok(names)
    }

    /// Makes durable that what was seen at `path` (and beside it) is there.
    ///
    /// On `file://` another process may have linked an object into place and died before it synced the directory: we see
    /// the object, and a power cut takes it away again. Nothing may rest on it before the directory is synced. Object
    /// stores show only what is durable: there this does nothing.
    pub(crate) async fn settle(&self, path: &str) -> Result<(), StoreError> {
        match self.cache_of(path) {
            Some(cache) if !self.holds_here(path).await? => {
                cache.settle_here(path).await.map_err(|error| self.of_cache(error))
            }
            _ => self.settle_here(path).await,
        }
    }

    /// The cache store, if that is where objects of this path are written.
    fn cache_of(&self, path: &str) -> Option<&Store> {
        self.cache().filter(|_| is_of_stream(path))
    }

    /// An epoch is absent in both stores: is the cache store there at all, and the one that the vault was promoted from?
    async fn confirm_absence(&self, path: &str) -> Result<(), StoreError> {
        let (Some(cache), Some(first)) = (&self.cache, first_epoch(path)) else { return Ok(()) };
        let known = || cache.firsts.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = known().get(&first).cloned();
        let ours = match ours {
            Some(ours) => ours,
            // Nothing was promoted yet.
            None => match self.get_here(&first).await? {
                None => return Ok(()),
                Some(ours) => known().entry(first.clone()).or_insert(ours).clone(),
            },
        };
        match cache.store.get_here(&first).await.map_err(|error| self.of_cache(error))? {
            Some(theirs) if theirs == ours => Ok(()),
            _ => Err(StoreError::CacheLost { cache: cache.store.name(), vault: self.name(), path: first }),
        }
    }

    /// What the cache store failed with, so that it says which store failed and what can be done without it.
    fn of_cache(&self, error: StoreError) -> StoreError {
        match (error, self.cache()) {
            (StoreError::Unavailable { operation, path, source }, Some(cache)) => {
                let (cache, vault) = (cache.name(), self.name());
                let request = Box::new(CacheRequest { cache, vault, operation, path });
                StoreError::CacheUnavailable { request, source }
            }
            (error, _) => error,
        }
    }
}

/// Whether a path is of a machine's stream.
fn is_of_stream(path: &str) -> bool {
    let mut parts = path.split('/');
    (parts.next(), parts.next().is_some(), parts.next()) == (Some("machine"), true, Some("stream"))
}

/// The first epoch of the log that this is an epoch of.
fn first_epoch(path: &str) -> Option<String> {
    let (folder, _) = path.rsplit_once('/')?;
    let mut above = folder.rsplit('/');
    let of_stream = (above.next(), above.next()) == (Some("epoch"), Some("stream"));
    of_stream.then(|| format!("{folder}/{:016x}", 1))
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    const FIRST: &str = "machine/db/stream/epoch/0000000000000001";
    const SECOND: &str = "machine/db/stream/epoch/0000000000000002";
    const SLOT: &str = "machine/db/stream/seg/0000000000000001/0000000000000001";
    const MANIFEST: &str = "machine/db/manifest/epoch/0000000000000001";

    fn memory() -> Store {
        Store::from_object_store(Arc::new(InMemory::new()))
    }

    async fn put(store: &Store, path: &str, bytes: &'static [u8]) {
        assert_eq!(store.create(path, vec![bytes.into()]).await.expect("created"), Created::Ours);
    }

    #[tokio::test]
    async fn streams_are_written_to_the_cache_and_read_from_both_and_all_else_is_in_the_vault() {
        let (vault, cache) = (memory(), memory());
        let both = vault.clone().with_cache(cache.clone());
        put(&both, SLOT, b"segment").await;
        put(&both, MANIFEST, b"manifest").await;
        assert_eq!((vault.get(SLOT).await.expect("read"), cache.get(MANIFEST).await.expect("read")), (None, None));
        put(&cache, MANIFEST, b"of another applier").await;
        for (path, bytes) in [(SLOT, &b"segment"[..]), (MANIFEST, b"manifest")] {
            assert_eq!(both.get(path).await.expect("read").as_deref(), Some(bytes));
            assert_eq!(both.get_range(path, 0..3).await.expect("read").as_deref(), Some(&bytes[..3]));
        }
        let listed = |store: Store| async move { store.list("machine").await.expect("listed").len() };
        assert_eq!((listed(both.clone()).await, listed(both.vault()).await, listed(cache.clone()).await), (2, 1, 2));
        put(&vault, SLOT, b"segment").await;
        assert_eq!(listed(both.clone()).await, 2, "a copy is listed once");
        cache.delete(SLOT).await.expect("deleted");
        assert_eq!(both.get(SLOT).await.expect("read").as_deref(), Some(&b"segment"[..]));
        both.delete(SLOT).await.expect("deleted");
        assert_eq!(both.get(SLOT).await.expect("read"), None);
    }

    #[tokio::test]
    async fn an_epoch_is_absent_only_while_the_cache_is_the_one_that_was_promoted_from() {
        let (vault, cache) = (memory(), memory());
        let both = vault.clone().with_cache(cache.clone());
        assert_eq!(both.get(FIRST).await.expect("nobody wrote yet"), None);
        put(&cache, FIRST, b"first").await;
        assert_eq!(both.get(SECOND).await.expect("nothing was promoted yet"), None);
        put(&vault, FIRST, b"first").await;
        assert_eq!(both.get(SECOND).await.expect("the cache is as it was"), None);
        cache.delete(FIRST).await.expect("deleted");
        let lost = |error: StoreError| matches!(&error, StoreError::CacheLost { path, .. } if path == FIRST);
        assert!(lost(both.get(SECOND).await.expect_err("the cache is empty")));
        assert_eq!(both.get(SLOT).await.expect("nothing is concluded from a hole without a look"), None);
        put(&cache, FIRST, b"of another log").await;
        assert!(lost(both.get(SECOND).await.expect_err("the cache was replaced")));
        assert_eq!(both.vault().get(SECOND).await.expect("the vault alone is a store"), None);
    }

    #[test]
    fn what_is_of_a_stream_is_told_by_its_path() {
        assert!(is_of_stream(SLOT) && is_of_stream(FIRST) && is_of_stream("machine/db/stream"));
        for path in [MANIFEST, "vault", "machine", "machine/stream", "machine/db/map/stream", "probe/stream/stream"] {
            assert!(!is_of_stream(path), "{path}");
        }
        assert_eq!(first_epoch(SECOND).as_deref(), Some(FIRST));
        assert_eq!((first_epoch(SLOT), first_epoch(MANIFEST)), (None, None));
    }
}
