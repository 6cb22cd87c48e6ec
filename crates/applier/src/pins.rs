//! Pins: requests to hold a point, or to hold it no longer, answered once the manifest says so.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use format::manifest::{Manifest, ManifestCommit};
use model::PointId;
use tokio::sync::oneshot;

use crate::ApplierError;
use crate::recover::RecoverError;

type Answer = Result<(), ApplierError>;

/// One request.
pub(crate) struct PinRequest {
    point: PointId,
    hold: bool,
    answer: oneshot::Sender<Answer>,
}

/// Requests that the follower of a machine has not taken up.
#[derive(Default)]
pub(crate) struct PinRequests(Mutex<VecDeque<PinRequest>>);

impl PinRequests {
    /// Asks, and waits for the answer. Errors: `UnknownPoint`; `Stopped` when the follower ended before it had one: whether
    /// the pin is set shows in `points`, and asking again does no harm.
    pub async fn ask(&self, point: PointId, hold: bool) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(PinRequest { point, hold, answer });
        answered.await.unwrap_or(Err(ApplierError::Stopped))
    }

    fn next(&self) -> Option<PinRequest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Requests that the next commit answers.
#[derive(Default)]
pub(crate) struct PinsUnderway(Vec<oneshot::Sender<Answer>>);

impl PinsUnderway {
    /// Takes all requests into the next commit. A pin comes before what the policy had decided for the same commit.
    pub fn take_up(&mut self, requests: &PinRequests, manifest: &Manifest, next: &mut ManifestCommit) {
        while let Some(PinRequest { point, hold, answer }) = requests.next() {
            let known = manifest.points.iter().chain(&next.points).any(|known| known.id == point);
            if !known {
                // Who asked may have gone; nothing was done.
                let _gone = answer.send(Err(RecoverError::UnknownPoint { id: point }.into()));
                continue;
            }
            let (to, from) = match hold {
                true => (&mut next.pinned, &mut next.unpinned),
                false => (&mut next.unpinned, &mut next.pinned),
            };
            from.retain(|other| *other != point);
            to.push(point);
            next.dropped.retain(|dropped| !hold || *dropped != point);
            self.0.push(answer);
        }
    }

    /// The commit is acknowledged.
    pub fn answer(&mut self) {
        // Who asked may have gone; the pin stands all the same.
        self.0.drain(..).for_each(|answer| _ = answer.send(Ok(())));
    }
}
