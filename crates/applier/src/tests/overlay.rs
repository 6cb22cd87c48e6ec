//! The overlay export against a plain vector.

use bytes::Bytes;
use nbd::{Errno, Export, ZeroFlags};

use super::{load, open};
use crate::recover::{OverlayExport, RecoverError};
use crate::testing::{Rng, TestLog, name, vault};

#[tokio::test]
async fn an_overlay_reads_as_the_point_with_every_change_on_top() {
    for seed in 0..8 {
        let (store, keys) = vault().await;
        let mut log = TestLog::begin(&store, &keys, "db", seed).await;
        log.live(6).await;
        let history = load(&log).await;
        let disk = open(&history, log.last_valid()).await.disk(&name("data")).expect("disk");
        let mut model = log.model.at[log.last_valid().0 as usize][&name("data")].to_vec();
        let export = OverlayExport::create(disk.clone(), None).await.expect("created");
        let mut rng = Rng(seed);
        let sectors = model.len() as u64 / 512;
        for _ in 0..120 {
            let at = rng.below(sectors);
            let len = (1 + rng.below(30)).min(sectors - at) * 512;
            let (offset, range) = (at * 512, (at * 512) as usize..(at * 512 + len) as usize);
            match rng.below(5) {
                0 => {
                    export.trim(offset, len, false).await.expect("trim");
                    model[range].fill(0);
                }
                1 => {
                    let flags = ZeroFlags { no_hole: rng.below(2) == 0, ..ZeroFlags::default() };
                    export.write_zeroes(offset, len, flags).await.expect("zeroes");
                    model[range].fill(0);
                }
                2 => assert!(export.read(offset, len as u32).await.expect("read") == model[range]),
                _ => {
                    let data = Bytes::from(vec![rng.next() as u8; len as usize]);
                    model[range].copy_from_slice(&data);
                    export.write(offset, data, rng.below(4) == 0).await.expect("write");
                }
            }
        }
        assert!(export.read(0, model.len() as u32).await.expect("read") == model);
        let status = export.block_status(0, model.len() as u64).await.expect("status");
        assert_eq!(status.iter().map(|run| run.len).sum::<u64>(), model.len() as u64);
        let mut at = 0;
        for run in status {
            let bytes = &model[at..at + run.len as usize];
            assert!(!run.zero || bytes.iter().all(|b| *b == 0), "seed {seed}: {} is said to be zero", at);
            at += run.len as usize;
        }
        // The point itself is unchanged.
        let whole = model::Extent::new(0, disk.size()).expect("not empty");
        assert!(disk.read(whole).await.expect("read") == **log.model.at[log.last_valid().0 as usize][&name("data")]);
    }
}

#[tokio::test]
async fn parallel_writers_of_one_block_do_not_undo_each_other() {
    let (store, keys) = vault().await;
    let log = TestLog::begin(&store, &keys, "db", 1).await;
    let history = load(&log).await;
    let disk = open(&history, log.last()).await.disk(&name("data")).expect("disk");
    let export = OverlayExport::create(disk, None).await.expect("created");
    let writes = (0..96u64).map(|i| export.write(i * 512, vec![i as u8 + 1; 512].into(), false));
    for written in futures::future::join_all(writes).await {
        written.expect("write");
    }
    let read = export.read(0, 96 * 512).await.expect("read");
    assert!((0..96).all(|i| read[i * 512..(i + 1) * 512].iter().all(|b| *b == i as u8 + 1)));
}

#[tokio::test]
async fn an_overlay_file_that_exists_and_requests_out_of_range_are_refused() {
    let (store, keys) = vault().await;
    let log = TestLog::begin(&store, &keys, "db", 1).await;
    let history = load(&log).await;
    let disk = open(&history, log.last()).await.disk(&name("data")).expect("disk");
    let directory = tempfile::tempdir().expect("temp dir");
    let path = directory.path().join("overlay");
    let export = OverlayExport::create(disk.clone(), Some(&path)).await.expect("created");
    export.write(0, vec![1; 512].into(), true).await.expect("write");
    assert!(matches!(OverlayExport::create(disk, Some(&path)).await, Err(RecoverError::Target { .. })));
    assert_eq!(export.read(48 << 10, 512).await.err(), Some(Errno::Invalid));
    assert_eq!(export.write(1, vec![1; 512].into(), false).await.err(), Some(Errno::Invalid));
}
