//! Chunks that streams share: where those of earlier epochs, of any stream of this server, already lie (docs/rfcs/0010-sharing.md).
//!
//! Only chunks that drains bring in are offered, and only drains look for them: machines cloned from one template, or one
//! machine that is resynchronised, send the same again. What must hold: a chunk is learned when its segment is acknowledged,
//! for until then its slot may turn out void. An epoch refers to nothing that the lists it has read condemn; it reads them
//! after it was created and before its opening says which was the newest. Forgetting an entry costs bytes, never
//! correctness; a restart forgets all.

use std::sync::Arc;

use format::keys::ChunkId;
use format::object::{ObjectId, SEES_ALL, StreamEpoch};
use probe::{Rule, Rules};
use store::{Condemned, EpochLog, LogRules, LogWriter, StoreError, VaultLists};

use crate::dedup::{Chunks, chunks};

/// A chunk in a segment that is offered to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Which chunk.
    pub chunk: ChunkId,
    /// Frame of the segment.
    pub frame: u32,
    /// Offset in the frame's plaintext.
    pub offset: u32,
}

/// Where a shared chunk lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedChunk {
    /// Stream and epoch.
    pub epoch: Arc<StreamEpoch>,
    /// The segment's id.
    pub segment: ObjectId,
    /// Its slot.
    pub slot: u64,
    /// Frame there.
    pub frame: u32,
    /// Offset in the frame's plaintext.
    pub offset: u32,
}

/// What the streams of a server share.
pub struct Sharing {
    chunks: Chunks<ChunkId, SharedChunk>,
    lists: VaultLists,
    rules: Rules,
}

impl Sharing {
    /// Remembers at most `entries_max` chunks (about 150 bytes each), and more than none.
    pub fn new(entries_max: usize, lists: VaultLists, rules: Rules) -> Self {
        Sharing { chunks: chunks(entries_max), lists, rules }
    }

    /// Whether chunks are learned only when they are stored.
    fn learns_when_stored(&self) -> bool {
        self.rules.hold(Rule::SharedWhenStored)
    }
}

/// What one epoch of a stream shares.
#[derive(Clone)]
pub struct EpochShare {
    sharing: Arc<Sharing>,
    own: Arc<StreamEpoch>,
    condemned: Arc<Condemned>,
}

impl EpochShare {
    /// Where a chunk of an acknowledged segment lies, if this epoch may refer to it.
    pub fn find(&self, chunk: &ChunkId) -> Option<SharedChunk> {
        self.sharing.chunks.get(chunk).filter(|found| !self.condemned.contains(&found.epoch))
    }

    /// A job has put a chunk into a segment that is not stored yet: nobody else may know of it.
    pub(crate) fn offered(&self, segment: ObjectId, slot: u64, offer: &Offer) {
        if !self.sharing.learns_when_stored() {
            // Careless: it will be stored soon.
            self.learn(segment, slot, offer);
        }
    }

    /// A segment of this epoch is acknowledged: others may refer to it from here on.
    pub(crate) fn stored(&self, segment: ObjectId, slot: u64, offers: &[Offer]) {
        offers.iter().for_each(|offer| self.learn(segment, slot, offer));
    }

    fn learn(&self, segment: ObjectId, slot: u64, offer: &Offer) {
        let Offer { chunk, frame, offset } = *offer;
        self.sharing.chunks.insert(chunk, SharedChunk { epoch: self.own.clone(), segment, slot, frame, offset });
    }
}

/// An epoch of a stream, open, and what it shares; none where it refers to no other epoch.
pub struct Opened {
    /// Its writer.
    pub writer: LogWriter,
    /// What it shares.
    pub share: Option<EpochShare>,
}

/// Owns and opens the next epoch of a stream. With `sharing` the machine is entered in the registry before the epoch exists, and
/// the lists are read after. A list that is damaged keeps nobody from being replicated: then the epoch shares nothing.
/// Errors: those of the log; `Unavailable`.
pub async fn open_stream(
    log: &EpochLog,
    rules: LogRules,
    sharing: Option<&Arc<Sharing>>,
) -> Result<Opened, StoreError> {
    let Some(sharing) = sharing else { return open_alone(log, rules).await };
    if !usable(sharing.lists.register(&log.machine).await)? {
        return open_alone(log, rules).await;
    }
    // Careless: what is condemned meanwhile, the next epoch will heed.
    let early = match sharing.rules.hold(Rule::ListsAfterEpoch) {
        true => None,
        false => Some(sharing.lists.condemned().await?),
    };
    let attached = log.attach_with(rules).await?;
    let own = Arc::new(StreamEpoch { machine: log.machine.clone(), epoch: attached.epoch() });
    let read = match early {
        None => sharing.lists.condemned().await,
        Some(early) => Ok(early),
    };
    let condemned = match read {
        Ok(condemned) => condemned,
        read => {
            usable(read.map(|_| ()))?;
            return Ok(Opened { writer: attached.open(Vec::new()).await?, share: None });
        }
    };
    let writer = attached.open_seeing(Vec::new(), condemned.lists()).await?;
    Ok(Opened { writer, share: Some(EpochShare { sharing: sharing.clone(), own, condemned }) })
}

async fn open_alone(log: &EpochLog, rules: LogRules) -> Result<Opened, StoreError> {
    let writer = log.attach_with(rules).await?.open(Vec::new()).await?;
    debug_assert_eq!(writer.gc_seen(), SEES_ALL, "an epoch that refers to no other answers for every list");
    Ok(Opened { writer, share: None })
}

/// Whether the lists can be used. Errors: the store does not answer, which passes.
fn usable(read: Result<(), StoreError>) -> Result<bool, StoreError> {
    match read {
        Ok(()) => Ok(true),
        Err(error @ (StoreError::Unavailable { .. } | StoreError::Unclear { .. })) => Err(error),
        Err(error) => {
            tracing::error!(%error, "the vault's lists cannot be read: nothing is shared until they are mended");
            Ok(false)
        }
    }
}
