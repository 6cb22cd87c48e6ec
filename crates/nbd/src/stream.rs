//! One type for every byte stream a connection can run over: TCP, Unix, TLS over either, or memory in tests.
//!
//! Code above this line never knows which it is, so the same negotiation and transmission run in all of them.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

/// A connection's bytes in both directions.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Any byte stream.
pub(crate) type ByteStream = Box<dyn Duplex>;

/// Silence on a TCP connection before the kernel asks whether the other side still lives.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Time between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Bytes thrown away per read while a refused payload is skipped.
const DISCARD_BUFFER_BYTES: usize = 16 << 10;

/// Small replies leave at once, and a client that vanished without a word does not hold its place for ever.
pub(crate) fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Reads exactly `len` bytes into one allocation of that size. The caller has bounded `len`.
pub(crate) async fn read_bytes<R: AsyncRead + Unpin>(reader: &mut R, len: usize) -> std::io::Result<bytes::BytesMut> {
    read_bytes_into(reader, bytes::BytesMut::with_capacity(len), len).await
}

/// Reads exactly `len` bytes into an empty buffer, which has room for them.
pub(crate) async fn read_bytes_into<R: AsyncRead + Unpin>(
    reader: &mut R,
    mut buffer: bytes::BytesMut,
    len: usize,
) -> std::io::Result<bytes::BytesMut> {
    let mut part = reader.take(len as u64);
    while buffer.len() < len {
        if part.read_buf(&mut buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer)
}

/// Skips exactly `len` bytes in a small buffer.
pub(crate) async fn discard<R: AsyncRead + Unpin>(reader: &mut R, len: u32) -> std::io::Result<()> {
    let mut buffer = vec![0; DISCARD_BUFFER_BYTES];
    let mut left = len as usize;
    while left > 0 {
        let part = left.min(buffer.len());
        left -= reader.read_exact(&mut buffer[..part]).await?;
    }
    Ok(())
}
