//! Both carriers: who gets in, who does not, and what strangers can hold.

use std::sync::Arc;

use format::wire::{DATA_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameHeader, FrameKind};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::connection::connect_by;
use crate::path::Rule;
use crate::tls::{ALPN, server_name};
use crate::{Connection, TransportError, connect, connect_auto};

pub(super) const BOTH: [TransportKind; 2] = [TransportKind::Tls, TransportKind::Quic];

/// A connection that the listener has accepted: the client's end and the server's.
async fn pair(site: &Site, kind: TransportKind) -> (Connection, Connection) {
    let mut listener = site.listener(kind).await;
    let address = listener.local_addr().to_string();
    let client = site.identity(Role::Agent, "db-01");
    let mut ours = connect(&address, kind, &client, Role::ProcessServer).await.expect("connect");
    ours.writer.write(&Frame::Ping(0)).await.expect("first frame");
    ours.writer.flush().await.expect("flush");
    let mut theirs = listener.accept().await;
    assert_eq!(theirs.reader.read().await.expect("first frame"), Frame::Ping(0));
    (ours, theirs)
}

#[tokio::test]
async fn every_kind_of_frame_goes_both_ways_on_both_carriers() {
    let site = Site::new();
    for kind in BOTH {
        let (mut ours, mut theirs) = pair(&site, kind).await;
        assert_eq!((theirs.peer.role, theirs.peer.name.as_str()), (Role::Agent, "db-01"));
        assert_eq!((ours.peer.role, ours.peer.name.as_str()), (Role::ProcessServer, "gateway"));
        for frame in every_kind() {
            ours.writer.write(&frame).await.expect("write");
            ours.writer.flush().await.expect("flush");
            assert_eq!(theirs.reader.read().await.expect("read"), frame);
            theirs.writer.write(&frame).await.expect("write back");
            theirs.writer.flush().await.expect("flush");
            assert_eq!(ours.reader.read().await.expect("read back"), frame);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_32_mib_goes_through_both_carriers_whole() {
    let site = Site::new();
    let large = data(32 << 20);
    for kind in BOTH {
        let mut listener = site.listener(kind).await;
        let address = listener.local_addr().to_string();
        let client = site.identity(Role::Agent, "db-01");
        let sent = large.clone();
        let sender = tokio::spawn(async move {
            let mut ours = connect(&address, kind, &client, Role::ProcessServer).await.expect("connect");
            ours.writer.write(&sent).await.expect("write");
            ours.writer.write(&Frame::Bye).await.expect("bye");
            ours.writer.close().await.expect("close waits until all is taken");
        });
        let mut theirs = listener.accept().await;
        assert!(theirs.reader.read().await.expect("large frame") == large, "{kind:?} changed the frame");
        assert_eq!(theirs.reader.read().await.expect("bye"), Frame::Bye);
        assert!(matches!(theirs.reader.read().await, Err(TransportError::Closed { .. })), "{kind:?} ends");
        sender.await.expect("sender");
    }
}

/// A listener with both carriers, or one of them.
async fn listening(site: &Site, kinds: &[TransportKind]) -> Listener {
    let identity = site.identity(Role::ProcessServer, "gateway");
    Listener::bind("127.0.0.1:0", kinds, &identity, Role::Agent, ListenerLimits::default()).await.expect("bind")
}

/// Connects by a rule; the carrier it took, as both ends have exchanged a frame over it.
async fn carrier_by(rule: Rule, site: &Site, kinds: &[TransportKind]) -> Carrier {
    let mut listener = listening(site, kinds).await;
    let (address, client) = (listener.local_addr().to_string(), site.identity(Role::Agent, "db-01"));
    let mut ours = connect_by(rule, &address, &client, Role::ProcessServer).await.expect("connect");
    ours.writer.write(&Frame::Ping(0)).await.expect("write");
    ours.writer.flush().await.expect("flush");
    let mut theirs = listener.accept().await;
    assert_eq!(theirs.reader.read().await.expect("read"), Frame::Ping(0));
    assert_eq!(theirs.carrier, None, "only who connects knows");
    ours.carrier.expect("who connects knows")
}

/// Paths of every length are long, whatever the machine does meanwhile.
const LONG: Rule = Rule { long: Duration::ZERO, congestion: "reno", quic_patience: Duration::from_secs(5) };

/// The same where the kernel does not have what is wanted.
const LONG_WITHOUT: Rule = Rule { congestion: "nonesuch", ..LONG };

/// No path is.
const SHORT: Rule = Rule { long: Duration::MAX, ..LONG };

#[tokio::test]
async fn a_short_path_takes_tls_as_it_is_and_a_long_one_with_our_congestion_control() {
    let site = Site::new();
    for (rule, bbr) in [(SHORT, false), (LONG, true)] {
        let carrier = carrier_by(rule, &site, &BOTH).await;
        assert_eq!((carrier.kind, carrier.bbr), (TransportKind::Tls, bbr));
    }
}

#[tokio::test]
async fn a_long_path_without_our_congestion_control_takes_quic_and_a_short_one_does_not() {
    let site = Site::new();
    let carrier = carrier_by(LONG_WITHOUT, &site, &BOTH).await;
    assert_eq!((carrier.kind, carrier.bbr), (TransportKind::Quic, true));
    let carrier = carrier_by(Rule { long: Duration::MAX, ..LONG_WITHOUT }, &site, &BOTH).await;
    assert_eq!((carrier.kind, carrier.bbr), (TransportKind::Tls, false));
}

#[tokio::test]
async fn a_carrier_that_is_blocked_gives_way_to_the_other() {
    let site = Site::new();
    for rule in [SHORT, LONG, LONG_WITHOUT] {
        assert_eq!(carrier_by(rule, &site, &[TransportKind::Quic]).await.kind, TransportKind::Quic);
    }
    let hasty = Rule { quic_patience: Duration::from_millis(200), ..LONG_WITHOUT };
    let carrier = carrier_by(hasty, &site, &[TransportKind::Tls]).await;
    assert_eq!((carrier.kind, carrier.bbr), (TransportKind::Tls, false));
}

#[tokio::test]
async fn a_server_that_is_reached_but_not_trusted_is_not_asked_by_the_other_carrier() {
    let (site, other) = (Site::new(), Site::new());
    // Over TCP a server answers that the client must not trust; over UDP of the same port one that it could.
    let listener = listening(&site, &[TransportKind::Tls]).await;
    let (address, client) = (listener.local_addr().to_string(), other.identity(Role::Agent, "db-01"));
    let (tempting, limits) = (other.identity(Role::ProcessServer, "gateway"), ListenerLimits::default());
    let _tempting =
        Listener::bind(&address, &[TransportKind::Quic], &tempting, Role::Agent, limits).await.expect("bind");
    for rule in [SHORT, LONG] {
        let told = connect_by(rule, &address, &client, Role::ProcessServer).await;
        assert!(matches!(told, Err(TransportError::Untrusted { .. })), "{told:?}");
    }
    // The control: without TCP the other one gets the connection.
    drop(listener);
    connect_auto(&address, &client, Role::ProcessServer).await.expect("over QUIC");
}

#[tokio::test]
async fn one_listener_takes_both_carriers_on_one_port() {
    let site = Site::new();
    let identity = site.identity(Role::ProcessServer, "gateway");
    let mut listener =
        Listener::bind("127.0.0.1:0", &BOTH, &identity, Role::Agent, ListenerLimits::default()).await.expect("bind");
    let address = listener.local_addr().to_string();
    for (kind, holder) in [(TransportKind::Quic, "over-quic"), (TransportKind::Tls, "over-tls")] {
        let client = site.identity(Role::Agent, holder);
        let mut ours = connect(&address, kind, &client, Role::ProcessServer).await.expect("connect");
        ours.writer.write(&Frame::Ping(1)).await.expect("write");
        ours.writer.flush().await.expect("flush");
        assert_eq!(listener.accept().await.peer.name.as_str(), holder);
    }
    assert_eq!(listener.failed_handshakes(), 0);
}

/// Connects with `client` where its certificate must not be accepted, and returns what the client is told.
pub(super) async fn refused(listener: &Listener, kind: TransportKind, client: &Identity) -> TransportError {
    let before = listener.failed_handshakes();
    let address = listener.local_addr().to_string();
    let told = match connect(&address, kind, client, Role::ProcessServer).await {
        Err(error) => error,
        Ok(mut ours) => {
            // Under TLS 1.3 the client hears of it at its first read. The write may already fail.
            let _ = ours.writer.write(&Frame::Ping(0)).await;
            let _ = ours.writer.flush().await;
            ours.reader.read().await.expect_err("a refused client gets no frame")
        }
    };
    eventually("the listener counts the refusal", || listener.failed_handshakes() > before).await;
    told
}

#[tokio::test]
async fn certificates_of_another_ca_are_refused_on_both_carriers_by_both_sides() {
    let (site, other) = (Site::new(), Site::new());
    for kind in BOTH {
        let listener = site.listener(kind).await;
        // The stranger trusts its own CA, so it refuses the server first.
        let told = refused(&listener, kind, &other.identity(Role::Agent, "db-01")).await;
        assert!(matches!(told, TransportError::Untrusted { .. }), "{kind:?}: {told}");
        // One that trusts our CA but holds a certificate of its own is refused by the server.
        let told = refused(&listener, kind, &mixed(&site, &other, Role::Agent)).await;
        assert!(matches!(told, TransportError::Untrusted { .. }), "{kind:?}: {told}");
    }
}

/// Trusts `site`, shows a certificate of `other`. An honest program refuses to load this, so it is built by hand.
fn mixed(site: &Site, other: &Site, role: Role) -> Identity {
    let issued = other.issue(role, "db-01");
    forged(site, Some(&issued))
}

/// An identity that skips every check of its own certificate.
pub(super) fn forged(site: &Site, issued: Option<&IssuedCertificate>) -> Identity {
    let honest = site.identity(Role::Agent, "db-01");
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(site.authority.certificate_pem().as_bytes()).expect("CA");
    roots.add(ca).expect("root");
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match issued {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("certificate")];
            let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("key");
            builder.with_client_auth_cert(chain, key).expect("pair")
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    honest.with_client_config(config)
}

#[tokio::test]
async fn no_certificate_an_expired_one_and_a_server_s_are_refused_on_both_carriers() {
    let site = Site::new();
    let long_ago = crate::clock::unix_seconds() - 10 * DAY.as_secs();
    let expired = site.authority.issue_at(Role::Agent, &name("db-01"), long_ago, DAY).expect("issued in the past");
    let server_s = site.issue(Role::ProcessServer, "gateway-2");
    for kind in BOTH {
        let listener = site.listener(kind).await;
        for (client, why) in [
            (forged(&site, None), "none was shown"),
            (forged(&site, Some(&expired)), "expired"),
            (forged(&site, Some(&server_s)), "role"),
        ] {
            let told = refused(&listener, kind, &client).await;
            assert!(matches!(told, TransportError::Untrusted { .. }), "{kind:?}, {why}: {told:?}");
        }
        // The control: the same construction with a good certificate gets in.
        let good = forged(&site, Some(&site.issue(Role::Agent, "db-01")));
        let address = listener.local_addr().to_string();
        let mut listener = listener;
        let mut ours = connect(&address, kind, &good, Role::ProcessServer).await.expect("connect");
        ours.writer.write(&Frame::Ping(0)).await.expect("write");
        ours.writer.flush().await.expect("flush");
        listener.accept().await;
    }
}

#[tokio::test]
async fn a_valid_certificate_of_another_role_is_refused() {
    let site = Site::new();
    for kind in BOTH {
        // An applier's certificate is a client's too: only its name tells it from an agent's.
        let listener = site.listener(kind).await;
        let told = refused(&listener, kind, &site.identity(Role::Applier, "target")).await;
        assert!(matches!(told, TransportError::Closed { .. }), "{kind:?}: {told:?}");
    }
}

#[tokio::test]
async fn an_agent_s_certificate_is_no_server_s() {
    let site = Site::new();
    for kind in BOTH {
        let agent = site.identity(Role::Agent, "db-02");
        let listener =
            Listener::bind("127.0.0.1:0", &[kind], &agent, Role::Agent, ListenerLimits::default()).await.expect("bind");
        let client = site.identity(Role::Agent, "db-01");
        let told = connect(&listener.local_addr().to_string(), kind, &client, Role::ProcessServer).await;
        assert!(matches!(told, Err(TransportError::Untrusted { .. })), "{kind:?}: {told:?}");
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_unreachable() {
    let site = Site::new();
    let client = site.identity(Role::Agent, "db-01");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let told = connect(&free.to_string(), TransportKind::Tls, &client, Role::ProcessServer).await;
    assert!(matches!(told, Err(TransportError::Unreachable { .. })), "{told:?}");
    let told = connect("no-port", TransportKind::Quic, &client, Role::ProcessServer).await;
    assert!(matches!(told, Err(TransportError::Unreachable { .. })), "{told:?}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let site = Site::new();
    let first = site.listener(TransportKind::Tls).await;
    let identity = site.identity(Role::ProcessServer, "gateway");
    let address = first.local_addr().to_string();
    let limits = ListenerLimits::default();
    let told = Listener::bind(&address, &[TransportKind::Tls], &identity, Role::Agent, limits).await.err();
    assert!(told.expect("taken").to_string().contains(&address));
}

#[tokio::test]
async fn garbage_on_the_port_is_refused_and_the_next_peer_served() {
    let site = Site::new();
    let mut listener = site.listener(TransportKind::Tls).await;
    let address = listener.local_addr();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 3, 1, 0xff, 0xff, 1, 0, 0]] {
        let before = listener.failed_handshakes();
        let mut stranger = TcpStream::connect(address).await.expect("connect");
        stranger.write_all(garbage).await.expect("garbage");
        stranger.shutdown().await.expect("end");
        let mut answer = Vec::new();
        // The listener ends the connection; a reset is as good.
        let _ = stranger.read_to_end(&mut answer).await;
        eventually("garbage is counted", || listener.failed_handshakes() > before).await;
    }
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("udp");
    let both = site.listener(TransportKind::Quic).await;
    for len in [1, 100, 1200] {
        udp.send_to(&vec![0xc3; len], both.local_addr()).await.expect("garbage datagram");
    }
    let client = site.identity(Role::Agent, "db-01");
    let mut ours =
        connect(&address.to_string(), TransportKind::Tls, &client, Role::ProcessServer).await.expect("served");
    ours.writer.write(&Frame::Bye).await.expect("write");
    assert_eq!(listener.accept().await.peer.name.as_str(), "db-01");
    connect(&both.local_addr().to_string(), TransportKind::Quic, &client, Role::ProcessServer).await.expect("served");
}

#[tokio::test]
async fn silent_strangers_are_dropped_in_time_and_cannot_hold_every_place() {
    let site = Site::new();
    let limits = ListenerLimits { handshakes_max: 2, handshake_seconds: 1 };
    let mut listener = site.listener_with(TransportKind::Tls, limits).await;
    let address = listener.local_addr();
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(TcpStream::connect(address).await.expect("connect"));
    }
    let client = site.identity(Role::Agent, "db-01");
    let address = address.to_string();
    let (_ours, theirs) =
        tokio::join!(connect(&address, TransportKind::Tls, &client, Role::ProcessServer), listener.accept());
    assert_eq!(theirs.peer.name.as_str(), "db-01");
    assert!(listener.failed_handshakes() >= 4, "the silent ones before it were dropped");
}

#[tokio::test]
async fn a_quic_peer_that_never_speaks_is_dropped_in_time() {
    let site = Site::new();
    let limits = ListenerLimits { handshakes_max: 1, handshake_seconds: 1 };
    let mut listener = site.listener_with(TransportKind::Quic, limits).await;
    let address = listener.local_addr().to_string();
    let client = site.identity(Role::Agent, "db-01");
    let silent = connect(&address, TransportKind::Quic, &client, Role::ProcessServer).await.expect("connect");
    eventually("the silent one is dropped", || listener.failed_handshakes() == 1).await;
    let mut ours = connect(&address, TransportKind::Quic, &client, Role::ProcessServer).await.expect("connect");
    ours.writer.write(&Frame::Bye).await.expect("write");
    assert_eq!(listener.accept().await.peer.name.as_str(), "db-01");
    drop(silent);
}

#[tokio::test]
async fn a_frame_over_its_cap_ends_the_connection_before_it_is_read() {
    let site = Site::new();
    let mut listener = site.listener(TransportKind::Tls).await;
    let issued = site.issue(Role::Agent, "db-01");
    let config = forged(&site, Some(&issued)).client_config();
    let tcp = TcpStream::connect(listener.local_addr()).await.expect("tcp");
    let mut tls = tokio_rustls::TlsConnector::from(config).connect(server_name(), tcp).await.expect("tls");
    let mut header = FrameHeader::of(FrameKind::Data, &[]).encode();
    header[8..12].copy_from_slice(&(DATA_BYTES_MAX as u32 + 1).to_le_bytes());
    tls.write_all(&header).await.expect("header");
    let mut theirs = listener.accept().await;
    let told = theirs.reader.read().await.expect_err("over the cap");
    assert!(matches!(told, TransportError::Protocol { .. }), "{told:?}");
    assert_eq!(header.len(), FRAME_HEADER_BYTES);
}
