//! The way back: a replica disk brought from nothing to the end of the log, and the first bytes of a served position.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nbd::{Client, ListenAddress};
use serde_json::Value;

use crate::Bench;
use crate::delta::write_pages;
use crate::inputs::PAGE;
use crate::limits;
use crate::measure::{Cost, Spread, bytes_below, empty_dir, rounds};
use crate::report::{Report, Table, Target, shown, sides};
use crate::site::{DISK, MACHINE, Site};

/// Writes of 4 KiB before each mark.
const WRITES: u64 = 2048;

/// Marks, each after some writes.
const MARKS: u64 = 3;

/// Where random writes begin: what lies before is read back and compared.
const WRITTEN_FROM: u64 = 1 << 20;

/// Runs both sections.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let source = bench.dir.join("protected");
    std::fs::copy(&bench.inputs.image, &source)?;
    let site = Site::make(bench, "back", &source)?;
    let (sent, seq) = history(bench, &site)?;
    apply(bench, &site, (&source, sent, seq), report)?;
    serve(bench, &site, &source, report)?;
    std::fs::remove_dir_all(&site.dir)?;
    Ok(std::fs::remove_file(&source)?)
}

/// Fills the store: the image, then marks with writes between them. Payload bytes sent, and the last number.
fn history(bench: &Bench, site: &Site) -> Result<(u64, u64)> {
    let gateway = site.start_process_server()?;
    let mut agent = site.start(&["agent", MACHINE])?;
    site.wait_stored(&mut agent)?;
    for mark in 0..MARKS {
        bench.runtime.block_on(write_pages(&site.export(), DISK, WRITES, 20 + mark, WRITTEN_FROM))?;
        site.run(&["mark", MACHINE, "--label", &format!("mark-{mark}")])?;
    }
    let status = site.wait_stored(&mut agent)?;
    agent.stop()?;
    gateway.stop()?;
    let sent = status["counters"]["sent_bytes"].as_u64().context("an agent counts what it sent")?;
    Ok((sent, status["stored"]["seq"].as_u64().context("an agent knows what is stored")?))
}

/// A new applier on a copy of the store, each round, until its replica stands at the end.
fn apply(bench: &Bench, site: &Site, (source, sent, seq): (&Path, u64, u64), report: &mut Report) -> Result<()> {
    let run = || -> Result<Cost> {
        for name in ["applied", "data-applied"] {
            empty_dir(&site.path(name))?;
        }
        // Objects never change: links to them are a copy, and leave nothing to write back while the applier is timed.
        let copy = Command::new("cp").args(["-al", "store/.", "applied"]).current_dir(&site.dir).status()?;
        ensure!(copy.success(), "cannot copy the store");
        site.configure(source, "applied", "data-applied")?;
        let before = bytes_below(&site.path("applied"))?;
        let begun = Instant::now();
        let mut applier = site.start(&["applier"])?;
        applier.until("the replica stands at the end", || {
            let Ok(status) = site.status_in("data-applied", "applier") else { return Ok(false) };
            let replica = &status["machines"][0]["replica"];
            Ok(replica["seq"].as_u64() >= Some(seq) && replica["moving_to"].is_null())
        })?;
        let (wall, cpu, peak) = (begun.elapsed().as_secs_f64(), applier.cpu()?, applier.peak()?);
        applier.stop()?;
        let stored = bytes_below(&site.path("applied"))? - before;
        let replica = site.path("data-applied/replica").join(MACHINE).join(format!("{DISK}.raw"));
        let same = Command::new("cmp").arg(source).arg(&replica).status()?;
        ensure!(same.success(), "the replica differs from the source");
        Ok(Cost { wall, cpu, peak, stored })
    };
    // The disk's speed is measured in the same rounds: on a shared machine it is another one a minute later.
    let data = limits::sample(bench)?;
    let mut runners = limits::runners(bench, &data).split_off(limits::DISK);
    runners.insert(0, ("applier".to_owned(), Box::new(run)));
    let done = rounds(bench.runs, runners)?;
    let disk = bench.inputs.bytes as f64 / 2e6 / done[1].wall().median;
    let speed = sent as f64 / 1e6 / done[0].wall().median;
    let share = speed / disk * 100.0;
    report.claim("apply to a warm replica: speed, of the disk's sequential writes", Target::AtLeast(70.0), share, " %");
    let cpu = done[0].cpu().median / (sent as f64 / 1e9);
    report.claim("apply to a warm replica: CPU", Target::AtMost(1.0), cpu, " s/GB");
    let text = format!(
        "An applier with the default policy (state digests too) on a log that holds the image and {} writes of 4 KiB: from its \
         start until the replica disk stands at the end of the log. \"Stored\" is what it added to the store: manifest and maps. The \
         disk took {disk:.0} MB/s in the same rounds. Each replica equals the source.",
        WRITES * MARKS
    );
    report.section("A replica from nothing", &text, &sides(&done[..1], sent));
    Ok(())
}

/// Time from the start of `farshore serve` until a client has its first 4 KiB, for several positions.
fn serve(bench: &Bench, site: &Site, source: &Path, report: &mut Report) -> Result<()> {
    let mut first = [0; PAGE];
    File::open(source)?.read_exact_at(&mut first, 0)?;
    let positions = positions(site)?;
    let mut times = vec![Vec::new(); positions.len()];
    for _ in 0..bench.runs {
        for ((_, at), times) in positions.iter().zip(&mut times) {
            times.push(bench.runtime.block_on(first_read(site, at, &first))? * 1e3);
        }
    }
    let mut table = Table::new(&["position", "ms", "range"]);
    let mut worst: f64 = 0.0;
    for ((name, _), times) in positions.iter().zip(times) {
        let spread = Spread::of(times);
        worst = worst.max(spread.median);
        table.row([name.clone(), shown(spread.median), format!("{} to {}", shown(spread.low), shown(spread.high))]);
    }
    report.claim("serve: first 4 KiB of the slowest position", Target::AtMost(100.0), worst, " ms");
    let text = "From the start of the process `farshore serve` until an NBD client has the first 4 KiB: the key is read, the \
                history loaded, the position opened. The store lies in the page cache; nothing else is cached.";
    report.section("A position served", text, &table);
    Ok(())
}

/// Positions to serve: name and selector.
fn positions(site: &Site) -> Result<Vec<(String, String)>> {
    let answer: Value = serde_json::from_str(&site.run(&["--json", "points", MACHINE])?)?;
    let points = answer["points"].as_array().filter(|points| !points.is_empty()).context("there are points")?;
    let id = |point: &Value| point["id"].as_str().map(|id| format!("id:{id}")).context("a point has an id");
    let range = answer["ranges"].as_array().and_then(|ranges| ranges.last()).context("there are valid ranges")?;
    let seq = |name: &str| range[name].as_u64().context("a range has numbers");
    let between = (seq("from_seq")? + seq("to_seq")?) / 2;
    Ok(vec![
        ("the oldest point".to_owned(), id(&points[0])?),
        ("the newest point".to_owned(), id(&points[points.len() - 1])?),
        ("a position between two points".to_owned(), format!("seq:{between}")),
        ("the end of the log".to_owned(), "latest".to_owned()),
    ])
}

/// Seconds.
async fn first_read(site: &Site, at: &str, expected: &[u8]) -> Result<f64> {
    let socket = site.path("served.sock");
    let _gone_already = std::fs::remove_file(&socket);
    let listen = format!("unix:{}", socket.display());
    let begun = Instant::now();
    let mut served = site.start(&["serve", MACHINE, "--disk", DISK, "--at", at, "--listen", &listen])?;
    served.until("the position is served", || Ok(UnixStream::connect(&socket).is_ok()))?;
    let client = Client::connect(&ListenAddress::Unix(socket), DISK).await?;
    let read = client.read(0, PAGE as u32).await?;
    let took = begun.elapsed().as_secs_f64();
    ensure!(read == expected, "the first block is not the source's");
    client.disconnect().await?;
    Ok(took)
}
