//! Order of segments against a model: any interleaving of results, PUTs and looks acknowledges in order, once, and
//! only what was put.

use std::time::Duration;

use format::keys::{Keys, VaultKey};
use format::object::{ObjectHash, ObjectId};
use format::segment::FrameSealer;
use model::{LogHead, Position, Record, RecordBody, Seq, Timestamp};
use store::SplitMix64;
use tokio::time::Instant;

use super::segments::{SegmentLimits, Segments};
use crate::pipeline::{JobOutput, JobStats, assemble_segment};
use crate::session::Batch;

fn batch(seq: u64, cost: u64, now: Instant) -> Batch {
    let mark = model::Mark { kind: model::MarkKind::Crash, id: [0; 16], label: String::new() };
    let record = Record { seq: Seq(seq), time: Timestamp(seq), map_version: 1, body: RecordBody::Mark(mark) };
    let position = Position { seq: Seq(seq), ..Position::default() };
    let head = LogHead { position, map_version: 1, time: Timestamp(seq), ..LogHead::default() };
    Batch { records: vec![record], first_seq: Seq(seq), head, draining: false, cost, arrived: now }
}

fn output(batch: Batch, sealed_bytes: u64) -> JobOutput {
    let records = batch.records.into_iter().map(|r| Record {
        seq: r.seq,
        time: r.time,
        map_version: r.map_version,
        body: r.body.map_data(|_, _| Vec::new()),
    });
    let stats = JobStats { sealed_bytes, ..JobStats::default() };
    JobOutput { records: records.collect(), frames: Vec::new(), references: Vec::new(), offers: Vec::new(), stats }
}

#[test]
fn any_interleaving_acknowledges_in_order_and_only_what_was_put() {
    let keys = Keys::new(&VaultKey::generate());
    for seed in 0..60 {
        let mut rng = SplitMix64::new(seed);
        let limits = SegmentLimits { sealed_bytes: 1000, cost_bytes: 5000, age: Duration::from_secs(1) };
        let machine = "db".parse().expect("a name");
        let mut segments = Segments::new(machine, 3, ObjectHash::default(), limits);
        let now = Instant::now();
        let (mut at_work, mut uploading, mut looking) = (Vec::new(), Vec::new(), None);
        let (mut seq, mut acked, mut last_hash) = (0, 0, ObjectHash::default());
        for step in 0..20_000 {
            let ending = step > 1500;
            if ending && segments.is_empty() {
                break;
            }
            match rng.below(7) {
                0 if !ending => {
                    seq += 1;
                    let batch = batch(seq, 1 + rng.below(800), now);
                    let assigned = segments.assign(&batch, || FrameSealer::new(&keys, ObjectId::random()));
                    at_work.push((assigned.slot, assigned.ordinal, batch));
                }
                1 if !at_work.is_empty() => {
                    let (slot, ordinal, batch) = at_work.swap_remove(rng.below(at_work.len() as u64) as usize);
                    segments.job_done(slot, ordinal, output(batch, rng.below(400)));
                }
                2 => {
                    if let Some(complete) = segments.next_to_assemble() {
                        assert_eq!(complete.commit.prev_hash, last_hash, "each carries the hash of the one before");
                        assert!(segments.next_to_assemble().is_none(), "one at a time");
                        let (slot, commit) = (complete.slot, *complete.commit);
                        let sealed = assemble_segment(&keys, &complete.sealer, commit, complete.outputs);
                        last_hash = sealed.hash;
                        segments.assembled(slot, sealed);
                    }
                }
                3 => uploading.extend(segments.next_to_upload().map(|(slot, _)| slot)),
                4 if !uploading.is_empty() => {
                    segments.put(uploading.swap_remove(rng.below(uploading.len() as u64) as usize));
                }
                5 => match looking.take() {
                    None => looking = segments.put_up_to(),
                    Some(slot) => {
                        for segment in segments.acknowledge(slot) {
                            acked += 1;
                            assert_eq!(segment.slot, acked, "in order, once");
                            assert!(segment.slot <= slot, "only what the look covered");
                            assert!(!uploading.contains(&segment.slot), "only what was put");
                        }
                    }
                },
                6 if ending => segments.close(),
                _ => {}
            }
        }
        assert!(segments.is_empty(), "seed {seed}: everything is acknowledged in the end");
        assert!(acked > 5, "seed {seed}: {acked} segments");
    }
}

#[test]
fn a_segment_closes_by_size_by_cost_and_by_age() {
    let keys = Keys::new(&VaultKey::generate());
    let limits = SegmentLimits { sealed_bytes: 1000, cost_bytes: 5000, age: Duration::from_secs(1) };
    let now = Instant::now();
    let fresh = || FrameSealer::new(&keys, ObjectId::random());
    let new = || Segments::new("db".parse().expect("a name"), 1, ObjectHash::default(), limits);
    let mut segments = new();
    assert_eq!(segments.close_at(), None, "nothing is open, nothing is due");
    segments.assign(&batch(1, 400, now), fresh);
    assert_eq!(segments.close_at(), Some(now + limits.age));
    segments.assign(&batch(2, 700, now), fresh);
    assert_eq!(segments.close_at(), None, "what is at work counts at its full size until something is known");
    let third = batch(3, 4999, now);
    let assigned = segments.assign(&third, fresh);
    assert_eq!(assigned.slot, 2);

    let mut segments = new();
    let first = batch(1, 900, now);
    let assigned = segments.assign(&first, fresh);
    segments.job_done(assigned.slot, assigned.ordinal, output(first, 10));
    segments.close();
    segments.assign(&batch(2, 4000, now), fresh);
    assert!(segments.close_at().is_some(), "the last segment shrank to a hundredth");
    segments.assign(&batch(3, 1000, now), fresh);
    assert_eq!(segments.close_at(), None, "but no segment holds more of the window than its share");
}
