//! The server: accepts connections, negotiates, and runs requests in parallel.
//!
//! ```text
//!   listener ──► handshake (TLS, options; bounded time) ──► transmission (reader, tasks, writer) ──► close
//! ```
//!
//! Every connection is served by its own task, or on a thread of its own, and can only harm itself: the number of connections, the time a handshake
//! may take, the requests and bytes in flight are all bounded. Stopping closes the door, lets requests that have begun
//! finish, sends their replies and then closes.

mod handshake;
mod listener;
mod meta_context;
mod negotiation;
mod payloads;
mod replies;
mod requests;
mod threads;
mod transmission;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use self::listener::{Listener, SocketFile};
use self::negotiation::Offer;
use crate::protocol::STRING_BYTES_MAX;
use crate::stream::ByteStream;
use crate::{Error, Export, ListenAddress};

/// A client must reach the transmission phase in this time.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(30);
/// Requests in flight get this long to finish and be answered when the server stops.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
/// How often it is asked whether a client's certificate is still good.
const LAPSED_EVERY: Duration = Duration::from_secs(2);
/// Pause after an accept failed (most often: no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Largest value of `inflight_max` and `connections_max`.
const CONFIGURED_MAX: usize = 65536;

/// How to serve.
#[derive(Clone)]
pub struct ServerConfig {
    /// Name of the export; a client that asks for the empty name gets it too.
    pub name: String,
    /// Where.
    pub listen: ListenAddress,
    /// TLS: required of every client when set.
    pub tls: Option<ServerTls>,
    /// Requests in flight on one connection, 1 to 65536.
    pub inflight_max: usize,
    /// Connections at once, 1 to 65536; one more is closed at once.
    pub connections_max: usize,
    /// Where requests run.
    pub threads: Threads,
}

/// Where requests run.
#[derive(Debug, Clone, Copy)]
pub enum Threads {
    /// On those of the runtime, many connections on few. The export must not block.
    Shared,
    /// Each connection has one of its own, for an export that answers most requests at once and may block over it: nobody
    /// is woken for such a request. One that has to wait may go on in the runtime, when its connection is cut off, so what it
    /// waits for must not belong to the thread it began on, as timers and sockets of tokio do.
    Own {
        /// Called first on each.
        began: fn(),
    },
}

/// Whether a client that was let in by this certificate must go.
pub type Lapsed = Arc<dyn Fn(&CertificateDer<'_>) -> bool + Send + Sync>;

/// How clients are met over TLS.
#[derive(Clone)]
pub struct ServerTls {
    /// How the server proves itself, and whom it lets in.
    pub config: Arc<rustls::ServerConfig>,
    /// Asked every two seconds about every client that showed a certificate; none if once let in is enough.
    pub lapsed: Option<Lapsed>,
}

impl From<Arc<rustls::ServerConfig>> for ServerTls {
    fn from(config: Arc<rustls::ServerConfig>) -> Self {
        Self { config, lapsed: None }
    }
}

/// A running server; stops when dropped or by [`Server::stop`].
pub struct Server {
    address: ListenAddress,
    stop: watch::Sender<bool>,
    acceptor: JoinHandle<()>,
    socket: Option<SocketFile>,
}

impl Server {
    /// Binds and serves in the background.
    ///
    /// # Errors
    /// `InvalidInput` if the configuration or the export's geometry cannot be served, `AddrInUse` if somebody else
    /// listens there, else what the system said to the bind.
    pub async fn start(config: ServerConfig, export: Arc<dyn Export>) -> io::Result<Self> {
        validate(&config, &*export).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let (listener, address, socket) = Listener::bind(&config.listen).await?;
        let (stop, stopped) = watch::channel(false);
        let service = Arc::new(Service::new(&config, export, stopped));
        let acceptor = tokio::spawn(accept(listener, service, config.connections_max, config.threads));
        tracing::info!(%address, export = config.name, tls = config.tls.is_some(), "serving NBD");
        Ok(Self { address, stop, acceptor, socket })
    }

    /// The address bound (the port picked, for port 0).
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Stops accepting, lets requests in flight finish (10 seconds at most), closes. A request that takes longer still
    /// runs to its end on the export; its client sees a lost connection.
    pub async fn stop(self) {
        let Self { address, stop, acceptor, socket } = self;
        drop(socket);
        stop.send_replace(true);
        if let Err(fault) = acceptor.await {
            tracing::error!(%address, %fault, "the accepting task failed");
        }
        tracing::info!(%address, "stopped serving NBD");
    }
}

fn validate(config: &ServerConfig, export: &dyn Export) -> Result<(), String> {
    for (what, value) in [("inflight_max", config.inflight_max), ("connections_max", config.connections_max)] {
        if !(1..=CONFIGURED_MAX).contains(&value) {
            return Err(format!("{what} is {value}: set 1 to {CONFIGURED_MAX}"));
        }
    }
    if matches!(config.listen, ListenAddress::Tls(_)) && config.tls.is_none() {
        return Err(format!("{} cannot be served without a TLS configuration", config.listen));
    }
    if config.name.len() > STRING_BYTES_MAX {
        return Err(format!("the export's name is {} bytes, NBD allows {STRING_BYTES_MAX}", config.name.len()));
    }
    let (size, block) = (export.size(), export.minimum_block());
    if !matches!(block, 1 | 512) {
        return Err(format!("the export's minimum block is {block} bytes: only 1 and 512 can be served"));
    }
    if !size.is_multiple_of(u64::from(block)) || i64::try_from(size).is_err() {
        return Err(format!(
            "the export's size of {size} bytes is not a multiple of its {block} byte block, or too large"
        ));
    }
    Ok(())
}

/// What every connection needs.
struct Service {
    offer: Arc<Offer>,
    tls: Option<TlsAcceptor>,
    lapsed: Option<Lapsed>,
    inflight_max: usize,
    handshake_time_max: Duration,
    /// Where requests go on that cannot be answered at once, if they begin on a thread of the connection.
    runtime: Option<Handle>,
    stopped: watch::Receiver<bool>,
}

impl Service {
    fn new(config: &ServerConfig, export: Arc<dyn Export>, stopped: watch::Receiver<bool>) -> Self {
        Self {
            offer: Arc::new(Offer { name: config.name.clone(), export }),
            tls: config.tls.clone().map(|tls| TlsAcceptor::from(tls.config)),
            lapsed: config.tls.as_ref().and_then(|tls| tls.lapsed.clone()),
            inflight_max: config.inflight_max,
            handshake_time_max: HANDSHAKE_TIME_MAX,
            runtime: matches!(config.threads, Threads::Own { .. }).then(Handle::current),
            stopped,
        }
    }

    /// Serves one connection to its end.
    async fn serve(&self, stream: ByteStream) -> Result<(), Error> {
        let mut stopped = self.stopped.clone();
        let handshake = handshake::run(stream, &self.offer, self.tls.as_ref());
        let limit = self.handshake_time_max;
        let agreed = tokio::select! {
            biased;
            () = told_to_stop(&mut stopped) => return Ok(()),
            done = tokio::time::timeout(limit, handshake) => done.map_err(|_| Error::HandshakeTimeout(limit))??,
        };
        let Some(handshake::Agreement { stream, agreed, certificate }) = agreed else { return Ok(()) };
        // Ends like a stop of the server: requests that have begun finish and are answered.
        let (end, ended) = watch::channel(false);
        let terms = transmission::Terms { agreed, inflight_max: self.inflight_max, runtime: self.runtime.clone() };
        let serving = transmission::serve(stream, self.offer.clone(), terms, ended);
        let cutting = async {
            let cut = tokio::select! {
                biased;
                () = told_to_stop(&mut stopped) => None,
                () = self.lapse(certificate) => Some(Error::Revoked),
            };
            end.send_replace(true);
            match cut {
                // The server itself bounds the time of its stop.
                None => std::future::pending().await,
                Some(why) => {
                    tokio::time::sleep(STOP_TIME_MAX).await;
                    why
                }
            }
        };
        tokio::select! {
            biased;
            done = serving => done,
            why = cutting => Err(why),
        }
    }

    /// Returns once a client's certificate is not good any more.
    async fn lapse(&self, certificate: Option<CertificateDer<'static>>) {
        let (Some(lapsed), Some(certificate)) = (&self.lapsed, certificate) else {
            return std::future::pending().await;
        };
        while !lapsed(&certificate) {
            tokio::time::sleep(LAPSED_EVERY).await;
        }
        tracing::warn!("an NBD client's certificate was revoked: it is cut off");
    }
}

/// Returns once the server stops; a dropped server stops too.
async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    // An error means that the server is gone.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn accept(listener: Listener, service: Arc<Service>, connections_max: usize, threads: Threads) {
    let mut stopped = service.stopped.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = told_to_stop(&mut stopped) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((_, peer)) if connections.len() >= connections_max => {
                    tracing::warn!(peer, connections_max, "too many NBD connections, closed one more");
                }
                Ok((accepted, peer)) => {
                    let service = service.clone();
                    match threads {
                        Threads::Shared => connections.spawn(connection(service, accepted.into_stream(), peer)),
                        Threads::Own { began } => {
                            connections.spawn(threads::connection(service, accepted, peer, began))
                        }
                    };
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept an NBD connection, trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_TIME_MAX, drained).await.is_err() {
        tracing::warn!(limit = ?STOP_TIME_MAX, "NBD connections did not finish in time, closing them");
    }
}

async fn connection(service: Arc<Service>, stream: ByteStream, peer: String) {
    tracing::debug!(peer, "NBD client connected");
    match service.serve(stream).await {
        Ok(()) => tracing::debug!(peer, "NBD client gone"),
        Err(Error::Io(error)) => tracing::debug!(peer, %error, "NBD client lost"),
        Err(error) => tracing::warn!(peer, %error, "NBD connection ended by a fault"),
    }
}

/// Requests in flight of [`serve_stream`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) const STREAM_INFLIGHT_MAX: usize = 8;

/// Serves `stream` as if a client had connected, for the fuzzer and tests without sockets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) async fn serve_stream(stream: ByteStream, name: &str, export: Arc<dyn Export>) -> Result<(), Error> {
    let (_stop, stopped) = watch::channel(false);
    let listen = ListenAddress::Unix("/nonexistent".into());
    let config = ServerConfig {
        name: name.to_owned(),
        listen,
        tls: None,
        inflight_max: STREAM_INFLIGHT_MAX,
        connections_max: 1,
        threads: Threads::Shared,
    };
    Service::new(&config, export, stopped).serve(stream).await
}

#[cfg(test)]
mod tests;
