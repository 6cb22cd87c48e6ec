//! The vault's two lists (docs/rfcs/0010-sharing.md): numbered, sealed objects, each created if absent and never changed.
//!
//! ```text
//! condemn/1  condemn/2  condemn/3            which stream epochs nothing new refers to
//! registry/1 registry/2 registry/3 …         which machines may refer to segments of others
//! ```
//! What must hold: numbers have no gaps, since each is created by one who read the one before; so reading upwards to the first
//! that is absent finds all that were there when the reading began. Nothing rests on LIST. An object lies there for ever, so
//! what was read once is kept. A create whose answer is unclear is resolved by [`Store::create`], or given up: what may still
//! land says nothing false.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use format::FormatError;
use format::keys::Keys;
use format::object::{CondemnList, ObjectKind, RegistryEntry, SEES_ALL, StreamEpoch};
use model::MachineName;
use tokio::sync::Mutex;

use crate::numbered::Numbered;
use crate::{Store, StoreError};

/// Objects of one list: far more than there will be, and a bound for a store that makes them up.
const OBJECTS_MAX: u64 = 1 << 20;

/// Times others may be faster at creating the next object before we give up.
const RACES_MAX: u32 = 64;

/// What the lists up to some number condemn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condemned {
    lists: u64,
    /// By which list first.
    since: BTreeMap<StreamEpoch, u64>,
}

impl Condemned {
    /// The newest list that was read; 0 for none.
    pub fn lists(&self) -> u64 {
        self.lists
    }

    /// Whether any list that was read condemns the epoch.
    pub fn contains(&self, epoch: &StreamEpoch) -> bool {
        self.since.contains_key(epoch)
    }

    /// Whether a list up to `seen` condemns it. [`SEES_ALL`] answers for all that will ever be.
    pub fn contains_up_to(&self, epoch: &StreamEpoch, seen: u64) -> bool {
        seen == SEES_ALL || self.since.get(epoch).is_some_and(|list| *list <= seen)
    }

    /// All epochs, in order.
    pub fn epochs(&self) -> impl Iterator<Item = &StreamEpoch> {
        self.since.keys()
    }
}

#[derive(Default)]
struct Known {
    condemned: Arc<Condemned>,
    /// Machines by name, and how many entries were read.
    machines: BTreeSet<MachineName>,
    entries: u64,
}

/// The lists of a vault. Cheap to clone; clones share what was read.
#[derive(Clone)]
pub struct VaultLists {
    condemn: Numbered,
    registry: Numbered,
    known: Arc<Mutex<Known>>,
}

impl VaultLists {
    /// Nothing read yet.
    pub fn new(store: Store, keys: Arc<Keys>) -> Self {
        let list = |kind| Numbered::new(store.clone(), keys.clone(), kind, None);
        Self { condemn: list(ObjectKind::Condemn), registry: list(ObjectKind::Registry), known: Arc::default() }
    }

    /// All that is condemned by lists that were there when the call began. Errors: `Unavailable`, `Damaged`.
    pub async fn condemned(&self) -> Result<Arc<Condemned>, StoreError> {
        let mut known = self.known.lock().await;
        self.read_condemned(&mut known).await?;
        Ok(known.condemned.clone())
    }

    async fn read_condemned(&self, known: &mut Known) -> Result<(), StoreError> {
        let before = known.condemned.lists;
        while let Some(list) = self.read(&self.condemn, known.condemned.lists + 1, CondemnList::decode).await? {
            let condemned = Arc::make_mut(&mut known.condemned);
            condemned.lists += 1;
            for epoch in list.epochs {
                condemned.since.entry(epoch).or_insert(condemned.lists);
            }
        }
        if known.condemned.lists > before {
            // From here on much rests on it.
            self.condemn.settle(known.condemned.lists).await?;
        }
        Ok(())
    }

    /// Publishes the next list, unless all of it is condemned already. Gives the newest list: it, or one behind which another was
    /// faster to publish. Errors: `Unclear` and `Unavailable`, after which it may land or not; `Damaged`.
    pub async fn condemn(&self, epochs: BTreeSet<StreamEpoch>) -> Result<Arc<Condemned>, StoreError> {
        let mut known = self.known.lock().await;
        for _ in 0..RACES_MAX {
            self.read_condemned(&mut known).await?;
            let new = epochs.iter().filter(|epoch| !known.condemned.contains(epoch)).cloned();
            let list = CondemnList { epochs: new.collect() };
            if list.epochs.is_empty() {
                return Ok(known.condemned.clone());
            }
            // Read back either way: ours, or that of whoever was faster.
            self.condemn.create(known.condemned.lists + 1, &list.encode()).await?;
        }
        Err(StoreError::Unclear { path: self.condemn.path(known.condemned.lists + 1) })
    }

    /// Machines that were entered when the call began, by name. Errors: `Unavailable`, `Damaged`.
    pub async fn machines(&self) -> Result<BTreeSet<MachineName>, StoreError> {
        let mut known = self.known.lock().await;
        self.read_registry(&mut known).await?;
        Ok(known.machines.clone())
    }

    async fn read_registry(&self, known: &mut Known) -> Result<(), StoreError> {
        let before = known.entries;
        while let Some(entry) = self.read(&self.registry, known.entries + 1, RegistryEntry::decode).await? {
            known.machines.insert(entry.machine);
            known.entries += 1;
        }
        if known.entries > before {
            self.registry.settle(known.entries).await?;
        }
        Ok(())
    }

    /// Enters a machine, unless it is there. What it creates after this call, whoever reads the registry later knows of.
    /// Errors: `Unclear` and `Unavailable`, after which it may be entered or not; `Damaged`.
    pub async fn register(&self, machine: &MachineName) -> Result<(), StoreError> {
        let mut known = self.known.lock().await;
        for _ in 0..RACES_MAX {
            if known.machines.contains(machine) {
                return Ok(());
            }
            self.read_registry(&mut known).await?;
            if known.machines.contains(machine) {
                return Ok(());
            }
            let body = RegistryEntry { machine: machine.clone() }.encode();
            self.registry.create(known.entries + 1, &body).await?;
        }
        Err(StoreError::Unclear { path: self.registry.path(known.entries + 1) })
    }

    async fn read<T>(
        &self,
        list: &Numbered,
        number: u64,
        decode: impl FnOnce(&[u8]) -> Result<T, FormatError>,
    ) -> Result<Option<T>, StoreError> {
        if number > OBJECTS_MAX {
            let because = format!("a list has at most {OBJECTS_MAX} objects");
            return Err(StoreError::Missing { path: list.path(number), because });
        }
        list.read(number, decode).await?.transpose()
    }
}
