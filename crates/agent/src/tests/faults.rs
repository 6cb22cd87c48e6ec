//! State that is lost, reverted or cannot be written; logs that are not ours.

use std::sync::Arc;
use std::time::Duration;

use disk::memory::{Fault, Operation as Op};
use format::wire::Refusal;
use model::{DrainCause, EventKind, Extent, RecordBody, RecordDigest, Seq};
use nbd::Errno;
use probe::{Rule, Rules};
use waiting::Deadline;

use crate::Agent;

use super::rig::{REGION, Rig, Rng, stamped, until, until_settled};

fn differing(rig: &Rig, disk: usize) -> Vec<Extent> {
    let images = rig.peer.images(Seq(u64::MAX), &rig.sizes());
    let (name, source) = &rig.disks[disk];
    let (image, source) = (&images[&name.id()], source.contents());
    let differs = |n: &usize| image[n * 512..(n + 1) * 512] != source[n * 512..(n + 1) * 512];
    (0..source.len() / 512).filter(differs).map(|n| Extent::new(n as u64 * 512, 512).expect("aligned")).collect()
}

/// Compares every disk with the log's head, as an operator would.
async fn compare(rig: &Rig, agent: &crate::Agent) {
    let at = rig.peer.log().head.position.seq;
    for disk in 0..rig.disks.len() {
        let name = rig.disks[disk].0.clone();
        agent.compared(&name, at, differing(rig, disk)).await.expect("in range");
    }
}

/// Everything went quiet: no bit is set any more, in the file neither.
async fn until_clear(agent: &crate::Agent) {
    until(agent, "cleared", |s| s.active_regions == 0).await;
    waiting::pass(Duration::from_secs(11)).await;
}

#[tokio::test(start_paused = true)]
async fn a_reverted_machine_is_refused_until_a_compare_and_then_heals() {
    let rig = Rig::new(2, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(0, stamped(1, 8192), false).await.expect("written");
    until_settled(&agent).await;
    until_clear(&agent).await;
    let snapshot = (rig.dir.file("map").expect("kept").visible(), rig.disks[0].1.contents());
    for n in 0..8 {
        export.write(n * REGION, stamped(2 + n, 4096), false).await.expect("written");
    }
    until_settled(&agent).await;
    drop((agent, export));
    rig.dir.put("map", snapshot.0);
    let reverted = disk::MemoryDisk::from_contents(snapshot.1);
    let mut rig = rig;
    rig.disks[0].1 = std::sync::Arc::new(reverted);
    let agent = rig.start().await;
    let status = until(&agent, "refused", |s| s.refusal.is_some()).await;
    assert_eq!(status.refusal.map(|r| (r.reason, r.needs_compare)), Some((Refusal::RevertedDisk, true)));
    assert_eq!(status.mode, "bitmap");
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(9 * REGION, stamped(50, 4096), false).await.expect("the source is served on");
    waiting::pass(Duration::from_secs(60)).await;
    assert!(agent.status().refusal.is_some(), "time alone heals nothing");
    compare(&rig, &agent).await;
    until_settled(&agent).await;
    assert!(agent.status().refusal.is_none());
    rig.assert_log_equals_sources();
    // And it goes on: the next reconnect is no reverted disk again.
    rig.peer.cut();
    export.write(3 * REGION, stamped(51, 4096), false).await.expect("written");
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
}

/// One durable update lies between the snapshot and the log, and the reverted life raises its own version before any
/// process server hears of it, even over a restart: what counts is what the map knew.
#[tokio::test(start_paused = true)]
async fn a_map_reverted_by_one_update_is_refused_however_much_it_is_written_before() {
    for (full, restarts) in [(false, 0), (false, 2), (true, 0)] {
        let mut rig = Rig::new(1, 1 << 20);
        let agent = rig.start().await;
        let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
        until_settled(&agent).await;
        until_clear(&agent).await;
        let snapshot = (rig.dir.file("map").expect("kept").visible(), rig.disks[0].1.contents());
        export.write(5 * REGION, stamped(2, 4096), false).await.expect("written");
        until_settled(&agent).await;
        drop((agent, export));
        rig.dir.put("map", snapshot.0);
        rig.dir.file("map").expect("just put").fail(full);
        rig.disks[0].1 = std::sync::Arc::new(disk::MemoryDisk::from_contents(snapshot.1));
        rig.peer.set(|b| b.down = true);
        for life in 0..restarts {
            let agent = rig.start().await;
            let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
            export.write(life * REGION, stamped(10 + life, 4096), false).await.expect("the source is served");
        }
        let agent = rig.start().await;
        let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
        for n in 8..12 {
            export.write(n * REGION, stamped(20 + n, 4096), false).await.expect("the source is served");
        }
        rig.peer.set(|b| b.down = false);
        let status = until(&agent, "refused", |s| s.refusal.is_some()).await;
        assert_eq!(status.refusal.map(|r| r.reason), Some(Refusal::RevertedDisk), "full {full}, {restarts} restarts");
        compare(&rig, &agent).await;
        until_settled(&agent).await;
        rig.assert_log_equals_sources();
    }
}

/// What refused a machine that was set back to a clean stop must refuse its next life too, whatever it has written since.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_forgotten_by_a_kill() {
    let mut rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    agent.stop(Duration::from_secs(30)).await;
    drop(agent);
    let snapshot = (rig.dir.file("map").expect("kept").visible(), rig.disks[0].1.contents());
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(5 * REGION, stamped(2, 4096), false).await.expect("written");
    until_settled(&agent).await;
    drop((agent, export));
    rig.dir.put("map", snapshot.0);
    rig.disks[0].1 = std::sync::Arc::new(disk::MemoryDisk::from_contents(snapshot.1));
    for life in 0..2 {
        let agent = rig.start().await;
        let status = until(&agent, "refused", |s| s.refusal.is_some()).await;
        let reason = status.refusal.map(|r| r.reason);
        assert!(matches!(reason, Some(Refusal::RevertedMemory | Refusal::RevertedDisk)), "life {life}: {reason:?}");
        let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
        for n in 8..14 {
            export.write(n * REGION, stamped(20 + n, 4096), false).await.expect("the source is served");
        }
    }
    let agent = rig.start().await;
    until(&agent, "refused", |s| s.refusal.is_some()).await;
    compare(&rig, &agent).await;
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
}

/// A copy of the machine extended the log while the original was cut off and raised the version of its own map.
#[tokio::test(start_paused = true)]
async fn a_machine_whose_copy_has_written_meanwhile_is_refused() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(0, stamped(1, 8192), false).await.expect("written");
    until_settled(&agent).await;
    let mut copy = Rig::new(1, 1 << 20);
    copy.dir.put("map", rig.dir.file("map").expect("kept").visible());
    copy.disks[0].1 = std::sync::Arc::new(disk::MemoryDisk::from_contents(rig.disks[0].1.contents()));
    (copy.peer, copy.random) = (std::sync::Arc::clone(&rig.peer), std::sync::Arc::clone(&rig.random));
    drop((agent, export));
    let twin = copy.start().await;
    let export = twin.export(&copy.disks[0].0).expect("a disk of this agent");
    export.write(4 * REGION, stamped(2, 4096), false).await.expect("written");
    until_settled(&twin).await;
    drop((twin, export));
    rig.peer.set(|b| b.down = true);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    for n in 5..12 {
        export.write(n * REGION, stamped(20 + n, 4096), false).await.expect("the source is served");
    }
    drop((agent, export));
    rig.peer.set(|b| b.down = false);
    let agent = rig.start().await;
    let status = until(&agent, "refused", |s| s.refusal.is_some()).await;
    let reason = status.refusal.map(|r| r.reason);
    assert!(matches!(reason, Some(Refusal::RevertedMemory | Refusal::RevertedDisk)), "{reason:?}");
    compare(&rig, &agent).await;
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
}

/// A life that ends with a failed flush, without a process server: the page cache shows what the disk has lost.
async fn life_of_a_failed_flush(rig: &mut Rig) {
    rig.queue_bytes = 1 << 20;
    let agent = rig.start().await;
    until_settled(&agent).await;
    rig.peer.set(|b| b.down = true);
    rig.peer.cut();
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    for n in 0..32 {
        export.write(n * REGION, stamped(10 + n, 48 << 10), false).await.expect("written");
    }
    until(&agent, "in bitmap mode, where nothing is drained", |s| s.mode == "bitmap").await;
    rig.disks[0].1.fail_next(Op::Flush, Fault::Torn(5));
    export.flush().await.expect_err("injected");
    let hidden = rig.disks[0].1.contents() != rig.disks[0].1.durable_contents();
    assert!(hidden, "the cache hides what the medium lost");
    drop((agent, export));
    rig.peer.set(|b| b.down = false);
}

/// Once all is drained the agent dies, and the power is cut: whether the log equals what the disk holds when it is back.
async fn equal_after_a_power_cut(rig: &Rig, agent: Arc<Agent>) -> bool {
    until_settled(&agent).await;
    until_clear(&agent).await;
    drop(agent);
    rig.disks[0].1.power_cut(3);
    let agent = rig.start().await;
    until_settled(&agent).await;
    rig.log_equals_sources()
}

/// The page cache outlives the process that knew it lies. Nothing of a failed flush may pass for durable in the next life.
#[tokio::test(start_paused = true)]
async fn a_failed_flush_is_not_forgotten_by_a_kill() {
    let mut rig = Rig::new(1, 4 << 20);
    life_of_a_failed_flush(&mut rig).await;
    let agent = rig.start().await;
    assert!(equal_after_a_power_cut(&rig, agent).await);
}

/// The same where the state that knew of it is gone as well: all is drained, and past the cache. Seed 1795673893.
#[tokio::test(start_paused = true)]
async fn a_failed_flush_is_not_forgotten_when_the_state_is_lost() {
    assert!(after_a_failed_flush_and_lost_state(Rules::ALL).await);
    // The control: whoever reads from the cache is deceived.
    assert!(!after_a_failed_flush_and_lost_state(Rules::without(Rule::DrainPastCache)).await);
}

async fn after_a_failed_flush_and_lost_state(rules: Rules) -> bool {
    let mut rig = Rig::new(1, 4 << 20);
    rig.rules = rules;
    life_of_a_failed_flush(&mut rig).await;
    rig.dir.remove("map");
    let agent = rig.start().await;
    until(&agent, "refused", |s| s.refusal.is_some()).await;
    compare(&rig, &agent).await;
    equal_after_a_power_cut(&rig, agent).await
}

#[tokio::test(start_paused = true)]
async fn a_log_that_lost_its_tail_is_noticed_and_healed_by_a_compare() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    for n in 0..8 {
        export.write(n * REGION, stamped(1 + n, 4096), false).await.expect("written");
    }
    until_settled(&agent).await;
    rig.peer.cut();
    {
        let mut log = rig.peer.log();
        let keep = log.records.len() - 3;
        log.records.truncate(keep);
        let mut digester = model::RecordDigester::default();
        log.records.iter().for_each(|r| {
            digester.push(r);
        });
        log.head.position.seq = Seq(keep as u64);
        log.head.digest = digester.digest();
    }
    let status = until(&agent, "refused", |s| s.refusal.is_some()).await;
    assert_eq!(status.refusal.map(|r| r.reason), Some(Refusal::StoreLost));
    compare(&rig, &agent).await;
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
}

#[tokio::test(start_paused = true)]
async fn a_log_with_another_digest_frees_nothing() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    until_settled(&agent).await;
    rig.peer.set(|b| b.stalled = true);
    export.write(0, stamped(1, 4096), false).await.expect("written");
    waiting::pass(Duration::from_millis(500)).await;
    rig.peer.log().head.digest = RecordDigest([9; 32]);
    rig.peer.cut();
    rig.peer.set(|b| b.stalled = false);
    let status = until(&agent, "refused", |s| s.refusal.is_some()).await;
    assert_eq!(status.refusal.map(|r| r.reason), Some(Refusal::RevertedMemory));
    assert!(status.to_drain_bytes >= REGION, "what was not stored is owed");
    compare(&rig, &agent).await;
    until_settled(&agent).await;
    let images = rig.peer.images(Seq(u64::MAX), &rig.sizes());
    assert_eq!(images[&rig.disks[0].0.id()], rig.disks[0].1.contents());
}

#[tokio::test(start_paused = true)]
async fn a_map_that_cannot_be_kept_stops_no_write_and_makes_the_next_start_compare() {
    for spoilable in [true, false] {
        let rig = Rig::new(1, 1 << 20);
        let agent = rig.start().await;
        let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
        until_settled(&agent).await;
        until_clear(&agent).await;
        let map = rig.dir.file("map").expect("kept");
        if spoilable {
            // The file cannot be written, but it can be removed.
            map.fail(true);
            rig.dir.put("map", map.visible());
        } else {
            map.fail(true);
        }
        for n in 0..8 {
            export.write(n * REGION, stamped(1 + n, 4096), false).await.expect("never fails");
        }
        let status = until_settled(&agent).await;
        assert!(!status.map_kept && status.events.iter().any(|e| e.kind == EventKind::AgentState));
        rig.assert_log_equals_sources();
        drop((agent, export));
        map.fail(false);
        let agent = rig.start().await;
        let status = until(&agent, "refused", |s| s.refusal.is_some()).await;
        assert_eq!(status.refusal.map(|r| r.reason), Some(Refusal::RevertedDisk), "spoilable: {spoilable}");
        compare(&rig, &agent).await;
        until_settled(&agent).await;
        rig.assert_log_equals_sources();
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_page_counts_as_all_set() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(0, stamped(1, 4096), false).await.expect("written");
    until_settled(&agent).await;
    agent.stop(Duration::from_secs(5)).await;
    drop((agent, export));
    rig.dir.file("map").expect("kept").damage(|bytes| bytes[32768 + 100] ^= 1);
    let agent = rig.start().await;
    let status = until_settled(&agent).await;
    assert!(status.counters.drained_bytes > 0);
    assert!(status.events.iter().any(|e| e.kind == EventKind::AgentState));
    rig.assert_log_equals_sources();
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_is_reported_and_its_range_drained() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    until_settled(&agent).await;
    rig.disks[0].1.fail_next(Op::Write, Fault::Torn(3));
    assert_eq!(export.write(4096, stamped(1, 32768), false).await, Err(Errno::Io));
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
    let log = rig.peer.log();
    let causes =
        log.records.iter().filter(|r| matches!(r.body, RecordBody::DrainBegin { cause: DrainCause::SourceError, .. }));
    assert_eq!(causes.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_flush_what_it_lost_is_read_past_the_cache() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    until_settled(&agent).await;
    for n in 0..8 {
        export.write(n * REGION, stamped(1 + n, 8192), false).await.expect("written");
    }
    rig.disks[0].1.fail_next(Op::Flush, Fault::Torn(5));
    assert_eq!(export.flush().await, Err(Errno::Io));
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
    let images = rig.peer.images(Seq(u64::MAX), &rig.sizes());
    assert_eq!(images[&rig.disks[0].0.id()], rig.disks[0].1.durable_contents(), "the medium, not the cache");
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_only_our_own_flush_met_is_told_to_the_next_client() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    until_settled(&agent).await;
    rig.disks[0].1.fail_next(Op::Flush, Fault::Torn(5));
    let before = rig.disks[0].1.count(Op::Flush);
    export.write(0, stamped(1, 8192), false).await.expect("written");
    waiting::until("a flush", Deadline::after(Duration::from_secs(60)), async || {
        rig.disks[0].1.count(Op::Flush) > before
    })
    .await;
    assert_eq!(export.flush().await, Err(Errno::Io), "what was acknowledged may be lost");
    assert_eq!(export.flush().await, Ok(()), "told once");
}

#[tokio::test(start_paused = true)]
async fn a_bit_is_durable_before_the_first_write_in_its_region() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    until_settled(&agent).await;
    // Everything goes quiet, so that all regions are cleared.
    until_clear(&agent).await;
    let map = rig.dir.file("map").expect("kept");
    let before = map.syncs();
    rig.disks[0].1.set_delay(Op::Write, Duration::from_secs(1));
    let write = tokio::spawn(async move { export.write(5 * REGION, stamped(1, 4096), false).await });
    waiting::until("a write", Deadline::after(Duration::from_secs(60)), async || rig.disks[0].1.count(Op::Write) > 0)
        .await;
    assert_eq!(map.syncs(), before + 1, "one sync, and before the write was submitted");
    let file = rig.dir.file("map").expect("kept");
    rig.dir.power_cut(&mut Rng::new(1));
    assert_ne!(file.visible()[32768 + 24] & (1 << 5), 0, "the bit survives the power");
    write.await.expect("no panic").expect("written");
    assert_eq!(agent.status().counters.cold_region_syncs, 1);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_grew_or_came_drains_what_is_new_alone() {
    let mut rig = Rig::new(1, 1 << 20);
    rig.disks[0].1 = std::sync::Arc::new(disk::MemoryDisk::from_contents(vec![7; 1 << 20]));
    let agent = rig.start().await;
    until_settled(&agent).await;
    agent.stop(Duration::from_secs(5)).await;
    drop(agent);
    let mut contents = rig.disks[0].1.contents();
    contents.extend(vec![8; 256 << 10]);
    rig.disks[0].1 = std::sync::Arc::new(disk::MemoryDisk::from_contents(contents));
    rig.disks.push((
        "late".parse().expect("a name"),
        std::sync::Arc::new(disk::MemoryDisk::from_contents(vec![9; 128 << 10])),
    ));
    let agent = rig.start().await;
    let status = until_settled(&agent).await;
    rig.assert_log_equals_sources();
    assert_eq!(status.counters.drained_bytes, (256 + 128) << 10);
}

/// A disk whose first region was written and sent; then bitmap mode.
async fn written_then_overflowed() -> (Rig, std::sync::Arc<crate::Agent>, std::sync::Arc<dyn nbd::Export>) {
    let rig = Rig::new(1, 4 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(0, stamped(1, REGION as usize), false).await.expect("written");
    until_settled(&agent).await;
    rig.peer.set(|b| b.stalled = true);
    for n in 16..56 {
        export.write(n * REGION, stamped(n, REGION as usize), false).await.expect("written");
    }
    until(&agent, "in bitmap mode", |s| s.mode == "bitmap").await;
    (rig, agent, export)
}

#[tokio::test(start_paused = true)]
async fn a_hole_made_in_bitmap_mode_reaches_a_stream_that_began_empty() {
    let (rig, agent, export) = written_then_overflowed().await;
    export.trim(0, REGION, false).await.expect("trimmed");
    rig.peer.set(|b| b.stalled = false);
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
}

#[tokio::test(start_paused = true)]
async fn a_hole_that_a_compare_found_reaches_a_stream_that_began_empty() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(0, stamped(1, REGION as usize), false).await.expect("written");
    until_settled(&agent).await;
    let region = Extent::new(0, REGION).expect("aligned");
    disk::Disk::zero(rig.disks[0].1.as_ref(), region, true).await.expect("behind the agent's back");
    assert!(!rig.log_equals_sources());
    compare(&rig, &agent).await;
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
}
