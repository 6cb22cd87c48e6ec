//! What the stages of a replica say of a known amount of work.
//!
//! Goal: bytes are those that were applied, and the stage that is slow is the one that is said to be busy. Method: records of
//! known bytes, a store that is slow by a known time, and paused time, in which nothing else takes any. The controls: a move to
//! nowhere counts nothing, and a store that is not slow is not busy.

use std::sync::Arc;
use std::time::Duration;

use model::StageStatus;
use object_store::memory::InMemory;
use store::{FaultStore, Faults, Store};
use tokio_util::sync::CancellationToken;

use super::replica::committed;
use crate::ReplicaConfig;
use crate::replica::Replica;
use crate::stages::{Stages, Task};
use crate::testing::{TestLog, vault_in};

const BLOCKS: u64 = 8;
const BLOCK_BYTES: u64 = 4096;
const SLOW: Duration = Duration::from_secs(3);

/// Moves as far as it goes; says in how many moves.
async fn go(log: &TestLog, replica: &mut Replica) -> usize {
    let (committed, stop) = (committed(log, 64).await, CancellationToken::new());
    for moves in 0.. {
        replica.ready(&stop).await.expect("ready");
        let Some(target) = replica.next_target(&committed.validity, &committed.recent) else { return moves };
        replica.advance(&committed.recent, target, &stop).await.expect("moved");
    }
    unreachable!("it ends where the log does")
}

/// One segment with blocks that are nowhere else, and zeros.
async fn write_blocks(log: &mut TestLog) {
    for block in 0..BLOCKS {
        let bytes = (0..BLOCK_BYTES).map(|_| log.rng.next() as u8).collect();
        log.write("root", block * BLOCK_BYTES, bytes);
    }
    log.write("root", BLOCKS * BLOCK_BYTES, vec![0; BLOCK_BYTES as usize]);
    log.commit().await;
}

fn grown(before: &[StageStatus], after: &[StageStatus]) -> Vec<(&'static str, u64, f64)> {
    let both = before.iter().zip(after);
    both.map(|(before, after)| {
        let seconds = after.busy_seconds_total - before.busy_seconds_total;
        (after.stage, after.bytes_total - before.bytes_total, seconds)
    })
    .collect()
}

#[tokio::test(start_paused = true)]
async fn the_stages_of_a_replica_say_what_was_applied_and_which_was_slow() {
    let (objects, faults) = (Arc::new(InMemory::new()), Faults::new(1));
    let (store, keys) = vault_in(objects.clone()).await;
    let slow = Store::from_object_store(Arc::new(FaultStore::new(objects, faults.clone())));
    let data_dir = tempfile::tempdir().expect("temp dir");
    let mut log = TestLog::begin(&store, &keys, "db", 1).await;
    let stages = Arc::new(Stages::default());
    let opened = Replica::open(slow, keys, data_dir.path(), &log.machine, ReplicaConfig::default()).expect("opened");
    let mut replica = opened.with_stages(stages.clone());
    assert!(go(&log, &mut replica).await > 0);

    for delay in [Duration::ZERO, SLOW] {
        write_blocks(&mut log).await;
        faults.set_delay(delay, delay);
        let before = stages.status(Task::Replica);
        assert!(go(&log, &mut replica).await > 0);
        let after = stages.status(Task::Replica);
        let grown = grown(&before.stages, &after.stages);
        let [("fetch", fetched, fetch), ("open", opened, open), ("write", written, write), ("flush", 0, flush)] =
            grown[..]
        else {
            panic!("{grown:?}")
        };
        assert_eq!(written, BLOCKS * BLOCK_BYTES, "zeros are not counted");
        assert!(fetched >= written && opened > written, "{grown:?}");
        // The segment of the position before, if it must be checked, and the one that is applied.
        assert!(fetch == delay.as_secs_f64() || fetch == 2.0 * delay.as_secs_f64(), "{grown:?}");
        assert_eq!((open, write, flush), (0.0, 0.0, 0.0));
        assert_eq!(after.busy_seconds_total - before.busy_seconds_total, fetch);
    }

    let before = stages.status(Task::Replica).stages;
    assert_eq!(go(&log, &mut replica).await, 0, "there is nowhere to go");
    assert_eq!(stages.status(Task::Replica).stages, before);
}
