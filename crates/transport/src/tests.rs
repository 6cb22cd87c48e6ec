//! Goal: only a peer with a valid certificate of the right role gets a connection, on either carrier, and nothing that a
//! stranger sends holds memory, time or a place for long. Method: real sockets on the loopback, real certificates.

mod adversaries;
mod carriers;
mod framing;
mod identity;
mod nbd;
mod revoked;

use std::time::Duration;

use bytes::Bytes;
use format::wire::{Frame, Hello, PROTOCOL_VERSION, Refusal, Refused, Start, Stored, Welcome};
use model::{DiskName, Extent, LogHead, MachineName, Record, RecordBody, Seq, Timestamp};

use crate::{Authority, Carrier, Identity, IssuedCertificate, Listener, ListenerLimits, Role, TransportKind};

const DAY: Duration = Duration::from_secs(86_400);

fn name(text: &str) -> MachineName {
    text.parse().expect("a valid name")
}

/// A site's CA and what it issues.
struct Site {
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        Self { authority: Authority::generate("test").expect("CA") }
    }

    fn issue(&self, role: Role, holder: &str) -> IssuedCertificate {
        self.authority.issue(role, &name(holder), DAY).expect("certificate")
    }

    fn identity(&self, role: Role, holder: &str) -> Identity {
        let issued = self.issue(role, holder);
        Identity::from_pem(self.authority.certificate_pem(), &issued.certificate_pem, &issued.key_pem)
            .expect("identity")
    }

    async fn listener(&self, kind: TransportKind) -> Listener {
        self.listener_with(kind, ListenerLimits::default()).await
    }

    async fn listener_with(&self, kind: TransportKind, limits: ListenerLimits) -> Listener {
        let identity = self.identity(Role::ProcessServer, "gateway");
        Listener::bind("127.0.0.1:0", &[kind], &identity, Role::Agent, limits).await.expect("bind")
    }
}

/// A write of so many bytes, told apart by `seq`.
fn write(seq: u64, len: usize) -> Record {
    let data: Vec<u8> = (0..len).map(|i| (i as u64).wrapping_mul(31).wrapping_add(seq) as u8).collect();
    let body = RecordBody::Write {
        disk: "root".parse::<DiskName>().expect("name").id(),
        extent: Extent::new(0, len as u64).expect("aligned by the test"),
        data: Bytes::from(data),
    };
    Record { seq: Seq(seq), time: Timestamp(1), map_version: 1, body }
}

fn data(len: usize) -> Frame {
    Frame::Data(vec![write(1, len)])
}

/// One of each kind.
fn every_kind() -> Vec<Frame> {
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        instance: [1; 16],
        incarnation: Default::default(),
        start: Start::Resume,
        next_seq: Seq(1),
        map_version: 1,
        stored: LogHead::default(),
        disks: vec![("root".parse().expect("name"), 1 << 30)],
    };
    vec![
        Frame::Hello(hello),
        Frame::Welcome(Welcome { protocol: PROTOCOL_VERSION, head: LogHead::default(), credit: 1 << 26 }),
        Frame::Refused(Refused { reason: Refusal::Busy, text: "later".into() }),
        data(512),
        Frame::Data((1..100).map(|seq| write(seq, 4096)).collect()),
        Frame::Stored(Stored { seq: Seq(7), digest: Default::default() }),
        Frame::Credit(1),
        Frame::Ping(2),
        Frame::Pong(3),
        Frame::Bye,
    ]
}

/// Polls until it holds; a test that waits in vain fails by name.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    waiting::until(what, waiting::Deadline::after(Duration::from_secs(10)), async || holds()).await;
}
