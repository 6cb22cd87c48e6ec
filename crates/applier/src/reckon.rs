//! State digests of recovery points, reckoned behind the follower: what every disk holds there, as a sum that goes along with
//! the point (see [`format::state`]).
//!
//! A point is there and acknowledged first; its states follow in a later commit, once what was written since the point before
//! it is read again, as it was and as it is. So nothing waits for them: neither the source, nor points, nor the replica. Points
//! are reckoned in order behind the last that has its states; if the process dies, the next life goes on there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use format::manifest::{Manifest, ManifestCommit, PointStates};
use model::{EventKind, PointId, Severity};

use crate::applier::Shared;
use crate::recover::{History, LoadOptions, Reckoned, RecoverError};
use crate::replica::describe;
use crate::stages::Stage;

/// Time between two looks for points without states.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Wait after a failure: what is damaged does not mend itself.
const FAILED_WAIT: Duration = Duration::from_secs(60);

/// An epoch that nobody opens is the follower's to judge, not ours.
const SETTLE: Duration = Duration::from_secs(24 * 3600);

/// States reckoned and not committed yet.
#[derive(Default)]
pub(crate) struct Reckonings(Mutex<Vec<PointStates>>);

impl Reckonings {
    fn push(&self, states: PointStates) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(states);
    }

    /// Takes them into the next commit, as far as their points are still there.
    pub fn take_up(&self, manifest: &Manifest, next: &mut ManifestCommit) {
        let reckoned = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let known = |id: PointId| manifest.points.iter().any(|point| point.id == id && point.states.is_empty());
        next.states.extend(reckoned.into_iter().filter(|states| known(states.point)));
    }
}

/// Reckons the points of one machine until stopped.
pub(crate) async fn run(shared: Arc<Shared>) {
    let (mut last, mut failed) = (None, None);
    while shared.pause(LOOK_EVERY.min(shared.config.tidy_every)).await {
        let newest = shared.committed().unreckoned;
        if newest.is_none() || newest == last {
            continue;
        }
        let reckoned = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            reckoned = reckon(&shared) => reckoned,
        };
        match reckoned {
            Ok(up_to) => (last, failed) = (up_to.or(newest), None),
            Err(error) => {
                let text = format!("state digests cannot be reckoned: {}", describe(&error));
                if failed.replace(text.clone()) != Some(text.clone()) {
                    shared.event(Severity::Warning, EventKind::Point, text);
                }
                if !shared.pause(FAILED_WAIT).await {
                    return;
                }
            }
        }
    }
}

/// Reckons every point behind the last that has its states; gives the last.
async fn reckon(shared: &Shared) -> Result<Option<PointId>, RecoverError> {
    let digesting = shared.stages.at(Stage::Digest);
    let options = LoadOptions { settle: SETTLE, ..LoadOptions::default() };
    let (store, keys, machine) = (&shared.store, &shared.keys, &shared.machine);
    let history = History::load_with_rules(store, keys.clone(), machine, options, shared.rules).await?;
    let points: Vec<_> = history.recorded_points().iter().filter(|point| point.made.is_some()).collect();
    let first = points.iter().rposition(|point| !point.states.is_empty()).map_or(0, |known| known + 1);
    let mut earlier: Option<Reckoned> = match first.checked_sub(1) {
        Some(known) => Some(history.known(points[known]).await?),
        None => None,
    };
    for point in &points[first..] {
        let reckoned = history.reckon(keys, point, earlier.as_ref()).await?;
        digesting.moved(reckoned.read_bytes());
        shared.reckonings.push(PointStates { point: point.id, disks: reckoned.states() });
        earlier = Some(reckoned);
    }
    Ok(points.last().map(|point| point.id))
}
