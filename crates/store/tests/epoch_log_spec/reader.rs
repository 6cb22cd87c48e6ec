//! A reader of the stream: rule 4, with rule 5 at every hole.

use crate::walks::{Newest, ReadNewest};
use crate::world::{At, EPOCHS, Object, Point, Rule, World};

/// The accepted end of an epoch, and the epoch that continues it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Link {
    end: u8,
    next: u8,
}

type Links = [Option<Link>; EPOCHS];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reader {
    /// Behind what was taken in last.
    at: Point,
    /// For each epoch of the accepted chain from ours up to, not including, the highest.
    links: Links,
    /// The manifest read last: reading goes on from there.
    newest: Newest,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Next,
    /// The next slot was read: does a higher epoch exist?
    Look {
        read: Option<Object>,
    },
    /// One exists: its opening decides.
    Top {
        top: u8,
    },
    /// Unless that is outdated itself.
    LookAtTop {
        top: u8,
        opening: Object,
    },
    /// Down the links from the accepted opening; `epoch` is next, `links` hold what is above.
    Chain {
        epoch: u8,
        above: Link,
        links: Links,
    },
    /// Nothing is concluded from a hole unless the newest manifest, read after seeing it, lies before it.
    Folded {
        read: ReadNewest,
        otherwise: Option<&'static str>,
    },
}

impl Reader {
    pub fn new() -> Self {
        Self::behind(Point::default())
    }

    pub fn behind(at: Point) -> Self {
        Self { at, links: [None; EPOCHS], newest: Newest::default(), phase: Phase::Next }
    }

    pub fn at(&self) -> Point {
        self.at
    }

    /// One step; true when a segment was taken in.
    pub fn step(&mut self, world: &mut World) -> bool {
        match self.phase {
            Phase::Next => match self.links[usize::from(self.at.at.epoch)] {
                Some(link) => return self.step_decided(world, link),
                None => self.phase = Phase::Look { read: world.stream.read(self.at.at.next()) },
            },
            Phase::Look { read } => return self.look(world, read),
            Phase::Top { top } => match world.stream.read(At { epoch: top, slot: 0 }) {
                Some(opening) => self.phase = Phase::LookAtTop { top, opening },
                None => self.hole(world, None),
            },
            Phase::LookAtTop { top, opening } => {
                if world.holds(Rule::LookAtTop) && world.stream.highest(top) > top {
                    self.phase = Phase::Next;
                    return false;
                }
                let above = Link { end: opening.continues.slot, next: top };
                self.chain(world, opening.continues.epoch, above, [None; EPOCHS]);
            }
            Phase::Chain { epoch, above, links } => match world.stream.read(At { epoch, slot: 0 }) {
                Some(opening) => {
                    let below = Link { end: opening.continues.slot, next: epoch };
                    let mut links = links;
                    links[usize::from(epoch)] = Some(above);
                    self.chain(world, opening.continues.epoch, below, links);
                }
                None => self.hole(world, Some("missing: an opening that a later one continues")),
            },
            Phase::Folded { mut read, otherwise } => match read.step(world) {
                None => self.phase = Phase::Folded { read, otherwise },
                Some(newest) => self.folded_or(world, newest, otherwise),
            },
        }
        false
    }

    /// Our epoch's accepted end is known: everything up to it counts without a look.
    fn step_decided(&mut self, world: &mut World, link: Link) -> bool {
        let at = self.at.at;
        if at.slot > link.end {
            world.wrong("cut off: what was read lies behind the accepted end");
            return false;
        }
        let opens = at.slot == link.end;
        let wanted = if opens { At { epoch: link.next, slot: 0 } } else { at.next() };
        match world.stream.read(wanted) {
            Some(opening) if opens => {
                if opening.says.record != self.at.record {
                    world.wrong("skip: an opening does not continue what was read");
                }
                self.at = opening.says;
                self.links[..usize::from(wanted.epoch)].fill(None);
                false
            }
            Some(segment) => self.take_in(world, segment),
            None => {
                self.hole(world, Some("missing: a slot that an accepted opening continues"));
                false
            }
        }
    }

    fn look(&mut self, world: &mut World, read: Option<Object>) -> bool {
        let epoch = self.at.at.epoch;
        let top = world.stream.highest(epoch);
        match read {
            _ if top > epoch && (world.holds(Rule::LookAfterRead) || read.is_none()) => {
                self.phase = Phase::Top { top };
                false
            }
            Some(segment) => self.take_in(world, segment),
            None => {
                self.hole(world, None);
                false
            }
        }
    }

    /// The walk down the links has come to `epoch`, which ends where `link` says.
    fn chain(&mut self, world: &mut World, epoch: u8, link: Link, mut links: Links) {
        let ours = self.at.at.epoch;
        if epoch < ours {
            return self.hole(world, Some("cut off: the accepted chain leaves our epoch out"));
        }
        if epoch > ours {
            self.phase = Phase::Chain { epoch, above: link, links };
            return;
        }
        links[usize::from(epoch)] = Some(link);
        self.links = links;
        self.phase = Phase::Next;
    }

    fn take_in(&mut self, world: &mut World, segment: Object) -> bool {
        if segment.says.record != self.at.record + 1 {
            world.wrong("skip: a record was passed over");
        }
        self.at = segment.says;
        self.phase = Phase::Next;
        world.take_in(self.at.at);
        true
    }

    fn hole(&mut self, world: &World, otherwise: Option<&'static str>) {
        self.phase = Phase::Folded { read: ReadNewest::go_on(world, self.newest), otherwise };
    }

    fn folded_or(&mut self, world: &mut World, newest: Newest, otherwise: Option<&'static str>) {
        self.newest = newest;
        self.phase = Phase::Next;
        match otherwise {
            _ if newest.folds.at > self.at.at => {
                (self.at, self.links) = (newest.folds, [None; EPOCHS]);
            }
            Some(wrong) => world.wrong(wrong),
            None => {}
        }
    }

    pub fn looks_at_top(&self) -> bool {
        matches!(self.phase, Phase::LookAtTop { .. } | Phase::Top { .. })
    }

    pub fn reads_up(&self) -> bool {
        matches!(self.phase, Phase::Folded { read, .. } if read.reads_up())
    }

    pub fn concludes(&self) -> bool {
        matches!(self.phase, Phase::Folded { read, .. } if read.concludes())
    }
}

/// Reads the newest manifest again and again, from the start or from where it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    newest: Newest,
    read: Option<ReadNewest>,
    remembers: bool,
}

impl User {
    pub fn new(remembers: bool) -> Self {
        Self { newest: Newest::default(), read: None, remembers }
    }

    pub fn step(&mut self, world: &mut World) {
        let remembers = self.remembers;
        let newest = self.newest;
        let read = self.read.get_or_insert_with(|| match remembers {
            true => ReadNewest::go_on(world, newest),
            false => ReadNewest::new(world),
        });
        if let Some(newest) = read.step(world) {
            self.read = None;
            self.newest = if remembers { newest } else { Newest::default() };
        }
    }

    pub fn reads_up(&self) -> bool {
        self.read.is_some_and(|read| read.reads_up())
    }

    pub fn concludes(&self) -> bool {
        self.read.is_some_and(|read| read.concludes())
    }
}
