//! A process server in memory: admits by the protocol's rules, keeps the log, says `stored`, and notes every violation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use format::wire::{Frame, Hello, Refusal, Refused, Start, Stored, Welcome, credit_cost};
use model::{DiskId, Incarnation, LogHead, Position, Record, RecordBody, RecordDigester, Seq};
use tokio::sync::{Notify, watch};
use transport::{Connection, Peer, Role, TransportError};

use crate::Dialer;

/// The log and what goes wrong with it.
#[derive(Default)]
pub(super) struct Log {
    pub(super) records: Vec<Record>,
    pub(super) head: LogHead,
    pub(super) violations: Vec<String>,
    pub(super) hellos: Vec<Hello>,
    pub(super) incarnations: Vec<Incarnation>,
    pub(super) received_bytes: u64,
}

/// What the peer does.
#[derive(Clone, Copy)]
pub(super) struct Behaviour {
    /// Dials fail.
    pub(super) down: bool,
    /// Records are taken, but nothing is said to be stored and no credit comes back.
    pub(super) stalled: bool,
    /// What arrives is left lying: a connection that breaks then takes it along.
    pub(super) deaf: bool,
    pub(super) credit: u64,
    /// Time from receipt to `stored`.
    pub(super) delay: Duration,
}

pub(super) struct FakePeer {
    log: Mutex<Log>,
    pub(super) behaviour: watch::Sender<Behaviour>,
    cut: Notify,
    generation: watch::Sender<u64>,
}

impl FakePeer {
    pub(super) fn new() -> Arc<Self> {
        let (credit, delay) = (8 << 20, Duration::from_millis(3));
        let behaviour = Behaviour { down: false, stalled: false, deaf: false, credit, delay };
        Arc::new(FakePeer {
            log: Mutex::default(),
            behaviour: watch::Sender::new(behaviour),
            cut: Notify::new(),
            generation: watch::Sender::new(0),
        })
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no panic while held")
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        self.behaviour.send_modify(change);
    }

    /// Ends the connection there is.
    pub(super) fn cut(&self) {
        self.generation.send_modify(|n| *n += 1);
        self.cut.notify_waiters();
    }

    /// The stream's images after the records up to `seq`.
    pub(super) fn images(&self, seq: Seq, sizes: &BTreeMap<DiskId, usize>) -> BTreeMap<DiskId, Vec<u8>> {
        let log = self.log();
        apply(log.records.iter().take_while(|record| record.seq <= seq), sizes)
    }

    /// Positions that are points.
    pub(super) fn points(&self) -> Vec<Seq> {
        points(&self.log().records)
    }
}

/// Positions of a log that are points: not from a DrainBegin (or behind the last good one before it) to its end.
pub(super) fn points(records: &[Record]) -> Vec<Seq> {
    let (mut points, mut draining) = (Vec::new(), true);
    for record in records {
        match &record.body {
            RecordBody::DrainBegin { lost_after, .. } => {
                draining = true;
                points.retain(|seq| seq <= lost_after);
            }
            RecordBody::DrainEnd(_) => draining = false,
            _ => {}
        }
        if !draining {
            points.push(record.seq);
        }
    }
    points
}

/// Applies records to disks of zeros.
pub(super) fn apply<'a>(
    records: impl Iterator<Item = &'a Record>,
    sizes: &BTreeMap<DiskId, usize>,
) -> BTreeMap<DiskId, Vec<u8>> {
    let mut images: BTreeMap<_, _> = sizes.iter().map(|(disk, size)| (*disk, vec![0; *size])).collect();
    for record in records {
        match &record.body {
            RecordBody::Write { disk, extent, data } => {
                let image = images.get_mut(disk).expect("a known disk");
                image[extent.offset() as usize..extent.end() as usize].copy_from_slice(data);
            }
            RecordBody::Zero { disk, extent } => {
                let image = images.get_mut(disk).expect("a known disk");
                image[extent.offset() as usize..extent.end() as usize].fill(0);
            }
            _ => {}
        }
    }
    images
}

#[async_trait]
impl Dialer for Arc<FakePeer> {
    async fn dial(&self, address: &str) -> Result<Connection, TransportError> {
        if self.behaviour.borrow().down {
            let source = std::io::ErrorKind::ConnectionRefused.into();
            return Err(TransportError::Unreachable { peer: address.to_owned(), source });
        }
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        let name = |s: &str| s.parse().expect("a name");
        let agent = Peer { role: Role::Agent, name: name("m1") };
        let server = Peer { role: Role::ProcessServer, name: name("ps1") };
        let inbound = Connection::over(agent, "agent".to_owned(), Box::new(theirs));
        let peer = Arc::clone(self);
        tokio::spawn(async move { peer.serve(inbound).await });
        Ok(Connection::over(server, address.to_owned(), Box::new(ours)))
    }
}

impl FakePeer {
    async fn serve(self: Arc<Self>, mut connection: Connection) {
        let mut generation = self.generation.subscribe();
        let mine = *generation.borrow_and_update();
        let Ok(Frame::Hello(hello)) = connection.reader.read().await else { return };
        let answer = self.admit(&hello);
        let credit = self.behaviour.borrow().credit;
        match answer {
            Err(refused) => {
                let _ = connection.writer.write(&Frame::Refused(refused)).await;
                let _ = connection.writer.flush().await;
            }
            Ok(head) => {
                let welcome = Welcome { protocol: 1, head, credit };
                let _ = connection.writer.write(&Frame::Welcome(welcome)).await;
                let _ = connection.writer.flush().await;
                tokio::select! {
                    biased;
                    _ = generation.wait_for(|now| *now != mine) => {}
                    () = self.stream(connection, hello.incarnation, credit) => {}
                }
            }
        }
    }

    fn admit(&self, hello: &Hello) -> Result<LogHead, Refused> {
        let mut log = self.log();
        log.hellos.push(hello.clone());
        let refuse = |reason, text: &str| Err(Refused { reason, text: text.to_owned() });
        let head = log.head;
        let compared = match hello.start {
            Start::Resume if hello.next_seq <= head.position.seq => return refuse(Refusal::RevertedMemory, "next seq"),
            Start::Resume => {
                let begins = hello.stored.position == head.position && hello.stored.digest == head.digest;
                if hello.incarnation != head.position.incarnation && !begins {
                    return refuse(Refusal::RevertedMemory, "another life");
                }
                false
            }
            Start::New { compared_to: Some(at), .. } if at != head.position.seq => {
                return refuse(Refusal::StaleCompare, "compare again");
            }
            Start::New { compared_to, .. } => compared_to.is_some(),
        };
        if !compared {
            if hello.stored.position.seq > head.position.seq {
                return refuse(Refusal::StoreLost, "the log is shorter");
            }
            if hello.map_version < head.map_version {
                return refuse(Refusal::RevertedDisk, "map version");
            }
            if hello.stored.position.seq == head.position.seq && hello.stored.digest != head.digest {
                return refuse(Refusal::RevertedMemory, "digest");
            }
        }
        Ok(head)
    }

    async fn stream(&self, connection: Connection, life: Incarnation, credit: u64) {
        let Connection { mut reader, mut writer, .. } = connection;
        let (replies, mut outbox) = tokio::sync::mpsc::unbounded_channel::<(Frame, tokio::time::Instant)>();
        let (pongs, mut pong_box) = tokio::sync::mpsc::unbounded_channel::<Frame>();
        let answer = async {
            let mut waiting: Option<(Frame, tokio::time::Instant)> = None;
            loop {
                let due = waiting.as_ref().map(|(_, due)| *due);
                let mut behaviour = self.behaviour.subscribe();
                // A store that is out holds `stored` and credit back, but the server still answers.
                let ready = async {
                    let due = due.expect("polled only while something waits");
                    waiting::takes(due.saturating_duration_since(tokio::time::Instant::now())).await;
                    behaviour.wait_for(|b| !b.stalled).await.map(|_| ()).expect("the sender is in self");
                };
                let frame = tokio::select! {
                    biased;
                    Some(pong) = pong_box.recv() => pong,
                    () = ready, if due.is_some() => waiting.take().expect("something waits").0,
                    Some(next) = outbox.recv(), if due.is_none() => {
                        waiting = Some(next);
                        continue;
                    }
                    else => return,
                };
                if writer.write(&frame).await.is_err() || writer.flush().await.is_err() {
                    return;
                }
            }
        };
        let take = async {
            let mut behaviour = self.behaviour.subscribe();
            while let Ok(frame) = reader.read().await {
                behaviour.wait_for(|b| !b.deaf).await.expect("the sender is in self");
                let due = tokio::time::Instant::now() + self.behaviour.borrow().delay;
                match frame {
                    Frame::Data(records) => {
                        let cost = credit_cost(&records);
                        if cost > credit {
                            self.log().violations.push("credit".to_owned());
                        }
                        let stored = self.take(records, life);
                        let _ = replies.send((Frame::Stored(stored), due));
                        let _ = replies.send((Frame::Credit(cost), due));
                    }
                    Frame::Ping(n) => {
                        let _ = pongs.send(Frame::Pong(n));
                    }
                    Frame::Bye => return,
                    other => self.log().violations.push(format!("{:?}", other.kind())),
                }
            }
        };
        tokio::select! { biased; () = take => {}, () = answer => {} }
    }

    fn take(&self, records: Vec<Record>, life: Incarnation) -> Stored {
        let mut log = self.log();
        for record in records {
            if record.seq != log.head.position.seq.next() {
                let text = format!("gap: {} behind {}", record.seq, log.head.position.seq);
                log.violations.push(text);
            }
            if record.time < log.head.time || record.map_version < log.records.last().map_or(0, |r| r.map_version) {
                log.violations.push(format!("time or map version of {} went back", record.seq));
            }
            let opens = matches!(record.body, RecordBody::DrainBegin { .. } | RecordBody::Disk { .. });
            if log.incarnations.last() != Some(&life) {
                if !opens {
                    log.violations.push(format!("{} opens a life without a drain", record.seq));
                }
                if matches!(record.body, RecordBody::DrainBegin { .. }) {
                    log.incarnations.push(life);
                }
            }
            if let RecordBody::Write { data, extent, .. } = &record.body {
                assert_eq!(data.len() as u64, extent.len());
                log.received_bytes += extent.len();
            }
            let digest = RecordDigester::resume(log.head.digest).push(&record);
            log.head = LogHead {
                position: Position { incarnation: life, seq: record.seq },
                digest,
                map_version: log.head.map_version.max(record.map_version),
                time: record.time,
            };
            log.records.push(record);
        }
        Stored { seq: log.head.position.seq, digest: log.head.digest }
    }
}
