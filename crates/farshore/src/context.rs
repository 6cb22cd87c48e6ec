//! What a command works on: the configuration, the store and the keys, each from where the user said.
//!
//! `--store` and `--key` replace their entries of the configuration; when both are given the configuration file is not
//! even looked for. That is what recovery on a bare machine rests on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use format::keys::Keys;
use store::{Store, StoreError};

use crate::cli::Global;
use crate::config::{Config, RecoverTable, store_url};
use crate::failure::{one_line, usage};
use crate::keyfile::KeySource;

/// The configuration of a command that cannot do without.
pub fn config(global: &Global) -> anyhow::Result<Config> {
    let mut config = Config::load(&global.config)?;
    if let Some(url) = &global.store {
        config.store = url_of_flag(url)?;
    }
    Ok(config)
}

/// The configuration, unless flags make it unnecessary.
fn config_if_needed(global: &Global) -> anyhow::Result<Option<Config>> {
    match (&global.store, &global.key) {
        (Some(_), Some(_)) => Ok(None),
        _ => config(global).map(Some),
    }
}

fn url_of_flag(url: &str) -> anyhow::Result<String> {
    let here = std::env::current_dir().context("the working directory is gone")?;
    store_url(url, &here).map_err(|why| usage(format!("--store {why}")))
}

/// Where the key comes from.
pub fn key_source(global: &Global, config: Option<&Config>) -> anyhow::Result<KeySource> {
    match (&global.key, config) {
        (Some(flag), _) => Ok(KeySource::from_flag(flag)),
        (None, Some(config)) => Ok(KeySource::File(config.site.vault_key.clone())),
        (None, None) => Err(usage("no vault key: give --key FILE")),
    }
}

/// The store of flags and configuration, not yet checked against any key.
pub fn store_only(global: &Global) -> anyhow::Result<Store> {
    let url = match &global.store {
        Some(url) => url_of_flag(url)?,
        None => config(global)?.store,
    };
    open_existing(&url)
}

/// A store directory that is not there is a typing error, not a new store.
fn open_existing(url: &str) -> anyhow::Result<Store> {
    if let Some(dir) = url.strip_prefix("file://")
        && !Path::new(dir).is_dir()
    {
        return Err(usage(format!("store {url} is not there: check the path, or mount it")));
    }
    Ok(Store::open(url)?)
}

/// Store and keys for a command that reads history: the key is proven to open the store.
pub async fn recovery(global: &Global) -> anyhow::Result<(Store, Arc<Keys>)> {
    let config = config_if_needed(global)?;
    let keys = Arc::new(Keys::new(&key_source(global, config.as_ref())?.read()?));
    let url = match (&global.store, &config) {
        (Some(url), _) => url_of_flag(url)?,
        (None, Some(config)) => config.store.clone(),
        (None, None) => return Err(usage("no store: give --store URL")),
    };
    let store = open_existing(&url)?;
    open_vault(&store, &keys, &url).await?;
    Ok((store, keys))
}

/// Directory and bound of the read cache: that of the flag, else the configured one, if any.
pub fn cache_dir(global: &Global, flag: Option<&Path>) -> anyhow::Result<Option<(PathBuf, u64)>> {
    let recover = config_if_needed(global)?.map(|config| config.recover);
    let bytes = recover.as_ref().map_or(RecoverTable::default().cache_bytes.0, |recover| recover.cache_bytes);
    let dir = flag.map(Path::to_owned).or(recover.and_then(|recover| recover.cache_dir));
    Ok(dir.map(|dir| (dir, bytes)))
}

async fn open_vault(store: &Store, keys: &Keys, url: &str) -> anyhow::Result<()> {
    match store::open_vault(store, keys).await {
        Err(StoreError::Missing { .. }) => {
            Err(usage(format!("store {url} holds no vault: check the URL; a vault is made by `farshore init`")))
        }
        other => Ok(other?),
    }
}

/// Store and keys for a role: an empty store gets the vault of the key; another vault is refused, and so is a store that
/// does not keep its promises.
pub async fn role(global: &Global, config: &Config) -> anyhow::Result<(Store, Arc<Keys>)> {
    let keys = Arc::new(Keys::new(&key_source(global, Some(config))?.read()?));
    let store = Store::open(&config.store)?;
    // Nothing is tried out in the store of another vault, and a store that cannot be reached ends the start here.
    match store::open_vault(&store, &keys).await {
        Ok(()) | Err(StoreError::Missing { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    refuse_unfit(&store).await?;
    store::create_vault(&store, &keys).await?;
    Ok((store, keys))
}

/// A store that stops answering while it is tried out has proven nothing. The role starts: it must live through outages
/// anyway, and a store that breaks its promises is found at another start.
async fn refuse_unfit(store: &Store) -> anyhow::Result<()> {
    match store.probe().await {
        Ok(()) => Ok(()),
        Err(unfit @ StoreError::Unfit { .. }) => Err(unfit.into()),
        Err(error) => {
            let why = one_line(&error.into());
            tracing::warn!(why, "the store could not be tried out; it will be at the next start");
            Ok(())
        }
    }
}
