//! What both sides of a handshake ask of the other's certificate: the standard verifier's verdict, and the list of
//! revoked certificates as it is at that moment.
//!
//! The list is asked by a wrapper and not given to the standard verifier, whose lists are fixed when it is built: a
//! listener must take a new list without a restart.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::revoked::Revocations;
use crate::tls::{ALPN, server_name};
use crate::{Role, clock};

/// Both directions of the standard verifier over one CA.
pub(crate) struct Verifiers {
    provider: Arc<CryptoProvider>,
    of_clients: Arc<OfClients>,
    of_servers: Arc<OfServers>,
}

impl Verifiers {
    pub(crate) fn new(roots: Arc<RootCertStore>, revocations: Arc<Revocations>) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let of_clients = OfClients::new(roots.clone(), revocations.clone())?;
        let standard = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            provider,
            of_clients: Arc::new(of_clients),
            of_servers: Arc::new(OfServers { standard, revocations }),
        })
    }

    /// Looks at our own certificate as a peer will, so that a mistake shows at start and here.
    pub(crate) fn check_own(&self, role: Role, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(clock::unix_seconds()));
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

    pub(crate) fn client_config(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<ClientConfig, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.of_servers.clone())
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    pub(crate) fn server_config(
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

/// Takes clients of the site that are not revoked.
#[derive(Debug)]
pub(crate) struct OfClients {
    standard: Arc<dyn ClientCertVerifier>,
    revocations: Arc<Revocations>,
}

impl OfClients {
    pub(crate) fn new(roots: Arc<RootCertStore>, revocations: Arc<Revocations>) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let standard = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        Ok(Self { standard: standard.map_err(|error| error.to_string())?, revocations })
    }
}

impl ClientCertVerifier for OfClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.standard.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.standard.verify_client_cert(end_entity, intermediates, now)?;
        self.revocations.admit(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.standard.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.standard.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.standard.supported_verify_schemes()
    }
}

/// Takes servers of the site that are not revoked.
#[derive(Debug)]
struct OfServers {
    standard: Arc<WebPkiServerVerifier>,
    revocations: Arc<Revocations>,
}

impl ServerCertVerifier for OfServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.standard.verify_server_cert(end_entity, intermediates, name, ocsp, now)?;
        self.revocations.admit(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.standard.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.standard.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.standard.supported_verify_schemes()
    }
}
