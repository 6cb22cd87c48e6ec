//! Following a stream: every accepted segment is promoted by a commit of the manifest, with the points it brings; where the
//! vault is a store of its own, it is copied there before that.
//!
//! A start goes on behind the last map: the manifest names the drains before it, which is all that decides whether later
//! positions are points. Segments that the manifest names already are compared with it on the way. When enough segments
//! are promoted, a map takes them in; a commit names it. One commit a second at most: what waits for it are points and the
//! replica, never the source.
//!
//! Fenced means that another applier has taken the manifest log over. Ours stops, says so, and tries again after a while:
//! two appliers that are both meant to run take turns loudly instead of fighting.

mod commit;

use std::sync::Arc;
use std::time::Duration;

use format::manifest::{Drain, ManifestCommit, Promoted};
use format::object::LogKind;
use model::{EventKind, LogHead, Position, RecordDigester, Severity};
use store::{EpochLog, LogEntry, LogPosition};
use tokio::time::Instant;

use crate::ApplierError;
use crate::applier::{SegmentRun, Shared};
use crate::collect::Collection;
use crate::consumers::{self, Consuming};
use crate::holds::Holds;
use crate::horizon::Moving;
use crate::manifest::ManifestOwner;
use crate::maps::{Mapping, Maps, Stretch};
use crate::pins::PinsUnderway;
use crate::points::{After, PointSchedule, incarnation_after};
use crate::promote::Promotion;
use crate::recover::{RecoverError, Validity, stream_log_with};
use crate::replica::describe;
use crate::segments;
use crate::sharing::Referring;
use crate::stages::Stage;
use crate::stream::{Found, StreamReader};
use crate::thin::Thinning;

/// Wait after the first failure; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);

/// Longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Wait after damage: it does not mend itself, and each try leaves an epoch behind.
const DAMAGE_WAIT: Duration = Duration::from_secs(600);

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
        let wait = if error.fenced() {
            FENCED_WAIT
        } else if error.is_damage() {
            DAMAGE_WAIT
        } else {
            retry
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
    if shared.store.cache().is_some() {
        // While the cache store is away, every try would leave an epoch of the manifest log in the vault store.
        log.newest_epoch().await?;
    }
    consumers::look(shared).await?;
    let owner = ManifestOwner::attach(&shared.store, &shared.keys, &shared.machine, shared.rules.log).await?;
    let mut follower = Follower::new(shared, log, owner).await?;
    follower.state_cursor().await?;
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
    /// Read, and not taken in before the leaf of the epoch before it is put.
    waiting: Option<Box<LogEntry>>,
    /// Segments of the manifest that were met again since the start.
    compared: usize,
    /// Segments behind the start, for the replica.
    recent: SegmentRun,
    next: ManifestCommit,
    committed_at: Option<Instant>,
    promotion: Promotion,
    mapping: Mapping,
    thinning: Thinning,
    pins: PinsUnderway,
    holds: Holds,
    moving: Moving,
    collection: Collection,
    consuming: Consuming,
    referring: Referring,
}

impl<'a> Follower<'a> {
    async fn new(shared: &'a Shared, log: EpochLog, owner: ManifestOwner) -> Result<Self, ApplierError> {
        let manifest = owner.manifest();
        let start = Stretch::behind(manifest.nodes.clone()).start();
        let mut schedule = PointSchedule::behind(shared.machine.clone(), shared.config.crash_every, &start, |to| {
            Validity::replay(&manifest.drains, to, shared.rules.applier)
        });
        manifest.points.iter().for_each(|point| schedule.known(point));
        let (epoch, slot) = manifest.folded();
        let maps = Arc::new(Maps::new(shared.store.clone(), shared.keys.clone(), shared.machine.clone()));
        Ok(Self {
            shared,
            reader: StreamReader::behind(log.clone(), start, shared.rules.log),
            schedule,
            head: start.head,
            folded: LogPosition { epoch, slot },
            waiting: None,
            compared: 0,
            recent: SegmentRun { start: start.head, segments: Vec::new() },
            next: ManifestCommit::default(),
            committed_at: None,
            promotion: Promotion::behind(epoch),
            mapping: Mapping::behind(maps, manifest, shared.config.map_segments, shared.rules.applier).await?,
            thinning: Thinning::default(),
            pins: PinsUnderway::default(),
            holds: Holds::new(shared),
            moving: Moving::default(),
            collection: Collection::new(),
            consuming: Consuming::new(shared, &owner).await?,
            referring: Referring::new(&log),
            log,
            owner,
        })
    }

    /// Progress is to have read all there is: an epoch of our own is none.
    async fn run(&mut self, progressed: &mut bool) -> Result<(), ApplierError> {
        let (mut published, mut turn_at) = (false, Instant::now());
        while !self.shared.stop.is_cancelled() {
            let wait = self.read_next().await?;
            if matches!(wait, Some(Wait::CaughtUp)) && !*progressed {
                *progressed = true;
                self.shared.with_status(|status| status.last_error = None);
            }
            if !published && self.has_met_all() {
                published = true;
                self.publish();
            }
            if matches!(wait, Some(Wait::CaughtUp))
                && let Some(point) = self.schedule.idle(self.shared.clock.now())
            {
                self.next.points.push(point);
            }
            // Not before everything the manifest names was met again: until then nobody knows which points are valid.
            if self.has_met_all() && self.next.dropped.is_empty() {
                let (config, now) = (&self.shared.config, self.shared.clock.now());
                let (manifest, validity) = (self.owner.manifest(), self.schedule.validity());
                self.next.dropped = self.thinning.due(config, manifest, validity, now);
            }
            if self.has_met_all() {
                let (manifest, validity) = (self.owner.manifest(), self.schedule.validity());
                self.holds.take_up(self.shared, manifest, validity, &mut self.next).await?;
            }
            self.pins.take_up(&self.shared.pins, self.owner.manifest(), &mut self.next);
            self.shared.reckonings.take_up(self.owner.manifest(), &mut self.next);
            let committed = self.commit_if_due().await?;
            if self.is_leaf_full() {
                self.put_map().await?;
            }
            self.state_cursor().await?;
            // Behind a commit too, at last: where each takes so long that more has come meanwhile, there is never nothing to read.
            let overdue = committed && turn_at.elapsed() >= self.shared.config.tidy_every;
            if (matches!(wait, Some(Wait::CaughtUp)) || overdue) && self.shared.config.gc {
                turn_at = Instant::now();
                self.move_horizon().await?;
                self.collect().await?;
                self.holds.sweep(self.owner.manifest()).await?;
            }
            self.tell(&wait);
            if wait.is_some() && !self.shared.pause(self.shared.config.poll).await {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether everything that the manifest names was read again and taken in.
    fn has_met_all(&self) -> bool {
        self.waiting.is_none() && self.reader.end().position >= self.folded
    }

    /// Whether the leaf is to be put before anything else is taken in.
    fn is_leaf_full(&self) -> bool {
        self.mapping.is_full() || self.waiting.is_some()
    }

    /// Takes the next object in, or says why there is none.
    async fn read_next(&mut self) -> Result<Option<Wait>, ApplierError> {
        let begun = Instant::now();
        if let Some(entry) = self.waiting.take() {
            self.take(*entry, begun).await?;
            return Ok(None);
        }
        match self.reader.next().await? {
            Found::Entry(entry) if entry.position.slot == 0 => {
                self.promotion.crosses(&entry);
                Ok(None)
            }
            Found::Entry(entry) if self.mapping.is_of_other_epoch(entry.position.epoch) => {
                self.waiting = Some(entry);
                Ok(None)
            }
            Found::Entry(entry) => {
                self.take(*entry, begun).await?;
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

    /// Takes a segment in, on which work began at `begun`.
    async fn take(&mut self, entry: LogEntry, begun: Instant) -> Result<(), ApplierError> {
        let path = segments::path(&self.shared.machine, LogKind::Stream, entry.position);
        let table = segments::table(&self.shared.keys, &entry.header, &entry.bytes)
            .map_err(|source| ApplierError::damaged(path.clone(), source))?;
        let new = entry.position > self.folded;
        let now = new.then(|| self.shared.clock.now());
        let mut digester = RecordDigester::resume(self.head.digest);
        let mut incarnation = self.head.position.incarnation;
        for record in &table.records {
            incarnation = incarnation_after(incarnation, record);
            let position = Position { incarnation, seq: record.seq };
            let after = After { position, time: record.time, digest: digester.push(record), chain: entry.hash };
            if let Some(point) = self.schedule.push(record, after, now) {
                self.next.points.push(point);
            }
        }
        if digester.digest() != entry.header.head.digest {
            let what = "the digest over its records is not the one its header states".to_owned();
            return Err(RecoverError::Damage { path, what }.into());
        }
        self.referring.check(&path, &entry, &table).await?;
        self.head = entry.header.head;
        let promoted = Promoted {
            id: entry.header.id,
            epoch: entry.position.epoch,
            slot: entry.position.slot,
            hash: entry.hash,
            head: entry.header.head,
            bytes: entry.header.total_bytes,
            shared: entry.header.shared,
        };
        let table_bytes = u64::from(entry.header.table_plain_bytes);
        self.mapping
            .take(promoted.clone(), &table, table_bytes)
            .map_err(|what| RecoverError::Damage { path: path.clone(), what })?;
        self.recent.segments.push(promoted.clone());
        match new {
            true => {
                self.next.drains.extend(table.records.iter().filter_map(|record| Drain::of(record.seq, &record.body)));
                self.next.segments.push(promoted);
            }
            false => self.compare(&promoted, path)?,
        }
        self.shared.stages.queued(Stage::Promote, self.next.segments.len());
        self.shared.stages.worked(Stage::Read, entry.bytes.len() as u64, begun);
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
}
