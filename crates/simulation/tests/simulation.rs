//! Fresh seeds and all that ever failed, the coverage they must reach, and the controls without which none of it counts.
//!
//! `FARSHORE_SIM_SEEDS` is the number of fresh seeds (200), `FARSHORE_SEED` the first of them (the time of day when absent),
//! `FARSHORE_SIM_ONLY` one seed to replay, with the log of every host if `FARSHORE_LOG` is set. `cargo xtask simulate` sets them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use simulation::fault::Coverage;
use simulation::scenario::{Broken, FAULTS_MIN, OPERATIONS_MIN, Outcome, run};
use simulation::{Options, Sabotage};

/// Fresh seeds when nothing else is wanted.
const SEEDS: u64 = 200;

/// Seeds from which on every cell of the coverage table must be hit.
const COVERAGE_SEEDS: u64 = 200;

/// Fresh seeds of which some must have condemned what streams share: it takes several epochs and two horizons.
const SHARED_SEEDS: u64 = 2000;

/// Threads: each runs worlds of its own.
const THREADS: usize = 2;

/// Seeds in which a control must be noticed.
const CONTROL_SEEDS: u64 = 60;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn regressions() -> Vec<u64> {
    let lines = include_str!("../regressions.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

/// What many runs did together.
#[derive(Default)]
struct Total {
    runs: u64,
    operations: u64,
    positions: u64,
    groups: u64,
    compares: u64,
    resend_checks: u64,
    passed: u64,
    alone: u64,
    packs: u64,
    condemn_lists: u64,
    coverage: Coverage,
    store_faults: BTreeMap<&'static str, u64>,
    steps: BTreeMap<&'static str, u64>,
    broken: Vec<Broken>,
}

impl Total {
    fn add(&mut self, result: Result<Outcome, Broken>) {
        self.runs += 1;
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(broken) => {
                eprintln!("{broken}");
                self.broken.push(broken);
                return;
            }
        };
        let (seed, operations, faults) = (outcome.seed, outcome.operations, outcome.coverage.total());
        assert!(operations >= OPERATIONS_MIN, "seed {seed}: only {operations} operations");
        assert!(faults >= FAULTS_MIN, "seed {seed}: only {faults} faults");
        self.operations += operations;
        self.positions += outcome.positions;
        self.groups += outcome.groups;
        self.compares += outcome.compares;
        self.resend_checks += outcome.resend_checks;
        self.passed += outcome.passed;
        self.alone += outcome.alone;
        self.packs += outcome.packs;
        self.condemn_lists += outcome.condemn_lists;
        self.coverage.add(&outcome.coverage);
        outcome.store_faults.iter().for_each(|(name, count)| *self.store_faults.entry(name).or_default() += count);
        outcome.steps.iter().for_each(|(name, count)| *self.steps.entry(name).or_default() += count);
    }
}

/// Runs seeds on all threads, telling how far it is.
fn run_all(seeds: &[u64]) -> Total {
    let (next, total, started) = (AtomicU64::new(0), Mutex::new(Total::default()), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                // Relaxed: each number is taken once, and nothing else is published by it.
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let result = run(Options::new(*seed));
                    let mut total = total.lock().expect("no thread panics while it adds");
                    total.add(result);
                    if total.runs.is_multiple_of(50) {
                        let (runs, broken) = (total.runs, total.broken.len());
                        let seconds = started.elapsed().as_secs_f64();
                        eprintln!("{runs} of {} seeds, {broken} broken, {seconds:.0} s", seeds.len());
                    }
                }
            });
        }
    });
    total.into_inner().expect("all threads have ended")
}

#[test]
fn fresh_seeds_and_all_that_ever_failed_keep_every_promise() {
    if let Some(only) = number("FARSHORE_SIM_ONLY") {
        return replay(only);
    }
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let first = number("FARSHORE_SEED").unwrap_or_else(now);
    let count = number("FARSHORE_SIM_SEEDS").unwrap_or(SEEDS);
    let seeds: Vec<u64> = regressions().into_iter().chain(first..first + count).collect();
    eprintln!("{} seeds that failed before, and {count} fresh ones from {first}", seeds.len() as u64 - count);
    let total = run_all(&seeds);
    eprintln!(
        "{} runs: {} operations, {} faults, {} positions judged, {} points across machines, {} compares, {} starts measured, the horizon had moved for {} machines, {} were judged without the cache store; {} packs, {} condemn lists",
        total.runs,
        total.operations,
        total.coverage.total(),
        total.positions,
        total.groups,
        total.compares,
        total.resend_checks,
        total.passed,
        total.alone,
        total.packs,
        total.condemn_lists
    );
    eprintln!("{}", total.coverage);
    eprintln!("faults of the store: {:?}", total.store_faults);
    let never: Vec<_> = probe::FAILPOINTS.iter().filter(|point| !total.steps.contains_key(point.name)).collect();
    eprintln!("durable steps reached: {}, never: {:?}", total.steps.len(), never);
    assert!(total.broken.is_empty(), "{} of {} seeds broke a promise", total.broken.len(), total.runs);
    assert!(
        total.groups > 0 && total.compares > 0 && total.resend_checks > 0 && total.passed > 0 && total.alone > 0,
        "an oracle had nothing to judge"
    );
    assert!(total.packs > 0, "nothing was packed");
    if count >= SHARED_SEEDS {
        assert!(total.condemn_lists > 0, "nothing that is shared was condemned");
    }
    if count >= COVERAGE_SEEDS {
        assert_eq!(total.coverage.missing(), Vec::new(), "faults that never struck in a state");
    }
}

/// Everything that every host says, if `FARSHORE_LOG` asks for it.
fn log_if_asked() {
    if let Ok(filter) = std::env::var("FARSHORE_LOG") {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        let _set_once = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).without_time().try_init();
    }
}

/// One seed, with everything that every host says if asked for.
fn replay(seed: u64) {
    log_if_asked();
    match run(Options::new(seed)) {
        Ok(outcome) => eprintln!("seed {seed} keeps every promise: {outcome:#?}"),
        Err(broken) => panic!("{broken}"),
    }
}

#[test]
fn the_same_seed_twice_ends_in_the_same_plaintext_state() {
    log_if_asked();
    for seed in [5, 77] {
        let (once, twice) = (run(Options::new(seed)), run(Options::new(seed)));
        assert_eq!(once, twice, "seed {seed}");
        assert_ne!(once, run(Options::new(seed + 1)), "another seed is another run");
    }
}

/// Each oracle must notice what it is there for, within a few seeds.
fn noticed(sabotage: Sabotage, oracle: &str) {
    for seed in 0..CONTROL_SEEDS {
        match run(Options { sabotage: Some(sabotage), ..Options::new(seed) }) {
            Ok(_) => {}
            Err(broken) => {
                assert_eq!(broken.violation.oracle, oracle, "{broken}");
                return;
            }
        }
    }
    panic!("{sabotage:?} went unnoticed in {CONTROL_SEEDS} runs");
}

#[test]
fn control_marks_without_a_gate_break_causal_closure() {
    noticed(Sabotage::GroupWithoutGate, "causal closure");
}

#[test]
fn control_a_bound_of_nothing_on_what_is_sent_again_is_broken() {
    noticed(Sabotage::NothingMayBeResent, "bytes sent again");
}

#[test]
fn control_a_network_that_never_heals_does_not_converge() {
    noticed(Sabotage::NeverHeals, "liveness");
}

#[test]
fn control_the_search_for_plaintext_finds_some() {
    noticed(Sabotage::MarkerInStore, "plaintext");
}

#[test]
fn control_a_queue_that_may_hold_nothing_is_over_its_bound() {
    noticed(Sabotage::TinyBound, "bounds");
}
