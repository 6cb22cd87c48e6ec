//! The site's certificate authority: made by `init`, kept in files, used to issue one certificate for each role.
//!
//! A certificate says who its holder is by one URI SAN, `farshore:<role>:<name>`, and what it may do by its extended key
//! usage: agents and appliers are clients, process servers are servers. A process server's certificate also carries one
//! fixed DNS name, so that the standard verifier can be used although gateways come and go under any host name.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use model::MachineName;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::files::{credentials, read_pem, warn_if_shared, write_pair};
use crate::nbd::NBD_CLIENT_URI;
use crate::tls::SERVER_DNS_NAME;
use crate::{RevocationList, Role, TransportError, clock};

/// File of the CA's certificate.
const CERTIFICATE_FILE: &str = "ca.crt";

/// File of the CA's key.
const KEY_FILE: &str = "ca.key";

/// How long a CA is valid: longer than the machines it protects.
const CA_LIFETIME: Duration = Duration::from_secs(20 * YEAR_SECONDS);

/// Longest lifetime of an issued certificate; a longer wish is cut to it.
const LIFETIME_MAX: Duration = Duration::from_secs(20 * YEAR_SECONDS);

/// Certificates are valid from this long before their making, for clocks that are behind.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);

/// Characters of a common name (RFC 5280, ub-common-name).
const COMMON_NAME_CHARS_MAX: usize = 64;

/// Characters of a site's name in its CA's common name, twelve of which are ours.
const SITE_CHARS_MAX: usize = COMMON_NAME_CHARS_MAX - 12;

const YEAR_SECONDS: u64 = 365 * 24 * 3600;

/// The CA's certificate and key.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// A certificate and its key, as PEM.
pub struct IssuedCertificate {
    /// Certificate chain.
    pub certificate_pem: String,
    /// PKCS#8 private key.
    pub key_pem: String,
}

impl fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedCertificate").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl IssuedCertificate {
    /// Writes both as new files, the key readable by its owner only, synced; refuses to overwrite.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), TransportError> {
        write_pair((certificate, &self.certificate_pem), (key, &self.key_pem))
    }
}

impl Authority {
    /// Makes a new CA for a site.
    pub fn generate(site: &str) -> Result<Self, TransportError> {
        let file = Path::new(CERTIFICATE_FILE);
        if site.is_empty() || site.chars().any(char::is_control) {
            return Err(credentials(file, format!("{site:?} cannot name a site: use printable text")));
        }
        let failed = |error: rcgen::Error| credentials(file, format!("the CA cannot be made: {error}"));
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        let site: String = site.chars().take(SITE_CHARS_MAX).collect();
        params.distinguished_name = common_name(format!("farshore {site} ca"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, clock::unix_seconds(), CA_LIFETIME);
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { certificate_pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    /// Loads `ca.crt` and `ca.key` from a directory.
    pub fn load(dir: &Path) -> Result<Self, TransportError> {
        let (certificate_file, key_file) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        let remedy = "name the directory that `farshore init` made, or restore it from your backup";
        let certificate = read_pem(&certificate_file, "the CA's certificate", remedy)?;
        let key = read_pem(&key_file, "the CA's key", remedy)?;
        warn_if_shared(&key_file);
        let certificate_der = CertificateDer::from_pem_slice(&certificate)
            .map_err(|error| credentials(&certificate_file, format!("not a PEM certificate: {error}")))?;
        let certificate_pem = String::from_utf8(certificate)
            .map_err(|_| credentials(&certificate_file, "not a PEM certificate: it is not text"))?;
        let key = std::str::from_utf8(&key)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(|| credentials(&key_file, "not a PEM private key: restore the file from your backup"))?;
        check_pair(&certificate_der, &key).map_err(|why| credentials(&key_file, why))?;
        let issuer = Issuer::from_ca_cert_der(&certificate_der, key)
            .map_err(|error| credentials(&certificate_file, format!("not a CA's certificate: {error}")))?;
        Ok(Self { certificate_pem, issuer })
    }

    /// Writes `ca.crt` (0644) and `ca.key` (0600) into a directory, synced; refuses to overwrite.
    pub fn save(&self, dir: &Path) -> Result<(), TransportError> {
        let key_pem = self.issuer.key().serialize_pem();
        write_pair((&dir.join(CERTIFICATE_FILE), &self.certificate_pem), (&dir.join(KEY_FILE), &key_pem))
    }

    /// The CA's certificate, which every role trusts.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate valid from an hour ago for `lifetime`, at most 20 years.
    pub fn issue(
        &self,
        role: Role,
        name: &MachineName,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, TransportError> {
        self.issue_at(role, name, clock::unix_seconds(), lifetime)
    }

    /// Issues the certificate of a machine's NBD exports, for the DNS names and addresses by which clients reach them.
    ///
    /// # Errors
    /// [`TransportError::Credentials`] if a name can stand in no certificate.
    pub fn issue_nbd_server(
        &self,
        machine: &MachineName,
        hosts: &BTreeSet<String>,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, TransportError> {
        let names = hosts.iter().map(|host| {
            Ok(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            })
        });
        let common = format!("farshore nbd {machine}").chars().take(COMMON_NAME_CHARS_MAX).collect();
        self.issue_nbd(common, names.collect(), ExtendedKeyUsagePurpose::ServerAuth, lifetime)
    }

    /// Issues a certificate that entitles its holder to use every NBD export of the site that is offered over TLS, and to
    /// nothing else.
    pub fn issue_nbd_client(&self, lifetime: Duration) -> Result<IssuedCertificate, TransportError> {
        let names = NBD_CLIENT_URI.try_into().map(|uri| vec![SanType::URI(uri)]);
        self.issue_nbd("farshore nbd client".into(), names, ExtendedKeyUsagePurpose::ClientAuth, lifetime)
    }

    /// Signs a list of revoked certificates, as PEM for the file that [`RevocationList::file`] names.
    ///
    /// # Errors
    /// [`TransportError::Credentials`] if it cannot be signed.
    pub fn sign_list(&self, list: &RevocationList) -> Result<String, TransportError> {
        let failed = |error: rcgen::Error| {
            let why = format!("the list of revoked certificates cannot be signed: {error}");
            credentials(Path::new(CERTIFICATE_FILE), why)
        };
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let at = |seconds| epoch + Duration::from_secs(seconds);
        let now = clock::unix_seconds();
        let revoked = list.entries().map(|(serial, since)| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial.bytes()),
            revocation_time: at(since),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: at(now),
            // The form asks for a date; readers of ours know none.
            next_update: at(now) + CA_LIFETIME,
            crl_number: SerialNumber::from(list.number()),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).and_then(|signed| signed.pem()).map_err(failed)
    }

    /// NBD certificates say what they are for by extended usage alone: QEMU up to 10.0 refuses a certificate whose key
    /// usage lacks key encipherment, which RFC 8813 forbids to keys of elliptic curves.
    fn issue_nbd(
        &self,
        common: String,
        names: Result<Vec<SanType>, rcgen::Error>,
        usage: ExtendedKeyUsagePurpose,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, TransportError> {
        let failed = |error: rcgen::Error| {
            let why = format!("certificate for {common} cannot be issued: {error}");
            credentials(Path::new(CERTIFICATE_FILE), why)
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(common.clone());
        params.subject_alt_names = names.map_err(failed)?;
        params.extended_key_usages = vec![usage];
        self.sign(params, clock::unix_seconds(), lifetime).map_err(failed)
    }

    /// As [`Authority::issue`], at a time given in seconds since 1970.
    pub(crate) fn issue_at(
        &self,
        role: Role,
        name: &MachineName,
        now: u64,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, TransportError> {
        let failed = |error: rcgen::Error| {
            credentials(Path::new(CERTIFICATE_FILE), format!("certificate for {role} {name} cannot be issued: {error}"))
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name.to_string());
        params.subject_alt_names = names(role, name).map_err(failed)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match role {
            Role::Agent | Role::Applier => ExtendedKeyUsagePurpose::ClientAuth,
            Role::ProcessServer => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        self.sign(params, now, lifetime).map_err(failed)
    }

    /// A new key, and the CA's signature under what is said of it.
    fn sign(
        &self,
        mut params: CertificateParams,
        now: u64,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, rcgen::Error> {
        let key = KeyPair::generate()?;
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, lifetime.min(LIFETIME_MAX));
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(IssuedCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

fn common_name(name: String) -> rcgen::DistinguishedName {
    let mut distinguished = rcgen::DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn names(role: Role, name: &MachineName) -> Result<Vec<SanType>, rcgen::Error> {
    let mut names = vec![SanType::URI(format!("farshore:{role}:{name}").try_into()?)];
    if role == Role::ProcessServer {
        names.push(SanType::DnsName(SERVER_DNS_NAME.try_into()?));
    }
    Ok(names)
}

fn set_validity(params: &mut CertificateParams, now: u64, lifetime: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(now);
    params.not_before = epoch + now.saturating_sub(CLOCK_TOLERANCE);
    params.not_after = epoch + now + lifetime;
}

/// Makes sure that a loaded CA key is the one its certificate speaks of.
fn check_pair(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), String> {
    use rcgen::PublicKeyData;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| format!("{CERTIFICATE_FILE} beside it is not a certificate: {error}"))?;
    if !parsed.is_ca() {
        return Err(format!("{CERTIFICATE_FILE} beside it is not a CA's certificate: restore both files together"));
    }
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(format!("this is not the key of {CERTIFICATE_FILE} beside it: restore both files together"));
    }
    Ok(())
}
