//! The door for the fuzzer: any bytes as everything a client ever sends, and as a choice of what a good client does.
//!
//! A request that is read is written as the same bytes; what a good client writes is what it reads. For the first:
//! Input is bytes only, output goes nowhere, the disk is tiny, so whatever breaks here breaks by the bytes alone. The
//! unit test below walks the same door with mutations of good conversations, so that each build tries a few thousand.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arbitrary::Unstructured;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::memory::MemoryExport;
use crate::protocol::Request;
use crate::{Client, server};

/// The disk's size in bytes.
pub const DISK_BYTES: u64 = 64 << 10;

/// What a client may make the server hold, whatever it says: each request in flight has at most the disk's size as its
/// payload; one that claims more is refused before anything is allocated.
pub const SERVER_BYTES_MAX: usize = (server::STREAM_INFLIGHT_MAX + 1) * DISK_BYTES as usize;

/// Most operations of the good client.
const OPERATIONS_MAX: usize = 12;

/// Reads from bytes, swallows what is written.
struct Script {
    input: io::Cursor<Vec<u8>>,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_read(cx, buf)
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Plays `data` to a server as one client's bytes; never panics.
pub fn nbd(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without I/O needs nothing from the system");
    let disk = Arc::new(MemoryExport::new(DISK_BYTES));
    // Both ends of a conversation are fine here, the good and the refused; only a panic is a finding.
    let _ = runtime.block_on(converse(data, disk));
    data.windows(Request::BYTES).filter_map(|window| window.try_into().ok()).for_each(request_comes_back);
    runtime.block_on(good_client(&mut Unstructured::new(data)));
}

fn request_comes_back(bytes: &[u8; Request::BYTES]) {
    if let Ok(request) = Request::decode(bytes) {
        assert_eq!(request.encode(), *bytes, "every byte of a request means something");
    }
}

/// Does what the bytes choose, and compares what it reads with a disk of its own.
async fn good_client(u: &mut Unstructured<'_>) {
    let (near, far) = tokio::io::duplex(16 << 10);
    let served = tokio::spawn(server::serve_stream(Box::new(far), "disk", Arc::new(MemoryExport::new(DISK_BYTES))));
    let client = Client::over(Box::new(near), "disk").await.expect("the server takes a good client");
    let mut model = vec![0u8; DISK_BYTES as usize];
    // The bytes are used up at some point; what was done until then stands.
    let _ = operate(u, &client, &mut model).await;
    let all = client.read(0, DISK_BYTES as u32).await.expect("a read within the disk");
    assert!(all == model, "what was written is not what is read");
    client.disconnect().await.expect("a goodbye is heard");
    served.await.expect("the server does not panic").expect("a good client is served to its end");
}

async fn operate(u: &mut Unstructured<'_>, client: &Client, model: &mut [u8]) -> arbitrary::Result<()> {
    let sectors = DISK_BYTES / 512;
    for _ in 0..u.int_in_range(0..=OPERATIONS_MAX)? {
        let first = u.int_in_range(0..=sectors - 1)?;
        let (offset, len) = (first * 512, 512 * u.int_in_range(1..=sectors - first)?);
        let range = offset as usize..(offset + len) as usize;
        let flag = u.arbitrary()?;
        let done = match u.int_in_range(0..=4)? {
            0 => {
                let byte = u.arbitrary::<u8>()?;
                let data: Vec<u8> = (0..len).map(|at| byte.wrapping_add((at / 512) as u8)).collect();
                model[range].copy_from_slice(&data);
                client.write(offset, data.into(), flag).await
            }
            1 => {
                model[range].fill(0);
                client.write_zeroes(offset, len as u32, flag).await
            }
            2 => {
                model[range].fill(0);
                client.trim(offset, len as u32).await
            }
            3 => client.flush().await,
            _ => {
                client.read(offset, len as u32).await.map(|data| assert!(data == model[range], "a read of other bytes"))
            }
        };
        done.expect("the server does what it offers");
    }
    Ok(())
}

async fn converse(data: &[u8], disk: Arc<MemoryExport>) -> Result<(), crate::Error> {
    server::serve_stream(Box::new(Script { input: io::Cursor::new(data.to_vec()) }), "disk", disk).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{OPTION_MAGIC, Request, command, option};

    fn opt(code: u32, data: &[u8]) -> Vec<u8> {
        let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
        out.extend(code.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        out
    }

    /// A conversation that uses every option and every command.
    fn conversation() -> Vec<u8> {
        let mut out = 3u32.to_be_bytes().to_vec();
        out.extend(opt(option::LIST, &[]));
        out.extend(opt(option::STARTTLS, &[]));
        out.extend(opt(option::STRUCTURED_REPLY, &[]));
        let mut contexts = vec![0, 0, 0, 4];
        contexts.extend(b"disk\0\0\0\x01\0\0\0\x0fbase:allocation");
        out.extend(opt(option::LIST_META_CONTEXT, &contexts));
        out.extend(opt(option::SET_META_CONTEXT, &contexts));
        out.extend(opt(option::INFO, b"\0\0\0\x04disk\0\x01\0\x01"));
        out.extend(opt(99, b"what"));
        out.extend(opt(option::GO, b"\0\0\0\0\0\x01\0\x03"));
        let last = [command::DISCONNECT];
        for command in (0..10).filter(|command| *command != command::DISCONNECT).chain(last) {
            let (offset, len) = if command == command::FLUSH { (0, 0) } else { (4096, 1024) };
            out.extend(Request { flags: 0, command, cookie: u64::from(command), offset, len }.encode());
            if command == command::WRITE {
                out.extend([0x5a; 1024]);
            }
        }
        out
    }

    /// A small fixed generator: the mutations are the same in every run.
    struct Lcg(u64);

    impl Lcg {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % limit
        }
    }

    fn run(data: &[u8]) -> (Result<(), crate::Error>, Arc<MemoryExport>) {
        let disk = Arc::new(MemoryExport::new(DISK_BYTES));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        (runtime.block_on(converse(data, disk.clone())), disk)
    }

    /// The control of the test below: the seed reaches the disk, so its mutations do too.
    #[test]
    fn the_unmutated_conversation_is_served_to_its_end() {
        let (ended, disk) = run(&conversation());
        ended.unwrap();
        assert_eq!(disk.flushes(), 1);
    }

    #[test]
    fn mutated_conversations_never_panic_the_server() {
        let seed = conversation();
        let mut random = Lcg(42);
        for round in 0..4000 {
            let mut data = seed.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(data.len());
                match random.below(5) {
                    0 => data[at] ^= 1 << random.below(8),
                    1 => data[at] = [0, 0xff, 0x7f, 0x80][random.below(4)],
                    2 => data.truncate(at.max(1)),
                    3 => drop(data.drain(at..(at + random.below(32)).min(data.len()))),
                    _ => {
                        let copy = data[at..(at + 28).min(data.len())].to_vec();
                        data.splice(at..at, copy);
                    }
                }
                if data.is_empty() {
                    data.push(round as u8);
                }
            }
            expect_no_panic(&data);
        }
    }

    /// Also sees a panic that a task boundary turned into an error.
    fn expect_no_panic(data: &[u8]) {
        if let (Err(error), _) = run(data) {
            assert!(!error.to_string().contains("panic"), "{error} on {data:02x?}");
        }
    }

    #[test]
    fn every_truncation_of_a_conversation_ends_it_without_a_panic() {
        let seed = conversation();
        for len in 0..seed.len() {
            expect_no_panic(&seed[..len]);
            nbd(&seed[..len]);
        }
    }
}
