//! TLS for NBD exports: which clients a server lets in, and by what it proves itself to them.
//!
//! NBD clients are programs of others (QEMU, libnbd, the kernel's tools), so the server's certificate names hosts as any
//! server's does. A client is let in by a certificate of the site's CA that says it is for NBD. The certificate of an
//! agent does not: whoever takes over one machine must not reach the disks of the others with what he finds there.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;

use crate::files::{credentials, read_pem, warn_if_shared};
use crate::revoked::{Revocations, Serial};
use crate::tls::{certificates, check_validity, no_match, private_key, roots};
use crate::verifiers::OfClients;
use crate::{TransportError, clock};

/// The URI in a certificate that makes its holder a client of NBD exports.
pub(crate) const NBD_CLIENT_URI: &str = "farshore:nbd-client";

/// What an NBD server over TLS needs.
pub struct NbdServerTls {
    /// How it proves itself, and whom it lets in.
    pub config: Arc<ServerConfig>,
    /// Whether a client that was let in must go: its certificate was revoked since.
    pub lapsed: Arc<dyn Fn(&CertificateDer<'_>) -> bool + Send + Sync>,
}

/// The configuration of an NBD server: TLS 1.3, clients must show a certificate that
/// [`crate::Authority::issue_nbd_client`] of the same CA made and that the list beside `ca` does not revoke.
///
/// # Errors
/// [`TransportError::Credentials`] names the file that cannot be used.
pub fn nbd_server_config(ca: &Path, certificate: &Path, key: &Path) -> Result<NbdServerTls, TransportError> {
    let issue = "have the site's CA issue one for this machine's exports";
    let ca_pem = read_pem(ca, "the CA's certificate", "copy ca.crt from the site's CA directory")?;
    let roots = Arc::new(roots(ca, &ca_pem)?);
    let revocations = Revocations::beside(ca, certificates(ca, &ca_pem)?)?;
    let chain = certificates(certificate, &read_pem(certificate, "the certificate", issue)?)?;
    let key_der = private_key(key, &read_pem(key, "the private key", issue)?)?;
    warn_if_shared(key);
    check_validity(certificate, &chain[0], issue)?;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(clock::unix_seconds()));
    ParsedCertificate::try_from(&chain[0])
        .and_then(|parsed| {
            let algorithms = provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &chain[1..], now, algorithms)
        })
        .map_err(|error| {
            let why = format!("not accepted by the CA in {}: {error}; issue it from this CA", ca.display());
            credentials(certificate, why)
        })?;
    if Serial::of(&chain[0]).is_ok_and(|serial| revocations.lists(&serial)) {
        return Err(credentials(certificate, format!("it was revoked: {issue}")));
    }
    let of_the_site = OfClients::new(roots, revocations.clone()).map_err(|why| credentials(ca, why))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| no_match(certificate, key, error))?
        .with_client_cert_verifier(Arc::new(NbdClients { of_the_site }))
        .with_single_cert(chain, key_der)
        .map_err(|error| no_match(certificate, key, error))?;
    // No resumption: a certificate that expired lets nobody in.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let lapsed = move |client: &CertificateDer<'_>| Serial::of(client).is_ok_and(|serial| revocations.lists(&serial));
    Ok(NbdServerTls { config: Arc::new(config), lapsed: Arc::new(lapsed) })
}

/// The verifier of all clients of the site, and the purpose besides.
#[derive(Debug)]
struct NbdClients {
    of_the_site: OfClients,
}

impl ClientCertVerifier for NbdClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.of_the_site.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.of_the_site.verify_client_cert(end_entity, intermediates, now)?;
        if !is_nbd_client(end_entity) {
            tracing::warn!("an NBD client showed a certificate of this site that is not for NBD clients");
            return Err(rustls::CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_the_site.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_the_site.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.of_the_site.supported_verify_schemes()
    }
}

fn is_nbd_client(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::URI(uri) if *uri == NBD_CLIENT_URI))
}
