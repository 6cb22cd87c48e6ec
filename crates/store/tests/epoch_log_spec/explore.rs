//! Two ways through a model: every state there is, or seeded schedules. `gc_spec` goes the same ways.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::Instant;

use store::SplitMix64;

/// States and steps. A state is judged after every step, as if it were the last one.
pub trait Model: Clone + Hash {
    type Action: Copy + Debug;

    /// What may happen next, in an order that depends on the state alone.
    fn actions(&self, into: &mut Vec<Self::Action>);

    fn apply(&mut self, action: Self::Action);

    fn judge(&self) -> Result<(), &'static str>;
}

/// 64 bits that differ for different states, but for a chance of about (states)² / 2⁶⁵ in the whole exploration.
#[derive(Default)]
pub struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        let folded = u128::from(self.0 ^ word ^ 0x9E37_79B9_7F4A_7C15) * 0xDA94_2042_E4DD_58B5_u128;
        self.0 = ((folded >> 64) as u64 ^ folded as u64).rotate_left(23);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.mix(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.mix(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.mix(n as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = Mixer(self.0);
        last.mix(0x5851_F42D_4C95_7F2D);
        last.0
    }
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut mixer = Mixer::default();
    state.hash(&mut mixer);
    mixer.finish()
}

/// Fingerprints are mixed already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("fingerprints are u64")
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Explored {
    pub states: u64,
    pub steps: u64,
    pub deepest: usize,
}

#[derive(Debug)]
pub struct Broken<A> {
    pub verdict: &'static str,
    /// The steps that lead there.
    pub path: Vec<A>,
}

struct Frame<M: Model> {
    state: M,
    actions: Vec<M::Action>,
    next: usize,
}

impl<M: Model> Frame<M> {
    fn new(state: M) -> Self {
        let mut actions = Vec::new();
        state.actions(&mut actions);
        Self { state, actions, next: 0 }
    }
}

/// Visits every state that can be reached from `start`, depth first. Errors: the first state that is judged wrong.
/// Panics when there are more than `states_max`: an exploration that stops early proves nothing.
pub fn exhaustive<M: Model>(start: M, states_max: u64) -> Result<Explored, Broken<M::Action>> {
    let mut seen = HashSet::<u64, BuildHasherDefault<AsIs>>::default();
    seen.insert(fingerprint(&start));
    let mut explored = Explored { states: 1, ..Explored::default() };
    let mut stack = vec![Frame::new(start)];
    while let Some(frame) = stack.last_mut() {
        let Some(action) = frame.actions.get(frame.next).copied() else {
            stack.pop();
            continue;
        };
        frame.next += 1;
        let mut state = frame.state.clone();
        state.apply(action);
        explored.steps += 1;
        if let Err(verdict) = state.judge() {
            let path = stack.iter().map(|frame| frame.actions[frame.next - 1]).collect();
            return Err(Broken { verdict, path });
        }
        if seen.insert(fingerprint(&state)) {
            explored.states += 1;
            assert!(explored.states <= states_max, "more than {states_max} states: {explored:?}");
            stack.push(Frame::new(state));
            explored.deepest = explored.deepest.max(stack.len());
        }
    }
    Ok(explored)
}

/// Chooses what happens next in one schedule.
pub trait Schedule<M: Model> {
    /// Index into `actions`, which are not empty.
    fn choose(&mut self, state: &M, actions: &[M::Action], rng: &mut SplitMix64) -> usize;
}

/// Every action is as likely as any other.
pub struct Even;

impl<M: Model> Schedule<M> for Even {
    fn choose(&mut self, _state: &M, actions: &[M::Action], rng: &mut SplitMix64) -> usize {
        rng.below(actions.len() as u64) as usize
    }
}

/// One seeded schedule of at most `steps`. Errors: what is wrong, and where it led.
pub fn random<M: Model>(
    start: M,
    schedule: &mut impl Schedule<M>,
    seed: u64,
    steps: usize,
) -> Result<M, Broken<M::Action>> {
    let mut rng = SplitMix64::new(seed);
    let (mut state, mut actions, mut path) = (start, Vec::new(), Vec::new());
    for _ in 0..steps {
        actions.clear();
        state.actions(&mut actions);
        if actions.is_empty() {
            break;
        }
        let action = actions[schedule.choose(&state, &actions, &mut rng)];
        path.push(action);
        state.apply(action);
        if let Err(verdict) = state.judge() {
            return Err(Broken { verdict, path });
        }
    }
    Ok(state)
}

/// Runs the seeds; returns how many of them fail with what, the first that fails (counted from 1; the last when not `all`
/// are asked for), and shows `each` the ends of the others.
pub fn schedules<M: Model, S: Schedule<M>>(
    start: &M,
    schedule: impl Fn() -> S,
    seeds: u64,
    steps: usize,
    all: bool,
    mut each: impl FnMut(&M),
) -> (BTreeMap<&'static str, u64>, Option<u64>) {
    let (mut verdicts, mut first) = (BTreeMap::new(), None);
    for seed in 0..seeds {
        match random(start.clone(), &mut schedule(), seed, steps) {
            Ok(end) => each(&end),
            Err(broken) => {
                *verdicts.entry(broken.verdict).or_default() += 1;
                first.get_or_insert(seed + 1);
                if !all {
                    break;
                }
            }
        }
    }
    (verdicts, first)
}

/// Visits every state; none may be wrong.
pub fn assert_sound<M: Model>(what: &str, start: M, states_max: u64) {
    let begun = Instant::now();
    match exhaustive(start, states_max) {
        Ok(explored) => println!("{what}: every state is sound: {explored:?} in {:.1?}", begun.elapsed()),
        Err(Broken { verdict, path }) => panic!("{what}: {verdict} after {path:#?}"),
    }
}

/// A number that a variable of the environment asks for.
pub fn asked(variable: &str) -> Option<u64> {
    let asked = std::env::var(variable).ok()?;
    Some(asked.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}
