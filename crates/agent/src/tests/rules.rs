//! Each safety rule of the agent is taken away once, and an oracle must notice what that does to the log.
//!
//! A scenario brings about what its rule guards against and says whether the log is wrong while the agent believes that
//! all is well. With every rule in force no scenario may say so; without its own rule it must, or the rule is not needed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use disk::memory::{Fault, MemoryDisk, Operation as Op};
use model::{Extent, Position, Record, RecordBody, RecordDigester};
use nbd::Export;
use probe::{Rule, Rules};

use super::rig::{REGION, Rig, Rng, stamped, until, until_settled};
use super::workload::{Trouble, go_wrong};
use crate::{Agent, StopOutcome};

/// Seeds that a scenario of chance may take until its rule is missed.
const SEEDS: u64 = 10;

/// Time in which every region that is quiet is cleared, in the file too.
const QUIET: Duration = Duration::from_secs(16);

type Noticed = Pin<Box<dyn Future<Output = bool>>>;

fn rig(rules: Rules, disks: usize, bytes: u64) -> Rig {
    Rig { rules, ..Rig::new(disks, bytes) }
}

/// A disk full of bytes that no operation wrote, so that its drain has something to send.
fn filled(bytes: u64) -> Arc<MemoryDisk> {
    let sector = [[0; 8].as_slice(), &[0xee; 504]].concat();
    Arc::new(MemoryDisk::from_contents(sector.repeat((bytes / 512) as usize)))
}

fn export(rig: &Rig, agent: &Agent) -> Arc<dyn Export> {
    agent.export(&rig.disks[0].0).expect("a disk of this agent")
}

/// Gives the agent time, and says whether it then takes a wrong log for a whole one.
async fn deceived(rig: &Rig, agent: &Agent) -> bool {
    for _ in 0..6000 {
        let status = agent.status();
        let stored = status.next_seq.is_some_and(|next| status.stored.position.seq.next() == next);
        if status.mode == "data" && stored && status.session == "live" {
            return !rig.log_equals_sources() || !rig.peer.log().violations.is_empty();
        }
        waiting::pass(Duration::from_millis(5)).await;
    }
    false
}

/// The process dies, and with `power` the machine does too; then the agent starts again.
async fn die_and_start(rig: &Rig, agent: Arc<Agent>, power: bool) -> Arc<Agent> {
    rig.peer.cut();
    drop(agent);
    tokio::task::yield_now().await;
    if power {
        rig.dir.power_cut(&mut Rng::new(1));
        rig.disks.iter().for_each(|(_, disk)| disk.power_cut(2));
    }
    rig.peer.set(|b| (b.down, b.stalled, b.credit) = (false, false, 8 << 20));
    rig.start().await
}

/// An agent that has nothing to do, and a peer that is away from then on.
async fn quiet_and_alone(rig: &Rig) -> Arc<Agent> {
    let agent = rig.start().await;
    until_settled(&agent).await;
    waiting::pass(QUIET).await;
    rig.peer.set(|b| b.down = true);
    rig.peer.cut();
    agent
}

async fn bit_before_write(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = quiet_and_alone(&rig).await;
    export(&rig, &agent).write(5 * REGION, stamped(1, 4096), true).await.expect("written");
    let agent = die_and_start(&rig, agent, true).await;
    deceived(&rig, &agent).await
}

async fn stored_before_clear(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = quiet_and_alone(&rig).await;
    export(&rig, &agent).write(5 * REGION, stamped(1, 4096), true).await.expect("written");
    waiting::pass(QUIET).await;
    let agent = die_and_start(&rig, agent, false).await;
    deceived(&rig, &agent).await
}

async fn flush_before_clear(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    export(&rig, &agent).write(5 * REGION, stamped(1, 16384), false).await.expect("written");
    until_settled(&agent).await;
    waiting::pass(QUIET).await;
    let agent = die_and_start(&rig, agent, true).await;
    deceived(&rig, &agent).await
}

async fn drain_holds_region(rules: Rules) -> bool {
    let mut rig = rig(rules, 1, 4 << 20);
    rig.disks[0].1 = filled(4 << 20);
    // Little can be sent, and nothing comes back; the drain numbers what the queue holds.
    rig.peer.set(|b| (b.stalled, b.credit) = (true, REGION));
    let agent = rig.start().await;
    until(&agent, "drains", |s| s.counters.drained_bytes > 8 * REGION).await;
    waiting::pass(QUIET).await;
    let agent = die_and_start(&rig, agent, false).await;
    deceived(&rig, &agent).await
}

async fn failed_write_drained(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    rig.disks[0].1.fail_next(Op::Write, Fault::Torn(3));
    export(&rig, &agent).write(4096, stamped(1, 32768), false).await.expect_err("injected");
    deceived(&rig, &agent).await
}

/// A flush fails and loses some of what was written; then the power fails, so that all see what the medium holds.
async fn flush_fails(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    let export = export(&rig, &agent);
    for n in 0..8 {
        export.write(n * REGION, stamped(1 + n, 8192), false).await.expect("written");
    }
    rig.disks[0].1.fail_next(Op::Flush, Fault::Torn(5));
    export.flush().await.expect_err("injected");
    until_settled(&agent).await;
    drop(export);
    waiting::pass(QUIET).await;
    let agent = die_and_start(&rig, agent, true).await;
    deceived(&rig, &agent).await
}

async fn fresh_incarnation(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = quiet_and_alone(&rig).await;
    export(&rig, &agent).write(5 * REGION, stamped(1, 4096), false).await.expect("written");
    let agent = die_and_start(&rig, agent, false).await;
    deceived(&rig, &agent).await
}

async fn flush_before_marker(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    export(&rig, &agent).write(5 * REGION, stamped(1, 16384), false).await.expect("written");
    let outcome = agent.stop(Duration::from_secs(5)).await;
    assert!(matches!(outcome, StopOutcome::Clean { .. }), "{outcome:?}");
    let agent = die_and_start(&rig, agent, true).await;
    deceived(&rig, &agent).await
}

async fn marker_removed_first(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    agent.stop(Duration::from_secs(5)).await;
    drop(agent);
    rig.peer.set(|b| b.down = true);
    let agent = rig.start().await;
    export(&rig, &agent).write(5 * REGION, stamped(1, 4096), false).await.expect("written");
    let agent = die_and_start(&rig, agent, false).await;
    deceived(&rig, &agent).await
}

/// A clone of the agent that knew the same past has put a record of its own where ours is to go.
async fn digest_before_free(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = quiet_and_alone(&rig).await;
    let export = export(&rig, &agent);
    for n in 0..3 {
        export.write(n * REGION, stamped(1 + n, 4096), false).await.expect("written");
    }
    {
        let mut log = rig.peer.log();
        let extent = Extent::new(9 * REGION, 4096).expect("aligned");
        let body = RecordBody::Zero { disk: rig.disks[0].0.id(), extent };
        let seq = log.head.position.seq.next();
        let record = Record { seq, time: log.head.time, map_version: log.head.map_version, body };
        log.head.digest = RecordDigester::resume(log.head.digest).push(&record);
        log.head.position = Position { seq, ..log.head.position };
        log.records.push(record);
    }
    rig.peer.set(|b| b.down = false);
    deceived(&rig, &agent).await
}

async fn drain_end_when_empty(rules: Rules) -> bool {
    let mut rig = rig(rules, 2, 4 << 20);
    rig.disks.iter_mut().for_each(|(_, disk)| *disk = filled(4 << 20));
    let agent = rig.start().await;
    deceived(&rig, &agent).await
}

/// The connection breaks when a batch has left the agent and the peer has not taken it.
async fn kept_until_stored(rules: Rules) -> bool {
    let rig = rig(rules, 1, 1 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    rig.peer.set(|b| b.deaf = true);
    export(&rig, &agent).write(0, stamped(1, 4096), false).await.expect("written");
    waiting::pass(Duration::from_millis(100)).await;
    rig.peer.cut();
    rig.peer.set(|b| b.deaf = false);
    deceived(&rig, &agent).await
}

/// Clients write at random, with what troubles this rule's neighbourhood.
async fn chance(seed: u64, trouble: Trouble) -> bool {
    go_wrong(seed, trouble).await.is_err()
}

fn scenario(rule: Rule, rules: Rules, seed: u64) -> Noticed {
    let small = Some(1 << 20);
    let calm = Trouble { rules, ..Trouble::default() };
    match rule {
        Rule::BitBeforeWrite => Box::pin(bit_before_write(rules)),
        Rule::StoredBeforeClear => Box::pin(stored_before_clear(rules)),
        Rule::FlushBeforeClear => Box::pin(flush_before_clear(rules)),
        Rule::DrainHoldsRegion => Box::pin(drain_holds_region(rules)),
        Rule::DrainReadLocked => Box::pin(chance(seed, Trouble { outages: true, queue_bytes: small, ..calm })),
        Rule::OverlapsSerialised | Rule::SeqBeforeAnswer => Box::pin(chance(seed, calm)),
        Rule::FailedWriteDrained => Box::pin(failed_write_drained(rules)),
        Rule::FailedFlushDrained | Rule::DrainPastCache => Box::pin(flush_fails(rules)),
        Rule::FreshIncarnation => Box::pin(fresh_incarnation(rules)),
        Rule::FlushBeforeMarker => Box::pin(flush_before_marker(rules)),
        Rule::MarkerRemovedFirst => Box::pin(marker_removed_first(rules)),
        Rule::KeptUntilStored => Box::pin(kept_until_stored(rules)),
        Rule::DigestBeforeFree => Box::pin(digest_before_free(rules)),
        Rule::DrainEndWhenEmpty => Box::pin(drain_end_when_empty(rules)),
        _ => unreachable!("kept by another service"),
    }
}

const OURS: &[Rule] = &[
    Rule::BitBeforeWrite,
    Rule::StoredBeforeClear,
    Rule::FlushBeforeClear,
    Rule::DrainHoldsRegion,
    Rule::DrainReadLocked,
    Rule::OverlapsSerialised,
    Rule::SeqBeforeAnswer,
    Rule::FailedWriteDrained,
    Rule::FailedFlushDrained,
    Rule::DrainPastCache,
    Rule::FreshIncarnation,
    Rule::FlushBeforeMarker,
    Rule::MarkerRemovedFirst,
    Rule::KeptUntilStored,
    Rule::DigestBeforeFree,
    Rule::DrainEndWhenEmpty,
];

#[tokio::test(start_paused = true)]
async fn without_any_one_rule_the_log_is_wrong_and_with_all_it_never_is() {
    let mut unnoticed = Vec::new();
    for &rule in OURS {
        assert!(!scenario(rule, Rules::ALL, 70).await, "{rule:?}: the log is wrong though every rule is in force");
        let mut noticed = false;
        for seed in 70..70 + SEEDS {
            noticed = noticed || scenario(rule, Rules::without(rule), seed).await;
        }
        if !noticed {
            unnoticed.push(rule);
        }
    }
    assert!(unnoticed.is_empty(), "nobody misses {unnoticed:?}");
}
