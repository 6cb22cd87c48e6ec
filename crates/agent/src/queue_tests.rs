//! The queue against a model: a list of records with their payloads.

use super::*;
use model::{DiskId, Extent};
use proptest::prelude::*;

const LIFE: Incarnation = Incarnation([1; 16]);

fn record(seq: u64, sectors: u64) -> Record<Payload> {
    let data = Bytes::from(vec![seq as u8; (sectors * 512) as usize]);
    let extent = Extent::new(0, sectors.max(1) * 512).expect("aligned");
    let body = if sectors == 0 {
        RecordBody::Zero { disk: DiskId(1), extent }
    } else {
        RecordBody::Write { disk: DiskId(1), extent, data: Payload::Memory(data) }
    };
    Record { seq: Seq(seq), time: Timestamp(seq), map_version: 1, body }
}

fn digest(seq: u64) -> RecordDigest {
    RecordDigest([seq as u8; 32])
}

#[derive(Debug, Clone)]
enum Step {
    Push(u64),
    Free(u64),
    Spool(u64),
    Spooled(bool),
    Batch(u64, u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..9).prop_map(Step::Push),
        2 => (0u64..6).prop_map(Step::Free),
        3 => (0u64..9).prop_map(Step::Spool),
        3 => any::<bool>().prop_map(Step::Spooled),
        2 => (0u64..9, 0u64..9).prop_map(|(sent, credit)| Step::Batch(sent, credit)),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// Bytes are counted right, batches are contiguous and within credit, and every byte taken is given back.
    #[test]
    fn keeps_what_is_not_stored_and_counts_it(steps in proptest::collection::vec(step(), 1..150)) {
        let mut queue = Queue::new(LIFE, LogHead::default(), 1 << 30, 64 * 512);
        let (mut freed, mut model): (u64, Vec<u64>) = (0, Vec::new());
        let (mut life, mut written) = (LIFE, None);
        for step in steps {
            match step {
                Step::Push(sectors) => {
                    let seq = freed + model.len() as u64 + 1;
                    queue.push(record(seq, sectors), digest(seq));
                    model.push(sectors);
                }
                Step::Free(n) => {
                    let n = n.min(model.len() as u64);
                    drop(queue.free_to(Seq(freed + n)));
                    model.drain(..n as usize);
                    freed += n;
                }
                Step::Spool(keep) if written.is_none() => {
                    written = queue.take_for_spool(Seq(freed), keep * 512, 8 * 512);
                }
                Step::Spool(_) => {}
                Step::Spooled(ok) => if let Some(batch) = written.take() {
                    if ok { queue.spooled(&batch) } else { queue.spool_failed(&batch) }
                },
                Step::Batch(sent, credit) => {
                    let sent = freed + sent.min(model.len() as u64);
                    let batch = queue.batch(Seq(sent), 4096, credit * 600, false);
                    let cost: u64 = batch.iter().map(|o| payload_bytes(&o.record) + 64).sum();
                    prop_assert!(cost <= credit * 600);
                    for (n, outgoing) in batch.iter().enumerate() {
                        prop_assert_eq!(outgoing.record.seq.0, sent + n as u64 + 1);
                    }
                }
                Step::Restart => {
                    freed += 100;
                    life.0[0] += 1;
                    let position = Position { incarnation: life, seq: Seq(freed) };
                    queue.restart(life, LogHead { position, ..LogHead::default() });
                    model.clear();
                }
            }
            prop_assert_eq!(queue.last_seq().0, freed + model.len() as u64);
            prop_assert_eq!(queue.is_empty(), model.is_empty());
            let payload: u64 = model.iter().map(|s| s * 512).sum();
            let in_memory = queue.memory().0 - model.len() as u64 * RECORD_OVERHEAD_BYTES;
            let spooled: u64 = queue.records.iter().map(|q| match &q.record.body {
                RecordBody::Write { data: Payload::Spooled(slot), .. } => u64::from(slot.len),
                _ => 0,
            }).sum();
            prop_assert_eq!(in_memory + spooled, payload);
            let looked_for = queue.records.iter().filter_map(|q| match &q.record.body {
                RecordBody::Write { extent, data: Payload::Memory(_), .. } => Some((q.record.seq, extent.len())),
                _ => None,
            });
            prop_assert!(looked_for.eq(queue.in_memory.iter().copied()));
            prop_assert!(queue.head_at(Seq(freed + model.len() as u64 + 1)).is_none());
        }
        if let Some(batch) = written.take() {
            queue.spooled(&batch);
        }
        drop(queue.free_to(queue.last_seq()));
        prop_assert_eq!((queue.memory().0, queue.spool().0), (0, 0));
    }
}

#[test]
fn a_batch_written_for_a_life_that_ended_gives_its_room_back() {
    let mut queue = Queue::new(LIFE, LogHead::default(), 1 << 20, 64 * 512);
    queue.push(record(1, 4), digest(1));
    let batch = queue.take_for_spool(Seq(0), 0, 1 << 20).expect("room");
    queue.restart(Incarnation([2; 16]), LogHead::default());
    queue.push(record(1, 4), digest(1));
    queue.spooled(&batch);
    assert_eq!(queue.spool().0, 0);
    assert!(matches!(&queue.records[0].record.body, RecordBody::Write { data: Payload::Memory(_), .. }));
}

#[test]
fn one_record_over_the_credit_goes_alone_when_nothing_is_in_flight() {
    let mut queue = Queue::new(LIFE, LogHead::default(), 1 << 20, 0);
    queue.push(record(1, 8), digest(1));
    queue.push(record(2, 8), digest(2));
    assert!(queue.batch(Seq(0), 1 << 20, 1000, false).is_empty());
    assert_eq!(queue.batch(Seq(0), 1 << 20, 1000, true).len(), 1);
}

#[test]
fn a_drain_that_fills_the_queue_leaves_room_for_its_end_and_the_next_beginning() {
    const MAX: u64 = 1 << 20;
    let mut queue = Queue::new(LIFE, LogHead::default(), MAX, 0);
    let mut seq = 0;
    let mut push = |queue: &mut Queue, sectors| {
        seq += 1;
        queue.push(record(seq, sectors), digest(seq));
    };
    // A read of three pieces becomes three records, or none.
    while queue.has_room(3, 3 * 8 * 512) {
        (0..3).for_each(|_| push(&mut queue, 8));
    }
    while queue.has_room(1, 0) {
        push(&mut queue, 0);
    }
    assert!(queue.memory().0 + 3 * RECORD_OVERHEAD_BYTES > MAX, "filled to the brim");
    (0..DRAIN_RECORDS).for_each(|_| push(&mut queue, 0));
    assert!(queue.memory().0 <= MAX, "{} bytes", queue.memory().0);
    // Counted as one record, the three would not have fitted.
    assert!(!queue.has_room(3, 0) && queue.memory().0 + 3 * RECORD_OVERHEAD_BYTES > MAX);
}
