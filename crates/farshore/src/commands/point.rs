//! A position of a machine, opened: what restore, serve and compare begin with.

use std::path::Path;
use std::sync::Arc;

use applier::recover::{History, LoadOptions, PointReader, PointsView, ProgressFn, ReadCache, RecoverError, Resolved};
use model::{LogHead, MachineName, Selector, Seq};
use serde_json::{Value, json};
use store::Store;

use crate::cli::Global;
use crate::context;
use crate::failure::{one_line, usage};
use crate::output::Progress;

/// Loads the history of a machine.
pub async fn history(global: &Global, machine: &MachineName) -> anyhow::Result<History> {
    let (store, keys) = context::recovery(global).await?;
    load(global, &store, keys, machine, None).await
}

/// The same, its positions read through the cache on disk: that of the flag, else the configured one, if there is one.
async fn cached_history(global: &Global, machine: &MachineName, flag: Option<&Path>) -> anyhow::Result<History> {
    let (store, keys) = context::recovery(global).await?;
    let cache = match context::cache_dir(global, flag)? {
        None => None,
        Some((dir, bytes)) => match ReadCache::open(&dir, bytes, &keys).await {
            Ok(cache) => Some(cache),
            Err(error) if flag.is_some() => return Err(error.into()),
            Err(error) => {
                let why = one_line(&error.into());
                tracing::warn!(why, "the read cache cannot be used; everything is read from the store");
                None
            }
        },
    };
    load(global, &store, keys, machine, cache).await
}

/// Loads it from a store already opened.
pub async fn load(
    global: &Global,
    store: &Store,
    keys: Arc<format::keys::Keys>,
    machine: &MachineName,
    cache: Option<Arc<ReadCache>>,
) -> anyhow::Result<History> {
    let options = LoadOptions { without_maps: global.without_maps, cache, ..LoadOptions::default() };
    Ok(History::load(store, keys, machine, options).await?)
}

/// Asks something of a machine's history.
async fn ask<T>(
    load: impl AsyncFn() -> anyhow::Result<History>,
    mut question: impl AsyncFnMut(&History) -> Result<T, RecoverError>,
) -> anyhow::Result<T> {
    loop {
        let history = load().await?;
        match question(&history).await {
            // Collected while we looked: what is retained opens through newer maps.
            Err(error) if error.is_missing() && history.is_stale().await? => {}
            answer => return Ok(answer?),
        }
    }
}

/// Opens the position a selector means.
pub async fn open(global: &Global, machine: &MachineName, at: &Selector) -> anyhow::Result<PointReader> {
    let processed = processed(global, machine, at).await?;
    let load = async || history(global, machine).await;
    ask(load, async |history| history.open(&history.resolve(at, processed).await?).await).await
}

/// The same, read through the cache on disk: that of the flag, else the configured one, if there is one.
pub async fn open_cached(
    global: &Global,
    machine: &MachineName,
    at: &Selector,
    flag: Option<&Path>,
) -> anyhow::Result<PointReader> {
    let processed = processed(global, machine, at).await?;
    let load = async || cached_history(global, machine, flag).await;
    ask(load, async |history| history.open(&history.resolve(at, processed).await?).await).await
}

/// The end of the stream, and everything an operator may choose from.
pub async fn points(global: &Global, machine: &MachineName) -> anyhow::Result<(LogHead, PointsView)> {
    ask(async || history(global, machine).await, async |history| Ok((history.head(), history.points().await?))).await
}

/// Where the replica stands, for the one selector that asks: only there is a data directory needed.
pub async fn processed(global: &Global, machine: &MachineName, at: &Selector) -> anyhow::Result<Option<Seq>> {
    if *at != Selector::LatestProcessed {
        return Ok(None);
    }
    let config = context::config(global)?;
    if config.machine(machine).is_some_and(|machine| machine.replica.is_none()) {
        let why = format!("{machine} keeps no replica (replica = \"none\"): use latest instead of latest-processed");
        return Err(usage(why));
    }
    Ok(applier::recover::processed(&config.site.data_dir, machine).await)
}

/// A position in JSON.
pub fn position(at: &Resolved) -> Value {
    json!({
        "seq": at.position.seq.0,
        "incarnation": at.position.incarnation.to_string(),
        "time": at.time.to_string(),
    })
}

/// A bar for the library to move.
pub fn progress(what: &str) -> Option<ProgressFn> {
    let bar = Progress::new(what);
    Some(Arc::new(move |at: applier::recover::Progress| bar.set(at.done, at.total)))
}
