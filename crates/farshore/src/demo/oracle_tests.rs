//! The judge judged: what is a prefix passes, and each way of not being one fails.
//!
//! Small histories are written by hand; a model that executes random histories in a random legal order gives true
//! prefixes, and each kind of damage done to such an image must be found.

use super::*;
use crate::demo::stamps::{Noise, Stamp};
use proptest::prelude::*;

/// (disk, block, blocks, action, issued, answered)
type Row = (u32, u64, u64, Action, Tick, Tick);
use Action::{Write as W, Zero as Z};

fn history(rows: &[Row]) -> History {
    let operations = rows
        .iter()
        .map(|&(disk, block, blocks, action, issued, answered)| Operation {
            disk,
            block,
            blocks,
            action,
            issued,
            answered,
            acknowledged: true,
        })
        .collect();
    History { operations }
}

/// An image of 8 blocks on each of two disks after these operations, in this order.
fn image_after(history: &History, order: &[usize]) -> Image {
    let mut image = Image { disks: vec![vec![Content::Zeros; 8]; 2] };
    for &index in order {
        let op = &history.operations[index];
        for block in op.block..op.block + op.blocks {
            image.disks[op.disk as usize][block as usize] = match op.action {
                W => Content::Stamped(Stamp { disk: op.disk, block, write: index as u64 }),
                Z => Content::Zeros,
            };
        }
    }
    image
}

fn judge(rows: &[Row], order: &[usize]) -> Result<Cut, Violation> {
    let history = history(rows);
    check(&history, &image_after(&history, order), Bounds::default())
}

/// Three writes in a row: to disk 0, a flush later to disk 1, then over the first again.
const CHAIN: [Row; 3] = [(0, 0, 2, W, 1, 2), (1, 3, 1, W, 5, 6), (0, 1, 2, W, 7, 8)];

#[test]
fn every_prefix_of_a_chain_passes() {
    for n in 0..=3 {
        let order: Vec<usize> = (0..n).collect();
        assert_eq!(judge(&CHAIN, &order).map(|c| c.included), Ok(n), "prefix of {n}");
    }
}

#[test]
fn a_dropped_write_is_found() {
    assert!(matches!(judge(&CHAIN, &[1]), Err(Violation::Stale { shows: None, lacks: 0, .. })));
    assert!(matches!(judge(&CHAIN, &[0, 2]), Err(Violation::Stale { shows: None, lacks: 1, .. })));
}

#[test]
fn two_writes_swapped_across_a_flush_are_found() {
    let (first, second) = ((0, 0, 1, W, 1, 2), (0, 0, 1, W, 5, 6));
    assert!(judge(&[first, second], &[0, 1]).is_ok());
    assert!(matches!(
        judge(&[first, second, (1, 0, 1, W, 7, 8)], &[1, 0, 2]),
        Err(Violation::Stale { shows: Some(0), lacks: 1, .. })
    ));
    // On different blocks: the later one is there, the earlier one is not.
    assert!(matches!(judge(&[(0, 0, 1, W, 1, 2), (0, 4, 1, W, 5, 6)], &[1]), Err(Violation::Stale { lacks: 0, .. })));
}

#[test]
fn a_position_off_by_one_is_found_by_its_bounds() {
    let history = history(&CHAIN);
    let bounds = Bounds { after: Some(7), before: Some(6) };
    let at = |n: usize| check(&history, &image_after(&history, &(0..n).collect::<Vec<_>>()), bounds);
    assert!(at(2).is_ok());
    assert!(matches!(at(1), Err(Violation::Stale { shows: None, lacks: 1, .. })), "one too few");
    assert_eq!(at(3), Err(Violation::TooNew { operation: 2 }), "one too many");
}

#[test]
fn torn_flipped_misplaced_and_unknown_blocks_are_found() {
    let history = history(&CHAIN);
    let whole = image_after(&history, &[0, 1, 2]);
    let mut foreign = whole.clone();
    foreign.disks[0][0] = Content::Foreign;
    assert_eq!(check(&history, &foreign, Bounds::default()), Err(Violation::Foreign { disk: 0, block: 0 }));
    for (disk, block, write) in [(0, 1, 0), (1, 0, 0), (0, 0, 99), (0, 0, 1)] {
        let mut wrong = whole.clone();
        wrong.disks[0][0] = Content::Stamped(Stamp { disk, block, write });
        let verdict = check(&history, &wrong, Bounds::default());
        assert_eq!(verdict, Err(Violation::Misplaced { disk: 0, block: 0 }), "stamp of {disk}/{block}/{write}");
    }
}

#[test]
fn half_a_write_is_found() {
    let history = history(&[(0, 0, 3, W, 1, 2)]);
    let mut image = image_after(&history, &[0]);
    image.disks[0][2] = Content::Zeros;
    assert!(matches!(check(&history, &image, Bounds::default()), Err(Violation::Stale { .. })));
}

#[test]
fn concurrent_writes_may_take_either_order_but_only_one() {
    let rows = [(0, 0, 2, W, 1, 10), (0, 0, 2, W, 2, 9)];
    assert!(judge(&rows, &[0, 1]).is_ok());
    assert!(judge(&rows, &[1, 0]).is_ok());
    let history = history(&rows);
    let mut mixed = image_after(&history, &[0, 1]);
    mixed.disks[0][0] = Content::Stamped(Stamp { disk: 0, block: 0, write: 0 });
    assert!(matches!(check(&history, &mixed, Bounds::default()), Err(Violation::NoOrder { .. })));
}

#[test]
fn a_circle_through_time_is_found() {
    // The long write 0 races with 1 on block 0 and with 2 on block 1; 1 was answered before 2 was issued.
    let rows = [(0, 0, 2, W, 1, 20), (0, 0, 1, W, 2, 5), (0, 1, 2, W, 8, 19)];
    for order in [[0, 1, 2], [1, 0, 2], [1, 2, 0]] {
        assert!(judge(&rows, &order).is_ok(), "{order:?}");
    }
    let history = history(&rows);
    let mut image = image_after(&history, &[0, 1, 2]);
    image.disks[0][1] = Content::Stamped(Stamp { disk: 0, block: 1, write: 0 });
    assert!(matches!(check(&history, &image, Bounds::default()), Err(Violation::NoOrder { .. })), "0 < 1 < 2 < 0");
}

#[test]
fn zeroing_joins_when_zeros_call_for_it_and_not_otherwise() {
    let rows = [(0, 0, 2, W, 1, 2), (0, 1, 1, Z, 3, 4), (0, 5, 1, W, 5, 6)];
    assert_eq!(judge(&rows, &[0]).map(|c| c.included), Ok(1));
    assert_eq!(judge(&rows, &[0, 1]).map(|c| c.included), Ok(2));
    assert!(judge(&rows, &[0, 2]).is_err(), "the zeroing is missing");
}

#[test]
fn an_operation_in_error_may_have_happened_block_by_block() {
    let mut history = history(&[(0, 0, 2, W, 1, 2), (0, 0, 2, W, 3, 4), (1, 0, 1, W, 5, 6)]);
    history.operations[1].acknowledged = false;
    let mut image = image_after(&history, &[0, 2]);
    assert!(check(&history, &image, Bounds::default()).is_ok());
    image.disks[0][1] = Content::Stamped(Stamp { disk: 0, block: 1, write: 1 });
    assert!(check(&history, &image, Bounds::default()).is_ok());
    history.operations[1].acknowledged = true;
    assert!(check(&history, &image, Bounds::default()).is_err());
}

#[test]
fn a_history_the_check_could_not_judge_is_refused() {
    let clash = [(0, 0, 2, Z, 1, 5), (0, 1, 1, W, 3, 6)];
    assert!(matches!(judge(&clash, &[0, 1]), Err(Violation::History(_))));
    let outside = history(&[(0, 7, 2, W, 1, 2)]);
    let image = Image { disks: vec![vec![Content::Zeros; 8]; 2] };
    assert!(matches!(check(&outside, &image, Bounds::default()), Err(Violation::History(_))));
}

/// A random history and the order in which its operations took effect, each somewhere between issue and answer.
fn simulate(seed: u64, count: usize) -> (History, Vec<usize>) {
    let mut noise = Noise::new(seed);
    let (mut tick, mut live, mut order) = (0, Vec::<(usize, bool)>::new(), Vec::new());
    let mut operations: Vec<Operation> = Vec::new();
    while operations.len() < count || !live.is_empty() {
        tick += 1;
        let start = operations.len() < count && live.len() < 4 && noise.below(3) > 0;
        if start || live.is_empty() {
            let blocks = 1 + noise.below(3);
            let action = if noise.below(4) == 0 { Z } else { W };
            let block = noise.below(9 - blocks);
            let disk = (noise.below(2)) as u32;
            let new = Operation { disk, block, blocks, action, issued: tick, answered: u64::MAX, acknowledged: true };
            if !live.iter().any(|(i, _)| clash(&operations[*i], &new)) {
                live.push((operations.len(), false));
                operations.push(new);
            }
            continue;
        }
        let chosen = noise.below(live.len() as u64) as usize;
        if live[chosen].1 {
            operations[live[chosen].0].answered = tick;
            live.swap_remove(chosen);
        } else {
            live[chosen].1 = true;
            order.push(live[chosen].0);
        }
    }
    (History { operations }, order)
}

/// The slow truth, from the definition: some legal order of some set of operations gives exactly this image.
fn explained(history: &History, image: &Image) -> bool {
    fn go(history: &History, image: &Image, done: &mut Vec<usize>) -> bool {
        if image_after(history, done).disks == image.disks {
            return true;
        }
        let ops = &history.operations;
        for next in 0..ops.len() {
            let ready = (0..ops.len()).all(|p| !ops[p].precedes(&ops[next]) || done.contains(&p));
            if done.contains(&next) || !ready {
                continue;
            }
            done.push(next);
            if go(history, image, done) {
                return true;
            }
            done.pop();
        }
        false
    }
    go(history, image, &mut Vec::new())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Every prefix of what happened passes, at every length.
    #[test]
    fn true_prefixes_pass(seed: u64) {
        let (history, order) = simulate(seed, 24);
        for n in 0..=order.len() {
            let verdict = check(&history, &image_after(&history, &order[..n]), Bounds::default());
            prop_assert!(verdict.is_ok(), "prefix of {n}: {verdict:?}");
        }
    }

    /// On small histories the judge agrees with the definition for any image, right or wrong.
    #[test]
    fn verdict_equals_the_definition(seed: u64, damage: u64, cut in 0usize..7) {
        let (history, order) = simulate(seed, 6);
        let mut noise = Noise::new(damage);
        let mut kept: Vec<usize> = order[..cut.min(order.len())].to_vec();
        match noise.below(4) {
            0 if !kept.is_empty() => { kept.remove(noise.below(kept.len() as u64) as usize); }
            1 if kept.len() > 1 => { let at = noise.below(kept.len() as u64 - 1) as usize; kept.swap(at, at + 1); }
            _ => {}
        }
        let mut image = image_after(&history, &kept);
        if noise.below(3) == 0 && !kept.is_empty() {
            let op = &history.operations[kept[noise.below(kept.len() as u64) as usize]];
            let write = history.operations.iter().position(|o| o == op).expect("it is there") as u64;
            if op.action == W {
                let stamp = Stamp { disk: op.disk, block: op.block, write };
                image.disks[op.disk as usize][op.block as usize] = Content::Stamped(stamp);
            }
        }
        let verdict = check(&history, &image, Bounds::default());
        prop_assert_eq!(verdict.is_ok(), explained(&history, &image), "{:?}", verdict);
    }
}
