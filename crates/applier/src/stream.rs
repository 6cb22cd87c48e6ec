//! The accepted stream of a machine behind some position, whether or not its prefix was collected.
//!
//! A log reader goes from object to object through the openings. Where openings below the folded position are gone it
//! says `Folded`, and from there the segments are taken by the names that the newest manifest and its maps give them; behind the
//! last of those the reader goes on. What must hold: every accepted segment is given once and in order, by whichever way.

use std::collections::VecDeque;

use format::manifest::Promoted;
use store::{EpochLog, LogEnd, LogEntry, LogPosition, LogReader, LogRules, Next, ReadMode};

use crate::maps::{Maps, segments_behind};
use crate::recover::RecoverError;
use crate::{ApplierError, manifest, segments};

/// What the stream goes on with.
pub(crate) enum Found {
    /// The next accepted object. Openings are given while they are there.
    Entry(Box<LogEntry>),
    /// Nothing more for now.
    End,
    /// The newest epoch is owned and not opened: what follows is not decided.
    Unopened {
        /// That epoch.
        epoch: u64,
    },
}

/// Reads the tables of a stream.
pub(crate) struct StreamReader {
    log: EpochLog,
    rules: LogRules,
    reader: LogReader,
    /// To be read by name, in order, before the reader goes on.
    named: VecDeque<Promoted>,
    /// Read by name, not given yet.
    ready: VecDeque<LogEntry>,
    /// Behind what was given last.
    end: LogEnd,
    /// Epoch of what was given last, and the condemn list that it says.
    seen: Option<(u64, u64)>,
}

impl StreamReader {
    /// Goes on behind `end`. `log` is a machine's stream, whose base is its manifest.
    pub fn behind(log: EpochLog, end: LogEnd, rules: LogRules) -> Self {
        let reader = LogReader::with_rules(log.clone(), end, ReadMode::Table, rules);
        Self { log, rules, reader, named: VecDeque::new(), ready: VecDeque::new(), end, seen: None }
    }

    /// Behind what was given last.
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// The next object, or why there is none now. Cancel-safe. Errors: `Damaged` and `Missing` name an object that is
    /// not what the accepted log, or the manifest, says.
    pub async fn next(&mut self) -> Result<Found, ApplierError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return self.give(entry);
            }
            if !self.named.is_empty() {
                let read = self.log.read_promoted(self.end, self.named.make_contiguous(), ReadMode::Table).await?;
                self.named.drain(..read.len());
                self.ready.extend(read);
                continue;
            }
            match self.reader.next().await? {
                Next::Entry(entry) => return self.give(*entry),
                Next::End => return Ok(Found::End),
                Next::Unopened { epoch } => return Ok(Found::Unopened { epoch }),
                Next::Folded(_) => self.go_by_name().await?,
            }
        }
    }

    /// An epoch answers for one condemn list from its opening to its end (docs/rfcs/0010-sharing.md).
    fn give(&mut self, entry: LogEntry) -> Result<Found, ApplierError> {
        let now = (entry.position.epoch, entry.header.gc_seen);
        if let Some(before) = self.seen.filter(|before| before.0 == now.0 && before.1 != now.1) {
            let what = format!("it answers for condemn list {}, and the object before it for {}", now.1, before.1);
            return Err(RecoverError::Damage { path: self.log.slot_path(entry.position), what }.into());
        }
        self.seen = Some(now);
        self.end = entry.end();
        Ok(Found::Entry(Box::new(entry)))
    }

    /// What the reader wanted is folded: the newest manifest names what comes next.
    async fn go_by_name(&mut self) -> Result<(), ApplierError> {
        let EpochLog { store, keys, machine, .. } = &self.log;
        let newest = manifest::read(&manifest::log(store, keys, machine), self.rules).await?;
        let maps = Maps::new(store.clone(), keys.clone(), machine.clone());
        let mut named = segments_behind(&maps, &newest.nodes, self.end.head.position.seq).await?;
        named.extend(newest.segments);
        let read = named.partition_point(|segment| position_of(segment) <= self.end.position);
        let Some(last) = named[read..].last() else {
            let path = self.log.slot_path(self.end.position.next_slot());
            return Err(segments::missing(path, "the manifest had segments behind it and has none any more").into());
        };
        let behind = LogEnd { position: position_of(last), hash: last.hash, head: last.head };
        self.reader = LogReader::with_rules(self.log.clone(), behind, ReadMode::Table, self.rules);
        self.named = named.split_off(read).into();
        Ok(())
    }
}

fn position_of(segment: &Promoted) -> LogPosition {
    LogPosition { epoch: segment.epoch, slot: segment.slot }
}
