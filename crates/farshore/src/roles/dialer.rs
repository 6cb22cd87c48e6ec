//! How an agent reaches a process server: by the carrier of the configuration.

use async_trait::async_trait;
use transport::{Connection, Identity, Role, TransportError, TransportKind, connect};

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
    /// With `auto`, QUIC is tried when TLS does not get through; a server that TLS reaches but that is not trusted is
    /// not asked again by other means.
    async fn dial(&self, address: &str) -> Result<Connection, TransportError> {
        let dial = |kind| connect(address, kind, &self.identity, Role::ProcessServer);
        match self.transport {
            Transport::Tls => dial(TransportKind::Tls).await,
            Transport::Quic => dial(TransportKind::Quic).await,
            Transport::Auto => match dial(TransportKind::Tls).await {
                Err(TransportError::Unreachable { .. } | TransportError::Timeout { .. }) => {
                    dial(TransportKind::Quic).await
                }
                other => other,
            },
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
