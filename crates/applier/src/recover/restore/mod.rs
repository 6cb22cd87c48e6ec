//! Restore: the disks of a point written out as image files.
//!
//! ```text
//!   pieces of every disk, many at once ─► <image>.partial ─► sync ─► journal: "these pieces are durable"
//!   all pieces durable ─► tables, header, footer; sync ─► read back and compared ─► <image> ─► the journal goes
//! ```
//! - A file with its final name is whole, durable and, unless that was switched off, read back.
//! - The journal says of a piece that it is durable only after it is: whenever the process dies, and whatever error ends
//!   it, the same command goes on with what is not in the journal.
//! - The journal names what is restored. A directory of another restore, or with anything else in it, is refused.
//! - Nothing that an earlier life wrote is trusted: everything is read back from the medium at the end and compared with
//!   the digests of what was written, which the journal keeps.
//!
//! Only ranges that may hold other than zeros are written, so images stay sparse.

mod job;
mod journal;
mod read_back;
mod target;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use disk::ImageFormat;
use model::{DiskName, Extent, Seq};
use serde::Serialize;

use self::job::{Job, Plan};
use self::journal::{Goal, GoalDisk};
use super::progress::tell;
use super::{PointReader, ProgressFn, RecoverError, Stage};

/// Bytes of a disk that are fetched, written, digested and remembered together, and the unit of reading back.
const PIECE_BYTES: u64 = 4 << 20;

/// Bytes in work at once, over all disks.
const BYTES_INFLIGHT_MAX: u64 = 64 << 20;

/// Pieces in work at once.
const PIECES_INFLIGHT: usize = (BYTES_INFLIGHT_MAX / PIECE_BYTES) as usize;

/// How a restore is done.
#[derive(Clone)]
pub struct RestoreOptions {
    /// Format of the images.
    pub format: ImageFormat,
    /// Whether everything is read back from the medium and compared before an image gets its name.
    pub read_back: bool,
    /// Is told of `Restoring`, then of `ReadingBack`.
    pub progress: Option<ProgressFn>,
}

/// What a restore wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreReport {
    /// The position.
    pub seq: Seq,
    /// Time of its last record, RFC 3339.
    pub time: String,
    /// One image for each disk.
    pub disks: Vec<RestoredDisk>,
    /// Data bytes written in all.
    pub bytes_written: u64,
    /// Data bytes that an earlier, unfinished restore had written.
    pub bytes_resumed: u64,
    /// Data bytes read back from the medium and found as written.
    pub bytes_verified: u64,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredDisk {
    /// The disk.
    pub name: DiskName,
    /// Its size in bytes.
    pub size: u64,
    /// Data bytes written.
    pub bytes_written: u64,
    /// Data bytes that an earlier, unfinished restore had written; what is in neither is a hole.
    pub bytes_resumed: u64,
    /// The image file.
    pub path: PathBuf,
}

/// Writes the disks of a point (all, or those named) into directory `to`, which is created if absent. It must be empty, or
/// hold what an unfinished restore of the same left: then that is gone on with. Errors: `Target`, `OtherRestore`,
/// `TargetTooSmall` (nothing was written), `UnknownDisk`, `Altered`, and whatever stops the reading or writing: what was
/// written by then stays, to be gone on with.
pub async fn restore(
    point: &PointReader,
    disks: Option<&[DiskName]>,
    to: &Path,
    options: RestoreOptions,
) -> Result<RestoreReport, RecoverError> {
    let names = match disks {
        Some(names) => names.to_vec(),
        None => point.disks().into_iter().map(|disk| disk.name).collect(),
    };
    let disks = names.iter().map(|name| point.disk(name)).collect::<Result<Vec<_>, _>>()?;
    let mut plans = Vec::with_capacity(disks.len());
    for disk in disks {
        plans.push(Plan::of(disk).await?);
    }
    let journal = target::prepare(to, goal(point, &plans, options.format), &plans).await?;
    let mut jobs = Vec::new();
    for (number, plan) in plans.into_iter().enumerate() {
        jobs.push(Arc::new(Job::open(number, plan, to, options.format, &journal).await?));
    }
    let resumed: Vec<u64> = jobs.iter().map(|job| job.plan.bytes_in(&journal.sums(job.number))).collect();

    write::all(&jobs, &journal, Meter::new(&options.progress, Stage::Restoring, &jobs, resumed.iter().sum())).await?;
    for job in jobs.iter().filter(|job| !job.named) {
        job.finish().await?;
    }
    if options.read_back {
        read_back::all(&jobs, &journal, Meter::new(&options.progress, Stage::ReadingBack, &jobs, 0)).await?;
    }
    for job in jobs.iter().filter(|job| !job.named) {
        job.publish(to).await?;
    }
    journal.remove(to).await?;
    Ok(report(point, &jobs, &resumed, options.read_back))
}

fn goal(point: &PointReader, plans: &[Plan], format: ImageFormat) -> Goal {
    let disks = plans.iter().map(|plan| {
        let info = plan.disk.info();
        GoalDisk { name: info.name.clone(), size: info.size, data: plan.digest }
    });
    Goal {
        machine: point.machine().clone(),
        position: point.at().position,
        digest: point.at().digest,
        format: format.to_string(),
        disks: disks.collect(),
    }
}

fn report(point: &PointReader, jobs: &[Arc<Job>], resumed: &[u64], read_back: bool) -> RestoreReport {
    let disks = jobs.iter().zip(resumed).map(|(job, &bytes_resumed)| RestoredDisk {
        name: job.plan.disk.info().name.clone(),
        size: job.plan.disk.size(),
        bytes_written: job.plan.bytes() - bytes_resumed,
        bytes_resumed,
        path: job.path.clone(),
    });
    let disks: Vec<_> = disks.collect();
    let data = jobs.iter().map(|job| job.plan.bytes()).sum();
    let bytes_resumed = resumed.iter().sum();
    RestoreReport {
        seq: point.at().position.seq,
        time: point.at().time.to_string(),
        disks,
        bytes_written: data - bytes_resumed,
        bytes_resumed,
        bytes_verified: if read_back { data } else { 0 },
    }
}

/// Tells how much of the jobs' data is through one stage.
struct Meter {
    progress: Option<ProgressFn>,
    stage: Stage,
    done: AtomicU64,
    total: u64,
}

impl Meter {
    fn new(progress: &Option<ProgressFn>, stage: Stage, jobs: &[Arc<Job>], done: u64) -> Self {
        let total = jobs.iter().map(|job| job.plan.bytes()).sum();
        tell(progress, stage, done, total);
        Self { progress: progress.clone(), stage, done: AtomicU64::new(done), total }
    }

    fn add(&self, bytes: u64) {
        // Relaxed: a count for display.
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        tell(&self.progress, self.stage, done, self.total);
    }
}

/// The range of a piece of a disk of `size` bytes.
fn piece(number: u64, size: u64) -> Extent {
    let offset = number * PIECE_BYTES;
    Extent::new(offset, PIECE_BYTES.min(size - offset)).expect("a piece begins before the end of its disk")
}
