//! Random reads of a served position, 32 in flight, beside nbdkit's file plugin on the raw image, once everything was read.
//!
//! Two kinds, because there are two caches. Opened frames are kept in memory, 64 MiB of them: reads of 48 MiB meet nothing else.
//! Of a larger disk most reads meet a frame that lies sealed in the read cache, and open it: all of the image was read once before, and
//! fits the read cache as it is by default. fio is the client of both sides, on the same cores; nbdkit's image lies in the page cache.

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::Bench;
use crate::delta::Nbdkit;
use crate::fio::{Load, SECONDS, fio};
use crate::measure::{Spread, empty_dir};
use crate::report::{Report, Table, Target, shown};
use crate::site::{DISK, MACHINE, Site};

/// So much of the disk is read when it is to come from memory.
const HOT_BYTES: u64 = 48 << 20;

/// Least share of nbdkit's reads, in hundredths.
const SHARE: f64 = 50.0;

/// Who serves.
const SIDES: [&str; 2] = ["farshore serve", "nbdkit file, raw image"];

/// One kind of reads.
#[derive(Clone, Copy)]
struct Reads {
    iops: f64,
    /// Microseconds, of half of them and of 99 of 100.
    p50: f64,
    p99: f64,
    /// CPU microseconds of the server for one.
    cpu: f64,
}

/// Of one round: in memory, and all over the disk.
type Round = [Reads; 2];

/// Runs the section.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let source = bench.dir.join("protected");
    std::fs::copy(&bench.inputs.image, &source)?;
    let site = Site::make(bench, "served", &source)?;
    let gateway = site.start_process_server()?;
    let mut agent = site.start(&["agent", MACHINE])?;
    site.wait_stored(&mut agent)?;
    agent.stop()?;
    gateway.stop()?;
    let mut sides: [Vec<Round>; 2] = Default::default();
    for round in 0..bench.runs {
        for turn in 0..2 {
            let at = (round + turn) % 2;
            let reads = if at == 0 { farshore(bench, &site)? } else { nbdkit(bench, &source)? };
            eprintln!("  {}: {:.0} IOPS in memory, {:.0} all over", SIDES[at], reads[0].iops, reads[1].iops);
            sides[at].push(reads);
        }
    }
    for (kind, what) in ["from memory", "from the read cache"].into_iter().enumerate() {
        let [ours, theirs] = [0, 1].map(|side| median(&sides[side], kind, |reads| reads.iops));
        let what = format!("serve: 4 KiB reads, 32 at a time, {what}, of nbdkit's");
        report.claim(what, Target::AtLeast(SHARE), ours / theirs * 100.0, " %");
    }
    report.section("Random reads of a position", &text(bench), &table(bench, &sides));
    std::fs::remove_dir_all(&site.dir)?;
    Ok(std::fs::remove_file(&source)?)
}

fn farshore(bench: &Bench, site: &Site) -> Result<Round> {
    let (socket, cache) = (site.path("served.sock"), site.path("read-cache"));
    empty_dir(&cache)?;
    let _gone_already = std::fs::remove_file(&socket);
    let (listen, cache) = (format!("unix:{}", socket.display()), cache.display().to_string());
    let words = ["serve", MACHINE, "--disk", DISK, "--at", "latest", "--listen", &listen, "--cache", &cache];
    let mut served = site.start(&words)?;
    served.until("the position is served", || Ok(UnixStream::connect(&socket).is_ok()))?;
    let round = reads(bench, &socket, DISK, || served.cpu())?;
    served.stop()?;
    Ok(round)
}

fn nbdkit(bench: &Bench, source: &Path) -> Result<Round> {
    let socket = bench.dir.join("nbdkit.sock");
    let served = Nbdkit::start(source, &socket)?;
    reads(bench, &socket, "", || served.cpu())
}

/// Everything once, then reads at random places; the same of the part that is to come from memory.
fn reads(bench: &Bench, socket: &Path, export: &str, cpu: impl Fn() -> Result<f64>) -> Result<Round> {
    let run = |load| fio(&bench.dir, socket, export, &load);
    let of = |range: Range<u64>| -> Result<Reads> {
        run(Load::Once(range.clone()))?;
        let before = cpu()?;
        let job = run(Load::Reads(range))?;
        let count = job.iops * f64::from(SECONDS);
        ensure!(count > 0.0, "fio read nothing");
        Ok(Reads { iops: job.iops, p50: job.p50, p99: job.p99, cpu: (cpu()? - before) / count * 1e6 })
    };
    let all = of(0..bench.inputs.bytes)?;
    Ok([of(hot(bench))?, all])
}

/// Away from the tables at the beginning of the image.
fn hot(bench: &Bench) -> Range<u64> {
    let from = bench.inputs.bytes / 4;
    from..from + HOT_BYTES.min(bench.inputs.bytes / 4)
}

fn median(rounds: &[Round], kind: usize, figure: fn(&Reads) -> f64) -> f64 {
    Spread::of(rounds.iter().map(|round| figure(&round[kind]))).median
}

fn text(bench: &Bench) -> String {
    format!(
        "`farshore serve --cache` of the newest position of an image of {} MiB, and nbdkit's file plugin on the raw image, each over a \
         Unix socket under fio's nbd engine: reads of 4 KiB at random places, 32 in flight, for {SECONDS} s, after one pass over \
         everything that is read. From memory: {} MiB that fit the frames kept opened. From the read cache: all of the \
         image; most reads open a frame of 64 KiB that lies sealed in the page cache, the more of them the larger the image. nbdkit's image is neither \
         compressed nor sealed. CPU is the server's. Medians of {} rounds.",
        bench.inputs.bytes >> 20,
        (hot(bench).end - hot(bench).start) >> 20,
        bench.runs
    )
}

fn table(bench: &Bench, sides: &[Vec<Round>; 2]) -> Table {
    let mut table = Table::new(&["", "IOPS", "range", "of nbdkit's", "p50 µs", "p99 µs", "CPU µs a read"]);
    let hot = format!("{} MiB", (hot(bench).end - hot(bench).start) >> 20);
    for (kind, part) in [hot.as_str(), "all over"].into_iter().enumerate() {
        let theirs = median(&sides[1], kind, |reads| reads.iops);
        for (side, rounds) in SIDES.iter().zip(sides) {
            let iops = Spread::of(rounds.iter().map(|round| round[kind].iops));
            let cell = |digits: usize, figure| format!("{:.digits$}", median(rounds, kind, figure));
            table.row([
                format!("{side}, {part}"),
                format!("{:.0}", iops.median),
                format!("{:.0} to {:.0}", iops.low, iops.high),
                shown(iops.median / theirs),
                cell(0, |reads| reads.p50),
                cell(0, |reads| reads.p99),
                cell(1, |reads| reads.cpu),
            ]);
        }
    }
    table
}
