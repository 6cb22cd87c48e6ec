//! What a long path needs: which carrier `auto` takes, and what TCP is given for it.
//!
//! Near by the kernel's defaults are right. Far away two of them throttle: congestion control that takes every lost packet
//! for a full link (cubic keeps a few MB/s at 40 ms and 0.1 % loss, over TCP and over QUIC alike), and socket buffers that
//! hold less than what is under way. So TCP gets BBR where the kernel offers it, and larger buffers; where it does not, `auto`
//! takes QUIC, which brings its own. A buffer that the kernel sizes by itself is left to it where it may grow as far: one of a
//! fixed size follows nothing any more.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Once;
use std::time::Duration;

use rustix::net::sockopt;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use crate::TransportKind;

/// Bytes that a socket buffer of a long path should hold: 1 Gbit/s over 120 ms.
const BUFFER_BYTES: usize = 16 << 20;

/// Bytes of them that may wait unsent, so that a question of ours does not wait behind all the rest.
const UNSENT_BYTES: u32 = 2 << 20;

/// The kernel reports, and limits, twice what a buffer holds: the other half is its own book-keeping.
const KEPT_TWICE: usize = 2;

/// How a connection is carried, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carrier {
    /// Over TCP or UDP.
    pub kind: TransportKind,
    /// Whether we chose BBR for what we send.
    pub bbr: bool,
    /// As the connection's first packets measured it.
    pub round_trip: Duration,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            TransportKind::Tls => "TLS",
            TransportKind::Quic => "QUIC",
        };
        let with = if self.bbr { " with BBR" } else { "" };
        write!(f, "{name}{with}, round trip {:.1} ms", self.round_trip.as_secs_f64() * 1e3)
    }
}

/// From where on a path is long, and what helps then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// The least round trip of a long path. Below it little is under way: 0.6 MB at 1 Gbit/s and 5 ms.
    pub long: Duration,
    /// The kernel's name of the congestion control that TCP gets.
    pub congestion: &'static str,
    /// Time for QUIC to answer where TCP has answered.
    pub quic_patience: Duration,
}

impl Default for Rule {
    fn default() -> Self {
        Self { long: Duration::from_millis(5), congestion: "bbr", quic_patience: Duration::from_secs(5) }
    }
}

/// What to do with a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It serves as it is.
    Plain,
    /// It serves with BBR and large buffers.
    Long,
    /// Its losses would throttle it: QUIC, if it answers.
    Quic,
}

impl Rule {
    /// By the round trip, and by whether TCP takes our congestion control, which is asked only of long paths.
    pub fn choose(&self, round_trip: Duration, takes_congestion: impl FnOnce() -> bool) -> Choice {
        match round_trip < self.long {
            true => Choice::Plain,
            false if takes_congestion() => Choice::Long,
            false => Choice::Quic,
        }
    }

    /// Gives a connection our congestion control; whether the kernel offers it, to us.
    pub fn give_congestion(&self, tcp: &TcpStream) -> bool {
        sockopt::set_tcp_congestion(tcp, self.congestion).is_ok()
    }
}

/// The buffers of one direction: what the kernel does with them by itself, and how to ask it for more.
struct Buffers {
    name: &'static str,
    /// The file whose third number is how far the kernel lets them grow by itself.
    grown: &'static str,
    /// The file that limits what anybody may ask for.
    asked: &'static str,
    ask: fn(BorrowedFd<'_>) -> rustix::io::Result<()>,
    /// As `ask`, past the limit: for CAP_NET_ADMIN.
    force: fn(BorrowedFd<'_>) -> rustix::io::Result<()>,
    granted: fn(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    /// One warning is enough for a process.
    warned: Once,
}

static SENDING: Buffers = Buffers {
    name: "sending",
    grown: "/proc/sys/net/ipv4/tcp_wmem",
    asked: "/proc/sys/net/core/wmem_max",
    ask: |socket| sockopt::set_socket_send_buffer_size(socket, BUFFER_BYTES),
    force: |socket| sockopt::set_socket_send_buffer_size_force(socket, BUFFER_BYTES),
    granted: |socket| sockopt::socket_send_buffer_size(socket),
    warned: Once::new(),
};

static RECEIVING: Buffers = Buffers {
    name: "receiving",
    grown: "/proc/sys/net/ipv4/tcp_rmem",
    asked: "/proc/sys/net/core/rmem_max",
    ask: |socket| sockopt::set_socket_recv_buffer_size(socket, BUFFER_BYTES),
    force: |socket| sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_BYTES),
    granted: |socket| sockopt::socket_recv_buffer_size(socket),
    warned: Once::new(),
};

impl Buffers {
    /// Without it a connection is slower, but is one.
    fn widen(&self, socket: BorrowedFd<'_>) {
        if let Err(error) = self.try_to_widen(socket) {
            tracing::warn!(%error, "the kernel does not take larger {} buffers", self.name);
        }
    }

    fn try_to_widen(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let number = |path| std::fs::read_to_string(path).ok()?.split_whitespace().next_back()?.parse().ok();
        let (grown, asked) = (number(self.grown).unwrap_or(0), number(self.asked).unwrap_or(0));
        let room = if grown >= KEPT_TWICE * BUFFER_BYTES {
            grown
        } else if (self.force)(socket).is_ok() {
            (self.granted)(socket)?
        } else if asking_gives_more(grown, asked) {
            (self.ask)(socket)?;
            (self.granted)(socket)?
        } else {
            grown
        };
        if room < KEPT_TWICE * BUFFER_BYTES {
            self.warned.call_once(|| self.warn(room));
        }
        Ok(())
    }

    fn warn(&self, room: usize) {
        tracing::warn!(
            granted_bytes = room,
            wanted_bytes = KEPT_TWICE * BUFFER_BYTES,
            "small {} buffers slow TCP down over long paths: raise the third number of {}",
            self.name,
            self.grown,
        );
    }
}

/// Whether a buffer of a fixed size, cut to what may be asked for, is larger than what the kernel makes of one by itself.
fn asking_gives_more(grown: usize, asked: usize) -> bool {
    KEPT_TWICE * asked.min(BUFFER_BYTES) > grown
}

/// Gives a connection over a long path room for what is under way.
pub(crate) fn widen_sender(tcp: &TcpStream) {
    SENDING.widen(tcp.as_fd());
    // Without it our questions wait longer, and nothing else.
    let _ = SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT_BYTES);
}

/// The same for what the connections of a listener receive: nobody knows yet from how far they will come.
pub(crate) fn widen_receiver(listener: &TcpListener) {
    RECEIVING.widen(listener.as_fd());
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MIB: usize = 1 << 20;

    #[track_caller]
    fn chosen(round_trip: Duration, offered: bool, expected: Choice) {
        assert_eq!(Rule::default().choose(round_trip, || offered), expected);
    }

    #[test]
    fn near_by_tls_is_left_as_it_is_whatever_the_kernel_offers() {
        chosen(MS / 10, true, Choice::Plain);
        chosen(MS / 10, false, Choice::Plain);
        chosen(5 * MS - Duration::from_nanos(1), false, Choice::Plain);
        // A connection that stays near is never touched.
        Rule::default().choose(MS, || unreachable!("the kernel was asked"));
    }

    #[test]
    fn far_away_tls_takes_bbr_and_without_bbr_it_is_quic() {
        chosen(5 * MS, true, Choice::Long);
        chosen(5 * MS, false, Choice::Quic);
        chosen(900 * MS, true, Choice::Long);
    }

    #[test]
    fn a_fixed_buffer_is_asked_for_only_where_it_is_larger_than_what_grows_by_itself() {
        // As Debian ships; as it is with a raised limit; with less than that; with nothing known.
        assert!(!asking_gives_more(4 * MIB, 212_992));
        assert!(asking_gives_more(4 * MIB, 4 * MIB));
        assert!(!asking_gives_more(8 * MIB, 4 * MIB));
        assert!(!asking_gives_more(0, 0));
        assert!(!asking_gives_more(2 * BUFFER_BYTES, usize::MAX));
    }

    #[tokio::test]
    async fn a_sender_is_widened_and_takes_no_congestion_control_that_there_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        widen_receiver(&listener);
        let tcp = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let before = SockRef::from(&tcp).send_buffer_size().expect("size");
        widen_sender(&tcp);
        assert!(SockRef::from(&tcp).send_buffer_size().expect("size") >= before);
        assert!(!Rule { congestion: "nonesuch", ..Rule::default() }.give_congestion(&tcp));
        // Every kernel has this one.
        assert!(Rule { congestion: "reno", ..Rule::default() }.give_congestion(&tcp));
        assert_eq!(sockopt::tcp_congestion(&tcp).expect("name"), "reno");
    }

    #[test]
    fn a_carrier_says_what_an_operator_asks() {
        let near = Carrier { kind: TransportKind::Tls, bbr: false, round_trip: MS / 4 };
        assert_eq!(near.to_string(), "TLS, round trip 0.2 ms");
        let far = Carrier { kind: TransportKind::Quic, bbr: true, round_trip: 41 * MS };
        assert_eq!(far.to_string(), "QUIC with BBR, round trip 41.0 ms");
    }
}
