//! Looks at the agent once a second: is the recovery point objective met, does the drain come to an end?
//!
//! The judgements are pure and take `now`; the task only feeds them and publishes gauges.

use std::time::Duration;

use model::{EventKind, Severity, Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use crate::sequencer::Mode;
use crate::shared::Shared;

/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A drain that got no nearer to its end for this long, while connected, is stalled.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Says when the objective is first missed and when it is met again.
#[derive(Debug, Default)]
pub(crate) struct RpoWatch {
    breached: bool,
}

impl RpoWatch {
    /// `Some(true)` when it is missed from now on, `Some(false)` when it is met again.
    pub(crate) fn observe(&mut self, lag: Duration, target: Duration) -> Option<bool> {
        let breached = lag > target;
        (std::mem::replace(&mut self.breached, breached) != breached).then_some(breached)
    }
}

/// Says when a drain does not converge.
#[derive(Debug, Default)]
pub(crate) struct DrainWatch {
    /// The least that was ever left, and when that was reached.
    best: Option<(u64, Timestamp)>,
    told: bool,
}

impl DrainWatch {
    /// True once for each drain that stalls. `left` is nothing while no drain could make progress.
    pub(crate) fn observe(&mut self, now: Timestamp, left: Option<u64>) -> bool {
        let Some(left) = left else {
            *self = DrainWatch::default();
            return false;
        };
        match self.best {
            Some((best, _)) if left < best => *self = DrainWatch { best: Some((left, now)), told: false },
            None => self.best = Some((left, now)),
            Some((_, since)) if now.since(since) >= STALLED_AFTER && !self.told => {
                self.told = true;
                return true;
            }
            Some(_) => {}
        }
        false
    }
}

/// Runs for the life of the agent.
pub(crate) async fn run(shared: &Shared) {
    let mut tick = interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut rpo, mut drain) = (RpoWatch::default(), DrainWatch::default());
    loop {
        tick.tick().await;
        look(shared, &mut rpo, &mut drain);
    }
}

fn look(shared: &Shared, rpo: &mut RpoWatch, drain: &mut DrainWatch) {
    let now = shared.now();
    let target = shared.config.rpo_target;
    let mut core = shared.core();
    let lag = core.oldest_unstored().map(|time| now.since(time)).unwrap_or_default();
    match rpo.observe(lag, target) {
        Some(true) => {
            let text = format!(
                "the newest point is {:.0} s old, the target is {:.0} s",
                lag.as_secs_f64(),
                target.as_secs_f64()
            );
            core.event(now, Severity::Warning, EventKind::Rpo, text);
        }
        Some(false) => core.event(now, Severity::Info, EventKind::Rpo, "the target is met again".to_owned()),
        None => {}
    }
    let owed = core.owed_bytes();
    let can_drain = core.connection.is_some() && core.sequencer.mode() != Mode::Data && core.refusal.is_none();
    if drain.observe(now, can_drain.then_some(owed)) {
        let text = format!(
            "the drain gets no nearer to its end: {owed} bytes left; writes dirty regions as fast as they are sent"
        );
        core.event(now, Severity::Critical, EventKind::DrainStalled, text);
    }
    let (memory, spool) = (core.queue.memory().0, core.queue.spool().0);
    let active: u64 = core.disks.iter().map(|disk| disk.regions.set_at_most()).sum();
    let bitmap = core.sequencer.mode() == Mode::Bitmap;
    drop(core);
    let metrics = &shared.metrics;
    metrics.rpo_seconds.set(lag.as_secs_f64());
    metrics.queue_bytes.set(memory as f64);
    metrics.spool_bytes.set(spool as f64);
    metrics.to_drain_bytes.set(owed as f64);
    metrics.active_regions.set(active as f64);
    metrics.bitmap_mode.set(f64::from(u8::from(bitmap)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breach_is_told_once_and_so_is_its_end() {
        let mut watch = RpoWatch::default();
        let target = Duration::from_secs(5);
        let told: Vec<_> = [0, 6, 7, 5, 4, 9].map(|s| watch.observe(Duration::from_secs(s), target)).into();
        assert_eq!(told, [None, Some(true), None, Some(false), None, Some(true)]);
    }

    #[test]
    fn only_a_drain_without_progress_is_stalled() {
        let at = |s: u64| Timestamp(s * 1_000_000);
        let mut watch = DrainWatch::default();
        for s in 0..200 {
            assert!(!watch.observe(at(s), Some(1000 - s)), "it progresses at {s}");
        }
        let stalls = (200..400).filter(|s| watch.observe(at(*s), Some(900))).count();
        assert_eq!(stalls, 1);
        assert!(!watch.observe(at(400), None));
        assert!(!watch.observe(at(401), Some(900)), "a new drain has its own time");
    }
}
