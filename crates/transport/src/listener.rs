//! Accepting connections: handshakes run in parallel, bounded in number and time.
//!
//! Each carrier has its own task and its own share of handshakes, so that a flood on one leaves the other alone. A place
//! is held from before a connection is taken from the kernel until the caller has it or the handshake has failed; with
//! no place free, connections wait in the kernel. A source that has not proven its address is asked to (QUIC retry) once
//! half of the places are taken.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::connection::{check_alpn, prepare};
use crate::failure::connect_error;
use crate::path::widen_receiver;
use crate::payload::Payloads;
use crate::{Connection, Identity, Role, TransportError, TransportKind, quic};

/// Authenticated connections that wait for [`Listener::accept`] beside those that hold a place.
const READY_MAX: usize = 16;

/// Pause after the kernel could not give a connection, for want of file descriptors as a rule.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Tries to find one port number that is free for both carriers.
const PORT_TRIES_MAX: usize = 16;

/// Time for which a refused peer is listened to, so that the reason reaches it before the connection is reset.
const FAREWELL: Duration = Duration::from_secs(1);

/// Bytes taken from a refused peer in that time.
const FAREWELL_BYTES_MAX: u64 = 64 << 10;

/// Bounds of a listener.
#[derive(Debug, Clone, Copy)]
pub struct ListenerLimits {
    /// Handshakes at once on each carrier; further connections wait in the kernel.
    pub handshakes_max: usize,
    /// Seconds for a handshake; over QUIC until the first frame begins.
    pub handshake_seconds: u64,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self { handshakes_max: 256, handshake_seconds: 10 }
    }
}

/// Accepts authenticated peers of one role, on TCP and (unless off) on UDP of the same port.
pub struct Listener {
    address: SocketAddr,
    ready: mpsc::Receiver<Connection>,
    door: Arc<Door>,
    /// Memory of large payloads, for all connections together.
    payloads: Payloads,
    /// Ends the carriers' tasks and all handshakes when the listener is dropped.
    _carriers: JoinSet<()>,
}

/// What every handshake needs.
struct Door {
    identity: Identity,
    expect: Role,
    limits: ListenerLimits,
    ready: mpsc::Sender<Connection>,
    failed: AtomicU64,
}

impl Listener {
    /// Binds `host:port` (port 0 picks one) for the carriers given.
    pub async fn bind(
        address: &str,
        kinds: &[TransportKind],
        identity: &Identity,
        expect: Role,
        limits: ListenerLimits,
    ) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Listen { address: address.to_owned(), source };
        let limits =
            ListenerLimits { handshakes_max: limits.handshakes_max.clamp(1, Semaphore::MAX_PERMITS), ..limits };
        let sockets = Sockets::bind(address, kinds, identity, limits.handshakes_max).await.map_err(failed)?;
        let (sender, ready) = mpsc::channel(READY_MAX);
        let identity = identity.clone();
        let door = Arc::new(Door { identity, expect, limits, ready: sender, failed: AtomicU64::new(0) });
        let mut carriers = JoinSet::new();
        if let Some(tcp) = sockets.tcp {
            carriers.spawn(accept_tcp(tcp, door.clone()));
        }
        if let Some(udp) = sockets.udp {
            carriers.spawn(accept_quic(udp, door.clone()));
        }
        Ok(Self { address: sockets.address, ready, door, payloads: Payloads::default(), _carriers: carriers })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Handshakes that failed since the start.
    pub fn failed_handshakes(&self) -> u64 {
        // Relaxed: a plain count, no other memory is published by it.
        self.door.failed.load(Ordering::Relaxed)
    }

    /// The next authenticated connection. Failed handshakes are logged and counted, never returned. Cancel-safe.
    pub async fn accept(&mut self) -> Connection {
        let connection = self.ready.recv().await;
        let mut connection = connection.expect("the listener holds a sender itself, so the channel stays open");
        connection.reader.read_into(self.payloads.clone());
        connection
    }
}

struct Sockets {
    address: SocketAddr,
    tcp: Option<TcpListener>,
    udp: Option<quinn::Endpoint>,
}

impl Sockets {
    async fn bind(
        address: &str,
        kinds: &[TransportKind],
        identity: &Identity,
        handshakes_max: usize,
    ) -> io::Result<Self> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for target in tokio::net::lookup_host(address).await? {
            for _ in 0..PORT_TRIES_MAX {
                match Self::bind_one(target, kinds, identity, handshakes_max).await {
                    Ok(sockets) => return Ok(sockets),
                    Err(error) => failure = error,
                }
                // Only a port picked for one carrier and taken on the other is worth another try.
                if target.port() != 0 || failure.kind() != io::ErrorKind::AddrInUse {
                    break;
                }
            }
        }
        Err(failure)
    }

    async fn bind_one(
        mut address: SocketAddr,
        kinds: &[TransportKind],
        identity: &Identity,
        handshakes_max: usize,
    ) -> io::Result<Self> {
        let (mut tcp, mut udp) = (None, None);
        if kinds.contains(&TransportKind::Tls) {
            let listener = TcpListener::bind(address).await?;
            widen_receiver(&listener);
            address = listener.local_addr()?;
            tcp = Some(listener);
        }
        if kinds.contains(&TransportKind::Quic) {
            let endpoint = quic::listen(address, identity, handshakes_max)?;
            address = endpoint.local_addr()?;
            udp = Some(endpoint);
        }
        if tcp.is_none() && udp.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no transport was chosen"));
        }
        Ok(Self { address, tcp, udp })
    }
}

/// A place for one handshake.
async fn place(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    places.clone().acquire_owned().await.expect("the semaphore is never closed")
}

async fn accept_tcp(listener: TcpListener, door: Arc<Door>) {
    let places = Arc::new(Semaphore::new(door.limits.handshakes_max));
    let acceptor = TlsAcceptor::from(door.identity.server_config());
    let mut handshakes = JoinSet::new();
    loop {
        let permit = place(&places).await;
        while handshakes.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((tcp, address)) => {
                let (door, acceptor) = (door.clone(), acceptor.clone());
                handshakes.spawn(async move {
                    let address = address.to_string();
                    door.admit(&address, accept_tls(tcp, &address, &acceptor, &door)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection, trying again");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn accept_quic(endpoint: quinn::Endpoint, door: Arc<Door>) {
    let places = Arc::new(Semaphore::new(door.limits.handshakes_max));
    let mut handshakes = JoinSet::new();
    loop {
        let permit = place(&places).await;
        while handshakes.try_join_next().is_some() {}
        // Ends only when the endpoint is closed, which only dropping this task does.
        let Some(incoming) = endpoint.accept().await else { return };
        let crowded = places.available_permits() < door.limits.handshakes_max / 2;
        if crowded && incoming.may_retry() && !incoming.remote_address_validated() {
            // Stateless: the source comes back with the token, or was never there.
            let _ = incoming.retry();
            continue;
        }
        let door = door.clone();
        handshakes.spawn(async move {
            let address = incoming.remote_address().to_string();
            door.admit(&address, quic::accept(incoming, &door.identity, door.expect)).await;
            drop(permit);
        });
    }
}

impl Door {
    /// Carries one handshake to its end within the time, and hands the connection on.
    async fn admit(&self, address: &str, handshake: impl Future<Output = Result<Connection, TransportError>>) {
        let seconds = self.limits.handshake_seconds;
        let outcome = tokio::time::timeout(Duration::from_secs(seconds), handshake).await;
        let error = match outcome {
            Ok(Ok(connection)) => {
                // Fails only when the listener is gone, and then nobody wants the connection.
                let _ = self.ready.send(connection).await;
                return;
            }
            Ok(Err(error)) => error,
            Err(_) => TransportError::Timeout { peer: address.to_owned(), seconds },
        };
        // Relaxed: a plain count.
        self.failed.fetch_add(1, Ordering::Relaxed);
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%address, %error, cause, "connection refused: its handshake failed");
    }
}

async fn accept_tls(
    tcp: TcpStream,
    address: &str,
    acceptor: &TlsAcceptor,
    door: &Door,
) -> Result<Connection, TransportError> {
    let unreachable = |source| TransportError::Unreachable { peer: address.to_owned(), source };
    prepare(&tcp).map_err(unreachable)?;
    let mut tls = match acceptor.accept(tcp).into_fallible().await {
        Ok(tls) => tls,
        Err((error, tcp)) => {
            farewell(tcp).await;
            return Err(connect_error(address, error));
        }
    };
    let session = tls.get_ref().1;
    check_alpn(session.alpn_protocol()).map_err(unreachable)?;
    match door.identity.authenticate(session.peer_certificates().unwrap_or_default(), door.expect) {
        Ok((peer, trust)) => Ok(Connection::over(peer, address.to_owned(), Box::new(tls)).resting_on(trust)),
        Err(why) => {
            let _ = tls.shutdown().await;
            farewell(tls.into_inner().0).await;
            Err(TransportError::Untrusted { peer: address.to_owned(), why })
        }
    }
}

/// Lets a refused peer read why. Closing at once, with its first frame unread, would reset the connection and throw away
/// the alert on its way.
async fn farewell(mut tcp: TcpStream) {
    let _ = tcp.shutdown().await;
    let mut rest = tcp.take(FAREWELL_BYTES_MAX);
    let mut waste = [0; 4096];
    let drained = async { while matches!(rest.read(&mut waste).await, Ok(count) if count > 0) {} };
    let _ = tokio::time::timeout(FAREWELL, drained).await;
}
