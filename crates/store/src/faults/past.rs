//! What a store did lately, so that it can be seen as it was: stale listings, and reads that outlive a delete.
//!
//! Only what went through switches that share this past is known. It is bounded: the oldest is forgotten, which makes a
//! stale answer less stale and never wrong in another way.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, Extensions, GetOptions, GetResult, GetResultPayload, ObjectMeta, Result};
use tokio::time::Instant;

/// Creations remembered.
const CREATED_MAX: usize = 4096;

/// Deleted objects remembered, with their bytes.
const DELETED_MAX: usize = 256;

#[derive(Debug, Default)]
struct Lists {
    created: VecDeque<(Instant, Path)>,
    deleted: VecDeque<(Instant, Deleted)>,
}

/// An object that is gone.
#[derive(Debug, Clone)]
pub(super) struct Deleted {
    pub meta: ObjectMeta,
    pub bytes: Bytes,
}

/// Shared by all switches over one store.
#[derive(Debug, Clone, Default)]
pub(super) struct Past(Arc<Mutex<Lists>>);

impl Past {
    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A put took place. What was deleted at this path before is no longer the newest past.
    pub fn put(&self, path: &Path) {
        let mut lists = self.lists();
        lists.deleted.retain(|(_, old)| old.meta.location != *path);
        if lists.created.len() == CREATED_MAX {
            lists.created.pop_front();
        }
        lists.created.push_back((Instant::now(), path.clone()));
    }

    /// A delete took place.
    pub fn deleted(&self, path: &Path, object: Option<Deleted>) {
        let mut lists = self.lists();
        lists.created.retain(|(_, created)| created != path);
        let Some(object) = object else { return };
        if lists.deleted.len() == DELETED_MAX {
            lists.deleted.pop_front();
        }
        lists.deleted.push_back((Instant::now(), object));
    }

    /// What was created within this time.
    pub fn created_within(&self, within: Duration) -> BTreeSet<Path> {
        let lists = self.lists();
        lists.created.iter().filter(|(at, _)| at.elapsed() <= within).map(|(_, path)| path.clone()).collect()
    }

    /// Whether the object was created within this time.
    pub fn is_new(&self, path: &Path, within: Duration) -> bool {
        let is_new = |(at, created): &(Instant, Path)| at.elapsed() <= within && created == path;
        self.lists().created.iter().any(is_new)
    }

    /// What was deleted within this time.
    pub fn deleted_within(&self, within: Duration) -> Vec<Deleted> {
        let lists = self.lists();
        lists.deleted.iter().filter(|(at, _)| at.elapsed() <= within).map(|(_, object)| object.clone()).collect()
    }

    /// The object, if it was deleted within this time.
    pub fn find_deleted(&self, path: &Path, within: Duration) -> Option<Deleted> {
        self.deleted_within(within).into_iter().rfind(|object| object.meta.location == *path)
    }
}

impl Deleted {
    /// The answer that a read would have got while the object was there.
    pub fn read(self, options: &GetOptions) -> Result<GetResult> {
        let range = match &options.range {
            None => 0..self.meta.size,
            Some(range) => range
                .as_range(self.meta.size)
                .map_err(|source| Error::Generic { store: "faults", source: Box::new(source) })?,
        };
        let part = if options.head { Bytes::new() } else { self.bytes.slice(range.start as usize..range.end as usize) };
        Ok(GetResult {
            payload: body(part, None),
            meta: self.meta,
            range,
            attributes: Default::default(),
            extensions: Extensions::new(),
        })
    }
}

/// A body of these bytes, and then perhaps an error.
pub(super) fn body(bytes: Bytes, then: Option<Error>) -> GetResultPayload {
    let parts = std::iter::once(Ok(bytes)).chain(then.map(Err));
    GetResultPayload::Stream(Box::pin(futures::stream::iter(parts.collect::<Vec<_>>())))
}
