//! Peers with a valid certificate and bad intentions: they play recorded sessions again, speak out of turn, and claim
//! another machine's past. Each is refused or dropped by name, and no stream but their own has changed.

use std::sync::Arc;
use std::time::Duration;

use format::wire::{Frame, Hello, Refusal, Stored, Welcome};
use model::{LogHead, RecordDigest, Seq};
use store::Faults;

use super::agent::Agent;
use super::site::{Site, dial};
use super::workload::Workload;
use crate::ProcessServer;

/// What a stranger with this machine's certificate is told who says this HELLO; and what happens to the frames after it.
async fn play(
    server: &Arc<ProcessServer>,
    machine: &str,
    hello: Hello,
    then: Option<&Frame>,
) -> Result<Welcome, Refusal> {
    let mut connection = dial(server, machine);
    connection.writer.write(&Frame::Hello(hello)).await.expect("the server reads");
    connection.writer.flush().await.expect("the server reads");
    let welcome = match connection.reader.read().await.expect("an answer") {
        Frame::Welcome(welcome) => welcome,
        Frame::Refused(refused) => return Err(refused.reason),
        other => panic!("an answer to HELLO, not {other:?}"),
    };
    if let Some(frame) = then {
        connection.writer.write(frame).await.expect("the server reads");
        connection.writer.flush().await.expect("the server reads");
        let closed = async {
            loop {
                match connection.reader.read().await {
                    Ok(Frame::Stored(stored)) => panic!("acknowledged: {stored:?}"),
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), closed).await.expect("the server ends the session");
    }
    Ok(welcome)
}

/// A machine with three sessions behind it: each HELLO it said, and each DATA frame it sent.
async fn recorded(site: &Site, server: &Arc<ProcessServer>) -> (Agent, Vec<Hello>, Vec<Frame>) {
    let mut agent = Agent::new(site, "db", 1);
    let mut hellos = vec![agent.hello()];
    agent.connect(server).await.expect("welcome");
    let mut workload = Workload::new(7);
    workload.sectors_max = 40;
    for _ in 0..3 {
        (0..20).for_each(|_| agent.number(workload.next()));
        agent.send_all().await.expect("connected");
        agent.until_stored().await.expect("stored");
        agent.cut();
        hellos.push(agent.hello());
        agent.connect(server).await.expect("welcome again");
    }
    agent.cut();
    let data = agent.numbered.chunks(10).map(|part| Frame::Data(part.to_vec())).collect();
    (agent, hellos, data)
}

/// Objects of a machine and their sizes.
async fn objects(site: &Site, machine: &str) -> Vec<(String, u64)> {
    let prefix = format!("machine/{machine}/");
    site.list().await.into_iter().filter(|(path, _)| path.starts_with(&prefix)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_recorded_session_played_again_with_the_same_certificate_adds_nothing() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let (mut agent, mut hellos, data) = recorded(&site, &server).await;
    let before = objects(&site, "db").await;
    let current = hellos.pop().expect("the last one");
    for hello in hellos {
        let refused = play(&server, "db", hello, None).await.expect_err("an old HELLO");
        assert!(refused.needs_compare(), "{refused:?}");
    }
    // The last HELLO still tells the truth; every frame behind it is of the past.
    for frame in &data {
        let welcome = play(&server, "db", current.clone(), Some(frame)).await.expect("a true HELLO");
        assert_eq!(welcome.head.position.seq, Seq(agent.numbered.len() as u64));
    }
    assert_eq!(objects(&site, "db").await, before, "nothing was added");
    // The control: the machine itself is taken at the same place, and what it adds is stored.
    agent.connect(&server).await.expect("welcome");
    agent.number(Workload::write_at(0, vec![1; 512]));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    assert_ne!(objects(&site, "db").await, before);
    agent.log_is_whole().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_played_again_while_its_machine_is_connected_costs_at_most_a_reconnect() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let (mut agent, hellos, data) = recorded(&site, &server).await;
    let mut workload = Workload::new(8);
    workload.sectors_max = 40;
    for hello in hellos {
        agent.connect(&server).await.expect("welcome");
        (0..5).for_each(|_| agent.number(workload.next()));
        agent.send_all().await.expect("connected");
        let _ = play(&server, "db", hello, data.first()).await;
        agent.cut();
        agent.connect(&server).await.expect("the machine itself is welcome");
        agent.send_all().await.expect("connected");
        agent.until_stored().await.expect("stored");
        agent.log_is_whole().await;
        agent.cut();
    }
}

#[tokio::test(start_paused = true)]
async fn one_machines_certificate_cannot_touch_anothers_stream() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let (mut db, hellos, data) = recorded(&site, &server).await;
    let before = objects(&site, "db").await;
    // With web's certificate, everything that db ever said.
    let (first, later) = hellos.split_first().expect("hellos");
    for hello in later {
        let refused = play(&server, "web", hello.clone(), None).await.expect_err("a past that is not web's");
        assert_eq!(refused, Refusal::StoreLost);
    }
    // A first HELLO names nobody: it opens web's own stream, and what follows goes there.
    let mut intruder = Agent::new(&site, "web", 1);
    assert_eq!(intruder.hello().incarnation, first.incarnation);
    intruder.connect_saying(&server, first.clone()).await.expect("welcome as web");
    intruder.numbered.clear();
    for frame in &data {
        intruder.write(frame).await.expect("the server reads");
    }
    intruder.cut();
    assert_eq!(objects(&site, "db").await, before, "db's stream is untouched");
    db.connect(&server).await.expect("db goes on where it was");
    db.number(Workload::write_at(0, vec![1; 512]));
    db.send_all().await.expect("connected");
    db.until_stored().await.expect("stored");
    db.log_is_whole().await;
    assert!(!objects(&site, "web").await.is_empty(), "the control: the intruder was taken, as web");
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_before_hello_ends_the_connection_and_begins_nothing() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let welcome = Welcome { protocol: 1, head: LogHead::default(), credit: 1 };
    let refused = format::wire::Refused { reason: Refusal::Busy, text: String::new() };
    let record = super::workload::record(1, 1, Workload::write_at(0, vec![1; 512]));
    let first = [
        Frame::Data(vec![record]),
        Frame::Welcome(welcome),
        Frame::Refused(refused),
        Frame::Stored(Stored { seq: Seq(1), digest: RecordDigest::default() }),
        Frame::Credit(1 << 40),
        Frame::Ping(1),
        Frame::Pong(1),
        Frame::Bye,
    ];
    for frame in first {
        let mut connection = dial(&server, "db");
        connection.writer.write(&frame).await.expect("the server reads");
        // A HELLO behind it comes too late; the pipe may be closed already.
        let _ = connection.writer.write(&Frame::Hello(Agent::new(&site, "db", 1).hello())).await;
        let _ = connection.writer.flush().await;
        let answer = tokio::time::timeout(Duration::from_secs(60), connection.reader.read()).await.expect("ended");
        assert!(answer.is_err(), "{:?} was answered: {answer:?}", frame.kind());
    }
    assert!(site.list().await.is_empty(), "no state was made");
    Agent::new(&site, "db", 1).connect(&server).await.expect("the control: HELLO first is answered");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_connections_that_say_nothing_is_let_go_and_an_honest_agent_served_meanwhile() {
    let site = Site::new();
    let server = site.server(&Faults::default());
    let begun = tokio::time::Instant::now();
    let mut flood: Vec<_> = (0..1000).map(|n| dial(&server, &format!("m{n}"))).collect();
    let mut agent = Agent::new(&site, "db", 1);
    agent.connect(&server).await.expect("welcome");
    agent.number(Workload::write_at(0, vec![1; 512]));
    agent.send_all().await.expect("connected");
    agent.until_stored().await.expect("stored");
    assert!(begun.elapsed() < Duration::from_secs(5), "served after {:?}", begun.elapsed());
    for silent in &mut flood {
        silent.reader.read().await.expect_err("let go");
    }
    assert!(begun.elapsed() <= Duration::from_secs(11), "let go after {:?}", begun.elapsed());
    assert_eq!(server.status().machines.len(), 1, "no stream was begun for any of them");
}
