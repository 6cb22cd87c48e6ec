//! The keeper of a replica: follows what is committed, and tries again what failed.

use std::sync::Arc;
use std::time::Duration;

use format::map::Node;
use format::pack::PackRef;
use model::{EventKind, Seq, Severity, Timestamp};

use super::{Replica, ReplicaConfig};
use crate::ApplierError;
use crate::applier::{Committed, SegmentRun, Shared};
use crate::maps::{Maps, segments_behind, stretch_of_seq};
use crate::stages::Stage;

/// Wait after the first failure; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);

/// Longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A replica and how it is brought on.
struct Keeper {
    shared: Arc<Shared>,
    config: ReplicaConfig,
    replica: Option<Replica>,
    /// A map that a rebuild needs is damaged: records are applied instead.
    maps_damaged: bool,
}

/// Keeps the replica of a machine until stopped.
pub(crate) async fn run(shared: Arc<Shared>, config: ReplicaConfig) {
    let mut retry = RETRY_MIN;
    let mut keeper = Keeper { shared: shared.clone(), config, replica: None, maps_damaged: false };
    loop {
        let moved = keeper.step().await;
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

impl Keeper {
    /// One move. Whether there was one.
    async fn step(&mut self) -> Result<bool, ApplierError> {
        let shared = &self.shared;
        let replica = match &mut self.replica {
            Some(replica) => replica,
            None => {
                let (store, keys, config) = (shared.store.clone(), shared.keys.clone(), self.config.clone());
                let opened = Replica::open(store, keys, &shared.config.data_dir, &shared.machine, config)?;
                self.replica.insert(opened.with_stages(shared.stages.clone()))
            }
        };
        publish(shared, replica);
        replica.ready(&shared.stop).await?;
        let committed = shared.committed();
        let at = replica.state().position.seq;
        if at > Seq::ZERO && at < committed.horizon {
            let text = format!(
                "the replica stands at seq:{at}, and the log is whole behind seq:{} only: it is built anew",
                committed.horizon
            );
            shared.event(Severity::Warning, EventKind::Point, text);
            replica.begin_anew()?;
            return Ok(true);
        }
        // Then there is no way but by maps.
        let before = at < committed.horizon;
        let late = lag(&committed, replica.state().time) > shared.config.replica_lag && !self.maps_damaged;
        if let Some(nodes) = replica.rebuild_nodes(&committed, late || before).filter(|_| before || !self.maps_damaged)
        {
            let rebuilt = rebuild(shared, replica, nodes, committed.packs.clone()).await;
            if let Err(ApplierError::Recover(error)) = &rebuilt
                && error.is_missing()
                && moved_on(&committed, &shared.committed())
            {
                // Collected while it was read: there is another way now.
                return Ok(true);
            }
            self.maps_damaged = rebuilt.as_ref().is_err_and(ApplierError::is_damage);
            return rebuilt.map(|()| true);
        }
        if before {
            return Ok(false);
        }
        let segments = segments_for(shared, replica.state().position.seq, &committed).await?;
        let Some(target) = replica.next_target(&committed.validity, &segments) else { return Ok(false) };
        shared.with_replica(|status| status.moving_to = Some(target));
        let moved = replica.advance(&segments, target, &shared.stop).await;
        publish(shared, replica);
        moved.map(|()| true)
    }
}

/// How far behind the end of what is committed a replica at `time` is.
fn lag(committed: &Committed, time: Timestamp) -> Duration {
    let recent = &committed.recent;
    let end = recent.segments.last().map_or(recent.start, |last| last.head);
    end.time.since(time)
}

/// The maps of the machine, for as long as they are needed: what they cache goes with them.
fn maps(shared: &Shared) -> Arc<Maps> {
    Arc::new(Maps::new(shared.store.clone(), shared.keys.clone(), shared.machine.clone()))
}

/// Whether other maps and packs are named now.
fn moved_on(before: &Committed, now: &Committed) -> bool {
    before.nodes != now.nodes || before.horizon != now.horizon || before.packs != now.packs
}

async fn rebuild(
    shared: &Shared,
    replica: &mut Replica,
    nodes: &[Node],
    packs: Arc<[PackRef]>,
) -> Result<(), ApplierError> {
    let from = replica.state().position.seq;
    let to = nodes.last().map_or(from, |last| last.end.head.position.seq);
    shared.with_replica(|status| (status.moving_to, status.rebuilding) = (Some(to), true));
    if !replica.state().intent.is_some_and(|intent| intent.rebuild) {
        let begun = format!("the replica is past its lag limit: it is rebuilt from seq:{from} to seq:{to} out of maps");
        shared.event(Severity::Info, EventKind::Point, begun);
    }
    let rebuilt = replica.rebuild(&maps(shared), nodes, packs, shared.rules.applier, &shared.stop).await;
    publish(shared, replica);
    let bytes = rebuilt?;
    let machine = shared.machine.to_string();
    metrics::counter!("applier_replica_rebuilds_total", "machine" => machine.clone()).increment(1);
    metrics::counter!("applier_replica_rebuilt_bytes_total", "machine" => machine).increment(bytes);
    shared.event(
        Severity::Info,
        EventKind::Point,
        format!("the replica is rebuilt to seq:{to}: {bytes} bytes differed"),
    );
    Ok(())
}

/// The committed segments from `at` on. A replica that is far behind finds their names in the maps.
async fn segments_for(shared: &Shared, at: Seq, committed: &Committed) -> Result<SegmentRun, ApplierError> {
    if committed.recent.start.position.seq <= at {
        return Ok(committed.recent.clone());
    }
    let _fetching = shared.stages.at(Stage::Fetch);
    let maps = maps(shared);
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
        (status.seq, status.time) = (state.position.seq, state.time);
        status.moving_to = state.intent.map(|intent| intent.to);
        status.rebuilding = state.intent.is_some_and(|intent| intent.rebuild);
    });
    let seq = state.claim().unwrap_or(Seq::ZERO);
    metrics::gauge!("applier_replica_seq", "machine" => shared.machine.to_string()).set(seq.0 as f64);
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
