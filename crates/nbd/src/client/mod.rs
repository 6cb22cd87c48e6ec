//! A client: for the demo, tests and, later, pulls from hypervisors. Requests may be in flight in parallel.
//!
//! ```text
//!   callers ──► queue ──► writer task ──► server ──► reader task ──► callers (by cookie)
//! ```
//!
//! Every caller gets exactly one answer: its reply, or the reason why the connection ended. A caller that goes away
//! early leaves its request running; the reader takes its reply and drops it.

mod handshake;
mod replies;
mod waiting;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use self::handshake::{Details, Tls};
use self::waiting::{Answer, Waiting, WaitingList};
use crate::protocol::{Request, command, command_flag, transmission};
use crate::stream::{ByteStream, tune};
use crate::{BlockStatus, Error, ListenAddress};

/// Connecting and the handshake take at most this long.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(30);
/// The server gets this long to close after our goodbye.
const DISCONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Requests in flight; more wait for their turn.
const INFLIGHT_MAX: usize = 256;

/// A request ready to send, with the payload of a write.
struct Outgoing {
    request: Request,
    payload: Bytes,
}

/// A connected client. Cheap to share behind `Arc`; methods take `&self`.
///
/// Errors of requests carry the server's errno as a fitting `ErrorKind` and in words. An error of the connection fails
/// every request in flight and every later one.
pub struct Client {
    details: Details,
    slots: Arc<Semaphore>,
    waiting: Arc<WaitingList>,
    outgoing: mpsc::Sender<Outgoing>,
    writer: JoinHandle<()>,
    reader: JoinHandle<()>,
}

impl Client {
    /// Connects, negotiates structured replies and base:allocation, and enters transmission on `export`.
    pub async fn connect(address: &ListenAddress, export: &str) -> io::Result<Self> {
        Self::open(address, export, None).await
    }

    /// Connects like [`Client::connect`], over TLS by STARTTLS; fails if the server has no TLS or is not `server_name`.
    pub async fn connect_tls(
        address: &ListenAddress,
        export: &str,
        config: Arc<rustls::ClientConfig>,
        server_name: ServerName<'static>,
    ) -> io::Result<Self> {
        Self::open(address, export, Some(Tls { config, server_name })).await
    }

    /// Names of the exports a server lists; in the clear only.
    pub async fn list(address: &ListenAddress) -> io::Result<Vec<String>> {
        in_time(async {
            let mut stream = handshake::begin(dial(address).await?, None).await?;
            handshake::list(&mut stream).await
        })
        .await
    }

    async fn open(address: &ListenAddress, export: &str, tls: Option<Tls>) -> io::Result<Self> {
        if matches!(address, ListenAddress::Tls(_)) && tls.is_none() {
            let why = format!("{address} asks for TLS: connect with a TLS configuration");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        in_time(async {
            let mut stream = handshake::begin(dial(address).await?, tls).await?;
            let details = handshake::go(&mut stream, export).await?;
            Ok(Self::run(stream, details))
        })
        .await
    }

    /// A client of a server at the other end of any stream, for the fuzzer and tests without sockets.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) async fn over(stream: ByteStream, export: &str) -> io::Result<Self> {
        let mut stream = handshake::begin(stream, None).await?;
        let details = handshake::go(&mut stream, export).await?;
        Ok(Self::run(stream, details))
    }

    fn run(stream: ByteStream, details: Details) -> Self {
        let (receiving, sending) = tokio::io::split(stream);
        let (outgoing, queue) = mpsc::channel(INFLIGHT_MAX);
        let waiting = Arc::new(WaitingList::default());
        let writer = tokio::spawn(send_requests(sending, queue, waiting.clone()));
        let reader = tokio::spawn(replies::receive(receiving, details.clone(), waiting.clone()));
        Self { details, slots: Arc::new(Semaphore::new(INFLIGHT_MAX)), waiting, outgoing, writer, reader }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.details.size
    }

    /// Whether the server takes no writes.
    pub fn read_only(&self) -> bool {
        self.details.flags & transmission::READ_ONLY != 0
    }

    /// Whether a flush on one connection covers all: then several may be used together.
    pub fn can_multi_conn(&self) -> bool {
        self.details.flags & transmission::CAN_MULTI_CONN != 0
    }

    /// Smallest block in bytes that requests may address.
    pub fn minimum_block(&self) -> u32 {
        self.details.minimum_block
    }

    /// Largest read or write in bytes.
    pub fn payload_max(&self) -> u32 {
        self.details.payload_max
    }

    /// Reads; `len` is at most [`Client::payload_max`].
    pub async fn read(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        self.check_payload(u64::from(len))?;
        Ok(self.call(command::READ, 0, offset, len, Bytes::new()).await?.data)
    }

    /// Writes; durable before this returns when `fua`. `data` is at most [`Client::payload_max`].
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        let len = self.check_payload(data.len() as u64)?;
        self.call(command::WRITE, flag(fua, command_flag::FUA), offset, len, data).await.map(drop)
    }

    /// Flushes: what completed before is durable.
    pub async fn flush(&self) -> io::Result<()> {
        self.call(command::FLUSH, 0, 0, 0, Bytes::new()).await.map(drop)
    }

    /// Trims: the range may read as anything from now on.
    pub async fn trim(&self, offset: u64, len: u32) -> io::Result<()> {
        self.call(command::TRIM, 0, offset, len, Bytes::new()).await.map(drop)
    }

    /// Writes zeros; with `no_hole` the range stays allocated.
    pub async fn write_zeroes(&self, offset: u64, len: u32, no_hole: bool) -> io::Result<()> {
        let flags = flag(no_hole, command_flag::NO_HOLE);
        self.call(command::WRITE_ZEROES, flags, offset, len, Bytes::new()).await.map(drop)
    }

    /// base:allocation of the range or of a first part of it; `Unsupported` if the server does not offer it.
    pub async fn block_status(&self, offset: u64, len: u32) -> io::Result<Vec<BlockStatus>> {
        if self.details.allocation.is_none() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the server does not offer base:allocation"));
        }
        Ok(self.call(command::BLOCK_STATUS, 0, offset, len, Bytes::new()).await?.runs)
    }

    /// Says goodbye and waits until the server has closed.
    pub async fn disconnect(mut self) -> io::Result<()> {
        let goodbye = Request { flags: 0, command: command::DISCONNECT, cookie: 0, offset: 0, len: 0 };
        let sent = self.outgoing.send(Outgoing { request: goodbye, payload: Bytes::new() }).await;
        sent.map_err(|_| self.waiting.failure())?;
        match tokio::time::timeout(DISCONNECT_TIME_MAX, &mut self.reader).await {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the server did not close after our goodbye")),
        }
    }

    fn check_payload(&self, len: u64) -> io::Result<u32> {
        u32::try_from(len).ok().filter(|len| *len <= self.details.payload_max).ok_or_else(|| {
            let why = format!("{len} bytes in one request, the server takes {}", self.details.payload_max);
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })
    }

    async fn call(&self, command: u16, flags: u16, offset: u64, len: u32, payload: Bytes) -> io::Result<Answer> {
        let slot = self.slots.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (answer, answered) = oneshot::channel();
        let request = Request { flags, command, cookie: self.waiting.next_cookie(), offset, len };
        self.waiting.add(request.cookie, Waiting::new(request, answer, slot))?;
        if self.outgoing.send(Outgoing { request, payload }).await.is_err() {
            self.waiting.fail_all(io::ErrorKind::BrokenPipe, "the connection is closed");
        }
        answered.await.unwrap_or_else(|_| Err(self.waiting.failure()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.writer.abort();
        self.reader.abort();
    }
}

fn flag(set: bool, flag: u16) -> u16 {
    if set { flag } else { 0 }
}

async fn in_time<T>(work: impl Future<Output = Result<T, Error>>) -> io::Result<T> {
    match tokio::time::timeout(CONNECT_TIME_MAX, work).await {
        Ok(done) => done.map_err(io::Error::from),
        Err(_) => Err(Error::HandshakeTimeout(CONNECT_TIME_MAX).into()),
    }
}

async fn dial(address: &ListenAddress) -> io::Result<ByteStream> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("cannot connect to {address}: {error}"));
    match address {
        ListenAddress::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
        ListenAddress::Tcp(host_port) | ListenAddress::Tls(host_port) => {
            let stream = TcpStream::connect(host_port).await.map_err(failed)?;
            tune(&stream)?;
            Ok(Box::new(stream))
        }
    }
}

async fn send_requests<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queue: mpsc::Receiver<Outgoing>,
    waiting: Arc<WaitingList>,
) {
    while let Some(outgoing) = queue.recv().await {
        let sent = async {
            let header = outgoing.request.encode();
            writer.write_all_buf(&mut header.as_slice().chain(outgoing.payload)).await?;
            writer.flush().await
        };
        if let Err(error) = sent.await {
            waiting.fail_all(error.kind(), &format!("connection lost while sending: {error}"));
            return;
        }
    }
}

#[cfg(test)]
mod tests;
