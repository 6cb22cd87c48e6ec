//! What all parties share: objects, condemn lists, the logs of each machine, requests under way, pins that were asked for.
//!
//! ```text
//! world ─┬─ objects   which exist; which the index of a process server may know
//!        ├─ lists     lists[n - 1] = what condemn list n names; a number is won by whoever creates it
//!        ├─ machines  stream: segments, each refers to some objects     manifest: what it names, pins, cursor, folded
//!        ├─ pins      what became of each export's request for a pin
//!        └─ flights   requests that were sent and have not arrived: each may arrive at any time, twice, or never
//! ```
//! An object's id is used once. Positions of a stream are counted: n stands for its first n openings and segments.

use std::ops::{BitOr, BitOrAssign, Sub};

use crate::log::{Entry, Log, Opening};

/// The rules of RFC 0004, each of them removable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// What pending segments refer to is marked.
    MarkPending,
    /// What segments behind a consumer's cursor refer to is marked.
    MarkCursors,
    /// What is pinned is marked.
    MarkPins,
    /// A machine's walk starts at the position of the very manifest that was marked.
    WalkFromMarked,
    /// A hole where the walk starts repeats both.
    HoleRepeats,
    /// A log that cannot be walked stops the collection.
    StopUnlessWalked,
    /// A condemn list counts as one's own only if one's own bytes lie there.
    CompareList,
    /// The registry of machines is read after the list was published.
    RegistryAfterList,
    /// The collection waits for the streams.
    WaitForStreams,
    /// The collection waits for the manifest logs.
    WaitForManifests,
    /// It marks once more after that.
    MarkAgain,
    /// Whoever creates an epoch reads the newest list afterwards.
    OpeningReadsList,
    /// A segment has seen the list under which its oldest reference was chosen.
    SeenIsOldest,
    /// What is sealed has seen no older list than what lies before it.
    SeenNeverFalls,
    /// References chosen under an older list than that are checked again.
    CheckOldAgain,
    /// A manifest commit names anew nothing that a list up to its own condemns.
    CommitNamesNoCondemned,
    /// An export reads only after its pin was acknowledged.
    OpenAfterPin,
}

/// A number of an object.
pub type ObjectId = u8;

/// A set of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Objects(u16);

impl Objects {
    pub const NONE: Self = Self(0);

    pub fn of(id: ObjectId) -> Self {
        Self(1 << id)
    }

    pub fn has(self, id: ObjectId) -> bool {
        self.0 & 1 << id != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = ObjectId> {
        (0..16).filter(move |id| self.has(*id))
    }
}

impl BitOr for Objects {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Objects {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl Sub for Objects {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// Needless at the start, and known to every index.
pub const X: ObjectId = 0;

/// Named by the manifest of the first machine at the start.
pub const Y: ObjectId = 1;

/// Exports that may be opened.
pub const EXPORTS: usize = 2;

/// What a manifest commit says, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Manifest {
    /// Position up to which the stream is folded in.
    pub folded: u8,
    /// What the machine's points need.
    pub names: Objects,
    /// What each export holds.
    pub pins: [Option<ObjectId>; EXPORTS],
    /// Position of a consumer that needs the stream from there on.
    pub cursor: Option<u8>,
}

impl Manifest {
    pub fn pinned(&self) -> Objects {
        self.pins.iter().flatten().fold(Objects::NONE, |all, id| all | Objects::of(*id))
    }

    /// The position from which the stream is needed.
    pub fn needed_from(&self) -> u8 {
        self.cursor.unwrap_or(self.folded).min(self.folded)
    }
}

#[derive(Debug, Clone, Hash)]
pub struct Machine {
    /// What each segment refers to.
    pub stream: Log<Objects>,
    /// Position up to which the stream's objects are gone.
    pub trimmed: u8,
    pub manifest: Log<Manifest>,
    /// Its logs cannot be walked for the time being.
    pub damaged: bool,
}

/// What became of an export's request for a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pin {
    None,
    Asked {
        machine: usize,
        object: ObjectId,
    },
    Acknowledged,
    /// Refused, or expired: the export is told, and may read no more.
    Ended,
}

/// A request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    Put { object: ObjectId },
    Delete { object: ObjectId },
    OpenStream { machine: usize, epoch: u8, opening: Opening<Objects> },
    Segment { machine: usize, epoch: u8, slot: u8, entry: Entry<Objects> },
    OpenManifest { machine: usize, epoch: u8, opening: Opening<Manifest> },
    Commit { machine: usize, epoch: u8, slot: u8, entry: Entry<Manifest> },
}

/// How much may happen.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Segments that a process server seals, and how many it assembles at once.
    pub slots: u8,
    pub assembles: usize,
    /// Commits of an applier after its opening.
    pub commits: u8,
    /// Objects that compaction may make, all in all.
    pub compactions: u8,
    /// Times that a log cannot be walked.
    pub damages: u8,
    /// PUTs that arrive a second time.
    pub duplicates: u8,
    /// A process server takes no new list in while it serves: its whole epoch says what its opening says (RFC 0010).
    pub one_list: bool,
}

#[derive(Debug, Clone)]
pub struct World {
    pub removed: Option<Rule>,
    pub bounds: Bounds,
    pub exists: Objects,
    /// What an index may hold: a chunk is learned once it is acknowledged in the vault.
    pub known: Objects,
    /// What ever landed: whoever sent a PUT is told so.
    pub landed: Objects,
    pub lists: Vec<Objects>,
    pub machines: Vec<Machine>,
    /// Machines in the registry: the first ones.
    pub registered: usize,
    pub pins: [Pin; EXPORTS],
    /// Sorted, so that equal worlds look equal.
    pub flights: Vec<Request>,
    /// Objects that compaction made.
    made: u8,
    /// For figures: how many objects went.
    pub deleted: u32,
    /// Whether anything was touched that is judged.
    pub touched: bool,
}

impl std::hash::Hash for World {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let Self { removed: _, bounds, exists, known, landed, lists, machines, registered, pins, flights, .. } = self;
        (exists, known, landed, lists, machines, registered, pins, flights).hash(state);
        (bounds.compactions, bounds.damages, bounds.duplicates).hash(state);
    }
}

impl World {
    pub fn new(machines: usize, removed: Option<Rule>, bounds: Bounds) -> Self {
        let both = Objects::of(X) | Objects::of(Y);
        let machine = |i| {
            let names = if i == 0 { Objects::of(Y) } else { Objects::NONE };
            let manifest = Log::new(Manifest { folded: 1, names, ..Manifest::default() });
            Machine { stream: Log::new(Objects::NONE), trimmed: 0, manifest, damaged: false }
        };
        Self {
            removed,
            bounds,
            exists: both,
            known: both,
            landed: both,
            lists: Vec::new(),
            machines: (0..machines).map(machine).collect(),
            registered: 1,
            pins: [Pin::None; EXPORTS],
            flights: Vec::new(),
            made: 0,
            deleted: 0,
            touched: false,
        }
    }

    pub fn holds(&self, rule: Rule) -> bool {
        self.removed != Some(rule)
    }

    /// Number of the newest condemn list.
    pub fn newest_list(&self) -> u8 {
        self.lists.len() as u8
    }

    /// What lists up to this one condemn.
    pub fn condemned(&self, list: u8) -> Objects {
        self.lists[..usize::from(list)].iter().fold(Objects::NONE, |all, list| all | *list)
    }

    /// An id that was never used.
    pub fn new_object(&mut self) -> ObjectId {
        self.bounds.compactions -= 1;
        self.made += 1;
        Y + self.made
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
        self.touched = true;
        match request {
            Request::Put { object } => {
                self.exists |= Objects::of(object);
                self.landed |= Objects::of(object);
            }
            Request::Delete { object } => {
                self.deleted += u32::from(self.exists.has(object));
                self.exists = self.exists - Objects::of(object);
            }
            Request::OpenStream { machine, epoch, opening } => {
                self.machines[machine].stream.land_opening(epoch, opening);
            }
            Request::Segment { machine, epoch, slot, entry } => self.machines[machine].stream.land(epoch, slot, entry),
            Request::OpenManifest { machine, epoch, opening } => {
                self.machines[machine].manifest.land_opening(epoch, opening);
            }
            Request::Commit { machine, epoch, slot, entry } => self.machines[machine].manifest.land(epoch, slot, entry),
        }
    }
}
