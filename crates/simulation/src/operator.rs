//! The operator: compares what was refused, sets marks across machines, restores while everything goes wrong.
//!
//! All of it runs on a host of its own, over the same unreliable network as everybody else; the main loop only looks
//! whether an answer has come.

use std::sync::Arc;
use std::time::Duration;

use agent::Agent;
use applier::ApplierRules;
use applier::recover::{self, LoadOptions, RecoverError};
use disk::Disk;
use model::{Extent, Selector, Seq};
use store::{Faults, SplitMix64};
use tokio::sync::oneshot;

use crate::judge::{Answers, Questions, Violation, ask, is_damage, judge};
use crate::machine::{Machine, lock};
use crate::scene::{Sabotage, Scene};
use crate::world::Boot;

/// How long a machine is left refused before somebody looks after it.
const COMPARE_AFTER_MICROS: u64 = 1_500_000;

/// How long clients are held for a group's marks.
const HOLD_MAX_MICROS: u64 = 4_000_000;

/// Mean time between two restores, and between two groups of marks.
const ERRAND_EVERY_MILLIS: u64 = 2_500;

/// A point across machines: each machine's number and position.
pub type GroupPoint = Vec<(usize, Seq)>;

type Asked = Option<oneshot::Receiver<Result<Answers, RecoverError>>>;

/// Marks that are being set across machines.
struct Group {
    since: u64,
    boots: Vec<u64>,
    marks: Option<Vec<oneshot::Receiver<Option<Seq>>>>,
    got: Vec<Option<Seq>>,
}

/// What the operator is at.
pub struct Operator {
    /// Its host.
    pub boot: Boot,
    /// Faults between it and the store.
    pub faults: Faults,
    /// Points across machines that were set.
    pub groups: Vec<GroupPoint>,
    /// Positions opened while things went wrong.
    pub judged: u64,
    /// Compares that were handed to an agent.
    pub compares: u64,
    rng: SplitMix64,
    comparing: Vec<Option<oneshot::Receiver<Result<(), String>>>>,
    refused_since: Vec<Option<u64>>,
    asking: Vec<Asked>,
    group: Option<Group>,
    next_errand: u64,
}

impl Operator {
    /// With nothing to do yet.
    pub fn new(boot: Boot, machines: usize, mut rng: SplitMix64) -> Self {
        Self {
            boot,
            faults: Faults::new(rng.next_u64()),
            groups: Vec::new(),
            judged: 0,
            compares: 0,
            rng,
            comparing: (0..machines).map(|_| None).collect(),
            refused_since: vec![None; machines],
            asking: (0..machines).map(|_| None).collect(),
            group: None,
            next_errand: 0,
        }
    }
}

impl Scene {
    /// A look at everything the operator looks after.
    pub fn operate(&mut self, errands: bool) -> Result<(), Violation> {
        for machine in 0..self.machines.len() {
            self.look_after_refused(machine);
            self.hear_answers(machine)?;
        }
        self.go_on_with_group();
        let now = self.world.clock().micros();
        if errands && now >= self.operator.next_errand {
            let wait = self.operator.rng.below(2 * ERRAND_EVERY_MILLIS) * 1000;
            self.operator.next_errand = now + wait;
            match self.operator.rng.below(2) {
                0 => self.begin_restore(),
                _ => self.begin_group(),
            }
        }
        Ok(())
    }

    fn look_after_refused(&mut self, machine: usize) {
        let now = self.world.clock().micros();
        if let Some(running) = &mut self.operator.comparing[machine] {
            match running.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return,
                Ok(Ok(())) => self.operator.compares += 1,
                Ok(Err(why)) => tracing::debug!(machine, why, "compare failed"),
                Err(oneshot::error::TryRecvError::Closed) => {}
            }
            self.operator.comparing[machine] = None;
        }
        let refusal = self.statuses[machine].as_ref().and_then(|status| status.refusal.as_ref());
        let refused = refusal.is_some_and(|refusal| refusal.needs_compare);
        if !refused {
            self.operator.refused_since[machine] = None;
            return;
        }
        let since = *self.operator.refused_since[machine].get_or_insert(now);
        if now - since >= COMPARE_AFTER_MICROS {
            self.operator.refused_since[machine] = Some(now);
            self.begin_compare(machine);
        }
    }

    fn begin_compare(&mut self, machine: usize) {
        self.known[machine].may_resend = None;
        let (Some(agent), Some(handle)) =
            (self.machines[machine].agent(), self.world.handle(self.machines[machine].host))
        else {
            return;
        };
        let boot = self.operator.boot.clone();
        let sources = self.machines[machine].sources(&boot, &mut self.operator.rng);
        let (store, keys) = (self.site.history(&self.world, &boot, &self.operator.faults), self.site.keys.clone());
        let (name, rules) = (self.machines[machine].name.clone(), self.applier_rules());
        let (answer, answered) = oneshot::channel();
        self.operator.comparing[machine] = Some(answered);
        self.world.spawn(boot.host, async move {
            let found = compare(store, keys, name, rules, &sources).await.map_err(|error| error.to_string());
            let told = match found {
                Ok((at, differing)) => {
                    let telling = handle.spawn(async move { tell(&agent, at, differing).await });
                    telling.await.unwrap_or_else(|died| Err(died.to_string()))
                }
                Err(why) => Err(why),
            };
            let _nobody_waits = answer.send(told);
        });
    }

    /// Rules for whoever reads the store.
    pub fn applier_rules(&self) -> ApplierRules {
        ApplierRules { log: self.site.log_rules, applier: self.site.rules }
    }

    fn begin_restore(&mut self) {
        let machine = usize::try_from(self.operator.rng.below(self.machines.len() as u64)).expect("an index");
        if self.operator.asking[machine].is_some() {
            return;
        }
        let boot = self.operator.boot.clone();
        let questions = Questions {
            store: self.site.history(&self.world, &boot, &self.operator.faults),
            keys: self.site.keys.clone(),
            rules: self.applier_rules(),
            machine: self.machines[machine].name.clone(),
            random: 2,
            rng: SplitMix64::new(self.operator.rng.next_u64()),
            kept: self.known[machine].kept.clone(),
            wanted: Vec::new(),
        };
        let (answer, answered) = oneshot::channel();
        self.operator.asking[machine] = Some(answered);
        self.world.spawn(boot.host, async move {
            let _nobody_waits = answer.send(ask(questions).await);
        });
    }

    fn hear_answers(&mut self, machine: usize) -> Result<(), Violation> {
        let Some(asking) = &mut self.operator.asking[machine] else { return Ok(()) };
        let heard = match asking.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return Ok(()),
            heard => heard,
        };
        self.operator.asking[machine] = None;
        match heard {
            Ok(Ok(answers)) => {
                self.operator.judged += judge(&self.machines[machine], &answers)? as u64;
                for opened in &answers.opened {
                    self.known[machine].kept.insert(opened.at.position.seq, opened.at.digest);
                }
                Ok(())
            }
            Ok(Err(error)) if is_damage(&error) => Err(Violation::new("restore", error.to_string())),
            _ => Ok(()),
        }
    }

    fn begin_group(&mut self) {
        let all_up = self.machines.iter().all(|machine| machine.agent().is_some());
        if self.machines.len() < 2 || !all_up || self.operator.group.is_some() {
            return;
        }
        let gated = self.options.sabotage != Some(Sabotage::GroupWithoutGate);
        self.machines.iter().filter(|_| gated).for_each(|machine| machine.gate.set_closed(true));
        let boots = self.machines.iter().map(|machine| self.world.boot_number(machine.host)).collect();
        let got = vec![None; self.machines.len()];
        self.operator.group = Some(Group { since: self.world.clock().micros(), boots, marks: None, got });
    }

    fn go_on_with_group(&mut self) {
        let Some(mut group) = self.operator.group.take() else { return };
        let now = self.world.clock().micros();
        let same_lives = self
            .machines
            .iter()
            .zip(&group.boots)
            .all(|(machine, boot)| self.world.boot_number(machine.host) == *boot && machine.agent().is_some());
        if !same_lives || now - group.since > HOLD_MAX_MICROS {
            self.release();
            return;
        }
        let gated = self.options.sabotage != Some(Sabotage::GroupWithoutGate);
        if group.marks.is_none() {
            if !gated || self.machines.iter().all(|machine| machine.gate.is_empty()) {
                group.marks = Some(self.set_marks());
            }
            self.operator.group = Some(group);
            return;
        }
        for (mark, got) in group.marks.iter_mut().flatten().zip(&mut group.got) {
            match mark.try_recv() {
                Ok(Some(seq)) => *got = Some(seq),
                Ok(None) => {
                    self.release();
                    return;
                }
                Err(_) => {}
            }
        }
        match group.got.iter().enumerate().map(|(index, got)| got.map(|seq| (index, seq))).collect() {
            Some(point) => {
                self.operator.groups.push(point);
                self.release();
            }
            None => self.operator.group = Some(group),
        }
    }

    fn release(&mut self) {
        self.operator.group = None;
        for machine in 0..self.machines.len() {
            // Who waits for a drain to be measured goes on waiting.
            let held = self.known[machine].may_resend.is_some();
            self.machines[machine].gate.set_closed(held);
        }
    }

    fn set_marks(&self) -> Vec<oneshot::Receiver<Option<Seq>>> {
        let mark = |machine: &Machine| {
            let (answer, answered) = oneshot::channel();
            if let Some(agent) = lock(&machine.life).agent.clone() {
                // Without the gate the marks are set at different times, as without any coordination.
                let apart = Duration::from_millis(150 * machine.index as u64);
                let gated = self.options.sabotage != Some(Sabotage::GroupWithoutGate);
                self.world.spawn(machine.host, async move {
                    if !gated {
                        tokio::time::sleep(apart).await;
                    }
                    let marked = agent.mark("group").await;
                    let _nobody_waits = answer.send(marked.ok().map(|marked| marked.seq));
                });
            }
            answered
        };
        self.machines.iter().map(mark).collect()
    }
}

/// What differs between the log's end and the sources, for each disk.
async fn compare(
    store: store::Store,
    keys: Arc<format::keys::Keys>,
    machine: model::MachineName,
    rules: ApplierRules,
    sources: &[Arc<dyn Disk>],
) -> Result<(Seq, Vec<Vec<Extent>>), RecoverError> {
    let options = LoadOptions { settle: Duration::from_secs(3), ..LoadOptions::default() };
    let history = recover::History::load_with_rules(&store, keys, &machine, options, rules).await?;
    let end = history.head().position.seq;
    let whole = |source: &Arc<dyn Disk>| Extent::new(0, source.size()).into_iter().collect();
    let latest = history.resolve(&Selector::Latest, None).await.ok().filter(|at| at.position.seq == end);
    let Some(latest) = latest else {
        // The log ends where no position is a point: nothing can be compared with it.
        return Ok((end, sources.iter().map(whole).collect()));
    };
    let point = history.open(&latest).await?;
    let mut differing = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let disk = point.disk(&Machine::disk_name(index))?;
        differing.push(recover::compare(&disk, source.as_ref(), None).await?.differing);
    }
    Ok((end, differing))
}

async fn tell(agent: &Agent, at: Seq, differing: Vec<Vec<Extent>>) -> Result<(), String> {
    for (index, extents) in differing.into_iter().enumerate() {
        agent.compared(&Machine::disk_name(index), at, extents).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}
