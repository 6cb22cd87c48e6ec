//! What the first write to a cold region costs its client: it waits until the dirty map is durable with the region's bit.
//!
//! A disk without data, replicated and left alone until the agent has cleared every bit. Then each of many regions gets two writes,
//! the first of which waits and the second of which does not: one write at a time, and with 32 in flight, which share
//! syncs. The agent's own count of writes that waited says that these were the cold ones, and no others.

use std::fs::File;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use nbd::Client;

use crate::Bench;
use crate::inputs::PAGE;
use crate::measure::{Spread, quantile, sorted};
use crate::report::{Report, Table};
use crate::site::{DISK, MACHINE, Site};

/// Bytes of a region, as the agent has them.
const REGION_BYTES: u64 = 1 << 20;

/// Regions written in each way.
const REGIONS: u64 = 1000;

/// Writes in flight, in each way.
const IN_FLIGHT: [usize; 2] = [1, 32];

/// Microseconds of all writes of one kind.
type Times = Vec<f64>;

/// Runs the section.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut kinds: Vec<[Vec<f64>; 2]> = vec![Default::default(); 2 * IN_FLIGHT.len()];
    for _ in 0..bench.runs {
        for (kind, times) in kinds.iter_mut().zip(round(bench)?) {
            let times = sorted(times);
            kind[0].push(quantile(&times, 0.5));
            kind[1].push(quantile(&times, 0.99));
        }
    }
    let mut table = Table::new(&["in flight", "region", "p50 µs", "p99 µs", "range of p99"]);
    for (n, [p50, p99]) in kinds.into_iter().enumerate() {
        let (p50, p99) = (Spread::of(p50), Spread::of(p99));
        table.row([
            IN_FLIGHT[n / 2].to_string(),
            ["cold: the first write", "active: the second write"][n % 2].to_owned(),
            format!("{:.0}", p50.median),
            format!("{:.0}", p99.median),
            format!("{:.0} to {:.0}", p99.low, p99.high),
        ]);
    }
    let text = format!(
        "4 KiB writes of one client to an agent that replicates, to {REGIONS} regions in each way, each of which gets two. Before that \
         nothing was written until every region was cold. A cold region's first write waits for a sync of the dirty map, in a \
         file on the same file system (promise P3); as many waited as were meant to (checked). Medians of {} rounds.",
        bench.runs
    );
    report.section("The first write to a cold region", &text, &table);
    Ok(())
}

/// Times of cold and of active regions, for each way.
fn round(bench: &Bench) -> Result<Vec<Times>> {
    let source = bench.dir.join("protected");
    File::create(&source)?.set_len(REGIONS * IN_FLIGHT.len() as u64 * REGION_BYTES)?;
    let site = Site::make(bench, "cold", &source)?;
    let gateway = site.start_process_server()?;
    let mut agent = site.start(&["agent", MACHINE])?;
    site.wait_stored(&mut agent)?;
    agent.until("every region is cold", || Ok(count(&site, |status| status["active_regions"].as_u64())? == 0))?;
    let mut all = Vec::new();
    for (way, in_flight) in IN_FLIGHT.into_iter().enumerate() {
        let waited = || count(&site, |status| status["counters"]["cold_region_syncs"].as_u64());
        let before = waited()?;
        all.extend(bench.runtime.block_on(write_twice(&site, way as u64 * REGIONS, in_flight))?);
        let waited = waited()? - before;
        ensure!(waited == REGIONS, "{waited} writes waited for the map, and not {REGIONS}");
    }
    agent.stop()?;
    gateway.stop()?;
    std::fs::remove_dir_all(&site.dir)?;
    std::fs::remove_file(&source)?;
    Ok(all)
}

fn count(site: &Site, of: fn(&serde_json::Value) -> Option<u64>) -> Result<u64> {
    of(&site.status(&format!("agent-{MACHINE}"))?).context("an agent counts regions and what waited")
}

/// Two writes to each region from `first` on, the second when the first was acknowledged; times of first and second writes.
async fn write_twice(site: &Site, first: u64, in_flight: usize) -> Result<[Times; 2]> {
    let client = &Client::connect(&site.export(), DISK).await?;
    let write = |offset: u64| async move {
        let begun = Instant::now();
        client.write(offset, Bytes::from(vec![offset as u8 | 1; PAGE]), false).await?;
        anyhow::Ok(begun.elapsed().as_secs_f64() * 1e6)
    };
    let stream = futures::stream::iter(first..first + REGIONS).map(|region| {
        let offset = region * REGION_BYTES;
        async move { anyhow::Ok((write(offset).await?, write(offset + PAGE as u64).await?)) }
    });
    let pairs: Vec<(f64, f64)> = stream.buffer_unordered(in_flight).try_collect().await?;
    let (cold, active) = pairs.into_iter().unzip();
    Ok([cold, active])
}
