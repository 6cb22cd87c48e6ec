//! The judge: is a recovered image a prefix of what the client saw?
//!
//! It knows nothing of Farshore. Its only inputs are the client's own history (what it asked for, when it asked, when it
//! was answered, on one logical clock) and the recovered contents. It accepts an image exactly if there is a set S of
//! operations, over all disks together, with:
//!
//! 1. *prefix*: an operation answered before one in S was issued is in S itself; operations in flight at the cut may be
//!    in or out, each as a whole;
//! 2. *bounds*: everything answered before `after` is in S, nothing issued after `before` is (what a mark promises);
//! 3. *contents*: some order of S, in which whatever was answered before another was issued comes first, leaves every
//!    block as the image shows it. Concurrent operations may take either order, but one order for all blocks and disks.
//!
//! The method. A stamped block names the write that made it, so that write is in S and is the last in S on its block. A
//! block of zeros names nobody: it is untouched in S, or a zeroing is the last there. S is grown from what is forced:
//!
//! ```text
//! T = latest issue of anything in S       everything answered before T is in S (rule 1, for all at once)
//! a zero block with something of S on it  if no zeroing in S can be last there, the first one that could joins S
//! repeat until nothing changes            then: last on each block? within bounds? one order for all? (a topological sort)
//! ```
//! S stays within every set that could explain the image, so a failure is a proof; and what passes has been verified as a
//! whole, so a pass is one too. The first needs that a zeroing is never in flight together with an overlapping operation,
//! which [`super::workload`] keeps and [`check`] verifies.
//!
//! An operation answered with an error, or never answered, may have happened or not, block by block, at any later time.

use std::collections::BTreeSet;
use std::fmt;

use super::stamps::{self, BLOCK_BYTES, Content};

/// A moment on the client's logical clock: each event has its own.
pub type Tick = u64;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Stamps blocks; the number in the stamps is the operation's index in the history.
    Write,
    /// Zeroes or trims blocks; reads zeros afterwards.
    Zero,
}

/// One operation as the client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Index of the disk.
    pub disk: u32,
    /// First block.
    pub block: u64,
    /// Number of blocks, at least 1.
    pub blocks: u64,
    /// What.
    pub action: Action,
    /// Before it was sent.
    pub issued: Tick,
    /// After its answer came, or after it was given up.
    pub answered: Tick,
    /// Whether the answer was success.
    pub acknowledged: bool,
}

impl Operation {
    fn overlaps(&self, other: &Operation) -> bool {
        self.disk == other.disk && self.block < other.block + other.blocks && other.block < self.block + self.blocks
    }

    /// Whether this surely happened before `other` began.
    fn precedes(&self, other: &Operation) -> bool {
        self.acknowledged && self.answered < other.issued
    }
}

/// Everything the client did, indexed by write number.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The operations.
    pub operations: Vec<Operation>,
}

/// The contents of all disks, block by block.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// For each disk, for each block.
    pub disks: Vec<Vec<Content>>,
}

impl Image {
    /// Appends the blocks of one disk from its bytes; the last block may not be cut.
    pub fn blocks_of(bytes: &[u8]) -> Vec<Content> {
        bytes.chunks(BLOCK_BYTES).map(stamps::read).collect()
    }
}

/// What is known of the position from outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Everything acknowledged before this must be in it.
    pub after: Option<Tick>,
    /// Nothing issued after this may be in it.
    pub before: Option<Tick>,
}

/// The proof: how much of the history the image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Operations in it.
    pub included: usize,
    /// Operations not in it.
    pub excluded: usize,
    /// Blocks looked at.
    pub blocks: u64,
}

/// Why an image is no prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// The history itself breaks the rules of the check.
    History(String),
    /// The block is torn, damaged, or holds what nobody wrote.
    Foreign {
        /// Disk.
        disk: u32,
        /// Block.
        block: u64,
    },
    /// The block holds another block's contents, or names a write that did not touch it.
    Misplaced {
        /// Disk.
        disk: u32,
        /// Block.
        block: u64,
    },
    /// The block holds an older write though a later one on it is in the cut.
    Stale {
        /// Disk.
        disk: u32,
        /// Block.
        block: u64,
        /// The write it shows; none for zeros.
        shows: Option<usize>,
        /// The operation that must be there.
        lacks: usize,
    },
    /// Something is in the cut that was issued after its upper bound.
    TooNew {
        /// That operation.
        operation: usize,
    },
    /// No single order of the concurrent operations explains all blocks.
    NoOrder {
        /// One operation on the circle.
        operation: usize,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::History(why) => write!(f, "the history cannot be judged: {why}"),
            Violation::Foreign { disk, block } => write!(f, "disk {disk} block {block} is torn, damaged or foreign"),
            Violation::Misplaced { disk, block } => write!(f, "disk {disk} block {block} holds what belongs elsewhere"),
            Violation::Stale { disk, block, shows: Some(shows), lacks } => {
                write!(
                    f,
                    "disk {disk} block {block} shows operation {shows}, but later operation {lacks} is in the cut"
                )
            }
            Violation::Stale { disk, block, shows: None, lacks } => {
                write!(f, "disk {disk} block {block} is zero, but operation {lacks} on it is in the cut")
            }
            Violation::TooNew { operation } => {
                write!(f, "operation {operation} was issued after the position was taken")
            }
            Violation::NoOrder { operation } => {
                write!(f, "no order of concurrent operations explains all blocks (around operation {operation})")
            }
        }
    }
}

impl std::error::Error for Violation {}

/// Judges an image.
pub fn check(history: &History, image: &Image, bounds: Bounds) -> Result<Cut, Violation> {
    let touching = Touching::of(history, image)?;
    let mut cut = Growing::new(history, bounds);
    for (disk, block, content) in touching.blocks(image) {
        match content {
            Content::Zeros => {}
            Content::Foreign => return Err(Violation::Foreign { disk, block }),
            Content::Stamped(stamp) => {
                let index = usize::try_from(stamp.write).unwrap_or(usize::MAX);
                let fits =
                    stamp.disk == disk && stamp.block == block && touching.of_block(disk, block).contains(&index);
                match history.operations.get(index) {
                    Some(op) if fits && op.action == Action::Write => cut.include(index, disk, block),
                    _ => return Err(Violation::Misplaced { disk, block }),
                }
            }
        }
    }
    grow_over_zeros(&touching, image, &mut cut)?;
    let last = last_on_each_block(&touching, image, &cut)?;
    if let Some(before) = bounds.before
        && let Some(operation) =
            (0..history.operations.len()).find(|i| cut.holds_any(*i) && history.operations[*i].issued > before)
    {
        return Err(Violation::TooNew { operation });
    }
    one_order_exists(history, &touching, &cut, &last)?;
    let included = (0..history.operations.len()).filter(|i| cut.holds_any(*i)).count();
    let blocks = image.disks.iter().map(|d| d.len() as u64).sum();
    Ok(Cut { included, excluded: history.operations.len() - included, blocks })
}

/// For each block, the operations that touch it, in order of issue.
struct Touching<'a> {
    history: &'a History,
    by_block: Vec<Vec<Vec<usize>>>,
}

impl<'a> Touching<'a> {
    fn of(history: &'a History, image: &Image) -> Result<Self, Violation> {
        let mut by_block: Vec<Vec<Vec<usize>>> = image.disks.iter().map(|d| vec![Vec::new(); d.len()]).collect();
        let mut order: Vec<usize> = (0..history.operations.len()).collect();
        order.sort_by_key(|i| history.operations[*i].issued);
        for index in order {
            let op = &history.operations[index];
            let outside = || Violation::History(format!("operation {index} lies outside the image"));
            let disk = by_block.get_mut(op.disk as usize).ok_or_else(outside)?;
            let (start, end) = (op.block as usize, op.block.saturating_add(op.blocks) as usize);
            if op.answered <= op.issued || start >= end {
                return Err(Violation::History(format!("operation {index} is empty or answered before it was issued")));
            }
            for list in disk.get_mut(start..end).ok_or_else(outside)? {
                if let Some(&before) = list.iter().find(|b| clash(&history.operations[**b], op)) {
                    let why = format!("zeroing and operation {before} / {index} overlap in time and place");
                    return Err(Violation::History(why));
                }
                list.push(index);
            }
        }
        Ok(Self { history, by_block })
    }

    fn of_block(&self, disk: u32, block: u64) -> &[usize] {
        &self.by_block[disk as usize][block as usize]
    }

    fn blocks<'b>(&self, image: &'b Image) -> impl Iterator<Item = (u32, u64, Content)> + use<'b> {
        image
            .disks
            .iter()
            .zip(0u32..)
            .flat_map(|(blocks, disk)| blocks.iter().zip(0u64..).map(move |(content, block)| (disk, block, *content)))
    }
}

/// A zeroing in flight together with an overlapping operation: the check could not tell who came last. `earlier` was
/// issued first.
fn clash(earlier: &Operation, later: &Operation) -> bool {
    let zeroing = earlier.action == Action::Zero || later.action == Action::Zero;
    zeroing && earlier.answered > later.issued && earlier.overlaps(later)
}

/// The set S while it grows. Operations that succeeded are in as a whole; others block by block.
struct Growing<'a> {
    history: &'a History,
    /// Everything acknowledged before this is in.
    horizon: Tick,
    /// Forced in one by one (index → true); an unacknowledged one only on the blocks of `partial`.
    forced: Vec<bool>,
    partial: BTreeSet<(usize, u32, u64)>,
}

impl<'a> Growing<'a> {
    fn new(history: &'a History, bounds: Bounds) -> Self {
        let forced = vec![false; history.operations.len()];
        Self { history, horizon: bounds.after.unwrap_or(0), forced, partial: BTreeSet::new() }
    }

    fn include(&mut self, index: usize, disk: u32, block: u64) {
        let op = &self.history.operations[index];
        self.horizon = self.horizon.max(op.issued);
        self.forced[index] = true;
        if !op.acknowledged {
            self.partial.insert((index, disk, block));
        }
    }

    /// Whether S holds any part of it.
    fn holds_any(&self, index: usize) -> bool {
        let op = &self.history.operations[index];
        self.forced[index] || (op.acknowledged && op.answered < self.horizon)
    }

    /// Whether S holds what it does to this block.
    fn holds(&self, index: usize, disk: u32, block: u64) -> bool {
        let whole = self.history.operations[index].acknowledged;
        if whole { self.holds_any(index) } else { self.partial.contains(&(index, disk, block)) }
    }
}

/// Whether `last` may be the last of S on the block: nothing of S there surely comes after it.
fn may_be_last(touching: &Touching<'_>, cut: &Growing<'_>, disk: u32, block: u64, last: usize) -> Result<(), usize> {
    let ops = &touching.history.operations;
    let later = touching.of_block(disk, block).iter().copied();
    later.into_iter().find(|i| cut.holds(*i, disk, block) && ops[last].precedes(&ops[*i])).map_or(Ok(()), Err)
}

/// Adds the zeroings that blocks of zeros call for. Each round adds at least one operation or is the last.
fn grow_over_zeros(touching: &Touching<'_>, image: &Image, cut: &mut Growing<'_>) -> Result<(), Violation> {
    loop {
        let mut changed = false;
        for (disk, block, content) in touching.blocks(image) {
            if content != Content::Zeros {
                continue;
            }
            let here = touching.of_block(disk, block);
            let Some(lacks) = here.iter().copied().find(|i| cut.holds(*i, disk, block)) else { continue };
            let zeroings = || here.iter().copied().filter(|i| touching.history.operations[*i].action == Action::Zero);
            let can = |i: &usize| may_be_last(touching, cut, disk, block, *i).is_ok();
            if zeroings().any(|i| cut.holds(i, disk, block) && can(&i)) {
                continue;
            }
            let Some(joins) = zeroings().find(can) else {
                let lacks = here.iter().copied().rfind(|i| cut.holds(*i, disk, block)).unwrap_or(lacks);
                return Err(Violation::Stale { disk, block, shows: None, lacks });
            };
            cut.include(joins, disk, block);
            changed = true;
        }
        if !changed {
            return Ok(());
        }
    }
}

/// The operation of S that each touched block shows, after making sure that it may be the last there.
fn last_on_each_block(
    touching: &Touching<'_>,
    image: &Image,
    cut: &Growing<'_>,
) -> Result<Vec<(u32, u64, usize)>, Violation> {
    let mut last = Vec::new();
    for (disk, block, content) in touching.blocks(image) {
        let here = touching.of_block(disk, block);
        let shown = match content {
            Content::Stamped(stamp) => Some(stamp.write as usize),
            Content::Foreign => None,
            Content::Zeros => here.iter().copied().rfind(|i| {
                let zeroing = touching.history.operations[*i].action == Action::Zero;
                zeroing && cut.holds(*i, disk, block) && may_be_last(touching, cut, disk, block, *i).is_ok()
            }),
        };
        let Some(shown) = shown else { continue };
        if let Err(lacks) = may_be_last(touching, cut, disk, block, shown) {
            return Err(Violation::Stale { disk, block, shows: Some(shown), lacks });
        }
        last.push((disk, block, shown));
    }
    Ok(last)
}

/// Rule 3 for all blocks together: "comes before the last one on its block" and "was answered before the other was
/// issued" have no circle. The second relation is dense, so time itself is put into the graph: a chain of ticks, each
/// operation hanging between its issue and its answer.
fn one_order_exists(
    history: &History,
    touching: &Touching<'_>,
    cut: &Growing<'_>,
    last: &[(u32, u64, usize)],
) -> Result<(), Violation> {
    let ops = &history.operations;
    let mut ticks: Vec<Tick> = ops.iter().flat_map(|o| [o.issued, o.answered]).collect();
    ticks.sort_unstable();
    ticks.dedup();
    let tick_node = |tick: Tick| ops.len() + ticks.partition_point(|t| *t < tick);
    let nodes = ops.len() + ticks.len();
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    let chain = after.iter_mut().enumerate().skip(ops.len()).take(ticks.len().saturating_sub(1));
    chain.for_each(|(node, next)| next.push(node + 1));
    for (index, op) in ops.iter().enumerate().filter(|(i, _)| cut.holds_any(*i)) {
        after[tick_node(op.issued)].push(index);
        if op.acknowledged {
            after[index].push(tick_node(op.answered));
        }
    }
    for (disk, block, shown) in last {
        let here = touching.of_block(*disk, *block).iter();
        for other in here.filter(|i| *i != shown && cut.holds(**i, *disk, *block)) {
            // An operation that may have happened on some blocks only has no one place in the order to be held to.
            if ops[*other].acknowledged {
                after[*other].push(*shown);
            }
        }
    }
    match circle(&after) {
        Some(operation) => Err(Violation::NoOrder { operation: operation.min(ops.len().saturating_sub(1)) }),
        None => Ok(()),
    }
}

/// A node that no topological order can place, operations before ticks.
fn circle(after: &[Vec<usize>]) -> Option<usize> {
    let mut waits = vec![0usize; after.len()];
    after.iter().flatten().for_each(|n| waits[*n] += 1);
    let mut ready: Vec<usize> = (0..after.len()).filter(|n| waits[*n] == 0).collect();
    while let Some(node) = ready.pop() {
        for next in &after[node] {
            waits[*next] -= 1;
            if waits[*next] == 0 {
                ready.push(*next);
            }
        }
    }
    waits.iter().position(|w| *w > 0)
}

#[cfg(test)]
#[path = "oracle_tests.rs"]
mod tests;
