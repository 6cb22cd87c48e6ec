//! Holds: positions that somebody reads for long, and that policy does not let go before they are released or have expired.
//!
//! Who reads asks through the store ([`store::HoldRequests`]), for it may run where no applier does, and learns the answer from the
//! manifest. What must hold: a hold is granted only of a position that opens under the manifest that grants it, so whoever finds
//! it there reads on; and the policy is asked only after all requests that are there were read.

use std::time::Duration;

use format::manifest::{HOLDS_MAX, Hold, Manifest, ManifestCommit};
use model::{EventKind, Seq, Severity, Timestamp};
use store::HoldRequests;
use tokio::time::Instant;

use crate::ApplierError;
use crate::applier::Shared;
use crate::recover::Validity;

/// Time between two looks for requests. A reader waits for about as long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Requests taken into one commit.
const REQUESTS_AT_ONCE: u64 = 64;

/// The requests of a machine, as they are answered.
pub(crate) struct Holds {
    requests: HoldRequests,
    looked_at: Option<Instant>,
    /// Requests read since the last sweep.
    unswept: bool,
}

impl Holds {
    /// Those of the machine.
    pub fn new(shared: &Shared) -> Self {
        let requests = HoldRequests::new(shared.store.clone(), shared.keys.clone(), shared.machine.clone());
        Self { requests, looked_at: None, unswept: true }
    }

    /// Takes new requests, and what has expired, into the next commit. Nothing of the kind may be in it yet.
    pub async fn take_up(
        &mut self,
        shared: &Shared,
        manifest: &Manifest,
        validity: &Validity,
        next: &mut ManifestCommit,
    ) -> Result<(), ApplierError> {
        if next.holds_read > 0 || self.looked_at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        self.looked_at = Some(Instant::now());
        let now = shared.clock.now();
        let expired = manifest.holds.iter().filter(|(_, hold)| hold.until < now);
        next.released.extend(expired.map(|(id, _)| *id));
        let read = manifest.holds_read;
        for number in read.saturating_add(1)..=read.saturating_add(REQUESTS_AT_ONCE) {
            let Some(request) = self.requests.read(number).await? else { break };
            next.holds_read = number;
            self.unswept = true;
            let request = match request {
                Ok(request) => request,
                Err(damage) => {
                    let text = format!("a request to hold a position is not heard: {damage}");
                    shared.event(Severity::Warning, EventKind::Store, text);
                    continue;
                }
            };
            next.held.retain(|(id, _)| *id != request.id);
            if request.lasts_seconds == 0 {
                next.released.push(request.id);
                continue;
            }
            let held = manifest.holds.len() + next.held.len();
            if opens(manifest, validity, request.seq) && (held < HOLDS_MAX || manifest.holds.contains_key(&request.id))
            {
                let until = Timestamp(now.0.saturating_add(u64::from(request.lasts_seconds) * 1_000_000));
                next.released.retain(|id| *id != request.id);
                next.held.push((request.id, Hold { seq: request.seq, until }));
            }
        }
        // What the policy has decided for this very commit it had decided without them.
        let held = |seq: Seq| next.held.iter().any(|(_, hold)| hold.seq == seq);
        let kept = |id| manifest.points.iter().any(|point| point.id == id && held(point.position.seq));
        next.dropped.retain(|id| !kept(*id));
        Ok(())
    }

    /// Deletes the requests that the acknowledged manifest has answered, once after each that was read.
    pub async fn sweep(&mut self, manifest: &Manifest) -> Result<(), ApplierError> {
        if std::mem::take(&mut self.unswept) {
            self.requests.sweep(manifest.holds_read).await?;
        }
        Ok(())
    }
}

/// Whether a position opens under this manifest.
fn opens(manifest: &Manifest, validity: &Validity, seq: Seq) -> bool {
    let horizon = manifest.horizon.as_ref().map(|last| last.head.position.seq).unwrap_or_default();
    let is_point = || manifest.points.iter().any(|point| point.position.seq == seq);
    match seq > horizon {
        // What lies behind the last record read goes nowhere before it is read.
        true => validity.contains(seq) || manifest.last().is_none_or(|last| seq > last.head.position.seq),
        false => is_point(),
    }
}

/// Whether somebody holds the position.
pub(crate) fn is_held(manifest: &Manifest, seq: Seq) -> bool {
    manifest.holds.values().any(|hold| hold.seq == seq)
}

/// The last position that the horizon may pass for the sake of holds: one before the lowest held position that is no point and
/// lies behind it. None when there is none.
pub(crate) fn limit(manifest: &Manifest) -> Option<Seq> {
    let horizon = manifest.horizon.as_ref().map(|last| last.head.position.seq).unwrap_or_default();
    let is_point = |seq: Seq| manifest.points.iter().any(|point| point.position.seq == seq);
    let seqs = manifest.holds.values().map(|hold| hold.seq);
    seqs.filter(|seq| *seq > horizon && !is_point(*seq)).min().map(|seq| Seq(seq.0.saturating_sub(1)))
}
