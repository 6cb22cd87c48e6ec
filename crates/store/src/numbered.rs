//! Small sealed objects under numbers, each created if absent and never changed: what lists of the vault are made of.
//!
//! Each number has one object for ever. What numbers mean, whether they have gaps, and what may be deleted is up to the list.

use std::sync::Arc;

use format::FormatError;
use format::keys::Keys;
use format::object::{ObjectHash, ObjectKind, Place, SmallObject, open_small, seal_small};
use model::{LogHead, MachineName};

use crate::vault::MACHINES_PREFIX;
use crate::{Created, Store, StoreError};

/// The objects of one list.
#[derive(Clone)]
pub(crate) struct Numbered {
    store: Store,
    keys: Arc<Keys>,
    kind: ObjectKind,
    machine: Option<MachineName>,
}

impl Numbered {
    /// Those of a machine, or of the whole vault.
    pub(crate) fn new(store: Store, keys: Arc<Keys>, kind: ObjectKind, machine: Option<MachineName>) -> Self {
        Self { store, keys, kind, machine }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Where they lie.
    pub(crate) fn prefix(&self) -> String {
        match &self.machine {
            Some(machine) => format!("{MACHINES_PREFIX}/{machine}/{}", self.kind.name()),
            None => self.kind.name().to_owned(),
        }
    }

    pub(crate) fn path(&self, number: u64) -> String {
        format!("{}/{number:016x}", self.prefix())
    }

    /// The list of a machine counts slots, that of the vault epochs.
    fn place(&self, number: u64) -> Place {
        let (epoch, slot) = if self.machine.is_some() { (0, number) } else { (number, 0) };
        Place { machine: self.machine.clone(), log: None, epoch, slot }
    }

    /// Creates one, unless another is there. Errors: as of [`Store::create`].
    pub(crate) async fn create(&self, number: u64, body: &[u8]) -> Result<Created, StoreError> {
        let object = SmallObject {
            kind: self.kind,
            place: self.place(number),
            prev_hash: ObjectHash::default(),
            head: LogHead::default(),
            gc_seen: 0,
            body,
        };
        self.store.create(&self.path(number), vec![seal_small(&self.keys, &object)]).await
    }

    /// Reads and opens one, if it is there. The inner error: it is there and cannot be opened.
    pub(crate) async fn read<T>(
        &self,
        number: u64,
        decode: impl FnOnce(&[u8]) -> Result<T, FormatError>,
    ) -> Result<Option<Result<T, StoreError>>, StoreError> {
        let path = self.path(number);
        let Some(object) = self.store.get(&path).await? else { return Ok(None) };
        let opened =
            open_small(&self.keys, self.kind, &self.place(number), &object).and_then(|(_, body)| decode(&body));
        Ok(Some(opened.map_err(|source| StoreError::Damaged { path, source })))
    }

    /// Makes one as durable as those that were created here: whoever made it may have died before its directory was synced.
    pub(crate) async fn settle(&self, number: u64) -> Result<(), StoreError> {
        self.store.settle(&self.path(number)).await
    }
}
