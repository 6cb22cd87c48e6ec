//! Where the vault key comes from: the file of the configuration, `--key FILE`, or standard input.
//!
//! The key's text lives in zeroed memory only, and no message or log line ever shows it: a file that is not a key is
//! named by its path, never quoted.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use format::keys::VaultKey;
use zeroize::Zeroizing;

use crate::failure::usage;

/// A key text is under 100 bytes; a file this large is something else.
const KEY_TEXT_BYTES_MAX: u64 = 4096;

/// Where to read a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file.
    File(PathBuf),
    /// Standard input, up to its end.
    Stdin,
}

impl KeySource {
    /// `-` is standard input.
    pub fn from_flag(flag: &Path) -> Self {
        if flag == Path::new("-") { KeySource::Stdin } else { KeySource::File(flag.to_owned()) }
    }

    /// Reads the key. Whatever is wrong is a matter of usage: the right key must be given.
    pub fn read(&self) -> anyhow::Result<VaultKey> {
        match self {
            KeySource::File(path) => {
                let file = std::fs::File::open(path).map_err(|e| {
                    usage(format!(
                        "cannot read vault key {}: {e}; restore the file, or give the recovery key with --key FILE",
                        path.display()
                    ))
                })?;
                let shared = is_shared(&file);
                let key = parse(file, &path.display().to_string())?;
                if shared {
                    tracing::warn!(file = %path.display(), "others may read the vault key: chmod 600 it");
                }
                Ok(key)
            }
            KeySource::Stdin => parse(std::io::stdin().lock(), "standard input"),
        }
    }
}

fn parse(reader: impl Read, name: &str) -> anyhow::Result<VaultKey> {
    let mut text = Zeroizing::new(String::new());
    reader
        .take(KEY_TEXT_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|e| usage(format!("{name} holds no vault key: {e}")))?;
    if text.len() as u64 > KEY_TEXT_BYTES_MAX {
        return Err(usage(format!("{name} holds no vault key: it is too long to be one")));
    }
    VaultKey::parse(&text)
        .map_err(|e| usage(format!("{name} holds no usable vault key: {e}; compare it with your copy")))
}

/// Whether anybody but its owner may read the file.
fn is_shared(file: &std::fs::File) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o077 != 0)
}

/// Writes a new key file, readable by its owner only and synced; refuses to overwrite.
pub fn write_new(path: &Path, key: &VaultKey) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    let mut text = key.to_text();
    text.push('\n');
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}
