//! Replies on the wire, and the one task that sends them.
//!
//! Small replies are gathered and sent together; a large read goes out beside its header without being copied. What a
//! request held (its slot, its bytes) is given back only after its reply was handed to the kernel or TLS.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::meta_context::ALLOCATION_ID;
use super::requests::Outcome;
use crate::protocol::{Request, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, command, state};
use crate::{BlockStatus, Errno};

/// Gathered replies are sent at the latest when they reach this many bytes.
const GATHER_BYTES_MAX: usize = 64 << 10;
/// Reads up to this many bytes are copied beside other replies; for larger ones a system call is cheaper.
const COPY_BYTES_MAX: usize = 16 << 10;

/// What a request occupies until its reply is sent.
pub(super) struct Held {
    #[expect(dead_code, reason = "held for its drop")]
    pub(super) slot: OwnedSemaphorePermit,
    #[expect(dead_code, reason = "held for its drop")]
    pub(super) bytes: Option<OwnedSemaphorePermit>,
}

/// A reply to send.
pub(super) struct Reply {
    pub(super) request: Request,
    pub(super) outcome: Outcome,
    pub(super) held: Held,
}

/// Sends replies until the last sender is gone, then closes the sending side.
pub(super) async fn write_replies<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queue: mpsc::Receiver<Reply>,
    structured: bool,
) -> std::io::Result<()> {
    let mut out = BytesMut::with_capacity(GATHER_BYTES_MAX);
    let mut gathered = Vec::new();
    while let Some(reply) = queue.recv().await {
        let mut next = Some(reply);
        while let Some(reply) = next {
            let data = encode(&reply.request, reply.outcome, structured, &mut out);
            gathered.push(reply.held);
            if data.len() > COPY_BYTES_MAX {
                writer.write_all_buf(&mut out.split().freeze().chain(data)).await?;
                gathered.clear();
            } else {
                out.put_slice(&data);
            }
            if out.len() >= GATHER_BYTES_MAX {
                break;
            }
            next = queue.try_recv().ok();
        }
        writer.write_all_buf(&mut out).await?;
        writer.flush().await?;
        gathered.clear();
        out.reserve(GATHER_BYTES_MAX);
    }
    writer.shutdown().await
}

/// Appends a reply except for the data of a read, which it returns to be sent right behind.
fn encode(request: &Request, outcome: Outcome, structured: bool, out: &mut BytesMut) -> Bytes {
    if structured { encode_structured(request, outcome, out) } else { encode_simple(request, outcome, out) }
}

fn encode_simple(request: &Request, outcome: Outcome, out: &mut BytesMut) -> Bytes {
    let (errno, data) = match outcome {
        Outcome::Done => (0, Bytes::new()),
        Outcome::Data(data) => (0, data),
        Outcome::Failed(errno, _) => (errno.code(), Bytes::new()),
        // `check` lets no block status through without structured replies.
        Outcome::Runs(_) => (Errno::Invalid.code(), Bytes::new()),
    };
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(errno);
    out.put_u64(request.cookie);
    data
}

fn encode_structured(request: &Request, outcome: Outcome, out: &mut BytesMut) -> Bytes {
    match outcome {
        Outcome::Done => chunk_header(request, chunk::NONE, 0, out),
        Outcome::Data(data) => {
            debug_assert_eq!(request.command, command::READ);
            chunk_header(request, chunk::OFFSET_DATA, 8 + data.len(), out);
            out.put_u64(request.offset);
            return data;
        }
        Outcome::Runs(runs) => {
            chunk_header(request, chunk::BLOCK_STATUS, 4 + 8 * runs.len(), out);
            out.put_u32(ALLOCATION_ID);
            for run in runs {
                out.put_u32(u32::try_from(run.len).expect("runs were cut to the range of the request"));
                out.put_u32(run_flags(run));
            }
        }
        Outcome::Failed(errno, why) => {
            chunk_header(request, chunk::ERROR, 6 + why.len(), out);
            out.put_u32(errno.code());
            out.put_u16(u16::try_from(why.len()).expect("our own sentences are short"));
            out.put_slice(why.as_bytes());
        }
    }
    Bytes::new()
}

/// Every reply of ours is one chunk, so each is the last.
fn chunk_header(request: &Request, kind: u16, len: usize, out: &mut BytesMut) {
    out.put_u32(STRUCTURED_REPLY_MAGIC);
    out.put_u16(chunk::FLAG_DONE);
    out.put_u16(kind);
    out.put_u64(request.cookie);
    out.put_u32(u32::try_from(len).expect("payloads are far below 4 GiB"));
}

fn run_flags(run: BlockStatus) -> u32 {
    (if run.hole { state::HOLE } else { 0 }) | (if run.zero { state::ZERO } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: u16, structured: bool, outcome: Outcome, expected: &[u8]) {
        let request = Request { flags: 0, command, cookie: 0x1122_3344_5566_7788, offset: 0x1000, len: 2 };
        let mut out = BytesMut::new();
        let data = encode(&request, outcome, structured, &mut out);
        out.put_slice(&data);
        assert_eq!(out, expected);
    }

    #[test]
    fn a_simple_reply_has_exactly_these_bytes() {
        let mut expected = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
        check(command::WRITE, false, Outcome::Done, &expected);
        expected.extend(b"ab");
        check(command::READ, false, Outcome::Data(Bytes::from_static(b"ab")), &expected);
        expected.truncate(16);
        expected[7] = 28;
        check(command::WRITE, false, Outcome::Failed(Errno::NoSpace, "full"), &expected);
    }

    #[test]
    fn structured_replies_have_exactly_these_bytes() {
        let head = |kind: [u8; 2], len: u8| {
            let mut head = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, kind[0], kind[1]];
            head.extend([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, len]);
            head
        };
        check(command::FLUSH, true, Outcome::Done, &head([0, 0], 0));

        let mut data = head([0, 1], 10);
        data.extend([0, 0, 0, 0, 0, 0, 0x10, 0]);
        data.extend(b"ab");
        check(command::READ, true, Outcome::Data(Bytes::from_static(b"ab")), &data);

        let mut runs = head([0, 5], 20);
        runs.extend([0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 4, 0, 0, 0, 0, 0]);
        let status =
            vec![BlockStatus { len: 512, hole: true, zero: true }, BlockStatus { len: 1024, hole: false, zero: false }];
        check(command::BLOCK_STATUS, true, Outcome::Runs(status), &runs);

        let mut error = head([0x80, 1], 10);
        error.extend([0, 0, 0, 5, 0, 4]);
        error.extend(b"disk");
        check(command::READ, true, Outcome::Failed(Errno::Io, "disk"), &error);
    }
}
