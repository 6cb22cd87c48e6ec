//! Certificates of the roles: found beside the CA's, issued when they are missing and the CA's key is here.
//!
//! ```text
//! ca.crt ca.key                       made by init; ca.key may be kept on one host only
//! process-server.crt .key             the server of this site
//! agent-<machine>.crt .key            one for each machine
//! nbd-<machine>.crt .key              for its exports over TLS, where it has any
//! nbd-client/                         what their clients need
//! ca.crl                              which of all these are revoked; not there until one is
//! ```
//! A certificate near its end is renewed in place where the CA's key is: the new pair is complete and synced before it
//! takes the old one's name, key first, so a crash between leaves a pair that does not fit and is renewed again. A revoked
//! one is replaced like one that is missing.

pub mod nbd;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use model::MachineName;
use transport::{Authority, Identity, Issued, IssuedCertificate, RevocationList, Role, Serial};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::failure::usage;

/// How long an issued certificate is valid.
const LIFETIME: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// A certificate is renewed when it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The identity of a role, issued first if need be.
pub fn identity(ca_dir: &Path, role: Role, name: &MachineName) -> anyhow::Result<Identity> {
    let (certificate, key) = ensure(ca_dir, role, name)?;
    let identity = Identity::load(&ca_dir.join("ca.crt"), &certificate, &key)?;
    check_holder(&certificate, identity.peer(), role, name)?;
    Ok(identity)
}

/// The peer takes the certificate's word for who we are: with another machine's certificate, this machine's disks would
/// go into the other one's stream. A process server is trusted for its role, whatever its site is called.
fn check_holder(certificate: &Path, holder: &transport::Peer, role: Role, name: &MachineName) -> anyhow::Result<()> {
    if holder.role == role && (role == Role::ProcessServer || holder.name == *name) {
        return Ok(());
    }
    Err(usage(format!(
        "{} was issued to {holder}, not to {role} {name}: put the certificate and key of {role} {name} there",
        certificate.display()
    )))
}

/// Makes sure that the certificate of a role is there and not about to expire; returns its files.
pub fn ensure(ca_dir: &Path, role: Role, name: &MachineName) -> anyhow::Result<(PathBuf, PathBuf)> {
    let stem = match role {
        Role::ProcessServer => "process-server".to_owned(),
        Role::Agent => format!("agent-{name}"),
        Role::Applier => "applier".to_owned(),
    };
    let pair = Pair::of_stem(ca_dir, &stem);
    pair.ensure(ca_dir, &BTreeSet::new(), |authority, _| authority.issue(role, name, LIFETIME))?;
    Ok((pair.certificate, pair.key))
}

/// Whether certificates can be issued here.
pub fn can_issue(ca_dir: &Path) -> bool {
    ca_dir.join("ca.key").exists()
}

/// A certificate and its key.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

/// What is known of a pair without trusting it.
enum Found {
    Missing,
    /// Nobody takes it any more.
    Revoked,
    /// It does not speak for these names.
    Lacks(Vec<String>),
    /// It can be used, and must soon be renewed.
    Old,
    Good,
}

impl Pair {
    fn of_stem(ca_dir: &Path, stem: &str) -> Self {
        Self { certificate: ca_dir.join(format!("{stem}.crt")), key: ca_dir.join(format!("{stem}.key")) }
    }

    /// Makes sure that the pair is there, speaks for `hosts` and is not about to expire. `issue` gets the hosts to name:
    /// those that the certificate in place has, and those asked for.
    fn ensure(
        &self,
        ca_dir: &Path,
        hosts: &BTreeSet<String>,
        issue: impl FnOnce(&Authority, &BTreeSet<String>) -> Result<IssuedCertificate, transport::TransportError>,
    ) -> anyhow::Result<()> {
        let revoked = RevocationList::load(&ca_dir.join("ca.crt"))?;
        let found = self.found(hosts, &revoked);
        if matches!(found, Found::Good) {
            return Ok(());
        }
        if !can_issue(ca_dir) {
            return self.without_the_ca_key(&found);
        }
        let _lock = lock(ca_dir)?;
        // Roles start at once and may want the same certificate: one issues it, the others find it.
        if matches!(self.found(hosts, &revoked), Found::Good) {
            return Ok(());
        }
        let mut all =
            if hosts.is_empty() { BTreeSet::new() } else { read(&self.certificate, hosts_of).unwrap_or_default() };
        all.extend(hosts.iter().cloned());
        if all.len() > nbd::HOSTS_MAX {
            all.clone_from(hosts);
        }
        self.replace(&issue(&Authority::load(ca_dir)?, &all)?)?;
        // Its number is all that is needed to revoke it, also when the file is gone.
        let serial = read(&self.certificate, |parsed| Serial::new(parsed.raw_serial()).to_string());
        tracing::info!(file = %self.certificate.display(), serial, "issued a certificate");
        Ok(())
    }

    /// What cannot be read counts as good: the loader says what is wrong with it.
    fn found(&self, hosts: &BTreeSet<String>, revoked: &RevocationList) -> Found {
        if !self.certificate.exists() || !self.key.exists() {
            return Found::Missing;
        }
        let look = |parsed: &X509Certificate<'_>| {
            if revoked.names(&Serial::new(parsed.raw_serial())) {
                return Found::Revoked;
            }
            let named = hosts_of(parsed);
            let lacks: Vec<String> = hosts.difference(&named).cloned().collect();
            match lacks.is_empty() {
                false => Found::Lacks(lacks),
                true if expires_soon(parsed) => Found::Old,
                true => Found::Good,
            }
        };
        read(&self.certificate, look).unwrap_or(Found::Good)
    }

    fn without_the_ca_key(&self, found: &Found) -> anyhow::Result<()> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        match found {
            Found::Good => Ok(()),
            Found::Old => {
                tracing::warn!(file = %certificate, "the certificate is near its end: renew it where ca.key is");
                Ok(())
            }
            Found::Missing => Err(usage(format!(
                "no certificate {certificate} and no CA key beside it to issue one: copy it and {key} from the host that \
                 has ca.key, after starting `farshore process-server` there with this machine in its configuration"
            ))),
            Found::Revoked => Err(usage(format!(
                "certificate {certificate} was revoked, and there is no CA key beside it to issue another: start \
                 `farshore process-server` where ca.key is, then copy it and {key} from there"
            ))),
            Found::Lacks(hosts) => Err(usage(format!(
                "certificate {certificate} is not for {}, and there is no CA key beside it to issue another: start \
                 `farshore process-server` with this listen address where ca.key is, then copy it and {key} from there",
                hosts.join(", ")
            ))),
        }
    }

    fn replace(&self, issued: &IssuedCertificate) -> anyhow::Result<()> {
        let (new_certificate, new_key) = (beside(&self.certificate), beside(&self.key));
        for leftover in [&new_certificate, &new_key] {
            if leftover.exists() {
                std::fs::remove_file(leftover).with_context(|| format!("cannot remove {}", leftover.display()))?;
            }
        }
        issued.save(&new_certificate, &new_key)?;
        put_in_place(&new_key, &self.key)?;
        put_in_place(&new_certificate, &self.certificate)
    }
}

/// Adds certificates to the list of the revoked, durably: it is in force when this returns. Certificates that are on it
/// already stay as they are.
pub fn revoke(ca_dir: &Path, serials: Vec<Serial>) -> anyhow::Result<RevocationList> {
    let ca = ca_dir.join("ca.crt");
    let authority = Authority::load(ca_dir)?;
    let _lock = lock(ca_dir)?;
    let list = RevocationList::load(&ca)?.with(serials);
    let file = RevocationList::file(&ca);
    write_in_place(&file, authority.sign_list(&list)?.as_bytes())?;
    Ok(list)
}

/// What a certificate's file says, if this site issued it.
pub fn issued(ca_dir: &Path, certificate: &Path) -> anyhow::Result<Issued> {
    Ok(Issued::read(&ca_dir.join("ca.crt"), certificate)?)
}

/// Held while certificates are written.
fn lock(ca_dir: &Path) -> anyhow::Result<File> {
    let path = ca_dir.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Where the next version of a file is made.
fn beside(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}"))
}

/// Renames, durably.
fn put_in_place(from: &Path, to: &Path) -> anyhow::Result<()> {
    let dir = to.parent().unwrap_or(Path::new("/"));
    std::fs::rename(from, to).with_context(|| format!("cannot write {}", to.display()))?;
    File::open(dir).and_then(|d| d.sync_all()).with_context(|| format!("cannot sync {}", dir.display()))
}

/// Writes a public file in place of the one there: after a crash one of the two is there, whole.
fn write_in_place(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = beside(file);
    let write = || {
        std::fs::write(&new, bytes)?;
        File::open(&new)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", new.display()))?;
    put_in_place(&new, file)
}

/// Looks into a certificate's file.
fn read<T>(certificate: &Path, look: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let pem = std::fs::read(certificate).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let parsed = pem.parse_x509().ok()?;
    Some(look(&parsed))
}

/// Whether it is near or past its end.
fn expires_soon(certificate: &X509Certificate<'_>) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let limit = i64::try_from((now + RENEW_BEFORE).as_secs()).unwrap_or(i64::MAX);
    certificate.validity().not_after.timestamp() < limit
}

/// The DNS names and addresses it speaks for.
fn hosts_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return BTreeSet::new() };
    let host = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(host).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

#[cfg(test)]
mod tests;
