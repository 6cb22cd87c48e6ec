//! Talking to a store that may be away: the same bytes again, with growing pauses, for as long as nobody else writes.
//!
//! There is no end to the tries: a slot once given is filled with those bytes or the epoch ends, and only another
//! writer (or damage in our own place) ends it. Memory stays bounded because the credit window is used up meanwhile and the agent keeps the rest.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::{LogWriter, StoreError};
use tokio::time::{Instant, sleep};

use crate::stages::Stages;

/// Pause after the first failure.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Longest pause: what a store that came back waits at most to see us.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Tells whoever watches the stream that the store refuses (and why) or answers again.
pub(crate) type StoreWatch = Arc<dyn Fn(Option<String>) + Send + Sync>;

/// Whether trying again cannot help: another writer exists, or what lies there is damaged.
fn is_final(error: &StoreError) -> bool {
    !matches!(error, StoreError::Unavailable { .. } | StoreError::Unclear { .. })
}

/// Puts one slot; returns only when it is put or the epoch must end.
pub(crate) async fn put(
    writer: Arc<LogWriter>,
    slot: u64,
    parts: Vec<Bytes>,
    watch: StoreWatch,
    stages: Arc<Stages>,
) -> Result<u64, StoreError> {
    let bytes = parts.iter().map(|part| part.len() as u64).sum();
    let mut pause = BACKOFF_MIN;
    crate::metrics::uploads_changed(1);
    let _busy = Busy;
    loop {
        let begun = Instant::now();
        probe::failpoint!("process-server-segment-put-before");
        match writer.put(slot, parts.clone()).await {
            Ok(()) => {
                probe::failpoint!("process-server-segment-put");
                crate::metrics::uploaded(bytes, begun.elapsed());
                stages.upload.worked(bytes, begun.elapsed());
                watch(None);
                return Ok(slot);
            }
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => again("put", &error, &mut pause, &watch).await,
        }
    }
}

/// Looks for another writer; returns only with an answer.
pub(crate) async fn look(writer: Arc<LogWriter>, watch: StoreWatch) -> Result<(), StoreError> {
    let mut pause = BACKOFF_MIN;
    loop {
        match writer.look().await {
            Ok(()) => {
                probe::failpoint!("process-server-segment-looked");
                watch(None);
                return Ok(());
            }
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => again("look", &error, &mut pause, &watch).await,
        }
    }
}

async fn again(stage: &'static str, error: &StoreError, pause: &mut Duration, watch: &StoreWatch) {
    crate::metrics::store_error(stage);
    watch(Some(with_causes(error)));
    sleep(*pause).await;
    *pause = (*pause * 2).min(BACKOFF_MAX);
}

/// An error and what caused it, in one line.
pub(crate) fn with_causes(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Counts a PUT in flight down, also when it is given up.
struct Busy;

impl Drop for Busy {
    fn drop(&mut self) {
        crate::metrics::uploads_changed(-1);
    }
}
