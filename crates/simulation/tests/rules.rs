//! Every safety rule taken away, one at a time: some oracle must notice within a stated number of seeds.
//!
//! The epoch log's rules are taken away in models of their own (crates/store/tests). Each rule has a bias: the faults in which its race lies. `FARSHORE_RULE_SEEDS` bounds the seeds (1,000 by default). The
//! table is printed, and stands in docs/reliability.md.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use probe::{Rule, Rules};
use simulation::Options;
use simulation::fault::Fault;
use simulation::scenario::run;

/// Seeds within which a missing rule must be caught.
const SEEDS: u64 = 1000;

/// Something that can be taken away.
#[derive(Clone)]
struct Removal {
    name: String,
    rules: Rules,
    bias: &'static [Fault],
}

/// Where the race of a rule lies.
fn bias(rule: Rule) -> &'static [Fault] {
    use Fault::*;
    match rule {
        Rule::BitBeforeWrite => &[AgentKill, PowerCut, AgentFailpoint],
        Rule::StoredBeforeClear => &[AgentKill, ServerKill, CutToServer, StoreOutage],
        Rule::FlushBeforeClear | Rule::DrainHoldsRegion => &[PowerCut, AgentKill, ServerKill, CutToServer],
        Rule::FailedFlushDrained | Rule::DrainPastCache => &[SourceFlush, PowerCut],
        Rule::FailedWriteDrained => &[SourceWrite],
        Rule::FlushBeforeMarker | Rule::MarkerRemovedFirst => &[CleanRestart, PowerCut, AgentKill],
        Rule::RevertedMapRefused | Rule::RevertedMemoryRefused => &[Revert, Clone, CleanRestart, AgentKill],
        Rule::SecondAgentRefused => &[Clone, CutToServer],
        Rule::DigestBeforeFree | Rule::FreshIncarnation => &[AgentKill, Clone, Revert, StoreLate, ServerPause],
        Rule::WelcomeAfterDrain | Rule::SlotFilled | Rule::StoredInOrder => {
            &[CutToServer, CutFromServer, StoreErrors, StoreLostAnswers, StoreLate, StoreOutage, ServerKill, AgentKill]
        }
        Rule::PackNamedFirst => &[ApplierKill, ApplierFailpoint],
        _ => &[],
    }
}

/// Rules whose absence other rules make good in a whole system, so that no promise is broken here. Each is shown to
/// matter beside the code that keeps it: a clone of a clean stop in the agent's tests; reverted memory (which the map
/// version gives away too) and a second agent let in over a first one in the process server's.
const DEFENDED_TWICE: [Rule; 3] = [Rule::DigestBeforeFree, Rule::RevertedMemoryRefused, Rule::SecondAgentRefused];

/// Rules of sharing between streams whose races whole systems meet too seldom: in 150 seeds none was noticed. Each is shown to
/// matter in the tests of process server and applier.
const RARE: [Rule; 4] = [Rule::SharedWhenStored, Rule::ListsAfterEpoch, Rule::HeadsAwaited, Rule::MarkedAgain];

/// Rules of several consumers of one stream: scenes have one applier at a time. Each is shown to matter in the applier's tests.
const OF_SEVERAL: [Rule; 2] = [Rule::ConsumersHoldSegments, Rule::TrimmedBeforeDeleted];

fn removals() -> Vec<Removal> {
    let elsewhere = |rule: &&Rule| DEFENDED_TWICE.contains(rule) || RARE.contains(rule) || OF_SEVERAL.contains(rule);
    let rules = Rule::ALL.iter().filter(|rule| !elsewhere(rule)).map(|rule| Removal {
        name: rule.name(),
        rules: Rules::without(*rule),
        bias: bias(*rule),
    });
    rules.collect()
}

/// The first seed that notices, and by which oracle.
fn caught(removal: &Removal, seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| {
        let options = Options {
            rules: removal.rules,
            faults: removal.bias.to_vec(),
            fault_every: Duration::from_millis(1500),
            ..Options::new(seed)
        };
        run(options).err().map(|broken| (seed + 1, broken.violation.oracle.to_owned()))
    })
}

#[test]
fn every_rule_taken_away_is_caught() {
    let seeds = std::env::var("FARSHORE_RULE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let only = std::env::var("FARSHORE_RULE").ok();
    let removals: Vec<_> =
        removals().into_iter().filter(|r| only.as_ref().is_none_or(|only| *only == r.name)).collect();
    let (next, table) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // Relaxed: each number is taken once, and nothing else is published by it.
                while let Some(removal) = removals.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let found = caught(removal, seeds);
                    eprintln!("{:<26}{found:?}", removal.name);
                    table.lock().expect("no thread panics while it adds").insert(removal.name.clone(), found);
                }
            });
        }
    });
    let table = table.into_inner().expect("all threads have ended");
    let missed: Vec<_> = table.iter().filter(|(_, found)| found.is_none()).map(|(name, _)| name).collect();
    assert!(missed.is_empty(), "taken away and not noticed within {seeds} seeds: {missed:?}");
}
