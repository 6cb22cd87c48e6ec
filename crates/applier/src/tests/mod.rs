//! The applier against streams made by [`crate::testing`]: every claim is checked byte for byte against the model.

mod adversaries;
mod collection;
mod damage;
mod horizon;
mod overlay;
mod positions;
mod process;
mod replica;
mod states;
mod times;

use std::sync::Arc;
use std::time::Duration;

use model::{Extent, Selector, Seq};

use crate::recover::{History, LoadOptions, PointReader};
use crate::testing::{Contents, TestLog};
use crate::{Applier, ApplierConfig, SystemClock};

/// Loads the history of a test log.
async fn load(log: &TestLog) -> Arc<History> {
    let options = LoadOptions { settle: Duration::ZERO, ..LoadOptions::default() };
    Arc::new(History::load(&log.store, log.keys.clone(), &log.machine, options).await.expect("loaded"))
}

async fn open(history: &History, seq: Seq) -> PointReader {
    let at = history.resolve(&Selector::Seq(seq), None).await.expect("resolved");
    history.open(&at).await.expect("opened")
}

/// Runs an applier that keeps no replica until it has taken everything in and named it.
pub(crate) async fn follow(log: &TestLog, map_segments: usize) {
    let poll = Duration::from_millis(1);
    let (data_dir, crash_every) = ("unused".into(), Duration::from_secs(60));
    let (journal_window, retention) = (Duration::ZERO, "1y:all".parse().expect("a retention"));
    let (replicas, replica_lag, gc, state_digests) = (Default::default(), Duration::MAX, false, false);
    let settings = ApplierConfig {
        data_dir,
        crash_every,
        journal_window,
        retention,
        poll,
        replicas,
        replica_lag,
        map_segments,
        tidy_every: Duration::from_secs(60),
        gc,
        state_digests,
    };
    let (store, keys, machines) = (log.store.clone(), log.keys.clone(), vec![log.machine.clone()]);
    let applier = Applier::start(settings, store, keys, machines, Arc::new(SystemClock)).await.expect("started");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while applier.status().machines[0].processed_seq != log.last() {
        assert!(std::time::Instant::now() < deadline, "the applier takes everything in: {:?}", applier.status());
        tokio::time::sleep(poll).await;
    }
    applier.stop().await;
}

/// Reads every disk of a point whole.
pub(crate) async fn contents(point: &PointReader) -> Contents {
    let mut contents = Contents::new();
    for info in point.disks() {
        let disk = point.disk(&info.name).expect("listed");
        let whole = Extent::new(0, info.size).expect("not empty");
        contents.insert(info.name, Arc::new(disk.read(whole).await.expect("read").to_vec()));
    }
    contents
}
