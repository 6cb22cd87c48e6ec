//! Who lives in the world: writers, readers, and appliers that fold and delete. Each is an ordinary user of the public
//! API, and may be killed at any `await`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use format::manifest::{Manifest, ManifestCommit, Promoted};
use format::object::{LogKind, ObjectHash, ObjectId, ObjectKind, Opening, Place, SmallObject, open_small, seal_small};
use format::segment::{Commit, FrameSealer, SealedSegment, assemble};
use futures::stream::{FuturesUnordered, StreamExt};
use model::{LogHead, MachineName, Mark, MarkKind, Position, Record, RecordBody, Seq, Timestamp};
use store::{
    Base, EpochLog, Genesis, LogEnd, LogEntry, LogPosition, LogReader, LogWriter, ManifestBase, Next, ReadMode,
    StoreError,
};

use crate::sim::{Role, World};

pub fn machine() -> MachineName {
    "m1".parse().expect("a name")
}

pub fn manifest_log(world: &World, role: Role) -> EpochLog {
    let base = Arc::new(Genesis);
    EpochLog { store: world.store(role), keys: world.keys.clone(), machine: machine(), kind: LogKind::Manifest, base }
}

/// The base as every party has it, and what it must be: at least as new as what was acknowledged before it was asked.
struct Watched {
    world: World,
    base: ManifestBase,
}

#[async_trait]
impl Base for Watched {
    async fn newest(&self) -> Result<LogEnd, StoreError> {
        let acknowledged = self.world.with(|r| r.manifests.iter().map(|end| end.position).max().unwrap_or_default());
        let newest = self.base.newest().await?;
        if newest.position < acknowledged {
            self.world.fail("stale: an old manifest passed for the newest".to_owned());
        }
        Ok(newest)
    }
}

pub fn stream_log(world: &World, role: Role) -> EpochLog {
    let base = ManifestBase::with_rules(manifest_log(world, role), world.manifest_rules());
    let base = Arc::new(Watched { world: world.clone(), base });
    EpochLog { store: world.store(role), keys: world.keys.clone(), machine: machine(), kind: LogKind::Stream, base }
}

/// An actor's end is its own affair, unless it says that the log is broken.
fn report(world: &World, who: &str, result: Result<(), StoreError>) {
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
    let commit = Commit { place, prev_hash: end.hash, head, gc_seen: 0, shared: false };
    assemble(&world.keys, &sealer, commit, Vec::new(), Vec::new(), records)
}

pub async fn writer(world: World) {
    let result = write(&world).await;
    report(&world, "writer", result);
}

/// Puts one slot until it is known to be there, or the writer is fenced.
async fn put(writer: &LogWriter, slot: u64, parts: Vec<Bytes>) -> Result<(), StoreError> {
    loop {
        match writer.put(slot, parts.clone()).await {
            Err(StoreError::Unclear { .. } | StoreError::Unavailable { .. }) => {}
            other => return other,
        }
    }
}

async fn write(world: &World) -> Result<(), StoreError> {
    let writer = stream_log(world, Role::Writer).attach_with(world.stream_rules()).await?.open(Vec::new()).await?;
    let mut end = writer.opening_end();
    let (mut flying, mut acked) = (FuturesUnordered::new(), 0);
    loop {
        while flying.len() < world.window {
            let position = end.position.next_slot();
            let sealed = segment(world, &end, position);
            end = LogEnd { position, hash: sealed.hash, head: sealed.header.head };
            flying.push(put(&writer, position.slot, sealed.parts));
        }
        flying.next().await.expect("something is in flight")?;
        if world.chance(0.03) {
            world.pause(100, 600).await;
        }
        let through = writer.acknowledge().await?;
        let newly = (acked + 1..=through).map(|slot| LogPosition { epoch: writer.epoch(), slot });
        world.with(|r| r.acked.extend(newly));
        acked = through;
    }
}

/// Follows the stream as any consumer does.
struct Follower<'a> {
    world: &'a World,
    log: EpochLog,
    mode: ReadMode,
    reader: LogReader,
}

impl<'a> Follower<'a> {
    fn new(world: &'a World, role: Role, from: LogEnd, mode: ReadMode) -> Self {
        let log = stream_log(world, role);
        let reader = LogReader::with_rules(log.clone(), from, mode, world.stream_rules());
        Self { world, log, mode, reader }
    }

    /// The next entry, however long it takes.
    async fn next(&mut self) -> Result<LogEntry, StoreError> {
        loop {
            if self.world.chance(0.05) {
                self.world.pause(50, 500).await;
            }
            match self.reader.next().await {
                Ok(Next::Entry(entry)) => {
                    self.world.with(|r| r.consumed.push(entry.end()));
                    return Ok(*entry);
                }
                Ok(Next::Folded(end)) => {
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
    let mut follower = Follower::new(&world, Role::Reader, LogEnd::default(), mode);
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

fn promoted(entry: &LogEntry) -> Promoted {
    let LogPosition { epoch, slot } = entry.position;
    let (id, head, bytes) = (entry.header.id, entry.header.head, entry.header.total_bytes);
    Promoted { id, epoch, slot, hash: entry.hash, head, bytes, shared: false }
}

/// The last segment the newest manifest names: all that folding needs to know.
fn last_of(world: &World, entries: &[LogEntry]) -> Option<Promoted> {
    let mut last = None;
    for entry in entries {
        let LogPosition { epoch, slot } = entry.position;
        let place = Place { machine: Some(machine()), log: Some(LogKind::Manifest), epoch, slot };
        let open = |kind| open_small(&world.keys, kind, &place, &entry.bytes).expect("accepted entries open").1;
        let segments = match slot {
            0 => {
                let opening = Opening::decode(&open(ObjectKind::Opening)).expect("an opening");
                Manifest::decode(&opening.state).expect("a manifest").segments
            }
            _ => ManifestCommit::decode(&open(ObjectKind::Manifest)).expect("a commit").segments,
        };
        last = segments.into_iter().last().or(last);
    }
    last
}

async fn apply(world: &World) -> Result<(), StoreError> {
    let log = manifest_log(world, Role::Applier);
    let attached = log.attach_with(world.manifest_rules()).await?;
    let last = last_of(world, attached.newest_entries());
    let state = Manifest { segments: last.iter().cloned().collect(), ..Manifest::default() };
    let from = last.map_or(LogEnd::default(), |p| LogEnd {
        position: LogPosition { epoch: p.epoch, slot: p.slot },
        hash: p.hash,
        head: p.head,
    });
    let writer = attached.open(state.encode()).await?;
    delete(world, "manifest", LogPosition { epoch: writer.epoch() - 1, slot: u64::MAX }).await?;
    let mut end = writer.opening_end();
    let mut follower = Follower::new(world, Role::Applier, from, ReadMode::Table);
    loop {
        let entry = follower.next().await?;
        if entry.position.slot == 0 || !world.chance(0.35) {
            continue;
        }
        let position = end.position.next_slot();
        let object = commit(world, &log, position, end.hash, &entry);
        let hash = format::object::ObjectHeader::hash(&object).expect("a header");
        put(&writer, position.slot, vec![object]).await?;
        writer.look().await?;
        end = LogEnd { position, hash, head: LogHead::default() };
        world.with(|r| r.manifests.push(entry.end()));
        delete(world, "stream", entry.position).await?;
    }
}

fn commit(world: &World, log: &EpochLog, position: LogPosition, prev_hash: ObjectHash, entry: &LogEntry) -> Bytes {
    let LogPosition { epoch, slot } = position;
    let body = ManifestCommit { segments: vec![promoted(entry)], ..ManifestCommit::default() }.encode();
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
    let store = world.store(Role::Applier);
    let doomed: Vec<String> = world.with(|r| {
        let LogPosition { epoch, slot } = through;
        let last = format!("machine/{}/{log}/seg/{epoch:016x}/{slot:016x}", machine());
        let first = format!("machine/{}/{log}/seg/", machine());
        r.archive.range(first..=last).map(|(path, _)| path.clone()).collect()
    });
    if world.chance(0.1) {
        world.pause(50, 400).await;
    }
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
        let attached = stream_log(world, Role::Writer).attach_with(world.stream_rules()).await;
        let opened = match attached {
            Ok(attached) => attached.open(Vec::new()).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(writer) => return Ok(writer.epoch()),
            Err(error @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) => {
                return Err(format!("sealer found the log broken: {}", kind_of(&error)));
            }
            Err(_) => waiting::pass(std::time::Duration::from_millis(500)).await,
        }
    }
    Err("the log cannot be sealed".to_owned())
}
