//! Garbage collection by the applier that owns the manifest log (rule 6 of docs/rfcs/0001-epoch-log.md, and
//! docs/rfcs/0006-horizon.md for segments and maps), and the making of packs (docs/rfcs/0009-packs.md); `[applier] gc`.
//!
//! A pass lists everything of a machine. So it follows our own opening or a move of the horizon, or comes once an hour if anything
//! was acknowledged meanwhile; it is bounded, so that promotion waits for little, and what is left comes a
//! minute later. Packs are made by what the same pass has listed, and what they make needless goes with the next one. A doubt
//! stops the pass, not the applier: what is not collected does no harm.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use format::keys::Keys;
use model::{EventKind, MachineName, PointId, Severity};
use probe::Rules;
use store::{CollectError, Collected, ConsumerList, EpochLog, LogPosition, Plan, Store, StoreError};
use tokio::time::Instant;

use crate::applier::Shared;
use crate::consumers::Consuming;
use crate::manifest::ManifestOwner;
use crate::maps::Maps;
use crate::needed::Marks;
use crate::packs::{Packing, Repacked, Sources};
use crate::recover::{RecoverError, stream_log, unknown};
use crate::replica::describe;
use crate::{ApplierError, manifest, needed};

/// Looks of the policy for each pass that nothing in particular asks for.
const SELDOM: u32 = 60;

/// Objects deleted by one pass.
const PASS_OBJECTS_MAX: usize = 512;

/// When to collect next, and what stood in the way last.
pub(crate) struct Collection {
    /// There is something to delete for sure, or very likely.
    due: bool,
    /// Something was acknowledged since the last pass.
    acknowledged: bool,
    passed_at: Option<Instant>,
    trouble: Option<String>,
    marked: Marked,
    packing: Packing,
}

impl Collection {
    /// Our own opening is acknowledged: older manifest epochs may go.
    pub fn new() -> Self {
        let (marked, packing) = (Marked::default(), Packing::default());
        Self { due: true, acknowledged: true, passed_at: None, trouble: None, marked, packing }
    }

    /// A commit was acknowledged.
    pub fn acknowledged(&mut self) {
        self.acknowledged = true;
    }

    /// The horizon moved, or older manifest epochs were replaced.
    pub fn something_to_gain(&mut self) {
        self.due = true;
    }

    /// Whether it is time for a pass.
    pub fn is_due(&self, every: Duration) -> bool {
        let rested = |rest: Duration| self.passed_at.is_none_or(|at| at.elapsed() >= rest);
        self.due && rested(every) || self.acknowledged && rested(every * SELDOM)
    }

    /// Runs a pass, and gives what the next commit is to name. Errors: `Fenced` alone.
    pub async fn run(
        &mut self,
        shared: &Shared,
        owner: &ManifestOwner,
        stream: &EpochLog,
        maps: &Arc<Maps>,
        consuming: &mut Consuming,
    ) -> Result<Repacked, ApplierError> {
        let passed = self.pass(shared, owner, stream, maps, consuming).await;
        self.passed_at = Some(Instant::now());
        match passed {
            Ok((collected, mut repacked)) => {
                (self.due, self.acknowledged) = (collected.left > 0 || repacked.more, false);
                tell(shared, &collected);
                let trouble = repacked.trouble.take();
                let trouble = trouble.map(|error| format!("what is damaged is not packed: {}", describe(&error)));
                self.trouble(shared, trouble);
                Ok(repacked)
            }
            Err(PassError::Collect(CollectError::Store(error @ StoreError::Fenced { .. }))) => Err(error.into()),
            Err(error) => {
                let text = format!(
                    "garbage collection stopped and deletes no more until this is settled: {}",
                    describe(&error)
                );
                self.trouble(shared, Some(text));
                Ok(Repacked::default())
            }
        }
    }

    /// Tells what stands in the way, once.
    fn trouble(&mut self, shared: &Shared, text: Option<String>) {
        if let Some(text) = text.as_ref().filter(|text| self.trouble.as_ref() != Some(text)) {
            shared.event(Severity::Warning, EventKind::Collection, text.clone());
        }
        self.trouble = text;
    }

    async fn pass(
        &mut self,
        shared: &Shared,
        owner: &ManifestOwner,
        stream: &EpochLog,
        maps: &Arc<Maps>,
        consuming: &mut Consuming,
    ) -> Result<(Collected, Repacked), PassError> {
        let rules = shared.rules.applier;
        let marks = self.marked.marks(owner, maps, rules).await?;
        let needed = marks.as_ref().map(|marks| marks.needed.clone());
        let mut plan = owner.writer().plan_collection(stream, needed).await?;
        if shared.store.cache().is_none() {
            // Consumers elsewhere may need what is garbage here: asked behind the look that the plan rests on.
            plan.hold_behind(consuming.agree(plan.last_epoch(), rules).await.map_err(CollectError::from)?);
        }
        for garbage in plan.garbage.iter().take(PASS_OBJECTS_MAX) {
            tracing::debug!(machine = %stream.machine, "{}", plan.explain(garbage));
        }
        let mut collected = owner.writer().collect(&plan, PASS_OBJECTS_MAX).await.map_err(CollectError::from)?;
        collected.left += consuming.trim_cache(shared, owner.manifest(), PASS_OBJECTS_MAX).await?;
        let Some(marks) = marks else { return Ok((collected, Repacked::default())) };
        let from = Sources {
            store: &shared.store,
            keys: &shared.keys,
            machine: &shared.machine,
            named: &owner.manifest().packs.as_slice().into(),
            marks: &marks,
            kept: &plan.kept,
            pack_bytes: shared.config.pack_bytes,
            rules,
        };
        Ok((collected, self.packing.step(owner.epoch(), &from).await?))
    }
}

/// What the applier of a machine would delete now with `gc` on, found without owning anything. Positions that the journal window
/// has left while no applier moved the horizon are not in it; what consumers hold is told apart. Errors: as recovery has them, and whatever is in doubt.
pub async fn preview_collection(store: &Store, keys: &Arc<Keys>, machine: &MachineName) -> Result<Plan, ApplierError> {
    store::open_vault(store, keys).await?;
    let stream = stream_log(store, keys, machine);
    if !stream.exists().await? {
        return Err(unknown(store, machine).await?.into());
    }
    let log = manifest::log(store, keys, machine);
    let newest = log.read_newest().await?;
    let read = log.manifest_of(&newest.entries)?;
    let maps = Arc::new(Maps::new(store.clone(), keys.clone(), machine.clone()));
    let needed = needed::needed(&maps, newest.end.position.epoch, &read, Rules::ALL).await?;
    let mut plan = store::preview_collection(&log, &stream, needed.map(|marks| marks.needed)).await?;
    if store.cache().is_none() {
        let state = ConsumerList::new(store, keys.clone(), machine.clone()).read().await?;
        plan.hold_behind(state.lowest().map_or(u64::MAX, |lowest| lowest.saturating_sub(1)));
    }
    Ok(plan)
}

/// A pass was not finished; what it did stays done.
#[derive(Debug, thiserror::Error)]
enum PassError {
    /// A doubt, or the store.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// A map that says what is needed cannot be read.
    #[error(transparent)]
    Mark(#[from] RecoverError),
    /// The cache store cannot be trimmed.
    #[error(transparent)]
    Trim(#[from] ApplierError),
}

/// What was marked last. Every run of every map up to the horizon is read for it, so it is done anew only when there is something
/// to be gained: the horizon moved, or points before it went.
#[derive(Default)]
struct Marked {
    points: BTreeSet<PointId>,
    marks: Option<Arc<Marks>>,
}

impl Marked {
    async fn marks(
        &mut self,
        owner: &ManifestOwner,
        maps: &Arc<Maps>,
        rules: Rules,
    ) -> Result<Option<Arc<Marks>>, RecoverError> {
        let manifest = owner.manifest();
        let horizon = manifest.horizon.as_ref().map(|last| LogPosition { epoch: last.epoch, slot: last.slot });
        let same = self.marks.as_ref().map(|marks| marks.needed.horizon) == horizon
            && self.points.iter().eq(manifest.point_maps.keys());
        if !same {
            *self = Self::default();
            self.marks = needed::needed(maps, owner.epoch(), manifest, rules).await?.map(Arc::new);
            self.points = manifest.point_maps.keys().copied().collect();
        }
        Ok(self.marks.clone())
    }
}

fn tell(shared: &Shared, collected: &Collected) {
    if collected.objects() == 0 {
        return;
    }
    let machine = shared.machine.to_string();
    let Collected { void, openings, manifests, segments, maps, packs, bytes, .. } = *collected;
    let logs = [("void", void), ("opening", openings), ("manifest", manifests)];
    let kinds = [("segment", segments), ("map", maps), ("pack", packs)].into_iter().chain(logs);
    for (kind, objects) in kinds {
        let counter =
            metrics::counter!("applier_collected_objects_total", "machine" => machine.clone(), "kind" => kind);
        counter.increment(objects);
    }
    metrics::counter!("applier_collected_bytes_total", "machine" => machine).increment(bytes);
    shared.event(Severity::Info, EventKind::Collection, format!("garbage collection: {collected}"));
}
