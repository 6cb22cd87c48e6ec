//! How an agent reaches a process server: by the carrier of the configuration.

use async_trait::async_trait;
use transport::{Connection, Identity, Role, TransportError, TransportKind, connect, connect_auto};

use crate::config::Transport;

/// Dials with one identity and one choice of carriers.
pub struct SiteDialer {
    /// The agent's certificate and the CA it trusts.
    pub identity: Identity,
    /// Which carriers to try.
    pub transport: Transport,
}

#[async_trait]
impl agent::Dialer for SiteDialer {
    /// With `auto` the path decides.
    async fn dial(&self, address: &str) -> Result<Connection, TransportError> {
        let (identity, expect) = (&self.identity, Role::ProcessServer);
        match self.transport {
            Transport::Tls => connect(address, TransportKind::Tls, identity, expect).await,
            Transport::Quic => connect(address, TransportKind::Quic, identity, expect).await,
            Transport::Auto => connect_auto(address, identity, expect).await,
        }
    }
}

/// The carriers a server offers.
pub fn kinds(transport: Transport) -> &'static [TransportKind] {
    match transport {
        Transport::Tls => &[TransportKind::Tls],
        Transport::Quic => &[TransportKind::Quic],
        Transport::Auto => &[TransportKind::Tls, TransportKind::Quic],
    }
}
