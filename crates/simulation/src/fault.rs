//! The faults of a run, and the states of the protocol in which they strike.

use std::collections::BTreeMap;

use agent::AgentStatus;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9 of the machine's agent and clients.
    AgentKill,
    /// The same at a named durable step.
    AgentFailpoint,
    /// The machine's host loses power: what was not flushed or synced is lost in part.
    PowerCut,
    /// The agent's process is stopped for a while and continued.
    AgentPause,
    /// The agent is stopped in order and started again.
    CleanRestart,
    /// The machine's clock goes back.
    ClockBack,
    /// Source writes fail, torn.
    SourceWrite,
    /// A source flush fails and loses part of what it covered.
    SourceFlush,
    /// Source reads fail.
    SourceRead,
    /// No room in the agent's state directory.
    StateDirFull,
    /// Disks and state files are set back to a snapshot.
    Revert,
    /// A copy of the machine starts beside it.
    Clone,
    /// kill -9 of a process server.
    ServerKill,
    /// The same at a named durable step.
    ServerFailpoint,
    /// A process server's host loses power.
    ServerPowerCut,
    /// A process server is stopped in mid-run: a zombie when it is continued.
    ServerPause,
    /// A process server is stopped in order.
    ServerStop,
    /// kill -9 of an applier.
    ApplierKill,
    /// The same at a named durable step.
    ApplierFailpoint,
    /// An applier is a zombie for a while.
    ApplierPause,
    /// Nothing passes from the machine to a process server.
    CutToServer,
    /// Nothing passes from a process server to the machine.
    CutFromServer,
    /// Packets between machines and process servers are lost, repeated and reordered.
    LossyLinks,
    /// A process server does not reach the store.
    CutServerStore,
    /// The store's answers do not reach a process server.
    CutStoreAnswers,
    /// An applier does not reach the store.
    CutApplierStore,
    /// The store refuses requests by chance.
    StoreErrors,
    /// The store does as asked, and the answer is lost.
    StoreLostAnswers,
    /// The store's requests take effect after their time-out.
    StoreLate,
    /// The store is gone for everybody.
    StoreOutage,
}

impl Fault {
    /// Every fault.
    pub const ALL: &[Fault] = &[
        Fault::AgentKill,
        Fault::AgentFailpoint,
        Fault::PowerCut,
        Fault::AgentPause,
        Fault::CleanRestart,
        Fault::ClockBack,
        Fault::SourceWrite,
        Fault::SourceFlush,
        Fault::SourceRead,
        Fault::StateDirFull,
        Fault::Revert,
        Fault::Clone,
        Fault::ServerKill,
        Fault::ServerFailpoint,
        Fault::ServerPowerCut,
        Fault::ServerPause,
        Fault::ServerStop,
        Fault::ApplierKill,
        Fault::ApplierFailpoint,
        Fault::ApplierPause,
        Fault::CutToServer,
        Fault::CutFromServer,
        Fault::LossyLinks,
        Fault::CutServerStore,
        Fault::CutStoreAnswers,
        Fault::CutApplierStore,
        Fault::StoreErrors,
        Fault::StoreLostAnswers,
        Fault::StoreLate,
        Fault::StoreOutage,
    ];
}

/// How a machine's protocol stood when a fault struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtocolState {
    /// Data mode, in session.
    Live,
    /// Data mode, without a session: the queue fills.
    Queueing,
    /// Bitmap mode.
    Bitmap,
    /// A drain is running.
    Drain,
    /// Refused until a compare has run.
    Refused,
    /// The agent does not run.
    Down,
}

impl ProtocolState {
    /// Every state.
    pub const ALL: &[ProtocolState] = &[
        ProtocolState::Live,
        ProtocolState::Queueing,
        ProtocolState::Bitmap,
        ProtocolState::Drain,
        ProtocolState::Refused,
        ProtocolState::Down,
    ];

    /// As the agent shows it.
    pub fn of(status: Option<&AgentStatus>) -> Self {
        let Some(status) = status else { return ProtocolState::Down };
        if status.refusal.as_ref().is_some_and(|refusal| refusal.needs_compare) {
            return ProtocolState::Refused;
        }
        match (status.mode, &status.connection) {
            ("data", Some(_)) => ProtocolState::Live,
            ("data", None) => ProtocolState::Queueing,
            ("drain", _) => ProtocolState::Drain,
            _ => ProtocolState::Bitmap,
        }
    }
}

/// How often each fault struck in each state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage(pub BTreeMap<(Fault, ProtocolState), u64>);

impl Coverage {
    /// A fault strikes.
    pub fn hit(&mut self, fault: Fault, state: ProtocolState) {
        *self.0.entry((fault, state)).or_default() += 1;
    }

    /// Adds what another run hit.
    pub fn add(&mut self, other: &Coverage) {
        for (cell, count) in &other.0 {
            *self.0.entry(*cell).or_default() += count;
        }
    }

    /// Faults that struck.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Cells that can be hit: what needs a running agent cannot strike one that is down.
    pub fn cells() -> impl Iterator<Item = (Fault, ProtocolState)> {
        let all = Fault::ALL.iter().flat_map(|fault| ProtocolState::ALL.iter().map(move |state| (*fault, *state)));
        all.filter(|(fault, state)| *state != ProtocolState::Down || !fault.needs_agent())
    }

    /// Cells never hit.
    pub fn missing(&self) -> Vec<(Fault, ProtocolState)> {
        Self::cells().filter(|cell| !self.0.contains_key(cell)).collect()
    }
}

impl Fault {
    /// Whether it strikes a running agent only.
    pub fn needs_agent(self) -> bool {
        matches!(
            self,
            Fault::AgentKill
                | Fault::AgentFailpoint
                | Fault::PowerCut
                | Fault::AgentPause
                | Fault::CleanRestart
                | Fault::ClockBack
                | Fault::SourceWrite
                | Fault::SourceFlush
                | Fault::SourceRead
                | Fault::StateDirFull
                | Fault::Revert
                | Fault::Clone
        )
    }
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<18}", "fault")?;
        for state in ProtocolState::ALL {
            write!(f, "{:>10}", format!("{state:?}").to_lowercase())?;
        }
        writeln!(f)?;
        for fault in Fault::ALL {
            write!(f, "{:<18}", format!("{fault:?}"))?;
            for state in ProtocolState::ALL {
                let possible = *state != ProtocolState::Down || !fault.needs_agent();
                match self.0.get(&(*fault, *state)) {
                    Some(count) => write!(f, "{count:>10}")?,
                    None => write!(f, "{:>10}", if possible { "0" } else { "-" })?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
