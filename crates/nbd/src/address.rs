//! Where a server listens and where a client finds it, as written in configuration and on command lines.
//!
//! The text form is `unix:PATH` or `tcp:HOST:PORT` and nothing else, so that a forgotten scheme is an error that says
//! what to write rather than a socket in a surprising place.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest path of a Unix socket in bytes: the kernel's address field is 108 bytes and ends in a zero.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A Unix socket; a stale socket file is replaced.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host_port) => write!(f, "tcp:{host_port}"),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    /// Reads `unix:PATH` or `tcp:HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            unix(path).map_err(|why| format!("listen address {text:?}: {why}"))
        } else if let Some(host_port) = text.strip_prefix("tcp:") {
            tcp(host_port).map_err(|why| format!("listen address {text:?}: {why}"))
        } else {
            Err(format!("listen address {text:?} has no known scheme: write unix:PATH or tcp:HOST:PORT"))
        }
    }
}

fn unix(path: &str) -> Result<ListenAddress, String> {
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        return Err("no path of a socket: write unix:PATH, for example unix:/run/farshore/disk0.sock".into());
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        return Err(format!(
            "the path is {} bytes, a socket allows {UNIX_PATH_BYTES_MAX}: choose a shorter one",
            path.len()
        ));
    }
    Ok(ListenAddress::Unix(PathBuf::from(path)))
}

fn tcp(host_port: &str) -> Result<ListenAddress, String> {
    let form = "write tcp:HOST:PORT, for example tcp:127.0.0.1:10809 or tcp:[::1]:10809";
    let (host, port) = host_port.rsplit_once(':').ok_or_else(|| format!("no port: {form}"))?;
    let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    if host.is_empty() || (!bracketed && host.contains([':', '[', ']', '/', ' '])) {
        return Err(format!("no valid host: {form}"));
    }
    if port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("port {port:?} is not a number from 0 to 65535: {form}"));
    }
    Ok(ListenAddress::Tcp(host_port.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_addresses_survive_a_round_trip() {
        for text in
            ["unix:/run/disk.sock", "unix:relative.sock", "tcp:localhost:10809", "tcp:[::1]:0", "tcp:10.0.0.1:65535"]
        {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_addresses_say_what_to_write() {
        for text in ["", "/run/disk.sock", "unix:", "unix:/run/", "vsock:1:2", "localhost:10809"] {
            assert!(text.parse::<ListenAddress>().unwrap_err().contains("unix:PATH"), "{text}");
        }
        for text in
            ["tcp:", "tcp:host", "tcp::1", "tcp:host:", "tcp:host:+1", "tcp:host:65536", "tcp:::1:10809", "tcp:[]:1"]
        {
            assert!(text.parse::<ListenAddress>().unwrap_err().contains("tcp:HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn a_socket_path_too_long_for_the_kernel_is_refused_with_both_lengths() {
        let why = format!("unix:/{}", "x".repeat(107)).parse::<ListenAddress>().unwrap_err();
        assert!(why.contains("108 bytes") && why.contains("107"), "{why}");
        assert!(format!("unix:/{}", "x".repeat(106)).parse::<ListenAddress>().is_ok());
    }
}
