//! Rules 1 and 2: own a fresh epoch, find what it continues, open it.
//!
//! If the process dies behind the create of the epoch object, the epoch stays owned and unopened for ever: the next
//! writer goes past it. If it dies while the opening travels, the opening may land later and count: it holds nothing but
//! the end of what came before.

use format::object::{LogKind, ObjectHash, ObjectId, ObjectKind, Opening, SEES_ALL, SmallObject, seal_small};
use model::LogHead;

use super::entry::Extent;
use super::writer::LogWriter;
use super::{EpochLog, LogEnd, LogEntry, LogPosition, LogRules, RESTARTS_MAX};
use crate::{Created, StoreError};

/// Times another writer may be faster at creating an epoch before we give up.
const ATTACH_RACES_MAX: u32 = 64;

/// Bytes that make an epoch object its writer's own.
const NONCE_BYTES: usize = 16;

impl EpochLog {
    /// Rules 1 and 2: own a fresh epoch and find what it continues. From the create on, every older writer's next look
    /// fails. Errors: `Fenced` (a later writer is already at work), `Unclear` or `Unavailable` (the epoch may or may not
    /// be ours; it is abandoned, and attaching again is safe), `Damaged` or `Missing` (the log must be looked at).
    pub async fn attach(&self) -> Result<Attached, StoreError> {
        self.attach_with(LogRules::ALL).await
    }

    #[doc(hidden)]
    pub async fn attach_with(&self, rules: LogRules) -> Result<Attached, StoreError> {
        let epoch = self.own_epoch(rules).await?;
        let (end, entries) = match self.kind {
            LogKind::Stream => (self.find_end(epoch, rules).await?, Vec::new()),
            LogKind::Manifest => {
                let newest = self.read_newest_with(rules).await?;
                (newest.end, newest.entries)
            }
        };
        if end.position.epoch >= epoch {
            return Err(StoreError::Fenced { epoch, path: self.slot_path(end.position) });
        }
        // Whoever wrote what we continue may have died between linking a file and syncing its directory.
        if end.position.epoch > 0 {
            self.store.settle(&self.slot_path(end.position)).await?;
        }
        tracing::info!(machine = %self.machine, log = ?self.kind, epoch, continues = ?end.position, "epoch attached");
        Ok(Attached { log: self.clone(), epoch, end, entries, rules })
    }

    /// Rule 1. A number is tried until it is clear whose it is, and never passed over: a number passed over would hide
    /// every later epoch from those who probe.
    async fn own_epoch(&self, rules: LogRules) -> Result<u64, StoreError> {
        let (mut hint, mut skipped) = (0, 0);
        for _ in 0..ATTACH_RACES_MAX {
            hint = self.highest_epoch(hint).await?;
            let epoch = hint.saturating_add(1 + skipped);
            let path = self.epoch_path(epoch);
            let nonce = ObjectId::random();
            let object = seal_small(
                &self.keys,
                &SmallObject {
                    kind: ObjectKind::Epoch,
                    place: self.place(LogPosition { epoch, slot: 0 }),
                    prev_hash: ObjectHash::default(),
                    head: LogHead::default(),
                    gc_seen: 0,
                    body: &nonce.0[..NONCE_BYTES],
                },
            );
            match self.create(&path, vec![object], rules).await {
                Ok(Created::Ours) => {
                    match self.kind {
                        LogKind::Stream => {
                            probe::failpoint!("process-server-epoch-linked");
                        }
                        LogKind::Manifest => {
                            probe::failpoint!("applier-epoch-linked");
                        }
                    }
                    self.store.settle(&path).await?;
                    return Ok(epoch);
                }
                Ok(Created::Other) => tracing::debug!(path, "another writer was faster"),
                Err(StoreError::Unclear { .. }) if !rules.never_skip => skipped += 1,
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Unclear { path: self.epoch_path(hint.saturating_add(1)) })
    }

    /// Rule 2, with rule 5 at the hole: the accepted end of what lies below our epoch.
    async fn find_end(&self, epoch: u64, rules: LogRules) -> Result<LogEnd, StoreError> {
        for _ in 0..RESTARTS_MAX {
            let base = self.base.newest().await?;
            let start = self.opened_below(epoch, base).await?;
            let end = self.scan(start, Extent::Header, |_| ()).await?;
            if !rules.recheck_hole || self.base.newest().await?.position <= end.position {
                return Ok(end);
            }
            // The hole was made by deletion: what we scanned is folded.
        }
        Err(self.restless())
    }

    /// The highest opened epoch below `epoch`; the manifest's own epoch counts as opened.
    async fn opened_below(&self, epoch: u64, base: LogEnd) -> Result<LogEnd, StoreError> {
        for below in (base.position.epoch.saturating_add(1)..epoch).rev() {
            if let Some((entry, _)) = self.read_opening(below).await? {
                return Ok(entry.end());
            }
        }
        Ok(base)
    }

    pub(super) fn restless(&self) -> StoreError {
        let because = format!("the log was folded or opened anew {RESTARTS_MAX} times while its end was sought");
        StoreError::Missing { path: self.epoch_path(0), because }
    }
}

/// An epoch owned but not opened.
pub struct Attached {
    log: EpochLog,
    epoch: u64,
    end: LogEnd,
    entries: Vec<LogEntry>,
    rules: LogRules,
}

impl Attached {
    /// The accepted end of what came before: the opening continues it.
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// Our epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// For a manifest log: the newest opening and every slot behind it up to [`Attached::end`], whole, in order; empty
    /// for a new log. The state given to [`Attached::open`] is what these add up to. For a stream: empty.
    pub fn newest_entries(&self) -> &[LogEntry] {
        &self.entries
    }

    /// As [`Attached::open_seeing`] where the epoch refers to no other epoch of a stream.
    pub async fn open(self, state: Vec<u8>) -> Result<LogWriter, StoreError> {
        let seen = match self.log.kind {
            LogKind::Stream => SEES_ALL,
            LogKind::Manifest => 0,
        };
        self.open_seeing(state, seen).await
    }

    /// Writes slot 0 and looks (rules 2 and 3). `state` is the self-contained state of a manifest log, else empty; `gc_seen`
    /// the newest condemn list that was read since the epoch was attached.
    /// Errors: `Fenced`; `Unavailable` or `Unclear`, after which the epoch is abandoned: attach anew.
    pub async fn open_seeing(self, state: Vec<u8>, gc_seen: u64) -> Result<LogWriter, StoreError> {
        let Attached { log, epoch, end, entries: _, rules } = self;
        match log.kind {
            LogKind::Stream => {
                probe::failpoint!("process-server-epoch-attached");
            }
            LogKind::Manifest => {
                probe::failpoint!("applier-epoch-attached");
            }
        }
        let position = LogPosition { epoch, slot: 0 };
        let LogPosition { epoch: prev_epoch, slot: prev_end } = end.position;
        let object = seal_small(
            &log.keys,
            &SmallObject {
                kind: ObjectKind::Opening,
                place: log.place(position),
                prev_hash: end.hash,
                head: end.head,
                gc_seen,
                body: &Opening { prev_epoch, prev_end, state }.encode(),
            },
        );
        let hash = format::object::ObjectHeader::hash(&object).expect("an object sealed here has a whole header");
        let path = log.slot_path(position);
        if log.create(&path, vec![object], rules).await? == Created::Other {
            return Err(StoreError::Fenced { epoch, path });
        }
        log.store.settle(&path).await?;
        match log.kind {
            LogKind::Stream => {
                probe::failpoint!("process-server-opening-written");
            }
            LogKind::Manifest => {
                probe::failpoint!("applier-opening-written");
            }
        }
        let writer = LogWriter::new(log, epoch, LogEnd { position, hash, head: end.head }, gc_seen, rules);
        writer.look().await?;
        Ok(writer)
    }
}
