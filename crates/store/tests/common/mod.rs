//! What the tests of the store share: keys, logs and tiny segments.

use std::sync::Arc;

use format::keys::{Keys, VaultKey};
use format::object::{LogKind, ObjectId, Place};
use format::segment::{Commit, FrameSealer, SealedSegment, assemble};
use model::{LogHead, MachineName, Mark, MarkKind, Position, Record, RecordBody, Seq, Timestamp};
use store::{EpochLog, Genesis, LogEnd, LogPosition, LogWriter, Store};

pub fn keys() -> Arc<Keys> {
    Arc::new(Keys::new(&VaultKey::generate()))
}

pub fn machine() -> MachineName {
    "db-01".parse().expect("a name")
}

pub fn stream(store: &Store, keys: &Arc<Keys>) -> EpochLog {
    log(store, keys, LogKind::Stream)
}

pub fn log(store: &Store, keys: &Arc<Keys>, kind: LogKind) -> EpochLog {
    EpochLog { store: store.clone(), keys: keys.clone(), machine: machine(), kind, base: Arc::new(Genesis) }
}

/// A segment of `records` marks with labels of `label_bytes` for `position`, behind `end`.
pub fn segment(keys: &Keys, end: &LogEnd, position: LogPosition, records: u64, label_bytes: usize) -> SealedSegment {
    let first = end.head.position.seq.0 + 1;
    let last = first + records - 1;
    let mut noise = store::SplitMix64::new(first);
    let records = (first..=last)
        .map(|seq| {
            let label = (0..label_bytes).map(|_| char::from(33 + noise.below(90) as u8)).collect();
            let id = [noise.below(256) as u8; 16];
            let body = RecordBody::Mark(Mark { kind: MarkKind::Crash, id, label });
            Record { seq: Seq(seq), time: Timestamp(seq), map_version: 0, body }
        })
        .collect();
    let head =
        LogHead { position: Position { seq: Seq(last), ..end.head.position }, time: Timestamp(last), ..end.head };
    let LogPosition { epoch, slot } = position;
    let place = Place { machine: Some(machine()), log: Some(LogKind::Stream), epoch, slot };
    let sealer = FrameSealer::new(keys, ObjectId::random());
    let commit = Commit { place, prev_hash: end.hash, head, gc_seen: 0, shared: false };
    assemble(keys, &sealer, commit, Vec::new(), Vec::new(), records)
}

/// Seals and puts `count` slots behind `end`; returns the new end.
pub async fn append(writer: &LogWriter, keys: &Keys, mut end: LogEnd, count: u64) -> LogEnd {
    for _ in 0..count {
        let position = end.position.next_slot();
        let sealed = segment(keys, &end, position, 2, 5);
        writer.put(position.slot, sealed.parts).await.expect("put");
        end = LogEnd { position, hash: sealed.hash, head: sealed.header.head };
    }
    end
}
