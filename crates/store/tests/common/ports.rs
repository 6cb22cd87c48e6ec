//! Ports for servers that tests start, and start again.
//!
//! A port that the kernel would give to anyone else can be gone when its server comes back: another test's server asks for a
//! free one, or a client that tries to reach the absent server gets that very port for its own end. So these lie below the
//! range of such ports (32768 to 60999 on Linux, `ip_local_port_range`), and a process gives each of them once.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where these ports begin, and how many there are.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

static GIVEN: AtomicU32 = AtomicU32::new(0);

/// A port on which nobody listens. Processes that run side by side begin at different places.
pub fn free_port() -> u16 {
    let start = std::process::id().wrapping_mul(997);
    let mut ports = (0..COUNT).map(|_| {
        let turn = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        u16::try_from(FIRST + turn).expect("the range ends below 65536")
    });
    let is_free =
        |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok() && UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    ports.find(is_free).expect("a free port")
}
