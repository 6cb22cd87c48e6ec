//! The way back: replica disks ([`crate::apply`]), and the first bytes of a served position.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nbd::{Client, ListenAddress};
use serde_json::Value;

use crate::Bench;
use crate::apply::{self, Log};
use crate::delta::write_pages;
use crate::inputs::PAGE;
use crate::measure::Spread;
use crate::report::{Report, Table, Target, shown};
use crate::site::{DISK, MACHINE, Site};

/// Writes of 4 KiB before each mark.
const WRITES: u64 = 2048;

/// Marks, each after some writes.
const MARKS: u64 = 3;

/// Where writes begin: what lies before is read back and compared.
pub const WRITTEN_FROM: u64 = 1 << 20;

/// Runs the sections.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let source = bench.dir.join("protected");
    std::fs::copy(&bench.inputs.image, &source)?;
    let site = Site::make(bench, "back", &source)?;
    let (sent, seq) = history(bench, &site)?;
    let holds = format!("the image and {} writes of 4 KiB", WRITES * MARKS);
    apply::run(bench, &site, &Log { source: &source, sent, seq, holds }, report)?;
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
