//! Verify: the store read again, everything recomputed, every damage named together with the points it hits.
//!
//! Checked are: epoch objects, openings, segments, packs and manifests (header MAC, place, chain hash, body digest), every
//! table, every frame, every piece of every record, the running record digest, and the manifest against the stream. What
//! cannot be seen from the store alone is the loss of its newest tail together with the manifest that named it: for that
//! a witness is needed, and without one the report says so.
//!
//! With a sample only a share of the segments, packs and maps is read whole ([`share`]), and the report says what share; with a
//! state file a verify that was killed goes on with what it has not read yet ([`state`]).

mod hits;
mod kept;
mod manifests;
mod maps;
mod packs;
mod report;
mod share;
mod state;
mod states;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use format::keys::Keys;
use format::manifest::{Manifest, Point, Promoted};
use format::object::ObjectHeader;
use format::pack::PackRef;
use model::{MachineName, PointId, RecordDigest, Selector, Seq};
use store::{LogPosition, Store, StoreError};

use super::history::refuse_trimmed;
use super::progress::tell;
use super::{ErrorKind, History, LoadOptions, ProgressFn, RecoverError, Stage};
use crate::maps::end_of;
use crate::segments;
use hits::Hits;
pub use hits::SeqRange;
pub use report::{AtReport, Coverage, Damage, Sample, VerifyReport, Witness, WrongPoint};
use share::Plan;
pub use share::Share;
use state::State;
pub use state::StateFile;
use stream::Walked;

/// Times everything is read again because objects were collected meanwhile.
const RUNS_MAX: u32 = 3;

/// First read of an object that is not read whole: holds header and table of all but the fullest segments.
const LOOK_BYTES: u64 = 64 << 10;

/// Damages described one by one; a store with more is described by the first of them and a note.
const DAMAGES_MAX: usize = 1000;

/// How to verify; by default everything is read, once, with nobody to tell.
#[derive(Clone, Default)]
pub struct VerifyOptions {
    /// A position to judge.
    pub at: Option<Selector>,
    /// What somebody outside the store remembers of its end.
    pub witness: Option<(Seq, RecordDigest)>,
    /// The share of segments, packs and maps to read whole; none for all.
    pub sample: Option<Share>,
    /// Which share that is; without one it is made up, and the report says it.
    pub seed: Option<u32>,
    /// What remembers how far it is, so that a verify that was killed goes on.
    pub state: Option<StateFile>,
    /// Is told of `Verifying`.
    pub progress: Option<ProgressFn>,
}

/// Damages while they are found, and what is read to find them.
struct Findings {
    plan: Plan,
    state: State,
    progress: Option<ProgressFn>,
    /// Bytes that are to be read, about.
    total: u64,
    found: Vec<(String, String, Hits)>,
    by_path: BTreeMap<String, usize>,
    notes: Vec<String>,
    left_out: u64,
    objects: u64,
    bytes: u64,
    segments: Coverage,
    maps: Coverage,
    packs: Coverage,
}

impl Findings {
    fn new(plan: Plan, state: State, progress: Option<ProgressFn>) -> Self {
        let total = plan.bytes(&state.seen);
        tell(&progress, Stage::Verifying, 0, total);
        let (found, by_path, notes) = (Vec::new(), BTreeMap::new(), Vec::new());
        let (segments, maps, packs) = (Coverage::default(), Coverage::default(), Coverage::default());
        let (left_out, objects, bytes) = (0, 0, 0);
        Self { plan, state, progress, total, found, by_path, notes, left_out, objects, bytes, segments, maps, packs }
    }

    /// Adds a damage; an object is named once, by what was wrong with it first. None when there are too many.
    fn damage(&mut self, path: &str, problem: impl ToString) -> Option<usize> {
        if let Some(index) = self.by_path.get(path) {
            return Some(*index);
        }
        if self.found.len() == DAMAGES_MAX {
            self.left_out += 1;
            return None;
        }
        self.found.push((path.to_owned(), problem.to_string(), Hits::default()));
        self.by_path.insert(path.to_owned(), self.found.len() - 1);
        Some(self.found.len() - 1)
    }

    fn hits(&mut self, damage: Option<usize>) -> Option<&mut Hits> {
        self.found.get_mut(damage?).map(|(_, _, hits)| hits)
    }

    fn read(&mut self, bytes: usize) {
        self.objects += 1;
        self.bytes += bytes as u64;
        tell(&self.progress, Stage::Verifying, self.bytes.min(self.total), self.total);
    }

    /// Names the object that an error is about.
    fn note_damage(&mut self, error: &RecoverError) {
        let (path, what) = match error {
            RecoverError::Damage { path, what } => (path, what.clone()),
            RecoverError::Store(StoreError::Damaged { path, source }) => (path, source.to_string()),
            RecoverError::Store(StoreError::Missing { path, because }) => (path, format!("missing, though {because}")),
            _ => return,
        };
        self.damage(path, format!("{what}; verify without --sample says what it hits"));
    }

    /// Whether an object is to be read whole now.
    fn reads_whole(&self, path: &str) -> bool {
        self.plan.draws(path) && !self.state.seen.holds(path)
    }
}

impl Coverage {
    /// An object was read.
    fn take(&mut self, bytes: u64, whole: bool, earlier: bool) {
        (self.objects, self.bytes) = (self.objects + 1, self.bytes + bytes);
        if whole || earlier {
            (self.whole_objects, self.whole_bytes) = (self.whole_objects + 1, self.whole_bytes + bytes);
        }
        self.earlier_objects += u64::from(earlier);
    }
}

/// A point that damage may hit.
struct KnownPoint {
    seq: Seq,
    id: String,
}

/// Reads everything of a machine again, or a share of it. Damage is a report, not an error. Errors: the store does not
/// answer, or holds no such machine; `VerifyState` and `File`.
pub async fn verify(
    store: &Store,
    keys: Arc<Keys>,
    machine: &MachineName,
    options: VerifyOptions,
) -> Result<VerifyReport, RecoverError> {
    store::open_vault(store, &keys).await?;
    let VerifyOptions { at, mut witness, sample, seed, state, progress } = options;
    let (vault, asked) = (keys.vault().0, witness.is_some());
    let mut listed = store.list(&segments::machine_prefix(machine)).await?;
    if listed.is_empty() {
        return Err(super::unknown(store, machine).await?);
    }
    let mut state = State::open(state, vault, machine, sample, seed).await?;
    // What an earlier life of this verify saw, it must find again.
    witness = witness.or(state.seen.head);
    let mut run = 1;
    loop {
        let before = collectable(store, &keys, machine).await;
        let plan = Plan::of(machine, listed, state.goal.draw);
        let mut findings = Findings::new(plan, state, progress.clone());
        let report = check(store, &keys, machine, at, witness, &mut findings).await;
        state = findings.state;
        let Ok(mut report) = report else {
            state.save().await?;
            return report;
        };
        // What was listed and then not there may have been collected: then the bound below which objects go has moved.
        if report.clean() || run == RUNS_MAX || collectable(store, &keys, machine).await == before {
            if !asked {
                say_unwitnessed(&mut report);
            }
            state.remove().await?;
            return Ok(report);
        }
        run += 1;
        listed = store.list(&segments::machine_prefix(machine)).await?;
    }
}

/// Nobody outside the store was asked: what an earlier life of this verify saw confirms nothing, though it may differ.
fn say_unwitnessed(report: &mut VerifyReport) {
    if matches!(report.witness, Witness::None | Witness::Confirmed { .. }) {
        report.witness = Witness::None;
        let note = "no witness was given: the loss of the newest tail of the log cannot be excluded; compare the head \
                    with what the agent or control plane remembers (--head)";
        report.notes.push(note.to_owned());
    }
}

/// What moves when objects may be collected: epochs of manifest log and stream, the horizon, the points before it, packs.
type Collectable = (u64, u64, Option<Promoted>, Vec<PointId>, Vec<PackRef>);

/// As of now; none when the manifest cannot be read.
async fn collectable(store: &Store, keys: &Arc<Keys>, machine: &MachineName) -> Option<Collectable> {
    let log = crate::manifest::log(store, keys, machine);
    let newest = log.read_newest().await.ok()?;
    let manifest = log.manifest_of(&newest.entries).ok()?;
    let kept = manifest.point_maps.keys().copied().collect();
    Some((newest.end.position.epoch, manifest.folded().0, manifest.horizon, kept, manifest.packs))
}

async fn check(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    at: Option<Selector>,
    head_witness: Option<(Seq, RecordDigest)>,
    findings: &mut Findings,
) -> Result<VerifyReport, RecoverError> {
    let manifest = manifests::check(store, keys, machine, findings).await?;
    if manifest.last().is_none() {
        refuse_trimmed(store, keys, machine).await?;
    }
    let head_witness = witness_in_reach(&manifest, head_witness, findings);
    let witness_seq = head_witness.map(|(seq, _)| seq);
    let kept = kept::check(store, keys, machine, &manifest, findings).await?;
    let start = stream::Start {
        end: manifest.horizon.as_ref().map(end_of).unwrap_or_default(),
        manifest: &manifest,
        promoted: manifest.ends.iter().map(|end| (end.epoch, end.slot)).collect(),
        lost: kept.lost,
    };
    let mut walked = stream::check(store, keys, machine, start, witness_seq, findings).await?;
    let segments = maps::check(store, keys, machine, &manifest, &kept.maps, findings).await?;
    let mut points = std::mem::take(&mut walked.points);
    for segment in &segments {
        let position = LogPosition { epoch: segment.epoch, slot: segment.slot };
        let path = crate::manifest::promoted_path(machine, segment);
        if walked.segments.get(&position).is_some_and(|found| found != segment) {
            findings.damage(&path, "it is not the segment that the manifest promoted");
        }
    }
    for point in &manifest.points {
        points.push(KnownPoint { seq: point.position.seq, id: point.id.to_string() });
    }
    note_left_out(findings);
    let witness = judge_witness(head_witness, walked.head.position.seq, walked.witnessed);
    let asked = match at {
        Some(selector) => resolve_at(store, keys, machine, &selector, &points, findings).await?,
        None => None,
    };
    points.retain(|point| walked.validity.contains(point.seq));
    let mut wrong_points: Vec<_> = manifest.points.iter().filter_map(|point| wrong(point, &walked)).collect();
    let mut states_reckoned = 0;
    if !walked.undecided {
        let (other, reckoned) = states::check(store, keys, machine, &manifest, findings).await?;
        (states_reckoned, _) = (reckoned, wrong_points.extend(other));
    }
    let damages = conclude(findings, walked.head.position.seq, &points);
    let hit = |seq: Seq| damages.iter().any(|d| d.ranges.iter().any(|r| r.from <= seq && seq <= r.to));
    Ok(VerifyReport {
        machine: machine.clone(),
        objects: findings.objects,
        bytes: findings.bytes,
        sample: findings.state.goal.draw.map(|draw| Sample { share: draw.share.to_string(), seed: draw.seed }),
        segments: findings.segments,
        maps: findings.maps,
        packs: findings.packs,
        head_seq: walked.head.position.seq,
        head_digest: walked.head.digest.to_string(),
        at: asked.map(|seq| AtReport { seq, recoverable: walked.validity.contains(seq) && !hit(seq) }),
        witness,
        wrong_points,
        states_reckoned,
        notes: std::mem::take(&mut findings.notes),
        damages,
    })
}

/// A witness of a position before the horizon cannot be asked: the records that led there are gone.
fn witness_in_reach(
    manifest: &Manifest,
    witness: Option<(Seq, RecordDigest)>,
    findings: &mut Findings,
) -> Option<(Seq, RecordDigest)> {
    let horizon = manifest.horizon.as_ref().map_or(Seq::ZERO, |last| last.head.position.seq);
    let (seq, _) = witness?;
    if seq > Seq::ZERO && seq <= horizon {
        let note =
            format!("the witness saw the log up to seq:{seq}, which lies before the horizon: it says nothing any more");
        findings.notes.push(note);
        return None;
    }
    witness
}

/// What the stream says against a point of the manifest, as far as it can be read.
fn wrong(point: &Point, walked: &Walked) -> Option<WrongPoint> {
    let seq = point.position.seq;
    let digest = walked.point_digests.get(&seq);
    let chain = point.made.and_then(|made| Some((made.chain, walked.chain_at(seq)?)));
    let problem = match (digest, chain) {
        (Some(found), _) if *found != point.digest => "it names other records than the stream holds",
        (_, Some((stated, found))) if stated != found => "it was made of another segment than the stream holds there",
        _ => return None,
    };
    Some(WrongPoint { id: point.id.to_string(), seq, problem })
}

fn note_left_out(findings: &mut Findings) {
    if findings.left_out > 0 {
        findings.notes.push(format!("{} more damaged objects are not listed", findings.left_out));
    }
}

fn judge_witness(witness: Option<(Seq, RecordDigest)>, stored: Seq, found: Option<RecordDigest>) -> Witness {
    match witness {
        None => Witness::None,
        Some((seq, _)) if seq > stored => Witness::TailLost { witnessed: seq, stored },
        Some((seq, digest)) if seq == Seq::ZERO || found == Some(digest) => Witness::Confirmed { seq },
        Some((seq, _)) => Witness::Differs { seq },
    }
}

async fn resolve_at(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    selector: &Selector,
    points: &[KnownPoint],
    findings: &mut Findings,
) -> Result<Option<Seq>, RecoverError> {
    let listed = |id: &str| points.iter().find(|point| point.id == id).map(|point| point.seq);
    match selector {
        Selector::Seq(seq) => return Ok(Some(*seq)),
        Selector::Id(id) if listed(&id.to_string()).is_some() => return Ok(listed(&id.to_string())),
        _ => {}
    }
    let loaded = History::load(store, keys.clone(), machine, LoadOptions::default()).await;
    let resolved = match loaded {
        Ok(history) => history.resolve(selector, None).await,
        Err(error) => Err(error),
    };
    match resolved {
        Ok(resolved) => Ok(Some(resolved.position.seq)),
        Err(error) if error.kind() == ErrorKind::Damage => {
            findings.notes.push(format!("{selector} cannot be resolved in a damaged stream: name a position by seq:N"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn conclude(findings: &mut Findings, end: Seq, points: &[KnownPoint]) -> Vec<Damage> {
    let found = std::mem::take(&mut findings.found).into_iter().map(|(path, problem, hits)| {
        let ranges = hits.finish(end);
        let within = |seq: Seq| ranges.iter().any(|range| range.from <= seq && seq <= range.to);
        let mut hit: Vec<_> = points.iter().filter(|point| within(point.seq)).map(|p| (p.seq, p.id.clone())).collect();
        hit.sort();
        hit.dedup();
        Damage { path, problem, ranges, points: hit.into_iter().map(|(_, id)| id).collect() }
    });
    found.collect()
}

/// Epoch objects of a log: each must be there and whole.
async fn check_epochs(
    store: &Store,
    keys: &Keys,
    machine: &MachineName,
    log: format::object::LogKind,
    epochs: &[u64],
    findings: &mut Findings,
) -> Result<(), RecoverError> {
    use format::object::{ObjectKind, open_small};
    for epoch in epochs {
        let path = segments::epoch_path(machine, log, *epoch);
        let place = super::walk::place(machine, log, LogPosition { epoch: *epoch, slot: 0 });
        match fetch(store, &path, findings).await? {
            None => findings.damage(&path, "missing: epochs are never skipped and never deleted"),
            Some(object) => match open_small(keys, ObjectKind::Epoch, &place, &object) {
                Ok(_) => None,
                Err(error) => findings.damage(&path, error),
            },
        };
    }
    Ok(())
}

/// An object, whole. One that is refused for its size is damage, not an error.
async fn fetch(store: &Store, path: &str, findings: &mut Findings) -> Result<Option<bytes::Bytes>, RecoverError> {
    match store.get(path).await {
        Ok(Some(object)) => {
            findings.read(object.len());
            Ok(Some(object))
        }
        Ok(None) => Ok(None),
        Err(store::StoreError::Damaged { source, .. }) => {
            findings.damage(path, source);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// An object of the bulk, read as the plan says.
struct Got {
    bytes: bytes::Bytes,
    /// All of it; else header and table alone.
    whole: bool,
    /// An earlier life of this verify read all of it.
    earlier: bool,
}

/// A segment, a pack or a map: whole if it is drawn and was not read before, else header and table.
async fn obtain(store: &Store, keys: &Keys, path: &str, findings: &mut Findings) -> Result<Option<Got>, RecoverError> {
    if !findings.reads_whole(path) {
        let Some(bytes) = look(store, keys, path, findings).await? else { return Ok(None) };
        let replaced = ObjectHeader::hash(&bytes).is_ok_and(|hash| findings.state.was_replaced(path, &hash));
        if !replaced {
            return Ok(Some(Got { bytes, whole: false, earlier: findings.plan.draws(path) }));
        }
    }
    let whole = fetch(store, path, findings).await?;
    Ok(whole.map(|bytes| Got { bytes, whole: true, earlier: false }))
}

/// Header and table of an object, as far as they are there.
async fn look(
    store: &Store,
    keys: &Keys,
    path: &str,
    findings: &mut Findings,
) -> Result<Option<bytes::Bytes>, RecoverError> {
    let Some(first) = store.get_range(path, 0..LOOK_BYTES).await? else { return Ok(None) };
    let have = first.len() as u64;
    let Ok(header) = ObjectHeader::parse(keys, &first) else {
        findings.read(first.len());
        return Ok(Some(first));
    };
    let need = segments::data_start(&header).min(header.total_bytes);
    let bytes = match need <= have {
        true => first,
        false => {
            let rest = store.get_range(path, have..need).await?.unwrap_or_default();
            [first, rest].concat().into()
        }
    };
    findings.read(bytes.len());
    if let Some(size) = findings.plan.size(path).filter(|size| *size != header.total_bytes) {
        findings.damage(path, format!("it has {size} bytes, and by its header {}", header.total_bytes));
    }
    Ok(Some(bytes))
}
