//! A machine that is simulated: an agent without a disk, which speaks the wire to the gateway over TLS, with a certificate of
//! its own, and makes its writes up. It connects again whenever it is cut off.
//!
//! Its clock runs whether or not the gateway keeps up: a write's delay counts from when the machine would have made
//! it, credit or none, until it is `stored`. What an agent keeps on its side (queue, spool, dirty map, digest) is left out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use benches::Numbers;
use bytes::Bytes;
use format::wire::{Frame, Hello, Start, credit_cost};
use model::{
    DiskChange, DiskId, DiskName, DrainCause, Extent, Incarnation, LogHead, Mark, MarkKind, Position, Record,
    RecordBody, Seq, Timestamp,
};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use transport::{Connection, Identity, Role, TransportKind};

/// Bytes of a write.
const PAGE: usize = 4096;

/// Writes in a frame at most: a MiB, as an agent cuts frames.
const FRAME_WRITES: u64 = 255;

/// Size of each machine's disk.
const DISK_BYTES: u64 = 1 << 30;

/// How often a machine looks what it has to write.
const TICK: Duration = Duration::from_millis(250);

/// How often the gateway is asked whether it is there, as agents do.
const PING: Duration = Duration::from_secs(2);

/// Pause before the next try to connect.
const RETRY: Duration = Duration::from_millis(250);

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// So many bytes a second.
    Steady(f64),
    /// As much as the gateway takes.
    Loud,
}

/// What the driver sees of a machine.
#[derive(Default)]
pub struct Seen {
    /// Sessions that were welcomed, with everything sent before them stored.
    pub welcomes: AtomicU64,
    /// Bytes sent.
    pub bytes: AtomicU64,
    /// Records numbered, and records stored.
    pub made: AtomicU64,
    pub stored: AtomicU64,
    /// Seconds from each frame's writes until they were stored.
    delays: Mutex<Vec<f64>>,
    /// Why the last session ended.
    failure: Mutex<Option<String>>,
}

impl Seen {
    /// The delays since the last call.
    pub fn take_delays(&self) -> Vec<f64> {
        std::mem::take(&mut self.delays.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why the last session ended, if one did.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether everything made is stored.
    pub fn is_settled(&self) -> bool {
        // Relaxed: counters that are polled.
        self.made.load(Ordering::Relaxed) == self.stored.load(Ordering::Relaxed)
    }
}

/// A simulated machine.
pub struct Machine {
    pub identity: Identity,
    pub address: String,
    /// Where the pages of its writes come from.
    pub pool: Bytes,
    pub load: watch::Receiver<Load>,
    pub seen: Arc<Seen>,
    numbers: Numbers,
    incarnation: Incarnation,
    /// The end of the log as far as it was told.
    head: LogHead,
    sent: u64,
}

/// A session's state.
struct Session {
    connection: Connection,
    credit: u64,
    /// Writes that are due: since when, and how many.
    due: VecDeque<(Instant, u64)>,
    /// Frames sent: the last seq of each, and since when its writes were due.
    sent: VecDeque<(u64, Instant)>,
    /// Bytes that were due and made no whole page yet.
    rest: f64,
    looked: Instant,
}

impl Machine {
    pub fn new(
        number: u64,
        identity: Identity,
        address: String,
        pool: Bytes,
        load: watch::Receiver<Load>,
        seen: Arc<Seen>,
    ) -> Self {
        let mut incarnation = [7; 16];
        incarnation[..8].copy_from_slice(&number.to_le_bytes());
        let (numbers, incarnation) = (Numbers(number), Incarnation(incarnation));
        Self { identity, address, pool, load, seen, numbers, incarnation, head: LogHead::default(), sent: 0 }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        loop {
            if let Err(error) = self.session().await {
                *self.seen.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
            }
            sleep(RETRY).await;
        }
    }

    async fn session(&mut self) -> Result<()> {
        let kind = TransportKind::Tls;
        let mut connection = transport::connect(&self.address, kind, &self.identity, Role::ProcessServer).await?;
        connection.writer.write(&Frame::Hello(self.hello()?)).await?;
        connection.writer.flush().await?;
        let welcome = match connection.reader.read().await? {
            Frame::Welcome(welcome) => welcome,
            other => bail!("the gateway answered HELLO with {other:?}"),
        };
        ensure!(welcome.head.position.seq.0 == self.sent, "only a settled machine connects again");
        self.head = welcome.head;
        let (due, sent, looked) = (VecDeque::new(), VecDeque::new(), Instant::now());
        let mut session = Session { connection, credit: welcome.credit, due, sent, rest: 0.0, looked };
        if self.sent == 0 {
            let opening = self.opening()?;
            self.send(&mut session, Instant::now(), opening).await?;
            while self.head.position.seq.0 < self.sent {
                let frame = session.connection.reader.read().await?;
                self.heard(&mut session, frame)?;
            }
            self.seen.take_delays();
        }
        // Relaxed: a counter that is polled.
        self.seen.welcomes.fetch_add(1, Ordering::Relaxed);
        self.carry(session).await
    }

    async fn carry(&mut self, mut session: Session) -> Result<()> {
        // Machines of one start do not tick together.
        let draw = self.numbers.next().context("endless")?;
        let start = Instant::now() + TICK.mul_f64((draw % 1000) as f64 / 1000.0);
        let (mut tick, mut ping) = (tokio::time::interval_at(start, TICK), interval(PING));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut more = false;
        loop {
            tokio::select! {
                biased;
                frame = session.connection.reader.read() => self.heard(&mut session, frame?)?,
                _ = ping.tick() => {
                    session.connection.writer.write(&Frame::Ping(1)).await?;
                    session.connection.writer.flush().await?;
                }
                _ = tick.tick() => self.look(&mut session),
                () = tokio::task::yield_now(), if more => {}
            }
            more = self.send_due(&mut session).await?;
        }
    }

    /// Makes what is due since the last look.
    fn look(&mut self, session: &mut Session) {
        let now = Instant::now();
        let passed = now.duration_since(session.looked).as_secs_f64();
        session.looked = now;
        let Load::Steady(rate) = *self.load.borrow_and_update() else { return };
        let bytes = session.rest + rate * passed;
        let mut writes = (bytes / PAGE as f64) as u64;
        session.rest = bytes - (writes * PAGE as u64) as f64;
        // Relaxed: a counter that is polled.
        self.seen.made.fetch_add(writes, Ordering::Relaxed);
        while writes > 0 {
            let count = writes.min(FRAME_WRITES);
            session.due.push_back((now, count));
            writes -= count;
        }
    }

    /// Sends one frame of what is due, if there is credit; whether it did. What comes back is read between frames.
    async fn send_due(&mut self, session: &mut Session) -> Result<bool> {
        if session.due.is_empty() && *self.load.borrow() == Load::Loud {
            // Relaxed: a counter that is polled.
            self.seen.made.fetch_add(FRAME_WRITES, Ordering::Relaxed);
            session.due.push_back((Instant::now(), FRAME_WRITES));
        }
        let Some((since, count)) = session.due.front().copied() else { return Ok(false) };
        if session.credit < count * (PAGE as u64 + 64) {
            return Ok(false);
        }
        session.due.pop_front();
        let records = self.writes(count)?;
        self.send(session, since, records).await?;
        Ok(true)
    }

    async fn send(&mut self, session: &mut Session, since: Instant, records: Vec<Record>) -> Result<()> {
        let cost = credit_cost(&records);
        session.credit = session.credit.saturating_sub(cost);
        session.sent.push_back((self.sent, since));
        // Relaxed: a counter that is polled.
        self.seen.bytes.fetch_add(cost, Ordering::Relaxed);
        session.connection.writer.write(&Frame::Data(records)).await?;
        Ok(session.connection.writer.flush().await?)
    }

    fn heard(&mut self, session: &mut Session, frame: Frame) -> Result<()> {
        match frame {
            Frame::Stored(stored) => {
                let (now, seq) = (Instant::now(), stored.seq);
                let mut delays = self.seen.delays.lock().unwrap_or_else(PoisonError::into_inner);
                while let Some((_, since)) = session.sent.pop_front_if(|(last, _)| *last <= seq.0) {
                    delays.push(now.duration_since(since).as_secs_f64());
                }
                let (position, time) = (Position { incarnation: self.incarnation, seq }, time_of(seq.0));
                self.head = LogHead { position, digest: stored.digest, map_version: 1, time };
                // Relaxed: a counter that is polled.
                self.seen.stored.store(seq.0, Ordering::Relaxed);
            }
            Frame::Credit(bytes) => session.credit += bytes,
            Frame::Pong(_) => {}
            other => bail!("the gateway said {other:?}"),
        }
        Ok(())
    }

    fn hello(&self) -> Result<Hello> {
        let fresh = self.sent == 0;
        let start = if fresh { Start::New { cause: DrainCause::Initial, compared_to: None } } else { Start::Resume };
        Ok(Hello {
            protocol: 1,
            instance: self.incarnation.0,
            incarnation: self.incarnation,
            start,
            next_seq: Seq(if fresh { 0 } else { self.sent + 1 }),
            map_version: 1,
            stored: self.head,
            disks: vec![("root".parse()?, DISK_BYTES)],
        })
    }

    /// An empty drain.
    fn opening(&mut self) -> Result<Vec<Record>> {
        let name: DiskName = "root".parse()?;
        let added = RecordBody::Disk { disk: name.id(), name, size: DISK_BYTES, change: DiskChange::Added };
        let (cause, incarnation, lost_after) = (DrainCause::Initial, self.incarnation, Seq(0));
        let mark = Mark { kind: MarkKind::Crash, id: [1; 16], label: String::new() };
        let begin = RecordBody::DrainBegin { cause, incarnation, lost_after };
        // Relaxed: a counter that is polled.
        self.seen.made.fetch_add(3, Ordering::Relaxed);
        Ok([begin, added, RecordBody::DrainEnd(mark)].map(|body| self.number(body)).into())
    }

    /// Writes of whole pages at random places, none of which was ever seen before.
    fn writes(&mut self, count: u64) -> Result<Vec<Record>> {
        let disk: DiskId = "root".parse::<DiskName>()?.id();
        let mut pages = Vec::with_capacity(count as usize * PAGE);
        for number in self.numbers.by_ref().take(count as usize) {
            let at = number as usize % (self.pool.len() - PAGE);
            pages.extend_from_slice(&number.to_le_bytes());
            pages.extend_from_slice(&self.pool[at + 8..at + PAGE]);
        }
        let mut pages = Bytes::from(pages);
        let mut records = Vec::with_capacity(count as usize);
        while !pages.is_empty() {
            let page = self.numbers.next().context("endless")? % (DISK_BYTES / PAGE as u64);
            let extent = Extent::new(page * PAGE as u64, PAGE as u64)?;
            records.push(self.number(RecordBody::Write { disk, extent, data: pages.split_to(PAGE) }));
        }
        Ok(records)
    }

    fn number(&mut self, body: RecordBody) -> Record {
        self.sent += 1;
        Record { seq: Seq(self.sent), time: time_of(self.sent), map_version: 1, body }
    }
}

/// Clocks of records go with their numbers.
fn time_of(seq: u64) -> Timestamp {
    Timestamp(1_000_000 + seq)
}
