//! Certificates of the roles: found beside the CA's, issued when they are missing and the CA's key is here.
//!
//! ```text
//! ca.crt ca.key                       made by init; ca.key may be kept on one host only
//! process-server.crt .key             the server of this site
//! agent-<machine>.crt .key            one for each machine
//! ```
//! A certificate near its end is renewed in place where the CA's key is: the new pair is complete and synced before it
//! takes the old one's name, key first, so a crash between leaves a pair that does not fit and is renewed again.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use model::MachineName;
use transport::{Authority, Identity, Role};

use crate::failure::usage;

/// How long an issued certificate is valid.
const LIFETIME: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// A certificate is renewed when it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The identity of a role, issued first if need be.
pub fn identity(ca_dir: &Path, role: Role, name: &MachineName) -> anyhow::Result<Identity> {
    let (certificate, key) = ensure(ca_dir, role, name)?;
    Ok(Identity::load(&ca_dir.join("ca.crt"), &certificate, &key)?)
}

/// Makes sure that the certificate of a role is there and not about to expire; returns its files.
pub fn ensure(ca_dir: &Path, role: Role, name: &MachineName) -> anyhow::Result<(PathBuf, PathBuf)> {
    let stem = match role {
        Role::ProcessServer => "process-server".to_owned(),
        Role::Agent => format!("agent-{name}"),
        Role::Applier => "applier".to_owned(),
    };
    let certificate = ca_dir.join(format!("{stem}.crt"));
    let key = ca_dir.join(format!("{stem}.key"));
    let here = certificate.exists() && key.exists();
    if here && !expires_soon(&certificate) {
        return Ok((certificate, key));
    }
    if !ca_dir.join("ca.key").exists() {
        if here {
            tracing::warn!(file = %certificate.display(), "the certificate is near its end: renew it where ca.key is");
            return Ok((certificate, key));
        }
        return Err(usage(format!(
            "no certificate {} and no CA key beside it to issue one: copy {stem}.crt and {stem}.key from the host that \
             has ca.key, after starting `farshore process-server` there with this machine in its configuration",
            certificate.display()
        )));
    }
    // Roles start at once and may want the same certificate: one issues it, the others find it.
    let lock_path = ca_dir.join(".lock");
    let lock = std::fs::File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if certificate.exists() && key.exists() && !expires_soon(&certificate) {
        return Ok((certificate, key));
    }
    let issued = Authority::load(ca_dir)?.issue(role, name, LIFETIME)?;
    let (new_certificate, new_key) = (ca_dir.join(format!(".{stem}.crt")), ca_dir.join(format!(".{stem}.key")));
    for leftover in [&new_certificate, &new_key] {
        if leftover.exists() {
            std::fs::remove_file(leftover).with_context(|| format!("cannot remove {}", leftover.display()))?;
        }
    }
    issued.save(&new_certificate, &new_key)?;
    for (from, to) in [(&new_key, &key), (&new_certificate, &certificate)] {
        std::fs::rename(from, to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    std::fs::File::open(ca_dir)
        .and_then(|d| d.sync_all())
        .with_context(|| format!("cannot sync {}", ca_dir.display()))?;
    tracing::info!(file = %certificate.display(), "issued a certificate");
    Ok((certificate, key))
}

/// Whether it is near or past its end. What cannot be read is left to the loader, which says what is wrong with it.
fn expires_soon(certificate: &Path) -> bool {
    let Ok(pem) = std::fs::read(certificate) else { return false };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else { return false };
    let Ok(parsed) = pem.parse_x509() else { return false };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let limit = i64::try_from((now + RENEW_BEFORE).as_secs()).unwrap_or(i64::MAX);
    parsed.validity().not_after.timestamp() < limit
}
