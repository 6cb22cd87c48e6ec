//! Who a peer is, and the TLS configurations that make sure of it.
//!
//! TLS 1.3 only, both sides show a certificate, both check the other's with the standard verifier against the site's CA
//! alone. There is no session resumption and no early data: expiry and the deny-list hold for every connection, and
//! nothing can be replayed. Secrets are never logged: no key log is installed, whatever the environment says.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use model::{MachineName, Timestamp};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;

use crate::files::{credentials, read_pem, warn_if_shared};
use crate::{TransportError, clock};

/// The protocol inside TLS and QUIC.
pub(crate) const ALPN: &[u8] = b"farshore/1";

/// The DNS name in every process server's certificate.
pub(crate) const SERVER_DNS_NAME: &str = "process-server.farshore";

/// Certificates in one PEM file.
const CHAIN_MAX: usize = 8;

/// What a certificate entitles its holder to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Streams one machine.
    Agent,
    /// Receives streams.
    ProcessServer,
    /// Follows logs.
    Applier,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Agent => "agent",
            Role::ProcessServer => "process-server",
            Role::Applier => "applier",
        })
    }
}

impl FromStr for Role {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [Role::Agent, Role::ProcessServer, Role::Applier].into_iter().find(|r| r.to_string() == text).ok_or(())
    }
}

/// The identity in a verified certificate. Names follow the rules of machine names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its role.
    pub role: Role,
    /// Its name.
    pub name: MachineName,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// Our own certificate and key, and the CA we trust.
#[derive(Clone)]
pub struct Identity {
    peer: Peer,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    revoked: Arc<BTreeSet<Vec<u8>>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads PEM files. Errors name the file and say what to do.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, TransportError> {
        let ca_pem = read_pem(ca, "the CA's certificate", "copy ca.crt from the site's CA directory")?;
        let issue = "have the site's CA issue one for this role";
        let certificate_pem = read_pem(certificate, "the certificate", issue)?;
        let key_pem = read_pem(key, "the private key", issue)?;
        warn_if_shared(key);
        Self::assemble((ca, &ca_pem), (certificate, &certificate_pem), (key, &key_pem))
    }

    /// The same from memory.
    pub fn from_pem(ca: &str, certificate: &str, key: &str) -> Result<Self, TransportError> {
        Self::assemble(
            (Path::new("CA certificate"), ca.as_bytes()),
            (Path::new("certificate"), certificate.as_bytes()),
            (Path::new("private key"), key.as_bytes()),
        )
    }

    /// Who we are.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Refuses peers whose certificate has one of these serial numbers (big-endian bytes). Connections that are open
    /// stay open.
    pub fn with_revoked(mut self, serials: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.revoked = Arc::new(serials.into_iter().map(|s| without_leading_zeros(&s).to_vec()).collect());
        self
    }

    /// The same identity with TLS settings that no honest program would use.
    #[cfg(test)]
    pub(crate) fn with_client_config(mut self, config: ClientConfig) -> Self {
        self.client = Arc::new(config);
        self
    }

    /// For the side that connects.
    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// For the side that accepts.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    fn assemble(
        (ca_file, ca): (&Path, &[u8]),
        (certificate_file, certificate): (&Path, &[u8]),
        (key_file, key): (&Path, &[u8]),
    ) -> Result<Self, TransportError> {
        let roots = Arc::new(roots(ca_file, ca)?);
        let chain = certificates(certificate_file, certificate)?;
        let key = private_key(key_file, key)?;
        check_validity(certificate_file, &chain[0], "issue a new certificate from the site's CA")?;
        let peer = peer_of(&chain[0]).map_err(|why| {
            credentials(certificate_file, format!("{why}: give a certificate that the site's CA issued to a role"))
        })?;
        let verifiers = Verifiers::new(roots).map_err(|why| credentials(ca_file, why))?;
        verifiers.check_own(peer.role, &chain).map_err(|error| {
            let why = format!("not accepted by the CA in {}: {error}; issue it from this CA", ca_file.display());
            credentials(certificate_file, why)
        })?;
        let no_match = |error| no_match(certificate_file, key_file, error);
        let client = verifiers.client_config(chain.clone(), key.clone_key()).map_err(no_match)?;
        let server = verifiers.server_config(chain, key).map_err(no_match)?;
        Ok(Self { peer, client: Arc::new(client), server: Arc::new(server), revoked: Arc::default() })
    }

    /// Who a verified chain speaks for; refused unless it is of the role expected and not revoked.
    pub(crate) fn authenticate(&self, chain: &[CertificateDer<'_>], expect: Role) -> Result<Peer, String> {
        let end_entity = chain.first().ok_or("it showed no certificate")?;
        let peer = peer_of(end_entity)?;
        if peer.role != expect {
            return Err(format!("its certificate is for {peer}, a certificate for a {expect} is needed"));
        }
        let (_, parsed) = x509_parser::parse_x509_certificate(end_entity).map_err(|e| e.to_string())?;
        if self.revoked.contains(without_leading_zeros(parsed.raw_serial())) {
            return Err(format!("its certificate for {peer} was revoked"));
        }
        Ok(peer)
    }
}

/// Both directions of the standard verifier over one CA.
struct Verifiers {
    provider: Arc<CryptoProvider>,
    of_clients: Arc<dyn ClientCertVerifier>,
    of_servers: Arc<WebPkiServerVerifier>,
}

impl Verifiers {
    fn new(roots: Arc<RootCertStore>) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        let of_servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { provider, of_clients, of_servers })
    }

    /// Looks at our own certificate as a peer will, so that a mistake shows at start and here.
    fn check_own(&self, role: Role, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(clock::unix_seconds()));
        let (end_entity, intermediates) = chain.split_first().expect("a chain is never empty: checked when read");
        match role {
            Role::Agent | Role::Applier => {
                self.of_clients.verify_client_cert(end_entity, intermediates, now).map(|_| ())
            }
            Role::ProcessServer => {
                self.of_servers.verify_server_cert(end_entity, intermediates, &server_name(), &[], now).map(|_| ())
            }
        }
    }

    fn client_config(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<ClientConfig, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(self.of_servers.clone())
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn server_config(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.of_clients.clone())
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// The name that process servers' certificates carry, wherever they run.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_DNS_NAME).expect("a constant that is a valid DNS name")
}

pub(crate) fn roots(file: &Path, pem: &[u8]) -> Result<RootCertStore, TransportError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, pem)? {
        check_validity(file, &certificate, "make a new CA and issue every certificate anew")?;
        roots.add(certificate).map_err(|error| credentials(file, format!("not a CA's certificate: {error}")))?;
    }
    Ok(roots)
}

/// At least one certificate.
pub(crate) fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem).take(CHAIN_MAX) {
        found
            .push(certificate.map_err(|e| credentials(file, format!("not a PEM certificate ({e}): give a PEM file")))?);
    }
    if found.is_empty() {
        return Err(credentials(file, "holds no PEM certificate: give a file with BEGIN CERTIFICATE in it"));
    }
    Ok(found)
}

pub(crate) fn private_key(file: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TransportError> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|e| credentials(file, format!("not a PEM private key ({e}): give the certificate's key file")))
}

/// What to say of a certificate and a key that TLS does not take together.
pub(crate) fn no_match(certificate_file: &Path, key_file: &Path, error: rustls::Error) -> TransportError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            let why = format!("not the key of {}: give the file made with it", certificate_file.display());
            credentials(key_file, why)
        }
        other => credentials(key_file, format!("cannot be used: {other}")),
    }
}

pub(crate) fn check_validity(
    file: &Path,
    certificate: &CertificateDer<'_>,
    remedy: &str,
) -> Result<(), TransportError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| credentials(file, format!("not a certificate: {error}")))?;
    let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
    let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    if now > to {
        return Err(credentials(file, format!("expired at {}: {remedy}", time_text(to))));
    }
    if now < from {
        return Err(credentials(file, format!("not valid before {}: set this host's clock", time_text(from))));
    }
    Ok(())
}

fn time_text(unix_seconds: i64) -> Timestamp {
    Timestamp(u64::try_from(unix_seconds).unwrap_or(0).saturating_mul(1_000_000))
}

fn without_leading_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|b| **b == 0).count();
    &serial[zeros..]
}

/// The identity in an end-entity certificate: exactly one URI SAN of ours.
pub(crate) fn peer_of(certificate: &CertificateDer<'_>) -> Result<Peer, String> {
    let (rest, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| format!("not a certificate: {error}"))?;
    if !rest.is_empty() {
        return Err("bytes left over behind the certificate".into());
    }
    let names = parsed.subject_alternative_name().map_err(|error| format!("its names cannot be read: {error}"))?;
    let mut ours = names.iter().flat_map(|n| &n.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("farshore:"),
        _ => None,
    });
    let (Some(identity), None) = (ours.next(), ours.next()) else {
        return Err("the certificate does not name exactly one farshore role".into());
    };
    let parsed = identity
        .split_once(':')
        .and_then(|(role, name)| Some(Peer { role: role.parse().ok()?, name: name.parse().ok()? }));
    parsed.ok_or_else(|| format!("the certificate names {identity:.100?}, which is no farshore role"))
}
