//! Rule 5 for manifest logs: the newest manifest, read from its own epoch log; and the base of a stream made of it.
//!
//! A manifest log's openings are self-contained, so its newest state is the highest *opened* epoch's opening and the
//! slots behind it. An epoch that is owned and not opened yet says nothing, and nobody waits for it: an applier may have
//! died there. A hole is the end only if no higher epoch is opened by then; else the slots may have been deleted under us.

use async_trait::async_trait;
use format::FormatError;
use format::manifest::{Manifest, ManifestCommit, Promoted};
use format::object::{LogKind, Opening, open_small};
use tokio::sync::Mutex;

use super::entry::Extent;
use super::{Base, EpochLog, LogEnd, LogEntry, LogPosition, LogRules, RESTARTS_MAX};
use crate::StoreError;

/// The newest state of a manifest log.
#[derive(Debug, Clone, Default)]
pub struct Newest {
    /// Its last slot; the default when nothing was ever opened.
    pub end: LogEnd,
    /// The opening and every slot behind it, whole, in order.
    pub entries: Vec<LogEntry>,
}

impl EpochLog {
    /// Reads the newest state of a manifest log. Needs no writer to be alive and writes nothing. What it returns is at
    /// least as new as anything that was acknowledged before the call.
    pub async fn read_newest(&self) -> Result<Newest, StoreError> {
        self.read_newest_with(LogRules::ALL).await
    }

    #[doc(hidden)]
    pub async fn read_newest_with(&self, rules: LogRules) -> Result<Newest, StoreError> {
        for _ in 0..RESTARTS_MAX {
            let top = self.highest_epoch(0).await?;
            let mut newest = Newest::default();
            if let Some(opening) = self.highest_opened(1, top).await? {
                newest.end = opening.end();
                newest.entries.push(opening);
            }
            newest.end = self.scan(newest.end, Extent::Whole, |entry| newest.entries.push(entry)).await?;
            if !self.opened_above(newest.end.position.epoch, top, rules).await? {
                return Ok(newest);
            }
        }
        Err(self.restless())
    }

    /// The highest of these epochs that is opened, if one is.
    async fn highest_opened(&self, from: u64, through: u64) -> Result<Option<LogEntry>, StoreError> {
        for epoch in (from..=through).rev() {
            if let Some((entry, _)) = self.read_opening(epoch).await? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Whether an epoch above this one was opened when this call began.
    ///
    /// Openings are deleted too, each by the owner of a higher opened epoch, so one that is not there may have been there.
    /// Read upwards, a deleted one leads to the higher one that replaced it; and the look at the end proves that none
    /// was replaced by an epoch above those that were read. Read downwards, or without that look, an opened epoch can slip
    /// through between two reads, and an old manifest passes for the newest.
    async fn opened_above(&self, epoch: u64, hint: u64, rules: LogRules) -> Result<bool, StoreError> {
        let (mut top, mut next) = (hint.max(epoch), epoch.saturating_add(1));
        if !rules.recheck_manifest_hole {
            return Ok(false);
        }
        for _ in 0..RESTARTS_MAX {
            top = self.highest_epoch(top).await?;
            if next > top {
                return Ok(false);
            }
            for above in next..=top {
                if self.read_opening(above).await?.is_some() {
                    return Ok(true);
                }
            }
            if !rules.second_look_up {
                return Ok(false);
            }
            next = top.saturating_add(1);
        }
        Err(self.restless())
    }
}

/// The base of a machine's stream: what its newest manifest has folded. Remembers how far it has read the manifest log,
/// so asking again costs two small reads.
pub struct ManifestBase {
    log: EpochLog,
    rules: LogRules,
    read: Mutex<Option<FoldedAt>>,
}

/// What was folded as of some slot of the manifest log.
#[derive(Clone, Copy)]
struct FoldedAt {
    manifest_end: LogEnd,
    folded: LogEnd,
}

impl ManifestBase {
    /// `log` is the machine's manifest log.
    pub fn new(log: EpochLog) -> Self {
        Self::with_rules(log, LogRules::ALL)
    }

    #[doc(hidden)]
    pub fn with_rules(log: EpochLog, rules: LogRules) -> Self {
        debug_assert_eq!(log.kind, LogKind::Manifest);
        Self { log, rules, read: Mutex::new(None) }
    }

    /// Knows already what was read of its log; the next question costs two small reads.
    pub fn knowing(log: EpochLog, newest: &Newest, rules: LogRules) -> Result<Self, StoreError> {
        let base = Self::with_rules(log, rules);
        let folded = base.fold(LogEnd::default(), &newest.entries)?;
        let read = Mutex::new(Some(FoldedAt { manifest_end: newest.end, folded }));
        Ok(Self { read, ..base })
    }

    /// Goes on from what was read before. None when a higher epoch is opened: start again there.
    async fn go_on(&self, at: FoldedAt) -> Result<Option<FoldedAt>, StoreError> {
        let mut entries = Vec::new();
        let manifest_end = self.log.scan(at.manifest_end, Extent::Whole, |entry| entries.push(entry)).await?;
        let folded = self.fold(at.folded, &entries)?;
        let epoch = manifest_end.position.epoch;
        if self.log.opened_above(epoch, epoch, self.rules).await? {
            return Ok(None);
        }
        Ok(Some(FoldedAt { manifest_end, folded }))
    }

    fn fold(&self, mut folded: LogEnd, entries: &[LogEntry]) -> Result<LogEnd, StoreError> {
        for entry in entries {
            let last = match step(&self.log, entry).map_err(|e| self.log.damaged(entry.position, e))? {
                // An opening states everything: without segments nothing is folded.
                Step::Whole(manifest) => Some(manifest.last().map(folded_by).unwrap_or_default()),
                Step::Commit(commit) => commit.segments.last().map(folded_by),
            };
            folded = last.unwrap_or(folded);
        }
        Ok(folded)
    }
}

fn folded_by(last: &Promoted) -> LogEnd {
    LogEnd { position: LogPosition { epoch: last.epoch, slot: last.slot }, hash: last.hash, head: last.head }
}

/// What one object of a manifest log says.
enum Step {
    /// An opening: everything.
    Whole(Box<Manifest>),
    /// A commit: what is new.
    Commit(Box<ManifestCommit>),
}

fn step(log: &EpochLog, entry: &LogEntry) -> Result<Step, FormatError> {
    let (kind, place) = (log.slot_kind(entry.position.slot), log.place(entry.position));
    let (_, body) = open_small(&log.keys, kind, &place, &entry.bytes)?;
    Ok(match entry.position.slot {
        0 => Step::Whole(Box::new(Manifest::decode(&Opening::decode(&body)?.state)?)),
        _ => Step::Commit(Box::new(ManifestCommit::decode(&body)?)),
    })
}

impl EpochLog {
    /// The manifest that these objects of a manifest log, an opening and what lies behind it, come to.
    /// Errors: `Damaged` names the first that is not what it must be.
    pub fn manifest_of(&self, entries: &[LogEntry]) -> Result<Manifest, StoreError> {
        let mut manifest = Manifest::default();
        for entry in entries {
            let applied = step(self, entry).and_then(|step| match step {
                Step::Whole(whole) => {
                    manifest = *whole;
                    Ok(())
                }
                Step::Commit(commit) => manifest.apply(*commit),
            });
            applied.map_err(|source| self.damaged(entry.position, source))?;
        }
        Ok(manifest)
    }
}

#[async_trait]
impl Base for ManifestBase {
    async fn newest(&self) -> Result<LogEnd, StoreError> {
        // Held across reads so that callers share one reading; each call still reads after it began.
        let mut read = self.read.lock().await;
        if let Some(at) = *read
            && let Some(now) = self.go_on(at).await?
        {
            *read = Some(now);
            return Ok(now.folded);
        }
        *read = None;
        let newest = self.log.read_newest_with(self.rules).await?;
        let folded = self.fold(LogEnd::default(), &newest.entries)?;
        *read = Some(FoldedAt { manifest_end: newest.end, folded });
        Ok(folded)
    }
}
