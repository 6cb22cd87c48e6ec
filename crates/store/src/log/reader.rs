//! Rules 4 and 5: what a reader may take in, and when a hole is an end.
//!
//! What lies in the highest epoch counts once a look made after reading it finds no higher epoch. What lies below counts
//! up to the end named by the chain of openings that hangs from the highest one: once that opening is accepted, no later
//! writer can cut the chain elsewhere, so the links are kept and need no more looks.

use std::collections::{BTreeMap, VecDeque};

use format::FormatError;
use format::object::LogKind;
use futures::future::join_all;

use super::entry::Extent;
use super::{EpochLog, LogEnd, LogEntry, LogPosition, LogRules, RESTARTS_MAX, ReadMode, SCAN_WIDTH_MAX};
use crate::StoreError;

/// What a reader found.
#[derive(Debug)]
pub enum Next {
    /// The next accepted object (openings included, as slot 0). In a manifest log an opening states everything and may
    /// follow any slot; in a stream nothing is ever passed over.
    Entry(Box<LogEntry>),
    /// Nothing more for now: this is the log's end.
    End,
    /// The highest epoch is owned but not opened: what follows is not decided. Wait, or attach and open one.
    Unopened {
        /// That epoch.
        epoch: u64,
    },
    /// The newest manifest lies past us: what we wanted is folded. Start again from it, with a new reader.
    Folded(LogEnd),
}

/// The accepted end of an epoch and the epoch that continues it.
#[derive(Debug, Clone, Copy)]
struct Link {
    end: u64,
    next: u64,
}

/// Follows a log by rules 4 and 5.
pub struct LogReader {
    log: EpochLog,
    mode: ReadMode,
    rules: LogRules,
    /// Behind what was returned last.
    end: LogEnd,
    /// Accepted, not returned yet; all of one epoch, in order, right behind `end`.
    ready: VecDeque<LogEntry>,
    /// For each epoch of the accepted chain from ours up to, not including, the highest.
    links: BTreeMap<u64, Link>,
    /// Highest epoch whose object was read.
    top: u64,
    /// Objects to read at once; grows while the reader is behind.
    width: u64,
}

enum Step {
    /// `ready` was filled, or the position needs another step.
    Again,
    Done(Next),
}

impl LogReader {
    /// Starts behind `from` (`LogEnd::default()` for the start of the log).
    pub fn new(log: EpochLog, from: LogEnd, mode: ReadMode) -> Self {
        Self::with_rules(log, from, mode, LogRules::ALL)
    }

    #[doc(hidden)]
    pub fn with_rules(log: EpochLog, from: LogEnd, mode: ReadMode, rules: LogRules) -> Self {
        let top = from.position.epoch;
        Self { log, mode, rules, end: from, ready: VecDeque::new(), links: BTreeMap::new(), top, width: 1 }
    }

    /// The next accepted object, or why there is none now. Cancel-safe; may be called again after any error.
    /// Errors: `Unavailable`; `Damaged` and `Missing` name an object that is not what the accepted log says.
    pub async fn next(&mut self) -> Result<Next, StoreError> {
        for _ in 0..RESTARTS_MAX {
            if let Some(entry) = self.ready.pop_front() {
                self.end = entry.end();
                self.links = self.links.split_off(&self.end.position.epoch);
                return Ok(Next::Entry(Box::new(entry)));
            }
            let epoch = self.end.position.epoch;
            let step = match self.links.get(&epoch).copied() {
                Some(link) => self.step_decided(link).await?,
                None => self.step_undecided().await?,
            };
            if let Step::Done(next) = step {
                return Ok(next);
            }
        }
        Err(self.log.restless())
    }

    /// Behind what it has returned last.
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// Our epoch's accepted end is known: everything up to it counts without a look.
    async fn step_decided(&mut self, link: Link) -> Result<Step, StoreError> {
        let at = self.end.position;
        let (wanted, count) = match at.slot.cmp(&link.end) {
            std::cmp::Ordering::Equal => (LogPosition { epoch: link.next, slot: 0 }, 1),
            std::cmp::Ordering::Less => (at.next_slot(), self.width.min(link.end - at.slot)),
            std::cmp::Ordering::Greater => return Err(self.cut_off(link)),
        };
        let read = self.read_ahead(wanted, count).await?;
        if !read.is_empty() {
            return Ok(self.accept(read, count));
        }
        let because = match wanted.slot {
            0 => format!("epoch {} was accepted as the one that follows epoch {}", link.next, at.epoch),
            _ => format!("the opening of epoch {} continues epoch {} behind slot {}", link.next, at.epoch, link.end),
        };
        self.folded_or(Err(StoreError::Missing { path: self.log.slot_path(wanted), because })).await
    }

    /// Our epoch may still grow, or may have been continued: rule 4.
    async fn step_undecided(&mut self) -> Result<Step, StoreError> {
        let at = self.end.position;
        let count = self.width;
        let read = self.read_ahead(at.next_slot(), count).await;
        // What was read stays apart from `ready` until the look has found nothing: this call may be dropped in between.
        self.top = self.log.highest_epoch(self.top.max(at.epoch)).await?;
        if self.top > at.epoch && self.rules.reader_looks {
            return self.step_to_top().await;
        }
        let read = read?;
        if !read.is_empty() {
            // On file:// the newest entries may be seen before their directory is synced; nothing rests on them before.
            self.log.store.settle(&self.log.slot_path(at.next_slot())).await?;
            return Ok(self.accept(read, count));
        }
        match self.top == at.epoch {
            true => self.folded_or(Ok(Next::End)).await,
            false => self.step_to_top().await,
        }
    }

    fn accept(&mut self, read: VecDeque<LogEntry>, asked: u64) -> Step {
        let full = read.len() as u64 == asked;
        self.width = if full && self.mode == ReadMode::Table { (self.width * 2).min(SCAN_WIDTH_MAX) } else { 1 };
        self.ready = read;
        Step::Again
    }

    /// A higher epoch exists: its opening decides, unless it is not there yet or is itself outdated.
    async fn step_to_top(&mut self) -> Result<Step, StoreError> {
        let top = self.top;
        let Some((opening, body)) = self.log.read_opening(top).await? else {
            return self.folded_or_unopened(top).await;
        };
        if self.rules.reader_looks_at_top {
            self.top = self.log.highest_epoch(top).await?;
            if self.top > top {
                return Ok(Step::Again);
            }
        }
        self.log.store.settle(&self.log.slot_path(opening.position)).await?;
        if self.log.kind == LogKind::Manifest {
            // Self-contained: what came before may be gone and is not needed.
            self.links.clear();
            self.ready.push_back(opening);
            return Ok(Step::Again);
        }
        self.resolve(top, Link { end: body.prev_end, next: top }, body.prev_epoch).await
    }

    /// Walks the links from the accepted opening of `top` down to our epoch.
    async fn resolve(&mut self, top: u64, mut link: Link, mut epoch: u64) -> Result<Step, StoreError> {
        let ours = self.end.position.epoch;
        let mut links = BTreeMap::from([(epoch, link)]);
        while epoch > ours {
            let Some((_, body)) = self.log.read_opening(epoch).await? else {
                let path = self.log.slot_path(LogPosition { epoch, slot: 0 });
                let because = format!("the opening of epoch {} continues it", link.next);
                return self.folded_or(Err(StoreError::Missing { path, because })).await;
            };
            link = Link { end: body.prev_end, next: epoch };
            epoch = body.prev_epoch;
            links.insert(epoch, link);
        }
        if epoch < ours {
            return self.folded_or(Err(self.cut_off(link))).await;
        }
        tracing::debug!(machine = %self.log.machine, top, from = ours, "chain of openings accepted");
        self.links = links;
        Ok(Step::Again)
    }

    /// The highest epoch has no opening. It was folded away if the newest manifest lies in that epoch; else nobody has opened
    /// it yet, and nothing is decided before somebody does, wherever the manifest's end lies. Who took that for a folded
    /// prefix would call a log damaged whose writer is just about to open.
    async fn folded_or_unopened(&self, top: u64) -> Result<Step, StoreError> {
        if self.log.kind == LogKind::Stream {
            let newest = self.log.base.newest().await?;
            if newest.position.epoch >= top && newest.position > self.end.position {
                return Ok(Step::Done(Next::Folded(newest)));
            }
        }
        Ok(Step::Done(Next::Unopened { epoch: top }))
    }

    /// Rule 5: nothing is concluded from a hole unless the newest manifest, read after seeing it, lies before it.
    async fn folded_or(&self, otherwise: Result<Next, StoreError>) -> Result<Step, StoreError> {
        if self.log.kind == LogKind::Stream {
            let newest = self.log.base.newest().await?;
            if newest.position > self.end.position {
                return Ok(Step::Done(Next::Folded(newest)));
            }
        }
        otherwise.map(Step::Done)
    }

    /// What we took in is not part of the accepted log: the store was set back, or holds a forged history.
    fn cut_off(&self, link: Link) -> StoreError {
        let at = self.end.position;
        let source = FormatError::Misplaced {
            found: format!("the opening of epoch {}, which leaves out epoch {} slot {}", link.next, at.epoch, at.slot),
            expected: "an opening that continues what was accepted before".to_owned(),
        };
        self.log.damaged(LogPosition { epoch: link.next, slot: 0 }, source)
    }

    /// Up to `count` slots from `first`, to the first hole; each continues the one before.
    async fn read_ahead(&self, first: LogPosition, count: u64) -> Result<VecDeque<LogEntry>, StoreError> {
        let extent = Extent::from(self.mode);
        let slots = (0..count).map(|i| LogPosition { slot: first.slot.saturating_add(i), ..first });
        let found = join_all(slots.map(|position| self.log.read_slot(position, extent))).await;
        let (mut end, mut read) = (self.end, VecDeque::new());
        for slot in found {
            let checked = slot.and_then(|entry| match entry {
                Some(entry) => self.log.check_continues(&end, &entry).map(|()| Some(entry)),
                None => Ok(None),
            });
            match checked {
                Ok(Some(entry)) => {
                    end = entry.end();
                    read.push_back(entry);
                }
                // What is good comes first; the error is met again when it is next.
                Err(error) if read.is_empty() => return Err(error),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(read)
    }
}
