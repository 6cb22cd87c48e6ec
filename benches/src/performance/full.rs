//! Initial replication of the image: from the start of the agent until all of it is `stored`, beside peers and limits.

use anyhow::{Context, Result};
use std::path::Path;
use std::time::Instant;

use crate::Bench;
use crate::limits::{self, Limits};
use crate::measure::{Cost, Runner, Side, bytes_below, rounds};
use crate::peers::{PEERS, PIPELINE, RESTIC};
use crate::report::{Report, Target, sides};
use crate::site::{MACHINE, Site};

/// What one replication took.
pub struct Replicated {
    /// Wall, CPU of agent and gateway, their memory together, and the store's bytes.
    pub cost: Cost,
    /// CPU of the gateway alone.
    pub gateway_cpu: f64,
    pub gateway_peak: u64,
    pub agent_peak: u64,
    /// Payload bytes that went over the wire.
    pub sent: u64,
}

/// Replicates a source into the store of a new site.
pub fn replicate(bench: &Bench, source: &Path) -> Result<Replicated> {
    let site = Site::make(bench, "full", source)?;
    let gateway = site.start_process_server()?;
    let gateway_before = gateway.cpu()?;
    let begun = Instant::now();
    let mut agent = site.start(&["agent", MACHINE])?;
    let status = site.wait_stored(&mut agent)?;
    let wall = begun.elapsed().as_secs_f64();
    let (gateway_cpu, agent_cpu) = (gateway.cpu()? - gateway_before, agent.cpu()?);
    let (gateway_peak, agent_peak) = (gateway.peak()?, agent.peak()?);
    let stored = bytes_below(&site.path("store"))?;
    agent.stop()?;
    gateway.stop()?;
    std::fs::remove_dir_all(&site.dir)?;
    let cost = Cost { wall, cpu: gateway_cpu + agent_cpu, peak: gateway_peak + agent_peak, stored };
    let sent = status["counters"]["sent_bytes"].as_u64().context("an agent counts what it sent")?;
    Ok(Replicated { cost, gateway_cpu, gateway_peak, agent_peak, sent })
}

/// Runs the section if it is wanted, and the limits in any case.
pub fn run(bench: &Bench, wanted: bool, report: &mut Report) -> Result<()> {
    let data = limits::sample(bench)?;
    let mut all = Vec::new();
    let mut runners: Vec<Runner<'_>> = Vec::new();
    if wanted {
        let image = bench.inputs.image.as_path();
        runners.push((
            "Farshore".to_owned(),
            Box::new(|| {
                let one = replicate(bench, image)?;
                let cost = one.cost;
                all.push(one);
                Ok(cost)
            }),
        ));
        for peer in PEERS.iter().filter(|peer| peer.installed()) {
            runners.push((peer.name.to_owned(), Box::new(move || peer.round(bench, image))));
        }
    }
    let programs = runners.len();
    runners.extend(limits::runners(bench, &data));
    let mut done = rounds(bench.runs, runners)?;
    let limits = Limits::new(bench, &data, done.split_off(programs));
    report.section("Limits", "Each part of the work by itself, in the same rounds.", &limits.table());
    if wanted {
        tell(bench, &done, &all, &limits, report);
    }
    Ok(())
}

/// Table and claims.
fn tell(bench: &Bench, done: &[Side], all: &[Replicated], limits: &Limits, report: &mut Report) {
    for one in all {
        report.saw_peaks(one.gateway_peak, one.agent_peak);
    }
    let ours = &done[0];
    let side = |name: &str| done.iter().find(|side| side.name == name);
    if let Some(pipeline) = side(PIPELINE) {
        let ratio = ours.wall().median / pipeline.wall().median;
        report.claim("initial replication: wall, of the pipeline's", Target::AtMost(1.0), ratio, "");
    }
    if let Some(restic) = side(RESTIC) {
        let ratio = restic.wall().median / ours.wall().median;
        report.claim("initial replication: times as fast as restic", Target::AtLeast(3.0), ratio, "");
    }
    let sent = all.last().map_or(0, |one| one.sent) as f64 / 1e9;
    let parts = [limits::COPY, limits::BLAKE3, limits::ZSTD, limits::TLS].map(|part| limits.cpu(part));
    let sum = parts.iter().sum::<f64>() * sent + limits.cpu(limits::AES) * ours.stored() / 1e9;
    let ratio = ours.cpu().median / sum;
    report.claim("initial replication: CPU, of the parts' sum", Target::AtMost(1.35), ratio, "");
    if let Some(restic) = side(RESTIC) {
        let ratio = ours.stored() / restic.stored();
        report.claim("stored bytes of the full image, of restic's", Target::AtMost(1.15), ratio, "");
    }
    let gateway = crate::measure::Spread::of(all.iter().map(|one| one.gateway_cpu)).median;
    let text = format!(
        "Agent, TLS, process server, local store: from the start of the agent's process until all is `stored`. {:.0} MB went \
         over the wire. Of the CPU time the gateway took {gateway:.2} s and the agent {:.2} s (medians); the measured parts \
         (copy, BLAKE3, zstd level 1 and TLS of what went over the wire, AES of what was stored) sum to {sum:.2} s. Stored are the \
         log's objects; no applier ran.",
        sent * 1e3,
        ours.cpu().median - gateway,
    );
    report.section("Initial replication", &text, &sides(done, bench.inputs.data));
}
