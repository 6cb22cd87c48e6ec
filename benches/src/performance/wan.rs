//! A long and lossy path between agent and process server: how fast a source's bytes are stored over 40 ms and 1 Gbit/s, with
//! no loss and with some, by each carrier; beside them plain TCP, and what the emulated link carries without limits.
//!
//! A round makes its own link and its own site. The source does not compress and has no holes, so that its bytes are
//! those on the wire. The time runs from the start of the agent's process until all of it is `stored`: what has arrived counts
//! only once the machine could be recovered from it. The first round trips, and finding the path's speed, are in the figures.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use benches::thread_cpu;
use rustix::net::sockopt;

use crate::Bench;
use crate::lane::Path;
use crate::link::{self, FAR, Link};
use crate::measure::{Cost, Runner, Side, Spread, bytes_below, rounds};
use crate::report::{Report, Table, Target, shown};
use crate::site::{Apart, MACHINE, Site, is_stored};

/// 1 Gbit/s, as bytes.
const RATE: u64 = 125_000_000;

/// The path: packets out of a million that get lost, and MB/s that are to be reached.
const PATHS: [(u64, f64); 3] = [(0, 80.0), (1_000, 70.0), (10_000, 55.0)];

/// How long Farshore may take; after that what lies in the store counts.
const TIME_MAX: Duration = Duration::from_secs(30);

/// How long plain TCP sends at most: over a lossy path some senders all but stop.
const BARE_TIME_MAX: Duration = Duration::from_secs(6);

/// Bytes of a write or a read of plain TCP.
const PART: usize = 256 << 10;

/// What is compared.
#[derive(Clone, Copy)]
enum Who {
    /// Farshore with this `transport`.
    Farshore(&'static str),
    /// A TCP connection and nothing else, with this congestion control; empty for the kernel's.
    Bare(&'static str),
}

const SIDES: [(Who, &str); 5] = [
    (Who::Farshore("auto"), "Farshore, auto"),
    (Who::Farshore("tls"), "Farshore, tls"),
    (Who::Farshore("quic"), "Farshore, quic"),
    (Who::Bare(""), "plain TCP, the kernel's default"),
    (Who::Bare("cubic"), "plain TCP, cubic"),
];

fn path(lost_per_million: u64) -> Path {
    let ms = Duration::from_millis;
    Path { rate: Some(RATE), buffer: ms(40), delay: ms(20), lost_per_million }
}

/// What the carriers and the emulator have shown in all rounds.
#[derive(Default)]
struct Seen {
    /// What agents said of their carrier, by the names of their sides.
    carriers: BTreeMap<String, String>,
    /// CPU seconds of the emulator for each GB of payload.
    emulator: Vec<f64>,
}

/// Runs the section, or says why it was not run.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if let Some(why) = link::missing() {
        report.section("A long path", &format!("**Not run**: {why}."), &Table::new(&["path", "MB/s"]));
        return Ok(());
    }
    let (seen, seeds) = (RefCell::new(Seen::default()), Cell::new(0));
    let (seen, seeds) = (&seen, &seeds);
    let runner = |name: String, path: Path, who: Who| -> Runner<'_> {
        let of = name.clone();
        let round = move || {
            seeds.set(seeds.get() + 1);
            once(bench, &of, path, seeds.get(), who, &mut seen.borrow_mut())
        };
        (name, Box::new(round))
    };
    let mut runners = Vec::new();
    for (lost, _) in PATHS {
        runners.extend(SIDES.map(|(who, name)| runner(format!("{} %, {name}", lost as f64 / 1e4), path(lost), who)));
    }
    let open = Path { rate: None, buffer: Duration::ZERO, delay: Duration::ZERO, lost_per_million: 0 };
    runners.push(runner("no delay, rate or loss: plain TCP".to_owned(), open, Who::Bare("")));
    let done = rounds(bench.runs, runners)?;
    tell(&done, &seen.borrow(), bench.inputs.bytes / 2, report);
    Ok(())
}

/// Table and claims.
fn tell(done: &[Side], seen: &Seen, bytes: u64, report: &mut Report) {
    let speed = |side: &Side| Spread::of(side.costs.iter().map(|cost| cost.stored as f64 / 1e6 / cost.wall));
    let mut table = Table::new(&["loss, sender", "MB/s", "range", "CPU-s/GB", "carrier"]);
    for side in done {
        let (speed, cpu) = (speed(side), Spread::of(side.costs.iter().map(|cost| cost.cpu * 1e9 / cost.stored as f64)));
        table.row([
            side.name.clone(),
            shown(speed.median),
            format!("{} to {}", shown(speed.low), shown(speed.high)),
            shown(cpu.median),
            seen.carriers.get(&side.name).cloned().unwrap_or_default(),
        ]);
    }
    for ((lost, target), side) in PATHS.iter().zip(done.iter().step_by(SIDES.len())) {
        let what = format!("40 ms, 1 Gbit/s, {} % loss: source data with auto", *lost as f64 / 1e4);
        report.claim(what, Target::AtLeast(*target), speed(side).median, " MB/s");
    }
    let text = format!(
        "A round trip of 40 ms, 1 Gbit/s with a buffer of 40 ms, and random loss both ways, in user space between two network \
         namespaces; packets of 1500 bytes, no offload. {} MB that do not compress, from the start of the agent's process until all is \
         `stored`; plain TCP sends as much, for {} s at most. CPU is that of agent and gateway, or of both ends; the emulator takes \
         {} CPU-s for a GB (median) of the same cores.",
        bytes / 1_000_000,
        BARE_TIME_MAX.as_secs(),
        shown(Spread::of(seen.emulator.iter().copied()).median),
    );
    report.section("A long path", &text, &table);
}

/// One round of a side, over a link of its own.
fn once(bench: &Bench, name: &str, path: Path, seed: u64, who: Who, seen: &mut Seen) -> Result<Cost> {
    let link = Link::make(path, seed)?;
    let cost = match who {
        Who::Bare(congestion) => bare(&link, congestion, bench.inputs.bytes / 2)?,
        Who::Farshore(transport) => {
            let (cost, carrier) = farshore(bench, &link, transport)?;
            seen.carriers.insert(name.to_owned(), carrier);
            cost
        }
    };
    let carried = link.end()?;
    let cpu: f64 = carried.iter().map(|one| one.cpu).sum();
    seen.emulator.push(cpu * 1e9 / cost.stored as f64);
    let [there, back] = carried.map(|one| one.fate);
    eprintln!("  {name}: {:.1} MB/s, {there:?}, back {back:?}", cost.stored as f64 / 1e6 / cost.wall);
    Ok(cost)
}

/// Replicates the source through the link; how, too.
fn farshore(bench: &Bench, link: &Link, transport: &'static str) -> Result<(Cost, String)> {
    let source = &bench.inputs.noise;
    let apart = Apart { ends: link.ends.clone(), server: FAR, transport };
    let site = Site::make_apart(bench, "wan", source, Some(apart))?;
    let gateway = site.start_process_server()?;
    let (cpu, begun) = (gateway.cpu()?, Instant::now());
    let mut agent = site.start(&["agent", MACHINE])?;
    let status = site.wait_stored_for(&mut agent, TIME_MAX)?;
    let wall = begun.elapsed().as_secs_f64();
    let stored = if is_stored(&status) { source.metadata()?.len() } else { bytes_below(&site.path("store"))? };
    let cpu = gateway.cpu()? - cpu + agent.cpu()?;
    let peak = gateway.peak()? + agent.peak()?;
    agent.stop()?;
    gateway.stop()?;
    std::fs::remove_dir_all(&site.dir)?;
    let carrier = status["carrier"].as_str().unwrap_or_default().to_owned();
    Ok((Cost { wall, cpu, peak, stored }, carrier))
}

/// Sends so many bytes over a bare TCP connection, or as many as the time allows. `stored` is what has arrived.
fn bare(link: &Link, congestion: &'static str, bytes: u64) -> Result<Cost> {
    let [near, far] = link.ends.clone();
    let (ready, address) = mpsc::channel();
    let receiver = std::thread::spawn(move || -> Result<(u64, Instant, f64)> {
        far.enter()?;
        let listener = TcpListener::bind((FAR, 0))?;
        ready.send(listener.local_addr()?)?;
        let (mut stream, mut part, mut arrived) = (listener.accept()?.0, vec![0; PART], 0);
        loop {
            match stream.read(&mut part)? as u64 {
                0 => return Ok((arrived, Instant::now(), thread_cpu().as_secs_f64())),
                more => arrived += more,
            }
        }
    });
    let address = address.recv().context("the receiver cannot listen")?;
    let begun = Instant::now();
    let sender = std::thread::spawn(move || -> Result<f64> {
        near.enter()?;
        let mut stream = TcpStream::connect(address)?;
        if !congestion.is_empty() {
            sockopt::set_tcp_congestion(&stream, congestion)?;
        }
        let (part, mut left) = (benches::random(PART, 1), bytes);
        while left > 0 && begun.elapsed() < BARE_TIME_MAX {
            let count = left.min(PART as u64);
            stream.write_all(&part[..count as usize])?;
            left -= count;
        }
        Ok(thread_cpu().as_secs_f64())
    });
    let panicked = |_| anyhow!("an end of a TCP connection panicked");
    let sender = sender.join().map_err(panicked)??;
    let (arrived, end, receiver) = receiver.join().map_err(panicked)??;
    let wall = (end - begun).as_secs_f64();
    Ok(Cost { wall, cpu: sender + receiver, peak: 0, stored: arrived })
}
