//! Where a server listens and where a client finds it, as written in configuration and on command lines.
//!
//! The text form is `unix:PATH`, `tcp:HOST:PORT` or `tls:HOST:PORT` and nothing else, so that a forgotten scheme is an
//! error that says what to write rather than a socket in a surprising place. Whoever writes `tls:` gets TLS or nothing:
//! neither the server nor the client takes such an address without a TLS configuration.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use rustls_pki_types::ServerName;

/// Longest path of a Unix socket in bytes: the kernel's address field is 108 bytes and ends in a zero.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A Unix socket; a stale socket file is replaced.
    Unix(PathBuf),
    /// `host:port`, in the clear unless the server has a TLS configuration of its own accord.
    Tcp(String),
    /// `host:port`, TLS required of every client. The host is a DNS name or an address, as certificates need it.
    Tls(String),
}

impl ListenAddress {
    /// Where TCP is spoken: `host:port`.
    pub fn host_port(&self) -> Option<&str> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(host_port) | Self::Tls(host_port) => Some(host_port),
        }
    }

    /// The name or address by which a client knows the server of a `tls:` address.
    pub fn tls_host(&self) -> Option<ServerName<'static>> {
        match self {
            Self::Tls(host_port) => server_name(host_port),
            Self::Unix(_) | Self::Tcp(_) => None,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host_port) => write!(f, "tcp:{host_port}"),
            Self::Tls(host_port) => write!(f, "tls:{host_port}"),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    /// Reads `unix:PATH`, `tcp:HOST:PORT` or `tls:HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            unix(path).map_err(|why| format!("listen address {text:?}: {why}"))
        } else if let Some(host_port) = text.strip_prefix("tcp:") {
            tcp(host_port).map_err(|why| format!("listen address {text:?}: {why}"))
        } else if let Some(host_port) = text.strip_prefix("tls:") {
            tls(host_port).map_err(|why| format!("listen address {text:?}: {why}"))
        } else {
            Err(format!("listen address {text:?} has no known scheme: write unix:PATH, tcp:HOST:PORT or tls:HOST:PORT"))
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
    check_host_port(host_port, "write tcp:HOST:PORT, for example tcp:127.0.0.1:10809 or tcp:[::1]:10809")?;
    Ok(ListenAddress::Tcp(host_port.to_owned()))
}

fn tls(host_port: &str) -> Result<ListenAddress, String> {
    let form = "write tls:HOST:PORT, for example tls:nbd.example.org:10809 or tls:[::1]:10809";
    check_host_port(host_port, form)?;
    if server_name(host_port).is_none() {
        return Err(format!("no certificate can name this host: {form}"));
    }
    Ok(ListenAddress::Tls(host_port.to_owned()))
}

fn server_name(host_port: &str) -> Option<ServerName<'static>> {
    let (host, _port) = host_port.rsplit_once(':')?;
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(bracketed) => bracketed.parse::<Ipv6Addr>().ok().map(ServerName::from),
        None => ServerName::try_from(host.to_owned()).ok(),
    }
}

fn check_host_port(host_port: &str, form: &str) -> Result<(), String> {
    let (host, port) = host_port.rsplit_once(':').ok_or_else(|| format!("no port: {form}"))?;
    let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    if host.is_empty() || (!bracketed && host.contains([':', '[', ']', '/', ' '])) {
        return Err(format!("no valid host: {form}"));
    }
    if port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("port {port:?} is not a number from 0 to 65535: {form}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_addresses_survive_a_round_trip() {
        for text in [
            "unix:/run/disk.sock",
            "unix:relative.sock",
            "tcp:localhost:10809",
            "tcp:[::1]:0",
            "tcp:10.0.0.1:65535",
            "tls:nbd.example.org:10809",
            "tls:[::1]:0",
            "tls:0.0.0.0:1",
        ] {
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
        for text in ["tls:", "tls:host", "tls::1", "tls:host:x", "tls:ho*st:1", "tls:a..b:1", "tls:[zz]:1", "tls:::1:1"]
        {
            assert!(text.parse::<ListenAddress>().unwrap_err().contains("tls:HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn only_tls_addresses_name_the_host_of_a_certificate() {
        let host =
            |text: &str| text.parse::<ListenAddress>().unwrap().tls_host().map(|name| name.to_str().into_owned());
        assert_eq!(host("tls:[::1]:10809").as_deref(), Some("::1"));
        assert_eq!(host("tls:10.0.0.1:10809").as_deref(), Some("10.0.0.1"));
        assert_eq!(host("tls:nbd.example.org:10809").as_deref(), Some("nbd.example.org"));
        assert_eq!((host("tcp:nbd.example.org:10809"), host("unix:/x")), (None, None));
    }

    #[test]
    fn a_socket_path_too_long_for_the_kernel_is_refused_with_both_lengths() {
        let why = format!("unix:/{}", "x".repeat(107)).parse::<ListenAddress>().unwrap_err();
        assert!(why.contains("108 bytes") && why.contains("107"), "{why}");
        assert!(format!("unix:/{}", "x".repeat(106)).parse::<ListenAddress>().is_ok());
    }
}
