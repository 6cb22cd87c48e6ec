//! Brings the stream to a process server: dials, agrees with it on where the log stands, sends, and hears `stored`.
//!
//! One session at a time. A session ends when the connection does, when the peer is silent, or when the incarnation it
//! speaks for does; then the next one is dialled after a pause that grows and is never the same twice. A refusal that
//! only a compare can mend stops the dialling, not the agent: the source is served on, in bitmap mode.

mod backoff;
mod session;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use format::wire::{Refusal, Refused};
use model::{DrainCause, EventKind, Severity};
use tokio::time::timeout;

use crate::shared::Shared;
use crate::status::RefusalStatus;
use backoff::Backoff;
use session::SessionEnd;

/// Longest wait for a dial and for WELCOME.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs for the life of the agent.
pub(crate) async fn run(shared: &Arc<Shared>) {
    let mut backoff = Backoff::new(shared.random.bits());
    let mut server = 0;
    // What was last told of each server: as many as are configured.
    let mut told = BTreeMap::new();
    loop {
        wait_while_refused(shared).await;
        let address = shared.config.process_servers[server % shared.config.process_servers.len()].clone();
        let end = match timeout(DIAL_TIMEOUT, shared.dialer.dial(&address)).await {
            Ok(Ok(connection)) => {
                shared.core().greeting = true;
                session::run(shared, connection, &address).await
            }
            Ok(Err(e)) => SessionEnd::Failed(error_chain(&e)),
            Err(_) => SessionEnd::Failed(format!("{address} did not answer within {} s", DIAL_TIMEOUT.as_secs())),
        };
        let was_up = {
            let mut core = shared.core();
            core.greeting = false;
            core.connection.take().is_some()
        };
        match end {
            SessionEnd::NewLife => {}
            SessionEnd::Stopped => return,
            SessionEnd::Refused(refused) => handle_refusal(shared, refused),
            SessionEnd::Failed(why) if was_up => {
                shared.event(Severity::Warning, EventKind::Connection, format!("lost process server {address}: {why}"));
            }
            SessionEnd::Failed(why) => failed_to_connect(shared, &address, why, &mut told),
        }
        shared.ring_all();
        if was_up {
            backoff.reset();
            told.clear();
        } else {
            server += 1;
        }
        // A new incarnation need not wait: nobody is overloaded by it.
        let now = shared.life.get();
        let _ = timeout(backoff.next(), shared.life.wait_for(|life| *life != now)).await;
    }
}

/// Kept for the status, and an event when an outage begins or changes its reason.
fn failed_to_connect(shared: &Shared, address: &str, why: String, told: &mut BTreeMap<String, String>) {
    let text = format!("no session with process server {address}: {why}");
    shared.core().connection_failure = Some(text.clone());
    let before = told.insert(address.to_owned(), why.clone());
    if before.is_none_or(|before| before != why) {
        shared.event(Severity::Warning, EventKind::Connection, text);
    } else {
        tracing::debug!("{text}");
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn wait_while_refused(shared: &Shared) {
    loop {
        let life = shared.life.get();
        let refused = shared.core().refusal.as_ref().is_some_and(|refusal| refusal.needs_compare);
        if !refused {
            return;
        }
        // Only `compared` ends this, by opening a new life.
        shared.life.wait_for(|now| *now != life).await;
    }
}

/// The process server (or our own check of its WELCOME) says no.
fn handle_refusal(shared: &Shared, refused: Refused) {
    let needs_compare = refused.reason.needs_compare();
    let status = RefusalStatus { reason: refused.reason, text: refused.text.clone(), needs_compare };
    let news = {
        let mut core = shared.core();
        core.compared_to = None;
        let news = core.refusal.as_ref() != Some(&status);
        core.refusal = Some(status);
        core.compares.fill(None);
        news
    };
    if !news {
        return;
    }
    let todo = match refused.reason {
        reason if reason.needs_compare() => {
            "run a compare of every disk: writes are served and kept as bits until then"
        }
        Refusal::Busy | Refusal::StoreUnavailable => "it is tried again",
        Refusal::SecondAgent => "stop the other agent of this machine; it is tried again",
        Refusal::UnknownMachine => "give this machine a certificate this site knows; it is tried again",
        _ => "bring agent and process server to one version; it is tried again",
    };
    let severity = if needs_compare { Severity::Critical } else { Severity::Warning };
    let text = format!("refused ({:?}): {}; {todo}", refused.reason, refused.text);
    shared.event(severity, EventKind::Refused, text);
    if needs_compare {
        shared.reincarnate(DrainCause::Compare, "refused until a compare has run");
    }
}
