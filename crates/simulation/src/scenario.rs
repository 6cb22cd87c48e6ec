//! One run from its seed to its verdict: things go wrong, everything is healed, all must converge, and all is judged.

use std::collections::BTreeMap;
use std::time::Duration;

use applier::recover::{self, Witness};
use futures::FutureExt;
use futures::StreamExt;
use model::{EventKind, Seq};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::fault::Coverage;
use crate::judge::{Answers, Opened, Questions, Violation, ask, judge, judge_group, judge_horizon};
use crate::machine::{QUEUE_BYTES, lock};
use crate::network::NetworkCounts;
use crate::scene::{Options, Sabotage, Scene};
use crate::stamp::MARKER;

/// Ticks between two looks at everybody.
const LOOK_TICKS: u64 = 10;

/// Time in which a healed world must converge.
const CONVERGE_MAX: Duration = Duration::from_secs(240);

/// How long clients go on after everything is healed.
const CLIENTS_GO_ON: Duration = Duration::from_secs(2);

/// How long clients are held at a start for the sake of measuring its first drain.
const HOLD_MAX: Duration = Duration::from_secs(6);

/// How many times longer than planned things may go wrong until enough has happened.
const EXTENSIONS_MAX: u32 = 5;

/// Positions opened of each machine at the end, beside the last and those of groups.
const POSITIONS: usize = 10;

/// Longest time a judge may take, in virtual time.
const JUDGE_MAX: Duration = Duration::from_secs(600);

/// Operations that a run must have seen acknowledged.
pub const OPERATIONS_MIN: u64 = 100;

/// Faults that must have struck.
pub const FAULTS_MIN: u64 = 8;

/// What a run did, and the state it ended in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// Operations acknowledged.
    pub operations: u64,
    /// Positions opened and judged.
    pub positions: u64,
    /// Points across machines that were judged.
    pub groups: u64,
    /// Compares that mended a refusal.
    pub compares: u64,
    /// Starts after which the bytes sent again were checked.
    pub resend_checks: u64,
    /// Machines of whose history the horizon had passed some.
    pub passed: u64,
    /// Machines whose history was judged from a vault store alone, when the cache store was gone.
    pub alone: u64,
    /// Packs in the store when all had come to rest.
    pub packs: u64,
    /// Condemn lists there.
    pub condemn_lists: u64,
    /// Faults by the state they struck in.
    pub coverage: Coverage,
    /// Strikes of the store's faults, by name.
    pub store_faults: BTreeMap<&'static str, u64>,
    /// Durable steps reached, by name.
    pub steps: BTreeMap<&'static str, u64>,
    /// Packets.
    pub network: NetworkCounts,
    /// Virtual time.
    pub time: Duration,
    /// The plaintext state it ended in: for each machine the log's end, its points and a hash of its disks.
    pub state: Vec<String>,
}

/// A run that broke a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The seed.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
    /// When, in virtual time.
    pub at: Duration,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {} after {:.3} s: {}", self.seed, self.at.as_secs_f64(), self.violation)?;
        writeln!(f, "replay: cargo xtask simulate --seed {}", self.seed)?;
        write!(f, "then keep it: a line in crates/simulation/regressions.txt, and a directed test of what it found")
    }
}

/// Runs one seed.
pub fn run(options: Options) -> Result<Outcome, Broken> {
    let seed = options.seed;
    let mut scene = Scene::new(options);
    let result = play(&mut scene);
    let at = scene.world.elapsed();
    result.map_err(|violation| Broken { seed, violation, at })
}

fn play(scene: &mut Scene) -> Result<Outcome, Violation> {
    go_wrong(scene)?;
    scene.heal();
    converge(scene)?;
    judge_all(scene)
}

fn go_wrong(scene: &mut Scene) -> Result<(), Violation> {
    let fault_time = scene.options.fault_time;
    let mut next_fault = Duration::from_secs(1);
    let mut ticks: u64 = 0;
    while scene.world.elapsed() < fault_time || (!enough(scene) && scene.world.elapsed() < fault_time * EXTENSIONS_MAX)
    {
        scene.step()?;
        ticks += 1;
        if ticks.is_multiple_of(LOOK_TICKS) {
            look(scene)?;
            scene.operate(true)?;
            scene.strike_in_rare_states();
        }
        if scene.world.elapsed() >= next_fault {
            let machine = scene.any_machine();
            scene.strike(machine);
            let mean = u64::try_from(scene.options.fault_every.as_micros()).expect("short");
            next_fault = scene.world.elapsed() + Duration::from_micros(scene.rng.below(2 * mean));
        }
    }
    Ok(())
}

/// Whether the run has seen what every run must see.
fn enough(scene: &Scene) -> bool {
    operations(scene) >= OPERATIONS_MIN && scene.coverage.total() >= FAULTS_MIN
}

fn operations(scene: &Scene) -> u64 {
    scene.machines.iter().map(|machine| lock(&machine.history).acknowledged_ops).sum()
}

/// What must hold at every moment.
fn look(scene: &mut Scene) -> Result<(), Violation> {
    for index in 0..scene.machines.len() {
        scene.machines[index].note_failed_flushes();
        if let Some(why) = lock(&scene.machines[index].life).failed.clone() {
            return Err(Violation::new("start", format!("the agent of machine {index} did not start: {why}")));
        }
        scene.statuses[index] = scene.machines[index].status(&scene.world);
        let Some(status) = scene.statuses[index].take() else { continue };
        scene.machines[index].note_taken(&status);
        look_at_bounds(scene, index, &status)?;
        let (stored, digest) = (status.stored.position.seq, status.stored.digest);
        let known = scene.known[index].stored.insert(stored, digest);
        if known.is_some_and(|known| known != digest) {
            let text = format!("machine {index}: two streams end with seq {stored}, with digests that differ");
            return Err(Violation::new("one writer", text));
        }
        look_at_resent(scene, index, &status)?;
        scene.statuses[index] = Some(status);
        if scene.rng.below(400) == 0 && !scene.world.is_paused(scene.machines[index].host) {
            scene.known[index].snapshot = Some(scene.machines[index].snapshot());
        }
    }
    Ok(())
}

fn look_at_bounds(scene: &mut Scene, index: usize, status: &agent::AgentStatus) -> Result<(), Violation> {
    let bound = if scene.options.sabotage == Some(Sabotage::TinyBound) { 1 } else { QUEUE_BYTES };
    let spool_bound = scene.machines[index].shape.spool_bytes;
    let known = &mut scene.known[index];
    known.queue_bytes_peak = known.queue_bytes_peak.max(status.queue_bytes_used);
    if status.queue_bytes_used > bound || status.spool_bytes_used > spool_bound {
        let text = format!(
            "machine {index} keeps {} bytes in memory and {} in its spool; the bounds are {bound} and {spool_bound}",
            status.queue_bytes_used, status.spool_bytes_used
        );
        return Err(Violation::new("bounds", text));
    }
    Ok(())
}

/// P4: the first drain of a life sends at most what the stop before it left active.
fn look_at_resent(scene: &mut Scene, index: usize, status: &agent::AgentStatus) -> Result<(), Violation> {
    let Some(may_resend) = scene.known[index].may_resend else { return Ok(()) };
    let held = scene.world.elapsed().saturating_sub(scene.known[index].started);
    let tainted = |event: &model::Event| matches!(event.kind, EventKind::SourceError | EventKind::Compare);
    if status.refusal.is_some() || held > HOLD_MAX || status.events.iter().any(tainted) {
        scene.known[index].may_resend = None;
        scene.machines[index].gate.set_closed(false);
        return Ok(());
    }
    if status.mode != "data" {
        return Ok(());
    }
    scene.known[index].may_resend = None;
    scene.known[index].resend_checks += 1;
    scene.machines[index].gate.set_closed(false);
    let drained = status.counters.drained_bytes;
    if drained > may_resend {
        let text = format!("machine {index} sent {drained} bytes again, {may_resend} are allowed");
        return Err(Violation::new("bytes sent again", text));
    }
    Ok(())
}

/// Liveness: with nothing wrong any more, everything is stored and processed within a bound.
fn converge(scene: &mut Scene) -> Result<(), Violation> {
    let healed = scene.world.elapsed();
    let mut ticks: u64 = 0;
    loop {
        scene.step()?;
        ticks += 1;
        if !ticks.is_multiple_of(LOOK_TICKS) {
            continue;
        }
        look(scene)?;
        scene.operate(false)?;
        let since = scene.world.elapsed() - healed;
        if since < CLIENTS_GO_ON {
            continue;
        }
        scene.machines.iter().for_each(|machine| machine.gate.set_closed(true));
        match unsettled(scene) {
            None => return Ok(()),
            Some(why) if since > CONVERGE_MAX => return Err(Violation::new("liveness", why)),
            Some(_) => {}
        }
    }
}

/// What has not converged yet.
fn unsettled(scene: &Scene) -> Option<String> {
    for machine in &scene.machines {
        let name = &machine.name;
        let Some(status) = machine.status(&scene.world) else { return Some(format!("{name} does not run")) };
        let stored = status.stored.position.seq;
        if status.mode != "data" || status.next_seq != Some(stored.next()) || !machine.gate.is_empty() {
            return Some(format!(
                "{name} is in {} mode, stored {stored}, next {:?}, connection {:?} ({:?}), refusal {:?}",
                status.mode, status.next_seq, status.connection, status.connection_failure, status.refusal
            ));
        }
        let processed = |follower: &crate::servers::Follower| {
            let status = follower.status(&scene.world)?;
            status.machines.iter().find(|m| m.machine == *name).map(|m| m.processed_seq)
        };
        if !scene.followers.iter().any(|follower| processed(follower) == Some(stored)) {
            let seen: Vec<Option<Seq>> = scene.followers.iter().map(processed).collect();
            return Some(format!("{name} is stored up to {stored}, appliers have processed {seen:?}"));
        }
    }
    None
}

fn judge_all(scene: &mut Scene) -> Result<Outcome, Violation> {
    let mut outcome = Outcome {
        seed: scene.options.seed,
        operations: operations(scene),
        positions: scene.operator.judged,
        groups: 0,
        compares: scene.operator.compares,
        passed: 0,
        alone: scene.site.vault.iter().count() as u64 * scene.machines.len() as u64,
        packs: objects(scene, |path| path.contains("/pack/")),
        condemn_lists: objects(scene, |path| path.starts_with("condemn/")),
        resend_checks: scene.known.iter().map(|known| known.resend_checks).sum(),
        coverage: scene.coverage.clone(),
        store_faults: scene.store_faults(),
        steps: scene.world.steps_seen(),
        network: scene.world.network.counts(),
        time: scene.world.elapsed(),
        state: Vec::new(),
    };
    let groups = scene.operator.groups.clone();
    let mut opened_groups: Vec<Vec<(usize, Opened)>> = groups.iter().map(|_| Vec::new()).collect();
    for index in 0..scene.machines.len() {
        let wanted: Vec<Seq> =
            groups.iter().flatten().filter(|(machine, _)| *machine == index).map(|(_, seq)| *seq).collect();
        let answers = open_machine(scene, index, wanted)?;
        outcome.positions += judge(&scene.machines[index], &answers)? as u64;
        let now = model::Timestamp(crate::machine::HostClock::new(scene.world.clock().clone()).micros());
        judge_horizon(&scene.machines[index], &answers, now)?;
        outcome.passed += u64::from(answers.horizon.0 > Seq::ZERO);
        check_latest(scene, index, &answers)?;
        verify_machine(scene, index)?;
        outcome.state.push(state_of(scene, index, &answers));
        for (group, opened) in groups.iter().zip(&mut opened_groups) {
            let seq = group.iter().find(|(machine, _)| *machine == index).map(|(_, seq)| *seq);
            let found = answers.opened.iter().find(|opened| Some(opened.at.position.seq) == seq);
            match found {
                Some(found) => opened.push((index, found.clone())),
                // The policy may have dropped it.
                None if seq.is_some_and(|seq| seq <= answers.horizon.0) => {}
                None => {
                    let text = format!("the mark of machine {index} at {seq:?} was stored and is no point");
                    return Err(Violation::new("marks", text));
                }
            }
        }
    }
    for (group, opened) in groups.iter().zip(&opened_groups) {
        if opened.len() < group.len() {
            continue;
        }
        let members: Vec<_> = opened.iter().map(|(index, opened)| (&scene.machines[*index], opened)).collect();
        judge_group(&members)?;
        outcome.groups += 1;
    }
    search_for_plaintext(scene)?;
    Ok(outcome)
}

fn open_machine(scene: &mut Scene, index: usize, wanted: Vec<Seq>) -> Result<Answers, Violation> {
    let questions = Questions {
        store: scene.site.truth(),
        keys: scene.site.keys.clone(),
        rules: scene.applier_rules(),
        machine: scene.machines[index].name.clone(),
        random: POSITIONS,
        rng: store::SplitMix64::new(scene.rng.next_u64()),
        kept: scene.known[index].kept.clone(),
        wanted,
    };
    let host = scene.operator.boot.host;
    match scene.world.complete(host, JUDGE_MAX, ask(questions)) {
        Some(Ok(answers)) => Ok(answers),
        Some(Err(error)) => Err(Violation::new("restore", format!("machine {index}: {error}"))),
        None => Err(Violation::new("restore", format!("machine {index} was not opened within {JUDGE_MAX:?}"))),
    }
}

/// After everything has converged the last position is the source itself.
fn check_latest(scene: &Scene, index: usize, answers: &Answers) -> Result<(), Violation> {
    let machine = &scene.machines[index];
    let Some(latest) = answers.opened.last() else {
        return Err(Violation::new("latest", format!("machine {index} has no point at all")));
    };
    let contents = machine.contents();
    for (disk, (image, source)) in latest.images.iter().zip(&contents).enumerate() {
        if let Some(at) = image.iter().zip(source).position(|(a, b)| a != b) {
            let position = latest.at.position;
            let text = format!("machine {index} disk {disk} differs from its source at byte {at}, position {position}");
            return Err(Violation::new("latest", text));
        }
    }
    Ok(())
}

/// The store holds together, and holds whatever an agent was ever told to be stored.
fn verify_machine(scene: &mut Scene, index: usize) -> Result<(), Violation> {
    let witness = scene.known[index].stored.last_key_value().map(|(seq, digest)| (*seq, *digest));
    let (store, keys, name) = (scene.site.truth(), scene.site.keys.clone(), scene.machines[index].name.clone());
    let host = scene.operator.boot.host;
    let options = recover::VerifyOptions { witness, ..recover::VerifyOptions::default() };
    let verified =
        scene.world.complete(host, JUDGE_MAX, async move { recover::verify(&store, keys, &name, options).await });
    match verified {
        Some(Ok(report)) if report.clean() => Ok(()),
        Some(Ok(report)) => {
            let first = report.damages.first().map(|damage| format!("{}: {}", damage.path, damage.problem));
            let oracle = if matches!(report.witness, Witness::None | Witness::Confirmed { .. }) {
                "verify"
            } else {
                "nothing stored is lost"
            };
            Err(Violation::new(oracle, format!("machine {index}: {:?}, first damage {first:?}", report.witness)))
        }
        other => Err(Violation::new("verify", format!("machine {index}: {other:?}"))),
    }
}

fn state_of(scene: &Scene, index: usize, answers: &Answers) -> String {
    let mut hasher = blake3::Hasher::new();
    scene.machines[index].contents().iter().for_each(|disk| {
        hasher.update(disk);
    });
    let operations = lock(&scene.machines[index].history).len();
    format!(
        "{} operations {operations} head {:?} points {} disks {}",
        scene.machines[index].name,
        answers.head,
        answers.points,
        hasher.finalize().to_hex()
    )
}

/// What clients wrote is nowhere in the store, sealed or not.
fn search_for_plaintext(scene: &Scene) -> Result<(), Violation> {
    for service in [Some(&scene.site.service), scene.site.vault.as_ref()].into_iter().flatten() {
        search_store(scene, &service.truth)?;
    }
    for machine in &scene.machines {
        for (name, bytes) in machine.files.snapshot() {
            if contains(&bytes, MARKER) {
                let text = format!("state file {name} of {} holds what a client wrote", machine.name);
                return Err(Violation::new("plaintext", text));
            }
        }
    }
    Ok(())
}

/// Objects at such paths in the store of the history.
fn objects(scene: &Scene, wanted: impl Fn(&str) -> bool) -> u64 {
    let truth = &scene.site.vault.as_ref().unwrap_or(&scene.site.service).truth;
    let all: Vec<_> = truth.list(None).collect::<Vec<_>>().now_or_never().expect("a store in memory never waits");
    all.into_iter().flatten().filter(|meta| wanted(meta.location.as_ref())).count() as u64
}

fn search_store(scene: &Scene, truth: &InMemory) -> Result<(), Violation> {
    let marker = if scene.options.sabotage == Some(Sabotage::MarkerInStore) { b"machine".as_slice() } else { MARKER };
    let all: Vec<_> = truth.list(None).collect::<Vec<_>>().now_or_never().expect("a store in memory never waits");
    for meta in all.into_iter().flatten() {
        let get = truth.get(&meta.location).now_or_never().expect("a store in memory never waits");
        let bytes = get.ok().and_then(|got| got.bytes().now_or_never()).and_then(Result::ok).unwrap_or_default();
        let named = meta.location.as_ref().as_bytes();
        let sabotaged = scene.options.sabotage == Some(Sabotage::MarkerInStore) && contains(named, marker);
        if contains(&bytes, marker) || sabotaged {
            return Err(Violation::new("plaintext", format!("{} holds what a client wrote", meta.location)));
        }
    }
    Ok(())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut at = 0;
    while let Some(found) = haystack[at..].iter().position(|byte| *byte == first) {
        if haystack[at + found..].starts_with(needle) {
            return true;
        }
        at += found + 1;
    }
    false
}
