//! The server over real sockets and memory streams: conversations, concurrency, hostile peers, limits, stopping.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::memory::MemoryExport;
use crate::protocol::{OPTION_MAGIC, PAYLOAD_BYTES_MAX, Request, SIMPLE_REPLY_MAGIC, command, option};
use crate::{BlockStatus, Client, Errno, ZeroFlags};

const SIZE: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

struct Place {
    dir: tempfile::TempDir,
    threads: Threads,
}

fn place() -> Place {
    Place { dir: tempfile::tempdir().unwrap(), threads: Threads::Shared }
}

/// Where requests run on shared threads, and where each connection has its own.
fn places() -> [Place; 2] {
    [place(), Place { threads: Threads::Own { began: || () }, ..place() }]
}

impl Place {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    fn config(&self) -> ServerConfig {
        let listen = ListenAddress::Unix(self.socket());
        ServerConfig {
            name: "disk".into(),
            listen,
            tls: None,
            inflight_max: 16,
            connections_max: 8,
            threads: self.threads,
        }
    }

    async fn serve(&self, export: Arc<dyn Export>) -> Server {
        Server::start(self.config(), export).await.unwrap()
    }

    /// Polls until a server has reaped the connections of former clients and takes us.
    async fn connect_soon(&self) -> Client {
        let address = ListenAddress::Unix(self.socket());
        soon(async || Client::connect(&address, "disk").await.ok()).await
    }
}

async fn soon<T>(attempt: impl AsyncFn() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(done) = attempt().await {
                return done;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.expect("it comes about in time")
}

/// Passes everything on, with one fault or one gate.
struct Faulty {
    inner: MemoryExport,
    fault: Fault,
    writes: AtomicUsize,
}

#[derive(Clone)]
enum Fault {
    /// The nth write is acknowledged and lost.
    DropWrite(usize),
    /// Writes wait for a permit; the semaphore counts those that began.
    Gate { open: Arc<Semaphore>, begun: Arc<Semaphore> },
    /// Writes block their thread until they are let through.
    Block(Arc<Mutex<std::sync::mpsc::Receiver<()>>>),
    /// Reads are one byte short.
    ShortRead,
    /// Reads panic.
    Panic,
    /// Block status is empty.
    NoStatus,
}

fn faulty(fault: Fault) -> Arc<Faulty> {
    Arc::new(Faulty { inner: MemoryExport::new(SIZE), fault, writes: AtomicUsize::new(0) })
}

#[async_trait]
impl Export for Faulty {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        match self.fault {
            Fault::ShortRead => self.inner.read(offset, len - 1).await,
            Fault::Panic => panic!("a fault on purpose"),
            _ => self.inner.read(offset, len).await,
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        let nth = self.writes.fetch_add(1, Ordering::Relaxed);
        match &self.fault {
            Fault::DropWrite(dropped) if *dropped == nth => return Ok(()),
            Fault::Gate { open, begun } => {
                begun.add_permits(1);
                open.acquire().await.unwrap().forget();
            }
            Fault::Block(gate) => gate.lock().unwrap().recv().unwrap(),
            _ => {}
        }
        self.inner.write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.inner.flush().await
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.inner.trim(offset, len, fua).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        self.inner.write_zeroes(offset, len, flags).await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockStatus>, Errno> {
        match self.fault {
            Fault::NoStatus => Ok(vec![]),
            _ => self.inner.block_status(offset, len).await,
        }
    }
}

// ---- a raw client, byte by byte ----

fn raw_option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend(code.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// A connection in transmission with simple replies, over memory.
async fn raw_transmission(export: Arc<dyn Export>) -> (DuplexStream, JoinHandle<Result<(), Error>>) {
    let (mut ours, theirs) = tokio::io::duplex(1 << 20);
    let served = tokio::spawn(serve_stream(Box::new(theirs), "disk", export));
    let mut greeting = [0; 18];
    ours.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    ours.write_all(&[0, 0, 0, 3]).await.unwrap();
    ours.write_all(&raw_option(option::EXPORT_NAME, b"disk")).await.unwrap();
    let mut described = [0; 10];
    ours.read_exact(&mut described).await.unwrap();
    assert_eq!(described[..8], SIZE.to_be_bytes());
    (ours, served)
}

async fn raw_reply(stream: &mut DuplexStream) -> (u32, u64) {
    assert_eq!(stream.read_u32().await.unwrap(), SIMPLE_REPLY_MAGIC);
    (stream.read_u32().await.unwrap(), stream.read_u64().await.unwrap())
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Request {
    Request { flags: 0, command, cookie, offset, len }
}

#[tokio::test]
async fn a_refused_write_is_skipped_and_the_connection_goes_on() {
    let disk = Arc::new(MemoryExport::new(SIZE));
    let (mut client, served) = raw_transmission(disk.clone()).await;
    for (cookie, offset, len, errno) in [(1, SIZE, 512, 28), (2, 1, 512, 22), (3, 0, 512, 0)] {
        client.write_all(&request(command::WRITE, cookie, offset, len).encode()).await.unwrap();
        client.write_all(&vec![7; len as usize]).await.unwrap();
        assert_eq!(raw_reply(&mut client).await, (errno, cookie));
    }
    client.write_all(&request(command::DISCONNECT, 9, 0, 0).encode()).await.unwrap();
    served.await.unwrap().unwrap();
    assert_eq!(disk.contents()[..513], [vec![7; 512], vec![0]].concat());
}

#[tokio::test]
async fn a_write_too_long_to_skip_ends_the_connection() {
    let (mut client, served) = raw_transmission(Arc::new(MemoryExport::new(SIZE))).await;
    client.write_all(&request(command::WRITE, 1, 0, u32::MAX - 511).encode()).await.unwrap();
    assert!(matches!(served.await.unwrap(), Err(Error::PayloadTooLong(_))));
}

#[tokio::test]
async fn an_unknown_command_and_an_oversize_read_are_answered() {
    let (mut client, _served) = raw_transmission(Arc::new(MemoryExport::new(SIZE))).await;
    for (cookie, command, len) in [(1, 5, 512), (2, 77, 0), (3, command::READ, PAYLOAD_BYTES_MAX + 512)] {
        client.write_all(&request(command, cookie, 0, len).encode()).await.unwrap();
        assert_eq!(raw_reply(&mut client).await, (22, cookie));
    }
}

#[tokio::test]
async fn a_request_that_is_not_one_ends_the_connection() {
    let (mut client, served) = raw_transmission(Arc::new(MemoryExport::new(SIZE))).await;
    client.write_all(&[0xaa; Request::BYTES]).await.unwrap();
    assert!(matches!(served.await.unwrap(), Err(Error::Magic { .. })));
}

#[tokio::test]
async fn a_truncated_request_or_payload_ends_the_connection_without_a_write() {
    for cut in [5, Request::BYTES + 100] {
        let disk = Arc::new(MemoryExport::new(SIZE));
        let (mut client, served) = raw_transmission(disk.clone()).await;
        let mut bytes = request(command::WRITE, 1, 0, 512).encode().to_vec();
        bytes.extend([7; 512]);
        client.write_all(&bytes[..cut]).await.unwrap();
        drop(client);
        assert!(matches!(served.await.unwrap(), Err(Error::Io(_))));
        assert_eq!(disk.allocated_bytes(), 0);
    }
}

async fn handshake_with(bytes: &[u8]) -> Result<(), Error> {
    let (mut ours, theirs) = tokio::io::duplex(1 << 20);
    let served = tokio::spawn(serve_stream(Box::new(theirs), "disk", Arc::new(MemoryExport::new(SIZE))));
    ours.write_all(bytes).await.unwrap();
    served.await.unwrap()
}

#[tokio::test]
async fn garbage_in_the_handshake_ends_it() {
    let garbage = handshake_with(b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n").await;
    assert!(matches!(garbage, Err(Error::ClientFlags(_))), "{garbage:?}");
    let garbage = handshake_with(b"\0\0\0\x03GET / HTTP/1.1\r\n\r\n").await;
    assert!(matches!(garbage, Err(Error::Magic { .. })), "{garbage:?}");
}

#[tokio::test]
async fn an_oversize_option_is_refused_before_it_is_read() {
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(&raw_option(99, b"")[..12]);
    bytes.extend((handshake::OPTION_BYTES_MAX + 1).to_be_bytes());
    let ended = handshake_with(&bytes).await;
    assert!(matches!(ended, Err(Error::OptionTooLong { option: 99, .. })), "{ended:?}");
}

#[tokio::test]
async fn options_without_end_are_cut_off() {
    let bytes = [vec![0, 0, 0, 3], raw_option(99, b"again").repeat(129)].concat();
    assert!(matches!(handshake_with(&bytes).await, Err(Error::TooManyOptions(128))));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_drips_is_cut_off_in_time() {
    let (mut ours, theirs) = tokio::io::duplex(1024);
    let served = tokio::spawn(serve_stream(Box::new(theirs), "disk", Arc::new(MemoryExport::new(SIZE))));
    let started = tokio::time::Instant::now();
    let bytes = [vec![0, 0, 0, 3], raw_option(option::LIST, b"").repeat(99)].concat();
    for byte in bytes {
        waiting::pass(Duration::from_secs(1)).await;
        if ours.write_all(&[byte]).await.is_err() {
            break;
        }
    }
    assert!(matches!(served.await.unwrap(), Err(Error::HandshakeTimeout(_))));
    assert!(started.elapsed() < HANDSHAKE_TIME_MAX + Duration::from_secs(2));
}

// ---- our client on real sockets ----

#[tokio::test]
async fn everything_works_over_a_unix_socket() {
    for place in places() {
        let disk = Arc::new(MemoryExport::new(SIZE));
        let server = place.serve(disk.clone()).await;
        assert_eq!(Client::list(server.address()).await.unwrap(), ["disk"]);
        let client = Client::connect(server.address(), "").await.unwrap();
        assert_eq!(
            (client.size(), client.minimum_block(), client.read_only(), client.can_multi_conn()),
            (SIZE, 512, false, true)
        );
        client.write(4096, Bytes::from(vec![7; 65536]), true).await.unwrap();
        client.write_zeroes(8192, 4096, true).await.unwrap();
        client.trim(16384, 4096).await.unwrap();
        client.flush().await.unwrap();
        let data = client.read(0, 131072).await.unwrap();
        assert_eq!(data, disk.contents()[..131072]);
        assert_eq!((data[4096], data[8192], data[16384], data[69631], data[69632]), (7, 0, 0, 7, 0));
        let runs = client.block_status(0, 24576).await.unwrap();
        let run = |len, hole| BlockStatus { len, hole, zero: hole };
        assert_eq!(runs, [run(4096, true), run(12288, false), run(4096, true), run(4096, false)]);
        assert_eq!(disk.flushes(), 2);
        client.disconnect().await.unwrap();
        server.stop().await;
        assert!(!place.socket().exists());
    }
}

#[tokio::test]
async fn tcp_on_port_zero_says_which_port_it_is() {
    let place = place();
    let listen = "tcp:127.0.0.1:0".parse().unwrap();
    let server =
        Server::start(ServerConfig { listen, ..place.config() }, Arc::new(MemoryExport::new(SIZE))).await.unwrap();
    let client = Client::connect(server.address(), "disk").await.unwrap();
    client.write(0, Bytes::from(vec![1; 512]), false).await.unwrap();
    client.disconnect().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_export_and_errors_of_requests_are_told_in_words() {
    let place = place();
    let server = place.serve(Arc::new(MemoryExport::new(SIZE).into_read_only())).await;
    let error = Client::connect(server.address(), "other").await.err().unwrap();
    assert!(error.to_string().contains("no export of that name"), "{error}");
    let client = Client::connect(server.address(), "disk").await.unwrap();
    let error = client.write(0, Bytes::from(vec![1; 512]), false).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("write of 512 bytes at 0 failed"), "{error}");
    let error = client.read(SIZE, 512).await.unwrap_err();
    assert!(error.to_string().contains("beyond the export"), "{error}");
    assert_eq!(client.read(0, 512).await.unwrap(), vec![0; 512]);
}

#[tokio::test]
async fn a_faulty_export_costs_the_request_and_not_the_connection() {
    for fault in [Fault::ShortRead, Fault::Panic, Fault::NoStatus] {
        for place in places() {
            let no_status = matches!(fault, Fault::NoStatus);
            let server = place.serve(faulty(fault.clone())).await;
            let client = Client::connect(server.address(), "").await.unwrap();
            let error = match no_status {
                true => client.block_status(0, 512).await.unwrap_err(),
                false => client.read(0, 512).await.unwrap_err(),
            };
            assert!(error.to_string().contains("EIO"), "{error}");
            client.write(0, Bytes::from(vec![1; 512]), false).await.unwrap();
        }
    }
}

#[tokio::test]
async fn requests_overtake_each_other_and_no_more_than_allowed_are_in_flight() {
    for place in places() {
        let (open, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let server = place.serve(faulty(Fault::Gate { open: open.clone(), begun: begun.clone() })).await;
        let client = Arc::new(Client::connect(server.address(), "").await.unwrap());
        let write = |at: u64| {
            let client = client.clone();
            tokio::spawn(async move { client.write(at * 512, Bytes::from(vec![1; 512]), false).await })
        };
        let first: Vec<_> = (0..15).map(write).collect();
        begun.acquire_many(15).await.unwrap().forget();
        assert_eq!(client.read(0, 512).await.unwrap(), vec![0; 512], "a read overtakes the writes that wait");
        let more: Vec<_> = (15..32).map(write).collect();
        begun.acquire().await.unwrap().forget();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(begun.available_permits(), 0, "the seventeenth request must wait");
        open.add_permits(32);
        for done in join_all(first.into_iter().chain(more)).await {
            done.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn stopping_lets_a_write_in_flight_finish_and_answers_it() {
    for place in places() {
        let (open, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let export = faulty(Fault::Gate { open: open.clone(), begun: begun.clone() });
        let server = place.serve(export.clone()).await;
        let client = Arc::new(Client::connect(server.address(), "").await.unwrap());
        let writer = client.clone();
        let write = tokio::spawn(async move { writer.write(0, Bytes::from(vec![1; 512]), false).await });
        begun.acquire().await.unwrap().forget();
        let stopping = tokio::spawn(server.stop());
        soon(async || (!place.socket().exists()).then_some(())).await;
        assert!(!stopping.is_finished());
        open.add_permits(1);
        write.await.unwrap().unwrap();
        tokio::time::timeout(PATIENCE, stopping).await.unwrap().unwrap();
        assert_eq!(export.inner.allocated_bytes(), 4096);
        assert!(client.read(0, 512).await.is_err());
    }
}

#[tokio::test]
async fn a_write_in_flight_finishes_though_its_client_is_gone() {
    for place in places() {
        let (open, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let export = faulty(Fault::Gate { open: open.clone(), begun: begun.clone() });
        let _server = place.serve(export.clone()).await;
        let client = Arc::new(place.connect_soon().await);
        let writer = client.clone();
        let write = tokio::spawn(async move { writer.write(0, Bytes::from(vec![1; 512]), false).await });
        begun.acquire().await.unwrap().forget();
        write.abort();
        let _ = write.await;
        drop(client);
        open.add_permits(1);
        soon(async || (export.inner.allocated_bytes() == 4096).then_some(())).await;
    }
}

/// The runtime has this one thread: what a connection blocks on a thread of its own takes nothing from it.
#[tokio::test]
async fn a_request_that_blocks_its_thread_holds_back_its_own_connection_only() {
    let [_, place] = places();
    let (let_through, gate) = std::sync::mpsc::channel();
    let server = place.serve(faulty(Fault::Block(Arc::new(Mutex::new(gate))))).await;
    let (blocked, free) =
        (Client::connect(server.address(), "").await.unwrap(), Client::connect(server.address(), "").await.unwrap());
    let mut write = std::pin::pin!(blocked.write(0, Bytes::from(vec![1; 512]), false));
    let reads = async {
        for _ in 0..100 {
            free.read(512, 512).await.unwrap();
        }
    };
    tokio::select! {
        biased;
        _ = &mut write => panic!("answered before it was let through"),
        () = reads => {}
    }
    let_through.send(()).unwrap();
    write.await.unwrap();
    assert_eq!(blocked.read(0, 512).await.unwrap(), vec![1; 512]);
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_room_is_given_back() {
    for place in places() {
        let config = ServerConfig { connections_max: 1, ..place.config() };
        let server = Server::start(config, Arc::new(MemoryExport::new(SIZE))).await.unwrap();
        let first = Client::connect(server.address(), "").await.unwrap();
        assert!(Client::connect(server.address(), "").await.is_err());
        first.disconnect().await.unwrap();
        place.connect_soon().await;
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let place = place();
    drop(std::os::unix::net::UnixListener::bind(place.socket()).unwrap());
    assert!(place.socket().exists());
    let disk = Arc::new(MemoryExport::new(SIZE));
    let server = place.serve(disk.clone()).await;
    let second = Server::start(place.config(), disk.clone()).await.err().unwrap();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    assert!(second.to_string().contains("another server listens"), "{second}");
    Client::connect(server.address(), "").await.unwrap();
    server.stop().await;
    std::fs::write(place.socket(), "precious").unwrap();
    let third = Server::start(place.config(), disk).await.err().unwrap();
    assert!(third.to_string().contains("not a socket"), "{third}");
    assert_eq!(std::fs::read(place.socket()).unwrap(), b"precious");
}

#[tokio::test]
async fn a_dropped_server_stops_and_leaves_a_successors_socket_alone() {
    for place in places() {
        let disk = Arc::new(MemoryExport::new(SIZE));
        let first = place.serve(disk.clone()).await;
        std::fs::remove_file(place.socket()).unwrap();
        let second = place.serve(disk).await;
        drop(first);
        assert!(place.socket().exists());
        drop(second);
        assert!(!place.socket().exists());
        let address = ListenAddress::Unix(place.socket());
        assert!(Client::connect(&address, "").await.is_err());
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_at_start() {
    let place = place();
    for (config, export) in [
        (ServerConfig { inflight_max: 0, ..place.config() }, MemoryExport::new(SIZE)),
        (ServerConfig { connections_max: 0, ..place.config() }, MemoryExport::new(SIZE)),
        (ServerConfig { name: "x".repeat(5000), ..place.config() }, MemoryExport::new(SIZE)),
        (place.config(), MemoryExport::new(SIZE).with_minimum_block(4096)),
        (place.config(), MemoryExport::new(SIZE + 1)),
    ] {
        let refused = Server::start(config, Arc::new(export)).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_back_only_itself() {
    for place in places() {
        let disk = Arc::new(MemoryExport::new(SIZE));
        let server = place.serve(disk).await;
        let mut greedy = UnixStream::connect(place.socket()).await.unwrap();
        let mut hello = vec![0, 0, 0, 3];
        hello.extend(raw_option(option::EXPORT_NAME, b"disk"));
        greedy.write_all(&hello).await.unwrap();
        let flood = request(command::READ, 1, 0, SIZE as u32).encode().repeat(4096);
        let flooding = tokio::spawn(async move { greedy.write_all(&flood).await.map(|()| greedy) });
        let client = Client::connect(server.address(), "").await.unwrap();
        assert_eq!(client.read(0, 512).await.unwrap(), vec![0; 512]);
        flooding.abort();
    }
}

// ---- TLS ----

fn certificates() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["disk.example".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

#[tokio::test]
async fn over_tls_everything_works_and_without_it_nothing() {
    let place = place();
    let (server_tls, client_tls) = certificates();
    let disk = Arc::new(MemoryExport::new(SIZE));
    let config = ServerConfig { tls: Some(server_tls.into()), ..place.config() };
    let server = Server::start(config, disk.clone()).await.unwrap();
    let name = |name: &str| rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();

    let plain = Client::connect(server.address(), "disk").await.err().unwrap();
    assert!(plain.to_string().contains("TLS"), "{plain}");
    assert!(Client::list(server.address()).await.is_err());
    let stranger = Client::connect_tls(server.address(), "disk", client_tls.clone(), name("other.example")).await;
    assert!(stranger.is_err(), "a certificate for another name is refused");

    let client = Client::connect_tls(server.address(), "disk", client_tls, name("disk.example")).await.unwrap();
    let data = Bytes::from((0..300_000u32).map(|at| at as u8).collect::<Vec<_>>()).slice(..299_520);
    client.write(512, data.clone(), false).await.unwrap();
    assert_eq!(client.read(512, 299_520).await.unwrap(), data);
    client.disconnect().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_tls_address_is_never_used_in_the_clear() {
    let place = place();
    let (server_tls, client_tls) = certificates();
    let listen: ListenAddress = "tls:localhost:0".parse().unwrap();
    let bare = ServerConfig { listen: listen.clone(), ..place.config() };
    let refused = Server::start(bare, Arc::new(MemoryExport::new(SIZE))).await.err().unwrap();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);

    let config = ServerConfig { listen, tls: Some(server_tls.into()), ..place.config() };
    let server = Server::start(config, Arc::new(MemoryExport::new(SIZE))).await.unwrap();
    let bound = server.address().to_string();
    assert!(bound.starts_with("tls:localhost:") && !bound.ends_with(":0"), "the port picked is told: {bound}");
    let refused = Client::connect(server.address(), "disk").await.err().unwrap();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    let in_the_clear: ListenAddress = bound.replace("tls:", "tcp:").parse().unwrap();
    assert!(Client::connect(&in_the_clear, "disk").await.err().unwrap().to_string().contains("TLS"));
    let name = rustls_pki_types::ServerName::try_from("disk.example").unwrap();
    Client::connect_tls(server.address(), "disk", client_tls, name).await.unwrap().disconnect().await.unwrap();
}

#[tokio::test]
async fn a_client_that_wants_tls_does_not_go_on_without() {
    let place = place();
    let (_, client_tls) = certificates();
    let server = place.serve(Arc::new(MemoryExport::new(SIZE))).await;
    let name = rustls_pki_types::ServerName::try_from("disk.example").unwrap();
    let refused = Client::connect_tls(server.address(), "disk", client_tls, name).await.err().unwrap();
    assert!(refused.to_string().contains("TLS is not configured"), "{refused}");
}

#[tokio::test]
async fn options_slipped_in_behind_starttls_are_not_taken_for_the_clients() {
    let place = place();
    let (server_tls, _) = certificates();
    let config = ServerConfig { tls: Some(server_tls.into()), ..place.config() };
    let _server = Server::start(config, Arc::new(MemoryExport::new(SIZE))).await.unwrap();
    let mut raw = UnixStream::connect(place.socket()).await.unwrap();
    let injected =
        [vec![0, 0, 0, 3], raw_option(option::STARTTLS, b""), raw_option(option::GO, b"\0\0\0\0\0\0")].concat();
    raw.write_all(&injected).await.unwrap();
    let mut answered = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, raw.read_to_end(&mut answered)).await.unwrap();
    let acknowledged = 18 + 20;
    let beyond = &answered[acknowledged..];
    assert!(
        beyond.len() < 16 && beyond.first().is_none_or(|kind| *kind == 21),
        "only a TLS alert may follow: {beyond:02x?}"
    );
}

/// Both sides show the certificate they trust in the other.
fn mutual() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["disk.example".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = || rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider.clone());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![made.cert.der().clone()], key())
        .unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![made.cert.der().clone()], key())
        .unwrap();
    (Arc::new(server), Arc::new(client))
}

#[tokio::test]
async fn a_client_whose_certificate_lapses_is_cut_off_once_what_it_began_is_done() {
    let place = place();
    let (server_tls, client_tls) = mutual();
    let gone = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = gone.clone();
    let lapsed: Lapsed = Arc::new(move |_: &CertificateDer<'_>| asked.load(Ordering::Relaxed));
    let (open, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let export = Faulty {
        inner: MemoryExport::new(SIZE),
        fault: Fault::Gate { open: open.clone(), begun: begun.clone() },
        writes: AtomicUsize::new(0),
    };
    let tls = ServerTls { config: server_tls, lapsed: Some(lapsed) };
    let server = Server::start(ServerConfig { tls: Some(tls), ..place.config() }, Arc::new(export)).await.unwrap();
    let name = || rustls_pki_types::ServerName::try_from("disk.example").unwrap();
    let client = Client::connect_tls(server.address(), "disk", client_tls.clone(), name()).await.unwrap();
    client.read(0, 512).await.expect("the control: the certificate is good");
    let (written, ()) = tokio::join!(client.write(0, Bytes::from(vec![1; 512]), false), async {
        begun.acquire().await.unwrap().forget();
        gone.store(true, Ordering::Relaxed);
        // It is cut while the write is under way: from some moment on no other request is answered.
        soon(async || {
            tokio::time::timeout(Duration::from_millis(50), client.read(0, 512)).await.is_err().then_some(())
        })
        .await;
        open.add_permits(1);
    });
    written.expect("what was begun is done and answered");
    client.read(0, 512).await.expect_err("and then the connection is gone");
}

// ---- random operations against a model ----

#[derive(Debug, Clone)]
enum Op {
    Write { fill: u8, fua: bool },
    Read,
    Zero { no_hole: bool },
    Trim,
    Flush,
}

/// An operation on a range of sectors, on one of the connections.
#[derive(Debug, Clone)]
struct Step {
    op: Op,
    connection: usize,
    sector: u64,
    sectors: u64,
}

const CONNECTIONS: usize = 3;
const SECTORS: u64 = SIZE / 512;

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        4 => (1..=255u8, any::<bool>()).prop_map(|(fill, fua)| Op::Write { fill, fua }),
        2 => Just(Op::Read),
        1 => any::<bool>().prop_map(|no_hole| Op::Zero { no_hole }),
        1 => Just(Op::Trim),
        1 => Just(Op::Flush),
    ];
    // Mostly in a small region, so that ranges meet.
    (op, 0..CONNECTIONS, 0..64u64, 1..40u64, any::<bool>()).prop_map(|(op, connection, near, sectors, far)| {
        let sector = if far { near * 29 % (SECTORS - 40) } else { near };
        Step { op, connection, sector, sectors }
    })
}

fn overlap(a: &Step, b: &Step) -> bool {
    a.sector < b.sector + b.sectors && b.sector < a.sector + a.sectors
}

/// Groups that may run at once: a step that meets an earlier one of its group opens the next.
fn groups(steps: &[Step]) -> Vec<Vec<Step>> {
    let mut groups: Vec<Vec<Step>> = vec![vec![]];
    for step in steps {
        if groups.last().unwrap().iter().any(|earlier| overlap(earlier, step)) {
            groups.push(vec![]);
        }
        groups.last_mut().unwrap().push(step.clone());
    }
    groups
}

async fn play(client: &Client, step: &Step, model: &[u8]) -> Result<(), String> {
    let (offset, len) = (step.sector * 512, (step.sectors * 512) as u32);
    let range = offset as usize..offset as usize + len as usize;
    let done = match step.op {
        Op::Write { fill, fua } => client.write(offset, Bytes::from(vec![fill; len as usize]), fua).await,
        Op::Zero { no_hole } => client.write_zeroes(offset, len, no_hole).await,
        Op::Trim => client.trim(offset, len).await,
        Op::Flush => client.flush().await,
        Op::Read => match client.read(offset, len).await {
            Ok(data) if data == model[range] => Ok(()),
            Ok(_) => return Err(format!("{step:?} read other bytes than the model has")),
            Err(error) => Err(error),
        },
    };
    done.map_err(|error| format!("{step:?}: {error}"))
}

/// Plays the steps on several connections and compares every read and the whole disk at the end.
async fn agrees_with_model(place: Place, export: Arc<dyn Export>, steps: &[Step]) -> Result<(), String> {
    let server = place.serve(export).await;
    let connect = || Client::connect(server.address(), "disk");
    let clients: Vec<_> = join_all((0..CONNECTIONS).map(|_| connect())).await.into_iter().map(Result::unwrap).collect();
    let mut model = vec![0; SIZE as usize];
    for group in groups(steps) {
        let played = join_all(group.iter().map(|step| play(&clients[step.connection], step, &model))).await;
        played.into_iter().collect::<Result<(), _>>()?;
        for step in &group {
            let range = (step.sector * 512) as usize..((step.sector + step.sectors) * 512) as usize;
            match step.op {
                Op::Write { fill, .. } => model[range].fill(fill),
                Op::Zero { .. } | Op::Trim => model[range].fill(0),
                Op::Read | Op::Flush => {}
            }
        }
    }
    let disk = clients[0].read(0, SIZE as u32).await.map_err(|error| error.to_string())?;
    server.stop().await;
    if disk == model { Ok(()) } else { Err("the disk differs from the model at the end".to_owned()) }
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..Config::default() })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn random_operations_from_several_connections_agree_with_a_model() {
    let runtime = runtime();
    runner(48)
        .run(&proptest::collection::vec(step(), 1..80), |steps| {
            for place in places() {
                let disk = Arc::new(MemoryExport::new(SIZE));
                runtime.block_on(agrees_with_model(place, disk, &steps)).map_err(TestCaseError::fail)?;
            }
            Ok(())
        })
        .unwrap();
}

/// The control: one lost write among them is found.
#[test]
fn random_operations_find_an_export_that_loses_a_write() {
    let runtime = runtime();
    let write = Step { op: Op::Write { fill: 9, fua: false }, connection: 0, sector: 100, sectors: 3 };
    let last = Step { sector: 2000, ..write.clone() };
    let ended = runtime.block_on(agrees_with_model(place(), faulty(Fault::DropWrite(1)), &[write, last]));
    assert!(ended.unwrap_err().contains("differs"));
}

/// The protocol's flush rule: what was answered before the flush was sent is covered, on whichever connection.
#[tokio::test]
async fn a_flush_reaches_the_export_after_the_writes_answered_before_it() {
    struct Ordered {
        inner: MemoryExport,
        seen: Mutex<Vec<&'static str>>,
        flushed: Notify,
    }
    #[async_trait]
    impl Export for Ordered {
        fn size(&self) -> u64 {
            SIZE
        }
        fn read_only(&self) -> bool {
            false
        }
        async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
            self.inner.read(offset, len).await
        }
        async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
            self.inner.write(offset, data, fua).await?;
            self.seen.lock().unwrap().push("written");
            Ok(())
        }
        async fn flush(&self) -> Result<(), Errno> {
            self.seen.lock().unwrap().push("flush");
            self.flushed.notify_one();
            Ok(())
        }
        async fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), Errno> {
            Err(Errno::NotSupported)
        }
        async fn write_zeroes(&self, _: u64, _: u64, _: ZeroFlags) -> Result<(), Errno> {
            Err(Errno::NotSupported)
        }
        async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockStatus>, Errno> {
            self.inner.block_status(offset, len).await
        }
    }
    let place = place();
    let export = Arc::new(Ordered { inner: MemoryExport::new(SIZE), seen: Mutex::default(), flushed: Notify::new() });
    let server = place.serve(export.clone()).await;
    let (first, second) = (place.connect_soon().await, place.connect_soon().await);
    join_all((0..5).map(|at| first.write(at * 512, Bytes::from(vec![1; 512]), false))).await;
    second.flush().await.unwrap();
    export.flushed.notified().await;
    assert_eq!(*export.seen.lock().unwrap(), ["written", "written", "written", "written", "written", "flush"]);
    let error = first.trim(0, 512).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    server.stop().await;
}
