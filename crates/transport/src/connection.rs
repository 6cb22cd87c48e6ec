//! A connection: frames out, frames in, over a byte stream that has proven who is at the other end.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::failure::connect_error;
use crate::frame::Sink;
use crate::quic::{self, Congestion};
use crate::revoked::Trust;
use crate::tls::{ALPN, server_name};
use crate::{FrameReader, FrameWriter, Identity, Peer, Role, TransportError};

/// Time for a connection to stand, from name lookup to the end of the handshake.
const CONNECT_SECONDS: u64 = 10;

/// Silence on an idle TCP connection before the kernel asks whether the peer is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// Time between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Unanswered questions until the connection counts as dead.
const KEEPALIVE_RETRIES: u32 = 3;

/// Any byte stream: TLS over TCP, a QUIC stream, or one in memory.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Which carrier to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportKind {
    /// TLS 1.3 over TCP.
    Tls,
    /// QUIC.
    Quic,
}

/// An authenticated connection.
pub struct Connection {
    /// Who is at the other end, from its certificate.
    pub peer: Peer,
    /// Its address, for messages.
    pub address: String,
    /// Frames in.
    pub reader: FrameReader,
    /// Frames out.
    pub writer: FrameWriter,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Connection {
    /// Frames over any byte stream whose peer is known: for tests and simulation.
    pub fn over(peer: Peer, address: String, stream: Box<dyn ByteStream>) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self::assemble(peer, address, Box::new(read), Sink::Stream(Box::new(write)))
    }

    /// Frames over the two halves of a QUIC stream.
    pub(crate) fn over_quic(peer: Peer, address: String, send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
        Self::assemble(peer, address, Box::new(recv), Sink::Quic(send))
    }

    /// The same, ending when what it rests on does.
    pub(crate) fn resting_on(mut self, trust: Trust) -> Self {
        self.reader.rest_on(trust);
        self
    }

    fn assemble(peer: Peer, address: String, read: Box<dyn AsyncRead + Send + Unpin>, sink: Sink) -> Self {
        let named = format!("{peer} at {address}");
        let reader = FrameReader::new(read, named.clone());
        Self { peer, address, reader, writer: FrameWriter::new(sink, named) }
    }
}

/// Connects to `host:port` and makes sure that the other end holds a certificate of `expect` from our CA. Ten seconds at
/// most. Over QUIC the other end sees the connection when the first frame arrives, so whoever connects speaks first.
pub async fn connect(
    address: &str,
    kind: TransportKind,
    identity: &Identity,
    expect: Role,
) -> Result<Connection, TransportError> {
    connect_with(address, kind, identity, expect, Congestion::default()).await
}

/// As [`connect`], with a choice of congestion control for what we send over QUIC. TCP takes the kernel's.
pub async fn connect_with(
    address: &str,
    kind: TransportKind,
    identity: &Identity,
    expect: Role,
    congestion: Congestion,
) -> Result<Connection, TransportError> {
    let limit = Duration::from_secs(CONNECT_SECONDS);
    let connecting = async {
        match kind {
            TransportKind::Tls => connect_tls(address, identity, expect).await,
            TransportKind::Quic => quic::connect(address, identity, expect, congestion).await,
        }
    };
    let timeout = || TransportError::Timeout { peer: address.to_owned(), seconds: CONNECT_SECONDS };
    tokio::time::timeout(limit, connecting).await.map_err(|_| timeout())?
}

async fn connect_tls(address: &str, identity: &Identity, expect: Role) -> Result<Connection, TransportError> {
    let unreachable = |source| TransportError::Unreachable { peer: address.to_owned(), source };
    let tcp = TcpStream::connect(address).await.map_err(unreachable)?;
    prepare(&tcp).map_err(unreachable)?;
    let connector = TlsConnector::from(identity.client_config());
    let tls = connector.connect(server_name(), tcp).await.map_err(|e| connect_error(address, e))?;
    let session = tls.get_ref().1;
    check_alpn(session.alpn_protocol()).map_err(unreachable)?;
    let (peer, trust) = identity
        .authenticate(session.peer_certificates().unwrap_or_default(), expect)
        .map_err(|why| TransportError::Untrusted { peer: address.to_owned(), why })?;
    Ok(Connection::over(peer, address.to_owned(), Box::new(tls)).resting_on(trust))
}

/// Small frames leave at once, and a dead peer is noticed.
pub(crate) fn prepare(tcp: &TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

/// Both ends must have agreed on our protocol: a TLS server that knows none answers too.
pub(crate) fn check_alpn(chosen: Option<&[u8]>) -> std::io::Result<()> {
    if chosen == Some(ALPN) {
        return Ok(());
    }
    Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "it speaks TLS, but not the protocol farshore/1"))
}
