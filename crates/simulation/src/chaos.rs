//! How each fault is done, and how it ends.

use std::time::Duration;

use disk::memory::{Fault as DiskFault, Operation};
use store::{Fault as StoreFault, FaultRule, Faults};

use crate::fault::{Fault, ProtocolState};
use crate::machine::REGION_BYTES;
use crate::network::Link;
use crate::rng::pick;
use crate::scene::{Sabotage, Scene};
use crate::world::{HostId, ONE_THREAD};

/// Looks at a machine in a rare state for each fault that strikes in it.
const RARE_EVERY: u64 = 12;

impl Scene {
    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.rng.below(most - least + 1))
    }

    /// Any machine.
    pub fn any_machine(&mut self) -> usize {
        self.index(self.machines.len())
    }

    fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.rng.below(count as u64)).expect("an index")
    }

    /// States that pass quickly get faults of their own, or hardly any would ever strike in them.
    pub fn strike_in_rare_states(&mut self) {
        for machine in 0..self.machines.len() {
            let state = ProtocolState::of(self.statuses[machine].as_ref());
            let rare = matches!(state, ProtocolState::Drain | ProtocolState::Refused | ProtocolState::Queueing);
            if rare && self.rng.below(RARE_EVERY) == 0 {
                self.strike(machine);
            }
        }
    }

    /// A fault strikes at a machine, or at something it may depend on, if it can.
    pub fn strike(&mut self, machine: usize) {
        let fault = match self.options.faults.is_empty() {
            true => *pick(&mut self.rng, Fault::ALL),
            false => *pick(&mut self.rng, &self.options.faults.clone()),
        };
        let state = self.state_of(machine);
        let up = self.machines[machine].agent().is_some() && !self.world.is_paused(self.machines[machine].host);
        if fault.needs_agent() && !up {
            return;
        }
        if self.apply(fault, machine) {
            tracing::info!(?fault, machine, ?state, "fault");
            self.coverage.hit(fault, state);
        }
    }

    /// Says whether it struck.
    fn apply(&mut self, fault: Fault, machine: usize) -> bool {
        match fault {
            Fault::AgentKill | Fault::PowerCut => {
                let wait = self.millis(0, 3000);
                self.end_machine(machine, fault == Fault::PowerCut);
                self.later(wait, move |scene| scene.start_machine(machine));
                true
            }
            Fault::AgentPause => self.pause(self.machines[machine].host, 14_000),
            Fault::CleanRestart => self.clean_restart(machine),
            Fault::ClockBack => {
                let back = i64::try_from(self.millis(10, 20_000).as_micros()).expect("short");
                self.machines[machine].clock.ahead.fetch_sub(back, ONE_THREAD);
                true
            }
            Fault::SourceWrite | Fault::SourceFlush | Fault::SourceRead => self.source_fault(fault, machine),
            Fault::StateDirFull => {
                let time = self.millis(50, 3000);
                self.known[machine].may_resend = None;
                self.machines[machine].files.set_full(true);
                self.later(time, move |scene| scene.machines[machine].files.set_full(false));
                true
            }
            Fault::Revert => self.revert(machine),
            Fault::Clone => self.clone_machine(machine),
            Fault::AgentFailpoint => self.failpoint("agent", self.machines[machine].host),
            Fault::ServerFailpoint => {
                let server = self.index(self.servers.len());
                self.failpoint("process-server", self.servers[server].host)
            }
            Fault::ApplierFailpoint => {
                let follower = self.index(self.followers.len());
                self.failpoint("applier", self.followers[follower].host)
            }
            Fault::ServerKill | Fault::ServerPowerCut | Fault::ServerPause | Fault::ServerStop => {
                self.server_fault(fault)
            }
            Fault::ApplierKill | Fault::ApplierPause => self.applier_fault(fault),
            _ => self.network_or_store(fault, machine),
        }
    }

    /// Ends the life of a machine's agent; what its next life may send again is noted before.
    fn end_machine(&mut self, machine: usize, power: bool) {
        let status = self.machines[machine].status(&self.world);
        let measured = self.rng.below(2) == 0;
        let bound = status.filter(|_| measured).map(|status| status.active_regions * REGION_BYTES);
        let nothing = self.options.sabotage == Some(Sabotage::NothingMayBeResent);
        self.known[machine].may_resend = bound.map(|bytes| if nothing { 0 } else { bytes });
        let rng = &mut self.rng;
        self.machines[machine].die(&mut self.world, power, rng);
    }

    /// A host died at a failpoint.
    pub fn died_at(&mut self, host: HostId, step: &'static str) {
        let wait = self.millis(0, 2000);
        tracing::info!(host = self.world.name(host), step, "died at a failpoint");
        if let Some(index) = self.machines.iter().position(|machine| machine.host == host) {
            self.known[index].may_resend = None;
            let rng = &mut self.rng;
            self.machines[index].die(&mut self.world, false, rng);
            self.later(wait, move |scene| scene.start_machine(index));
        } else if let Some(index) = self.servers.iter().position(|server| server.host == host) {
            self.servers[index].die(&mut self.world, false);
            self.later(wait, move |scene| scene.start_server(index));
        } else if let Some(index) = self.followers.iter().position(|follower| follower.host == host) {
            self.followers[index].die(&mut self.world, false);
            self.later(wait, move |scene| scene.start_follower(index));
        }
    }

    fn failpoint(&mut self, role: &'static str, host: HostId) -> bool {
        let steps: Vec<&'static str> =
            probe::FAILPOINTS.iter().filter(|point| point.role == role).map(|point| point.name).collect();
        if steps.is_empty() || !self.world.is_up(host) {
            return false;
        }
        let step = *pick(&mut self.rng, &steps);
        let nth = 1 + u32::try_from(self.rng.below(4)).expect("small");
        self.world.die_at(host, step, nth);
        true
    }

    fn pause(&mut self, host: HostId, most_millis: u64) -> bool {
        if !self.world.is_up(host) || self.world.is_paused(host) {
            return false;
        }
        let time = self.millis(200, most_millis);
        self.world.pause(host, true);
        self.later(time, move |scene| scene.world.pause(host, false));
        true
    }

    fn clean_restart(&mut self, machine: usize) -> bool {
        let Some(agent) = self.machines[machine].agent() else { return false };
        let host = self.machines[machine].host;
        self.machines[machine].gate.set_closed(true);
        self.world.spawn(host, async move {
            let outcome = agent.stop(Duration::from_secs(4)).await;
            tracing::debug!(?outcome, "agent stopped");
        });
        let stopped = lives(self, machine);
        self.later(Duration::from_millis(5_500), move |scene| {
            if lives(scene, machine) != stopped {
                return;
            }
            scene.known[machine].may_resend = None;
            // A power cut after a clean stop must not matter.
            let power = scene.rng.below(2) == 0;
            let rng = &mut scene.rng;
            scene.machines[machine].die(&mut scene.world, power, rng);
            if scene.rng.below(2) == 0 {
                scene.known[machine].snapshot = Some(scene.machines[machine].snapshot());
            }
            scene.start_machine(machine);
        });
        true
    }

    fn source_fault(&mut self, fault: Fault, machine: usize) -> bool {
        let disk = self.index(self.machines[machine].media.len());
        let how = if self.rng.below(3) == 0 { DiskFault::Refused } else { DiskFault::Torn(self.rng.next_u64()) };
        self.known[machine].may_resend = None;
        match fault {
            Fault::SourceFlush => self.machines[machine].fail_next_flush(disk, how),
            Fault::SourceRead => self.machines[machine].media[disk].fail_next(Operation::Read, how),
            _ => {
                let operation = if self.rng.below(4) == 0 { Operation::Zero } else { Operation::Write };
                self.machines[machine].media[disk].fail_next(operation, how);
            }
        }
        true
    }

    fn revert(&mut self, machine: usize) -> bool {
        let Some(snapshot) = self.known[machine].snapshot.take() else { return false };
        self.end_machine(machine, true);
        self.known[machine].may_resend = None;
        self.machines[machine].revert(&snapshot);
        let wait = self.millis(0, 2000);
        self.later(wait, move |scene| scene.start_machine(machine));
        true
    }

    fn clone_machine(&mut self, machine: usize) -> bool {
        let snapshot = match self.known[machine].snapshot.clone().filter(|_| self.rng.below(2) == 0) {
            Some(old) => old,
            None => self.machines[machine].snapshot(),
        };
        let mut twin = self.machines[machine].twin(&mut self.world, &snapshot);
        twin.start(&mut self.world, &self.server_hosts, false);
        // What the copy sends may make the original's next life compare.
        self.known[machine].may_resend = None;
        let (host, time) = (twin.host, self.millis(1000, 8000));
        self.twins.push(twin);
        self.later(time, move |scene| {
            let index = scene.twins.iter().position(|twin| twin.host == host).expect("twins are kept");
            let rng = &mut scene.rng;
            scene.twins[index].die(&mut scene.world, true, rng);
        });
        true
    }

    fn server_fault(&mut self, fault: Fault) -> bool {
        let server = self.index(self.servers.len());
        let host = self.servers[server].host;
        if !self.world.is_up(host) {
            return false;
        }
        let wait = self.millis(0, 4000);
        match fault {
            Fault::ServerPause => return self.pause(host, 25_000),
            Fault::ServerStop => {
                self.servers[server].stop(&self.world);
                self.later(Duration::from_secs(3), move |scene| {
                    scene.servers[server].die(&mut scene.world, false);
                    scene.start_server(server);
                });
            }
            _ => {
                self.servers[server].die(&mut self.world, fault == Fault::ServerPowerCut);
                self.later(wait, move |scene| scene.start_server(server));
            }
        }
        true
    }

    fn applier_fault(&mut self, fault: Fault) -> bool {
        let follower = self.index(self.followers.len());
        let host = self.followers[follower].host;
        if !self.world.is_up(host) {
            return false;
        }
        if fault == Fault::ApplierPause {
            return self.pause(host, 20_000);
        }
        let wait = self.millis(0, 4000);
        self.followers[follower].die(&mut self.world, false);
        self.later(wait, move |scene| scene.start_follower(follower));
        true
    }

    fn network_or_store(&mut self, fault: Fault, machine: usize) -> bool {
        let (server, follower) = (self.index(self.servers.len()), self.index(self.followers.len()));
        let (machine, server_host) = (self.machines[machine].host, self.servers[server].host);
        let (follower_host, store) = (self.followers[follower].host, self.site.service.host);
        match fault {
            Fault::CutToServer => self.cut(machine, server_host, 25_000),
            Fault::CutFromServer => self.cut(server_host, machine, 25_000),
            Fault::CutServerStore => self.cut(server_host, store, 9_000),
            Fault::CutStoreAnswers => self.cut(store, server_host, 9_000),
            Fault::CutApplierStore => {
                let vault = self.site.vault.as_ref().map(|vault| vault.host);
                let far = vault.filter(|_| self.rng.below(2) == 0).unwrap_or(store);
                self.cut(follower_host, far, 9_000);
            }
            Fault::LossyLinks => self.lossy(machine),
            Fault::StoreOutage => {
                let all = self.all_faults();
                self.store_fault(&all, 8_000, |faults| faults.set_outage(true));
            }
            _ => {
                let one = if self.rng.below(3) == 0 {
                    self.followers[follower].faults.clone()
                } else {
                    self.servers[server].faults.clone()
                };
                let rule = self.store_rule(fault);
                self.store_fault(&[one], 6_000, move |faults| faults.add(rule.clone()));
            }
        }
        true
    }

    /// One of the ways in which a store fails, for a while.
    fn store_rule(&mut self, fault: Fault) -> FaultRule {
        let rate = 0.1 + 0.1 * self.rng.below(5) as f64;
        let time = self.millis(10, 9000);
        let run = 1 + u32::try_from(self.rng.below(6)).expect("small");
        let refusals = [
            StoreFault::Before,
            StoreFault::TooManyRequests { run },
            StoreFault::ServiceUnavailable { run },
            StoreFault::ConflictAbsent,
            StoreFault::Hang(time),
            StoreFault::Slow { latency: time / 4, bytes_per_second: 0 },
            StoreFault::BrokenBody,
        ];
        let lost = [StoreFault::LostResponse, StoreFault::ConflictCreated];
        let late = [StoreFault::Late(time), StoreFault::Twice(time)];
        let kind = match fault {
            Fault::StoreErrors => *pick(&mut self.rng, &refusals),
            Fault::StoreLostAnswers => *pick(&mut self.rng, &lost),
            _ => *pick(&mut self.rng, &late),
        };
        FaultRule::new(kind, rate).jitter(time / 2)
    }

    fn all_faults(&self) -> Vec<Faults> {
        let servers = self.servers.iter().map(|server| server.faults.clone());
        servers.chain(self.followers.iter().map(|follower| follower.faults.clone())).collect()
    }

    /// Strikes of the store's faults, by name, whoever asked.
    pub fn store_faults(&self) -> std::collections::BTreeMap<&'static str, u64> {
        let mut struck = std::collections::BTreeMap::new();
        for (_, name, count) in self.all_faults().iter().flat_map(Faults::struck) {
            *struck.entry(name).or_default() += count;
        }
        struck
    }

    fn cut(&mut self, from: HostId, to: HostId, most_millis: u64) {
        let time = self.millis(300, most_millis);
        let link = self.world.network.link(from, to);
        self.world.network.set_link(from, to, Link { up: false, ..link });
        self.later(time, move |scene| {
            let link = scene.world.network.link(from, to);
            scene.world.network.set_link(from, to, Link { up: true, ..link });
        });
    }

    fn lossy(&mut self, machine: HostId) {
        let time = self.millis(500, 9000);
        let latency = (Duration::from_millis(1), self.millis(5, 120));
        let loss = 0.02 * self.rng.below(12) as f64;
        let link = Link { up: true, latency, loss, duplicate: 0.15 };
        let pairs: Vec<_> =
            self.servers.iter().flat_map(|server| [(machine, server.host), (server.host, machine)]).collect();
        for (from, to) in &pairs {
            let up = self.world.network.link(*from, *to).up;
            self.world.network.set_link(*from, *to, Link { up, ..link });
        }
        self.later(time, move |scene| {
            for (from, to) in pairs {
                let up = scene.world.network.link(from, to).up;
                scene.world.network.set_link(from, to, Link { up, ..Link::default() });
            }
        });
    }

    fn store_fault(&mut self, whose: &[Faults], most_millis: u64, set: impl Fn(&Faults)) {
        let time = self.millis(200, most_millis);
        whose.iter().for_each(set);
        let whose = whose.to_vec();
        self.later(time, move |_| whose.iter().for_each(Faults::clear));
    }

    /// Everything that was put off happens, nothing goes wrong any more, and everybody runs.
    pub fn heal(&mut self) {
        self.do_due(true);
        self.world.forget_failpoints();
        let hosts: Vec<HostId> = self.machines.iter().map(|m| m.host).collect();
        let servers: Vec<HostId> = self.servers.iter().map(|s| s.host).collect();
        let followers: Vec<HostId> = self.followers.iter().map(|f| f.host).collect();
        hosts.iter().chain(&servers).chain(&followers).for_each(|host| self.world.pause(*host, false));
        self.all_faults().iter().for_each(Faults::clear);
        if self.options.sabotage == Some(Sabotage::NeverHeals) {
            for server in &servers {
                self.world.network.set_link(hosts[0], *server, Link { up: false, ..Link::default() });
            }
        }
        for machine in 0..self.machines.len() {
            self.machines[machine].media.iter().for_each(|disk| disk.clear_faults());
            self.machines[machine].files.set_full(false);
            self.start_machine(machine);
        }
        (0..self.servers.len()).for_each(|n| self.start_server(n));
        (0..self.followers.len()).for_each(|n| self.start_follower(n));
    }
}

/// Which life of a machine's host goes on.
fn lives(scene: &Scene, machine: usize) -> Option<u64> {
    scene.world.is_up(scene.machines[machine].host).then(|| scene.world.boot_number(scene.machines[machine].host))
}
