//! `farshore dump`: what an object file of the store is and holds.

use std::fs;
use std::io::Read;

use anyhow::Context;
use format::keys::Keys;
use format::object::OBJECT_BYTES_MAX;

use crate::cli::{DumpArgs, Global};
use crate::failure::{DamageFound, Exit, usage};
use crate::keyfile::KeySource;
use crate::output::Output;
use crate::{config::Config, context};

/// Dumps one file. Without a key only the header is shown, unauthenticated. Exit code 3 when something is wrong with it.
pub fn run(global: &Global, args: &DumpArgs, output: Output) -> anyhow::Result<Exit> {
    let file = fs::File::open(&args.file).map_err(|e| usage(format!("cannot read {}: {e}", args.file.display())))?;
    let mut bytes = Vec::new();
    file.take(OBJECT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    if bytes.len() as u64 > OBJECT_BYTES_MAX {
        return Err(usage(format!("{} is larger than any Farshore object", args.file.display())));
    }
    let keys = keys_if_any(global)?;
    let dump = format::dump::dump(keys.as_ref(), &bytes)
        .map_err(|e| DamageFound(format!("{} is no readable Farshore object: {e}", args.file.display())))?;
    output.print(&serde_json::to_value(&dump)?, || dump.to_string());
    Ok(if dump.problems.is_empty() { Exit::Done } else { Exit::Damage })
}

/// The key the user named, else that of the configuration if there is one.
fn keys_if_any(global: &Global) -> anyhow::Result<Option<Keys>> {
    if let Some(flag) = &global.key {
        return Ok(Some(Keys::new(&KeySource::from_flag(flag).read()?)));
    }
    if !global.config.exists() {
        return Ok(None);
    }
    let config = Config::load(&global.config)?;
    Ok(Some(Keys::new(&context::key_source(global, Some(&config))?.read()?)))
}
