//! Frames over a stream in memory, where time stands still until somebody waits.

use format::wire::{FRAME_HEADER_BYTES, Frame};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::{Connection, Peer, TransportError};

fn over(stream: DuplexStream) -> Connection {
    let peer = Peer { role: Role::Agent, name: name("db-01") };
    Connection::over(peer, "memory".into(), Box::new(stream))
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    frame.encode().concat()
}

#[tokio::test(start_paused = true)]
async fn frames_cross_a_stream_of_any_size() {
    for room in [1, 7, 64, 1 << 20] {
        let (near, far) = duplex(room);
        let (mut near, mut far) = (over(near), over(far));
        let send = async {
            for frame in every_kind() {
                near.writer.write(&frame).await.expect("write");
            }
            near.writer.close().await.expect("close");
        };
        let receive = async {
            for frame in every_kind() {
                assert_eq!(far.reader.read().await.expect("read"), frame, "room {room}");
            }
            far.reader.read().await.expect_err("the end")
        };
        let ((), end) = tokio::join!(send, receive);
        assert!(matches!(end, TransportError::Closed { .. }), "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_cancelled_at_every_byte_loses_nothing() {
    let (mut near, far) = duplex(1 << 20);
    let mut far = over(far);
    let mut sent = every_kind().iter().flat_map(bytes_of).collect::<Vec<u8>>();
    sent.truncate(24 << 10);
    let mut whole = Vec::new();
    for byte in &sent {
        near.write_all(std::slice::from_ref(byte)).await.expect("byte");
        // Polled once, then dropped.
        tokio::select! {
            biased;
            frame = far.reader.read() => whole.push(frame.expect("frame")),
            () = std::future::ready(()) => {}
        }
    }
    let expected: Vec<Frame> = every_kind().into_iter().take(whole.len()).collect();
    assert!(whole.len() >= 4, "several frames went through");
    assert_eq!(whole, expected);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_write_goes_out_whole_with_the_next() {
    let (near, far) = duplex(100);
    let (mut near, mut far) = (over(near), over(far));
    let large = data(4096);
    tokio::select! {
        biased;
        _ = near.writer.write(&large) => panic!("the stream has no room for this frame"),
        () = std::future::ready(()) => {}
    }
    let send = async {
        near.writer.write(&Frame::Bye).await.expect("write");
        near.writer.flush().await.expect("flush");
    };
    let receive = async { (far.reader.read().await.expect("first"), far.reader.read().await.expect("second")) };
    let ((), frames) = tokio::join!(send, receive);
    assert_eq!(frames, (large, Frame::Bye));
}

#[tokio::test(start_paused = true)]
async fn a_frame_begun_must_arrive_in_time_although_reads_are_cancelled() {
    let (mut near, far) = duplex(1 << 20);
    let mut far = over(far);
    let bytes = bytes_of(&data(4096));
    near.write_all(&bytes[..FRAME_HEADER_BYTES + 10]).await.expect("begun");
    let start = tokio::time::Instant::now();
    let told = loop {
        tokio::select! {
            biased;
            told = far.reader.read() => break told.expect_err("late"),
            () = waiting::pass(Duration::from_secs(7)) => {}
        }
    };
    assert!(matches!(told, TransportError::Timeout { .. }), "{told:?}");
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn silence_between_frames_and_time_when_nobody_reads_are_no_lateness() {
    let (mut near, far) = duplex(1 << 20);
    let mut far = over(far);
    let bytes = bytes_of(&data(4096));
    let idle = tokio::time::timeout(Duration::from_secs(3600), far.reader.read()).await;
    assert!(idle.is_err(), "an idle connection stays");
    near.write_all(&bytes[..10]).await.expect("begun");
    let _ = tokio::time::timeout(Duration::from_secs(20), far.reader.read()).await;
    waiting::pass(Duration::from_secs(3600)).await;
    near.write_all(&bytes[10..]).await.expect("rest");
    assert_eq!(far.reader.read().await.expect("in time"), data(4096));
}

#[tokio::test(start_paused = true)]
async fn an_announced_frame_holds_little_memory_until_it_arrives() {
    let (mut near, far) = duplex(1 << 20);
    let mut far = over(far);
    near.write_all(&bytes_of(&data(32 << 20))[..FRAME_HEADER_BYTES]).await.expect("header only");
    let _ = tokio::time::timeout(Duration::from_secs(1), far.reader.read()).await;
    let held = far.reader.memory_bytes();
    assert!(held <= 2 << 20, "{held} bytes are held for a header");
}

#[tokio::test(start_paused = true)]
async fn an_end_in_the_middle_of_a_frame_and_damaged_bytes_are_told_apart() {
    let bytes = bytes_of(&data(4096));
    let (mut near, far) = duplex(1 << 20);
    near.write_all(&bytes[..bytes.len() - 1]).await.expect("most");
    drop(near);
    let told = over(far).reader.read().await.expect_err("torn");
    assert!(
        matches!(&told, TransportError::Closed { source, .. } if source.to_string().contains("middle")),
        "{told:?}"
    );

    for damaged in [0, 5, bytes.len() - 1] {
        let mut bytes = bytes.clone();
        bytes[damaged] ^= 1;
        let (mut near, far) = duplex(1 << 20);
        near.write_all(&bytes).await.expect("damaged");
        let told = over(far).reader.read().await.expect_err("damaged");
        assert!(matches!(told, TransportError::Protocol { .. }), "byte {damaged}: {told:?}");
    }
}
