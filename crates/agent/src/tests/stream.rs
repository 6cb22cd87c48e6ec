//! The straight paths: initial drain, live writes, clean stop, marks, bitmap mode and back, spool.

use std::time::Duration;

use bytes::Bytes;
use disk::Disk;
use model::{DrainCause, EventKind, MarkKind, RecordBody, Seq};
use nbd::{Errno, ZeroFlags};

use super::rig::{REGION, Rig, stamped, until, until_settled};
use crate::{AgentError, StopOutcome};

fn drains(rig: &Rig) -> Vec<DrainCause> {
    let log = rig.peer.log();
    let cause = |body: &RecordBody| if let RecordBody::DrainBegin { cause, .. } = body { Some(*cause) } else { None };
    log.records.iter().filter_map(|record| cause(&record.body)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_the_disks_held_and_what_is_written_reaches_the_log() {
    let rig = Rig::new(2, 4 << 20);
    rig.disks[0].1.write(3 * REGION + 4096, stamped(1, 200 << 10)).await.expect("in range");
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[1].0).expect("a disk of this agent");
    // What is written before a log has taken the agent is a bit, and drained.
    until(&agent, "taken", |s| s.connection.is_some()).await;
    for n in 0..50 {
        export.write(n * 8192, stamped(100 + n, 4096), n % 10 == 0).await.expect("written");
    }
    export.trim(8192, 8192, false).await.expect("trimmed");
    export.write_zeroes(65536, 4096, ZeroFlags::default()).await.expect("zeroed");
    export.flush().await.expect("flushed");
    let status = until_settled(&agent).await;
    rig.assert_log_equals_sources();
    assert_eq!(drains(&rig), [DrainCause::Initial]);
    assert!(status.counters.drained_bytes <= 256 << 10, "holes are not read: {:?}", status.counters);
    assert_eq!(agent.flushes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_clean_stop_nothing_is_sent_again() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    until_settled(&agent).await;
    export.write(0, stamped(1, 8192), false).await.expect("written");
    let outcome = agent.stop(Duration::from_secs(5)).await;
    let StopOutcome::Clean { seq } = outcome else { panic!("{outcome:?}") };
    assert_eq!(export.write(0, stamped(2, 4096), false).await, Err(Errno::Shutdown));
    let incarnation = agent.status().incarnation_id;
    drop(agent);
    let agent = rig.start().await;
    assert_eq!((agent.status().mode, agent.status().incarnation_id), ("data", incarnation));
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(4096, stamped(3, 4096), false).await.expect("written");
    let status = until_settled(&agent).await;
    assert_eq!((status.stored.position.seq, status.counters.drained_bytes), (seq.next(), 0));
    rig.assert_log_equals_sources();
    assert_eq!(drains(&rig), [DrainCause::Initial]);
}

#[tokio::test(start_paused = true)]
async fn a_mark_returns_once_it_is_stored_and_is_refused_while_no_position_is_a_point() {
    let rig = Rig::new(1, 1 << 20);
    rig.peer.set(|b| b.down = true);
    let agent = rig.start().await;
    assert!(matches!(agent.mark("early").await, Err(AgentError::NotConsistent { mode: "bitmap", .. })));
    rig.peer.set(|b| b.down = false);
    until_settled(&agent).await;
    let marked = agent.mark("before the upgrade").await.expect("in data mode");
    assert!(agent.status().stored.position.seq >= marked.seq);
    {
        let log = rig.peer.log();
        let RecordBody::Mark(mark) = &log.records[marked.seq.0 as usize - 1].body else { panic!("not a mark") };
        assert_eq!((mark.kind, mark.id, &mark.label[..]), (MarkKind::Application, marked.id.0, "before the upgrade"));
    }
    assert!(matches!(agent.mark(&"x".repeat(201)).await, Err(AgentError::Label { .. })));
    assert!(matches!(agent.mark("two\nlines").await, Err(AgentError::LabelText)));
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_in_bitmap_mode_and_the_agent_catches_up_by_itself() {
    let rig = Rig::new(2, 8 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    rig.peer.set(|b| b.stalled = true);
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    for n in 0..120 {
        export.write(n * REGION, stamped(n + 1, REGION as usize), false).await.expect("never fails");
    }
    let status = until(&agent, "in bitmap mode", |s| s.mode == "bitmap").await;
    assert!(status.queue_bytes_used <= status.queue_bytes_max);
    rig.peer.set(|b| b.stalled = false);
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
    assert_eq!(drains(&rig), [DrainCause::Initial, DrainCause::Overflow]);
    let kinds: Vec<_> = agent.status().events.iter().map(|e| e.kind).collect();
    assert!(kinds.contains(&EventKind::ModeChanged) && kinds.contains(&EventKind::Drain));
}

#[tokio::test(start_paused = true)]
async fn the_spool_takes_what_memory_cannot_and_gives_it_back() {
    let rig = Rig { spool_bytes: 16 << 20, ..Rig::new(1, 8 << 20) };
    let agent = rig.start().await;
    until_settled(&agent).await;
    rig.peer.set(|b| b.stalled = true);
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    for n in 0..100 {
        export.write(n * REGION, stamped(n + 1, REGION as usize), false).await.expect("never fails");
        waiting::pass(Duration::from_millis(2)).await;
    }
    let status = agent.status();
    assert_eq!(status.mode, "data", "{status:#?}");
    assert!(status.spool_bytes_used > 4 << 20, "{} spooled", status.spool_bytes_used);
    rig.peer.set(|b| b.stalled = false);
    let status = until_settled(&agent).await;
    assert_eq!((status.spool_bytes_used, status.counters.drained_bytes), (0, 0));
    rig.assert_log_equals_sources();
}

#[tokio::test(start_paused = true)]
async fn a_spool_that_cannot_be_read_back_costs_an_incarnation_but_no_data() {
    let rig = Rig { spool_bytes: 16 << 20, ..Rig::new(1, 8 << 20) };
    let agent = rig.start().await;
    until_settled(&agent).await;
    rig.peer.set(|b| b.down = true);
    rig.peer.cut();
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    for n in 0..100 {
        export.write(n * REGION, stamped(n + 1, REGION as usize), false).await.expect("never fails");
        waiting::pass(Duration::from_millis(2)).await;
    }
    let file = rig.dir.file("spool").expect("spooled");
    file.damage(|bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1));
    rig.peer.set(|b| b.down = false);
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
    assert_eq!(drains(&rig), [DrainCause::Initial, DrainCause::AgentState]);
}

#[tokio::test(start_paused = true)]
async fn reconnects_send_again_only_what_was_not_stored() {
    let rig = Rig::new(1, 4 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    for n in 0..64 {
        export.write(n * 4096, stamped(n + 1, 4096), false).await.expect("never fails");
        if n % 8 == 0 {
            rig.peer.cut();
        }
        waiting::pass(Duration::from_millis(n % 50)).await;
    }
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
    assert_eq!(drains(&rig), [DrainCause::Initial]);
    assert_eq!(rig.peer.log().received_bytes, 64 * 4096, "the log holds each write once");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_promises_no_zeros_after_trim_is_read_back() {
    let rig = Rig { trim_zeroes: false, queue_bytes: 16 << 20, ..Rig::new(1, 4 << 20) };
    let agent = rig.start().await;
    until_settled(&agent).await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(0, stamped(1, 2 << 20), false).await.expect("written");
    let before = agent.status().next_seq.expect("known");
    export.trim(4096, (2 << 20) - 8192, false).await.expect("trimmed");
    until_settled(&agent).await;
    rig.assert_log_equals_sources();
    let log = rig.peer.log();
    let behind = &log.records[before.0 as usize - 1..];
    assert!(behind.iter().all(|record| matches!(record.body, RecordBody::Write { .. })), "{} records", behind.len());
}

#[tokio::test(start_paused = true)]
async fn requests_out_of_range_or_unaligned_change_nothing() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    assert!(agent.export(&"nope".parse().expect("a name")).is_none());
    assert_eq!(export.write((1 << 20) - 512, Bytes::from(vec![1; 1024]), false).await, Err(Errno::NoSpace));
    assert_eq!(export.write(1, Bytes::from(vec![1; 512]), false).await, Err(Errno::Invalid));
    assert_eq!(export.write(0, Bytes::from(vec![1; 100]), false).await, Err(Errno::Invalid));
    assert_eq!(export.trim(u64::MAX - 511, 512, false).await, Err(Errno::Invalid));
    assert_eq!(export.write(0, Bytes::new(), false).await, Ok(()));
    assert_eq!(rig.disks[0].1.contents(), vec![0; 1 << 20]);
    until_settled(&agent).await;
    assert!(agent.status().next_seq > Some(Seq(1)));
}

#[tokio::test(start_paused = true)]
async fn a_missed_objective_is_an_event_and_so_is_its_end() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    rig.peer.set(|b| b.stalled = true);
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(0, stamped(1, 4096), false).await.expect("written");
    let rpo = |s: &crate::AgentStatus| s.events.iter().filter(|e| e.kind == EventKind::Rpo).count();
    let status = until(&agent, "behind", |s| rpo(s) == 1).await;
    assert!(status.rpo_seconds > 10.0);
    rig.peer.set(|b| b.stalled = false);
    until(&agent, "well again", |s| rpo(s) == 2 && s.rpo_seconds == 0.0).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_mark_hears_that_the_agent_stopped() {
    let rig = Rig::new(1, 1 << 20);
    let agent = rig.start().await;
    until_settled(&agent).await;
    rig.peer.set(|b| b.stalled = true);
    let waiting = tokio::spawn({
        let agent = std::sync::Arc::clone(&agent);
        async move { agent.mark("late").await }
    });
    waiting::pass(Duration::from_millis(100)).await;
    assert!(matches!(agent.stop(Duration::from_secs(1)).await, StopOutcome::Unclean { .. }));
    assert!(matches!(waiting.await.expect("no panic"), Err(AgentError::Stopping)));
}

/// Real files in a real directory, in real time.
#[tokio::test]
async fn state_lies_in_real_files_that_one_agent_holds() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let rig = Rig::new(1, 1 << 20);
    let config = crate::AgentConfig { state_dir: dir.path().join("agent"), spool_bytes: 1 << 20, ..rig.config() };
    let start = || {
        let dialer = std::sync::Arc::new(std::sync::Arc::clone(&rig.peer));
        crate::Agent::start(config.clone(), dialer, std::sync::Arc::new(crate::SystemClock))
    };
    let agent = start().await.expect("a good configuration");
    assert!(matches!(start().await, Err(AgentError::Config { .. })), "one agent at a time");
    let export = agent.export(&rig.disks[0].0).expect("a disk of this agent");
    export.write(0, stamped(1, 8192), true).await.expect("written");
    until_settled(&agent).await;
    let outcome = agent.stop(Duration::from_secs(5)).await;
    assert!(matches!(outcome, StopOutcome::Clean { .. }), "{outcome:?}");
    drop((agent, export));
    let agent = start().await.expect("a good configuration");
    assert_eq!(agent.status().mode, "data");
    agent.stop(Duration::from_secs(5)).await;
    drop(agent);
    rig.assert_log_equals_sources();
}
