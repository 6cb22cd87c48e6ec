//! The applier against streams made by [`crate::testing`]: every claim is checked byte for byte against the model.

mod adversaries;
mod collection;
mod damage;
mod overlay;
mod positions;
mod process;

use std::sync::Arc;
use std::time::Duration;

use model::{Extent, Selector, Seq};

use crate::recover::{History, LoadOptions, PointReader};
use crate::testing::{Contents, TestLog};

/// Loads the history of a test log.
async fn load(log: &TestLog) -> Arc<History> {
    let options = LoadOptions { settle: Duration::ZERO, progress: None };
    Arc::new(History::load(&log.store, log.keys.clone(), &log.machine, options).await.expect("loaded"))
}

fn open(history: &History, seq: Seq) -> PointReader {
    let at = history.resolve(&Selector::Seq(seq), None).expect("resolved");
    history.open(&at).expect("opened")
}

/// Reads every disk of a point whole.
async fn contents(point: &PointReader) -> Contents {
    let mut contents = Contents::new();
    for info in point.disks() {
        let disk = point.disk(&info.name).expect("listed");
        let whole = Extent::new(0, info.size).expect("not empty");
        contents.insert(info.name, Arc::new(disk.read(whole).await.expect("read").to_vec()));
    }
    contents
}
