//! Requests to hold a position (`format::hold`): a list of objects that anybody with the key may lengthen, and that the owner of the
//! manifest log reads in order.
//!
//! Request n lies at `hold/<n>`, made if absent, so each number has one request for ever and nobody needs a LIST to find the
//! next. What must hold: a number is read once, by the manifest that says so; deleting what is read changes nothing,
//! for who asks under such a number again is not answered, and asks under a higher one.

use std::sync::Arc;

use bytes::Bytes;
use format::FormatError;
use format::hold::HoldRequest;
use format::keys::Keys;
use format::object::{ObjectHash, ObjectKind, Place, SmallObject, open_small, seal_small};
use model::{LogHead, MachineName};

use crate::vault::MACHINES_PREFIX;
use crate::{Created, Store, StoreError};

/// Numbers tried in one request: more of them at once is an attack, or a fault.
const TRIES_MAX: u64 = 256;

/// The requests of one machine.
#[derive(Clone)]
pub struct HoldRequests {
    store: Store,
    keys: Arc<Keys>,
    machine: MachineName,
}

impl HoldRequests {
    /// Those of a machine.
    pub fn new(store: Store, keys: Arc<Keys>, machine: MachineName) -> Self {
        Self { store, keys, machine }
    }

    fn prefix(&self) -> String {
        format!("{MACHINES_PREFIX}/{}/hold", self.machine)
    }

    fn path(&self, number: u64) -> String {
        format!("{}/{number:016x}", self.prefix())
    }

    fn place(&self, number: u64) -> Place {
        Place { machine: Some(self.machine.clone()), log: None, epoch: 0, slot: number }
    }

    /// Puts a request behind all others; `read` is the last number that a manifest says was read. Gives its number.
    /// Errors: the store's; `Unclear` when others take one number after the other.
    pub async fn ask(&self, read: u64, request: &HoldRequest) -> Result<u64, StoreError> {
        for number in read.saturating_add(1)..=read.saturating_add(TRIES_MAX) {
            match self.store.create(&self.path(number), vec![self.seal(number, request)]).await? {
                Created::Ours => return Ok(number),
                Created::Other => {}
            }
        }
        Err(StoreError::Unclear { path: self.path(read.saturating_add(TRIES_MAX)) })
    }

    fn seal(&self, number: u64, request: &HoldRequest) -> Bytes {
        let object = SmallObject {
            kind: ObjectKind::Hold,
            place: self.place(number),
            prev_hash: ObjectHash::default(),
            head: LogHead::default(),
            gc_seen: 0,
            body: &request.encode(),
        };
        seal_small(&self.keys, &object)
    }

    /// Request n; none when nobody has asked under that number. The inner error: it is there and cannot be read.
    pub async fn read(&self, number: u64) -> Result<Option<Result<HoldRequest, StoreError>>, StoreError> {
        let path = self.path(number);
        let Some(object) = self.store.get(&path).await? else { return Ok(None) };
        let opened = open_small(&self.keys, ObjectKind::Hold, &self.place(number), &object)
            .and_then(|(_, body)| HoldRequest::decode(&body));
        Ok(Some(opened.map_err(|source: FormatError| StoreError::Damaged { path, source })))
    }

    /// Deletes what an acknowledged manifest has read.
    pub async fn sweep(&self, read: u64) -> Result<u64, StoreError> {
        let mut swept = 0;
        for (path, _) in self.store.list(&self.prefix()).await? {
            let number = path.rsplit('/').next().and_then(|name| u64::from_str_radix(name, 16).ok());
            if number.is_some_and(|number| number <= read && path == self.path(number)) {
                self.store.delete(&path).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}
