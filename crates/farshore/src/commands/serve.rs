//! `farshore serve`: a disk at a position as an NBD export, at once, until told to stop.

use std::sync::Arc;

use anyhow::Context;
use applier::recover::OverlayExport;
use nbd::{Server, ServerConfig, Threads};
use serde_json::json;

use super::hold::Keeper;
use super::point;
use crate::cli::{Global, ServeArgs};
use crate::output::{Output, bytes_text};
use crate::roles::until_stopped;
use crate::{context, pki};

/// Requests in flight on one connection.
const INFLIGHT_MAX: usize = 64;
/// Connections at once.
const CONNECTIONS_MAX: usize = 32;

/// Serves until SIGINT or SIGTERM.
pub async fn run(global: &Global, args: &ServeArgs, output: Output) -> anyhow::Result<()> {
    let stop = until_stopped()?;
    let reader = point::open_cached(global, &args.machine, &args.at, args.cache.as_deref()).await?;
    let disk = reader.disk(&args.disk)?;
    let keeper = Keeper::start(&reader).await;
    let size = disk.size();
    let export = Arc::new(OverlayExport::create(disk, args.overlay.as_deref()).await?);
    let tls = match args.listen.tls_host() {
        None => None,
        Some(_) => {
            let config = context::config(global).context("a tls: address needs the certificates of the site")?;
            pki::nbd::server_config(&config.site.ca, &args.machine, &args.listen)?
        }
    };
    let config = ServerConfig {
        name: args.disk.to_string(),
        listen: args.listen.clone(),
        tls,
        inflight_max: INFLIGHT_MAX,
        connections_max: CONNECTIONS_MAX,
        threads: Threads::Shared,
    };
    let server =
        Server::start(config, export.clone()).await.with_context(|| format!("cannot serve on {}", args.listen))?;
    let object = json!({
        "machine": args.machine,
        "disk": args.disk,
        "position": point::position(reader.at()),
        "address": server.address().to_string(),
        "size": size,
        "held": keeper.held,
    });
    output.print(&object, || {
        let at = reader.at();
        format!(
            "Serving disk {} of {} as of seq:{} ({}), {}, on {} as export {:?}. Stop with Ctrl-C.",
            args.disk,
            args.machine,
            at.position.seq,
            at.time,
            bytes_text(size),
            server.address(),
            args.disk.as_str(),
        )
    });
    stop.await;
    server.stop().await;
    keeper.end().await;
    export.save_trace().await;
    Ok(())
}
