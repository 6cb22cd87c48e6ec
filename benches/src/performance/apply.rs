//! What an applier does: a replica disk brought from nothing to the end of a log, and a warm one brought on by much at once.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use benches::table_pages;
use bytes::Bytes;
use nbd::Client;

use crate::Bench;
use crate::back::WRITTEN_FROM;
use crate::limits;
use crate::measure::{Cost, Side, bytes_below, empty_dir, rounds};
use crate::parts;
use crate::report::{Report, Target, sides};
use crate::site::{DISK, MACHINE, Site};

/// Bytes of one write of what comes to a warm replica.
const WRITE_BYTES: usize = 1 << 20;

/// Bytes before each mark: so the log has valid positions all along.
const MARK_BYTES: usize = 16 << 20;

/// A log, and the disk that it ends with.
pub struct Log<'a> {
    /// The disk that is protected.
    pub source: &'a Path,
    /// Payload bytes in it.
    pub sent: u64,
    /// Its last number.
    pub seq: u64,
    /// What is in it, in words.
    pub holds: String,
}

/// Runs both sections. The site is left with the store `applied` and what its applier keeps.
pub fn run(bench: &Bench, site: &Site, log: &Log<'_>, report: &mut Report) -> Result<()> {
    let image = site.path("image");
    std::fs::copy(log.source, &image)?;
    let anew = || -> Result<Cost> {
        empty_dir(&site.path("data-applied"))?;
        link(site, "store", "applied")?;
        site.configure(log.source, "applied", "data-applied")?;
        applied(site, ("applied", "data-applied"), log.seq, &image)
    };
    anew()?;
    let warm = Warm::make(bench, site, log.source)?;
    // The disk's speed is measured in the same rounds: on a shared machine it is another one a minute later.
    let data = limits::sample(bench)?;
    let frames = parts::sealed_frames(&warm.pages)?;
    let mut runners = limits::runners(bench, &data).split_off(limits::DISK);
    runners.push(("warm".to_owned(), Box::new(|| warm.apply(site, log.source))));
    let unpack = limits::timed(Box::new(|| parts::unpack(&frames)));
    runners.push(("the parts: BLAKE3, AES, zstd".to_owned(), unpack));
    runners.push(("from nothing".to_owned(), Box::new(anew)));
    let done = rounds(bench.runs, runners)?;
    let bytes = warm.pages.len() as u64;
    let speed = |side: &Side| bytes as f64 / 1e6 / side.wall().median;
    let [disk, direct, warmed] = [0, 1, 2].map(|side| speed(&done[side]));
    let share = warmed / disk.max(direct) * 100.0;
    report.claim("apply to a warm replica: speed, of the disk's sequential writes", Target::AtLeast(70.0), share, " %");
    let cpu = done[2].cpu().median / (bytes as f64 / 1e9);
    report.claim("apply to a warm replica: CPU", Target::AtMost(1.0), cpu, " s/GB");
    let text = format!(
        "A replica that stands at a position and lies in the page cache; behind that {} MiB of new database pages, written in \
         sequence with a mark behind each {} MiB: from the start of an applier with the default policy until the replica stands at \
         the end of the log, and equals the source. The disk took {disk:.0} MB/s in the same rounds through the page cache and \
         {direct:.0} past it; the faster counts. \"The parts\" are what no applier can do without for the same pages, by themselves in one thread: BLAKE3 of what is read, \
         AES-256-GCM, zstd, BLAKE3 of what came out; for the state digests of a point all is opened once more, as it was and as it is.",
        bytes >> 20,
        MARK_BYTES >> 20
    );
    report.section("A warm replica", &text, &sides(&done[2..4], bytes));
    let text = format!(
        "An applier with the default policy (state digests too) on a log that holds {}: from its start until the replica disk, which \
         is not there before, stands at the end of the log. \"Stored\" is what it added to the store: manifest and maps. Each \
         replica equals the source.",
        log.holds
    );
    report.section("A replica from nothing", &text, &sides(&done[4..], log.sent));
    site.configure(log.source, "applied", "data-applied")
}

/// A replica at a position, and a log that goes on from there.
struct Warm {
    /// What the log holds behind the position.
    pages: Vec<u8>,
    /// The last number of the log.
    seq: u64,
}

impl Warm {
    /// Goes on from what was just applied.
    fn make(bench: &Bench, site: &Site, source: &Path) -> Result<Self> {
        std::fs::rename(site.path("applied"), site.path("longer"))?;
        std::fs::rename(site.path("data-applied"), site.path("data-longer"))?;
        site.configure(source, "longer", "data")?;
        // As much as the limits write to the disk.
        let pages = table_pages(bench.inputs.bytes as usize / 2, 31);
        let gateway = site.start_process_server()?;
        let mut agent = site.start(&["agent", MACHINE])?;
        site.wait_stored(&mut agent)?;
        for (n, part) in pages.chunks(MARK_BYTES).enumerate() {
            bench.runtime.block_on(write_all(site, WRITTEN_FROM + (n * MARK_BYTES) as u64, part))?;
            site.run(&["mark", MACHINE, "--label", &format!("warm-{n}")])?;
        }
        let status = site.wait_stored(&mut agent)?;
        agent.stop()?;
        gateway.stop()?;
        let seq = status["stored"]["seq"].as_u64().context("an agent knows what is stored")?;
        Ok(Self { pages, seq })
    }

    /// An applier on copies, to the end of the log.
    fn apply(&self, site: &Site, source: &Path) -> Result<Cost> {
        link(site, "longer", "warm")?;
        empty_dir(&site.path("data-warm"))?;
        cp(site, &["-a", "--sparse=always", "data-longer/replica", "data-warm"])?;
        let synced = Command::new("sync").arg("-f").arg(&site.dir).status()?;
        ensure!(synced.success(), "cannot sync {}", site.dir.display());
        site.configure(source, "warm", "data-warm")?;
        applied(site, ("warm", "data-warm"), self.seq, source)
    }
}

/// Writes a part of the disk in sequence.
async fn write_all(site: &Site, offset: u64, part: &[u8]) -> Result<()> {
    let client = Client::connect(&site.export(), DISK).await?;
    for (n, bytes) in part.chunks(WRITE_BYTES).enumerate() {
        client.write(offset + (n * WRITE_BYTES) as u64, Bytes::copy_from_slice(bytes), false).await?;
    }
    client.flush().await?;
    Ok(client.disconnect().await?)
}

/// A copy of a store. Objects never change: links to them leave nothing to write back while something is timed.
fn link(site: &Site, from: &str, to: &str) -> Result<()> {
    empty_dir(&site.path(to))?;
    cp(site, &["-al", &format!("{from}/."), to])
}

fn cp(site: &Site, args: &[&str]) -> Result<()> {
    let copied = Command::new("cp").args(args).current_dir(&site.dir).status()?;
    ensure!(copied.success(), "cp {args:?} failed in {}", site.dir.display());
    Ok(())
}

/// An applier of the configured site, from its start until the replica stands at `seq`, where it equals this file.
fn applied(site: &Site, (store, data): (&str, &str), seq: u64, expected: &Path) -> Result<Cost> {
    let before = bytes_below(&site.path(store))?;
    let begun = Instant::now();
    let mut applier = site.start(&["applier"])?;
    applier.until("the replica stands at the end", || {
        let Ok(status) = site.status_in(data, "applier") else { return Ok(false) };
        let replica = &status["machines"][0]["replica"];
        Ok(replica["seq"].as_u64() >= Some(seq) && replica["moving_to"].is_null())
    })?;
    let (wall, cpu, peak) = (begun.elapsed().as_secs_f64(), applier.cpu()?, applier.peak()?);
    applier.stop()?;
    let stored = bytes_below(&site.path(store))? - before;
    let replica = site.path(data).join("replica").join(MACHINE).join(format!("{DISK}.raw"));
    let same = Command::new("cmp").arg(expected).arg(&replica).status()?;
    ensure!(same.success(), "the replica differs from the source");
    Ok(Cost { wall, cpu, peak, stored })
}
