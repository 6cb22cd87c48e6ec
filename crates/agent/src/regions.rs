//! What the agent knows of each region of one disk: whether its bit must stand in the dirty map, and why.
//!
//! Two reasons are kept apart. A region is *active* while a write (or drain read) in it is in flight, not `stored`, or
//! not covered by a later FLUSH of the source. It is *to drain* when the log misses something of it. The bit in the map
//! is their union, and what must hold is:
//!
//! ```text
//! set      durable in the map file  ≤  before the first write in the region is submitted
//! cleared  only if  in flight = 0  and  last seq ≤ stored  and  last completion ≤ flushed  and  not to drain
//! ```
//! `last completion` is the region's generation: a count of completions on the disk. A FLUSH covers what had completed
//! when it was issued, never what completed while it ran. This file is pure: no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};

use model::{Extent, Seq};
use probe::{Rule, Rules};

use crate::bits::BitSet;

/// Number of a commit of the map file; a region set in one is durable when that commit is.
pub(crate) type Batch = u64;

/// Why a region is active.
#[derive(Debug, Clone, Copy, Default)]
struct Active {
    in_flight: u32,
    last_seq: Seq,
    /// The completion that touched the region last: its generation.
    last_completion: u64,
}

/// The regions of one disk.
#[derive(Debug)]
pub(crate) struct Regions {
    size: u64,
    region_bytes: u64,
    /// The bits as the map file is to have them.
    image: BitSet,
    to_drain: BitSet,
    /// Taken by the drainer and not yet sent: still owed to the log.
    draining: BTreeSet<u64>,
    /// To be read past the page cache, because a FLUSH failed.
    past_cache: BitSet,
    active: BTreeMap<u64, Active>,
    /// Set in `image` but not yet durable, and the commit that makes them so.
    pending: BTreeMap<u64, Batch>,
    /// Pages of the map file whose bits changed since they were last taken for writing.
    changed_pages: BTreeSet<u64>,
    regions_per_page: u64,
    completions: u64,
    flushed: u64,
    completions_at_last_clearing: u64,
    /// Bits cleared that the file still has set: not yet taken for writing, and being written.
    cleared: u64,
    clearing: u64,
    /// The safety rules in force.
    rules: Rules,
}

impl Regions {
    /// A disk whose map says `image`; every set bit is to drain, since whoever set it is no more.
    pub(crate) fn new(size: u64, region_bytes: u64, image: BitSet, regions_per_page: u64) -> Self {
        debug_assert_eq!(image.len(), size.div_ceil(region_bytes), "one bit for each region");
        Regions {
            size,
            region_bytes,
            to_drain: image.clone(),
            image,
            draining: BTreeSet::new(),
            past_cache: BitSet::new(size.div_ceil(region_bytes)),
            active: BTreeMap::new(),
            pending: BTreeMap::new(),
            changed_pages: BTreeSet::new(),
            regions_per_page,
            completions: 0,
            flushed: 0,
            completions_at_last_clearing: 0,
            cleared: 0,
            clearing: 0,
            rules: Rules::ALL,
        }
    }

    /// The same under these safety rules.
    pub(crate) fn with_rules(self, rules: Rules) -> Self {
        Regions { rules, ..self }
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whoever left these bits may have died between a failed flush and the drain that it asked for, and the page cache
    /// outlives a process: what is to drain now is read past it.
    pub(crate) fn doubting_the_cache(self) -> Self {
        Regions { past_cache: self.to_drain.clone(), ..self }
    }

    /// Bytes of a region.
    pub(crate) fn region_bytes(&self) -> u64 {
        self.region_bytes
    }

    /// The bits as the map file is to have them.
    pub(crate) fn image(&self) -> &BitSet {
        &self.image
    }

    /// The range of a region; the last may be shorter.
    pub(crate) fn extent(&self, region: u64) -> Extent {
        let offset = region * self.region_bytes;
        Extent::new(offset, self.region_bytes.min(self.size - offset)).expect("disks and regions are whole sectors")
    }

    fn touched(&self, extent: Extent) -> std::ops::RangeInclusive<u64> {
        extent.offset() / self.region_bytes..=(extent.end() - 1) / self.region_bytes
    }

    fn set_bit(&mut self, region: u64, batch: Batch) {
        if self.image.set(region) {
            self.pending.insert(region, batch);
            self.changed_pages.insert(region / self.regions_per_page);
        }
    }

    /// A write is about to be submitted. Returns the commit it must wait for, if any of its regions is not durably set.
    pub(crate) fn begin(&mut self, extent: Extent, open_batch: Batch) -> Option<Batch> {
        let mut wait = None;
        for region in self.touched(extent) {
            self.active.entry(region).or_default().in_flight += 1;
            self.set_bit(region, open_batch);
            wait = wait.max(self.pending.get(&region).copied());
        }
        wait
    }

    /// The write completed: `sequenced` under a number, or not, and then its regions are to drain.
    pub(crate) fn complete(&mut self, extent: Extent, sequenced: Option<Seq>) {
        self.completions += 1;
        for region in self.touched(extent) {
            let active = self.active.entry(region).or_default();
            active.in_flight = active.in_flight.checked_sub(1).expect("each completion follows one begin");
            active.last_completion = self.completions;
            match sequenced {
                Some(seq) => active.last_seq = active.last_seq.max(seq),
                None => {
                    self.to_drain.set(region);
                }
            }
        }
    }

    /// A drain read of the region got the number `seq`: it holds the region as a write would.
    pub(crate) fn drained(&mut self, extent: Extent, seq: Seq) {
        self.completions += 1;
        for region in self.touched(extent) {
            let active = self.active.entry(region).or_default();
            active.last_completion = self.completions;
            active.last_seq = active.last_seq.max(seq);
        }
    }

    /// Marks what a compare found different. Returns the commit that makes it durable.
    pub(crate) fn mark_to_drain(&mut self, extent: Extent, open_batch: Batch) -> Option<Batch> {
        let mut wait = None;
        for region in self.touched(extent) {
            self.set_bit(region, open_batch);
            self.to_drain.set(region);
            wait = wait.max(self.pending.get(&region).copied());
        }
        wait
    }

    /// What a FLUSH issued now will cover.
    pub(crate) fn flush_ticket(&self) -> u64 {
        self.completions
    }

    /// The FLUSH with this ticket succeeded.
    pub(crate) fn flush_succeeded(&mut self, ticket: u64) {
        self.flushed = self.flushed.max(ticket);
    }

    /// A FLUSH failed: whatever was written since the last good one may be gone from the cache without being on the
    /// disk. Returns how many regions that are.
    pub(crate) fn flush_failed(&mut self) -> u64 {
        let unsure = |a: &Active| a.in_flight > 0 || a.last_completion > self.flushed;
        let regions: Vec<u64> = self.active.iter().filter(|(_, a)| unsure(a)).map(|(region, _)| *region).collect();
        for &region in &regions {
            self.to_drain.set(region);
            self.past_cache.set(region);
        }
        regions.len() as u64
    }

    /// The incarnation ended: everything it had not heard to be stored is to drain.
    pub(crate) fn incarnation_ended(&mut self, stored: Seq) {
        for (region, active) in &mut self.active {
            if active.last_seq > stored {
                self.to_drain.set(*region);
            }
            active.last_seq = Seq::ZERO;
        }
    }

    /// Takes the first region to drain at or behind `from`, going round once.
    pub(crate) fn take_to_drain(&mut self, from: u64) -> Option<u64> {
        let region = self.to_drain.next(from).or_else(|| self.to_drain.next(0))?;
        self.to_drain.clear(region);
        self.draining.insert(region);
        // The bit in the map stays until the drain read is stored and flushed, like that of any write.
        self.active.entry(region).or_default();
        Some(region)
    }

    /// Whether the region must be read past the cache; asked once for each drain of it.
    pub(crate) fn take_past_cache(&mut self, region: u64) -> bool {
        self.past_cache.clear(region)
    }

    /// The drainer is done with a region: sent, or given back to be drained again.
    pub(crate) fn drain_finished(&mut self, region: u64, sent: bool, read_past_cache: bool) {
        self.draining.remove(&region);
        let completions = self.completions;
        let active = self.active.entry(region).or_default();
        active.last_completion = active.last_completion.max(completions);
        if !sent {
            self.to_drain.set(region);
            if read_past_cache {
                self.past_cache.set(region);
            }
        }
    }

    /// Regions still owed to the log.
    pub(crate) fn owed(&self) -> u64 {
        self.to_drain.ones() + self.draining.len() as u64
    }

    /// Bytes still owed to the log.
    pub(crate) fn owed_bytes(&self) -> u64 {
        (self.owed() * self.region_bytes).min(self.size)
    }

    /// Regions whose bit may stand in the map file: what an unclean stop would drain at most.
    pub(crate) fn set_at_most(&self) -> u64 {
        (self.image.ones() + self.cleared + self.clearing).min(self.image.len())
    }

    /// Regions that are active.
    pub(crate) fn active(&self) -> usize {
        self.active.len()
    }

    /// Whether a FLUSH would make any region clearable, or let go of one that is to drain anyway.
    pub(crate) fn wants_flush(&self, stored: Seq) -> bool {
        let settled = |region: &u64, a: &Active| a.last_seq <= stored || self.to_drain.get(*region);
        let waits = |a: &Active| a.in_flight == 0 && self.unflushed(a);
        self.active.iter().any(|(region, a)| waits(a) && settled(region, a))
    }

    /// Whether a power cut might take what completed in the region last.
    fn unflushed(&self, active: &Active) -> bool {
        active.last_completion > self.flushed && self.rules.hold(Rule::FlushBeforeClear)
    }

    /// Regions to drain hold their bit by that alone, so once they are flushed nothing need be remembered of their
    /// writes: however long an outage lasts, the active set does not grow with it.
    fn forget_owed(&mut self) {
        let (to_drain, draining, flushed) = (&self.to_drain, &self.draining, self.flushed);
        self.active.retain(|region, a| {
            let owed = to_drain.get(*region) && !draining.contains(region);
            !owed || a.in_flight > 0 || a.last_completion > flushed
        });
    }

    /// Clears what may be cleared: regions idle since the last call, and the coldest others while more than `max` are
    /// active. The map file hears of it with its next commit.
    pub(crate) fn clear_clearable(&mut self, stored: Seq, max: usize) {
        self.forget_owed();
        let mut clearable: Vec<(u64, u64)> = self
            .active
            .iter()
            .filter(|(region, a)| {
                let unstored = a.last_seq > stored && self.rules.hold(Rule::StoredBeforeClear);
                let held = a.in_flight > 0 || unstored || self.unflushed(a);
                let owed = self.to_drain.get(**region) || self.draining.contains(region);
                !held && !owed && !self.pending.contains_key(region)
            })
            .map(|(region, a)| (a.last_completion, *region))
            .collect();
        clearable.sort_unstable();
        let over = self.active.len().saturating_sub(max);
        for (index, (completion, region)) in clearable.into_iter().enumerate() {
            if completion > self.completions_at_last_clearing && index >= over {
                break;
            }
            self.active.remove(&region);
            self.past_cache.clear(region);
            if self.image.clear(region) {
                self.cleared += 1;
                self.changed_pages.insert(region / self.regions_per_page);
            }
        }
        self.completions_at_last_clearing = self.completions;
    }

    /// For a clean stop: clears everything that is settled, however warm.
    pub(crate) fn clear_all_settled(&mut self, stored: Seq) {
        self.clear_clearable(stored, 0);
    }

    /// Pages whose bits changed since they were taken last; taking them is a promise to write them.
    pub(crate) fn take_changed_pages(&mut self) -> BTreeSet<u64> {
        self.clearing += std::mem::take(&mut self.cleared);
        std::mem::take(&mut self.changed_pages)
    }

    /// Whether any page waits to be written, and whether one of them sets a bit.
    pub(crate) fn pages_waiting(&self) -> (bool, bool) {
        (!self.changed_pages.is_empty(), !self.pending.is_empty())
    }

    /// Every commit up to `batch` is durable.
    pub(crate) fn committed(&mut self, batch: Batch) {
        self.pending.retain(|_, waits_for| *waits_for > batch);
        self.clearing = 0;
    }

    /// Whether nothing at all is owed, in flight, unstored or unflushed: what a clean stop needs.
    pub(crate) fn is_clean(&self, stored: Seq) -> bool {
        let settled = |a: &Active| a.in_flight == 0 && a.last_seq <= stored && a.last_completion <= self.flushed;
        self.owed() == 0 && self.active.values().all(settled)
    }

    /// Writes in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.active.values().map(|a| u64::from(a.in_flight)).sum()
    }
}

#[cfg(test)]
#[path = "regions_tests.rs"]
mod tests;
