//! What can go wrong with the store, grouped by what the caller must do.

use format::FormatError;

use crate::BrokenPromise;

/// What a cache store was asked for. Stores are named without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRequest {
    /// The cache store.
    pub cache: String,
    /// The vault store before it.
    pub vault: String,
    /// As of [`StoreError::Unavailable`].
    pub operation: &'static str,
    /// Object path.
    pub path: String,
}

/// An operation on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL or its credentials cannot be used: fix the configuration.
    #[error("store {url} cannot be used: {why}")]
    Url {
        /// The URL without secrets.
        url: String,
        /// Why not, and what to do.
        why: String,
    },
    /// The store does not keep a promise that no stream is safe without: use another store.
    #[error("the store at {store} {promise}")]
    Unfit {
        /// The store's name, without secrets.
        store: String,
        /// What it did, what could follow, and what to do.
        promise: BrokenPromise,
    },
    /// The store did not answer, or answered with an error: try again later. For a create this proves nothing: it may
    /// still land, so only the same bytes may be tried again at that path.
    #[error("store did not {operation} {path}")]
    Unavailable {
        /// `read`, `create`, `list`, `delete`, `sync`, `probe`.
        operation: &'static str,
        /// Object path.
        path: String,
        /// Cause.
        #[source]
        source: object_store::Error,
    },
    /// The cache store of a site with two stores did not answer: as `Unavailable`, or go on with the vault store alone.
    #[error(
        "the cache store {} did not {} {}; the vault store holds all that was promoted, and opens without the cache store: \
         --store {}",
        .request.cache,
        .request.operation,
        .request.path,
        .request.vault
    )]
    CacheUnavailable {
        /// What it was asked for.
        request: Box<CacheRequest>,
        /// Cause.
        #[source]
        source: object_store::Error,
    },
    /// The cache store is empty, or another one than the vault was promoted from: report it.
    #[error(
        "the cache store {cache} does not hold {path} as the vault store does: it was lost, emptied or replaced; all that was \
         promoted opens with --store {vault}"
    )]
    CacheLost {
        /// The cache store's name, without secrets.
        cache: String,
        /// The vault store's.
        vault: String,
        /// The first epoch of the log.
        path: String,
    },
    /// It is not known whether a create took place: the store can be read and holds nothing there, but may do so later.
    /// Retry the same bytes, or abandon the path.
    #[error("it is not known whether {path} was created")]
    Unclear {
        /// Object path.
        path: String,
    },
    /// A newer epoch exists, or other bytes lie in our own namespace: this writer must stop for good.
    #[error("fenced: {path} shows that epoch {epoch} of this log has another, newer writer")]
    Fenced {
        /// Our epoch.
        epoch: u64,
        /// What showed it.
        path: String,
    },
    /// An object is damaged, foreign or misplaced: report it.
    #[error("damaged object {path}")]
    Damaged {
        /// Object path.
        path: String,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// An object that must be there is not: report it.
    #[error("object {path} is missing, though {because}")]
    Missing {
        /// Object path.
        path: String,
        /// Why it must exist.
        because: String,
    },
    /// The key is of another vault than the store: use the right key.
    #[error(
        "this key does not open the store: store holds vault {store}, key is of vault {key}; give the key of the vault"
    )]
    WrongKey {
        /// The store's vault.
        store: String,
        /// The key's vault.
        key: String,
    },
}
