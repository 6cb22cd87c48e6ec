//! Frames over a byte stream: reading with bounded memory and time, writing without copies.
//!
//! A peer that announces a large frame and sends nothing holds next to no memory, for that of a large payload comes only as it is
//! written ([`crate::payload`]), and a frame once begun must arrive in time. Both ends survive being cancelled: a reader keeps what has
//! arrived, a writer sends the rest of a frame it has begun before anything else, so that frames never tear.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use format::wire::{FRAME_HEADER_BYTES, Frame, FrameHeader};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::TransportError;
use crate::failure::stream_error;
use crate::payload::{self, Payload, Payloads};
use crate::revoked::{ASK_EVERY, Trust};

/// Time for a frame once its first byte was read, counted while somebody waits in [`FrameReader::read`].
const FRAME_SECONDS: u64 = 30;

/// Time for the peer to take what was sent before [`FrameWriter::close`] gives up.
const CLOSE_SECONDS: u64 = 10;

/// Bytes read ahead while waiting for a header: many small frames in one call, little to copy before a large one.
const READ_AHEAD_BYTES: usize = 4 << 10;

/// Parts of a frame handed to the stream at once.
const WRITE_PARTS_MAX: usize = 64;

/// Reads frames. Cancel-safe: a cancelled read loses nothing.
pub struct FrameReader {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    /// For messages.
    peer: String,
    /// Bytes read and not yet returned. Never holds more than one small payload and the read-ahead.
    buffer: BytesMut,
    /// The header of the frame whose payload is being read.
    header: Option<FrameHeader>,
    /// Its payload, if that is large.
    large: Option<Payload>,
    /// Memory of large payloads.
    payloads: Payloads,
    /// What is left of the time for the frame begun.
    patience: Duration,
    /// What the connection rests on; nothing where no certificate was shown, as in memory.
    trust: Option<Trust>,
}

impl FrameReader {
    pub(crate) fn new(stream: Box<dyn AsyncRead + Send + Unpin>, peer: String) -> Self {
        let patience = Duration::from_secs(FRAME_SECONDS);
        let (buffer, payloads) = (BytesMut::new(), Payloads::default());
        Self { stream, peer, buffer, header: None, large: None, payloads, patience, trust: None }
    }

    /// From now on large payloads are read into this memory.
    pub(crate) fn read_into(&mut self, payloads: Payloads) {
        self.payloads = payloads;
    }

    /// From now on nothing is read once the trust has lapsed.
    pub(crate) fn rest_on(&mut self, trust: Trust) {
        self.trust = Some(trust);
    }

    /// The next frame. Errors: `Closed` at the end, `Protocol` for what cannot be read. A frame once begun must arrive
    /// within 30 seconds (`Timeout`), so that a slow sender cannot hold memory for ever. A peer whose certificate was
    /// revoked meanwhile is `Untrusted`, also while nothing comes from it.
    pub async fn read(&mut self) -> Result<Frame, TransportError> {
        loop {
            self.check_trust()?;
            if let Some(frame) = self.take_frame()? {
                return Ok(frame);
            }
            self.make_room();
            self.fill().await?;
        }
    }

    /// A frame that has wholly come.
    fn take_frame(&mut self) -> Result<Option<Frame>, TransportError> {
        let protocol = |peer: &str, source| TransportError::Protocol { peer: peer.to_owned(), source };
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(bytes) = self.buffer.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
                let header = FrameHeader::parse(bytes).map_err(|e| protocol(&self.peer, e))?;
                self.buffer.advance(FRAME_HEADER_BYTES);
                self.begin_payload(header)?;
                header
            }
        };
        let Some(payload) = self.take_payload(header) else { return Ok(None) };
        self.header = None;
        self.patience = Duration::from_secs(FRAME_SECONDS);
        header.check(&payload).map_err(|e| protocol(&self.peer, e))?;
        Frame::decode(header.kind, payload).map(Some).map_err(|e| protocol(&self.peer, e))
    }

    /// A header was read: a large payload gets memory of its own, with what of it came behind the header.
    fn begin_payload(&mut self, header: FrameHeader) -> Result<(), TransportError> {
        self.header = Some(header);
        let len = header.payload_bytes as usize;
        if len >= payload::BYTES_MIN {
            let begun = self.payloads.begin(len);
            let mut large = begun.map_err(|source| TransportError::Closed { peer: self.peer.clone(), source })?;
            large.put(&self.buffer.split_to(self.buffer.len().min(len)));
            self.large = Some(large);
        }
        Ok(())
    }

    /// The payload behind the header, if all of it has come.
    fn take_payload(&mut self, header: FrameHeader) -> Option<Bytes> {
        if self.large.is_some() {
            return self.large.take_if(|large| large.is_whole()).map(Payload::freeze);
        }
        let len = header.payload_bytes as usize;
        (self.buffer.len() >= len).then(|| self.buffer.split_to(len).freeze())
    }

    /// Bytes that the small payload in the buffer still lacks, or that may be read ahead.
    fn wanted(&self) -> usize {
        match self.header {
            Some(header) => header.payload_bytes as usize - self.buffer.len(),
            None => READ_AHEAD_BYTES,
        }
    }

    /// Space in the buffer for what comes next. A payload gets one buffer of its own size.
    fn make_room(&mut self) {
        let room = self.buffer.capacity() - self.buffer.len();
        let capacity = match self.header {
            None if room < FRAME_HEADER_BYTES => READ_AHEAD_BYTES,
            Some(header) if self.large.is_none() && room < self.wanted() => header.payload_bytes as usize,
            _ => return,
        };
        let mut larger = BytesMut::with_capacity(capacity);
        larger.extend_from_slice(&self.buffer);
        self.buffer = larger;
    }

    fn check_trust(&mut self) -> Result<(), TransportError> {
        match self.trust.as_mut().and_then(Trust::lapsed) {
            Some(why) => Err(TransportError::Untrusted { peer: self.peer.clone(), why }),
            None => Ok(()),
        }
    }

    /// Reads once from the stream, or returns after a while without, for another look at the peer's certificate.
    async fn fill(&mut self) -> Result<(), TransportError> {
        match self.trust {
            None => self.fill_once().await,
            Some(_) => tokio::time::timeout(ASK_EVERY, self.fill_once()).await.unwrap_or(Ok(())),
        }
    }

    /// Reads once from the stream, never past the payload being read.
    async fn fill_once(&mut self) -> Result<(), TransportError> {
        let begun = self.header.is_some() || !self.buffer.is_empty();
        let room = self.wanted().min(self.buffer.capacity() - self.buffer.len());
        let read = read_once(&mut self.stream, &mut self.buffer, room, self.large.as_mut());
        let count = if begun {
            let waiting = Waiting { since: Instant::now(), left: &mut self.patience };
            tokio::time::timeout(*waiting.left, read)
                .await
                .map_err(|_| TransportError::Timeout { peer: self.peer.clone(), seconds: FRAME_SECONDS })?
        } else {
            read.await
        };
        match count {
            Ok(0) if begun => Err(self.closed(io::ErrorKind::UnexpectedEof, "it ended in the middle of a frame")),
            Ok(0) => Err(self.closed(io::ErrorKind::UnexpectedEof, "the peer ended it")),
            Ok(_) => Ok(()),
            Err(error) => Err(stream_error(&self.peer, error)),
        }
    }

    /// Bytes of memory held for what has not arrived.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        self.buffer.capacity() + self.large.as_ref().map_or(0, Payload::filled)
    }

    fn closed(&self, kind: io::ErrorKind, why: &str) -> TransportError {
        TransportError::Closed { peer: self.peer.clone(), source: io::Error::new(kind, why) }
    }
}

/// Reads once into the large payload, or `room` bytes at most into the buffer. Cancelled, it has read nothing.
async fn read_once(
    stream: &mut (dyn AsyncRead + Send + Unpin),
    buffer: &mut BytesMut,
    room: usize,
    large: Option<&mut Payload>,
) -> io::Result<usize> {
    let Some(large) = large else { return stream.read_buf(&mut buffer.limit(room)).await };
    let count = stream.read(large.missing()).await?;
    large.advance(count);
    Ok(count)
}

/// Takes the time waited off what is left, also when the wait is cancelled.
struct Waiting<'a> {
    since: Instant,
    left: &'a mut Duration,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.left = self.left.saturating_sub(self.since.elapsed());
    }
}

/// Where frames go.
pub(crate) enum Sink {
    /// A byte stream that takes slices.
    Stream(Box<dyn AsyncWrite + Send + Unpin>),
    /// A QUIC stream, which takes the buffers themselves.
    Quic(quinn::SendStream),
}

/// Writes frames, vectored and uncopied. A cancelled write is not lost: its frame goes out whole with the next call.
/// Dropped without [`FrameWriter::close`], the last frames may not reach the peer.
pub struct FrameWriter {
    sink: Sink,
    /// For messages.
    peer: String,
    /// Parts of frames begun and not yet handed to the stream; at most one frame, unless writes were cancelled.
    pending: VecDeque<Bytes>,
}

impl FrameWriter {
    pub(crate) fn new(sink: Sink, peer: String) -> Self {
        Self { sink, peer, pending: VecDeque::new() }
    }

    /// Writes one frame into the stream's buffers.
    pub async fn write(&mut self, frame: &Frame) -> Result<(), TransportError> {
        self.drain().await?;
        self.pending.extend(frame.encode().into_iter().filter(|part| !part.is_empty()));
        self.drain().await
    }

    /// Pushes everything out.
    pub async fn flush(&mut self) -> Result<(), TransportError> {
        self.drain().await?;
        match &mut self.sink {
            Sink::Stream(stream) => stream.flush().await.map_err(|e| stream_error(&self.peer, e)),
            // QUIC sends as soon as congestion control allows.
            Sink::Quic(_) => Ok(()),
        }
    }

    /// Flushes and ends our side. Over QUIC it waits, for ten seconds at most, until the peer has taken everything.
    pub async fn close(&mut self) -> Result<(), TransportError> {
        let limit = Duration::from_secs(CLOSE_SECONDS);
        let timeout = TransportError::Timeout { peer: self.peer.clone(), seconds: CLOSE_SECONDS };
        tokio::time::timeout(limit, self.end()).await.map_err(|_| timeout)?
    }

    async fn end(&mut self) -> Result<(), TransportError> {
        self.flush().await?;
        let ended = match &mut self.sink {
            Sink::Stream(stream) => stream.shutdown().await,
            Sink::Quic(stream) => {
                // Ending twice is no error: the first end holds.
                let _ = stream.finish();
                stream.stopped().await.map(|_| ()).map_err(io::Error::other)
            }
        };
        ended.map_err(|e| stream_error(&self.peer, e))
    }

    /// Hands every pending part to the stream. What is handed over is taken off at once, so cancelling loses nothing.
    async fn drain(&mut self) -> Result<(), TransportError> {
        while !self.pending.is_empty() {
            let written = match &mut self.sink {
                Sink::Stream(stream) => write_some(stream.as_mut(), &self.pending).await,
                Sink::Quic(stream) => write_chunks(stream, &mut self.pending).await,
            };
            take_off(&mut self.pending, written.map_err(|e| stream_error(&self.peer, e))?);
        }
        Ok(())
    }
}

/// Removes what the stream has taken.
fn take_off(pending: &mut VecDeque<Bytes>, mut count: usize) {
    while count > 0
        && let Some(front) = pending.front_mut()
    {
        let part = count.min(front.len());
        front.advance(part);
        count -= part;
        if front.is_empty() {
            pending.pop_front();
        }
    }
}

/// One vectored write; returns the bytes taken.
async fn write_some(stream: &mut (dyn AsyncWrite + Send + Unpin), pending: &VecDeque<Bytes>) -> io::Result<usize> {
    let slices: Vec<IoSlice<'_>> = pending.iter().take(WRITE_PARTS_MAX).map(|part| IoSlice::new(part)).collect();
    match stream.write_vectored(&slices).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}

/// Gives buffers to QUIC, which takes whole ones and advances the last. They are cheap handles: no byte is copied.
async fn write_chunks(stream: &mut quinn::SendStream, pending: &mut VecDeque<Bytes>) -> io::Result<usize> {
    let mut parts: Vec<Bytes> = pending.iter().take(WRITE_PARTS_MAX).cloned().collect();
    Ok(stream.write_chunks(&mut parts).await?.bytes)
}
