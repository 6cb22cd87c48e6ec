//! `farshore init`: everything a site needs, in one new directory.
//!
//! ```text
//! DIR/farshore.toml        commented, usable as it is
//! DIR/vault.key            0600
//! DIR/pki/ca.crt, ca.key, process-server.crt, .key
//! DIR/store/               an embedded store that holds the (empty) vault of that key
//! ```
//! The configuration is written last: a directory without it was not finished, and a second `init` refuses it because it
//! is not empty. Nothing that exists is ever overwritten.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use format::keys::{Keys, VaultKey};
use model::MachineName;
use store::Store;
use transport::{Authority, Role};
use zeroize::Zeroizing;

use crate::config::{Config, TEMPLATE};
use crate::failure::usage;
use crate::{keyfile, pki};

/// What was made.
pub struct Made {
    /// The configuration file.
    pub config: PathBuf,
    /// The recovery key, to be shown once.
    pub recovery_key: Zeroizing<String>,
    /// The vault it opens.
    pub vault: String,
}

/// Makes a site in `dir`, which must not exist or be empty.
pub async fn init(dir: &Path) -> anyhow::Result<Made> {
    let dir = std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()))?;
    refuse_if_not_empty(&dir)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("cannot create {}", dir.display()))?;
    let site = site_name(&dir);
    let text = TEMPLATE.replace("{site}", site.as_str());
    let file = dir.join("farshore.toml");
    let config = Config::parse(&file, &text).context("the template does not fit this directory")?;
    let store = Store::open(&config.store.cache)?;
    store.probe().await?;

    let key = VaultKey::generate();
    keyfile::write_new(&config.site.vault_key, &key)?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&config.site.ca)
        .with_context(|| format!("cannot create {}", config.site.ca.display()))?;
    Authority::generate(site.as_str())?.save(&config.site.ca)?;
    pki::ensure(&config.site.ca, Role::ProcessServer, &config.site.name)?;
    let keys = Keys::new(&key);
    store::create_vault(&store, &keys).await?;
    write_config(&file, &text)?;
    Ok(Made { config: file, recovery_key: key.to_text(), vault: keys.vault().to_string() })
}

fn refuse_if_not_empty(dir: &Path) -> anyhow::Result<()> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(usage(format!("{} is not empty: name a new directory; nothing was changed", dir.display()))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(usage(format!("cannot use {}: {e}", dir.display()))),
    }
}

/// The directory's name where that is a valid name.
fn site_name(dir: &Path) -> MachineName {
    let named = dir.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
    named.unwrap_or_else(|| "farshore".parse().expect("a valid name by its letters"))
}

fn write_config(file: &Path, text: &str) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(file)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        let parent = file.parent().unwrap_or(Path::new("/"));
        fs::File::open(parent)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}
