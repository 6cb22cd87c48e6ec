//! Peers that break rules, are slow, come twice or too early: each costs its own session and nothing else.

use std::time::Duration;

use format::wire::{Frame, Refusal, Start, Stored};
use model::{DrainCause, RecordDigest, Seq};
use store::Faults;
use tokio::io::AsyncWriteExt;
use transport::{Connection, Peer, Role};

use super::agent::Agent;
use super::site::{Site, dial, dial_as, dial_through, eventually, machine};
use super::workload::{Workload, record};

async fn ends(connection: &mut Connection) {
    let closed = async { while connection.reader.read().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(300), closed).await.expect("the server ends the session");
}

#[tokio::test(start_paused = true)]
async fn an_echo_is_answered_while_the_store_is_away() {
    let site = Site::new();
    let faults = Faults::default();
    let server = site.server(&faults);
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    faults.set_outage(true);
    let mut workload = Workload::new(1);
    (0..50).for_each(|_| agent.number(workload.next()));
    agent.send_all().await.expect("within the credit");
    let begun = tokio::time::Instant::now();
    agent.echo(77).await.expect("connected");
    assert!(begun.elapsed() < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_protocol_is_dropped_and_reaches_no_segment() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    let write = |seq| Frame::Data(vec![record(seq, 1, Workload::write_at(0, vec![1; 512]))]);
    let older = Frame::Data(vec![record(2, 0, Workload::write_at(0, vec![1; 512]))]);
    let stored = Frame::Stored(Stored { seq: Seq(9), digest: RecordDigest::default() });
    let bad = [write(3), write(1), older, stored, Frame::Hello(agent.hello()), Frame::Credit(1 << 40)];
    for frame in bad {
        agent.write(&frame).await.expect("the server reads");
        agent.until_closed().await;
        let welcome = agent.connect(&server).await.expect("only that session was lost");
        assert_eq!(welcome.head.position.seq, Seq(1), "after {:?}", frame.kind());
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_instead_of_frames_is_dropped() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    for garbage in [vec![0u8; 64], vec![0xff; 4096], b"GET / HTTP/1.1\r\n\r\n".repeat(10)] {
        let (mut ours, theirs) = tokio::io::duplex(1 << 16);
        let peer = Peer { role: Role::Agent, name: machine("db") };
        let connection = Connection::over(peer, "test".to_owned(), Box::new(theirs));
        let accepting = server.clone();
        let session = tokio::spawn(async move { accepting.accept(connection).await });
        ours.write_all(&garbage).await.expect("the server reads");
        session.await.expect("ends without a panic");
    }
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("the server goes on");
}

#[tokio::test(start_paused = true)]
async fn more_than_the_credit_is_dropped() {
    let site = Site::new();
    let faults = Faults::default();
    let server = site.server(&faults);
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    faults.set_outage(true);
    agent.credit = i64::MAX / 2;
    let data = bytes::Bytes::from(vec![1; 8 << 20]);
    // The first may come alone; the window is never larger than 64 MiB.
    (0..10).for_each(|n| agent.number(Workload::write_at(n << 23, data.clone())));
    let _ = agent.send_all().await;
    agent.until_closed().await;
    faults.clear();
    agent.connect(&server).await.expect("welcome again, and whatever had a slot is stored");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    agent.log_is_whole().await;
}

#[tokio::test(start_paused = true)]
async fn writes_larger_than_the_window_come_one_after_the_other() {
    let site = Site::new();
    let server = site.server_with(&Faults::default(), |config| config.in_flight_bytes = 0);
    let mut agent = Agent::new(&site, "db", 1);
    let welcome = agent.connect(&server).await.expect("welcome");
    let data = bytes::Bytes::from(vec![1; 16 << 20]);
    (0..10).for_each(|n| agent.number(Workload::write_at(n << 24, data.clone())));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    while agent.credit < welcome.credit as i64 {
        agent.read().await.expect("credit comes back");
    }
    assert_eq!(agent.credit, welcome.credit as i64, "all of it");
}

#[tokio::test(start_paused = true)]
async fn a_second_live_agent_is_refused_and_a_silent_one_replaced() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut first = Agent::new(&site, "db", 1);
    first.connect(&server).await.expect("welcome");
    first.send_all().await.expect("connected");
    first.until_stored().await.expect("stored");
    let mut second = Agent::new(&site, "db", 2);
    assert_eq!(second.connect(&server).await.expect_err("refused").reason, Refusal::SecondAgent);
    first.echo(1).await.expect("the first one is still welcome");
    waiting::pass(Duration::from_secs(11)).await;
    second.adopt(&first);
    second.connect(&server).await.expect("the first is silent");
    first.until_closed().await;
    second.send_all().await.expect("connected");
    second.until_stored().await.expect("stored");
    second.log_is_whole().await;
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_of_the_same_agent_replaces_its_session() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.send_all().await.expect("connected");
    let mut old = dial(&server, "other");
    std::mem::swap(&mut old, agent.connection());
    agent.connect(&server).await.expect("the same process again");
    ends(&mut old).await;
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
}

#[tokio::test(start_paused = true)]
async fn only_known_agents_are_served() {
    let site = Site::new();
    let server = site.server_with(&Faults::default(), |config| config.machines = Some([machine("db")].into()));
    let mut stranger = Agent::new(&site, "web", 1);
    assert_eq!(stranger.connect(&server).await.expect_err("refused").reason, Refusal::UnknownMachine);
    let mut applier = dial_as(&server, "db", Role::Applier);
    let hello = Agent::new(&site, "db", 1).hello();
    applier.writer.write(&Frame::Hello(hello)).await.expect("the server reads");
    applier.writer.flush().await.expect("the server reads");
    let Frame::Refused(refused) = applier.reader.read().await.expect("an answer") else { panic!("refused") };
    assert_eq!(refused.reason, Refusal::UnknownMachine);
    assert!(site.list().await.is_empty(), "no state was made for either");
    Agent::new(&site, "db", 1).connect(&server).await.expect("the one that is known");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_or_reads_nothing_is_let_go() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut silent = dial(&server, "db");
    let begun = tokio::time::Instant::now();
    ends(&mut silent).await;
    assert!(begun.elapsed() <= Duration::from_secs(11), "no HELLO");
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.until_closed().await;
    assert!(begun.elapsed() <= Duration::from_secs(140), "no frame");

    // Asks for echoes and never reads them: the pipe between is soon full.
    let mut deaf = dial_through(&server, "db", Role::Agent, 512);
    deaf.writer.write(&Frame::Hello(agent.hello())).await.expect("the server reads");
    let asking = async {
        let ping = Frame::Ping(1);
        while deaf.writer.write(&ping).await.is_ok() && deaf.writer.flush().await.is_ok() {
            waiting::pass(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), asking).await.expect("the server ends the session");
    let mut other = Agent::new(&site, "web", 1);
    other.connect(&server).await.expect("others are served");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_reverted_or_lost_its_past_is_refused_until_a_compare() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let mut agent = Agent::new(&site, "db", 1);
    agent.map_version = 5;
    agent.connect(&server).await.expect("welcome");
    let mut workload = Workload::new(2);
    (0..20).for_each(|_| agent.number(workload.next()));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    agent.cut();
    let good = agent.hello();
    let mut memory = good.clone();
    (memory.next_seq, memory.stored) = (Seq(10), Default::default());
    let mut disk = good.clone();
    (disk.map_version, disk.incarnation) = (4, model::Incarnation([9; 16]));
    disk.start = Start::New { cause: DrainCause::UncleanStop, compared_to: None };
    let mut lost = good.clone();
    lost.stored.position.seq = Seq(22);
    lost.next_seq = Seq(30);
    for (hello, reason) in
        [(memory, Refusal::RevertedMemory), (disk.clone(), Refusal::RevertedDisk), (lost, Refusal::StoreLost)]
    {
        let refused = agent.connect_saying(&server, hello).await.expect_err("refused");
        assert_eq!(refused.reason, reason, "{}", refused.text);
    }
    let mut compared = disk;
    compared.start = Start::New { cause: DrainCause::Compare, compared_to: Some(Seq(20)) };
    let refused = agent.connect_saying(&server, compared.clone()).await.expect_err("compared to an older head");
    assert_eq!(refused.reason, Refusal::StaleCompare);
    compared.start = Start::New { cause: DrainCause::Compare, compared_to: Some(Seq(21)) };
    agent.restart(9);
    agent.map_version = 4;
    agent.connect_saying(&server, compared).await.expect("a compare has run");
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("the older map goes on");
    eventually("stored", || server.status().machines[0].stored_seq == 22).await;
}
