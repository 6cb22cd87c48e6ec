//! `farshore key check`, and what `farshore init` tells.

use anyhow::bail;
use format::keys::Keys;
use serde_json::json;
use store::StoreError;

use crate::cli::{Global, KeyArgs, KeyCommand};
use crate::context;
use crate::init::Made;
use crate::keyfile::KeySource;
use crate::output::Output;

/// Shows a new site and, this one time, its recovery key.
pub fn show_new_site(made: &Made, output: Output) {
    let object = json!({
        "config": made.config.display().to_string(),
        "vault": made.vault,
        "recovery_key": made.recovery_key.as_str(),
    });
    output.print(&object, || {
        let config = made.config.display();
        format!(
            "Made {config}\n\n\
             Recovery key of vault {}:\n\n    {}\n\n\
             Write it down or print it now, and keep it away from this site: it is not shown again. With it and the store\n\
             alone everything can be recovered; without it and without vault.key nothing can. Whoever has it can read\n\
             everything. Prove your copy with\n\n    farshore --config {config} key check\n\n\
             Then add a [[machine]] to the configuration and start with `farshore --config {config} up`.",
            made.vault,
            made.recovery_key.as_str(),
        )
    });
}

/// `farshore key …`
pub async fn run(global: &Global, args: &KeyArgs, output: Output) -> anyhow::Result<()> {
    match &args.command {
        KeyCommand::Check(args) => {
            let copy = args.file.clone().map_or(KeySource::Stdin, KeySource::File);
            check(global, &copy, output).await
        }
    }
}

/// Proves a copy of the recovery key against the vault key in use, if there is one, and against the store. A copy that
/// cannot be right is a failed check, not wrong usage.
async fn check(global: &Global, copy: &KeySource, output: Output) -> anyhow::Result<()> {
    let keys = match copy.read() {
        Ok(key) => Keys::new(&key),
        Err(error) => bail!("the recovery key is not good: {error}"),
    };
    let store = context::store_only(global)?;
    let equals_vault_key = in_use(global)?.map(|used| used.vault() == keys.vault());
    if equals_vault_key == Some(false) {
        bail!("this is a recovery key, but of another vault ({}) than the vault key in use", keys.vault());
    }
    match store::open_vault(&store, &keys).await {
        Ok(()) => {}
        Err(StoreError::WrongKey { store, key }) => {
            bail!("this is a recovery key, but of another vault ({key}) than the store's ({store})")
        }
        Err(other) => return Err(other.into()),
    }
    let object = json!({ "good": true, "vault": keys.vault().to_string(), "equals_vault_key": equals_vault_key });
    output.print(&object, || {
        let also = if equals_vault_key == Some(true) { "equals the vault key in use and " } else { "" };
        format!("Good: this recovery key {also}opens vault {} in the store.", keys.vault())
    });
    Ok(())
}

/// The key in use on this host; none when there is no such file here, as on a bare machine.
fn in_use(global: &Global) -> anyhow::Result<Option<Keys>> {
    let source = match (&global.key, &global.store) {
        (Some(flag), _) => KeySource::from_flag(flag),
        (None, Some(_)) => return Ok(None),
        (None, None) => KeySource::File(context::config(global)?.site.vault_key),
    };
    match &source {
        KeySource::File(path) if !path.exists() => Ok(None),
        source => Ok(Some(Keys::new(&source.read()?))),
    }
}
