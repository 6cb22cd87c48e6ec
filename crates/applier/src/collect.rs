//! Prefix GC by the applier that owns the manifest log (rule 6 of docs/rfcs/0001-epoch-log.md); off unless switched on.
//!
//! A pass follows an acknowledged commit or our own opening, at most one a minute, and is bounded, so that promotion waits
//! for little and an idle machine costs nothing. A doubt stops the pass, not the applier: what is not collected does no
//! harm.

use std::time::Duration;

use model::{EventKind, Severity};
use store::{CollectError, Collected, EpochLog, StoreError};
use tokio::time::Instant;

use crate::ApplierError;
use crate::applier::Shared;
use crate::manifest::ManifestOwner;
use crate::replica::describe;

/// Time between two passes.
const PASS_EVERY: Duration = Duration::from_secs(60);

/// Objects deleted by one pass.
const PASS_OBJECTS_MAX: usize = 512;

/// When to collect next, and what stood in the way last.
pub(crate) struct Collection {
    /// Something was acknowledged since the last pass, or the last pass left something.
    due: bool,
    passed_at: Option<Instant>,
    trouble: Option<String>,
}

impl Collection {
    /// Our own opening is acknowledged: older manifest epochs may go.
    pub fn new() -> Self {
        Self { due: true, passed_at: None, trouble: None }
    }

    /// A commit was acknowledged.
    pub fn acknowledged(&mut self) {
        self.due = true;
    }

    /// Runs a pass if it is time for one. Errors: `Fenced` alone.
    pub async fn run_if_due(
        &mut self,
        shared: &Shared,
        owner: &ManifestOwner,
        stream: &EpochLog,
    ) -> Result<(), ApplierError> {
        let rested = self.passed_at.is_none_or(|at| at.elapsed() >= PASS_EVERY);
        if !(shared.config.prefix_gc && self.due && rested) {
            return Ok(());
        }
        let passed = pass(owner, stream).await;
        self.passed_at = Some(Instant::now());
        match passed {
            Ok(collected) => {
                (self.due, self.trouble) = (collected.left > 0, None);
                tell(shared, &collected);
                Ok(())
            }
            Err(CollectError::Store(error @ StoreError::Fenced { .. })) => Err(error.into()),
            Err(error) => {
                let text = format!("prefix GC stopped and deletes no more until this is settled: {}", describe(&error));
                if self.trouble.as_ref() != Some(&text) {
                    shared.event(Severity::Warning, EventKind::Collection, text.clone());
                }
                self.trouble = Some(text);
                Ok(())
            }
        }
    }
}

async fn pass(owner: &ManifestOwner, stream: &EpochLog) -> Result<Collected, CollectError> {
    let plan = owner.writer().plan_collection(stream).await?;
    for garbage in plan.garbage.iter().take(PASS_OBJECTS_MAX) {
        tracing::debug!(machine = %stream.machine, "{}", plan.explain(garbage));
    }
    Ok(owner.writer().collect(&plan, PASS_OBJECTS_MAX).await?)
}

fn tell(shared: &Shared, collected: &Collected) {
    if collected.objects() == 0 {
        return;
    }
    let machine = shared.machine.to_string();
    let Collected { void, openings, manifests, bytes, .. } = *collected;
    for (kind, objects) in [("void", void), ("opening", openings), ("manifest", manifests)] {
        let counter =
            metrics::counter!("applier_collected_objects_total", "machine" => machine.clone(), "kind" => kind);
        counter.increment(objects);
    }
    metrics::counter!("applier_collected_bytes_total", "machine" => machine).increment(bytes);
    shared.event(Severity::Info, EventKind::Collection, format!("prefix GC: {collected}"));
}
