//! Certificates for NBD exports over TLS: one for each machine that offers any, and one for all their clients.
//!
//! ```text
//! nbd-<machine>.crt .key              names every host in the machine's tls: addresses
//! nbd-client/ca-cert.pem              the names are those that QEMU and libnbd look for: the directory is given to
//!            client-cert.pem          them as it is
//!            client-key.pem
//! ```
//! Where the CA's key is, they are made at the first use of a `tls:` address and renewed as all others are. A server
//! needs no `nbd-client`, so a host without the CA's key has none.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::Context;
use model::MachineName;
use nbd::{ListenAddress, ServerTls};
use rustls::pki_types::ServerName;

use super::{LIFETIME, Pair, can_issue, lock, write_in_place};
use crate::config::{DISKS_MAX, Machine};

/// Hosts that one certificate names: those of all disks with as many that were asked for before. Beyond that, earlier
/// ones are forgotten.
pub(super) const HOSTS_MAX: usize = 2 * DISKS_MAX;

/// Directory of the clients' credentials, within the CA's.
const CLIENT_DIR: &str = "nbd-client";

/// The TLS of one export: none, unless its address asks for it.
///
/// # Errors
/// What is missing or cannot be used, by file.
pub fn server_config(
    ca_dir: &Path,
    machine: &MachineName,
    listen: &ListenAddress,
) -> anyhow::Result<Option<ServerTls>> {
    if listen.tls_host().is_none() {
        return Ok(None);
    }
    ensure(ca_dir, machine, [listen])?;
    let pair = pair(ca_dir, machine);
    let tls = transport::nbd_server_config(&ca_dir.join("ca.crt"), &pair.certificate, &pair.key)?;
    Ok(Some(ServerTls { config: tls.config, lapsed: Some(tls.lapsed) }))
}

/// Makes sure that what a machine's exports need is there, and what their clients need where it can be made.
pub fn ensure_machine(ca_dir: &Path, machine: &Machine) -> anyhow::Result<()> {
    ensure(ca_dir, &machine.name, machine.disks.iter().map(|disk| &disk.listen))
}

fn ensure<'a>(
    ca_dir: &Path,
    machine: &MachineName,
    listens: impl IntoIterator<Item = &'a ListenAddress>,
) -> anyhow::Result<()> {
    let hosts: BTreeSet<String> =
        listens.into_iter().filter_map(ListenAddress::tls_host).flat_map(|host| names(&host, machine)).collect();
    if hosts.is_empty() {
        return Ok(());
    }
    let issue = |authority: &transport::Authority, hosts: &_| authority.issue_nbd_server(machine, hosts, LIFETIME);
    pair(ca_dir, machine).ensure(ca_dir, &hosts, issue)?;
    if can_issue(ca_dir) {
        ensure_client(ca_dir)?;
    }
    Ok(())
}

fn pair(ca_dir: &Path, machine: &MachineName) -> Pair {
    Pair::of_stem(ca_dir, &format!("nbd-{machine}"))
}

/// What a certificate has to say so that clients of a host find themselves at the right one. Behind an address that
/// stands for all of this host's, only names that do not depend on the network are known.
fn names(host: &ServerName<'_>, machine: &MachineName) -> Vec<String> {
    match host {
        ServerName::IpAddress(address) if IpAddr::from(*address).is_unspecified() => {
            let local = ["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string(), Ipv6Addr::LOCALHOST.to_string()];
            // A machine's name may be none that DNS allows.
            let own = ServerName::try_from(machine.as_str()).is_ok().then(|| machine.to_string());
            local.into_iter().chain(own).collect()
        }
        ServerName::IpAddress(address) => vec![IpAddr::from(*address).to_string()],
        other => vec![other.to_str().to_ascii_lowercase()],
    }
}

fn ensure_client(ca_dir: &Path) -> anyhow::Result<()> {
    let dir = ca_dir.join(CLIENT_DIR);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("cannot create {}", dir.display()))?;
    let pair = Pair { certificate: dir.join("client-cert.pem"), key: dir.join("client-key.pem") };
    pair.ensure(ca_dir, &BTreeSet::new(), |authority, _| authority.issue_nbd_client(LIFETIME))?;

    let (ca, copy) = (ca_dir.join("ca.crt"), dir.join("ca-cert.pem"));
    let trusted = std::fs::read(&ca).with_context(|| format!("cannot read {}", ca.display()))?;
    let _lock = lock(ca_dir)?;
    if std::fs::read(&copy).is_ok_and(|found| found == trusted) {
        return Ok(());
    }
    write_in_place(&copy, &trusted)
}
