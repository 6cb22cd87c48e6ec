//! Who lives in the world: writers, readers, and appliers that fold and delete. Each is an ordinary user of the public
//! API, and may be killed at any `await`.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use format::manifest::{Manifest, ManifestCommit, Promoted};
use format::object::{LogKind, ObjectHash, ObjectId, ObjectKind, Opening, Place, SmallObject, open_small, seal_small};
use format::segment::{Commit, FrameSealer, SealedSegment, assemble};
use futures::stream::{FuturesUnordered, StreamExt};
use model::{LogHead, MachineName, Mark, MarkKind, Position, Record, RecordBody, Seq, Timestamp};
use store::{
    EpochLog, Genesis, LogEnd, LogEntry, LogPosition, LogReader, LogWriter, ManifestBase, Next, ReadMode, StoreError,
};

use crate::collectors;
use crate::sim::{Bias, Removed, World};

pub fn machine() -> MachineName {
    "m1".parse().expect("a name")
}

pub fn manifest_log(world: &World) -> EpochLog {
    let base = Arc::new(Genesis);
    EpochLog { store: world.store(), keys: world.keys.clone(), machine: machine(), kind: LogKind::Manifest, base }
}

pub fn stream_log(world: &World) -> EpochLog {
    let base = Arc::new(ManifestBase::with_rules(manifest_log(world), world.manifest_rules()));
    EpochLog { store: world.store(), keys: world.keys.clone(), machine: machine(), kind: LogKind::Stream, base }
}

/// The stream as its writers see it.
pub fn writers_log(world: &World) -> EpochLog {
    match world.bias {
        Bias::Collecting => EpochLog { base: Arc::new(Genesis), ..stream_log(world) },
        _ => stream_log(world),
    }
}

/// An actor's end is its own affair, unless it says that the log is broken.
pub fn report(world: &World, who: &str, result: Result<(), StoreError>) {
    if let Err(error @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) = result {
        world.fail(format!("{who} found the log broken: {}", kind_of(&error)));
    }
}

fn kind_of(error: &StoreError) -> &'static str {
    match error {
        StoreError::Damaged { .. } => "damaged",
        StoreError::Missing { .. } => "missing",
        _ => "other",
    }
}

/// The next segment of one to three records.
fn segment(world: &World, end: &LogEnd, position: LogPosition) -> SealedSegment {
    let count = world.with(|r| 1 + r.rng.below(3));
    let mark = || Mark { kind: MarkKind::Crash, id: [7; 16], label: String::new() };
    let first = end.head.position.seq.0 + 1;
    let records: Vec<_> = (first..first + count)
        .map(|seq| Record { seq: Seq(seq), time: Timestamp(seq), map_version: 0, body: RecordBody::Mark(mark()) })
        .collect();
    let last = first + count - 1;
    let head =
        LogHead { position: Position { seq: Seq(last), ..end.head.position }, time: Timestamp(last), ..end.head };
    let LogPosition { epoch, slot } = position;
    let place = Place { machine: Some(machine()), log: Some(LogKind::Stream), epoch, slot };
    let sealer = FrameSealer::new(&world.keys, ObjectId::random());
    let commit = Commit { place, prev_hash: end.hash, head, gc_seen: 0 };
    assemble(&world.keys, &sealer, commit, Vec::new(), Vec::new(), records)
}

pub async fn writer(world: World) {
    let result = write(&world).await;
    report(&world, "writer", result);
}

/// Puts one slot until it is known to be there.
pub async fn put(writer: &LogWriter, slot: u64, parts: Vec<Bytes>) -> (u64, Result<(), StoreError>) {
    loop {
        match writer.put(slot, parts.clone()).await {
            Err(StoreError::Unclear { .. } | StoreError::Unavailable { .. }) => {}
            other => return (slot, other),
        }
    }
}

async fn write(world: &World) -> Result<(), StoreError> {
    let writer = writers_log(world).attach_with(world.stream_rules()).await?.open(Vec::new()).await?;
    let mut end = writer.opening_end();
    let (mut flying, mut acked) = (FuturesUnordered::new(), 0);
    loop {
        while flying.len() < world.window {
            let position = end.position.next_slot();
            let sealed = segment(world, &end, position);
            end = LogEnd { position, hash: sealed.hash, head: sealed.header.head };
            flying.push(put(&writer, position.slot, sealed.parts));
        }
        let (slot, landed) = flying.next().await.expect("something is in flight");
        landed?;
        if world.chance(0.03) {
            world.pause(100, 600).await;
        }
        if world.removed == Removed::AckInOrder {
            writer.look().await?;
            world.with(|r| r.acked.push(LogPosition { epoch: writer.epoch(), slot }));
            continue;
        }
        let through = writer.acknowledge().await?;
        let newly = (acked + 1..=through).map(|slot| LogPosition { epoch: writer.epoch(), slot });
        world.with(|r| r.acked.extend(newly));
        acked = through;
    }
}

/// Follows the stream as any consumer does.
pub struct Follower<'a> {
    world: &'a World,
    log: EpochLog,
    mode: ReadMode,
    reader: LogReader,
    /// Read by the names that a manifest gives, before the reader goes on.
    named: VecDeque<LogEntry>,
}

impl<'a> Follower<'a> {
    pub fn new(world: &'a World, from: LogEnd, mode: ReadMode) -> Self {
        let log = stream_log(world);
        let reader = LogReader::with_rules(log.clone(), from, mode, world.stream_rules());
        Self { world, log, mode, reader, named: VecDeque::new() }
    }

    /// The next entry, however long it takes.
    pub async fn next(&mut self) -> Result<LogEntry, StoreError> {
        loop {
            if let Some(entry) = self.named.pop_front() {
                self.world.with(|r| r.consumed.push(entry.end()));
                return Ok(entry);
            }
            if self.world.chance(0.05) {
                self.world.pause(50, 500).await;
            }
            match self.reader.next().await {
                Ok(Next::Entry(entry)) => {
                    self.world.with(|r| r.consumed.push(entry.end()));
                    return Ok(*entry);
                }
                Ok(Next::Folded(end)) => {
                    let mut end = end;
                    if self.world.bias == Bias::Collecting {
                        self.named = collectors::by_name(self.world, &self.log, self.reader.end(), self.mode).await?;
                        end = self.named.back().map_or(end, LogEntry::end);
                    }
                    self.reader = LogReader::with_rules(self.log.clone(), end, self.mode, self.world.stream_rules());
                }
                Ok(Next::End | Next::Unopened { .. }) | Err(StoreError::Unavailable { .. }) => {
                    self.world.pause(5, 30).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

pub async fn reader(world: World, number: usize) {
    let mode = if number == 0 { ReadMode::Table } else { ReadMode::Whole };
    let mut follower = Follower::new(&world, LogEnd::default(), mode);
    loop {
        if let Err(error) = follower.next().await {
            return report(&world, "reader", Err(error));
        }
    }
}

pub async fn applier(world: World) {
    let result = apply(&world).await;
    report(&world, "applier", result);
}

pub fn promoted(entry: &LogEntry) -> Promoted {
    let LogPosition { epoch, slot } = entry.position;
    let (id, head, bytes) = (entry.header.id, entry.header.head, entry.header.total_bytes);
    Promoted { id, epoch, slot, hash: entry.hash, head, bytes }
}

/// The segments that the newest manifest names.
pub fn named_by(world: &World, entries: &[LogEntry]) -> Vec<Promoted> {
    let mut named = Vec::new();
    for entry in entries {
        let LogPosition { epoch, slot } = entry.position;
        let place = Place { machine: Some(machine()), log: Some(LogKind::Manifest), epoch, slot };
        let open = |kind| open_small(&world.keys, kind, &place, &entry.bytes).expect("accepted entries open").1;
        match slot {
            0 => {
                let opening = Opening::decode(&open(ObjectKind::Opening)).expect("an opening");
                named = Manifest::decode(&opening.state).expect("a manifest").segments;
            }
            _ => named.extend(ManifestCommit::decode(&open(ObjectKind::Manifest)).expect("a commit").segments),
        };
    }
    named
}

/// Where folding goes on.
pub fn end_of(last: Option<&Promoted>) -> LogEnd {
    last.map_or(LogEnd::default(), |p| LogEnd {
        position: LogPosition { epoch: p.epoch, slot: p.slot },
        hash: p.hash,
        head: p.head,
    })
}

async fn apply(world: &World) -> Result<(), StoreError> {
    let log = manifest_log(world);
    let attached = log.attach_with(world.manifest_rules()).await?;
    // All that folding needs to know is the last segment named.
    let last = named_by(world, attached.newest_entries()).pop();
    let from = end_of(last.as_ref());
    let state = Manifest { segments: last.into_iter().collect(), ..Manifest::default() };
    let writer = attached.open(state.encode()).await?;
    delete(world, "manifest", LogPosition { epoch: writer.epoch() - 1, slot: u64::MAX }).await?;
    let mut end = writer.opening_end();
    let mut follower = Follower::new(world, from, ReadMode::Table);
    loop {
        let entry = follower.next().await?;
        if entry.position.slot == 0 || !world.chance(0.35) {
            continue;
        }
        let position = end.position.next_slot();
        let object = commit(world, &log, position, end.hash, vec![promoted(&entry)]);
        let hash = format::object::ObjectHeader::hash(&object).expect("a header");
        put(&writer, position.slot, vec![object]).await.1?;
        writer.look().await?;
        end = LogEnd { position, hash, head: LogHead::default() };
        world.with(|r| r.manifests.push(entry.end()));
        delete(world, "stream", entry.position).await?;
    }
}

pub fn commit(
    world: &World,
    log: &EpochLog,
    position: LogPosition,
    prev_hash: ObjectHash,
    segments: Vec<Promoted>,
) -> Bytes {
    let LogPosition { epoch, slot } = position;
    let body = ManifestCommit { segments, ..ManifestCommit::default() }.encode();
    seal_small(
        &world.keys,
        &SmallObject {
            kind: ObjectKind::Manifest,
            place: Place { machine: Some(log.machine.clone()), log: Some(log.kind), epoch, slot },
            prev_hash,
            head: LogHead::default(),
            gc_seen: 0,
            body: &body,
        },
    )
}

/// Rule 6's second half: deletes most of what lies at or before `through`.
async fn delete(world: &World, log: &str, through: LogPosition) -> Result<(), StoreError> {
    let store = world.store();
    let doomed: Vec<String> = world.with(|r| {
        let LogPosition { epoch, slot } = through;
        let last = format!("machine/{}/{log}/seg/{epoch:016x}/{slot:016x}", machine());
        let first = format!("machine/{}/{log}/seg/", machine());
        r.archive.range(first..=last).map(|(path, _)| path.clone()).collect()
    });
    for path in doomed {
        let exists = object_store::ObjectStoreExt::head(&*world.inner, &path.as_str().into()).await.is_ok();
        if exists && world.chance(0.9) {
            store.delete(&path).await?;
        }
    }
    Ok(())
}

/// One last writer opens an epoch; its opening defines the accepted log. Returns that epoch.
pub async fn seal(world: &World) -> Result<u64, String> {
    for _ in 0..20 {
        let attached = writers_log(world).attach_with(world.stream_rules()).await;
        let opened = match attached {
            Ok(attached) => attached.open(Vec::new()).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(writer) => return Ok(writer.epoch()),
            Err(error @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) => {
                return Err(format!("sealer found the log broken: {}", kind_of(&error)));
            }
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(500)).await,
        }
    }
    Err("the log cannot be sealed".to_owned())
}
