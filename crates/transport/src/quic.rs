//! QUIC as a carrier: one connection, one bidirectional stream, the same frames.
//!
//! QUIC is for long or lossy links, so the windows are sized for a product of bandwidth and delay of 16 MiB, and it sends by
//! BBR: cubic, quinn's default, keeps 2 MB/s of 125 at 40 ms and 0.1 % loss (docs/rfcs/0012-long-paths.md). Datagrams,
//! unidirectional streams, early data and address migration are off: nothing here needs them. Whoever connects opens
//! the stream; the other end sees it when the first frame arrives.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Once};
use std::time::Duration;

use quinn::congestion::BbrConfig;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustix::net::sockopt;
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};

use crate::connection::check_alpn;
use crate::failure::quic_error;
use crate::path::Carrier;
use crate::revoked::Trust;
use crate::tls::SERVER_DNS_NAME;
use crate::{Connection, Identity, Peer, Role, TransportError, TransportKind};

/// Bytes of one stream that may be under way unread.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// Bytes of one connection that may be under way, in either direction.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// Socket buffers asked of the kernel.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// A quiet connection says so often that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A connection from which nothing comes for this long is dead.
const IDLE_TIMEOUT_MILLIS: u32 = 20_000;

/// Bytes kept for connections whose handshake has not begun, all together.
const INCOMING_BUFFER_BYTES: u64 = 4 << 20;

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(CONNECTION_WINDOW_BYTES.into())
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MILLIS))))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(BbrConfig::default()));
    Arc::new(config)
}

fn client_config(identity: &Identity) -> ClientConfig {
    let crypto = QuicClientConfig::try_from(identity.client_config())
        .expect("the TLS configuration offers TLS 1.3 with the cipher suite QUIC starts with");
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    config
}

fn server_config(identity: &Identity, handshakes_max: usize) -> ServerConfig {
    let crypto = QuicServerConfig::try_from(identity.server_config())
        .expect("the TLS configuration offers TLS 1.3 with the cipher suite QUIC starts with");
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport())
        .max_incoming(handshakes_max)
        .incoming_buffer_size_total(INCOMING_BUFFER_BYTES)
        .migration(false);
    config
}

/// A UDP socket with buffers as large as the kernel allows.
fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // To force takes CAP_NET_ADMIN, and asking for too much is cut: either way what counts is what is there afterwards.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES));
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES));
    // The kernel reports twice what it grants: the other half is its own book-keeping.
    let granted = socket.recv_buffer_size()?.min(socket.send_buffer_size()?) / 2;
    if granted < SOCKET_BUFFER_BYTES {
        WARN_OF_SMALL_BUFFERS.call_once(|| warn_of_small_buffers(granted));
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// One warning is enough for a process: every socket gets the same.
static WARN_OF_SMALL_BUFFERS: Once = Once::new();

fn warn_of_small_buffers(granted: usize) {
    tracing::warn!(
        granted_bytes = granted,
        wanted_bytes = SOCKET_BUFFER_BYTES,
        "small UDP buffers slow QUIC down: raise net.core.rmem_max and net.core.wmem_max"
    );
}

fn endpoint(address: SocketAddr, server: Option<ServerConfig>) -> io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), server, socket(address)?, Arc::new(quinn::TokioRuntime))
}

/// Listens on a UDP address.
pub(crate) fn listen(address: SocketAddr, identity: &Identity, handshakes_max: usize) -> io::Result<Endpoint> {
    endpoint(address, Some(server_config(identity, handshakes_max)))
}

/// Connects and opens the stream. The caller bounds the time.
pub(crate) async fn connect(address: &str, identity: &Identity, expect: Role) -> Result<Connection, TransportError> {
    let unreachable = |source| TransportError::Unreachable { peer: address.to_owned(), source };
    let targets: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(unreachable)?.collect();
    let config = client_config(identity);
    let mut failure = unreachable(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for target in targets {
        match connect_one(address, target, config.clone()).await {
            Ok(connection) => return open(address, &connection, identity, expect).await,
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn connect_one(
    address: &str,
    target: SocketAddr,
    config: ClientConfig,
) -> Result<quinn::Connection, TransportError> {
    let unreachable = |source| TransportError::Unreachable { peer: address.to_owned(), source };
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = endpoint(any, None).map_err(unreachable)?;
    let connecting =
        endpoint.connect_with(config, target, SERVER_DNS_NAME).map_err(|e| unreachable(io::Error::other(e)))?;
    connecting.await.map_err(|e| quic_error(address, e))
}

async fn open(
    address: &str,
    connection: &quinn::Connection,
    identity: &Identity,
    expect: Role,
) -> Result<Connection, TransportError> {
    let (peer, trust) = authenticate(address, connection, identity, expect)?;
    let (send, recv) = connection.open_bi().await.map_err(|e| quic_error(address, e))?;
    let carrier = Carrier { kind: TransportKind::Quic, bbr: true, round_trip: connection.rtt() };
    Ok(Connection::over_quic(peer, address.to_owned(), send, recv).carried_by(carrier).resting_on(trust))
}

/// Finishes the handshake of one that came to us, and waits for its stream. The caller bounds the time.
pub(crate) async fn accept(
    incoming: quinn::Incoming,
    identity: &Identity,
    expect: Role,
) -> Result<Connection, TransportError> {
    let address = incoming.remote_address().to_string();
    let failed = |e| quic_error(&address, e);
    let connection = incoming.accept().map_err(failed)?.await.map_err(failed)?;
    let (peer, trust) = authenticate(&address, &connection, identity, expect).inspect_err(|error| {
        // The peer learns why, as the verifier's alert would tell it.
        connection.close(REFUSED, error.to_string().as_bytes());
    })?;
    let (send, recv) = connection.accept_bi().await.map_err(failed)?;
    Ok(Connection::over_quic(peer, address, send, recv).resting_on(trust))
}

/// Application close code: the certificate is valid but not for this.
const REFUSED: VarInt = VarInt::from_u32(1);

fn authenticate(
    address: &str,
    connection: &quinn::Connection,
    identity: &Identity,
    expect: Role,
) -> Result<(Peer, Trust), TransportError> {
    let handshake = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    check_alpn(handshake.and_then(|h| h.protocol).as_deref())
        .map_err(|source| TransportError::Unreachable { peer: address.to_owned(), source })?;
    let chain = connection.peer_identity().and_then(|id| id.downcast::<Vec<CertificateDer<'static>>>().ok());
    identity
        .authenticate(chain.as_deref().map_or(&[], Vec::as_slice), expect)
        .map_err(|why| TransportError::Untrusted { peer: address.to_owned(), why })
}
