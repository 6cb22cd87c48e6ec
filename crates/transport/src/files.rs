//! Certificates and keys as files: bounded reads, and writes that never overwrite and are durable when they return.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::TransportError;

/// Largest PEM file read; a certificate takes about 1 KiB.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Mode of a file anyone may read.
pub(crate) const MODE_PUBLIC: u32 = 0o644;

/// Mode of a private key's file.
pub(crate) const MODE_SECRET: u32 = 0o600;

/// Names a file in an error.
pub(crate) fn credentials(file: &Path, why: impl Into<String>) -> TransportError {
    TransportError::Credentials { file: file.display().to_string(), why: why.into() }
}

/// Reads a PEM file. `what` says what it should hold, `remedy` what to do when it is not there.
pub(crate) fn read_pem(file: &Path, what: &str, remedy: &str) -> Result<Vec<u8>, TransportError> {
    read_if_there(file, what)?.ok_or_else(|| credentials(file, format!("{what} is not there: {remedy}")))
}

/// Reads a PEM file that need not exist.
pub(crate) fn read_if_there(file: &Path, what: &str) -> Result<Option<Vec<u8>>, TransportError> {
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(credentials(file, format!("{what} cannot be read: {error}"))),
    };
    let mut pem = Vec::new();
    opened
        .take(PEM_BYTES_MAX + 1)
        .read_to_end(&mut pem)
        .map_err(|error| credentials(file, format!("{what} cannot be read: {error}")))?;
    if pem.len() as u64 > PEM_BYTES_MAX {
        return Err(credentials(file, format!("larger than {PEM_BYTES_MAX} bytes, so it is not {what}")));
    }
    Ok(Some(pem))
}

/// Tells the operator of a key that others on this host can read.
pub(crate) fn warn_if_shared(key: &Path) {
    let mode = std::fs::metadata(key).map(|m| m.permissions().mode() & 0o077).unwrap_or(0);
    if mode != 0 {
        tracing::warn!(file = %key.display(), "private key can be read by other users: run chmod 600 on it");
    }
}

/// Writes a new file and makes it and its name durable. A file that exists is refused and stays as it is; one that
/// could not be written whole is taken away again.
pub(crate) fn write_new(file: &Path, text: &str, mode: u32) -> Result<(), TransportError> {
    let mut created =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(file).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => credentials(file, "exists already: move it away first, it is not overwritten"),
            _ => credentials(file, format!("cannot be created: {error}")),
        })?;
    let written = created.write_all(text.as_bytes()).and_then(|()| created.sync_all()).and_then(|()| sync_parent(file));
    written.map_err(|error| {
        let _ = std::fs::remove_file(file);
        credentials(file, format!("cannot be written: {error}"))
    })
}

fn sync_parent(file: &Path) -> std::io::Result<()> {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Writes a certificate and its key as two new files, the key first: a certificate without its key would look whole.
pub(crate) fn write_pair(certificate: (&Path, &str), key: (&Path, &str)) -> Result<(), TransportError> {
    if certificate.0.exists() {
        return Err(credentials(certificate.0, "exists already: move it away first, it is not overwritten"));
    }
    write_new(key.0, key.1, MODE_SECRET)?;
    write_new(certificate.0, certificate.1, MODE_PUBLIC).inspect_err(|_| {
        let _ = std::fs::remove_file(key.0);
    })
}
