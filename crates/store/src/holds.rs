//! Requests to hold a position (`format::hold`): a list of objects that anybody with the key may lengthen, and that the owner of the
//! manifest log reads in order.
//!
//! Request n lies at `hold/<n>`, made if absent, so each number has one request for ever and nobody needs a LIST to find the
//! next. What must hold: a number is read once, by the manifest that says so; deleting what is read changes nothing,
//! for who asks under such a number again is not answered, and asks under a higher one.

use std::sync::Arc;

use format::hold::HoldRequest;
use format::keys::Keys;
use format::object::ObjectKind;
use model::MachineName;

use crate::numbered::Numbered;
use crate::{Created, Store, StoreError};

/// Numbers tried in one request: more of them at once is an attack, or a fault.
const TRIES_MAX: u64 = 256;

/// The requests of one machine.
#[derive(Clone)]
pub struct HoldRequests {
    requests: Numbered,
}

impl HoldRequests {
    /// Those of a machine.
    pub fn new(store: Store, keys: Arc<Keys>, machine: MachineName) -> Self {
        Self { requests: Numbered::new(store, keys, ObjectKind::Hold, Some(machine)) }
    }

    /// Puts a request behind all others; `read` is the last number that a manifest says was read. Gives its number.
    /// Errors: the store's; `Unclear` when others take one number after the other.
    pub async fn ask(&self, read: u64, request: &HoldRequest) -> Result<u64, StoreError> {
        for number in read.saturating_add(1)..=read.saturating_add(TRIES_MAX) {
            match self.requests.create(number, &request.encode()).await? {
                Created::Ours => return Ok(number),
                Created::Other => {}
            }
        }
        Err(StoreError::Unclear { path: self.requests.path(read.saturating_add(TRIES_MAX)) })
    }

    /// Request n; none when nobody has asked under that number. The inner error: it is there and cannot be read.
    pub async fn read(&self, number: u64) -> Result<Option<Result<HoldRequest, StoreError>>, StoreError> {
        self.requests.read(number, HoldRequest::decode).await
    }

    /// Deletes what an acknowledged manifest has read.
    pub async fn sweep(&self, read: u64) -> Result<u64, StoreError> {
        let mut swept = 0;
        for (path, _) in self.requests.store().list(&self.requests.prefix()).await? {
            let number = path.rsplit('/').next().and_then(|name| u64::from_str_radix(name, 16).ok());
            if number.is_some_and(|number| number <= read && path == self.requests.path(number)) {
                self.requests.store().delete(&path).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}
