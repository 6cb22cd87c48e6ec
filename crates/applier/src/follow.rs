//! Following a stream: every accepted segment is promoted by a commit of the manifest, with the points it brings.
//!
//! The record tables are walked from the start of the stream at every start, because whether a position is a point
//! depends on all drains before it; segments that the manifest names already are compared with it on the way. One commit
//! a second at most: what waits for it are points and the replica, never the source.
//!
//! Fenced means that another applier has taken the manifest log over. Ours stops, says so, and tries again after a while:
//! two appliers that are both meant to run take turns loudly instead of fighting.

use std::sync::Arc;
use std::time::Duration;

use format::manifest::{ManifestCommit, Promoted};
use format::object::LogKind;
use model::{EventKind, LogHead, Position, RecordDigester, Severity};
use store::{EpochLog, LogEntry, LogPosition};
use tokio::time::Instant;

use crate::ApplierError;
use crate::applier::{Committed, Shared};
use crate::collect::Collection;
use crate::manifest::ManifestOwner;
use crate::points::{After, PointSchedule, incarnation_after};
use crate::recover::{RecoverError, stream_log_with};
use crate::replica::describe;
use crate::segments;
use crate::stream::{Found, StreamReader};

/// Time between two commits, unless [`COMMIT_SEGMENTS_MAX`] is reached.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Segments in one commit.
const COMMIT_SEGMENTS_MAX: usize = 64;

/// Wait after the first failure; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);

/// Longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Wait after damage: it does not mend itself, and each try leaves an epoch behind.
const DAMAGE_WAIT: Duration = Duration::from_secs(600);

/// Exit code of errors that are damage.
const DAMAGE_CODE: u8 = 3;

/// Wait before the manifest log is taken back from another applier.
const FENCED_WAIT: Duration = Duration::from_secs(30);

/// Follows one machine until stopped.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut retry = RETRY_MIN;
    while !shared.stop.is_cancelled() {
        let mut progressed = false;
        let error = match follow(&shared, &mut progressed).await {
            Ok(()) | Err(ApplierError::Stopped) => return,
            Err(error) => error,
        };
        shared.with_status(|status| status.manifest_epoch = 0);
        report(&shared, &error);
        if progressed {
            retry = RETRY_MIN;
        }
        let wait = match error.exit_code() {
            _ if error.fenced() => FENCED_WAIT,
            DAMAGE_CODE => DAMAGE_WAIT,
            _ => retry,
        };
        retry = (retry * 2).min(RETRY_MAX);
        if !shared.pause(wait).await {
            return;
        }
    }
}

fn report(shared: &Shared, error: &ApplierError) {
    let text = match error.fenced() {
        true => format!("another applier has taken this machine over; trying again in {FENCED_WAIT:?}"),
        false => describe(error),
    };
    let same = shared.with_status(|status| {
        let same = status.last_error.as_ref() == Some(&text);
        status.last_error = Some(text.clone());
        same
    });
    if !same {
        shared.event(Severity::Critical, EventKind::Store, text);
    }
}

/// Follows until stopped (`Ok`) or until something fails.
async fn follow(shared: &Shared, progressed: &mut bool) -> Result<(), ApplierError> {
    let log = stream_log_with(&shared.store, &shared.keys, &shared.machine, shared.rules.log);
    while !log.exists().await? {
        // A machine that was never protected gets no manifest log either.
        shared.with_status(|status| status.last_error = None);
        if !shared.pause(shared.config.poll).await {
            return Ok(());
        }
    }
    let owner = ManifestOwner::attach(&shared.store, &shared.keys, &shared.machine, shared.rules.log).await?;
    let mut follower = Follower::new(shared, log, owner);
    shared.with_status(|status| status.manifest_epoch = follower.owner.epoch());
    follower.run(progressed).await
}

/// How long the reader has to wait for more, and why.
enum Wait {
    /// Everything is read.
    CaughtUp,
    /// The end is not decided.
    Undecided,
}

struct Follower<'a> {
    shared: &'a Shared,
    log: EpochLog,
    owner: ManifestOwner,
    reader: StreamReader,
    schedule: PointSchedule,
    /// After the last record read.
    head: LogHead,
    /// Slots up to here are in the acknowledged manifest.
    folded: LogPosition,
    /// Segments compared with the manifest so far.
    compared: usize,
    next: ManifestCommit,
    committed_at: Option<Instant>,
    collection: Collection,
}

impl<'a> Follower<'a> {
    fn new(shared: &'a Shared, log: EpochLog, owner: ManifestOwner) -> Self {
        let mut schedule =
            PointSchedule::new(shared.machine.clone(), shared.config.crash_every).with_rules(shared.rules.applier);
        owner.manifest().points.iter().for_each(|point| schedule.known(point));
        let (epoch, slot) = owner.manifest().folded();
        Self {
            shared,
            reader: StreamReader::new(log.clone(), shared.rules.log),
            schedule,
            head: LogHead::default(),
            folded: LogPosition { epoch, slot },
            compared: 0,
            next: ManifestCommit::default(),
            committed_at: None,
            collection: Collection::new(),
            log,
            owner,
        }
    }

    /// Progress is to have read all there is: an epoch of our own is none.
    async fn run(&mut self, progressed: &mut bool) -> Result<(), ApplierError> {
        let mut published = false;
        while !self.shared.stop.is_cancelled() {
            let wait = self.read_next().await?;
            if matches!(wait, Some(Wait::CaughtUp)) && !*progressed {
                *progressed = true;
                self.shared.with_status(|status| status.last_error = None);
            }
            if !published && self.reader.end().position >= self.folded {
                published = true;
                self.publish();
            }
            if matches!(wait, Some(Wait::CaughtUp))
                && let Some(point) = self.schedule.idle(self.shared.clock.now())
            {
                self.next.points.push(point);
            }
            self.commit_if_due().await?;
            if matches!(wait, Some(Wait::CaughtUp)) {
                self.collection.run_if_due(self.shared, &self.owner, &self.log).await?;
            }
            self.tell(&wait);
            if wait.is_some() && !self.shared.pause(self.shared.config.poll).await {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes the next object in, or says why there is none.
    async fn read_next(&mut self) -> Result<Option<Wait>, ApplierError> {
        match self.reader.next().await? {
            Found::Entry(entry) => {
                if entry.position.slot > 0 {
                    self.take(*entry)?;
                }
                Ok(None)
            }
            Found::Unopened { .. } => Ok(Some(Wait::Undecided)),
            Found::End if self.reader.end().position < self.folded => Err(self.missing()),
            Found::End => Ok(Some(Wait::CaughtUp)),
        }
    }

    fn missing(&self) -> ApplierError {
        let at = self.reader.end().position;
        let path = segments::path(&self.shared.machine, LogKind::Stream, LogPosition { slot: at.slot + 1, ..at });
        segments::missing(path, "the manifest has promoted segments behind it").into()
    }

    fn take(&mut self, entry: LogEntry) -> Result<(), ApplierError> {
        let path = segments::path(&self.shared.machine, LogKind::Stream, entry.position);
        let table = segments::table(&self.shared.keys, &entry.header, &entry.bytes)
            .map_err(|source| ApplierError::damaged(path.clone(), source))?;
        let new = entry.position > self.folded;
        let mut digester = RecordDigester::resume(self.head.digest);
        let mut incarnation = self.head.position.incarnation;
        for record in &table.records {
            incarnation = incarnation_after(incarnation, record);
            let position = Position { incarnation, seq: record.seq };
            let after = After { position, time: record.time, digest: digester.push(record) };
            if let Some(point) = self.schedule.push(record, after, new) {
                self.next.points.push(point);
            }
        }
        if digester.digest() != entry.header.head.digest {
            let what = "the digest over its records is not the one its header states".to_owned();
            return Err(RecoverError::Damage { path, what }.into());
        }
        self.head = entry.header.head;
        let promoted = Promoted {
            id: entry.header.id,
            epoch: entry.position.epoch,
            slot: entry.position.slot,
            hash: entry.hash,
            head: entry.header.head,
            bytes: entry.header.total_bytes,
        };
        match new {
            true => self.next.segments.push(promoted),
            false => self.compare(&promoted, path)?,
        }
        Ok(())
    }

    /// What the manifest promoted must be what the stream holds.
    fn compare(&mut self, found: &Promoted, path: String) -> Result<(), ApplierError> {
        if self.owner.manifest().segments.get(self.compared) != Some(found) {
            return Err(ApplierError::Diverged { path });
        }
        self.compared += 1;
        Ok(())
    }

    async fn commit_if_due(&mut self) -> Result<(), ApplierError> {
        let (segments, points) = (self.next.segments.len(), self.next.points.len());
        let rested = self.committed_at.is_none_or(|at| at.elapsed() >= COMMIT_EVERY);
        if segments + points == 0 || !(rested || segments >= COMMIT_SEGMENTS_MAX) {
            return Ok(());
        }
        let marks: Vec<_> = self.next.points.iter().map(|point| (point.position.seq, point.id)).collect();
        self.owner.begin(std::mem::take(&mut self.next));
        self.finish().await?;
        self.collection.acknowledged();
        self.committed_at = Some(Instant::now());
        let (epoch, slot) = self.owner.manifest().folded();
        self.folded = LogPosition { epoch, slot };
        let machine = self.shared.machine.to_string();
        metrics::counter!("applier_segments_promoted_total", "machine" => machine.clone()).increment(segments as u64);
        metrics::counter!("applier_points_total", "machine" => machine).increment(points as u64);
        for (seq, id) in marks {
            self.shared.event(Severity::Info, EventKind::Point, format!("recovery point {id} at seq {seq}"));
        }
        self.publish();
        Ok(())
    }

    /// Tries until the commit is acknowledged, with the same bytes: an unclear PUT may have taken place.
    async fn finish(&mut self) -> Result<(), ApplierError> {
        let mut retry = RETRY_MIN;
        while self.owner.is_pending() {
            match self.owner.finish().await {
                Ok(()) => break,
                Err(error) if error.fenced() => return Err(error),
                Err(error) => report(self.shared, &error),
            }
            if !self.shared.pause(retry).await {
                return Err(ApplierError::Stopped);
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
        self.shared.with_status(|status| status.last_error = None);
        Ok(())
    }

    fn publish(&self) {
        let manifest = self.owner.manifest();
        let last = manifest.segments.last().map(|segment| segment.head).unwrap_or_default();
        self.shared.with_status(|status| {
            (status.processed_seq, status.processed_time) = (last.position.seq, last.time);
            (status.points, status.segments) = (manifest.points.len() as u64, manifest.segments.len() as u64);
        });
        let (segments, validity) = (manifest.segments.clone(), self.schedule.validity().clone());
        self.shared.commit(Committed { segments, validity });
    }

    fn tell(&self, wait: &Option<Wait>) {
        let done = matches!(wait, Some(Wait::CaughtUp)) && self.next.segments.is_empty();
        let lag = match done {
            true => 0.0,
            false => {
                let processed = self.owner.manifest().segments.last().map(|s| s.head.time).unwrap_or(self.head.time);
                self.shared.clock.now().since(processed).as_secs_f64()
            }
        };
        let draining = self.schedule.validity().draining();
        self.shared.with_status(|status| (status.lag_seconds, status.draining) = (lag, draining));
        metrics::gauge!("applier_lag_seconds", "machine" => self.shared.machine.to_string()).set(lag);
    }
}
