//! Flushes of one disk run one at a time and are shared.
//!
//! One at a time, because Linux reports a failed write-back to one caller only: with two in flight, one could fail and
//! the other, reporting success, would vouch for what was lost. Requests that arrive while one runs share the next. What
//! must hold: whoever is told of success arrived before a flush was issued that succeeded. A flush that is cancelled
//! half-way covers nobody. `scheduled` tries this source under many schedules.

use std::future::Future;
use std::io;

use super::sync::{AtomicU64, Ordering};

/// Serialises and shares the flushes of one disk.
#[derive(Default)]
pub(crate) struct FlushGroup {
    /// Requests that arrived so far.
    arrived: AtomicU64,
    last: tokio::sync::Mutex<Flushed>,
}

#[derive(Default)]
struct Flushed {
    /// Requests that had arrived when the last flush was issued.
    covers: u64,
    error: Option<io::ErrorKind>,
    /// A failure that only we saw. Linux reports it once, so the next client's flush would succeed and vouch for what
    /// was lost: it is owed this error instead.
    owed: Option<io::ErrorKind>,
}

impl FlushGroup {
    /// Returns the result of a flush issued after this call: of one that another request asked for, or else of `flush`.
    pub(crate) async fn share<F>(&self, flush: impl FnOnce() -> F) -> io::Result<()>
    where
        F: Future<Output = io::Result<()>>,
    {
        // Release: its partner is the acquire load below, so whoever issues a flush for this request has also seen
        // everything that completed before the request was made.
        let request = self.arrived.fetch_add(1, Ordering::Release) + 1;
        let mut last = self.last.lock().await;
        if last.covers >= request {
            return last.error.map_or(Ok(()), |kind| Err(kind.into()));
        }
        // Acquire: its partner is the release above. Before the flush, not after it: who arrives meanwhile is not covered.
        let covers = self.arrived.load(Ordering::Acquire);
        let result = flush().await;
        last.covers = covers;
        last.error = result.as_ref().err().map(io::Error::kind);
        last.owed = last.error.or(last.owed);
        result
    }

    /// As [`FlushGroup::share`], for a client, who is told of every failure since its last flush, whoever met it.
    pub(crate) async fn share_for_client<F>(&self, flush: impl FnOnce() -> F) -> io::Result<()>
    where
        F: Future<Output = io::Result<()>>,
    {
        let result = self.share(flush).await;
        match self.last.lock().await.owed.take() {
            Some(kind) if result.is_ok() => Err(kind.into()),
            _ => result,
        }
    }
}
