//! The keeper of a replica: follows what is committed, and tries again what failed.

use std::sync::Arc;
use std::time::Duration;

use model::{EventKind, Seq, Severity};

use super::Replica;
use crate::ApplierError;
use crate::applier::{Committed, SegmentRun, Shared};
use crate::maps::{Maps, segments_behind, stretch_of_seq};

/// Wait after the first failure; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);

/// Longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Keeps the replica of a machine until stopped.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut retry = RETRY_MIN;
    let mut replica = None;
    loop {
        let moved = step(&shared, &mut replica).await;
        let wait = match moved {
            Ok(true) => {
                if retry != RETRY_MIN {
                    shared.event(Severity::Info, EventKind::Point, "the replica moves again".to_owned());
                }
                retry = RETRY_MIN;
                shared.with_replica(|status| status.last_error = None);
                continue;
            }
            Ok(false) => None,
            Err(ApplierError::Stopped) => return,
            Err(error) => {
                report(&shared, &error);
                let wait = retry;
                retry = (retry * 2).min(RETRY_MAX);
                Some(wait)
            }
        };
        let go_on = match wait {
            Some(wait) => shared.pause(wait).await,
            None => tokio::select! {
                biased;
                () = shared.stop.cancelled() => false,
                () = shared.moved.notified() => true,
            },
        };
        if !go_on {
            return;
        }
    }
}

/// One move. Whether there was one.
async fn step(shared: &Shared, replica: &mut Option<Replica>) -> Result<bool, ApplierError> {
    let replica = match replica {
        Some(replica) => replica,
        None => {
            let (store, keys) = (shared.store.clone(), shared.keys.clone());
            replica.insert(Replica::open(store, keys, &shared.config.data_dir, &shared.machine)?)
        }
    };
    publish(shared, replica);
    let committed = shared.committed();
    let segments = segments_for(shared, replica.state().position.seq, &committed).await?;
    let Some(target) = replica.next_target(&committed.validity, &segments) else { return Ok(false) };
    shared.with_replica(|status| status.moving_to = Some(target));
    let moved = replica.advance(&segments, target, &shared.stop).await;
    publish(shared, replica);
    moved.map(|()| true)
}

/// The committed segments from `at` on. A replica that is far behind finds their names in the maps.
async fn segments_for(shared: &Shared, at: Seq, committed: &Committed) -> Result<SegmentRun, ApplierError> {
    if committed.recent.start.position.seq <= at {
        return Ok(committed.recent.clone());
    }
    let maps = Maps::new(shared.store.clone(), shared.keys.clone(), shared.machine.clone());
    let start = stretch_of_seq(&maps, &committed.nodes, at.max(Seq(1))).await?.start().head;
    let mut segments = segments_behind(&maps, &committed.nodes, start.position.seq).await?;
    let mapped = segments.last().map_or(start, |last| last.head).position.seq;
    let behind = committed.recent.segments.iter().filter(|segment| segment.head.position.seq > mapped);
    segments.extend(behind.cloned());
    Ok(SegmentRun { start, segments })
}

fn publish(shared: &Shared, replica: &Replica) {
    let state = replica.state();
    shared.with_replica(|status| {
        (status.seq, status.time, status.moving_to) = (state.position.seq, state.time, state.intent);
    });
    metrics::gauge!("applier_replica_seq", "machine" => shared.machine.to_string()).set(state.position.seq.0 as f64);
}

fn report(shared: &Shared, error: &ApplierError) {
    let text = describe(error);
    let same = shared.with_status(|status| {
        let Some(replica) = status.replica.as_mut() else { return true };
        let same = replica.last_error.as_ref() == Some(&text);
        replica.last_error = Some(text.clone());
        same
    });
    if !same {
        shared.event(Severity::Critical, EventKind::Store, format!("the replica cannot move: {text}"));
    }
}

/// An error and its causes in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
