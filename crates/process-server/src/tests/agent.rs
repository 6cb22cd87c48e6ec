//! An agent that speaks the wire and keeps everything it numbered, as the truth the log is held against.

use std::sync::Arc;
use std::time::Duration;

use format::wire::{DATA_BYTES_MAX, Frame, Hello, Refused, Start, Stored, Welcome, credit_cost, record_cost};
use model::{DrainCause, Incarnation, LogHead, Position, Record, RecordBody, RecordDigest, RecordDigester, Seq};
use tokio::time::timeout;
use transport::{Connection, TransportError};

use super::site::{Site, dial};
use super::witness::Witness;
use super::workload::{drain_begin, record};
use crate::ProcessServer;

/// The test agent.
pub struct Agent {
    pub name: String,
    pub instance: [u8; 16],
    pub incarnation: Incarnation,
    pub map_version: u64,
    /// Every record ever numbered; number n lies at n - 1.
    pub numbered: Vec<Record>,
    digests: Vec<RecordDigest>,
    digester: RecordDigester,
    /// Last record sent on the connection there is.
    pub sent: u64,
    /// As last heard.
    pub stored: LogHead,
    /// Below zero while a frame is in flight that is larger than the window.
    pub credit: i64,
    connection: Option<Connection>,
    pub witness: Witness,
    fresh: bool,
}

impl Agent {
    pub fn new(site: &Site, name: &str, life: u8) -> Self {
        Agent {
            name: name.to_owned(),
            instance: [life; 16],
            incarnation: Incarnation([life; 16]),
            map_version: 1,
            numbered: Vec::new(),
            digests: Vec::new(),
            digester: RecordDigester::default(),
            sent: 0,
            stored: LogHead::default(),
            credit: 0,
            connection: None,
            witness: Witness::new(site.log(name)),
            fresh: true,
        }
    }

    pub fn hello(&self) -> Hello {
        let start = match self.fresh {
            true => Start::New { cause: DrainCause::Initial, compared_to: None },
            false => Start::Resume,
        };
        Hello {
            protocol: 1,
            instance: self.instance,
            incarnation: self.incarnation,
            start,
            next_seq: Seq(if self.fresh { 0 } else { self.numbered.len() as u64 + 1 }),
            map_version: self.map_version,
            stored: self.stored,
            disks: Vec::new(),
        }
    }

    /// Connects and says HELLO; what the agent said last decides how. Panics on anything but WELCOME or REFUSED.
    pub async fn connect(&mut self, server: &Arc<ProcessServer>) -> Result<Welcome, Refused> {
        let hello = self.hello();
        self.connect_saying(server, hello).await
    }

    pub async fn connect_saying(&mut self, server: &Arc<ProcessServer>, hello: Hello) -> Result<Welcome, Refused> {
        let mut connection = dial(server, &self.name);
        connection.writer.write(&Frame::Hello(hello)).await.expect("the server reads");
        connection.writer.flush().await.expect("the server reads");
        match connection.reader.read().await.expect("an answer") {
            Frame::Welcome(welcome) => {
                self.welcomed(&welcome);
                self.connection = Some(connection);
                Ok(welcome)
            }
            Frame::Refused(refused) => Err(refused),
            other => panic!("an answer to HELLO, not {other:?}"),
        }
    }

    fn welcomed(&mut self, welcome: &Welcome) {
        let head = welcome.head.position.seq.0;
        assert!(head <= self.numbered.len() as u64, "the log has what nobody numbered");
        assert!(head >= self.stored.position.seq.0, "what was acknowledged is in the log");
        if let Some(last) = head.checked_sub(1) {
            assert_eq!(self.digests[last as usize], welcome.head.digest, "one past");
        }
        (self.stored, self.sent, self.credit) = (welcome.head, head, welcome.credit as i64);
        if std::mem::take(&mut self.fresh) {
            self.number(drain_begin(self.incarnation, Seq(head)));
        }
    }

    /// A new life of the agent that goes on behind what the log has; what is not in the log is forgotten.
    pub fn restart(&mut self, life: u8) {
        (self.instance, self.incarnation, self.fresh) = ([life; 16], Incarnation([life; 16]), true);
        self.connection = None;
    }

    pub fn number(&mut self, body: RecordBody) {
        let record = record(self.numbered.len() as u64 + 1, self.map_version, body);
        self.digests.push(self.digester.push(&record));
        self.numbered.push(record);
    }

    pub fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("connected")
    }

    /// The connection breaks.
    pub fn cut(&mut self) {
        self.connection = None;
    }

    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Sends what was numbered and not sent, in frames of about a MiB, within the credit; reads what comes meanwhile.
    pub async fn send_all(&mut self) -> Result<(), TransportError> {
        while (self.sent as usize) < self.numbered.len() {
            let mut frame = Vec::new();
            for record in &self.numbered[self.sent as usize..] {
                let bytes = credit_cost(&frame) + record_cost(record);
                if !frame.is_empty() && bytes > 1 << 20 || bytes > DATA_BYTES_MAX as u64 {
                    break;
                }
                frame.push(record.clone());
            }
            let cost = credit_cost(&frame);
            while self.credit < i64::try_from(cost).expect("a frame") && self.sent > self.stored.position.seq.0 {
                self.read().await?;
            }
            self.credit -= i64::try_from(cost).expect("a frame");
            self.sent += frame.len() as u64;
            self.write(&Frame::Data(frame)).await?;
        }
        Ok(())
    }

    pub async fn write(&mut self, frame: &Frame) -> Result<(), TransportError> {
        let connection = self.connection();
        connection.writer.write(frame).await?;
        connection.writer.flush().await
    }

    /// Reads one frame; `stored` is held against the log at that very moment.
    pub async fn read(&mut self) -> Result<Frame, TransportError> {
        let frame = self.connection().reader.read().await?;
        match &frame {
            Frame::Stored(stored) => self.heard(*stored).await,
            Frame::Credit(bytes) => self.credit += *bytes as i64,
            _ => {}
        }
        Ok(frame)
    }

    async fn heard(&mut self, stored: Stored) {
        let seq = stored.seq.0;
        assert!(seq > self.stored.position.seq.0, "acknowledgements go forward");
        assert!(seq <= self.sent, "only what was sent is acknowledged");
        self.witness.catch_up().await;
        self.witness.check(&self.numbered, seq, stored.digest).expect("stored is true when it is said");
        let last = &self.numbered[seq as usize - 1];
        self.stored = LogHead {
            position: Position { incarnation: self.incarnation, seq: stored.seq },
            digest: stored.digest,
            map_version: last.map_version,
            time: last.time,
        };
    }

    /// Reads until everything numbered is acknowledged.
    pub async fn until_stored(&mut self) -> Result<(), TransportError> {
        self.until_stored_up_to(self.numbered.len() as u64).await
    }

    pub async fn until_stored_up_to(&mut self, seq: u64) -> Result<(), TransportError> {
        while self.stored.position.seq.0 < seq {
            timeout(Duration::from_secs(60), self.read()).await.expect("stored within a minute")?;
        }
        Ok(())
    }

    /// The log is what was numbered, all of it.
    pub async fn log_is_whole(&mut self) {
        self.witness.catch_up().await;
        let all = self.numbered.len() as u64;
        self.witness.check(&self.numbered, all, self.digester.digest()).expect("the log is what was numbered");
    }

    /// Takes another agent's past over, as a new life of it on the same disks does.
    pub fn adopt(&mut self, other: &Agent) {
        (self.numbered, self.digests) = (other.numbered.clone(), other.digests.clone());
        self.digester = other.digester;
    }

    /// Asks for an echo and reads until it comes.
    pub async fn echo(&mut self, nonce: u64) -> Result<(), TransportError> {
        self.write(&Frame::Ping(nonce)).await?;
        while self.read().await? != Frame::Pong(nonce) {}
        Ok(())
    }

    /// What comes within this time.
    pub async fn read_within(&mut self, limit: Duration) -> Option<Result<Frame, TransportError>> {
        timeout(limit, self.read()).await.ok()
    }

    /// Reads until the server ends the connection.
    pub async fn until_closed(&mut self) {
        let closed = async { while self.read().await.is_ok() {} };
        timeout(Duration::from_secs(300), closed).await.expect("the server ends the session");
        self.connection = None;
    }
}
