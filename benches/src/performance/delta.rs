//! A busy database: random writes of 4 KiB, each a page that was never seen before, until the last is `stored`.
//!
//! A mark behind the last closes its segment: what is measured is speed, not how long a segment may stay open.
//!
//! Once through everything, as a client of the agent's export that keeps 128 writes in flight; and once with the gateway
//! alone, fed over TLS by an agent that has nothing else to do (see [`crate::simulated`]), for an agent's machine is
//! another machine. Beside them: the same client and writes on nbdkit's file plugin, which only writes them.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use benches::{Numbers, table_pages};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use nbd::{Client, ListenAddress};

use crate::Bench;
use crate::inputs::PAGE;
use crate::limits::timed;
use crate::measure::{Cost, Runner, bytes_below, rounds};
use crate::parts;
use crate::report::{Report, Target, sides};
use crate::simulated;
use crate::site::{DISK, MACHINE, Site};

/// Writes in flight on each connection.
const IN_FLIGHT: usize = 64;

/// Connections of the client.
const CONNECTIONS: u64 = 2;

/// Where the pages of writes come from.
const POOL_BYTES: usize = 32 << 20;

/// Writes of pages: where, and what.
pub struct Writes {
    pool: Bytes,
    numbers: Numbers,
    /// First page that may be written.
    first: u64,
    /// Pages from there on.
    pages: u64,
}

impl Writes {
    /// To a disk of so many bytes, from an offset on.
    pub fn new(seed: u64, from: u64, bytes: u64) -> Self {
        let page = PAGE as u64;
        let pool = Bytes::from(table_pages(POOL_BYTES, seed));
        Self { pool, numbers: Numbers(seed), first: from / page, pages: (bytes - from) / page }
    }

    /// The offset of the next write, and its page: one of the pool from an odd place on, with a number of its own.
    pub fn next(&mut self) -> (u64, Bytes) {
        let mut next = || self.numbers.next().expect("endless");
        let (at, offset, number) = (next() as usize % (POOL_BYTES - PAGE), self.first + next() % self.pages, next());
        let mut page = self.pool[at..at + PAGE].to_vec();
        page[..8].copy_from_slice(&number.to_le_bytes());
        (offset * PAGE as u64, Bytes::from(page))
    }
}

/// Writes so many pages through an export and flushes.
pub async fn write_pages(address: &ListenAddress, export: &str, count: u64, seed: u64, from: u64) -> Result<()> {
    let lanes = (0..CONNECTIONS).map(|lane| async move {
        let client = Client::connect(address, export).await?;
        let mut writes = Writes::new(seed + lane, from, client.size());
        let stream = futures::stream::iter(0..count / CONNECTIONS).map(|_| {
            let (offset, page) = writes.next();
            Ok(client.write(offset, page, false))
        });
        stream.try_buffer_unordered(IN_FLIGHT).try_for_each(|()| async { Ok(()) }).await?;
        client.flush().await?;
        client.disconnect().await
    });
    futures::future::try_join_all(lanes).await.context("cannot write pages")?;
    Ok(())
}

/// Runs the section.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    // Twice the disk, so that many pages are written more than once.
    let count = bench.inputs.bytes / 2 / PAGE as u64;
    let pages = pages_of(count, Writes::new(12, 0, bench.inputs.bytes / 4));
    let (mut peaks, mut alone_peaks) = (Vec::new(), Vec::new());
    let runners: Vec<Runner<'_>> = vec![
        (
            "gateway alone".to_owned(),
            Box::new(|| {
                let cost = alone(bench, count)?;
                alone_peaks.push(cost.peak);
                Ok(cost)
            }),
        ),
        ("agent and gateway".to_owned(), Box::new(|| whole(bench, count, &mut peaks))),
        ("nbdkit file, nothing but writing".to_owned(), Box::new(|| nbdkit(bench, count))),
        ("the parts: BLAKE3, zstd, AES".to_owned(), timed(Box::new(|| parts::pack_pages(&pages)))),
    ];
    let done = rounds(bench.runs, runners)?;
    peaks.iter().for_each(|(gateway, agent)| report.saw_peaks(*gateway, *agent));
    alone_peaks.iter().for_each(|gateway| report.saw_peaks(*gateway, 0));
    let bytes = count * PAGE as u64;
    for (side, who) in done.iter().zip(["gateway alone", "agent and gateway on one machine"]) {
        let speed = bytes as f64 / 1e6 / side.wall().median;
        report.claim(format!("4 KiB writes: source data, {who}"), Target::AtLeast(400.0), speed, " MB/s");
        let cpu = side.cpu().median / (bytes as f64 / 1e9);
        report.claim(format!("4 KiB writes: CPU, {who}"), Target::AtMost(3.0), cpu, " s/GB");
    }
    let text = format!(
        "{count} writes of 4 KiB at random places of a disk of {} MiB, each a new page, from the first write until a mark behind \
         the last is `stored`. The client that writes takes its share of the same cores; its CPU time is not in the figures. \
         \"The parts\" are what no gateway can do without for the same pages, by themselves in one thread: a keyed BLAKE3 of each, and \
         zstd level 1 and AES-256-GCM of frames of 64 KiB.",
        bench.inputs.bytes >> 22
    );
    report.section("Database writes", &text, &sides(&done, bytes));
    Ok(())
}

/// What so many writes write, one behind the other.
fn pages_of(count: u64, mut writes: Writes) -> Vec<u8> {
    let mut pages = Vec::with_capacity(count as usize * PAGE);
    (0..count).for_each(|_| pages.extend_from_slice(&writes.next().1));
    pages
}

/// The whole chain.
fn whole(bench: &Bench, count: u64, peaks: &mut Vec<(u64, u64)>) -> Result<Cost> {
    let source = bench.dir.join("protected");
    std::fs::copy(&bench.inputs.database, &source)?;
    let site = Site::make(bench, "delta", &source)?;
    let gateway = site.start_process_server()?;
    let mut agent = site.start(&["agent", MACHINE])?;
    site.wait_stored(&mut agent)?;
    let (cpu, stored) = (gateway.cpu()? + agent.cpu()?, bytes_below(&site.path("store"))?);
    let begun = Instant::now();
    bench.runtime.block_on(write_pages(&site.export(), DISK, count, 11, 0))?;
    site.run(&["mark", MACHINE, "--label", "the end"])?;
    site.wait_stored(&mut agent)?;
    let wall = begun.elapsed().as_secs_f64();
    let cpu = gateway.cpu()? + agent.cpu()? - cpu;
    let (gateway_peak, agent_peak) = (gateway.peak()?, agent.peak()?);
    peaks.push((gateway_peak, agent_peak));
    let stored = bytes_below(&site.path("store"))? - stored;
    agent.stop()?;
    gateway.stop()?;
    std::fs::remove_dir_all(&site.dir)?;
    std::fs::remove_file(&source)?;
    Ok(Cost { wall, cpu, peak: gateway_peak + agent_peak, stored })
}

/// The gateway, fed by a simulated agent.
fn alone(bench: &Bench, count: u64) -> Result<Cost> {
    let site = Site::make(bench, "delta", &bench.inputs.database)?;
    let gateway = site.start_process_server()?;
    let disk_bytes = bench.inputs.bytes / 4;
    let mut agent = bench.runtime.block_on(simulated::Agent::connect(&site, disk_bytes))?;
    let (cpu, stored, begun) = (gateway.cpu()?, bytes_below(&site.path("store"))?, Instant::now());
    bench.runtime.block_on(agent.write(count, Writes::new(12, 0, disk_bytes)))?;
    let wall = begun.elapsed().as_secs_f64();
    let cpu = gateway.cpu()? - cpu;
    let (peak, stored) = (gateway.peak()?, bytes_below(&site.path("store"))? - stored);
    drop(agent);
    gateway.stop()?;
    std::fs::remove_dir_all(&site.dir)?;
    Ok(Cost { wall, cpu, peak, stored })
}

/// The same writes to a file, by way of an NBD server that does nothing else.
fn nbdkit(bench: &Bench, count: u64) -> Result<Cost> {
    let source = bench.dir.join("protected");
    std::fs::copy(&bench.inputs.database, &source)?;
    let socket = bench.dir.join("nbdkit.sock");
    let served = Nbdkit::start(&source, &socket)?;
    let begun = Instant::now();
    bench.runtime.block_on(write_pages(&ListenAddress::Unix(socket), "", count, 11, 0))?;
    let wall = begun.elapsed().as_secs_f64();
    let cost =
        Cost { wall, cpu: crate::measure::cpu_of(&served.0)?, peak: crate::measure::peak_of(&served.0)?, stored: 0 };
    drop(served);
    std::fs::remove_file(&source)?;
    Ok(cost)
}

/// nbdkit's file plugin on a file, until dropped.
pub struct Nbdkit(std::process::Child);

impl Nbdkit {
    pub fn start(file: &Path, socket: &Path) -> Result<Self> {
        let _gone_already = std::fs::remove_file(socket);
        let mut command = std::process::Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(socket).arg("file").arg(file);
        let mut served = Nbdkit(command.spawn().context("cannot start nbdkit: install it")?);
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            let ended = served.0.try_wait()?;
            anyhow::ensure!(ended.is_none() && begun.elapsed().as_secs() < 30, "nbdkit does not serve: {ended:?}");
            std::thread::park_timeout(std::time::Duration::from_millis(5));
        }
        Ok(served)
    }

    /// CPU seconds so far.
    pub fn cpu(&self) -> Result<f64> {
        crate::measure::cpu_of(&self.0)
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _gone_already = self.0.wait();
    }
}
