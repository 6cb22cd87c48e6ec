//! A connection: frames out, frames in, over a byte stream that has proven who is at the other end.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::failure::connect_error;
use crate::frame::Sink;
use crate::path::{self, Carrier, Choice, Rule};
use crate::quic;
use crate::revoked::Trust;
use crate::tls::{ALPN, server_name};
use crate::{FrameReader, FrameWriter, Identity, Peer, Role, TransportError};

/// Time for a connection to stand, from name lookup to the end of the handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Time for TLS to stand where it had failed and QUIC did not.
const AGAIN_LIMIT: Duration = Duration::from_secs(1);

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
    /// How it is carried, where we connected.
    pub carrier: Option<Carrier>,
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

    /// The same, knowing by what it is carried.
    pub(crate) fn carried_by(self, carrier: Carrier) -> Self {
        Self { carrier: Some(carrier), ..self }
    }

    fn assemble(peer: Peer, address: String, read: Box<dyn AsyncRead + Send + Unpin>, sink: Sink) -> Self {
        let named = format!("{peer} at {address}");
        let reader = FrameReader::new(read, named.clone());
        Self { peer, address, carrier: None, reader, writer: FrameWriter::new(sink, named) }
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
    let rule = Rule::default();
    let over_tls = async {
        let dialled = dial(address).await?;
        let long = rule.choose(dialled.round_trip, || rule.give_congestion(&dialled.tcp)) == Choice::Long;
        secure(address, dialled, long, identity, expect).await
    };
    match kind {
        TransportKind::Tls => in_time(address, CONNECT_LIMIT, over_tls).await,
        TransportKind::Quic => over_quic(address, CONNECT_LIMIT, identity, expect).await,
    }
}

/// As [`connect`], by the carrier that suits the path: TLS near by, and far away if the kernel offers BBR; otherwise QUIC. What
/// cannot be reached by one is tried by the other. A server that is reached but not trusted is not asked again.
pub async fn connect_auto(address: &str, identity: &Identity, expect: Role) -> Result<Connection, TransportError> {
    connect_by(Rule::default(), address, identity, expect).await
}

pub(crate) async fn connect_by(
    rule: Rule,
    address: &str,
    identity: &Identity,
    expect: Role,
) -> Result<Connection, TransportError> {
    let over_tls = || async {
        let dialled = dial(address).await?;
        let choice = rule.choose(dialled.round_trip, || rule.give_congestion(&dialled.tcp));
        match choice {
            Choice::Quic => Ok(ByTls::Throttled(dialled)),
            Choice::Plain | Choice::Long => secure(address, dialled, choice == Choice::Long, identity, expect)
                .await
                .map(Box::new)
                .map(ByTls::Connected),
        }
    };
    match in_time(address, CONNECT_LIMIT, over_tls()).await {
        Ok(ByTls::Connected(connection)) => Ok(*connection),
        Ok(ByTls::Throttled(dialled)) => match over_quic(address, rule.quic_patience, identity, expect).await {
            Err(error) if is_out_of_reach(&error) => {
                tracing::warn!(%address, "{SLOW_TLS}");
                in_time(address, CONNECT_LIMIT, secure(address, dialled, false, identity, expect)).await
            }
            other => other,
        },
        Err(error) if is_out_of_reach(&error) => {
            let quic = over_quic(address, CONNECT_LIMIT, identity, expect).await?;
            // A server that was about to start takes TCP by now.
            match in_time(address, AGAIN_LIMIT, over_tls()).await {
                Ok(ByTls::Connected(connection)) => Ok(*connection),
                Ok(ByTls::Throttled(_)) | Err(_) => Ok(quic),
            }
        }
        Err(error) => Err(error),
    }
}

/// How far TLS came.
enum ByTls {
    Connected(Box<Connection>),
    /// TCP answered, over a path for which it has no congestion control.
    Throttled(Dialled),
}

/// Said when neither way is fast.
const SLOW_TLS: &str = "the path is long, this kernel offers TCP no BBR, and QUIC gets no answer: TLS will be slow when packets \
                        get lost; load tcp_bbr and allow it (net.ipv4.tcp_allowed_congestion_control), or let UDP through";

/// Whether another carrier may get there.
fn is_out_of_reach(error: &TransportError) -> bool {
    matches!(error, TransportError::Unreachable { .. } | TransportError::Timeout { .. })
}

/// Ends an attempt that takes too long.
async fn in_time<T>(
    address: &str,
    limit: Duration,
    attempt: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    let timeout = || TransportError::Timeout { peer: address.to_owned(), seconds: limit.as_secs() };
    tokio::time::timeout(limit, attempt).await.map_err(|_| timeout())?
}

/// A TCP connection, and how long its first packets took there and back.
struct Dialled {
    tcp: TcpStream,
    round_trip: Duration,
}

async fn dial(address: &str) -> Result<Dialled, TransportError> {
    let unreachable = |source| TransportError::Unreachable { peer: address.to_owned(), source };
    let mut failure = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for target in tokio::net::lookup_host(address).await.map_err(unreachable)? {
        let begun = Instant::now();
        match TcpStream::connect(target).await {
            Ok(tcp) => {
                let round_trip = begun.elapsed();
                prepare(&tcp).map_err(unreachable)?;
                return Ok(Dialled { tcp, round_trip });
            }
            Err(error) => failure = error,
        }
    }
    Err(unreachable(failure))
}

/// Puts TLS on a TCP connection.
async fn secure(
    address: &str,
    dialled: Dialled,
    long: bool,
    identity: &Identity,
    expect: Role,
) -> Result<Connection, TransportError> {
    let Dialled { tcp, round_trip } = dialled;
    let unreachable = |source| TransportError::Unreachable { peer: address.to_owned(), source };
    if long {
        path::widen_sender(&tcp);
    }
    let begun = Instant::now();
    let connector = TlsConnector::from(identity.client_config());
    let tls = connector.connect(server_name(), tcp).await.map_err(|e| connect_error(address, e))?;
    // The handshake is one round trip, too, with some work; whichever was less was delayed less by other things.
    let carrier = Carrier { kind: TransportKind::Tls, bbr: long, round_trip: round_trip.min(begun.elapsed()) };
    let session = tls.get_ref().1;
    check_alpn(session.alpn_protocol()).map_err(unreachable)?;
    let (peer, trust) = identity
        .authenticate(session.peer_certificates().unwrap_or_default(), expect)
        .map_err(|why| TransportError::Untrusted { peer: address.to_owned(), why })?;
    Ok(Connection::over(peer, address.to_owned(), Box::new(tls)).carried_by(carrier).resting_on(trust))
}

async fn over_quic(
    address: &str,
    limit: Duration,
    identity: &Identity,
    expect: Role,
) -> Result<Connection, TransportError> {
    in_time(address, limit, quic::connect(address, identity, expect)).await
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
