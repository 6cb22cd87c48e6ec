//! What a follower does with what it took in: commits it, puts maps, moves the horizon, collects, and says how it stands.
//!
//! What must hold: nothing is named by the manifest before it lies in the vault store, and nothing is shown to others
//! before the commit that says it is acknowledged.

use model::{EventKind, Severity};
use store::LogPosition;
use tokio::time::Instant;

use super::{Follower, RETRY_MAX, RETRY_MIN, Wait, report};
use crate::ApplierError;
use crate::applier::Committed;
use crate::packs::Repacked;
use crate::stages::Stage;
use crate::{holds, horizon};

/// Segments in one commit.
const COMMIT_SEGMENTS_MAX: usize = 64;

/// Segments kept for a replica that lags; it finds the names of older ones in the maps.
const RECENT_SEGMENTS_MAX: usize = 4096;

impl Follower<'_> {
    /// Commits what waits, if it is time; says whether it did.
    pub(super) async fn commit_if_due(&mut self) -> Result<bool, ApplierError> {
        let segments = self.next.segments.len();
        let rested = self.committed_at.is_none_or(|at| at.elapsed() >= self.shared.config.commit_every);
        let due = rested || segments >= COMMIT_SEGMENTS_MAX || self.is_leaf_full();
        if self.next.is_empty() || !due {
            return Ok(false);
        }
        let (points, dropped) = (self.next.points.len(), self.next.dropped.len());
        let marks: Vec<_> = self.next.points.iter().map(|point| (point.position.seq, point.id)).collect();
        self.commit().await?;
        let (epoch, slot) = self.owner.manifest().folded();
        self.folded = LogPosition { epoch, slot };
        let machine = self.shared.machine.to_string();
        metrics::counter!("applier_segments_promoted_total", "machine" => machine.clone()).increment(segments as u64);
        metrics::counter!("applier_points_total", "machine" => machine.clone()).increment(points as u64);
        metrics::counter!("applier_points_dropped_total", "machine" => machine).increment(dropped as u64);
        for (seq, id) in marks {
            self.shared.event(Severity::Info, EventKind::Point, format!("recovery point {id} at seq {seq}"));
        }
        self.publish();
        Ok(true)
    }

    /// Puts a map of what is promoted and names it.
    pub(super) async fn put_map(&mut self) -> Result<(), ApplierError> {
        let making = self.shared.stages.at(Stage::Map);
        self.next.nodes = self.mapping.put(self.shared, self.owner.epoch(), self.owner.manifest()).await?;
        making.moved(self.next.nodes.iter().map(|node| node.bytes).sum());
        drop(making);
        self.commit().await?;
        self.compared = 0;
        // Should the replica be further behind, it finds their names in the maps.
        let replica = self.shared.with_status(|status| status.replica.as_ref().map(|replica| replica.seq));
        let needed = replica.unwrap_or(self.head.position.seq);
        let passed = self.recent.segments.partition_point(|segment| segment.head.position.seq <= needed);
        let passed = passed.max(self.recent.segments.len().saturating_sub(RECENT_SEGMENTS_MAX));
        if let Some(last) = self.recent.segments.drain(..passed).next_back() {
            self.recent.start = last.head;
        }
        self.publish();
        Ok(())
    }

    /// Moves the horizon behind the journal window, if it is time to look and nothing else is under way.
    pub(super) async fn move_horizon(&mut self) -> Result<(), ApplierError> {
        let config = &self.shared.config;
        if !(self.has_met_all() && self.next.is_empty() && self.moving.is_due(config)) {
            return Ok(());
        }
        let (maps, manifest) = (self.mapping.maps().clone(), self.owner.manifest());
        let collecting = self.shared.stages.at(Stage::Collect);
        // The replica reads the segments behind its position.
        let behind = self.shared.with_status(|status| status.replica.as_ref().map(|replica| replica.seq));
        let catching_up = behind.is_some_and(|seq| seq < self.head.position.seq);
        let behind = behind.into_iter().chain(holds::limit(manifest)).min();
        let now = self.shared.clock.now();
        let rules = self.shared.rules.applier;
        let next = horizon::next(&maps, manifest, config.journal_window, now, behind, rules).await;
        let Some(next) = self.moving.hear(self.shared, next.map_err(ApplierError::from))?.flatten() else {
            self.moving.waits_for_replica(catching_up);
            return Ok(());
        };
        let mapped = horizon::map_points(&self.log, &mut self.mapping, self.owner.epoch(), manifest, &next).await;
        let Some((point_maps, all)) = self.moving.hear(self.shared, mapped)? else { return Ok(()) };
        drop(collecting);
        if !all {
            self.next.point_maps = point_maps;
            self.moving.go_on();
            return self.commit().await;
        }
        let message = format!(
            "up to seq {} only points open now; {} of them got a map",
            next.head.position.seq,
            point_maps.len()
        );
        (self.next.horizon, self.next.point_maps) = (Some(next), point_maps);
        self.commit().await?;
        self.publish();
        self.collection.something_to_gain();
        self.shared.event(Severity::Info, EventKind::Collection, message);
        Ok(())
    }

    /// Copies what the next commit names into a vault store of its own: tries until it is done, unless it cannot be.
    async fn promote(&mut self) -> Result<(), ApplierError> {
        let mut retry = RETRY_MIN;
        loop {
            match self.promotion.copy(&self.log, &self.next.segments).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_damage() => return Err(error),
                Err(error) => report(self.shared, &error),
            }
            if !self.shared.pause(retry).await {
                return Err(ApplierError::Stopped);
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    /// Says in the cache store how far the acknowledged manifest is. What cannot be said now is said later: what is promoted stays so.
    pub(super) async fn state_cursor(&mut self) -> Result<(), ApplierError> {
        match self.consuming.state(self.shared, self.owner.manifest()).await {
            Ok(true) => self.collection.something_to_gain(),
            Ok(false) => {}
            Err(error @ ApplierError::NotConsumed { .. }) => return Err(error),
            Err(error) => report(self.shared, &error),
        }
        Ok(())
    }

    /// Runs a collection, if it is time for one, and names the packs it made.
    pub(super) async fn collect(&mut self) -> Result<(), ApplierError> {
        // What waits for the next commit does not wait long; committed here, it would leave the horizon no turn.
        let free = self.has_met_all() && self.next.is_empty();
        if !(free && self.collection.is_due(self.shared.config.tidy_every)) {
            return Ok(());
        }
        let maps = self.mapping.maps().clone();
        let collecting = self.shared.stages.at(Stage::Collect);
        let repacked = self.collection.run(self.shared, &self.owner, &self.log, &maps, &mut self.consuming).await?;
        drop(collecting);
        if repacked.is_empty() {
            return Ok(());
        }
        let Repacked { packs, unpacked, objects, .. } = repacked;
        let bytes: u64 = packs.iter().map(|pack| pack.bytes).sum();
        let message = format!(
            "{} packs of {bytes} bytes hold what is needed of {objects} objects; {} packs are needed no longer",
            packs.len(),
            unpacked.len()
        );
        (self.next.packs, self.next.unpacked) = (packs, unpacked);
        self.commit().await?;
        self.publish();
        self.collection.something_to_gain();
        self.shared.event(Severity::Info, EventKind::Collection, message);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), ApplierError> {
        let promoting = self.shared.stages.at(Stage::Promote);
        let bytes = self.next.segments.iter().map(|segment| segment.bytes).sum();
        self.promote().await?;
        self.owner.begin(std::mem::take(&mut self.next));
        self.finish().await?;
        promoting.moved(bytes);
        self.shared.stages.queued(Stage::Promote, 0);
        self.pins.answer();
        self.collection.acknowledged();
        self.committed_at = Some(Instant::now());
        if self.owner.is_long() {
            self.owner.renew().await?;
            self.collection.something_to_gain();
            self.mapping.under_new_epoch();
            self.shared.with_status(|status| status.manifest_epoch = self.owner.epoch());
        }
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

    pub(super) fn publish(&self) {
        let manifest = self.owner.manifest();
        let last = manifest.last().map(|segment| segment.head).unwrap_or_default();
        self.shared.with_status(|status| {
            (status.processed_seq, status.processed_time) = (last.position.seq, last.time);
            status.points = manifest.points.len() as u64;
            status.horizon_seq = manifest.horizon.as_ref().map(|last| last.head.position.seq).unwrap_or_default();
            status.segments = manifest.ends.iter().map(|end| end.slot).sum();
        });
        let mut recent = self.recent.clone();
        let promoted = recent.segments.partition_point(|segment| segment.head.position.seq <= last.position.seq);
        recent.segments.truncate(promoted);
        let (nodes, validity) = (manifest.nodes.clone(), self.schedule.validity().clone());
        let horizon = manifest.horizon.as_ref().map(|last| last.head.position.seq).unwrap_or_default();
        let unreckoned = manifest.points.last().filter(|point| point.states.is_empty()).map(|point| point.id);
        let packs = manifest.packs.as_slice().into();
        self.shared.commit(Committed { horizon, nodes, packs, recent, validity, unreckoned });
    }

    pub(super) fn tell(&self, wait: &Option<Wait>) {
        let done = matches!(wait, Some(Wait::CaughtUp)) && self.next.segments.is_empty();
        let lag = match done {
            true => 0.0,
            false => {
                let processed = self.owner.manifest().last().map(|s| s.head.time).unwrap_or(self.head.time);
                self.shared.clock.now().since(processed).as_secs_f64()
            }
        };
        let draining = self.schedule.validity().draining();
        self.shared.with_status(|status| (status.lag_seconds, status.draining) = (lag, draining));
        metrics::gauge!("applier_lag_seconds", "machine" => self.shared.machine.to_string()).set(lag);
    }
}
