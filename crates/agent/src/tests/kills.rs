//! Agents that die: killed at seeded moments, and with the power of the whole machine.

use std::sync::Arc;
use std::time::Duration;

use disk::memory::Operation as Op;
use nbd::Export;
use waiting::Deadline;

use super::rig::{REGION, Rig, Rng, stamped, until_settled};

const DISK_BYTES: u64 = 4 << 20;

/// One life: writes go on until it is ended. Returns what the next start may send again, in bytes.
async fn live_and_die(rig: &Rig, rng: &mut Rng) -> u64 {
    let agent = rig.start().await;
    let outage = rng.below(3);
    rig.peer.set(|b| (b.down, b.stalled) = (outage == 1, outage == 2));
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..4 {
        let (name, _) = &rig.disks[n % rig.disks.len()];
        let export = agent.export(name).expect("a disk of this agent");
        clients.spawn(write_for_ever(export, Rng::new(rng.next())));
    }
    waiting::pass(Duration::from_millis(rng.below(4000))).await;
    clients.shutdown().await;
    // An operation in flight ends in the source, or not at all, like the writes of a killed process.
    let deadline = Deadline::after(Duration::from_secs(60));
    while agent.in_flight() > 0 {
        deadline.look_again("what is in flight ends").await;
    }
    let status = agent.status();
    rig.peer.cut();
    drop(agent);
    tokio::task::yield_now().await;
    status.active_regions * REGION
}

async fn write_for_ever(export: Arc<dyn Export>, mut rng: Rng) {
    loop {
        let place = rng.below(DISK_BYTES / 4096 - 4) * 4096;
        let (export, kind, data) = (export.clone(), rng.below(12), stamped(rng.next() | 1, 8192));
        // A server cancels no request that has begun, though its client be gone.
        let request = tokio::spawn(async move {
            match kind {
                0 => export.flush().await,
                1 => export.trim(place, 8192, false).await,
                _ => export.write(place, data, false).await,
            }
        });
        let _ = request.await;
        waiting::pass(Duration::from_micros(rng.below(30_000))).await;
    }
}

async fn rounds(seed: u64, power: bool) {
    let rng = &mut Rng::new(seed);
    let rig = Rig::new(2, DISK_BYTES);
    rig.disks.iter().for_each(|(_, disk)| disk.set_delay(Op::Write, Duration::from_micros(100)));
    for round in 0..5 {
        let may_resend = live_and_die(&rig, rng).await;
        if power {
            rig.dir.power_cut(rng);
            rig.disks.iter().for_each(|(_, disk)| disk.power_cut(rng.next()));
        }
        rig.peer.set(|b| (b.down, b.stalled) = (false, false));
        let points_before = rig.peer.points();
        let agent = rig.start().await;
        let status = until_settled(&agent).await;
        rig.assert_log_equals_sources();
        let drained = status.counters.drained_bytes;
        assert!(drained <= may_resend, "seed {seed} round {round}: {drained} sent again, {may_resend} allowed");
        let points = rig.peer.points();
        assert!(points_before.iter().all(|seq| points.contains(seq) || round == 0), "points stay points");
        if rng.below(2) == 0 {
            agent.stop(Duration::from_secs(5)).await;
        }
        drop(agent);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_agent_sends_again_only_what_it_must_and_loses_nothing() {
    for seed in 0..6 {
        rounds(seed, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_power_cut_the_log_follows_the_disk_back() {
    for seed in 100..106 {
        rounds(seed, true).await;
    }
}
