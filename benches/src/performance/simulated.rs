//! An agent without a disk: it speaks the wire to a real gateway over TLS and makes its records up, so that the gateway's
//! speed is measured and not that of a client, an export and a source before it.
//!
//! What it leaves out is what an agent keeps on its side: queue, spool, dirty map and its own digest.

use anyhow::{Context, Result, bail, ensure};
use format::wire::{Frame, Hello, Start, credit_cost};
use model::{
    DiskChange, DiskName, DrainCause, Extent, Incarnation, LogHead, Mark, MarkKind, Record, RecordBody, Seq, Timestamp,
};
use transport::{Connection, Identity, Role, TransportKind};

use crate::delta::Writes;
use crate::inputs::PAGE;
use crate::site::{DISK, MACHINE, Site};

/// Records in a frame: a MiB of pages, as the agent cuts frames.
const FRAME_RECORDS: u64 = 255;

/// A connected agent, welcome and past its drain.
pub struct Agent {
    connection: Connection,
    disk: DiskName,
    credit: u64,
    sent: u64,
    stored: u64,
}

impl Agent {
    /// Connects with the certificate of the site's machine, and gets an empty drain stored.
    pub async fn connect(site: &Site, disk_bytes: u64) -> Result<Self> {
        let pki = |name: &str| site.path("site/pki").join(name);
        let (certificate, key) = (pki(&format!("agent-{MACHINE}.crt")), pki(&format!("agent-{MACHINE}.key")));
        let identity = Identity::load(&pki("ca.crt"), &certificate, &key)?;
        let address = format!("127.0.0.1:{}", site.port);
        let mut connection = transport::connect(&address, TransportKind::Tls, &identity, Role::ProcessServer).await?;
        let (disk, incarnation): (DiskName, _) = (DISK.parse()?, Incarnation([7; 16]));
        let start = Start::New { cause: DrainCause::Initial, compared_to: None };
        let hello = Hello {
            protocol: 1,
            instance: [7; 16],
            incarnation,
            start,
            next_seq: Seq(0),
            map_version: 1,
            stored: LogHead::default(),
            disks: vec![(disk.clone(), disk_bytes)],
        };
        connection.writer.write(&Frame::Hello(hello)).await?;
        connection.writer.flush().await?;
        let welcome = match connection.reader.read().await? {
            Frame::Welcome(welcome) => welcome,
            other => bail!("the gateway answered HELLO with {other:?}"),
        };
        let mut agent = Self { connection, disk, credit: welcome.credit, sent: 0, stored: 0 };
        let added = RecordBody::Disk {
            disk: agent.disk.id(),
            name: agent.disk.clone(),
            size: disk_bytes,
            change: DiskChange::Added,
        };
        let mark = Mark { kind: MarkKind::Crash, id: [1; 16], label: String::new() };
        let begin = RecordBody::DrainBegin { cause: DrainCause::Initial, incarnation, lost_after: Seq(0) };
        let records = [begin, added, RecordBody::DrainEnd(mark)].map(|body| agent.number(body));
        agent.send(records.to_vec()).await?;
        agent.until_stored().await?;
        Ok(agent)
    }

    /// Sends so many writes and a mark, which closes their segment, and reads until all are stored.
    pub async fn write(&mut self, count: u64, mut writes: Writes) -> Result<()> {
        let disk = self.disk.id();
        let mut left = count;
        while left > 0 {
            let mut frame = Vec::new();
            for _ in 0..left.min(FRAME_RECORDS) {
                let (offset, data) = writes.next();
                let extent = Extent::new(offset, PAGE as u64)?;
                frame.push(self.number(RecordBody::Write { disk, extent, data }));
            }
            left -= frame.len() as u64;
            self.send(frame).await?;
        }
        let mark = Mark { kind: MarkKind::Application, id: [2; 16], label: "the end".to_owned() };
        let mark = self.number(RecordBody::Mark(mark));
        self.send(vec![mark]).await?;
        self.until_stored().await
    }

    fn number(&mut self, body: RecordBody) -> Record {
        self.sent += 1;
        Record { seq: Seq(self.sent), time: Timestamp(1_000_000 + self.sent), map_version: 1, body }
    }

    async fn send(&mut self, frame: Vec<Record>) -> Result<()> {
        let cost = credit_cost(&frame);
        while self.credit < cost {
            self.read().await?;
        }
        self.credit -= cost;
        self.connection.writer.write(&Frame::Data(frame)).await?;
        Ok(self.connection.writer.flush().await?)
    }

    async fn until_stored(&mut self) -> Result<()> {
        while self.stored < self.sent {
            self.read().await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<()> {
        match self.connection.reader.read().await.context("the gateway is gone")? {
            Frame::Stored(stored) => {
                ensure!(stored.seq.0 <= self.sent, "only what was sent is acknowledged");
                self.stored = stored.seq.0;
            }
            Frame::Credit(bytes) => self.credit += bytes,
            Frame::Pong(_) => {}
            other => bail!("the gateway said {other:?}"),
        }
        Ok(())
    }
}
