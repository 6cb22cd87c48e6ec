//! Who a peer is, and the TLS configurations that make sure of it.
//!
//! TLS 1.3 only, both sides show a certificate, both check the other's with the standard verifier against the site's CA
//! alone, and with the list of revoked certificates. There is no session resumption and no early data: expiry and
//! revocation hold for every connection, and nothing can be replayed. Secrets are never logged: no key log is installed, whatever the environment says.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use model::{MachineName, Timestamp};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use x509_parser::extensions::GeneralName;

use crate::files::{credentials, read_pem, warn_if_shared};
use crate::revoked::{Revocations, Trust};
use crate::verifiers::Verifiers;
use crate::{TransportError, clock};

/// The protocol inside TLS and QUIC.
pub(crate) const ALPN: &[u8] = b"farshore/1";

/// The DNS name in every process server's certificate.
pub(crate) const SERVER_DNS_NAME: &str = "process-server.farshore";

/// Certificates in one PEM file.
const CHAIN_MAX: usize = 8;

/// Characters shown of a name that is none.
const IDENTITY_CHARS_SHOWN: usize = 100;

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
    revocations: Arc<Revocations>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads PEM files, and from then on the list of revoked certificates that lies beside the CA's. Errors name the
    /// file and say what to do.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, TransportError> {
        let ca_pem = read_pem(ca, "the CA's certificate", "copy ca.crt from the site's CA directory")?;
        let issue = "have the site's CA issue one for this role";
        let certificate_pem = read_pem(certificate, "the certificate", issue)?;
        let key_pem = read_pem(key, "the private key", issue)?;
        warn_if_shared(key);
        let revocations = Revocations::beside(ca, certificates(ca, &ca_pem)?)?;
        Self::assemble((ca, &ca_pem), (certificate, &certificate_pem), (key, &key_pem), revocations)
    }

    /// The same from memory, where nobody is revoked.
    pub fn from_pem(ca: &str, certificate: &str, key: &str) -> Result<Self, TransportError> {
        Self::assemble(
            (Path::new("CA certificate"), ca.as_bytes()),
            (Path::new("certificate"), certificate.as_bytes()),
            (Path::new("private key"), key.as_bytes()),
            Revocations::none(),
        )
    }

    /// Who we are.
    pub fn peer(&self) -> &Peer {
        &self.peer
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
        revocations: Arc<Revocations>,
    ) -> Result<Self, TransportError> {
        let roots = Arc::new(roots(ca_file, ca)?);
        let chain = certificates(certificate_file, certificate)?;
        let key = private_key(key_file, key)?;
        check_validity(certificate_file, &chain[0], "issue a new certificate from the site's CA")?;
        let peer = peer_of(&chain[0]).map_err(|why| {
            credentials(certificate_file, format!("{why}: give a certificate that the site's CA issued to a role"))
        })?;
        let verifiers = Verifiers::new(roots, revocations.clone()).map_err(|why| credentials(ca_file, why))?;
        verifiers.check_own(peer.role, &chain).map_err(|error| {
            let why = match error {
                rustls::Error::InvalidCertificate(CertificateError::Revoked) => {
                    format!("the certificate of {peer} was revoked: have the site's CA issue another")
                }
                other => format!("not accepted by the CA in {}: {other}; issue it from this CA", ca_file.display()),
            };
            credentials(certificate_file, why)
        })?;
        let no_match = |error| no_match(certificate_file, key_file, error);
        let client = verifiers.client_config(chain.clone(), key.clone_key()).map_err(no_match)?;
        let server = verifiers.server_config(chain, key).map_err(no_match)?;
        Ok(Self { peer, client: Arc::new(client), server: Arc::new(server), revocations })
    }

    /// Who a verified chain speaks for, and what that rests on; refused unless it is of the role expected.
    pub(crate) fn authenticate(&self, chain: &[CertificateDer<'_>], expect: Role) -> Result<(Peer, Trust), String> {
        let end_entity = chain.first().ok_or("it showed no certificate")?;
        let peer = peer_of(end_entity)?;
        if peer.role != expect {
            return Err(format!("its certificate is for {peer}, a certificate for a {expect} is needed"));
        }
        let trust = Trust::new(self.revocations.clone(), end_entity, peer.clone())?;
        Ok((peer, trust))
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
    // Debug takes no precision: the text itself is cut.
    let shown = || identity.chars().take(IDENTITY_CHARS_SHOWN).collect::<String>();
    parsed.ok_or_else(|| format!("the certificate names {:?}, which is no farshore role", shown()))
}
