//! The stream: every object of its chain, every record of every segment.

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use format::FormatError;
use format::keys::Keys;
use format::manifest::{Manifest, Promoted};
use format::object::{LogKind, ObjectHash, ObjectHeader, ObjectId, ObjectKind, Opening, open_small};
use format::segment::{FrameInfo, SegmentRef, Table, open_frame};
use model::{DiskId, Extent, LogHead, MachineName, RecordDigest, Seq};
use probe::Rules;
use store::{LogEnd, LogPosition, Store};

use super::{Findings, Got, KnownPoint, check_epochs, fetch, obtain};
use crate::recover::walk::{place, skeleton};
use crate::recover::{RecoverError, Validity};
use crate::segments;

/// What the stream turned out to hold.
pub(super) struct Walked {
    /// State after the last record whose segment's header is whole.
    pub head: LogHead,
    pub validity: Validity,
    /// Whether where the log ends is not decided yet.
    pub undecided: bool,
    /// Marks and drain ends.
    pub points: Vec<KnownPoint>,
    /// Every whole segment as a manifest would name it.
    pub segments: BTreeMap<LogPosition, Promoted>,
    /// Digest at the witness's seq.
    pub witnessed: Option<RecordDigest>,
    /// Digests at the points asked about.
    pub point_digests: BTreeMap<Seq, RecordDigest>,
    /// By their last record, first record and chain hash of every segment whose header is whole.
    chain: BTreeMap<Seq, (Seq, ObjectHash)>,
}

impl Walked {
    /// Chain hash of the segment that holds a record.
    pub fn chain_at(&self, seq: Seq) -> Option<ObjectHash> {
        let (_, (first, hash)) = self.chain.range(seq..).next()?;
        (*first <= seq).then_some(*hash)
    }
}

/// Where records may get their bytes from.
struct Held {
    id: ObjectId,
    /// Plain bytes of each frame that opens.
    frames: BTreeMap<u32, u32>,
    /// The damage of those that do not.
    damage: Option<usize>,
}

/// The link of the chain before an object; none when the object before it cannot be read.
#[derive(Clone, Copy)]
struct Link {
    /// None behind an opening that was collected.
    hash: Option<ObjectHash>,
    head: LogHead,
}

struct Walk<'a> {
    store: &'a Store,
    keys: &'a Keys,
    machine: &'a MachineName,
    findings: &'a mut Findings,
    walked: Walked,
    held: BTreeMap<(MachineName, LogPosition), Option<Held>>,
    link: Option<Link>,
    /// Epoch of the object before, and the condemn list that it says.
    seen: Option<(u64, u64)>,
    witness: Option<Seq>,
    /// Points of the manifest.
    asked: BTreeSet<Seq>,
    /// Damages that may hit positions.
    hitting: BTreeSet<usize>,
    /// Digest before the next object; none behind one that cannot be read.
    digest: Option<RecordDigest>,
    /// Up to here the manifest names every segment, and openings of epochs below may be collected: of two stores the vault
    /// store must hold it.
    folded: LogPosition,
    vault: Store,
    /// How many are.
    collected: u64,
}

/// Where the walk begins, and what must be there.
pub(super) struct Start<'a> {
    /// The horizon.
    pub end: LogEnd,
    /// What the applier knows.
    pub manifest: &'a Manifest,
    /// Last slots of the epochs behind it that the manifest names.
    pub promoted: BTreeMap<u64, u64>,
    /// What reads from damaged segments at the horizon.
    pub lost: Vec<(usize, DiskId, Extent)>,
}

/// Checks the stream behind its horizon.
pub(super) async fn check(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    start: Start<'_>,
    witness: Option<Seq>,
    findings: &mut Findings,
) -> Result<Walked, RecoverError> {
    let log = LogKind::Stream;
    let promoted = &start.promoted;
    let skeleton = skeleton(store, keys, machine, log, start.end.position.epoch, promoted).await?;
    let folded = promoted.last_key_value().map_or(start.end.position, |(&epoch, &slot)| LogPosition { epoch, slot });
    let (old, new) = skeleton.epochs.split_at(skeleton.epochs.partition_point(|epoch| *epoch <= folded.epoch));
    check_epochs(&store.vault(), keys, machine, log, old, findings).await?;
    check_epochs(store, keys, machine, log, new, findings).await?;
    findings.notes.extend(skeleton.stray.iter().map(|path| format!("{path} is no object of ours")));
    if let Some(epoch) = skeleton.begun {
        let note = "is begun in this store and not finished: it holds nothing yet (the applier that copies it goes on)";
        findings.notes.push(format!("epoch {epoch} of the stream {note}"));
    }
    if let Some(epoch) = skeleton.unopened {
        findings
            .notes
            .push(format!("epoch {epoch} of the stream is not opened: where the log ends is not decided yet"));
    }
    if skeleton.void > 0 {
        let note = "objects lie behind the end of an epoch; they are void, left by writers that died (or, in the newest \
                    epoch, cut off by a missing slot that no manifest names)";
        findings.notes.push(format!("{} {note}", skeleton.void));
    }
    let mut walk = Walk::new(store, keys, machine, witness, findings);
    walk.begin(&start);
    walk.walked.undecided = skeleton.unopened.is_some();
    walk.asked = start.manifest.points.iter().map(|point| point.position.seq).collect();
    walk.folded = folded;
    for position in skeleton.slots {
        walk.object(position).await?;
        walk.findings.state.save_if_due().await?;
    }
    let (walked, collected) = (walk.walked, walk.collected);
    if collected > 0 {
        findings
            .notes
            .push(format!("{collected} openings below the folded epoch are gone; the manifest replaces them"));
    }
    Ok(walked)
}

impl<'a> Walk<'a> {
    fn new(
        store: &'a Store,
        keys: &'a Keys,
        machine: &'a MachineName,
        witness: Option<Seq>,
        findings: &'a mut Findings,
    ) -> Self {
        let walked = Walked {
            head: LogHead::default(),
            validity: Validity::default(),
            undecided: false,
            points: Vec::new(),
            segments: BTreeMap::new(),
            witnessed: None,
            point_digests: BTreeMap::new(),
            chain: BTreeMap::new(),
        };
        let link = Some(Link { hash: Some(ObjectHash::default()), head: LogHead::default() });
        let digest = Some(RecordDigest::default());
        let (held, hitting) = (BTreeMap::new(), BTreeSet::new());
        let (asked, folded, vault, collected) = (BTreeSet::new(), LogPosition::default(), store.vault(), 0);
        Self {
            store,
            keys,
            machine,
            findings,
            walked,
            held,
            link,
            seen: None,
            witness,
            asked,
            hitting,
            digest,
            folded,
            vault,
            collected,
        }
    }

    /// Takes over what lies before the horizon.
    fn begin(&mut self, start: &Start<'_>) {
        let LogEnd { hash, head, position } = start.end;
        if position.epoch == 0 {
            return;
        }
        self.link = Some(Link { hash: Some(hash), head });
        self.digest = Some(head.digest);
        self.walked.head = head;
        self.walked.validity = Validity::replay(&start.manifest.drains, head.position.seq, Rules::ALL);
        for (damage, disk, extent) in &start.lost {
            self.hitting.insert(*damage);
            if let Some(hits) = self.findings.hits(Some(*damage)) {
                hits.lose(*disk, *extent);
            }
        }
    }

    async fn object(&mut self, position: LogPosition) -> Result<(), RecoverError> {
        let path = segments::path(self.machine, LogKind::Stream, position);
        let store = if position <= self.folded { &self.vault } else { self.store };
        let found = match position.slot {
            0 => fetch(store, &path, self.findings).await?.map(|bytes| Got { bytes, whole: true, earlier: false }),
            _ => obtain(store, self.keys, &path, self.findings).await?,
        };
        match found {
            None if position.slot == 0 && position.epoch < self.folded.epoch => {
                self.collected += 1;
                self.link = self.link.map(|link| Link { hash: None, ..link });
            }
            None => {
                self.unreadable(position, &path, "missing, though the log goes on behind it or the manifest names it")
            }
            Some(object) => match self.header(position, &object.bytes) {
                Err(error) => self.unreadable(position, &path, error),
                Ok((header, hash)) => {
                    self.check_link(&path, &header);
                    self.check_seen(&path, &header);
                    match position.slot {
                        0 => self.opening(position, &path, &object.bytes),
                        _ => self.segment(position, &path, &header, hash, &object).await?,
                    }
                    self.link = Some(Link { hash: Some(hash), head: header.head });
                    self.walked.head = header.head;
                    self.digest = Some(header.head.digest);
                    self.findings.state.passed(header.head.position.seq, header.head.digest);
                }
            },
        }
        Ok(())
    }

    fn header(&self, position: LogPosition, object: &[u8]) -> Result<(ObjectHeader, ObjectHash), FormatError> {
        let header = ObjectHeader::parse(self.keys, object)?;
        let kind = if position.slot == 0 { ObjectKind::Opening } else { ObjectKind::Segment };
        header.expect_place(kind, &place(self.machine, LogKind::Stream, position))?;
        Ok((header, ObjectHeader::hash(object)?))
    }

    /// Nothing of the object can be used.
    fn unreadable(&mut self, position: LogPosition, path: &str, problem: impl ToString) {
        let damage = self.findings.damage(path, problem);
        if position.slot > 0 {
            let from = self.walked.head.position.seq.next();
            if let Some(hits) = self.findings.hits(damage) {
                hits.unknown_from(from);
            }
            let nothing = Held { id: ObjectId([0; 32]), frames: BTreeMap::new(), damage };
            self.held.insert((self.machine.clone(), position), Some(nothing));
        }
        self.link = None;
        self.digest = None;
    }

    fn check_link(&mut self, path: &str, header: &ObjectHeader) {
        let Some(link) = self.link else { return };
        let continues =
            link.hash.is_none_or(|hash| hash == header.prev_hash) && header.first_seq == link.head.position.seq.next();
        if !continues {
            let problem = "it does not continue the object before it: it is of another history, or was replaced";
            let damage = self.findings.damage(path, problem);
            if let Some(hits) = self.findings.hits(damage) {
                hits.unknown_from(header.first_seq);
            }
        }
    }

    /// An epoch answers for one condemn list from its opening to its end.
    fn check_seen(&mut self, path: &str, header: &ObjectHeader) {
        let now = (header.place.epoch, header.gc_seen);
        if self.seen.is_some_and(|before| before.0 == now.0 && before.1 != now.1) {
            self.findings.damage(path, "it answers for another condemn list than its epoch");
        }
        self.seen = Some(now);
    }

    fn opening(&mut self, position: LogPosition, path: &str, object: &[u8]) {
        let place = place(self.machine, LogKind::Stream, position);
        let opened = open_small(self.keys, ObjectKind::Opening, &place, object);
        if let Err(error) = opened.and_then(|(_, body)| Opening::decode(&body)) {
            self.findings.damage(path, error);
        }
    }

    async fn segment(
        &mut self,
        position: LogPosition,
        path: &str,
        header: &ObjectHeader,
        hash: ObjectHash,
        object: &Got,
    ) -> Result<(), RecoverError> {
        self.walked.chain.insert(header.head.position.seq, (header.first_seq, hash));
        self.findings.segments.take(header.total_bytes, object.whole, object.earlier);
        let (held, table) = self.contents(path, header, object);
        if object.whole && held.damage.is_none() {
            self.findings.state.found_whole(path, hash);
        }
        let damage = held.damage;
        self.held.insert((self.machine.clone(), position), Some(held));
        let Some(table) = table else {
            if let Some(hits) = self.findings.hits(damage) {
                hits.unknown_from(header.first_seq);
            }
            return Ok(());
        };
        let promoted = Promoted {
            id: header.id,
            epoch: position.epoch,
            slot: position.slot,
            hash,
            head: header.head,
            bytes: header.total_bytes,
            shared: header.shared,
        };
        self.walked.segments.insert(position, promoted);
        self.hold_references(position, &table).await?;
        self.records(position, path, header, &table);
        Ok(())
    }

    /// Opens table and frames; of an object that was not read whole the table, and its frames are taken for good. A body
    /// whose digest is wrong is still opened, to learn which frames are hit.
    fn contents(&mut self, path: &str, header: &ObjectHeader, object: &Got) -> (Held, Option<Table>) {
        let Got { bytes: object, whole, .. } = object;
        let mut damage = match header.check_body(object) {
            Err(error) if *whole => self.findings.damage(path, error),
            _ => None,
        };
        let mut frames = BTreeMap::new();
        let table = match segments::table(self.keys, header, object) {
            Ok(table) => Some(table),
            Err(error) => {
                damage = self.findings.damage(path, error);
                None
            }
        };
        for frame in table.iter().flat_map(|table| &table.frames) {
            let opened = if *whole { open(self.keys, header, frame, object) } else { Ok(()) };
            match opened {
                Ok(()) => {
                    frames.insert(frame.number, frame.plain_bytes);
                }
                Err(error) => damage = self.findings.damage(path, error),
            }
        }
        (Held { id: header.id, frames, damage }, table)
    }

    /// Segments of other epochs that are not walked and that records refer to are opened too, once.
    async fn hold_references(&mut self, from: LogPosition, table: &Table) -> Result<(), RecoverError> {
        for reference in &table.references {
            let position = LogPosition { epoch: reference.epoch, slot: reference.slot };
            let key = (reference.machine.clone(), position);
            let own = reference.machine == *self.machine && reference.epoch >= from.epoch;
            if own || self.held.contains_key(&key) {
                continue;
            }
            let path = segments::path(&reference.machine, LogKind::Stream, position);
            let held = match obtain(self.store, self.keys, &path, self.findings).await? {
                None => {
                    let damage = self.findings.damage(&path, "missing, though records of this machine refer to it");
                    Held { id: reference.id, frames: BTreeMap::new(), damage }
                }
                Some(object) => self.foreign(&path, reference, &object),
            };
            self.held.insert(key, Some(held));
        }
        Ok(())
    }

    fn foreign(&mut self, path: &str, reference: &SegmentRef, object: &Got) -> Held {
        let position = LogPosition { epoch: reference.epoch, slot: reference.slot };
        let header = ObjectHeader::parse(self.keys, &object.bytes).and_then(|header| {
            header.expect_place(ObjectKind::Segment, &place(&reference.machine, LogKind::Stream, position))?;
            Ok(header)
        });
        match header {
            Ok(header) => self.contents(path, &header, object).0,
            Err(error) => Held { id: reference.id, frames: BTreeMap::new(), damage: self.findings.damage(path, error) },
        }
    }
}

/// Checks a segment before the horizon by itself: its place, its table and every frame. None when it is whole.
pub(super) async fn check_kept(
    store: &Store,
    keys: &Keys,
    machine: &MachineName,
    position: LogPosition,
    findings: &mut Findings,
) -> Result<Option<Lost>, RecoverError> {
    let path = segments::path(machine, LogKind::Stream, position);
    let (damage, whole) = match obtain(&store.vault(), keys, &path, findings).await? {
        None => (findings.damage(&path, "missing, though maps of points name it"), BTreeSet::new()),
        Some(object) => {
            let mut walk = Walk::new(store, keys, machine, None, findings);
            match walk.header(position, &object.bytes) {
                Err(error) => (walk.findings.damage(&path, error), BTreeSet::new()),
                Ok((header, hash)) => {
                    walk.findings.segments.take(header.total_bytes, object.whole, object.earlier);
                    let held = walk.contents(&path, &header, &object).0;
                    if object.whole && held.damage.is_none() {
                        walk.findings.state.found_whole(&path, hash);
                    }
                    (held.damage, held.frames.into_keys().collect())
                }
            }
        }
    };
    Ok(damage.map(|damage| Lost { machine: machine.clone(), position, damage, whole }))
}

/// A damaged segment.
pub(super) struct Lost {
    /// Whose stream.
    pub machine: MachineName,
    pub position: LogPosition,
    /// Its damage.
    pub damage: usize,
    /// Frames that open all the same.
    pub whole: BTreeSet<u32>,
}

fn open(keys: &Keys, header: &ObjectHeader, frame: &FrameInfo, object: &Bytes) -> Result<(), FormatError> {
    let have = object.len() as u64;
    let start = segments::data_start(header).saturating_add(frame.offset);
    let need = start.saturating_add(u64::from(frame.sealed_bytes));
    if need > have {
        return Err(FormatError::Truncated { need, have });
    }
    open_frame(keys, header.id, frame, &object[start as usize..need as usize]).map(|_| ())
}
