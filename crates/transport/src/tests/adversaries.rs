//! Strangers and insiders at the port: certificates of the wrong time and name, recorded bytes, lying lengths, floods and
//! slow senders. What each may hold, and for how long, is asserted.

use format::wire::{CONTROL_BYTES_MAX, DATA_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameHeader, FrameKind};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::carriers::{BOTH, forged, refused};
use super::*;
use crate::{Connection, Peer, TransportError, connect};

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_refused_on_both_carriers() {
    let site = Site::new();
    let next_year = crate::clock::unix_seconds() + 365 * DAY.as_secs();
    let early = site.authority.issue_at(Role::Agent, &name("db-01"), next_year, DAY).expect("issued ahead");
    for kind in BOTH {
        let listener = site.listener(kind).await;
        let told = refused(&listener, kind, &forged(&site, Some(&early))).await;
        assert!(matches!(told, TransportError::Untrusted { .. }), "{kind:?}: {told:?}");
    }
}

/// What a certificate with these names says of its holder.
fn named(uris: &[&str]) -> Result<Peer, String> {
    let mut params = rcgen::CertificateParams::default();
    let uri = |text: &&str| rcgen::SanType::URI((*text).try_into().expect("ASCII"));
    params.subject_alt_names = uris.iter().map(uri).collect();
    let key = rcgen::KeyPair::generate().expect("key");
    let made = params.self_signed(&key).expect("certificate");
    crate::tls::peer_of(&CertificateDer::from(made.der().to_vec()))
}

#[test]
fn names_in_certificates_that_are_no_names_are_no_identity() {
    let long = format!("farshore:agent:{}", "a".repeat(64));
    let endless = format!("farshore:agent:{}", "../".repeat(2000));
    for uri in [
        "farshore:agent:../x",
        "farshore:agent:..",
        "farshore:agent:/etc/passwd",
        "farshore:agent:a/b",
        "farshore:agent:a%2fb",
        "farshore:agent:%2e%2e",
        "farshore:agent:a\0b",
        "farshore:agent:a\nb",
        "farshore:agent:a b",
        "farshore:agent:A",
        "farshore:agent:-a",
        "farshore:agent:",
        "farshore:agent",
        "farshore::db",
        "farshore:root:db",
        "farshore:agent:db:web",
        "farshore:",
        "Farshore:agent:db",
        &long,
        &endless,
    ] {
        let why = named(&[uri]).expect_err(uri);
        assert!(why.len() < 400, "{why}");
        assert!(!why.contains(['\n', '\0']), "it cannot forge a line of a log: {why}");
    }
    named(&["farshore:agent:db", "farshore:agent:web"]).expect_err("two names");
    named(&["farshore:agent:db", "farshore:process-server:db"]).expect_err("two roles");
    named(&[]).expect_err("none");
    assert_eq!(named(&["farshore:agent:db", "https://example.org"]).expect("the control").to_string(), "agent db");
}

/// Passes one connection on to `target` and keeps what the client sent.
async fn record(listener: TcpListener, target: std::net::SocketAddr) -> Vec<u8> {
    let (mut client, _) = listener.accept().await.expect("a client");
    let mut server = TcpStream::connect(target).await.expect("the server");
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let mut recorded = Vec::new();
    let forth = async {
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = from_client.read(&mut part).await {
            recorded.extend_from_slice(&part[..count]);
            to_server.write_all(&part[..count]).await.expect("passed on");
        }
        let _ = to_server.shutdown().await;
    };
    let back = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    };
    tokio::join!(forth, back);
    recorded
}

#[tokio::test]
async fn recorded_bytes_of_a_connection_open_no_other() {
    let site = Site::new();
    let mut listener = site.listener(TransportKind::Tls).await;
    let middle = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let through = middle.local_addr().expect("address").to_string();
    let recording = tokio::spawn(record(middle, listener.local_addr()));
    let client = site.identity(Role::Agent, "db-01");
    let mut ours = connect(&through, TransportKind::Tls, &client, Role::ProcessServer).await.expect("connect");
    for frame in every_kind() {
        ours.writer.write(&frame).await.expect("write");
    }
    ours.writer.flush().await.expect("flush");
    let mut theirs = listener.accept().await;
    for frame in every_kind() {
        assert_eq!(theirs.reader.read().await.expect("the control: passed on, it is read"), frame);
    }
    ours.writer.close().await.expect("closed");
    drop((ours, theirs));
    let recorded = recording.await.expect("recorded");
    assert!(recorded.len() > 100_000, "all of it: {} bytes", recorded.len());

    let before = listener.failed_handshakes();
    let mut again = TcpStream::connect(listener.local_addr()).await.expect("connect");
    let _ = again.write_all(&recorded).await;
    eventually("the handshake fails", || listener.failed_handshakes() > before).await;
    let accepted = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
    assert!(accepted.is_err(), "nobody was let in");
}

fn over(stream: tokio::io::DuplexStream) -> Connection {
    Connection::over(Peer { role: Role::Agent, name: name("db-01") }, "memory".into(), Box::new(stream))
}

/// A frame's bytes with four of them replaced, and a checksum that fits.
fn lie(frame: &[u8], at: usize, word: u32) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    if at >= FRAME_HEADER_BYTES {
        let header = bytes.first_chunk::<FRAME_HEADER_BYTES>().expect("a header");
        let kind = FrameHeader::parse(header).expect("untouched").kind;
        let fitting = FrameHeader::of(kind, &bytes[FRAME_HEADER_BYTES..]).encode();
        bytes[..FRAME_HEADER_BYTES].copy_from_slice(&fitting);
    }
    bytes
}

/// Lengths are not looked for: every place of the frames' headers and of what follows them is made to lie, so that each
/// length there is does too.
#[tokio::test(start_paused = true)]
async fn a_lie_in_any_length_is_refused_and_holds_no_memory() {
    let hello = every_kind().into_iter().find(|frame| matches!(frame, Frame::Hello(_))).expect("a HELLO");
    let frames = [hello, Frame::Data(vec![write(1, 512), write(2, 1024)])];
    let mut refused = 0;
    for frame in frames {
        let honest = frame.encode().concat();
        for at in 0..honest.len().min(400) - 4 {
            for word in
                [0, 1, 0x7f, 0xff, 0xffff, CONTROL_BYTES_MAX as u32 + 1, DATA_BYTES_MAX as u32 + 1, 1 << 31, u32::MAX]
            {
                let bytes = lie(&honest, at, word);
                if bytes == honest {
                    continue;
                }
                let (mut near, far) = duplex(1 << 16);
                let mut far = over(far);
                near.write_all(&bytes).await.expect("written");
                drop(near);
                match far.reader.read().await {
                    Err(TransportError::Protocol { .. } | TransportError::Closed { .. }) => refused += 1,
                    // Not a length: another value of the same frame, which is whole and says no more than was sent.
                    Ok(other) => assert!(other.encode().concat().len() <= honest.len(), "byte {at}, {word:#x}"),
                    Err(other) => panic!("byte {at}, {word:#x}: {other:?}"),
                }
                let held = far.reader.memory_bytes();
                assert!(held <= 2 << 20, "byte {at}, {word:#x}: {held} bytes are held");
            }
        }
    }
    assert!(refused > 500, "the control: most lies are refused, {refused} were");
    let header = lie(&data(512).encode().concat(), 8, u32::MAX);
    let told = FrameHeader::parse(header.first_chunk().expect("a header"));
    told.expect_err("4 GiB are refused from the header alone");
}

#[tokio::test(start_paused = true)]
async fn a_frame_sent_byte_by_byte_is_dropped_in_time_and_holds_little() {
    let (mut near, far) = duplex(1 << 16);
    let mut far = over(far);
    let mut largest = FrameHeader::of(FrameKind::Data, &[]).encode();
    largest[8..12].copy_from_slice(&(DATA_BYTES_MAX as u32).to_le_bytes());
    let begun = tokio::time::Instant::now();
    let dripping = async {
        for byte in largest.iter().chain(std::iter::repeat(&0)) {
            if near.write_all(std::slice::from_ref(byte)).await.is_err() {
                break;
            }
            waiting::pass(Duration::from_secs(1)).await;
        }
    };
    let told = tokio::select! {
        told = far.reader.read() => told.expect_err("too slow"),
        () = dripping => panic!("the reader gives up first"),
    };
    assert!(matches!(told, TransportError::Timeout { .. }), "{told:?}");
    assert!(begun.elapsed() <= Duration::from_secs(31), "dropped after {:?}", begun.elapsed());
    assert!(far.reader.memory_bytes() <= 2 << 20, "{} bytes are held", far.reader.memory_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_is_bounded_and_an_honest_agent_gets_through() {
    const FLOOD: usize = 200;
    let site = Site::new();
    let limits = ListenerLimits { handshakes_max: 50, handshake_seconds: 1 };
    let mut listener = site.listener_with(TransportKind::Tls, limits).await;
    let address = listener.local_addr();
    // Half say nothing at all, half begin to speak.
    let mut flood = Vec::new();
    for n in 0..FLOOD {
        let Ok(Ok(mut stranger)) = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await
        else {
            // The kernel's queue is full, which is the bound.
            break;
        };
        if n % 2 == 0 {
            let _ = stranger.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).await;
        }
        flood.push(stranger);
    }
    assert!(flood.len() > 64, "more than can be served at once: {}", flood.len());
    let client = site.identity(Role::Agent, "db-01");
    let begun = tokio::time::Instant::now();
    // Behind the flood the agent waits its turn, and tries again as agents do.
    let connecting = async {
        let address = address.to_string();
        loop {
            if let Ok(connection) = connect(&address, TransportKind::Tls, &client, Role::ProcessServer).await {
                return connection;
            }
        }
    };
    let both = async { tokio::join!(connecting, listener.accept()) };
    let (_ours, theirs) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("within 30 s");
    assert_eq!(theirs.peer.name.as_str(), "db-01");
    // Each turn of 50 places takes a second at most, and a second of farewell for those that spoke.
    assert!(begun.elapsed() < Duration::from_secs(25), "after {:?}", begun.elapsed());
    eventually("all of the flood is dropped", || listener.failed_handshakes() >= flood.len() as u64 / 2).await;
}
