//! The applier against streams made by [`crate::testing`]: every claim is checked byte for byte against the model.

mod adversaries;
mod collection;
mod consumers;
mod damage;
mod holds;
mod horizon;
mod overlay;
mod packs;
mod positions;
mod process;
mod reads;
mod replica;
mod sharing;
mod stages;
mod states;
mod times;
mod two_stores;
mod usage;

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

/// An applier that keeps every point, deletes nothing and has no replica: tests say what they want otherwise.
pub(crate) fn settings() -> ApplierConfig {
    ApplierConfig {
        data_dir: "unused".into(),
        crash_every: Duration::from_secs(60),
        journal_window: Duration::ZERO,
        retention: "1y:all".parse().expect("a retention"),
        poll: Duration::from_millis(1),
        replicas: Default::default(),
        replica_lag: Duration::MAX,
        map_segments: 2,
        pack_bytes: 64 << 20,
        commit_every: Duration::from_secs(1),
        tidy_every: Duration::from_secs(60),
        gc: false,
        gc_shared: None,
        state_digests: false,
    }
}

/// Polls until it holds; a test that waits in vain fails by name.
async fn wait_for(what: &str, holds: impl AsyncFnMut() -> bool) {
    waiting::until(what, waiting::Deadline::after(Duration::from_secs(60)), holds).await;
}

/// Runs an applier that keeps no replica until it has taken everything in and named it.
pub(crate) async fn follow(log: &TestLog, map_segments: usize) {
    let settings = ApplierConfig { map_segments, ..settings() };
    let (store, keys, machines) = (log.store.clone(), log.keys.clone(), vec![log.machine.clone()]);
    let applier = Applier::start(settings, store, keys, machines, Arc::new(SystemClock)).await.expect("started");
    wait_for("the applier", async || applier.status().machines[0].processed_seq == log.last()).await;
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
