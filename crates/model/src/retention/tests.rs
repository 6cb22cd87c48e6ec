//! The line of tiers as text, and a year of pruning at every step.
//!
//! Goal: whatever happens in that year, the promises hold at every step. Method: `Year` plays phases (points at a steady
//! pace, gaps, a clock that stands still, drains, pins set and taken off) over and over until 400 days have passed, and
//! lets a pruner thin the points at every step. It remembers all points ever made, and judges by them, in words of the
//! promises alone. Careless pruners, one for each promise and for each choice argued in `plan`, must be caught.

use proptest::prelude::*;

use super::*;
use crate::{PointId, Seq, Timestamp};

const DEFAULT: &str = "24h:all, 7d:1h, 30d:1d, 1y:1w";
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86400);

fn line(text: &str) -> Retention {
    text.parse().expect(text)
}

#[test]
fn a_line_reads_as_it_is_shown() {
    for text in [DEFAULT, "24h:all", "1h:1h", "1d:60s, 7d:1h", "100y:100y", "1s:1s, 2m:2s, 3h:4m, 5d:6h, 7w:8d, 9y:10w"]
    {
        assert_eq!(line(text).to_string(), text);
    }
    assert_eq!(line(" 24h :all,7d: 1h ,30d:1d,1y:1w"), line(DEFAULT));
    assert_ne!(line("7d:1h"), line("1w:1h"), "a line is remembered as it was written");
}

#[test]
fn refusals_name_the_tier_and_say_what_to_write() {
    let many = vec!["1d:all"; TIERS_MAX + 1].join(",");
    for (text, says) in [
        ("", "tier 1 (\"\"): write AGE:INTERVAL"),
        ("24h:all,", "tier 2 (\"\"): write AGE:INTERVAL"),
        ("24h", "tier 1 (\"24h\"): write AGE:INTERVAL"),
        ("24:all", "its age is no length of time"),
        ("0h:all", "its age is no length of time"),
        ("+1h:all", "its age is no length of time"),
        ("h:all", "its age is no length of time"),
        ("1é:all", "its age is no length of time"),
        ("101y:all", "at most 100y"),
        ("99999999999999999999y:all", "at most 100y"),
        ("18446744073709551615y:all", "at most 100y"),
        ("24h:some", "its interval is no length of time"),
        ("24h:all, 7d:1h:2", "tier 2 (\"7d:1h:2\"): its interval"),
        ("24h:all, 7d:all", "only the first tier may keep all"),
        ("7d:1h, 1d:2h", "tier 2 (\"1d:2h\"): its age is not above 7d"),
        ("24h:all, 1d:1h", "its age is not above 24h"),
        ("7d:1h, 30d:60m", "its interval is not above 1h"),
        ("1d:1w", "longer than its age"),
        (&many, "17 tiers; write at most 16"),
    ] {
        let refusal = text.parse::<Retention>().expect_err(text).to_string();
        assert!(refusal.contains(says), "{text:?}: {refusal:?} should say {says:?}");
    }
    let long = "é".repeat(5000).parse::<Retention>().expect_err("no tier").to_string();
    assert!(long.chars().count() < 120, "{long}");
}

fn point(seq: u64, time: Timestamp) -> Candidate {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&seq.to_le_bytes());
    Candidate { id: PointId(id), time, seq: Seq(seq), pinned: false, good: true }
}

/// Points of these ages in hours, oldest first, and the time they are seen from: noon of a day.
fn aged<const N: usize>(hours: [u32; N]) -> ([Candidate; N], Timestamp) {
    let now = Timestamp::default().plus(DAY * 20_000 + HOUR * 12);
    let at = |hours| Timestamp(now.0 - u64::from(hours) * 3_600_000_000);
    let mut seq = 0;
    let points = hours.map(|hours| {
        seq += 1;
        point(seq, at(hours))
    });
    (points, now)
}

fn reasons(plan: &Plan) -> Vec<Reason> {
    plan.kept.iter().map(|kept| kept.reason).collect()
}

#[test]
fn each_point_is_kept_for_the_first_reason_that_applies() {
    let (mut points, now) = aged([2000, 1999, 100, 99, 60, 40, 38, 5]);
    (points[0].pinned, points[0].good) = (true, false);
    points[3].pinned = true;
    let plan = line("48h:1h, 30d:1d").plan(&points, HOUR * 6, now);
    // 99 hours ago was the day that began 108 hours ago: 100 chose it. 40 and 38 hours ago are two hours.
    assert_eq!(
        reasons(&plan),
        [
            Reason::Pinned,
            Reason::Tier(1),
            Reason::Pinned,
            Reason::Tier(1),
            Reason::Tier(0),
            Reason::Tier(0),
            Reason::Window
        ]
    );
    assert_eq!(plan.dropped, [points[1].id]);
}

#[test]
fn the_last_good_point_is_kept_however_old() {
    let (mut points, now) = aged([300_000, 200_000, 1]);
    points[2].good = false;
    let plan = line(DEFAULT).plan(&points, DAY, now);
    assert_eq!(plan.kept, [Kept { id: points[1].id, reason: Reason::Floor }]);
    assert_eq!(plan.dropped, [points[0].id, points[2].id]);
    assert_eq!(line(DEFAULT).plan(&[], DAY, now), Plan::default());
}

#[test]
fn a_drain_that_takes_back_all_that_is_kept_in_full_leaves_a_point() {
    let (mut points, now) = aged([300, 200, 1, 0]);
    let kept = |plan: Plan| plan.kept.iter().map(|kept| kept.id).collect::<Vec<_>>();
    let before = line("2h:all").plan(&points, Duration::ZERO, now);
    assert_eq!(kept(before), points[1..].iter().map(|point| point.id).collect::<Vec<_>>());
    (points[2].good, points[3].good) = (false, false);
    assert_eq!(kept(line("2h:all").plan(&points[1..], Duration::ZERO, now)), [points[1].id]);
}

#[test]
fn points_from_an_agent_whose_clock_is_ahead_are_kept() {
    let end = point(2, Timestamp(u64::MAX));
    let plan = line("1h:1h").plan(&[point(1, Timestamp(5)), end], Duration::ZERO, Timestamp(0));
    assert_eq!(plan.dropped, []);
    let plan = line(DEFAULT).plan(&[point(1, Timestamp(0)), end], Duration::MAX, Timestamp(u64::MAX));
    assert_eq!(plan.dropped, []);
}

/// What happens for a while. Counts are of points.
#[derive(Debug, Clone)]
enum Phase {
    Steady {
        points: u32,
        minutes: u32,
    },
    Gap {
        hours: u32,
    },
    ClockStandsStill {
        points: u32,
    },
    /// A drain takes back the newest points, as far as they are still kept in full.
    Drain {
        points: u32,
    },
    /// Pins one of the points that are left, and takes the oldest pin off where there are more than a few.
    Pin {
        which: u32,
    },
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        4 => (1..2000u32, 5..90u32).prop_map(|(points, minutes)| Phase::Steady { points, minutes }),
        2 => (1..400u32).prop_map(|hours| Phase::Gap { hours }),
        1 => (1..20u32).prop_map(|points| Phase::ClockStandsStill { points }),
        2 => (1..200u32).prop_map(|points| Phase::Drain { points }),
        2 => any::<u32>().prop_map(|which| Phase::Pin { which }),
    ]
}

/// Two to four tiers of which most do not divide each other.
fn retention() -> impl Strategy<Value = String> {
    let all_or = prop_oneof![Just(None), (20..90u32).prop_map(Some)];
    (all_or, 2..48u32, 2..12u32, 2..20u32, 1..5usize).prop_map(|(first, hours, step, days, tiers)| {
        let first = first.map_or("all".to_owned(), |minutes| format!("{minutes}m"));
        let tiers = &[
            format!("{hours}h:{first}"),
            format!("{}h:{step}h", hours + 100),
            format!("{}d:1d", days + 30),
            format!("{}d:{days}d", days + 200),
        ][..tiers.min(4)];
        tiers.join(", ")
    })
}

type Pruner = fn(&Retention, &[Candidate], Duration, Timestamp) -> Plan;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Coverage,
    PinDropped,
    LastGoodDropped,
    StepwiseIsNotAtOnce,
    TooMany,
}

/// Judged in full after so many steps; pins, floor and number at every step.
const JUDGED_STEPS: u64 = 1999;

struct Year {
    retention: Retention,
    window: Duration,
    prune: Pruner,
    now: Timestamp,
    steps: u64,
    /// Every point ever made, as it is now.
    all: Vec<Candidate>,
    /// What pruning has left, as places in `all`.
    left: Vec<usize>,
}

impl Year {
    /// Plays the phases until 400 days have passed. Returns the steps made.
    fn play(retention: &str, window: Duration, phases: &[Phase], prune: Pruner) -> Result<u64, Broken> {
        let start = Timestamp::default().plus(DAY * 20_000 + MINUTE * 17);
        let (retention, end) = (line(retention), start.plus(DAY * 400));
        let mut year = Year { retention, window, prune, now: start, steps: 0, all: Vec::new(), left: Vec::new() };
        for phase in phases.iter().cycle() {
            year.phase(phase)?;
            if year.now >= end {
                break;
            }
            // Phases that do not move the clock still end.
            year.now = year.now.plus(HOUR);
        }
        year.judge()?;
        Ok(year.steps)
    }

    fn phase(&mut self, phase: &Phase) -> Result<(), Broken> {
        match *phase {
            Phase::Steady { points, minutes } => {
                for _ in 0..points {
                    self.now = self.now.plus(MINUTE * minutes);
                    self.make_point()?;
                }
            }
            Phase::Gap { hours } => {
                for _ in 0..hours {
                    self.now = self.now.plus(HOUR);
                    self.step()?;
                }
            }
            Phase::ClockStandsStill { points } => (0..points).try_for_each(|_| self.make_point())?,
            Phase::Drain { points } => {
                let in_full = self.kept_in_full();
                let newest = self.all.iter_mut().rev().take(points as usize);
                newest.filter(|point| self.now.since(point.time) <= in_full).for_each(|point| point.good = false);
                self.step()?;
            }
            Phase::Pin { which } => {
                let pinned: Vec<_> = self.left.iter().copied().filter(|i| self.all[*i].pinned).collect();
                if pinned.len() > 3 {
                    self.all[pinned[0]].pinned = false;
                }
                if !self.left.is_empty() {
                    let which = self.left[which as usize % self.left.len()];
                    self.all[which].pinned = true;
                }
                self.step()?;
            }
        }
        Ok(())
    }

    /// Points younger than this are all there.
    fn kept_in_full(&self) -> Duration {
        let first = &self.retention.tiers[0];
        self.window.max(if first.every.is_none() { first.age.duration() } else { Duration::ZERO })
    }

    fn make_point(&mut self) -> Result<(), Broken> {
        self.left.push(self.all.len());
        self.all.push(point(self.all.len() as u64, self.now));
        self.step()
    }

    fn step(&mut self) -> Result<(), Broken> {
        self.steps += 1;
        let before = std::mem::take(&mut self.left);
        let points: Vec<_> = before.iter().map(|i| self.all[*i]).collect();
        let plan = (self.prune)(&self.retention, &points, self.window, self.now);
        assert_eq!(plan.kept.len() + plan.dropped.len(), points.len(), "every point is kept or dropped");
        let mut kept = plan.kept.iter().map(|kept| kept.id).peekable();
        self.left = before.iter().copied().filter(|i| kept.next_if_eq(&self.all[*i].id).is_some()).collect();
        assert!(kept.next().is_none(), "points keep their order");
        self.judge_drops(&before)?;
        if self.left.len() > self.most() {
            return Err(Broken::TooMany);
        }
        if self.steps.is_multiple_of(JUDGED_STEPS) { self.judge() } else { Ok(()) }
    }

    fn judge_drops(&self, before: &[usize]) -> Result<(), Broken> {
        let is_left = |i: &usize| self.left.binary_search(i).is_ok();
        if before.iter().any(|i| self.all[*i].pinned && !is_left(i)) {
            return Err(Broken::PinDropped);
        }
        match before.iter().rfind(|i| self.all[**i].good) {
            Some(floor) if !is_left(floor) => Err(Broken::LastGoodDropped),
            _ => Ok(()),
        }
    }

    /// Everything kept in full, for each other tier the buckets that its age touches, the pins and the floor.
    fn most(&self) -> usize {
        let in_full = self.kept_in_full();
        let young = self.all.len() - self.all.partition_point(|point| self.now.since(point.time) > in_full);
        let touched = |tier: &Tier| {
            tier.every.map_or(0, |every| tier.age.duration().div_duration_f64(every.duration()) as usize + 2)
        };
        let pinned = self.left.iter().filter(|i| self.all[**i].pinned).count();
        young + self.retention.tiers.iter().map(touched).sum::<usize>() + pinned + 1
    }

    fn judge(&self) -> Result<(), Broken> {
        let at_once = (self.prune)(&self.retention, &self.all, self.window, self.now);
        if !at_once.kept.iter().map(|kept| kept.id).eq(self.left.iter().map(|i| self.all[*i].id)) {
            return Err(Broken::StepwiseIsNotAtOnce);
        }
        self.retention.tiers.iter().try_for_each(|tier| self.covers(tier))
    }

    /// For every good point ever made that is not older than the tier: one is left at or before it, nearer than the interval.
    fn covers(&self, tier: &Tier) -> Result<(), Broken> {
        let within = tier.every.map_or(Duration::ZERO, |every| every.duration() - Duration::from_micros(1));
        let mut left = self.left.iter().copied().filter(|i| self.all[*i].good).peekable();
        let mut nearest = None;
        for (i, point) in self.all.iter().enumerate() {
            nearest = left.next_if_eq(&i).or(nearest);
            let near = || nearest.is_some_and(|n: usize| point.time.since(self.all[n].time) <= within);
            if point.good && self.now.since(point.time) <= tier.age.duration() && !near() {
                return Err(Broken::Coverage);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_year_of_pruning_keeps_every_promise(
        retention in retention(),
        window_hours in 0..72u32,
        phases in prop::collection::vec(phase(), 1..20),
    ) {
        let done = Year::play(&retention, HOUR * window_hours, &phases, Retention::plan);
        prop_assert!(done.is_ok(), "{retention}: {done:?}");
    }

    #[test]
    fn coarse_choices_are_fine_choices_where_intervals_divide(minutes in prop::collection::vec(0..400u32, 1..400)) {
        let mut now = Timestamp::default().plus(DAY * 20_000);
        let mut seq = 0;
        let points: Vec<_> = minutes.iter().map(|minutes| {
            (now, seq) = (now.plus(MINUTE * *minutes), seq + 1);
            point(seq, now)
        }).collect();
        let chosen = |text: &str| line(text).plan(&points, Duration::ZERO, now).kept;
        let (fine, coarse) = (chosen("1y:1h"), chosen("1y:1d"));
        let in_fine = |kept: &Kept| fine.iter().any(|other| other.id == kept.id);
        prop_assert!(coarse.iter().filter(|kept| kept.reason != Reason::Floor).all(in_fine));
    }
}

/// A year with a point every few minutes, two weeks without any, drains, a clock that stands still, and pins.
fn eventful() -> Vec<Phase> {
    vec![
        Phase::Steady { points: 3000, minutes: 7 },
        Phase::Pin { which: 17 },
        Phase::Drain { points: 60 },
        Phase::Gap { hours: 27 },
        Phase::ClockStandsStill { points: 9 },
        Phase::Steady { points: 500, minutes: 11 },
        Phase::Pin { which: 100_003 },
        Phase::Gap { hours: 14 * 24 },
        Phase::Steady { points: 3, minutes: 1 },
        Phase::Drain { points: 3 },
        Phase::Gap { hours: 2 },
    ]
}

#[test]
fn the_default_policy_keeps_every_promise_for_a_year() {
    let steps = Year::play(DEFAULT, DAY, &eventful(), Retention::plan).expect("every promise holds");
    assert!(steps > 20_000, "{steps} steps");
}

/// A year with so little kept that the last good point is often older than every tier.
const SHORT: &str = "6h:all, 3d:6h";

fn assert_caught(retention: &str, careless: Pruner, broken: Broken) {
    assert_eq!(Year::play(retention, HOUR, &eventful(), careless), Err(broken));
    Year::play(retention, HOUR, &eventful(), Retention::plan).expect("the real one is not");
}

/// The plan with some of the points that it keeps dropped after all.
fn without(plan: Plan, points: &[Candidate], goes: impl Fn(&Kept) -> bool) -> Plan {
    let kept: Vec<_> = plan.kept.into_iter().filter(|kept| !goes(kept)).collect();
    let stays = |id: &PointId| kept.iter().any(|kept| kept.id == *id);
    let dropped = points.iter().map(|point| point.id).filter(|id| !stays(id)).collect();
    Plan { kept, dropped }
}

#[test]
fn a_pruner_that_does_not_ask_for_pins_is_caught() {
    let careless: Pruner = |retention, points, window, now| {
        let unpinned: Vec<_> = points.iter().map(|point| Candidate { pinned: false, ..*point }).collect();
        retention.plan(&unpinned, window, now)
    };
    assert_caught(SHORT, careless, Broken::PinDropped);
}

#[test]
fn a_pruner_without_a_floor_is_caught() {
    let careless: Pruner = |retention, points, window, now| {
        without(retention.plan(points, window, now), points, |kept| kept.reason == Reason::Floor)
    };
    assert_caught(SHORT, careless, Broken::LastGoodDropped);
}

#[test]
fn a_floor_that_may_be_an_invalid_point_is_caught() {
    let careless: Pruner = |retention, points, window, now| {
        let newest = points.last().map(|point| point.id);
        without(retention.plan(points, window, now), points, |kept| {
            kept.reason == Reason::Floor && Some(kept.id) != newest
        })
    };
    assert_caught(SHORT, careless, Broken::LastGoodDropped);
}

#[test]
fn a_pruner_that_keeps_everything_is_caught() {
    let careless: Pruner = |_, points, window, now| line("100y:all").plan(points, window, now);
    assert_caught(SHORT, careless, Broken::TooMany);
}

#[test]
fn a_pruner_with_longer_intervals_is_caught() {
    let careless: Pruner = |_, points, window, now| line("6h:all, 3d:9h").plan(points, window, now);
    assert_caught(SHORT, careless, Broken::Coverage);
}

/// A point as a tier looks at it.
struct View {
    point: Candidate,
    every: u64,
    age: Duration,
    /// Age of the tier before.
    younger: Duration,
    now: Timestamp,
}

/// How a tier chooses: which points it looks at, how it tells buckets apart, until when a chosen point stays.
struct Choice {
    sees: fn(&View) -> bool,
    bucket: fn(&View) -> u64,
    stays: fn(&View) -> bool,
    newest: bool,
}

/// What the header of `plan` argues for.
const SOUND: Choice = Choice {
    sees: |_| true,
    bucket: |view| view.point.time.0 / view.every,
    stays: |view| {
        let end = (view.point.time.0 / view.every + 1) * view.every - 1;
        view.now.since(Timestamp(end)) <= view.age
    },
    newest: false,
};

impl Choice {
    fn plan(&self, retention: &Retention, points: &[Candidate], window: Duration, now: Timestamp) -> Plan {
        let first = retention.tiers.first().filter(|tier| tier.every.is_none());
        let in_full = first.map_or(window, |tier| window.max(tier.age.duration()));
        let floor = points.iter().rposition(|point| point.good && now.since(point.time) > in_full);
        let mut keeps: Vec<bool> = (0..points.len()).map(|i| points[i].pinned || floor == Some(i)).collect();
        let mut younger = Duration::ZERO;
        for tier in &retention.tiers {
            let (age, every) =
                (tier.age.duration(), tier.every.map_or(1, |every| every.duration().as_secs() * 1_000_000));
            let mut last = None;
            let order: Vec<_> =
                if self.newest { (0..points.len()).rev().collect() } else { (0..points.len()).collect() };
            for i in order.into_iter().filter(|i| points[*i].good) {
                let view = View { point: points[i], every, age, younger, now };
                keeps[i] |= now.since(view.point.time) <= window;
                if (self.sees)(&view) {
                    // An interval of 1 stands for all: points of one moment stay together.
                    let first = last.replace((self.bucket)(&view)) != Some((self.bucket)(&view)) || every == 1;
                    keeps[i] |= first && (self.stays)(&view);
                }
            }
            younger = age;
        }
        let reason = Reason::Tier(0);
        let mut plan = Plan::default();
        for (point, keeps) in points.iter().zip(keeps) {
            match keeps {
                true => plan.kept.push(Kept { id: point.id, reason }),
                false => plan.dropped.push(point.id),
            }
        }
        plan
    }
}

#[test]
fn the_sound_choice_is_the_real_one() {
    let told_twice: Pruner = |retention, points, window, now| {
        let (real, told) = (retention.plan(points, window, now), SOUND.plan(retention, points, window, now));
        assert_eq!(real.dropped, told.dropped);
        real
    };
    Year::play("6h:all, 3d:2h, 90d:5h", HOUR, &eventful(), told_twice).expect("every promise holds");
}

#[test]
fn buckets_that_slide_with_time_are_caught() {
    let careless: Pruner = |retention, points, window, now| {
        let slides = Choice { bucket: |view| view.now.since(view.point.time).as_micros() as u64 / view.every, ..SOUND };
        slides.plan(retention, points, window, now)
    };
    assert_caught(SHORT, careless, Broken::StepwiseIsNotAtOnce);
}

#[test]
fn points_that_expire_one_by_one_are_caught() {
    let careless: Pruner = |retention, points, window, now| {
        let alone = Choice { stays: |view| view.now.since(view.point.time) <= view.age, ..SOUND };
        alone.plan(retention, points, window, now)
    };
    assert_caught(SHORT, careless, Broken::Coverage);
}

#[test]
fn buckets_that_expire_by_their_beginning_are_caught() {
    let careless: Pruner = |retention, points, window, now| {
        let early = |view: &View| {
            let start = view.point.time.0 / view.every * view.every;
            view.now.since(Timestamp(start)) <= view.age
        };
        Choice { stays: early, ..SOUND }.plan(retention, points, window, now)
    };
    assert_caught(SHORT, careless, Broken::Coverage);
}

#[test]
fn tiers_that_look_only_at_points_too_old_for_the_tier_before_are_caught() {
    let careless: Pruner = |retention, points, window, now| {
        let late = Choice { sees: |view| view.now.since(view.point.time) >= view.younger, ..SOUND };
        late.plan(retention, points, window, now)
    };
    assert_caught("6h:all, 3d:2h, 90d:5h", careless, Broken::StepwiseIsNotAtOnce);
}

#[test]
fn tiers_that_choose_the_newest_point_are_caught() {
    let careless: Pruner =
        |retention, points, window, now| Choice { newest: true, ..SOUND }.plan(retention, points, window, now);
    assert_caught(SHORT, careless, Broken::Coverage);
}
