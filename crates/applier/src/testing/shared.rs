//! What the process server does to share chunks between streams, for [`super::TestLog`]: learn what is stored, read the lists
//! after the epoch was created, refer to nothing that they condemn.

use std::sync::{Arc, Mutex, PoisonError};

use format::object::StreamEpoch;
use format::segment::SegmentRef;
use store::{Condemned, EpochLog, LogWriter, VaultLists};

use super::Chunks;

/// An index over streams, as one of them uses it.
#[derive(Clone)]
pub(crate) struct TestShare {
    index: Arc<Mutex<Chunks>>,
    pub lists: VaultLists,
    condemned: Arc<Condemned>,
    /// A process server that does not heed the lists.
    pub careless: bool,
}

impl TestShare {
    /// Nothing known yet. Clones share what they learn.
    pub fn new(lists: VaultLists) -> Self {
        Self { index: Arc::default(), lists, condemned: Arc::default(), careless: false }
    }

    pub fn find(&self, chunk: &[u8]) -> Option<(SegmentRef, u32, u32)> {
        let found = self.index.lock().unwrap_or_else(PoisonError::into_inner).get(chunk).cloned()?;
        let at = StreamEpoch { machine: found.0.machine.clone(), epoch: found.0.epoch };
        (self.careless || !self.condemned.contains(&at)).then_some(found)
    }

    pub fn stored(&self, offers: Chunks) {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).extend(offers);
    }
}

/// The next epoch of a stream, open.
pub(super) async fn open(log: &EpochLog, share: Option<&mut TestShare>) -> LogWriter {
    let Some(share) = share else {
        return log.attach().await.expect("attached").open(Vec::new()).await.expect("opened");
    };
    share.lists.register(&log.machine).await.expect("entered");
    let attached = log.attach().await.expect("attached");
    share.condemned = share.lists.condemned().await.expect("read");
    attached.open_seeing(Vec::new(), share.condemned.lists()).await.expect("opened")
}
