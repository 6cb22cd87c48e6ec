//! The client against servers that break the protocol, and replies that only other servers send.

use std::time::Duration;

use bytes::BufMut;
use tokio::io::{AsyncReadExt, DuplexStream};

use super::*;
use crate::protocol::{PAYLOAD_BYTES_MAX, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

const PATIENCE: Duration = Duration::from_secs(10);

fn details(structured: bool) -> Details {
    let allocation = structured.then_some(5);
    Details { size: 1 << 20, flags: 1, minimum_block: 1, payload_max: PAYLOAD_BYTES_MAX, structured, allocation }
}

/// A client in transmission, and the server's end of its connection.
fn connected(structured: bool) -> (Client, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (Client::run(Box::new(ours), details(structured)), theirs)
}

fn one_chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(STRUCTURED_REPLY_MAGIC);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out
}

fn simple(errno: u32, cookie: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(errno);
    out.put_u64(cookie);
    out
}

/// Sends `reply` once a request has come; the client's first cookie is 1.
async fn answer(mut server: DuplexStream, reply: Vec<u8>) -> DuplexStream {
    let mut header = [0; Request::BYTES];
    server.read_exact(&mut header).await.unwrap();
    server.write_all(&reply).await.unwrap();
    server
}

async fn read_answered(structured: bool, reply: Vec<u8>) -> io::Result<Bytes> {
    let (client, server) = connected(structured);
    let both = async { tokio::join!(client.read(100, 8), answer(server, reply)) };
    tokio::time::timeout(PATIENCE, both).await.expect("the client never hangs on a bad reply").0
}

async fn status_answered(reply: Vec<u8>) -> io::Result<Vec<BlockStatus>> {
    let (client, server) = connected(true);
    let both = async { tokio::join!(client.block_status(0, 1024), answer(server, reply)) };
    tokio::time::timeout(PATIENCE, both).await.expect("the client never hangs on a bad reply").0
}

fn data_at(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], data].concat()
}

#[tokio::test]
async fn a_read_is_put_together_from_data_and_holes_in_any_order() {
    let hole = [&102u64.to_be_bytes()[..], &3u32.to_be_bytes()].concat();
    let reply = [
        one_chunk(0, chunk::OFFSET_DATA, 1, &data_at(105, b"xyz")),
        one_chunk(0, chunk::OFFSET_HOLE, 1, &hole),
        one_chunk(0, chunk::OFFSET_DATA, 1, &data_at(100, b"ab")),
        one_chunk(chunk::FLAG_DONE, chunk::NONE, 1, b""),
    ];
    assert_eq!(read_answered(true, reply.concat()).await.unwrap(), &b"ab\0\0\0xyz"[..]);
}

#[tokio::test]
async fn a_simple_read_is_taken_where_nothing_else_was_agreed() {
    let reply = [simple(0, 1), b"abcdefgh".to_vec()].concat();
    assert_eq!(read_answered(false, reply).await.unwrap(), &b"abcdefgh"[..]);
    let error = read_answered(false, simple(5, 1)).await.unwrap_err();
    assert_eq!(error.to_string(), "read of 8 bytes at 100 failed: input/output error (EIO)");
}

#[tokio::test]
async fn an_error_chunk_after_data_fails_the_read_with_the_servers_words() {
    let reply = [
        one_chunk(0, chunk::OFFSET_DATA, 1, &data_at(100, b"ab")),
        one_chunk(chunk::FLAG_DONE, chunk::ERROR, 1, b"\0\0\0\x05\0\x07bad disk"[..13].as_ref()),
    ];
    let error = read_answered(true, reply.concat()).await.unwrap_err();
    assert!(error.to_string().ends_with("(EIO): bad dis"), "{error}");
}

#[tokio::test]
async fn replies_that_break_the_protocol_fail_the_connection() {
    let done = chunk::FLAG_DONE;
    for (reply, why) in [
        (one_chunk(done, chunk::OFFSET_DATA, 2, &data_at(100, b"abcdefgh")), "did not send"),
        (one_chunk(done, chunk::OFFSET_DATA, 1, &data_at(99, b"abcdefgh")), "outside"),
        (one_chunk(done, chunk::OFFSET_DATA, 1, &data_at(101, b"abcdefgh")), "outside"),
        (one_chunk(done, chunk::OFFSET_DATA, 1, &data_at(u64::MAX, b"abcdefgh")), "outside"),
        (one_chunk(done, chunk::OFFSET_DATA, 1, &data_at(100, b"abcdefghi")), "outside"),
        (one_chunk(done, chunk::OFFSET_DATA, 1, b"short"), "cut off"),
        (one_chunk(done, chunk::OFFSET_DATA, 1, &data_at(100, b"abc")), "before it was complete"),
        (one_chunk(done, chunk::NONE, 1, b""), "before it was complete"),
        (one_chunk(done, chunk::NONE, 1, b"x"), "kind"),
        (one_chunk(done, chunk::OFFSET_HOLE, 1, &[0; 13]), "wrong length"),
        (one_chunk(done, chunk::BLOCK_STATUS, 1, &[0; 12]), "not asked for"),
        (one_chunk(done, 77, 1, b""), "kind"),
        (one_chunk(done, chunk::ERROR, 1, b"\0\0"), "cut off"),
        (one_chunk(done, chunk::ERROR, 1, b"\0\0\0\x05\xff\xff"), "cut off"),
        (one_chunk(done, chunk::ERROR, 1, &[0; 5000]), "longer"),
        ([simple(0, 1), b"abcdefgh".to_vec()].concat(), "simple reply"),
        (vec![0xaa; 64], "lost its place"),
    ] {
        let error = read_answered(true, reply).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error} for {why}");
    }
}

#[tokio::test]
async fn a_block_status_is_cut_to_the_range_and_checked() {
    let done = chunk::FLAG_DONE;
    let runs = |id: u32, runs: &[(u32, u32)]| {
        let mut out = id.to_be_bytes().to_vec();
        runs.iter().for_each(|(len, flags)| out.extend([len.to_be_bytes(), flags.to_be_bytes()].concat()));
        one_chunk(done, chunk::BLOCK_STATUS, 1, &out)
    };
    let found = status_answered(runs(5, &[(512, 3), (4096, 0)])).await.unwrap();
    assert_eq!(
        found,
        [BlockStatus { len: 512, hole: true, zero: true }, BlockStatus { len: 512, hole: false, zero: false }]
    );
    for bad in [runs(6, &[(512, 0)]), runs(5, &[]), runs(5, &[(0, 0)]), runs(5, &[(1024, 0), (1, 0)]), simple(0, 1)] {
        assert_eq!(status_answered(bad).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

#[tokio::test]
async fn a_lost_connection_fails_what_waits_and_what_comes() {
    let (client, server) = connected(true);
    let (read, _) = tokio::join!(client.read(0, 8), async { drop(answer(server, vec![]).await) });
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(client.flush().await.is_err());
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_disturb_the_others() {
    let (client, mut server) = connected(false);
    let mut given_up = Box::pin(client.read(0, 8));
    assert!(futures::poll!(&mut given_up).is_pending());
    drop(given_up);
    let replies = [simple(0, 1), b"ignored!".to_vec(), simple(0, 2)].concat();
    server.write_all(&replies[..24]).await.unwrap();
    let later = async {
        let mut headers = [0; 2 * Request::BYTES];
        server.read_exact(&mut headers).await.unwrap();
        server.write_all(&replies[24..]).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(client.flush(), later) }).await.unwrap().0.unwrap();
}

#[tokio::test]
async fn too_large_a_request_is_refused_before_it_is_sent() {
    let (client, _server) = connected(true);
    let error = client.read(0, PAYLOAD_BYTES_MAX + 1).await.unwrap_err();
    assert!(error.to_string().contains("the server takes 33554432"), "{error}");
}

/// A server's side of the handshake that says these bytes whatever the client asks.
async fn go_answered(said: Vec<u8>) -> Result<Details, Error> {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    theirs.write_all(&said).await.unwrap();
    theirs.shutdown().await.unwrap();
    let talk = async {
        let mut stream = handshake::begin(Box::new(ours), None).await?;
        handshake::go(&mut stream, "disk").await
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("the client never hangs on a closed server")
}

fn option_reply(code: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64(crate::protocol::OPTION_REPLY_MAGIC);
    out.put_u32(code);
    out.put_u32(kind);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out
}

#[tokio::test]
async fn a_server_without_structured_replies_is_served_with_simple_ones() {
    let export = b"\0\0\0\0\0\0\0\0\x02\0\0\x01";
    let said = [
        b"NBDMAGICIHAVEOPT\0\x03".to_vec(),
        option_reply(8, 0x8000_0001, b""),
        option_reply(7, 3, export),
        option_reply(7, 3, b"\0\x09whatever"),
        option_reply(7, 1, b""),
    ];
    let found = go_answered(said.concat()).await.unwrap();
    assert_eq!((found.size, found.flags, found.structured, found.allocation), (512, 1, false, None));
}

#[tokio::test]
async fn greetings_and_answers_that_break_the_protocol_are_refused() {
    let hello = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let agreed = [hello.clone(), option_reply(8, 0x8000_0001, b"")].concat();
    for (said, why) in [
        (b"SSH-2.0-OpenSSH_9.2p1".to_vec(), "does not speak NBD"),
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\x03".to_vec(), "newstyle"),
        (b"NBDMAGICIHAVEOPT\0\x02".to_vec(), "too old"),
        ([hello.clone(), option_reply(9, 1, b"")].concat(), "another option"),
        ([hello.clone(), option_reply(8, 1, &vec![0; 9000])].concat(), "longer"),
        ([hello.clone(), vec![1; 64]].concat(), "lost its place"),
        ([hello, option_reply(8, 0x8000_0005, b"")].concat(), "TLS"),
        ([agreed.clone(), option_reply(7, 1, b"")].concat(), "did not describe"),
        ([agreed.clone(), option_reply(7, 3, b"\0\0\0")].concat(), "malformed"),
        ([agreed.clone(), option_reply(7, 3, b"\0\x03\0\0\0\0\0\0\0\0\0\0\0\0")].concat(), "malformed"),
        ([agreed.clone(), option_reply(7, 0x8000_0006, b"no\x1b such")].concat(), "no export of that name (no  such)"),
        ([agreed.clone(), option_reply(7, 3, b"\0\x09").repeat(5000)].concat(), "does not end"),
        (agreed, "connection lost"),
    ] {
        let error = go_answered(said).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error} for {why}");
    }
}
