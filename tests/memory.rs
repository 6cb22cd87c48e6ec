//! Memory: what docs/config.md says that a process server and an agent take at most, of real processes at their worst.
//!
//! Each bound is held against the peak of the same process with a larger configuration too, which must be over it: so it is
//! the configuration that bounds memory, and the oracle would notice.

use bytes::Bytes;
use format::wire::{Frame, Hello, Start, credit_cost};
use futures::future::Either;
use model::{
    DiskChange, DiskId, DiskName, DrainCause, Extent, Incarnation, LogHead, Mark, MarkKind, Record, RecordBody, Seq,
    Timestamp,
};
use transport::{Authority, Connection, Identity, Role, TransportKind};

use crate::harness::{PATIENCE, Seed, Site, SiteOptions, eventually};

const MIB: u64 = 1 << 20;

/// Machines that write to one process server.
const MACHINES: u64 = 16;

/// Bytes of a write.
const PAGE: u64 = 4096;

/// Writes in a frame.
const FRAME_WRITES: u64 = 255;

/// Zeroings in a frame.
const FRAME_ZEROS: u64 = 8000;

/// Bytes of credit that a record without payload takes.
const RECORD_CREDIT: u64 = 64;

/// Size of each machine's disk.
const DISK_BYTES: u64 = 1 << 30;

/// Writes that fill the dedup index: 1 GiB of pages, as many as it has entries.
const WRITES_BEFORE: u64 = (1 << 18) / MACHINES;

/// What docs/config.md promises for a process server with these `in_flight_bytes` and otherwise the defaults.
fn process_server_bound(in_flight_bytes: u64) -> u64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    48 * MIB + 4 * MIB * cores + 128 * (1 << 18) + in_flight_bytes * 3 / 2 + 2 * MIB * MACHINES
}

/// What it promises for an agent with these `queue_bytes`.
fn agent_bound(queue_bytes: u64) -> u64 {
    queue_bytes + 64 * MIB
}

/// What fills memory.
#[derive(Clone, Copy)]
enum Load {
    /// Pages of noise.
    Pages,
    /// Zeroings of a sector each, which carry nothing: all they take is what is kept for each record.
    Zeros,
}

impl Load {
    /// Credit for one frame of it.
    fn credit(self) -> u64 {
        match self {
            Load::Pages => FRAME_WRITES * (PAGE + RECORD_CREDIT),
            Load::Zeros => FRAME_ZEROS * RECORD_CREDIT,
        }
    }
}

/// An agent without a disk that sends whatever its credit allows.
struct Flood {
    connection: Connection,
    seed: Seed,
    disk: DiskId,
    credit: u64,
    sent: u64,
    stored: u64,
}

impl Flood {
    async fn connect(site: &Site, number: u64) -> Flood {
        let authority = Authority::load(&site.path("site/pki")).expect("CA loads");
        let name = format!("m{number}").parse().expect("a name");
        let issued = authority.issue(Role::Agent, &name, PATIENCE * 60).expect("issued");
        let identity = Identity::from_pem(authority.certificate_pem(), &issued.certificate_pem, &issued.key_pem);
        let (identity, address) = (identity.expect("an identity"), format!("127.0.0.1:{}", site.port()));
        let connected = transport::connect(&address, TransportKind::Tls, &identity, Role::ProcessServer).await;
        let (disk, incarnation): (DiskName, _) = ("root".parse().expect("a name"), Incarnation([number as u8 + 1; 16]));
        let mut flood = Flood {
            connection: connected.expect("connects"),
            seed: Seed::from_environment(number),
            disk: disk.id(),
            credit: 0,
            sent: 0,
            stored: 0,
        };
        let hello = Hello {
            protocol: 1,
            instance: incarnation.0,
            incarnation,
            start: Start::New { cause: DrainCause::Initial, compared_to: None },
            next_seq: Seq(0),
            map_version: 1,
            stored: LogHead::default(),
            disks: vec![(disk.clone(), DISK_BYTES)],
        };
        flood.write(Frame::Hello(hello)).await;
        match flood.connection.reader.read().await.expect("an answer") {
            Frame::Welcome(welcome) => flood.credit = welcome.credit,
            other => panic!("the answer to HELLO was {other:?}"),
        }
        let mark = Mark { kind: MarkKind::Crash, id: [1; 16], label: String::new() };
        let opening = [
            RecordBody::DrainBegin { cause: DrainCause::Initial, incarnation, lost_after: Seq(0) },
            RecordBody::Disk { disk: disk.id(), name: disk, size: DISK_BYTES, change: DiskChange::Added },
            RecordBody::DrainEnd(mark),
        ];
        flood.send(opening.into()).await;
        flood
    }

    async fn write(&mut self, frame: Frame) {
        self.connection.writer.write(&frame).await.expect("the server reads");
        self.connection.writer.flush().await.expect("the server reads");
    }

    async fn send(&mut self, bodies: Vec<RecordBody>) {
        let records: Vec<Record> = bodies
            .into_iter()
            .map(|body| {
                self.sent += 1;
                Record { seq: Seq(self.sent), time: Timestamp(self.sent), map_version: 1, body }
            })
            .collect();
        self.credit -= credit_cost(&records);
        self.write(Frame::Data(records)).await;
    }

    /// Whole pages of noise.
    async fn send_pages(&mut self) {
        let noise: Vec<u8> = (0..FRAME_WRITES * PAGE / 8).flat_map(|_| self.seed.next().to_le_bytes()).collect();
        let mut noise = Bytes::from(noise);
        let mut bodies = Vec::new();
        while !noise.is_empty() {
            let extent = Extent::new(self.seed.below(DISK_BYTES / PAGE) * PAGE, PAGE).expect("an extent");
            bodies.push(RecordBody::Write { disk: self.disk, extent, data: noise.split_to(PAGE as usize) });
        }
        self.send(bodies).await;
    }

    async fn send_zeros(&mut self) {
        let zero = |_| {
            let extent = Extent::new(self.seed.below(DISK_BYTES / 512) * 512, 512).expect("an extent");
            RecordBody::Zero { disk: self.disk, extent }
        };
        let bodies = (0..FRAME_ZEROS).map(zero).collect();
        self.send(bodies).await;
    }

    /// Reads one frame; whether it was an echo.
    async fn read(&mut self) -> bool {
        match self.connection.reader.read().await.expect("the server goes on") {
            Frame::Stored(stored) => self.stored = stored.seq.0,
            Frame::Credit(bytes) => self.credit += bytes,
            Frame::Pong(_) => return true,
            other => panic!("the server said {other:?}"),
        }
        false
    }

    fn may_send(&self, load: Load) -> bool {
        self.credit >= load.credit()
    }

    /// Sends so many writes and waits until they are stored.
    async fn store(&mut self, writes: u64) {
        let until = self.sent + writes;
        while self.sent < until {
            while !self.may_send(Load::Pages) {
                self.read().await;
            }
            self.send_pages().await;
        }
        while self.stored < self.sent {
            self.read().await;
        }
    }

    /// Sends until the server gives no more credit for it, while nothing is stored.
    async fn fill(&mut self, load: Load) {
        while self.may_send(load) {
            match load {
                Load::Pages => self.send_pages().await,
                Load::Zeros => self.send_zeros().await,
            }
            // What it had to say to the frame comes before the second echo.
            for _ in 0..2 {
                self.write(Frame::Ping(1)).await;
                while !self.read().await {}
            }
        }
    }
}

/// The most memory of a process server whose machines write at full speed, first with a store and then without.
fn peak_of_a_process_server(in_flight_bytes: &'static str, load: Load) -> u64 {
    let site = Site::new(SiteOptions { in_flight_bytes, ..SiteOptions::default() });
    let server = site.start(&["process-server"]);
    eventually("the server answers", || site.control("process-server", "GET", "/status", ""));
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    runtime.block_on(async {
        let mut machines = Vec::new();
        for number in 0..MACHINES {
            machines.push(Flood::connect(&site, number).await);
        }
        futures::future::join_all(machines.iter_mut().map(|machine| machine.store(WRITES_BEFORE))).await;
        // The machines' folder turns into a file: no object can be created below it.
        std::fs::rename(site.path("site/store/machine"), site.path("site/store/away")).expect("store is taken away");
        std::fs::write(site.path("site/store/machine"), b"in the way").expect("store is blocked");
        futures::future::join_all(machines.iter_mut().map(|machine| machine.fill(load))).await;
    });
    let status = site.control("process-server", "GET", "/status", "").expect("it answers in an outage too");
    let held = status["machines"].as_array().into_iter().flatten().filter_map(|one| one["in_flight_bytes"].as_u64());
    let (held, peak) = (held.sum::<u64>(), server.peak_bytes());
    eprintln!("in_flight_bytes = {in_flight_bytes}: {} MiB in flight, peak {} MiB", held / MIB, peak / MIB);
    if matches!(load, Load::Pages) {
        // A record without payload takes less than the credit that is counted for it.
        assert!(peak > held, "what is in flight is in memory");
    }
    peak
}

#[test]
fn a_process_server_stays_within_its_bound_when_the_store_is_away() {
    process_server_stays_within_its_bound(Load::Pages);
}

#[test]
fn a_process_server_stays_within_its_bound_under_records_without_payload() {
    process_server_stays_within_its_bound(Load::Zeros);
}

fn process_server_stays_within_its_bound(load: Load) {
    let (bound, larger) = (process_server_bound(96 * MIB), process_server_bound(1024 * MIB));
    let peak = peak_of_a_process_server("96MiB", load);
    assert!(peak < bound, "{} MiB of {} MiB", peak / MIB, bound / MIB);
    let control = peak_of_a_process_server("1GiB", load);
    assert!(control > bound, "the machines would have sent more: {} MiB", control / MIB);
    assert!(control < larger, "{} MiB of {} MiB", control / MIB, larger / MIB);
}

/// The most memory of an agent whose client writes at full speed while there is no process server.
fn peak_of_an_agent(queue_bytes: &'static str, load: Load) -> u64 {
    let mut seed = Seed::from_environment(31);
    let site = Site::new(SiteOptions { queue_bytes, spool_bytes: "64MiB", ..SiteOptions::default() });
    let server = site.start(&["process-server"]);
    let agent = site.start_agent("db");
    site.wait_stored("db");
    server.kill();
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let bitmap = || site.agent_status("db").is_ok_and(|status| status["mode"] == "bitmap");
    runtime.block_on(async {
        let client = nbd::Client::connect(&site.nbd("db", "root"), "root").await.expect("client connects");
        let give_up = std::time::Instant::now() + PATIENCE;
        while !bitmap() {
            assert!(std::time::Instant::now() < give_up, "the agent's memory has no end");
            let requests = (0..256).map(|_| {
                let place = seed.below(1024) * 65536;
                let mut page = || (0..8192).flat_map(|_| seed.next().to_le_bytes()).collect::<Vec<u8>>();
                match load {
                    Load::Pages => Either::Left(client.write(place, page().into(), false)),
                    Load::Zeros => Either::Right(client.write_zeroes(place, 512, false)),
                }
            });
            futures::future::try_join_all(requests.collect::<Vec<_>>()).await.expect("a source write never fails");
        }
    });
    let peak = agent.peak_bytes();
    eprintln!("queue_bytes = {queue_bytes}: peak {} MiB", peak / MIB);
    peak
}

#[test]
fn an_agent_stays_within_its_bound_when_its_queue_and_spool_are_full() {
    agent_stays_within_its_bound(("64MiB", 64 * MIB), ("256MiB", 256 * MIB), Load::Pages);
}

#[test]
fn an_agent_stays_within_its_bound_under_records_without_payload() {
    agent_stays_within_its_bound(("8MiB", 8 * MIB), ("192MiB", 192 * MIB), Load::Zeros);
}

/// With a queue of the first size, and with one of the second, as a control.
fn agent_stays_within_its_bound(small: (&'static str, u64), large: (&'static str, u64), load: Load) {
    let (bound, larger) = (agent_bound(small.1), agent_bound(large.1));
    let peak = peak_of_an_agent(small.0, load);
    assert!(peak < bound, "{} MiB of {} MiB", peak / MIB, bound / MIB);
    let control = peak_of_an_agent(large.0, load);
    assert!(control > bound, "a larger queue takes more: {} MiB", control / MIB);
    assert!(control < larger, "{} MiB of {} MiB", control / MIB, larger / MIB);
}
