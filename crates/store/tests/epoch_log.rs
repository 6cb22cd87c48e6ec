//! The epoch log step by step, where one order of events is the point. Random orders are the model's business.

mod common;
mod hook;

use std::sync::{Arc, Mutex};

use common::{append, keys, log, machine, segment, stream};
use format::FormatError;
use format::keys::Keys;
use format::manifest::{Manifest, ManifestCommit, Promoted};
use format::object::{HEADER_BYTES, LogKind, ObjectHeader, ObjectId, ObjectKind, Place, SmallObject, seal_small};
use futures::FutureExt;
use hook::HookStore;
use model::LogHead;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use store::{
    Base, EpochLog, FaultStore, Faults, LogEnd, LogEntry, LogPosition, LogReader, LogRules, ManifestBase, Next,
    ReadMode, Store, StoreError, create_vault, list_machines, open_vault,
};

fn memory() -> (Arc<InMemory>, Store) {
    let inner = Arc::new(InMemory::new());
    (inner.clone(), Store::from_object_store(inner))
}

fn at(epoch: u64, slot: u64) -> LogPosition {
    LogPosition { epoch, slot }
}

/// Everything a new reader takes in from the start, and what it says then.
async fn read_all(log: &EpochLog, mode: ReadMode) -> (Vec<LogEntry>, Result<Next, StoreError>) {
    let mut reader = LogReader::new(log.clone(), LogEnd::default(), mode);
    let mut entries = Vec::new();
    loop {
        match reader.next().await {
            Ok(Next::Entry(entry)) => entries.push(*entry),
            other => return (entries, other),
        }
    }
}

fn positions(entries: &[LogEntry]) -> Vec<(u64, u64)> {
    entries.iter().map(|e| (e.position.epoch, e.position.slot)).collect()
}

#[tokio::test]
async fn paths_are_hex_of_fixed_width() {
    let (_, store) = memory();
    let log = stream(&store, &keys());
    assert_eq!(log.epoch_path(26), "machine/db-01/stream/epoch/000000000000001a");
    assert_eq!(log.slot_path(at(1, 255)), "machine/db-01/stream/seg/0000000000000001/00000000000000ff");
}

#[tokio::test]
async fn a_log_grows_over_three_writers_and_reads_back_in_order() {
    let (_, store) = memory();
    let keys = keys();
    let log = stream(&store, &keys);
    assert!(!log.exists().await.expect("probe"));
    assert!(matches!(read_all(&log, ReadMode::Whole).await, (e, Ok(Next::End)) if e.is_empty()));
    let mut expected = Vec::new();
    for epoch in 1..=3 {
        let attached = log.attach().await.expect("attach");
        assert_eq!(attached.epoch(), epoch);
        let writer = attached.open(Vec::new()).await.expect("open");
        append(&writer, &keys, writer.opening_end(), 20).await;
        assert_eq!(writer.acknowledge().await.expect("alone"), 20);
        expected.extend((0..=20).map(|slot| (epoch, slot)));
    }
    assert!(log.exists().await.expect("probe"));
    for mode in [ReadMode::Table, ReadMode::Whole] {
        let (entries, next) = read_all(&log, mode).await;
        assert_eq!(positions(&entries), expected);
        assert!(matches!(next, Ok(Next::End)), "{next:?}");
        assert_eq!(entries.last().expect("entries").header.head.position.seq.0, 120);
    }
}

#[tokio::test]
async fn table_mode_returns_header_and_table_exactly_even_when_large() {
    let (_, store) = memory();
    let keys = keys();
    let log = stream(&store, &keys);
    let writer = log.attach().await.expect("attach").open(Vec::new()).await.expect("open");
    let sealed = segment(&keys, &writer.opening_end(), at(1, 1), 1200, 190);
    assert!(sealed.header.table_sealed_bytes > 100 << 10, "more than the first read");
    writer.put(1, sealed.parts).await.expect("put");
    let (entries, _) = read_all(&log, ReadMode::Table).await;
    assert_eq!(entries[1].bytes.len(), HEADER_BYTES + sealed.header.table_sealed_bytes as usize);
    let table = format::segment::open_table(&keys, &entries[1].header, &entries[1].bytes[HEADER_BYTES..]);
    assert_eq!(table.expect("opens").records.len(), 1200);
}

#[tokio::test]
async fn an_older_writer_is_fenced_for_good_and_what_it_puts_late_is_void() {
    let (_, store) = memory();
    let keys = keys();
    let log = stream(&store, &keys);
    let old = log.attach().await.expect("attach").open(Vec::new()).await.expect("open");
    let end = append(&old, &keys, old.opening_end(), 2).await;
    let attached = log.attach().await.expect("attach");
    assert_eq!(attached.end(), end, "the opening continues what was put");
    let void = segment(&keys, &end, at(1, 3), 1, 1);
    old.put(3, void.parts).await.expect("it can still write into its own namespace");
    assert!(matches!(old.acknowledge().await, Err(StoreError::Fenced { epoch: 1, .. })));
    assert!(matches!(old.put(4, Vec::new()).await, Err(StoreError::Fenced { .. })), "for good");
    let (entries, next) = read_all(&log, ReadMode::Table).await;
    assert!(entries.is_empty() && matches!(next, Ok(Next::Unopened { epoch: 2 })), "{next:?}");
    attached.open(Vec::new()).await.expect("open");
    let (entries, _) = read_all(&log, ReadMode::Table).await;
    assert_eq!(positions(&entries), [(1, 0), (1, 1), (1, 2), (2, 0)]);
}

#[tokio::test]
async fn only_the_contiguous_prefix_may_be_acknowledged() {
    let (_, store) = memory();
    let keys = keys();
    let writer = stream(&store, &keys).attach().await.expect("attach").open(Vec::new()).await.expect("open");
    let one = segment(&keys, &writer.opening_end(), at(1, 1), 1, 1);
    let end = LogEnd { position: at(1, 1), hash: one.hash, head: one.header.head };
    let two = segment(&keys, &end, at(1, 2), 1, 1);
    writer.put(2, two.parts).await.expect("put");
    assert_eq!(writer.acknowledge().await.expect("alone"), 0);
    writer.put(1, one.parts.clone()).await.expect("put");
    writer.put(1, one.parts).await.expect("the same bytes again");
    assert_eq!(writer.acknowledge().await.expect("alone"), 2);
    let foreign = segment(&keys, &end, at(1, 2), 1, 1);
    assert!(matches!(writer.put(2, foreign.parts).await, Err(StoreError::Fenced { .. })), "other bytes lie there");
}

#[tokio::test]
async fn parts_that_do_not_belong_into_the_slot_are_not_written() {
    let (_, store) = memory();
    let keys = keys();
    let writer = stream(&store, &keys).attach().await.expect("attach").open(Vec::new()).await.expect("open");
    let sealed = segment(&keys, &writer.opening_end(), at(1, 1), 1, 1);
    let truncated = vec![sealed.parts[0].slice(..100)];
    for (slot, parts) in [(2, sealed.parts.clone()), (1, truncated), (1, Vec::new())] {
        assert!(matches!(writer.put(slot, parts).await, Err(StoreError::Damaged { .. })));
    }
    assert_eq!(store.list("machine/db-01/stream/seg").await.expect("list").len(), 1, "the opening alone");
}

#[tokio::test]
async fn a_missing_slot_is_named_when_a_later_opening_continues_behind_it() {
    let (inner, store) = memory();
    let keys = keys();
    let log = stream(&store, &keys);
    let writer = log.attach().await.expect("attach").open(Vec::new()).await.expect("open");
    append(&writer, &keys, writer.opening_end(), 5).await;
    log.attach().await.expect("attach").open(Vec::new()).await.expect("open");
    let path = log.slot_path(at(1, 3));
    inner.delete(&path.as_str().into()).await.expect("delete");
    let (entries, next) = read_all(&log, ReadMode::Table).await;
    assert_eq!(positions(&entries), [(1, 0), (1, 1), (1, 2)]);
    assert!(matches!(&next, Err(StoreError::Missing { path: named, .. }) if *named == path), "{next:?}");
}

#[tokio::test]
async fn altered_swapped_and_transplanted_objects_are_named() {
    let keys = keys();
    let (from, to) = (at(1, 2), at(1, 3));
    type Spoil = fn(&[u8], &[u8]) -> Vec<u8>;
    let cases: [(&str, Spoil); 4] = [
        ("a flipped bit in the header", |own, _| [&own[..60], &[own[60] ^ 1], &own[61..]].concat()),
        ("a flipped bit at the end", |own, _| [&own[..own.len() - 1], &[own[own.len() - 1] ^ 1]].concat()),
        ("cut short", |own, _| own[..own.len() - 1].to_vec()),
        ("another slot's object", |_, other| other.to_vec()),
    ];
    for (what, spoil) in cases {
        let (inner, store) = memory();
        let log = stream(&store, &keys);
        let writer = log.attach().await.expect("attach").open(Vec::new()).await.expect("open");
        append(&writer, &keys, writer.opening_end(), 4).await;
        let [own, other] = [to, from].map(|position| log.slot_path(position));
        let bytes = [&own, &other].map(|path| store.get(path));
        let [own_bytes, other_bytes] = <[_; 2]>::try_from(futures::future::join_all(bytes).await).expect("two");
        let take = |b: Result<Option<bytes::Bytes>, _>| b.expect("get").expect("there");
        let spoiled = spoil(&take(own_bytes), &take(other_bytes));
        inner.put(&own.as_str().into(), spoiled.into()).await.expect("overwrite");
        let (entries, next) = read_all(&log, ReadMode::Whole).await;
        assert_eq!(entries.len(), 3, "{what}");
        assert!(matches!(&next, Err(StoreError::Damaged { path, .. }) if *path == own), "{what}: {next:?}");
    }
}

#[tokio::test]
async fn an_intact_object_that_does_not_continue_the_chain_is_refused() {
    let (_, store) = memory();
    let keys = keys();
    let log = stream(&store, &keys);
    let writer = log.attach().await.expect("attach").open(Vec::new()).await.expect("open");
    let end = append(&writer, &keys, writer.opening_end(), 1).await;
    let skips = LogEnd { hash: writer.opening_end().hash, ..end };
    writer.put(2, segment(&keys, &skips, at(1, 2), 1, 1).parts).await.expect("the writer does not know");
    let (entries, next) = read_all(&log, ReadMode::Table).await;
    assert_eq!(entries.len(), 2);
    let misplaced = |e: &StoreError| matches!(e, StoreError::Damaged { source: FormatError::Misplaced { .. }, .. });
    assert!(next.as_ref().is_err_and(misplaced), "{next:?}");
}

/// A reader that was dropped in mid-request has neither skipped nor taken in anything.
#[tokio::test(start_paused = true)]
async fn a_reader_may_be_cancelled_anywhere() {
    let keys = keys();
    let (inner, quick) = memory();
    let log_quick = stream(&quick, &keys);
    let writer = log_quick.attach().await.expect("attach").open(Vec::new()).await.expect("open");
    append(&writer, &keys, writer.opening_end(), 30).await;
    let faults = Faults::new(3);
    let millis = std::time::Duration::from_millis;
    faults.set_delay(millis(1), millis(9));
    let slow = Store::from_object_store(Arc::new(FaultStore::new(inner as Arc<dyn ObjectStore>, faults)));
    let mut reader = LogReader::new(stream(&slow, &keys), LogEnd::default(), ReadMode::Table);
    let (mut seen, mut patience, mut cancelled) = (Vec::new(), 1, 0);
    loop {
        match tokio::time::timeout(millis(patience), reader.next()).await {
            Err(_) => (patience, cancelled) = (patience % 60 + 1, cancelled + 1),
            Ok(Ok(Next::Entry(entry))) => seen.push((entry.position.epoch, entry.position.slot)),
            Ok(Ok(Next::End)) => break,
            Ok(other) => panic!("{other:?}"),
        }
    }
    assert!(cancelled > 10, "cancelled {cancelled} times");
    assert_eq!(seen, (0..=30).map(|slot| (1, slot)).collect::<Vec<_>>());
}

fn promoted(entry: &LogEntry) -> Promoted {
    let LogPosition { epoch, slot } = entry.position;
    let (id, head, bytes) = (entry.header.id, entry.header.head, entry.header.total_bytes);
    Promoted { id, epoch, slot, hash: entry.hash, head, bytes, shared: false }
}

fn commit(log: &EpochLog, keys: &Keys, end: &LogEnd, segments: Vec<Promoted>) -> (bytes::Bytes, LogEnd) {
    let position = end.position.next_slot();
    let place = Place { machine: Some(machine()), log: Some(log.kind), epoch: position.epoch, slot: position.slot };
    let body = ManifestCommit { segments, ..ManifestCommit::default() }.encode();
    let (kind, head) = (ObjectKind::Manifest, LogHead::default());
    let object = seal_small(keys, &SmallObject { kind, place, prev_hash: end.hash, head, gc_seen: 0, body: &body });
    let hash = ObjectHeader::hash(&object).expect("a header");
    (object, LogEnd { position, hash, head })
}

#[tokio::test]
async fn what_the_manifest_folds_may_be_deleted_and_readers_are_sent_past_it() {
    let (_, store) = memory();
    let keys = keys();
    let manifest_log = log(&store, &keys, LogKind::Manifest);
    let base = Arc::new(ManifestBase::new(manifest_log.clone()));
    let stream = EpochLog { base: base.clone(), ..stream(&store, &keys) };
    let writer = stream.attach().await.expect("attach").open(Vec::new()).await.expect("open");
    let end = append(&writer, &keys, writer.opening_end(), 6).await;
    let (entries, _) = read_all(&stream, ReadMode::Table).await;

    let owner = manifest_log.attach().await.expect("attach");
    assert!(owner.newest_entries().is_empty());
    let owner = owner.open(Manifest::default().encode()).await.expect("open");
    assert_eq!(base.newest().await.expect("newest"), LogEnd::default());
    let folded = &entries[1..=4];
    let (object, manifest_end) =
        commit(&manifest_log, &keys, &owner.opening_end(), folded.iter().map(promoted).collect());
    owner.put(1, vec![object]).await.expect("put");
    assert_eq!(owner.acknowledge().await.expect("alone"), 1);
    assert_eq!(base.newest().await.expect("goes on from what it read"), folded[3].end());
    for slot in 0..=4 {
        store.delete(&stream.slot_path(at(1, slot))).await.expect("delete");
    }

    let (none, next) = read_all(&stream, ReadMode::Table).await;
    let Ok(Next::Folded(from)) = next else { panic!("{next:?}") };
    assert_eq!((none.len(), from), (0, folded[3].end()));
    let mut reader = LogReader::new(stream.clone(), from, ReadMode::Table);
    for slot in 5..=6 {
        assert!(matches!(reader.next().await, Ok(Next::Entry(e)) if e.position == at(1, slot)));
    }
    assert!(matches!(reader.next().await, Ok(Next::End)));
    let attached = stream.attach().await.expect("the manifest's own epoch counts as opened");
    assert_eq!(attached.end(), end);

    let next_owner = manifest_log.attach().await.expect("attach");
    assert_eq!((next_owner.newest_entries().len(), next_owner.end()), (2, manifest_end));
    let unopened = manifest_log.read_newest().await.expect("nobody waits for an unopened manifest epoch");
    assert_eq!(unopened.end, manifest_end);
    let state = Manifest { segments: folded.iter().map(promoted).collect(), ..Manifest::default() };
    next_owner.open(state.encode()).await.expect("open");
    for slot in 0..=1 {
        store.delete(&manifest_log.slot_path(at(1, slot))).await.expect("openings are self-contained");
    }
    assert_eq!(base.newest().await.expect("starts again"), folded[3].end());
    let (entries, next) = read_all(&manifest_log, ReadMode::Whole).await;
    assert_eq!(positions(&entries), [(2, 0)]);
    assert!(matches!(next, Ok(Next::End)), "{next:?}");
}

/// The newest manifest is sought in epoch 1; epochs 2 and 3 are opened under the search, each exactly when it hurts.
async fn newest_while_openings_are_deleted_under_the_look(rules: LogRules) -> LogPosition {
    let (inner, quick) = memory();
    let keys = keys();
    let direct = log(&quick, &keys, LogKind::Manifest);
    direct.attach().await.expect("attach").open(Manifest::default().encode()).await.expect("open");
    let take_over = |epoch: u64| {
        let direct = direct.clone();
        let action = async move {
            let owner = direct.attach().await.expect("attach");
            assert_eq!(owner.epoch(), epoch);
            owner.open(Manifest::default().encode()).await.expect("open");
            let old = direct.slot_path(at(epoch - 1, 0));
            direct.store.delete(&old).await.expect("the opening is looked after: older epochs may go");
        };
        action.boxed()
    };
    // The hole of epoch 1 is read, then the opening of epoch 2.
    let hooks = [(direct.slot_path(at(1, 1)), take_over(2)), (direct.slot_path(at(2, 0)), take_over(3))];
    let hooked = HookStore { inner, hooks: Mutex::new(hooks.into()) };
    let slow = log(&Store::from_object_store(Arc::new(hooked)), &keys, LogKind::Manifest);
    slow.read_newest_with(rules).await.expect("read").end.position
}

#[tokio::test]
async fn an_opening_deleted_under_the_look_does_not_hide_a_newer_manifest() {
    let newest = newest_while_openings_are_deleted_under_the_look(LogRules::ALL).await;
    assert_eq!(newest, at(3, 0), "epochs 2 and 3 were opened before the reader concluded");
}

#[tokio::test]
async fn without_the_second_look_upward_an_old_manifest_passes_for_the_newest() {
    let rules = LogRules { second_look_up: false, ..LogRules::ALL };
    assert_eq!(newest_while_openings_are_deleted_under_the_look(rules).await, at(1, 0));
}

#[tokio::test]
async fn many_epochs_are_found_without_a_list() {
    let (_, store) = memory();
    let keys = keys();
    let log = stream(&store, &keys);
    for epoch in 1..=70 {
        assert_eq!(log.attach().await.expect("attach").epoch(), epoch);
    }
    let writer = log.attach().await.expect("attach").open(Vec::new()).await.expect("open");
    assert_eq!((writer.epoch(), writer.opening_end().position), (71, at(71, 0)));
    let (entries, _) = read_all(&log, ReadMode::Table).await;
    assert_eq!(positions(&entries), [(71, 0)]);
}

#[tokio::test]
async fn a_vault_opens_with_its_own_key_only() {
    let (inner, store) = memory();
    let (ours, theirs) = (keys(), keys());
    assert!(matches!(open_vault(&store, &ours).await, Err(StoreError::Missing { .. })));
    create_vault(&store, &ours).await.expect("create");
    create_vault(&store, &ours).await.expect("again");
    open_vault(&store, &ours).await.expect("open");
    for result in [open_vault(&store, &theirs).await, create_vault(&store, &theirs).await] {
        let Err(StoreError::WrongKey { store: held, key }) = result else { panic!("{result:?}") };
        assert_eq!((held, key), (ours.vault().to_string(), theirs.vault().to_string()));
    }
    inner.put(&"vault".into(), vec![0u8; 600].into()).await.expect("overwrite");
    assert!(matches!(open_vault(&store, &ours).await, Err(StoreError::Damaged { .. })));
}

#[tokio::test]
async fn machines_are_listed_by_name_and_strangers_are_left_out() {
    let (inner, store) = memory();
    assert!(list_machines(&store).await.expect("list").is_empty());
    for name in ["web-2", "db-01", "Not A Name"] {
        let path = object_store::path::Path::from(format!("machine/{name}/stream/epoch/{:016x}", 1));
        inner.put(&path, "x".into()).await.expect("put");
    }
    // What a purge may leave behind is no machine.
    inner.put(&"machine/purged/stray".into(), "x".into()).await.expect("put");
    let names: Vec<String> = list_machines(&store).await.expect("list").into_iter().map(String::from).collect();
    assert_eq!(names, ["db-01", "web-2"]);
}

#[test]
fn object_ids_are_fresh() {
    assert_ne!(ObjectId::random(), ObjectId::random());
}
