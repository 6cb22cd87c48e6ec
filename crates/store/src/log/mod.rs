//! The epoch log (docs/rfcs/0001-epoch-log.md): the one primitive under streams and manifests.
//!
//! ```text
//! epoch/1   epoch/2   epoch/3          contested: whoever creates it owns seg/<n>/…
//!    │         │         │
//! seg/1/0   (never    seg/3/0          opening: continues epoch 1 at slot 2
//! seg/1/1    opened)  seg/3/1
//! seg/1/2 ◄───────────┘
//! seg/1/3  void: behind the end that the opening of epoch 3 names
//! ```
//! One file per rule: `epochs` (who is highest), `attach` (rules 1 and 2), `writer` (rule 3), `reader` (rule 4),
//! `newest` (rule 5 for manifest logs), `collect` (rule 6), `promoted` (reading by name where openings are gone), `entry`
//! (reading one object and checking that it belongs where it lies).
//! Epoch 0 is the start of every log: nobody owns it, it counts as opened, and it has no slots.

mod attach;
mod collect;
mod entry;
mod epochs;
mod newest;
mod promoted;
mod reader;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use format::keys::Keys;
use format::object::{LogKind, ObjectHash, ObjectHeader, ObjectKind, Place};
use model::{LogHead, MachineName};

use crate::vault::log_prefix;
use crate::{Created, Store, StoreError};

pub use attach::Attached;
pub use collect::{CollectError, Collected, Garbage, Needed, Plan, Proof, Why, preview_collection};
pub use newest::{ManifestBase, Newest};
pub use reader::{LogReader, Next};
pub use writer::LogWriter;

/// Objects read at once while a log is scanned.
const SCAN_WIDTH_MAX: u64 = 16;

/// Times a scan starts again because others moved the log meanwhile. Each time, somebody else has made progress.
const RESTARTS_MAX: u32 = 1000;

/// A place in a log: the last slot taken in. (0, 0) is the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPosition {
    /// Epoch.
    pub epoch: u64,
    /// Slot; 0 is the opening.
    pub slot: u64,
}

impl LogPosition {
    /// The slot behind this one; stays at the end of numbers, where no slot can be.
    pub fn next_slot(self) -> Self {
        Self { slot: self.slot.saturating_add(1), ..self }
    }
}

/// The end of a log, with what its next object must continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogEnd {
    /// Last accepted slot.
    pub position: LogPosition,
    /// Its chain link.
    pub hash: ObjectHash,
    /// Stream state after it.
    pub head: LogHead,
}

/// What the newest manifest says is folded: slots at or before it may be gone (rule 5). The base of a machine's stream
/// is its manifest ([`ManifestBase`]); a log whose prefix is never deleted may have [`Genesis`].
#[async_trait]
pub trait Base: Send + Sync {
    /// The newest folded position, read now.
    async fn newest(&self) -> Result<LogEnd, StoreError>;
}

/// The base of a log of which nothing is ever folded.
pub struct Genesis;

#[async_trait]
impl Base for Genesis {
    async fn newest(&self) -> Result<LogEnd, StoreError> {
        Ok(LogEnd::default())
    }
}

/// One log of one machine.
#[derive(Clone)]
pub struct EpochLog {
    /// Where.
    pub store: Store,
    /// How it is sealed.
    pub keys: Arc<Keys>,
    /// Whose.
    pub machine: MachineName,
    /// Which.
    pub kind: LogKind,
    /// What is folded. Not asked for a manifest log, whose openings are self-contained.
    pub base: Arc<dyn Base>,
}

impl EpochLog {
    /// Path of an epoch object.
    pub fn epoch_path(&self, epoch: u64) -> String {
        format!("{}/epoch/{epoch:016x}", log_prefix(&self.machine, self.kind))
    }

    /// Path of a slot.
    pub fn slot_path(&self, position: LogPosition) -> String {
        let LogPosition { epoch, slot } = position;
        format!("{}/seg/{epoch:016x}/{slot:016x}", log_prefix(&self.machine, self.kind))
    }

    /// Whether any epoch of this log exists.
    pub async fn exists(&self) -> Result<bool, StoreError> {
        self.epoch_exists(1).await
    }

    /// A look: the highest epoch at some moment after this call began; 0 while there is none.
    pub async fn newest_epoch(&self) -> Result<u64, StoreError> {
        self.highest_epoch(0).await
    }

    /// Rule 7, for every object of a log.
    async fn create(&self, path: &str, parts: Vec<Bytes>, rules: LogRules) -> Result<Created, StoreError> {
        match self.store.create(path, parts).await {
            Ok(Created::Other) | Err(StoreError::Unclear { .. }) if !rules.compares_doubt => Ok(Created::Ours),
            result => result,
        }
    }

    fn place(&self, position: LogPosition) -> Place {
        let LogPosition { epoch, slot } = position;
        Place { machine: Some(self.machine.clone()), log: Some(self.kind), epoch, slot }
    }

    fn slot_kind(&self, slot: u64) -> ObjectKind {
        match (slot, self.kind) {
            (0, _) => ObjectKind::Opening,
            (_, LogKind::Stream) => ObjectKind::Segment,
            (_, LogKind::Manifest) => ObjectKind::Manifest,
        }
    }
}

/// How much of each object a reader fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// Header and table only (two ranged reads at most).
    Table,
    /// Everything.
    Whole,
}

/// An accepted object of a log. Its header is authenticated, in its place, and continues the chain.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// Where it lies.
    pub position: LogPosition,
    /// Its header.
    pub header: ObjectHeader,
    /// Its chain link.
    pub hash: ObjectHash,
    /// Header and table, or the whole object, by [`ReadMode`]. Openings are always whole.
    pub bytes: Bytes,
}

impl LogEntry {
    /// The log's end when this is its last object.
    pub fn end(&self) -> LogEnd {
        LogEnd { position: self.position, hash: self.hash, head: self.header.head }
    }
}

/// Which rules hold: all of them, everywhere but in tests, which take one away to prove that it is needed.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct LogRules {
    /// Rule 1: an epoch number is never skipped after an unclear create.
    pub never_skip: bool,
    /// Rule 3: slots are acknowledged in order.
    pub acks_in_order: bool,
    /// Rule 3: a writer looks before it acknowledges, and after its opening.
    pub writer_looks: bool,
    /// Rule 4: what a reader read counts once a look finds no higher epoch.
    pub reader_looks: bool,
    /// Rule 4: the highest epoch's opening counts once a look finds no higher epoch.
    pub reader_looks_at_top: bool,
    /// Rule 5: a hole is an end only if the newest manifest still lies before it.
    pub recheck_hole: bool,
    /// Rule 5: in a manifest log, a hole is the end only if no higher epoch is opened.
    pub recheck_manifest_hole: bool,
    /// Rule 5: the openings above were read; one more look shows that none was replaced by a higher one meanwhile.
    pub second_look_up: bool,
    /// Rule 7: what lies there after anything but clean success is compared, not trusted to be ours.
    pub compares_doubt: bool,
    /// Rule 6: the manifest that makes an object needless is acknowledged before the object is deleted.
    pub acknowledged_before_deleting: bool,
}

impl LogRules {
    /// Every rule.
    pub const ALL: LogRules = LogRules {
        never_skip: true,
        acks_in_order: true,
        writer_looks: true,
        reader_looks: true,
        reader_looks_at_top: true,
        recheck_hole: true,
        recheck_manifest_hole: true,
        second_look_up: true,
        compares_doubt: true,
        acknowledged_before_deleting: true,
    };
}
