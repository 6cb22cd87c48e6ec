//! Opens recovery points the way an operator does and hands what they hold to the oracles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use applier::ApplierRules;
use applier::recover::{self, ErrorKind, LoadOptions, PointReader, RecoverError, Resolved};
use format::keys::Keys;
use model::{Extent, MachineName, RecordDigest, Selector, Seq, Timestamp};
use store::{SplitMix64, Store};

use crate::machine::Machine;
use crate::servers::JOURNAL_WINDOW;
use crate::stamp::judge_alone;

/// How long an epoch that nobody opened is waited for.
const SETTLE: Duration = Duration::from_secs(2);

/// What an oracle found to be wrong: a promise was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which oracle.
    pub oracle: &'static str,
    /// What it saw.
    pub what: String,
}

impl Violation {
    /// By this oracle, of this.
    pub fn new(oracle: &'static str, what: impl Into<String>) -> Self {
        Self { oracle, what: what.into() }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.oracle, self.what)
    }
}

/// One opened position.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Which.
    pub at: Resolved,
    /// Its disks by number.
    pub images: Vec<Vec<u8>>,
}

/// Everything somebody wants to know of a machine's stream.
pub struct Questions {
    /// Which store to ask.
    pub store: Store,
    /// The vault's keys.
    pub keys: Arc<Keys>,
    /// Rules in force.
    pub rules: ApplierRules,
    /// Which machine.
    pub machine: MachineName,
    /// Positions opened at random, beside the last.
    pub random: usize,
    /// Where chance comes from.
    pub rng: SplitMix64,
    /// Positions that must still be points, with their digests.
    pub kept: BTreeMap<Seq, RecordDigest>,
    /// Positions to open whatever chance says.
    pub wanted: Vec<Seq>,
}

/// The answers.
#[derive(Debug, Default)]
pub struct Answers {
    /// Opened positions, by position.
    pub opened: Vec<Opened>,
    /// The last position before which only points open, and its time.
    pub horizon: (Seq, Timestamp),
    /// Position and digest of the log's end.
    pub head: Option<(Seq, RecordDigest)>,
    /// Recovery points there are.
    pub points: usize,
    /// The log ends inside a drain.
    pub draining: bool,
    /// Positions of `kept` that are gone or name other records now.
    pub lost: Vec<Seq>,
}

/// Reads the stream and opens positions. Errors: as recovery has them.
pub async fn ask(mut questions: Questions) -> Result<Answers, RecoverError> {
    loop {
        let history = load(&mut questions).await?;
        match answer(&history, &mut questions).await {
            // Collected while we looked: what is retained opens through newer maps.
            Err(error) if error.is_missing() && history.is_stale().await? => {}
            answers => return answers,
        }
    }
}

async fn load(questions: &mut Questions) -> Result<recover::History, RecoverError> {
    // An owner that died before it opened its epoch leaves the end undecided; nobody opens one on a judge's behalf here.
    // The log alone must say the same as the maps of it.
    let without_maps = questions.rng.below(4) == 0;
    let options = LoadOptions { settle: SETTLE, without_maps, ..LoadOptions::default() };
    let (store, keys) = (&questions.store, questions.keys.clone());
    let loaded = recover::History::load_with_rules(store, keys, &questions.machine, options, questions.rules).await;
    match loaded {
        Err(RecoverError::LogCollected { .. }) => {
            let (keys, options) = (questions.keys.clone(), LoadOptions { settle: SETTLE, ..LoadOptions::default() });
            recover::History::load_with_rules(store, keys, &questions.machine, options, questions.rules).await
        }
        loaded => loaded,
    }
}

async fn answer(history: &recover::History, questions: &mut Questions) -> Result<Answers, RecoverError> {
    let head = history.head();
    let mut answers = Answers {
        horizon: history.horizon(),
        head: Some((head.position.seq, head.digest)),
        points: history.points().await?.points.len(),
        draining: history.draining(),
        ..Answers::default()
    };
    for (seq, digest) in &questions.kept {
        let still = match history.resolve(&Selector::Seq(*seq), None).await {
            Ok(now) => now.digest == *digest,
            // The policy keeps it no longer; whether it may is judged by the horizon.
            Err(RecoverError::BeforeHorizon { .. }) => true,
            Err(_) => false,
        };
        if !still {
            answers.lost.push(*seq);
        }
    }
    for at in choose(history, questions).await? {
        let point = history.open(&at).await?;
        let images = images(&point).await?;
        answers.opened.push(Opened { at, images });
    }
    Ok(answers)
}

/// The last position, those wanted, some recovery points, and some positions at random.
async fn choose(history: &recover::History, questions: &mut Questions) -> Result<Vec<Resolved>, RecoverError> {
    let view = history.points().await?;
    let mut wanted = vec![Selector::Latest];
    wanted.extend(questions.wanted.iter().map(|seq| Selector::Seq(*seq)));
    for _ in 0..questions.random {
        if questions.rng.below(4) == 0 && !view.points.is_empty() {
            wanted.push(Selector::Seq(crate::rng::pick(&mut questions.rng, &view.points).seq));
        } else if !view.ranges.is_empty() {
            let range = crate::rng::pick(&mut questions.rng, &view.ranges);
            let (from, to) = (range.from_seq.0, range.to_seq.0);
            wanted.push(Selector::Seq(Seq(from + questions.rng.below(to - from + 1))));
        }
    }
    let mut chosen: BTreeMap<Seq, Resolved> = BTreeMap::new();
    for selector in wanted {
        match history.resolve(&selector, None).await {
            Ok(at) => _ = chosen.insert(at.position.seq, at),
            Err(error) if error.kind() == ErrorKind::Damage => return Err(error),
            Err(_) => {}
        }
    }
    Ok(chosen.into_values().collect())
}

/// The disks of an opened point, whole.
async fn images(point: &PointReader) -> Result<Vec<Vec<u8>>, RecoverError> {
    let mut images = Vec::new();
    for info in point.disks() {
        let disk = point.disk(&info.name)?;
        let whole = Extent::new(0, info.size).expect("a disk has whole sectors");
        images.push(disk.read(whole).await?.to_vec());
    }
    Ok(images)
}

/// Whether an error of recovery means that the store lies, and not that it cannot be reached.
pub fn is_damage(error: &RecoverError) -> bool {
    error.kind() == ErrorKind::Damage
}

/// Judges where the horizon stands at a time.
pub fn judge_horizon(machine: &Machine, answers: &Answers, now: Timestamp) -> Result<(), Violation> {
    let (seq, time) = answers.horizon;
    match seq == Seq::ZERO || time.plus(JOURNAL_WINDOW) <= now {
        true => Ok(()),
        false => {
            let text =
                format!("machine {}: only points open up to position {seq} of {time}, and it is {now}", machine.name);
            Err(Violation::new("the journal window is kept", text))
        }
    }
}

/// Judges everything that was opened. Returns how many positions were.
pub fn judge(machine: &Machine, answers: &Answers) -> Result<usize, Violation> {
    if let Some(seq) = answers.lost.first() {
        let text = format!("machine {} offered position {seq}, which is gone or holds other records now", machine.name);
        return Err(Violation::new("old points are kept", text));
    }
    let history = crate::machine::lock(&machine.history);
    for opened in &answers.opened {
        let position = opened.at.position;
        let Some(era) = history.era_of(position) else {
            let text = format!("machine {} position {position} is of an incarnation that nobody was", machine.name);
            return Err(Violation::new("prefix", text));
        };
        for (disk, image) in opened.images.iter().enumerate() {
            let number = |n: usize| u32::try_from(n).expect("small");
            judge_alone(number(machine.index), number(disk), image)
                .map_err(|why| Violation::new("stamps", format!("position {position}: {why}")))?;
        }
        history
            .judge(era, &opened.images)
            .map_err(|why| Violation::new("prefix", format!("position {position}: {why}")))?;
    }
    Ok(answers.opened.len())
}

/// Judges a point of several machines: whatever one shows another had seen must be there.
pub fn judge_group(members: &[(&Machine, &Opened)]) -> Result<(), Violation> {
    let mut judged = Vec::new();
    for (machine, opened) in members {
        let history = crate::machine::lock(&machine.history);
        let Some(era) = history.era_of(opened.at.position) else { return Ok(()) };
        let taken = history.judge(era, &opened.images).map_err(|why| Violation::new("prefix", why))?;
        judged.push(taken);
    }
    for (observer, taken) in members.iter().zip(&judged) {
        for (observed, other) in members.iter().zip(&judged) {
            if observer.0.index == observed.0.index {
                continue;
            }
            let seen = crate::machine::lock(&observer.0.history).has_seen(taken, observed.0.index);
            crate::machine::lock(&observed.0.history)
                .includes(other, seen)
                .map_err(|why| Violation::new("causal closure", why))?;
        }
    }
    Ok(())
}
