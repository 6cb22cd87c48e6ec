//! The state file of a verify: what it has read whole and found whole, so that the next life need not.
//!
//! ```text
//! 0        8         12        16               16 + len      + 32
//! │ magic  │ version │ 0       │ postcard body  │ BLAKE3 of all before │
//! ```
//! It is replaced whole: written under another name (`farshore-verify-….new`), synced, renamed, and the directory synced. A
//! crash leaves the old state or the new one, and either tells the truth.
//!
//! What an object is, its header's hash says. The next life reads every header and table again, the chain included, so an
//! object that was replaced meanwhile has another hash and is read whole again: the file saves reading, and nothing is
//! believed for it. It also remembers the end of the log as far as it was read: a log that ends before it has lost its tail.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use format::object::ObjectHash;
use model::{MachineName, RecordDigest, Seq};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::share::{Draw, Share};
use crate::files::{blocking, directory_of, failed, sync_directory};
use crate::recover::RecoverError;

const MAGIC: &[u8; 8] = b"FSVERIFY";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 16;
const SUM_BYTES: usize = 32;

/// No state file is larger: some 30 million objects.
const STATE_BYTES_MAX: u64 = 1 << 30;

/// Half of a hash: enough to tell things apart that nobody without the key can choose.
type Half = [u8; 16];

/// A file that remembers what was read.
#[derive(Debug, Clone)]
pub struct StateFile {
    /// Where.
    pub path: PathBuf,
    /// How often it is written; 10 s is a good choice.
    pub every: Duration,
}

/// What verify it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Goal {
    pub vault: [u8; 16],
    pub machine: MachineName,
    /// None to read everything.
    pub draw: Option<Draw>,
}

impl Goal {
    /// In words.
    fn describe(&self) -> String {
        match self.draw {
            None => format!("machine {}, everything", self.machine),
            Some(Draw { share, seed }) => format!("machine {}, --sample {share} --seed {seed}", self.machine),
        }
    }
}

/// What was read whole and found whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// By half the hash of the path, half the hash of the header.
    objects: BTreeMap<Half, Half>,
    /// The end of the log as far as it was read.
    pub head: Option<(Seq, RecordDigest)>,
}

impl Seen {
    /// Whether something was seen there.
    pub fn holds(&self, path: &str) -> bool {
        self.objects.contains_key(&half(blake3::hash(path.as_bytes()).as_bytes()))
    }

    /// Whether this very object was.
    pub fn holds_this(&self, path: &str, hash: &ObjectHash) -> bool {
        self.objects.get(&half(blake3::hash(path.as_bytes()).as_bytes())) == Some(&half(&hash.0))
    }
}

fn half(hash: &[u8; 32]) -> Half {
    hash[..16].try_into().expect("half of 32 bytes")
}

#[derive(Deserialize)]
pub(super) struct Body {
    goal: Goal,
    seen: Seen,
}

#[cfg(test)]
impl Body {
    pub fn head(&self) -> Option<(Seq, RecordDigest)> {
        self.seen.head
    }
}

/// What was seen, and the file that remembers it, if there is one.
pub(super) struct State {
    pub goal: Goal,
    pub seen: Seen,
    file: Option<StateFile>,
    saved: Instant,
    changed: bool,
}

impl State {
    /// Goes on with what the file says, or begins it. `seed` is that of the caller, if there is one. Errors: `VerifyState`
    /// (the file is damaged, or of another verify), `File`.
    pub async fn open(
        file: Option<StateFile>,
        vault: [u8; 16],
        machine: &MachineName,
        sample: Option<Share>,
        seed: Option<u32>,
    ) -> Result<Self, RecoverError> {
        let draw = |seed| sample.map(|share| Draw { share, seed });
        let found = match &file {
            Some(file) => load(file.path.clone()).await?,
            None => None,
        };
        let known_seed = found.as_ref().and_then(|body| body.goal.draw).map(|draw| draw.seed);
        let seed = seed.or(known_seed).unwrap_or_else(some_seed);
        let goal = Goal { vault, machine: machine.clone(), draw: draw(seed) };
        let seen = match found {
            Some(body) if body.goal == goal => body.seen,
            Some(body) => {
                let other = if body.goal.vault == vault { "" } else { " in another vault" };
                let path = file.map(|file| file.path).unwrap_or_default();
                let why = format!(
                    "is of an unfinished verify of {}{other}, and asked for is {}: finish that one first, or give another \
                     file",
                    body.goal.describe(),
                    goal.describe()
                );
                return Err(RecoverError::VerifyState { path, why });
            }
            None => Seen::default(),
        };
        let mut state = Self { goal, seen, file, saved: Instant::now(), changed: true };
        // A file that cannot be written is told of before the work, not after.
        state.save().await?;
        Ok(state)
    }

    /// The object was read whole and found whole.
    pub fn found_whole(&mut self, path: &str, hash: ObjectHash) {
        if self.file.is_some() {
            self.seen.objects.insert(half(blake3::hash(path.as_bytes()).as_bytes()), half(&hash.0));
            self.changed = true;
        }
    }

    /// Another object lies where one was seen: whether it must be read after all.
    pub fn was_replaced(&mut self, path: &str, hash: &ObjectHash) -> bool {
        self.seen.holds(path) && !self.seen.holds_this(path, hash)
    }

    /// The log was read up to here.
    pub fn passed(&mut self, seq: Seq, digest: RecordDigest) {
        if self.seen.head.is_none_or(|(head, _)| head < seq) {
            (self.seen.head, self.changed) = (Some((seq, digest)), true);
        }
    }

    /// Writes the file if that is due.
    pub async fn save_if_due(&mut self) -> Result<(), RecoverError> {
        match &self.file {
            Some(file) if self.changed && self.saved.elapsed() >= file.every => self.save().await,
            _ => Ok(()),
        }
    }

    /// Writes the file.
    pub async fn save(&mut self) -> Result<(), RecoverError> {
        let Some(StateFile { path, .. }) = &self.file else { return Ok(()) };
        let bytes = encode(&self.goal, &self.seen);
        let at = path.clone();
        blocking(move || replace(&at, &bytes)).await.map_err(failed("write", path))?;
        (self.saved, self.changed) = (Instant::now(), false);
        Ok(())
    }

    /// All is read: takes the file away.
    pub async fn remove(&self) -> Result<(), RecoverError> {
        let Some(StateFile { path, .. }) = &self.file else { return Ok(()) };
        let at = path.clone();
        blocking(move || std::fs::remove_file(&at).and_then(|()| sync_directory(directory_of(&at))))
            .await
            .map_err(failed("remove", path))
    }
}

/// From the system's random source, by way of an object's id.
fn some_seed() -> u32 {
    let [a, b, c, d, ..] = format::object::ObjectId::random().0;
    u32::from_le_bytes([a, b, c, d])
}

/// What a file says; none when there is none, or an empty one.
async fn load(path: PathBuf) -> Result<Option<Body>, RecoverError> {
    let at = path.clone();
    let read = blocking(move || {
        let mut bytes = Vec::new();
        let file = match File::open(&at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(bytes),
            other => other?,
        };
        file.take(STATE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let bytes = read.await.map_err(failed("read", &path))?;
    match decode(&bytes) {
        _ if bytes.is_empty() => Ok(None),
        Some(body) => Ok(Some(body)),
        None => {
            let why = "is damaged or no state of a verify: remove it to begin anew, or give another file".to_owned();
            Err(RecoverError::VerifyState { path, why })
        }
    }
}

/// The bytes of a [`Body`].
fn encode(goal: &Goal, seen: &Seen) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 4]].concat();
    bytes = postcard::to_extend(&(goal, seen), bytes).expect("plain values always encode");
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Option<Body> {
    let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
    let (prefix, body) = content.split_at_checked(PREFIX_BYTES)?;
    let whole = blake3::hash(content).as_bytes() == sum
        && prefix[..8] == *MAGIC
        && prefix[8..12] == VERSION.to_le_bytes()
        && prefix[12..] == [0; 4];
    if !whole {
        return None;
    }
    postcard::take_from_bytes(body).ok().filter(|(_, rest)| rest.is_empty()).map(|(body, _)| body)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A name of its own, so that two that write the same file do not write into one another's.
    let mut fresh =
        tempfile::Builder::new().prefix("farshore-verify-").suffix(".new").tempfile_in(directory_of(path))?;
    fresh.write_all(bytes)?;
    fresh.as_file().sync_all()?;
    fresh.persist(path)?;
    sync_directory(directory_of(path))
}
