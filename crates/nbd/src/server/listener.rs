//! Binding the address and accepting connections.
//!
//! A Unix socket file outlives the process that made it. A stale one (nobody answers) is replaced; one that answers, or a
//! file that is no socket, is an error. On stop the file is removed only if it still is the one we made, so that a
//! successor that already listens keeps its own.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::ListenAddress;
use crate::stream::{ByteStream, tune};

/// A bound socket.
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A connection just accepted.
pub(super) enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Accepted {
    /// As a byte stream like any other.
    pub(super) fn into_stream(self) -> ByteStream {
        match self {
            Self::Unix(stream) => Box::new(stream),
            Self::Tcp(stream) => Box::new(stream),
        }
    }

    /// The same, driven by the runtime that is entered.
    pub(super) fn moved(self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.into_std()?)?),
        })
    }
}

impl Listener {
    /// Binds; also returns the address really bound and, for a Unix socket, the file to remove later.
    pub(super) async fn bind(address: &ListenAddress) -> io::Result<(Self, ListenAddress, Option<SocketFile>)> {
        match address {
            ListenAddress::Tcp(host_port) | ListenAddress::Tls(host_port) => {
                let listener =
                    TcpListener::bind(host_port).await.map_err(|error| explain(error, "listen on", address))?;
                let bound = listener.local_addr()?;
                let bound = match (address, host_port.rsplit_once(':')) {
                    // The host stays as written: it is what the certificate is for.
                    (ListenAddress::Tls(_), Some((host, _))) => ListenAddress::Tls(format!("{host}:{}", bound.port())),
                    _ => ListenAddress::Tcp(bound.to_string()),
                };
                Ok((Self::Tcp(listener), bound, None))
            }
            ListenAddress::Unix(path) => {
                remove_stale(path).await?;
                let listener = UnixListener::bind(path).map_err(|error| explain(error, "listen on", address))?;
                let file = SocketFile::of(path)?;
                Ok((Self::Unix(listener), address.clone(), Some(file)))
            }
        }
    }

    /// The next connection and, for logs, where it comes from.
    pub(super) async fn accept(&self) -> io::Result<(Accepted, String)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Unix(stream), "unix".to_owned()))
            }
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = tune(&stream) {
                    tracing::debug!(%peer, %error, "could not tune a connection, serving it as it is");
                }
                Ok((Accepted::Tcp(stream), peer.to_string()))
            }
        }
    }
}

fn explain(error: io::Error, what: &str, address: &ListenAddress) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {address}: {error}"))
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let shown = path.display();
    if !metadata.file_type().is_socket() {
        let why = format!("{shown} exists and is not a socket: remove it or listen elsewhere");
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    match UnixStream::connect(path).await {
        Ok(_) => {
            let why = format!("another server listens on unix:{shown}: stop it or listen elsewhere");
            Err(io::Error::new(io::ErrorKind::AddrInUse, why))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %shown, "replacing a stale socket file");
            std::fs::remove_file(path)
        }
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot tell whether unix:{shown} is in use: {error}"))),
    }
}

/// The socket file we made; removed when dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(socket = %self.path.display(), %error, "could not remove the socket file");
        }
    }
}
