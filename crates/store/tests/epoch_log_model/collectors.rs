//! Appliers as they are shipped: they name every segment, and collect by rule 6 (`LogWriter::plan_collection`). Readers
//! that meet what was collected go on by the names in the manifest.

use std::collections::VecDeque;

use format::manifest::Manifest;
use model::LogHead;
use store::{CollectError, EpochLog, LogEnd, LogEntry, LogPosition, LogWriter, ReadMode, StoreError};

use crate::actors::{Follower, commit, end_of, manifest_log, named_by, promoted, put, report, stream_log};
use crate::sim::World;

/// What the newest manifest names behind `end`, read by name.
pub async fn by_name(
    world: &World,
    log: &EpochLog,
    mut end: LogEnd,
    mode: ReadMode,
) -> Result<VecDeque<LogEntry>, StoreError> {
    let newest = manifest_log(world).read_newest_with(world.manifest_rules()).await?;
    let mut named = named_by(world, &newest.entries);
    named.retain(|segment| LogPosition { epoch: segment.epoch, slot: segment.slot } > end.position);
    let mut entries = VecDeque::new();
    while entries.len() < named.len() {
        let read = log.read_promoted(end, &named[entries.len()..], mode).await?;
        entries.extend(read);
        end = entries.back().map_or(end, LogEntry::end);
    }
    Ok(entries)
}

pub async fn applier(world: World) {
    let result = apply(&world).await;
    report(&world, "applier", result);
}

async fn apply(world: &World) -> Result<(), StoreError> {
    let log = manifest_log(world);
    let attached = log.attach_with(world.manifest_rules()).await?;
    let segments = named_by(world, attached.newest_entries());
    let from = end_of(segments.last());
    let writer = attached.open(Manifest { segments, ..Manifest::default() }.encode()).await?;
    collect(world, &writer).await?;
    let (mut end, mut next) = (writer.opening_end(), Vec::new());
    let mut follower = Follower::new(world, from, ReadMode::Table);
    loop {
        let entry = follower.next().await?;
        if entry.position.slot == 0 {
            continue;
        }
        next.push(promoted(&entry));
        if !world.chance(0.35) {
            continue;
        }
        let position = end.position.next_slot();
        let object = commit(world, &log, position, end.hash, std::mem::take(&mut next));
        let hash = format::object::ObjectHeader::hash(&object).expect("a header");
        put(&writer, position.slot, vec![object]).await.1?;
        if world.chance(0.3) {
            // Before its own look: the collection must look for itself.
            collect(world, &writer).await?;
        }
        writer.look().await?;
        end = LogEnd { position, hash, head: LogHead::default() };
        world.with(|r| r.manifests.push(entry.end()));
    }
}

/// One pass. A listing that left a named segment out is a doubt, and nothing is deleted.
async fn collect(world: &World, writer: &LogWriter) -> Result<(), StoreError> {
    let plan = match writer.plan_collection(&stream_log(world)).await {
        Ok(plan) => plan,
        Err(CollectError::NotListed { .. }) => return Ok(()),
        Err(CollectError::Store(error)) => return Err(error),
        Err(doubt) => {
            world.fail(format!("collector: {doubt}"));
            return Ok(());
        }
    };
    let objects_max = world.with(|r| 1 + r.rng.below(40));
    writer.collect(&plan, objects_max as usize).await.map(|_| ())
}
