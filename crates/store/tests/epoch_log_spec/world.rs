//! What all parties share: two logs in a store, requests under way, and what only an observer of everything can know.
//!
//! ```text
//! world ─┬─ stream    owners[epoch]   cells[epoch][slot] = {first bytes ever written, present now?}
//!        ├─ manifest  the same
//!        ├─ flights   requests that were sent and have not arrived: each may arrive at any time, or never
//!        └─ observed  acknowledged, read, folded: what was promised to somebody
//! ```
//! A store lets an object be created if absent, read, and deleted, each in one step. Nobody is told whether a request
//! that is under way will arrive. Sizes are small and fixed: the point is every order of events, not many events.

use std::hash::{Hash, Hasher};

/// Epochs 0 to 7 of each log. Epoch 0 is the start: nobody owns it and nothing lies there.
pub const EPOCHS: usize = 8;

/// The opening and seven slots: a set of slots is one byte.
pub const SLOTS: usize = 8;

/// The rules, as RFC 0001 numbers them, and each of them removable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// 1: an epoch number is never passed over.
    NeverSkip,
    /// 7: what an unclear create left is compared, not trusted.
    CompareDoubt,
    /// 3: a writer looks before it acknowledges.
    LookBeforeAck,
    /// 3: slots are acknowledged in order.
    AckInOrder,
    /// 4: a slot counts once a look made after reading it finds no higher epoch.
    LookAfterRead,
    /// 4: the highest opening counts once a look made after reading it finds nothing above.
    LookAtTop,
    /// 5: a hole is the end only if the manifest, read after seeing it, does not lie past it.
    RecheckHole,
    /// 5: in the manifest log, a hole is the end only if no higher epoch is opened.
    RecheckManifestHole,
    /// 5: after the openings above were read, one more look shows that no newer one took their place.
    SecondLookUp,
    /// 6: a manifest is acknowledged (its look made) before anything is deleted.
    AckBeforeDelete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Log {
    Stream,
    Manifest,
}

/// A place in a log; the last slot taken in. (0, 0) is the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct At {
    pub epoch: u8,
    pub slot: u8,
}

impl At {
    pub fn next(self) -> At {
        At { slot: self.slot + 1, ..self }
    }
}

/// A place in the stream and the last record there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Point {
    pub at: At,
    pub record: u8,
}

/// What lies in a slot. A segment holds one record and says where it ends; a manifest object says what is folded; an
/// opening also names what it continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Object {
    pub by: u8,
    pub continues: At,
    pub says: Point,
}

/// A slot as the store has it now, and as it ever was: the first object that landed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Cell {
    pub ever: Option<Object>,
    pub present: bool,
}

/// One log's objects.
#[derive(Debug, Clone)]
pub struct Objects {
    owners: [Option<u8>; EPOCHS],
    cells: [[Cell; SLOTS]; EPOCHS],
}

impl Objects {
    fn new() -> Self {
        let mut owners = [None; EPOCHS];
        owners[0] = Some(u8::MAX);
        Self { owners, cells: [[Cell::default(); SLOTS]; EPOCHS] }
    }

    pub fn owner(&self, epoch: u8) -> Option<u8> {
        self.owners.get(usize::from(epoch)).copied().flatten()
    }

    /// A look, all of it in one step. The probes that find an epoch could as well be made together with the last one,
    /// which does not: epoch objects are never deleted, so they are still there then.
    pub fn highest(&self, hint: u8) -> u8 {
        (hint..).find(|n| self.owner(n + 1).is_none()).expect("owners end")
    }

    pub fn read(&self, at: At) -> Option<Object> {
        let cell = self.cell(at);
        cell.ever.filter(|_| cell.present)
    }

    /// What was ever written there, deleted or not.
    pub fn ever(&self, at: At) -> Option<Object> {
        self.cell(at).ever
    }

    fn cell(&self, at: At) -> Cell {
        let slots = self.cells.get(usize::from(at.epoch));
        slots.and_then(|slots| slots.get(usize::from(at.slot))).copied().unwrap_or_default()
    }

    /// The lowest object at or before `through` and not before `from`.
    pub fn lowest_present(&self, from: At, through: At) -> Option<At> {
        let all = (from.epoch..=through.epoch).flat_map(|epoch| (0..SLOTS as u8).map(move |slot| At { epoch, slot }));
        all.filter(|at| (from..=through).contains(at)).find(|at| self.cell(*at).present)
    }
}

impl Hash for Objects {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.owners.hash(state);
        for (epoch, slots) in self.cells.iter().enumerate() {
            for (slot, cell) in slots.iter().enumerate().filter(|(_, cell)| cell.ever.is_some()) {
                (epoch, slot, cell).hash(state);
            }
        }
    }
}

/// A request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    Own { log: Log, epoch: u8, by: u8 },
    Put { log: Log, at: At, object: Object },
    Delete { log: Log, at: At },
}

/// How much may happen. Bounds the parties' work and the store's mischief.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Slots a writer puts, and how many of them at once.
    pub slots: u8,
    pub window: u8,
    /// Manifests a folder commits after its opening.
    pub commits: u8,
    /// PUTs that arrive a second time.
    pub duplicates: u8,
    /// Deletes whose folder does not wait for them.
    pub late_deletes: u8,
}

/// Slots of every epoch as bits.
pub type Slots = [u8; EPOCHS];

fn add(set: &mut Slots, at: At) {
    set[usize::from(at.epoch)] |= 1 << at.slot;
}

/// Every place in the set, in order.
pub fn places(set: &Slots) -> impl Iterator<Item = At> + '_ {
    let all = (0..EPOCHS as u8).flat_map(|epoch| (0..SLOTS as u8).map(move |slot| At { epoch, slot }));
    all.filter(|at| set[usize::from(at.epoch)] & (1 << at.slot) != 0)
}

/// What was promised or taken for true. No party reads it.
#[derive(Debug, Clone, Hash, Default)]
pub struct Observed {
    pub acknowledged: Slots,
    pub read: Slots,
    /// Stream positions that acknowledged manifests fold.
    pub folded: Slots,
    /// The newest of them.
    pub newest_folded: Point,
    /// The first thing that went wrong in the open.
    pub wrong: Option<&'static str>,
}

#[derive(Debug, Clone)]
pub struct World {
    pub removed: Option<Rule>,
    pub bounds: Bounds,
    pub stream: Objects,
    pub manifest: Objects,
    /// Sorted, so that equal worlds look equal.
    pub flights: Vec<Request>,
    pub observed: Observed,
    /// Whether anything above was touched since this was last cleared: only then is there something to judge.
    pub touched: bool,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { removed: _, bounds, stream, manifest, flights, observed, touched: _ } = self;
        (stream, manifest, flights, observed, bounds.duplicates, bounds.late_deletes).hash(state);
    }
}

impl World {
    pub fn new(removed: Option<Rule>, bounds: Bounds) -> Self {
        let (stream, manifest) = (Objects::new(), Objects::new());
        Self { removed, bounds, stream, manifest, flights: Vec::new(), observed: Observed::default(), touched: false }
    }

    pub fn holds(&self, rule: Rule) -> bool {
        self.removed != Some(rule)
    }

    pub fn log(&self, log: Log) -> &Objects {
        match log {
            Log::Stream => &self.stream,
            Log::Manifest => &self.manifest,
        }
    }

    fn log_mut(&mut self, log: Log) -> &mut Objects {
        match log {
            Log::Stream => &mut self.stream,
            Log::Manifest => &mut self.manifest,
        }
    }

    pub fn send(&mut self, request: Request) {
        let place = self.flights.partition_point(|other| *other <= request);
        self.flights.insert(place, request);
    }

    /// A request arrives. With `again`, a copy of it stays under way.
    pub fn arrive(&mut self, index: usize, again: bool) {
        let request = self.flights[index];
        match again {
            true => self.bounds.duplicates -= 1,
            false => _ = self.flights.remove(index),
        }
        match request {
            Request::Own { log, epoch, by } => {
                self.log_mut(log).owners[usize::from(epoch)].get_or_insert(by);
            }
            Request::Put { log, at, object } => self.create(log, at, object),
            Request::Delete { log, at } => self.delete(log, at),
        }
        self.touched = true;
    }

    fn create(&mut self, log: Log, at: At, object: Object) {
        let cell = &mut self.log_mut(log).cells[usize::from(at.epoch)][usize::from(at.slot)];
        let rewrites = *cell.ever.get_or_insert(object) != object;
        if cell.present {
            return;
        }
        cell.present = true;
        if rewrites {
            self.wrong("rewrite: a deleted slot came back with other bytes");
        }
    }

    pub fn delete(&mut self, log: Log, at: At) {
        self.log_mut(log).cells[usize::from(at.epoch)][usize::from(at.slot)].present = false;
        self.touched = true;
    }

    pub fn wrong(&mut self, what: &'static str) {
        self.observed.wrong.get_or_insert(what);
        self.touched = true;
    }

    pub fn acknowledge(&mut self, at: At) {
        add(&mut self.observed.acknowledged, at);
        self.touched = true;
    }

    pub fn take_in(&mut self, at: At) {
        add(&mut self.observed.read, at);
        self.touched = true;
    }

    pub fn acknowledge_manifest(&mut self, folds: Point) {
        add(&mut self.observed.folded, folds.at);
        self.observed.newest_folded = self.observed.newest_folded.max(folds);
        self.touched = true;
    }

    /// Rule 7, as the sender of a PUT sees it: it knows that its object landed (it puts the same bytes until it is told
    /// so), or that other bytes lie there; until then it waits.
    pub fn landed(&self, log: Log, at: At, object: Object) -> Option<Landed> {
        let ever = self.log(log).ever(at)?;
        Some(if ever == object || !self.holds(Rule::CompareDoubt) { Landed::Ours } else { Landed::Other })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landed {
    Ours,
    Other,
}
