//! Regions against a model that remembers every operation.

use super::*;
use proptest::prelude::*;

const REGION: u64 = 64 << 10;
const COUNT: u64 = 8;

fn regions(set: &[u64]) -> Regions {
    let mut image = BitSet::new(COUNT);
    set.iter().for_each(|region| {
        image.set(*region);
    });
    Regions::new(COUNT * REGION, REGION, image, 3904)
}

fn extent(region: u64, regions: u64) -> Extent {
    Extent::new(region * REGION + 512, (regions - 1) * REGION + 1024).expect("aligned")
}

#[test]
fn a_flush_does_not_cover_what_completed_while_it_ran() {
    let mut regions = regions(&[]);
    regions.begin(extent(0, 1), 1);
    regions.committed(1);
    let ticket = regions.flush_ticket();
    regions.complete(extent(0, 1), Some(Seq(1)));
    regions.flush_succeeded(ticket);
    regions.clear_clearable(Seq(9), 0);
    assert!(regions.image().get(0), "the flush was issued before the write completed");
    regions.flush_succeeded(regions.flush_ticket());
    regions.clear_clearable(Seq(9), 0);
    assert!(!regions.image().get(0));
}

#[test]
fn a_hot_region_waits_for_nothing_and_a_cleared_one_is_cold_again() {
    let mut regions = regions(&[]);
    assert_eq!(regions.begin(extent(2, 1), 5), Some(5));
    assert_eq!(regions.begin(extent(2, 1), 6), Some(5), "the commit that carries the bit is still under way");
    regions.committed(5);
    assert_eq!(regions.begin(extent(2, 1), 6), None);
    (0..3).for_each(|_| regions.complete(extent(2, 1), Some(Seq(3))));
    regions.flush_succeeded(regions.flush_ticket());
    regions.clear_clearable(Seq(3), 0);
    assert_eq!(regions.begin(extent(2, 1), 7), Some(7));
}

#[test]
fn warm_regions_stay_until_the_bound_asks_for_the_coldest() {
    let mut regions = regions(&[]);
    for region in 0..4 {
        regions.begin(extent(region, 1), 1);
        regions.complete(extent(region, 1), Some(Seq(region + 1)));
    }
    regions.committed(1);
    regions.flush_succeeded(regions.flush_ticket());
    regions.clear_clearable(Seq(9), 3);
    assert_eq!((regions.active(), regions.image().get(0)), (3, false), "the coldest went");
    regions.clear_clearable(Seq(9), 3);
    assert_eq!(regions.active(), 0, "idle since the last look");
}

#[derive(Debug, Clone)]
enum Step {
    Begin(u64, u64),
    Complete(usize, bool),
    FlushStart,
    FlushEnd(bool),
    Stored(u64),
    Clear,
    Commit,
    Drain,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..COUNT - 2, 1u64..3).prop_map(|(region, n)| Step::Begin(region, n)),
        4 => (0usize..8, any::<bool>()).prop_map(|(n, sequenced)| Step::Complete(n, sequenced)),
        2 => Just(Step::FlushStart),
        2 => any::<bool>().prop_map(Step::FlushEnd),
        2 => (0u64..40).prop_map(Step::Stored),
        3 => Just(Step::Clear),
        3 => Just(Step::Commit),
        2 => Just(Step::Drain),
        1 => Just(Step::Restart),
    ]
}

/// One operation as the model remembers it.
#[derive(Debug, Clone)]
struct Done {
    extent: Extent,
    /// Nothing if the log misses it.
    seq: Option<Seq>,
    flushed: bool,
}

proptest! {
    /// A bit is clear only if every operation in its region is stored, flushed and not owed; and no write goes on before
    /// its bits are durable.
    #[test]
    fn no_bit_is_cleared_too_early(steps in proptest::collection::vec(step(), 1..120)) {
        let mut regions = regions(&[]);
        let (mut in_flight, mut done): (Vec<Extent>, Vec<Done>) = (vec![], vec![]);
        let (mut seq, mut stored, mut batch) = (0, Seq::ZERO, 1u64);
        let mut flush: Option<(u64, usize)> = None;
        let mut durable: BTreeSet<u64> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Begin(region, n) => {
                    let wait = regions.begin(extent(region, n), batch);
                    let all_durable = (region..region + n).all(|r| durable.contains(&r));
                    prop_assert!(wait.is_some() || all_durable, "went on without a durable bit");
                    if wait.is_some() {
                        regions.committed(batch);
                        durable = (0..COUNT).filter(|r| regions.image().get(*r)).collect();
                        batch += 1;
                    }
                    in_flight.push(extent(region, n));
                }
                Step::Complete(n, sequenced) if !in_flight.is_empty() => {
                    let extent = in_flight.remove(n % in_flight.len());
                    seq += u64::from(sequenced);
                    let given = sequenced.then_some(Seq(seq));
                    regions.complete(extent, given);
                    done.push(Done { extent, seq: given, flushed: false });
                }
                Step::FlushStart if flush.is_none() => flush = Some((regions.flush_ticket(), done.len())),
                Step::FlushEnd(ok) => if let Some((ticket, covers)) = flush.take() {
                    if ok {
                        regions.flush_succeeded(ticket);
                        done[..covers].iter_mut().for_each(|d| d.flushed = true);
                    } else {
                        regions.flush_failed();
                        // What was not flushed is owed now, as if the log missed it.
                        done.iter_mut().filter(|d| !d.flushed).for_each(|d| d.seq = None);
                    }
                },
                Step::Stored(to) => stored = stored.max(Seq(to.min(seq))),
                Step::Clear => {
                    regions.clear_clearable(stored, 0);
                    durable.retain(|r| regions.image().get(*r));
                }
                Step::Commit => { regions.committed(batch); batch += 1; durable = (0..COUNT).filter(|r| regions.image().get(*r)).collect(); }
                Step::Drain => if let Some(region) = regions.take_to_drain(0) {
                    seq += 1;
                    let whole = regions.extent(region);
                    // The model drains only quiet regions: a lock would hold a drain read back otherwise.
                    let quiet = in_flight.iter().all(|e| !e.overlaps(&whole));
                    if quiet { regions.drained(whole, Seq(seq)); }
                    regions.drain_finished(region, quiet, false);
                    if quiet {
                        for d in &mut done {
                            if d.extent.overlaps(&whole) && d.seq.is_none() && regions.extent(region) == whole
                                && d.extent.offset() / REGION == (d.extent.end() - 1) / REGION {
                                d.seq = Some(Seq(seq));
                            }
                        }
                        done.push(Done { extent: whole, seq: Some(Seq(seq)), flushed: false });
                    }
                },
                Step::Restart => {
                    regions.incarnation_ended(stored);
                    done.iter_mut().filter(|d| d.seq.is_some_and(|s| s > stored)).for_each(|d| d.seq = None);
                }
                _ => {}
            }
            for region in 0..COUNT {
                let whole = regions.extent(region);
                let needs = in_flight.iter().any(|e| e.overlaps(&whole))
                    || done.iter().any(|d| d.extent.overlaps(&whole) && match d.seq {
                        // Missed by the log, wholly within this region, and not drained since.
                        None => d.extent.offset() / REGION == (d.extent.end() - 1) / REGION,
                        Some(s) => s > stored || !d.flushed,
                    });
                prop_assert!(!needs || regions.image().get(region), "region {region} is clear and must not be");
            }
        }
    }
}
