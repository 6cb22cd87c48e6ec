//! Takes replies off the connection and hands them to their callers.
//!
//! The server chooses order, chunking and sizes, so each is checked before a byte is stored: data lies inside the range
//! of its request, chunks of one reply do not bring more than was asked, lists have a bound. Anything else ends the
//! connection, because a place lost in the stream cannot be found again.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use super::handshake::Details;
use super::waiting::{Waiting, WaitingList};
use crate::protocol::{Fields, SIMPLE_REPLY_MAGIC, STRING_BYTES_MAX, STRUCTURED_REPLY_MAGIC, chunk, command, state};
use crate::stream::read_bytes;
use crate::{BlockStatus, Errno, Error};

/// What one system call may bring in ahead of need.
const RECEIVE_BUFFER_BYTES: usize = 16 << 10;
/// Runs of one block status that we read.
const RUNS_MAX: usize = 1 << 20;
/// Longest error chunk: two numbers, a message and an offset.
const ERROR_BYTES_MAX: usize = 6 + STRING_BYTES_MAX + 8;

/// Dispatches replies until the connection ends, then fails what still waits.
pub(super) async fn receive<R: AsyncRead + Unpin>(reader: R, details: Details, waiting: Arc<WaitingList>) {
    let reader = BufReader::with_capacity(RECEIVE_BUFFER_BYTES, reader);
    let error: io::Error = match (Replies { reader, details, waiting: waiting.clone() }).run().await {
        Ok(()) => io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"),
        Err(error) => error.into(),
    };
    waiting.fail_all(error.kind(), &error.to_string());
}

struct Replies<R> {
    reader: BufReader<R>,
    details: Details,
    waiting: Arc<WaitingList>,
}

/// The header of a chunk behind its magic.
struct Chunk {
    done: bool,
    kind: u16,
    len: usize,
}

impl<R: AsyncRead + Unpin> Replies<R> {
    async fn run(&mut self) -> Result<(), Error> {
        loop {
            let mut magic = [0; 4];
            let first = self.reader.read(&mut magic).await?;
            if first == 0 {
                return Ok(());
            }
            self.reader.read_exact(&mut magic[first..]).await?;
            match u32::from_be_bytes(magic) {
                SIMPLE_REPLY_MAGIC => self.simple().await?,
                STRUCTURED_REPLY_MAGIC if self.details.structured => self.structured().await?,
                found => return Err(Error::Magic { what: "a reply", found: u64::from(found) }),
            }
        }
    }

    fn take(&self, cookie: u64) -> Result<Waiting, Error> {
        self.waiting.take(cookie).ok_or(Error::Reply("it answered a request that we did not send"))
    }

    async fn simple(&mut self) -> Result<(), Error> {
        let errno = self.reader.read_u32().await?;
        let cookie = self.reader.read_u64().await?;
        let mut waiting = self.take(cookie)?;
        if errno != 0 {
            waiting.failed = Some((Errno::from_code(errno), String::new()));
        } else if waiting.request.command == command::BLOCK_STATUS {
            return Err(Error::Reply("a block status came as a simple reply"));
        } else if waiting.request.command == command::READ {
            if self.details.structured {
                return Err(Error::Reply("a read came as a simple reply"));
            }
            waiting.data = read_bytes(&mut self.reader, waiting.request.len as usize).await?;
        }
        waiting.finish();
        Ok(())
    }

    async fn structured(&mut self) -> Result<(), Error> {
        let flags = self.reader.read_u16().await?;
        let kind = self.reader.read_u16().await?;
        let cookie = self.reader.read_u64().await?;
        let len = self.reader.read_u32().await? as usize;
        let chunk = Chunk { done: flags & chunk::FLAG_DONE != 0, kind, len };
        let mut waiting = self.take(cookie)?;
        let mut filled = self.fill(&chunk, &mut waiting).await;
        if chunk.done && filled.is_ok() {
            filled = complete(&waiting);
        }
        if chunk.done && filled.is_ok() {
            waiting.finish();
            return Ok(());
        }
        // More chunks follow, or the connection ends here and its end is told to all who wait. This fails only if the
        // connection was given up meanwhile; the caller is told then too.
        let _ = self.waiting.add(cookie, waiting);
        filled
    }

    async fn fill(&mut self, chunk: &Chunk, waiting: &mut Waiting) -> Result<(), Error> {
        match chunk.kind {
            chunk::NONE if chunk.done && chunk.len == 0 => Ok(()),
            chunk::OFFSET_DATA => self.data(chunk, waiting).await,
            chunk::OFFSET_HOLE => self.hole(chunk, waiting).await,
            chunk::BLOCK_STATUS => self.block_status(chunk, waiting).await,
            kind if kind & chunk::ERROR_BIT != 0 => self.error(chunk, waiting).await,
            _ => Err(Error::Reply("a chunk is of a kind we did not agree on")),
        }
    }

    /// The place in the read's buffer that a chunk of `len` bytes at `offset` fills.
    fn place(waiting: &mut Waiting, offset: u64, len: u64) -> Result<usize, Error> {
        let request = waiting.request;
        let start = offset.checked_sub(request.offset);
        let fits = start.and_then(|start| start.checked_add(len)).is_some_and(|end| end <= u64::from(request.len));
        waiting.covered += len;
        if request.command != command::READ || !fits || len == 0 || waiting.covered > u64::from(request.len) {
            return Err(Error::Reply("data lies outside of what was asked for"));
        }
        usize::try_from(start.unwrap_or(0)).map_err(|_| Error::Reply("data lies outside of what was asked for"))
    }

    async fn data(&mut self, chunk: &Chunk, waiting: &mut Waiting) -> Result<(), Error> {
        let len = chunk.len.checked_sub(8).ok_or(Error::Reply("a data chunk is cut off"))?;
        let offset = self.reader.read_u64().await?;
        let start = Self::place(waiting, offset, len as u64)?;
        let whole = waiting.request.len as usize;
        if len == whole {
            waiting.data = read_bytes(&mut self.reader, len).await?;
            return Ok(());
        }
        waiting.data.resize(whole, 0);
        self.reader.read_exact(&mut waiting.data[start..start + len]).await?;
        Ok(())
    }

    async fn hole(&mut self, chunk: &Chunk, waiting: &mut Waiting) -> Result<(), Error> {
        if chunk.len != 12 {
            return Err(Error::Reply("a hole chunk has a wrong length"));
        }
        let offset = self.reader.read_u64().await?;
        let len = self.reader.read_u32().await? as usize;
        let start = Self::place(waiting, offset, len as u64)?;
        waiting.data.resize(waiting.request.len as usize, 0);
        waiting.data[start..start + len].fill(0);
        Ok(())
    }

    async fn block_status(&mut self, chunk: &Chunk, waiting: &mut Waiting) -> Result<(), Error> {
        let payload = chunk.len.checked_sub(4).filter(|len| len.is_multiple_of(8) && *len / 8 <= RUNS_MAX && *len > 0);
        let count = payload.ok_or(Error::Reply("a block status chunk has a wrong length"))? / 8;
        if waiting.request.command != command::BLOCK_STATUS || !waiting.runs.is_empty() {
            return Err(Error::Reply("a block status came that was not asked for"));
        }
        let id = self.reader.read_u32().await?;
        if Some(id) != self.details.allocation {
            return Err(Error::Reply("a block status is of a context we did not agree on"));
        }
        for _ in 0..count {
            let len = u64::from(self.reader.read_u32().await?);
            let flags = self.reader.read_u32().await?;
            waiting.runs.push(BlockStatus { len, hole: flags & state::HOLE != 0, zero: flags & state::ZERO != 0 });
        }
        cut(&mut waiting.runs, u64::from(waiting.request.len))
    }

    async fn error(&mut self, chunk: &Chunk, waiting: &mut Waiting) -> Result<(), Error> {
        if chunk.len > ERROR_BYTES_MAX {
            return Err(Error::Reply("an error chunk is longer than any real one"));
        }
        let payload: BytesMut = read_bytes(&mut self.reader, chunk.len).await?;
        let mut fields = Fields::new(&payload);
        let parsed = (|| {
            let errno = fields.u32()?;
            let len = fields.u16()?;
            Some((Errno::from_code(errno), String::from_utf8_lossy(fields.take(usize::from(len))?).into_owned()))
        })();
        let failure = parsed.ok_or(Error::Reply("an error chunk is cut off"))?;
        waiting.failed.get_or_insert(failure);
        Ok(())
    }
}

/// The protocol lets the last run end beyond the range; our callers never see that.
fn cut(runs: &mut [BlockStatus], len: u64) -> Result<(), Error> {
    let mut left = len;
    for run in runs.iter_mut() {
        if run.len == 0 || left == 0 {
            return Err(Error::Reply("a block status has a run that is empty or beyond the range"));
        }
        run.len = run.len.min(left);
        left -= run.len;
    }
    Ok(())
}

/// A reply that ends without an error must have brought all that was asked.
fn complete(waiting: &Waiting) -> Result<(), Error> {
    let whole = match waiting.request.command {
        command::READ => waiting.covered == u64::from(waiting.request.len),
        command::BLOCK_STATUS => !waiting.runs.is_empty(),
        _ => true,
    };
    if whole || waiting.failed.is_some() { Ok(()) } else { Err(Error::Reply("a reply ended before it was complete")) }
}
