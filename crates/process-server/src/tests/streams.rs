//! What goes in comes out: random workloads through real workers and inline ones, dedup, zeros, the largest write.

use std::time::Duration;

use model::{DrainCause, Incarnation, Mark, MarkKind, RecordBody, Seq};
use store::Faults;

use super::agent::Agent;
use super::site::{Site, eventually};
use super::workload::{Workload, disk_added};

async fn round_trip(seed: u64, workers: usize) {
    let site = Site::new();
    let server = site.server_with(&Faults::new(seed), |config| config.workers = workers);
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.number(disk_added("root"));
    let mut workload = Workload::new(seed);
    for _ in 0..4 {
        (0..30).for_each(|_| agent.number(workload.next()));
        agent.send_all().await.expect("connected");
    }
    agent.until_stored().await.expect("stored");
    agent.log_is_whole().await;
    let status = &server.status().machines[0];
    assert_eq!((status.stored_seq, status.connected), (agent.numbered.len() as u64, true));
    assert!(status.dedup_hits > 0, "seed {seed}: duplicates are found");
    assert_eq!(status.bytes_out, agent.witness.object_bytes);
    assert!(status.bytes_out < status.bytes_in, "zeros, duplicates and repetition do not travel");
    eventually("nothing is in flight", || server.status().machines[0].in_flight_bytes == 0).await;
    server.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn random_workloads_read_back_as_sent() {
    for seed in 0..12 {
        round_trip(seed, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_workloads_read_back_as_sent_through_parallel_workers() {
    for seed in 100..106 {
        round_trip(seed, 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn duplicates_and_zeros_are_not_stored_again() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    let data = bytes::Bytes::from(Workload::new(7).bytes(512 << 10));
    agent.number(Workload::write_at(0, data.clone()));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    let once = agent.witness.object_bytes;
    assert!(once > 512 << 10, "random bytes do not shrink");
    for copy in 1..8u64 {
        agent.number(Workload::write_at(copy << 20, data.clone()));
        agent.number(Workload::write_at((100 + copy) << 20, vec![0; 1 << 20]));
    }
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    assert!(agent.witness.object_bytes - once < 32 << 10, "{} more bytes", agent.witness.object_bytes - once);
    agent.log_is_whole().await;
    assert_eq!(server.status().machines[0].dedup_hits, 7 * 8);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_waits_for_is_stored_at_once() {
    let site = Site::new();
    let age = Duration::from_secs(5);
    let server = site.server_with(&Faults::default(), |config| config.segment_age = age);
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    let mark = |kind, id| Mark { kind, id: [id; 16], label: String::new() };
    let (cause, incarnation) = (DrainCause::Initial, Incarnation([1; 16]));
    let bodies = [
        vec![
            RecordBody::DrainBegin { cause, incarnation, lost_after: Seq(0) },
            RecordBody::DrainEnd(mark(MarkKind::Crash, 1)),
        ],
        vec![RecordBody::Mark(mark(MarkKind::Application, 2))],
        // The control: nobody waits for a crash point.
        vec![RecordBody::Mark(mark(MarkKind::Crash, 3))],
    ];
    let mut took = Vec::new();
    for bodies in bodies {
        agent.number(Workload::write_at(0, vec![1; 4096]));
        bodies.into_iter().for_each(|body| agent.number(body));
        let begun = tokio::time::Instant::now();
        agent.send_all().await.expect("connected");
        agent.until_stored().await.expect("stored");
        took.push(begun.elapsed());
    }
    assert!(took[0] < age / 10 && took[1] < age / 10 && took[2] >= age, "{took:?}");
    agent.log_is_whole().await;
}

#[tokio::test(start_paused = true)]
async fn dedup_can_be_off() {
    let site = Site::new();
    let server = site.server_with(&Faults::default(), |config| config.dedup_entries_max = 0);
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    let data = bytes::Bytes::from(Workload::new(7).bytes(64 << 10));
    (0..4).for_each(|n| agent.number(Workload::write_at(n << 16, data.clone())));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    assert!(agent.witness.object_bytes > 4 * (64 << 10));
    agent.log_is_whole().await;
}

#[tokio::test(start_paused = true)]
async fn the_largest_write_and_one_off_its_chunks_travel() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    let mut workload = Workload::new(3);
    agent.number(Workload::write_at(0, workload.bytes(32 << 20)));
    agent.number(Workload::write_at(512, workload.bytes((200 << 10) + 512)));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    agent.log_is_whole().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_while_nothing_comes_in() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    let before = site.list().await;
    waiting::pass(Duration::from_secs(100)).await;
    assert_eq!(site.list().await, before);
    assert_eq!(before.len(), 3, "an epoch, its opening, one segment: {before:?}");
}

#[tokio::test(start_paused = true)]
async fn a_segment_is_sealed_by_age_or_by_size() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    let begun = tokio::time::Instant::now();
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    let age = begun.elapsed();
    assert!(age >= Duration::from_millis(200) && age < Duration::from_millis(300), "by age: {age:?}");
    let mut workload = Workload::new(5);
    (0..64).for_each(|n| agent.number(Workload::write_at(n << 16, workload.bytes(64 << 10))));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    let segments = site.list().await.len() - 3;
    assert!((4..=16).contains(&segments), "4 MiB in segments of about 256 KiB: {segments}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_share_a_server_and_nothing_else() {
    let site = std::sync::Arc::new(Site::new());
    let server = site.server_with(&Faults::default(), |config| config.workers = 2);
    let mut tasks = Vec::new();
    for n in 0..6u8 {
        let (site, server) = (site.clone(), server.clone());
        tasks.push(tokio::spawn(async move {
            let mut agent = Agent::new(&site, &format!("m{n}"), n + 1);
            agent.connect(&server).await.expect("welcome");
            let mut workload = Workload::new(u64::from(n % 2));
            (0..60).for_each(|_| agent.number(workload.next()));
            agent.send_all().await.expect("connected");
            agent.until_stored().await.expect("stored");
            agent.log_is_whole().await;
        }));
    }
    for task in tasks {
        task.await.expect("each machine's stream is whole");
    }
    assert_eq!(server.status().machines.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_has_its_time_and_the_agent_goes_on_in_a_new_one() {
    let site = Site::new();
    // Shorter than the silence that ends a session.
    let life = Duration::from_secs(4);
    let server = site.server_with(&Faults::default(), |config| config.epoch_life = life);
    let mut agent = Agent::new(&site, "db", 1);
    let epoch = || server.status().machines[0].epoch;
    let mut workload = Workload::new(3);
    for expected in 1..=3 {
        agent.connect(&server).await.expect("welcome");
        (0..20).for_each(|_| agent.number(workload.next()));
        agent.send_all().await.expect("connected");
        agent.until_stored().await.expect("stored");
        assert_eq!(epoch(), Some(expected));
        waiting::pass(life).await;
        agent.until_closed().await;
    }
    // One that holds no segment has no life to end.
    agent.connect(&server).await.expect("welcome");
    waiting::pass(life * 2).await;
    agent.number(workload.next());
    agent.send_all().await.expect("still connected");
    agent.until_stored().await.expect("stored");
    assert_eq!(epoch(), Some(4));
    agent.log_is_whole().await;
}

#[tokio::test(start_paused = true)]
async fn stop_seals_uploads_and_acknowledges_what_is_open() {
    let site = Site::new();
    let server = site.server_with(&Faults::default(), |config| config.segment_age = Duration::from_secs(3600));
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.number(Workload::write_at(0, vec![7; 4096]));
    agent.send_all().await.expect("connected");
    eventually("all is received", || server.status().machines[0].received_seq == 2).await;
    assert!(agent.read_within(Duration::from_secs(100)).await.is_none(), "the segment is open");
    let stopping = server.clone();
    let stop = tokio::spawn(async move { stopping.stop(Duration::from_secs(10)).await });
    agent.until_stored().await.expect("the open segment is stored");
    agent.until_closed().await;
    stop.await.expect("stops");
    assert!(matches!(agent.numbered[1].body, RecordBody::Write { .. }));
    let mut late = super::site::dial(&server, "db");
    assert!(late.reader.read().await.is_err(), "a stopped server takes nobody");
}
