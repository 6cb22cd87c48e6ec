//! The journal of a restore: what is restored, and which pieces of it are durable, with the digest of each.
//!
//! ```text
//! 0        8         12
//! │ magic  │ version │ block: goal │ block: news │ block: news │ …
//! block: │ length 4 │ postcard body │ BLAKE3 of the sum before it, length and body │
//! ```
//! Every block carries the sums of all before it, so what is read is a prefix of what was written. A block that is not
//! whole ends the journal: a crash may cut the last one short, and what it spoke of is written again. Where the goal
//! itself does not read, nothing is known and all is begun anew.
//!
//! A block is durable before anybody is told. After a failed write or sync the journal takes no more.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{DiskName, MachineName, Position, RecordDigest};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::files::{blocking, directory_of, failed, sync_directory};
use crate::recover::RecoverError;

/// The journal's name in the directory of its images.
pub(super) const STATE: &str = "farshore-restore.state";

const MAGIC: &[u8; 8] = b"FSRESTOR";
const VERSION: u32 = 1;
const START_BYTES: usize = 12;
const SUM_BYTES: usize = 32;

/// No block's body is longer.
const BODY_BYTES_MAX: u32 = 1 << 20;

/// Pieces in one block: far below its bound.
const PIECES_MAX: usize = 8192;

/// BLAKE3 of the bytes of a piece.
pub(super) type Sum = [u8; 32];

/// The durable pieces of a disk.
pub(super) type Sums = BTreeMap<u64, Sum>;

/// What is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Goal {
    pub machine: MachineName,
    pub position: Position,
    /// Digest over record headers up to it.
    pub digest: RecordDigest,
    /// Format of the images, by its extension.
    pub format: String,
    pub disks: Vec<GoalDisk>,
}

/// One disk of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GoalDisk {
    pub name: DiskName,
    /// In bytes.
    pub size: u64,
    /// Digest of the ranges that hold data.
    pub data: [u8; 32],
}

impl Goal {
    /// In words.
    pub fn describe(&self) -> String {
        let names: Vec<_> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
        let Position { incarnation, seq } = self.position;
        format!("{} at seq:{seq} of {incarnation} as {}, disks {}", self.machine, self.format, names.join(", "))
    }
}

impl Goal {
    /// Whether the other means the same images, wherever their data lies.
    pub fn is_of_the_same(&self, other: &Goal) -> bool {
        let disks = |goal: &Goal| goal.disks.iter().map(|disk| (disk.name.clone(), disk.size)).collect::<Vec<_>>();
        (&self.machine, self.position, self.digest, &self.format)
            == (&other.machine, other.position, other.digest, &other.format)
            && disks(self) == disks(other)
    }
}

/// A piece was written and, once this is in the journal, is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    /// Number of the disk in the goal.
    pub disk: usize,
    pub piece: u64,
    pub sum: Sum,
}

/// What a block after the first says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum News {
    /// These pieces are durable.
    Durable(Vec<Written>),
    /// The image of this disk is begun anew.
    Forgotten(usize),
}

/// The journal, held alone and open for more.
pub(super) struct Journal {
    goal: Goal,
    path: PathBuf,
    tail: Arc<Mutex<Tail>>,
}

/// Where the next block goes, and what all before it say.
struct Tail {
    file: File,
    len: u64,
    sum: blake3::Hash,
    durable: Vec<Sums>,
    failed: bool,
}

/// What a file was found to hold.
struct Found {
    goal: Goal,
    durable: Vec<Sums>,
    /// Bytes of it that are whole.
    len: u64,
    sum: blake3::Hash,
}

/// A journal's file, held alone and read, before it is decided what becomes of it.
pub(super) struct Opened {
    file: File,
    path: PathBuf,
    bytes: u64,
    found: Option<Found>,
}

impl Opened {
    /// Opens the file at `path`, or makes an empty one. Errors: `Target` (another process has it).
    pub async fn at(path: PathBuf) -> Result<Self, RecoverError> {
        let at = path.clone();
        let opened = blocking(move || open(at)).await;
        opened.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => {
                let why = "is being written by another restore: wait for it, or give another directory";
                RecoverError::Target { path: path.parent().unwrap_or(&path).to_owned(), why }
            }
            _ => failed("open", &path)(error),
        })
    }

    /// What it says is restored; `None` when it is new or damaged.
    pub fn goal(&self) -> Option<&Goal> {
        self.found.as_ref().map(|found| &found.goal)
    }

    /// Goes on with it where it has this very goal, or begins it anew, and says so.
    pub async fn into_journal(self, goal: Goal) -> Result<Journal, RecoverError> {
        let (path, wanted) = (self.path.clone(), goal.clone());
        let tail = blocking(move || self.into_tail(&wanted)).await.map_err(failed("begin", &path))?;
        Ok(Journal { goal, path, tail: Arc::new(Mutex::new(tail)) })
    }

    fn into_tail(self, goal: &Goal) -> io::Result<Tail> {
        let Opened { file, path, bytes, found } = self;
        let journal = path.display();
        match found {
            Some(Found { goal: found, durable, len, sum }) if found == *goal => {
                if len < bytes {
                    let lost = bytes - len;
                    tracing::warn!(%journal, bytes = lost, "its end is not whole: what that spoke of is written again");
                }
                return Ok(Tail { file, len, sum, durable, failed: false });
            }
            Some(_) => tracing::warn!(%journal, "it is of images laid out otherwise: all images are begun anew"),
            None if bytes > 0 => tracing::warn!(%journal, "it is damaged and says nothing: all images are begun anew"),
            None => {}
        }
        Tail::begin(file, &path, goal)
    }
}

fn open(path: PathBuf) -> io::Result<Opened> {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    let bytes = file.metadata()?.len();
    let found = read(&mut io::BufReader::new(&file))?;
    Ok(Opened { file, path, bytes, found })
}

impl Journal {
    /// What is restored.
    pub fn goal(&self) -> &Goal {
        &self.goal
    }

    /// The durable pieces of a disk.
    pub fn sums(&self, disk: usize) -> Sums {
        lock(&self.tail).durable[disk].clone()
    }

    /// These pieces were written and synced.
    pub async fn durable(&self, mut written: Vec<Written>) -> Result<(), RecoverError> {
        while !written.is_empty() {
            let rest = written.split_off(written.len().min(PIECES_MAX));
            self.append(News::Durable(written)).await?;
            written = rest;
        }
        Ok(())
    }

    /// The image of a disk is begun anew: nothing of it is durable.
    pub async fn forget(&self, disk: usize) -> Result<(), RecoverError> {
        if self.sums(disk).is_empty() {
            return Ok(());
        }
        self.append(News::Forgotten(disk)).await
    }

    async fn append(&self, news: News) -> Result<(), RecoverError> {
        let tail = self.tail.clone();
        blocking(move || lock(&tail).append(news)).await.map_err(failed("write", &self.path))
    }

    /// All images have their names: takes the journal away, durably.
    pub async fn remove(&self, to: &Path) -> Result<(), RecoverError> {
        let (path, directory) = (self.path.clone(), to.to_owned());
        let removed = blocking(move || std::fs::remove_file(path)).await;
        removed.map_err(failed("remove", &self.path))?;
        probe::failpoint!("restore-state-removed");
        blocking(move || sync_directory(&directory)).await.map_err(failed("sync", to))
    }
}

fn lock(tail: &Mutex<Tail>) -> MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tail {
    /// An empty journal of this goal, durable.
    fn begin(file: File, path: &Path, goal: &Goal) -> io::Result<Self> {
        let start = start();
        let (block, sum) = block(&blake3::hash(&start), &encode(goal)?);
        file.set_len(0)?;
        file.write_all_at(&[&start[..], &block].concat(), 0)?;
        file.sync_all()?;
        sync_directory(directory_of(path))?;
        probe::failpoint_now!("restore-state-created");
        let len = (START_BYTES + block.len()) as u64;
        Ok(Self { file, len, sum, durable: vec![Sums::new(); goal.disks.len()], failed: false })
    }

    fn append(&mut self, news: News) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write to it failed"));
        }
        let (block, sum) = block(&self.sum, &encode(&news)?);
        self.failed = true;
        self.file.write_all_at(&block, self.len)?;
        self.file.sync_data()?;
        self.failed = false;
        (self.len, self.sum) = (self.len + block.len() as u64, sum);
        tell(&mut self.durable, news);
        Ok(())
    }
}

/// Reads a journal as far as it is whole; `None` when not even the goal is.
fn read(source: &mut impl Read) -> io::Result<Option<Found>> {
    let mut first = [0; START_BYTES];
    if !fill(source, &mut first)? || first != start() {
        return Ok(None);
    }
    let Some((body, mut sum)) = read_block(source, &blake3::hash(&first))? else { return Ok(None) };
    let Some(goal) = decode::<Goal>(&body) else { return Ok(None) };
    let mut len = START_BYTES + block_bytes(&body);
    let mut durable = vec![Sums::new(); goal.disks.len()];
    while let Some((body, next)) = read_block(source, &sum)? {
        let Some(news) = decode::<News>(&body).filter(|news| speaks_of(news, goal.disks.len())) else { break };
        tell(&mut durable, news);
        (len, sum) = (len + block_bytes(&body), next);
    }
    Ok(Some(Found { goal, durable, len: len as u64, sum }))
}

/// Whether the news are of disks that there are.
fn speaks_of(news: &News, disks: usize) -> bool {
    match news {
        News::Durable(written) => written.iter().all(|piece| piece.disk < disks),
        News::Forgotten(disk) => *disk < disks,
    }
}

fn tell(durable: &mut [Sums], news: News) {
    match news {
        News::Durable(written) => written.into_iter().for_each(|w| {
            durable[w.disk].insert(w.piece, w.sum);
        }),
        News::Forgotten(disk) => durable[disk].clear(),
    }
}

fn start() -> [u8; START_BYTES] {
    let mut start = [0; START_BYTES];
    start[..8].copy_from_slice(MAGIC);
    start[8..].copy_from_slice(&VERSION.to_le_bytes());
    start
}

/// A block behind one with that sum, and its own sum.
fn block(before: &blake3::Hash, body: &[u8]) -> (Vec<u8>, blake3::Hash) {
    let len = u32::try_from(body.len()).expect("bounded by `encode`").to_le_bytes();
    let mut hasher = blake3::Hasher::new();
    let sum = hasher.update(before.as_bytes()).update(&len).update(body).finalize();
    ([&len, body, sum.as_bytes()].concat(), sum)
}

fn block_bytes(body: &[u8]) -> usize {
    4 + body.len() + SUM_BYTES
}

/// The next block's body and sum, if it is whole.
fn read_block(source: &mut impl Read, before: &blake3::Hash) -> io::Result<Option<(Vec<u8>, blake3::Hash)>> {
    let mut len = [0; 4];
    if !fill(source, &mut len)? || u32::from_le_bytes(len) > BODY_BYTES_MAX {
        return Ok(None);
    }
    let (mut body, mut sum) = (vec![0; u32::from_le_bytes(len) as usize], [0; SUM_BYTES]);
    if !fill(source, &mut body)? || !fill(source, &mut sum)? {
        return Ok(None);
    }
    let (_, wanted) = block(before, &body);
    Ok((wanted == sum).then_some((body, wanted)))
}

/// Fills the buffer; false when the source ends before.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match source.read_exact(buffer) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| true),
    }
}

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    match body.len() <= BODY_BYTES_MAX as usize {
        true => Ok(body),
        false => Err(io::Error::other(format!("{} bytes are too many for one block of the journal", body.len()))),
    }
}

fn decode<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Option<T> {
    postcard::take_from_bytes(body).ok().filter(|(_, rest)| rest.is_empty()).map(|(value, _)| value)
}

#[cfg(test)]
mod tests;
