//! What clients saw, and whether a state of the disks is a prefix of it.
//!
//! The oracle knows only issue and acknowledgement times and the contents: nothing of records or numbers. Every sector
//! written carries its operation's number. A state is consistent when no sector shows something that was overwritten by
//! an operation acknowledged before any operation shown anywhere was issued, and no operation is shown in part.

use std::collections::BTreeMap;
use std::sync::Mutex;

use model::{DiskId, Extent};

/// One operation as its client saw it.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) disk: DiskId,
    pub(super) extent: Extent,
    pub(super) zero: bool,
    pub(super) issued: u64,
    /// When it was acknowledged; never, if it failed or its client died.
    pub(super) acknowledged: Option<u64>,
    pub(super) failed: bool,
}

/// Everything clients did, by number; numbers start at 1.
#[derive(Default)]
pub(super) struct History {
    inner: Mutex<(u64, Vec<Operation>)>,
}

impl History {
    pub(super) fn issue(&self, disk: DiskId, extent: Extent, zero: bool) -> u64 {
        let mut inner = self.inner.lock().expect("no panic while held");
        inner.0 += 1;
        let issued = inner.0;
        inner.1.push(Operation { disk, extent, zero, issued, acknowledged: None, failed: false });
        inner.1.len() as u64
    }

    pub(super) fn acknowledge(&self, number: u64, ok: bool) {
        let mut inner = self.inner.lock().expect("no panic while held");
        inner.0 += 1;
        let now = inner.0;
        let operation = &mut inner.1[number as usize - 1];
        (operation.acknowledged, operation.failed) = (ok.then_some(now), !ok);
    }

    pub(super) fn operations(&self) -> Vec<Operation> {
        self.inner.lock().expect("no panic while held").1.clone()
    }
}

/// What each sector could show, found once for a history.
pub(super) struct Oracle {
    operations: Vec<Operation>,
    /// Operations that touch a sector.
    by_sector: BTreeMap<(DiskId, usize), Vec<usize>>,
}

impl Oracle {
    pub(super) fn new(operations: Vec<Operation>) -> Self {
        let mut by_sector: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, operation) in operations.iter().enumerate() {
            for sector in operation.extent.offset() / 512..operation.extent.end() / 512 {
                by_sector.entry((operation.disk, sector as usize)).or_default().push(index);
            }
        }
        Oracle { operations, by_sector }
    }

    fn before(&self, a: usize, b: usize) -> bool {
        self.operations[a].acknowledged.is_some_and(|done| done < self.operations[b].issued)
    }

    /// The operation a sector shows: of a write by its stamp; zeros could be of any zero or of the beginning.
    fn shown(&self, image: &[u8], sector: usize) -> Option<usize> {
        let bytes = &image[sector * 512..(sector + 1) * 512];
        let stamp = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        (stamp != 0).then(|| stamp as usize - 1)
    }

    /// Whether the sector's state can stand although `over` was acknowledged and covers it.
    fn may_stand_over(&self, shown: Option<usize>, key: (DiskId, usize), over: usize) -> bool {
        match shown {
            Some(writer) => writer == over || !self.before(writer, over),
            None => {
                self.operations[over].zero
                    || self.by_sector[&key]
                        .iter()
                        .any(|&z| self.operations[z].zero && z != over && !self.before(z, over))
            }
        }
    }

    /// Checks a state of all disks; says what is wrong with it.
    pub(super) fn check(&self, images: &BTreeMap<DiskId, Vec<u8>>) -> Result<(), String> {
        let shown = |key: &(DiskId, usize)| self.shown(&images[&key.0], key.1);
        for (key, touching) in &self.by_sector {
            if let Some(writer) = shown(key)
                && !touching.contains(&writer)
            {
                return Err(format!("sector {key:?} shows operation {}, which never wrote it", writer + 1));
            }
        }
        let included: std::collections::BTreeSet<usize> = self.by_sector.keys().filter_map(shown).collect();
        let latest_issue = included.iter().map(|&index| self.operations[index].issued).max().unwrap_or(0);
        for (index, operation) in self.operations.iter().enumerate() {
            let owed = operation.acknowledged.is_some_and(|done| done < latest_issue);
            let whole = included.contains(&index) && !operation.failed;
            if !owed && !whole {
                continue;
            }
            for sector in operation.extent.offset() / 512..operation.extent.end() / 512 {
                let key = (operation.disk, sector as usize);
                if !self.may_stand_over(shown(&key), key, index) {
                    let now = shown(&key).map(|i| i + 1);
                    let why = if owed { "acknowledged before something shown was issued" } else { "shown in part" };
                    return Err(format!("sector {key:?} shows {now:?} and not operation {} ({why})", index + 1));
                }
            }
        }
        Ok(())
    }
}
