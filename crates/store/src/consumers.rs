//! The list of consumers of a stream (docs/rfcs/0011-consumers.md): states numbered from 1 without gaps, each made if absent and
//! never changed, of which the newest counts.
//!
//! ```text
//!  consumer/1          consumer/2          consumer/3          consumer/4
//!  a needs all         a from epoch 2 on   b needs all: no,    trimmed up to 1     then, ever so late, epoch 1 is deleted
//!                                          a from epoch 2 on
//! ```
//! State n + 1 is made by one who has read state n and looked whether the change is right there, so all changes are in one order,
//! which every party sees. What must hold:
//!
//! - `trimmed` never falls, and whoever deletes something of an epoch has read a state by which it is trimmed.
//! - It rises only below the cursors of all consumers of the state before. So who is a consumer needs nothing that is deleted; and who comes
//!   behind a state that trims what it needs finds that out, and is no consumer.
//! - A create whose answer is unclear is resolved by [`Store::create`], or given up. Should it land late, it is a change
//!   that was right where it lands: nobody else made that number.
//! - Nothing rests on LIST. States are small and few (some a day), so none is deleted.

use std::sync::Arc;

use format::consumers::{CONSUMERS_MAX, Consumer, ConsumerId, Consumers};
use format::keys::Keys;
use format::object::ObjectKind;
use model::MachineName;
use probe::{Rule, Rules};
use tokio::sync::Mutex;

use crate::numbered::Numbered;
use crate::{Created, Store, StoreError};

/// Times others may be faster before we give up.
const RACES_MAX: u32 = 64;

/// A state costs some hundred bytes; this many probes in one look mean a store that makes them up.
const PROBES_MAX: u32 = 10_000;

/// Why a consumer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Epochs up to this one may be gone, and the cursor lies in one of them.
    Trimmed(u64),
    /// There are as many as there may be.
    Full,
}

#[derive(Default)]
struct Known {
    number: u64,
    state: Consumers,
}

/// The consumers of one machine's stream. Cheap to clone; clones share what was read.
#[derive(Clone)]
pub struct ConsumerList {
    machine: MachineName,
    states: Numbered,
    known: Arc<Mutex<Known>>,
}

impl ConsumerList {
    /// That of a machine, in the store where its stream is written: of two stores the cache store. Nothing is read yet.
    pub fn new(store: &Store, keys: Arc<Keys>, machine: MachineName) -> Self {
        let store = store.cache().cloned().unwrap_or_else(|| store.vault());
        let states = Numbered::new(store, keys, ObjectKind::Consumer, Some(machine.clone()));
        Self { machine, states, known: Arc::default() }
    }

    /// Whose.
    pub fn machine(&self) -> &MachineName {
        &self.machine
    }

    /// The store that it lies in.
    pub fn store(&self) -> &Store {
        self.states.store()
    }

    /// The newest state at some moment after this call began. Errors: `Unavailable`, `Damaged`.
    pub async fn read(&self) -> Result<Consumers, StoreError> {
        let mut known = self.known.lock().await;
        self.read_on(&mut known).await?;
        Ok(known.state.clone())
    }

    /// States a consumer: from then on nothing from its epoch on is deleted. The inner error says why it is none.
    /// Errors: `Unclear` and `Unavailable`, after which it may be stated or not; `Damaged`.
    pub async fn state(&self, id: ConsumerId, consumer: &Consumer) -> Result<Result<(), Refused>, StoreError> {
        let mut refused = None;
        let stated = self.change(|state| {
            let full = state.consumers.len() >= CONSUMERS_MAX && !state.consumers.contains_key(&id);
            refused = match state.trimmed {
                _ if full => Some(Refused::Full),
                trimmed if trimmed > 0 && consumer.epoch <= trimmed => Some(Refused::Trimmed(trimmed)),
                _ => None,
            };
            if refused.is_none() {
                state.consumers.insert(id, consumer.clone());
            }
        });
        stated.await?;
        Ok(refused.map_or(Ok(()), Err))
    }

    /// Trims up to `wanted`, or as far as consumers let it. Gives the epoch up to which everything may be deleted now.
    /// Errors: as of [`ConsumerList::state`].
    pub async fn trim(&self, wanted: u64, rules: Rules) -> Result<u64, StoreError> {
        let trimmed = self.change(|state| {
            // Careless: what is promoted here is needed nowhere.
            let held = state.lowest().filter(|_| rules.hold(Rule::ConsumersHoldSegments));
            let most = held.map_or(wanted, |lowest| wanted.min(lowest.saturating_sub(1)));
            state.trimmed = state.trimmed.max(most);
        });
        Ok(trimmed.await?.trimmed)
    }

    /// Forgets a consumer. Whether there was one. Errors: as of [`ConsumerList::state`].
    pub async fn forget(&self, id: ConsumerId) -> Result<bool, StoreError> {
        let mut found = false;
        self.change(|state| found |= state.consumers.remove(&id).is_some()).await?;
        Ok(found)
    }

    /// Makes the next state out of the newest one, unless it says the same. The change is made anew if another was faster.
    async fn change(&self, mut change: impl FnMut(&mut Consumers)) -> Result<Consumers, StoreError> {
        let mut known = self.known.lock().await;
        for _ in 0..RACES_MAX {
            self.read_on(&mut known).await?;
            let mut next = known.state.clone();
            change(&mut next);
            if next == known.state {
                return Ok(next);
            }
            let number = known.number + 1;
            if self.states.create(number, &next.encode()).await? == Created::Ours {
                *known = Known { number, state: next.clone() };
                return Ok(next);
            }
        }
        Err(StoreError::Unclear { path: self.states.path(known.number + 1) })
    }

    /// Numbers have no gaps: the newest is the one behind which a probe, made after it was read, finds none.
    async fn read_on(&self, known: &mut Known) -> Result<(), StoreError> {
        let (before, mut stride) = (known.number, 1u64);
        for _ in 0..PROBES_MAX {
            let number = known.number.saturating_add(stride);
            match self.states.read(number, Consumers::decode).await?.transpose()? {
                // Far behind: stride wider.
                Some(state) => (*known, stride) = (Known { number, state }, stride.saturating_mul(2)),
                None if stride > 1 => stride /= 2,
                None => {
                    if known.number > before {
                        // From here on much rests on it.
                        self.states.settle(known.number).await?;
                    }
                    return Ok(());
                }
            }
        }
        let because = format!("{PROBES_MAX} probes did not find the last state");
        Err(StoreError::Missing { path: self.states.path(known.number), because })
    }
}
