//! Verify: the store read again, everything recomputed, every damage named together with the points it hits.
//!
//! Checked are: epoch objects, openings, segments and manifests (header MAC, place, chain hash, body digest), every
//! table, every frame, every piece of every record, the running record digest, and the manifest against the stream. What
//! cannot be seen from the store alone is the loss of its newest tail together with the manifest that named it: for that
//! a witness is needed, and without one the report says so.

mod hits;
mod kept;
mod manifests;
mod maps;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;

use format::keys::Keys;
use format::manifest::Promoted;
use model::{MachineName, PointId, RecordDigest, Selector, Seq};
use serde::Serialize;
use store::{LogPosition, Store};

use super::{ErrorKind, History, LoadOptions, ProgressFn, RecoverError};
use crate::maps::end_of;
use crate::segments;
use hits::Hits;
pub use hits::SeqRange;

/// Times everything is read again because objects were collected meanwhile.
const RUNS_MAX: u32 = 3;

/// Damages described one by one; a store with more is described by the first of them and a note.
const DAMAGES_MAX: usize = 1000;

/// An object that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its path in the store.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
    /// Positions that cannot be recovered whole because of it.
    pub ranges: Vec<SeqRange>,
    /// Recovery points among them, by id.
    pub points: Vec<String>,
}

/// What a witness says about the tail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Witness {
    /// None was given: loss of the newest tail cannot be excluded.
    None,
    /// The store holds what the witness saw.
    Confirmed {
        /// Up to where.
        seq: Seq,
    },
    /// The witness saw more than the store holds: the tail is lost.
    TailLost {
        /// What the witness saw.
        witnessed: Seq,
        /// Where the store ends.
        stored: Seq,
    },
    /// The store holds other records than the witness saw, or damage hides them.
    Differs {
        /// Where they differ at the latest.
        seq: Seq,
    },
}

/// Whether one position can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AtReport {
    /// The position.
    pub seq: Seq,
    /// Whether no damage hits it.
    pub recoverable: bool,
}

/// What verify found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Whose store.
    pub machine: MachineName,
    /// Objects read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Last record found.
    pub head_seq: Seq,
    /// Digest over record headers up to it, as `--head` takes it.
    pub head_digest: String,
    /// Everything that is wrong.
    pub damages: Vec<Damage>,
    /// What the witness says.
    pub witness: Witness,
    /// The position asked about.
    pub at: Option<AtReport>,
    /// What is not wrong but worth knowing.
    pub notes: Vec<String>,
}

impl VerifyReport {
    /// Nothing is wrong: no damage, and the witness (if there is one) agrees.
    pub fn clean(&self) -> bool {
        self.damages.is_empty() && matches!(self.witness, Witness::None | Witness::Confirmed { .. })
    }

    /// 0 when clean, else 3.
    pub fn exit_code(&self) -> u8 {
        if self.clean() { 0 } else { 3 }
    }
}

/// Damages while they are found.
#[derive(Default)]
struct Findings {
    found: Vec<(String, String, Hits)>,
    by_path: BTreeMap<String, usize>,
    notes: Vec<String>,
    left_out: u64,
    objects: u64,
    bytes: u64,
}

impl Findings {
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
    }
}

/// A point that damage may hit.
struct KnownPoint {
    seq: Seq,
    id: String,
    /// None for a point found in the stream itself.
    digest: Option<RecordDigest>,
}

/// Reads everything of a machine again. `at` asks about one position, `head_witness` is what somebody outside the store
/// remembers of its end. Damage is a report, not an error. Errors: the store does not answer, or holds no such machine.
pub async fn verify(
    store: &Store,
    keys: Arc<Keys>,
    machine: &MachineName,
    at: Option<Selector>,
    head_witness: Option<(Seq, RecordDigest)>,
    progress: Option<ProgressFn>,
) -> Result<VerifyReport, RecoverError> {
    let mut run = 1;
    loop {
        let before = collectable(store, &keys, machine).await;
        let report = verify_once(store, keys.clone(), machine, at, head_witness, progress.clone()).await?;
        // What was listed and then not there may have been collected: then the bound below which objects go has moved.
        if report.clean() || run == RUNS_MAX || collectable(store, &keys, machine).await == before {
            return Ok(report);
        }
        run += 1;
    }
}

/// What moves when objects may be collected: epochs of manifest log and stream, the horizon, the points before it.
type Collectable = (u64, u64, Option<Promoted>, Vec<PointId>);

/// As of now; none when the manifest cannot be read.
async fn collectable(store: &Store, keys: &Arc<Keys>, machine: &MachineName) -> Option<Collectable> {
    let log = crate::manifest::log(store, keys, machine);
    let newest = log.read_newest().await.ok()?;
    let manifest = log.manifest_of(&newest.entries).ok()?;
    let kept = manifest.point_maps.keys().copied().collect();
    Some((newest.end.position.epoch, manifest.folded().0, manifest.horizon, kept))
}

async fn verify_once(
    store: &Store,
    keys: Arc<Keys>,
    machine: &MachineName,
    at: Option<Selector>,
    head_witness: Option<(Seq, RecordDigest)>,
    progress: Option<ProgressFn>,
) -> Result<VerifyReport, RecoverError> {
    store::open_vault(store, &keys).await?;
    if store.list(&segments::machine_prefix(machine)).await?.is_empty() {
        return Err(super::unknown(store, machine).await?);
    }
    let mut findings = Findings::default();
    let manifest = manifests::check(store, &keys, machine, &mut findings).await?;
    let witness_seq = head_witness.map(|(seq, _)| seq);
    let kept = kept::check(store, &keys, machine, &manifest, &mut findings).await?;
    let start = stream::Start {
        end: manifest.horizon.as_ref().map(end_of).unwrap_or_default(),
        drains: &manifest.drains,
        promoted: manifest.ends.iter().map(|end| (end.epoch, end.slot)).collect(),
        lost: kept.lost,
    };
    let walked = stream::check(store, &keys, machine, start, witness_seq, &mut findings, progress).await?;
    let segments = maps::check(store, &keys, machine, &manifest, &kept.maps, &mut findings).await?;
    let mut points = walked.points;
    for segment in &segments {
        let position = LogPosition { epoch: segment.epoch, slot: segment.slot };
        let path = crate::manifest::promoted_path(machine, segment);
        if walked.segments.get(&position).is_some_and(|found| found != segment) {
            findings.damage(&path, "it is not the segment that the manifest promoted");
        }
    }
    for point in &manifest.points {
        points.push(KnownPoint { seq: point.position.seq, id: point.id.to_string(), digest: Some(point.digest) });
    }
    note_tail(&mut findings, &head_witness);
    let witness = judge_witness(head_witness, walked.head.position.seq, walked.witnessed);
    let asked = match at {
        Some(selector) => resolve_at(store, &keys, machine, &selector, &points, &mut findings).await?,
        None => None,
    };
    points.retain(|point| walked.validity.contains(point.seq));
    for point in &points {
        let stated = point.digest.zip(walked.point_digests.get(&point.seq).copied());
        if stated.is_some_and(|(stated, found)| stated != found) {
            findings
                .notes
                .push(format!("point {} in the manifest names other records than the stream holds", point.id));
        }
    }
    let damages = conclude(&mut findings, walked.head.position.seq, &points);
    let hit = |seq: Seq| damages.iter().any(|d| d.ranges.iter().any(|r| r.from <= seq && seq <= r.to));
    Ok(VerifyReport {
        machine: machine.clone(),
        objects: findings.objects,
        bytes: findings.bytes,
        head_seq: walked.head.position.seq,
        head_digest: walked.head.digest.to_string(),
        at: asked.map(|seq| AtReport { seq, recoverable: walked.validity.contains(seq) && !hit(seq) }),
        witness,
        notes: findings.notes,
        damages,
    })
}

fn note_tail(findings: &mut Findings, witness: &Option<(Seq, RecordDigest)>) {
    if witness.is_none() {
        let note = "no witness was given: the loss of the newest tail of the log cannot be excluded; compare the head \
                    with what the agent or control plane remembers (--head)";
        findings.notes.push(note.to_owned());
    }
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
