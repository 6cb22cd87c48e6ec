//! From the acknowledgement of a write to `stored`: how old what is not yet safe gets, at half of what the path can do.
//!
//! Each round, for each age of a segment: first a full load, as [`crate::delta`] has it, which says how much the path takes; then
//! half of that and next to nothing, each at a fixed rate whatever the answers do. Meanwhile the agent is asked every few
//! milliseconds how far `stored` is. Every write has one number (checked), given before its client is told; so a write that is told
//! of when `n` are issued has at most the `n`th number of the load, and counts as stored with the first answer that covers
//! that. From the moment the client knows, the time is therefore never too short, and too long by the time between two
//! questions and by that in which as many writes come as were in flight. A load goes on for a while behind the last write that
//! counts: a segment that waits for its age because nothing comes any more is not what a load looks like.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use nbd::Client;
use serde_json::Value;
use tokio::time::sleep_until;

use crate::Bench;
use crate::delta::{Writes, write_pages};
use crate::inputs::PAGE;
use crate::measure::{Spread, quantile, sorted};
use crate::report::{Report, Table, Target, shown};
use crate::site::{DISK, MACHINE, Role, Site};

/// How long the agent is left alone between an answer and the next question.
const ASK: Duration = Duration::from_millis(3);

/// How long each load lasts.
const HALF_LOAD: Duration = Duration::from_secs(8);
const LIGHT_LOAD: Duration = Duration::from_secs(6);

/// How long it goes on then, with writes that do not count.
const GOES_ON: Duration = Duration::from_millis(1500);

/// Writes a second of the light load: 1 MB.
const LIGHT_RATE: f64 = 250.0;

/// Ages of a segment, and what p50 and p99 may be under half load, in milliseconds.
const AGES: [(&str, Option<f64>, f64); 2] = [("1s", Some(1000.0), 2000.0), ("100ms", None, 400.0)];

/// A write that was acknowledged.
struct Told {
    issued_at: Instant,
    at: Instant,
    /// Writes of the load that were issued by then.
    issued: u64,
}

/// What the agent said.
struct Answer {
    asked: Instant,
    at: Instant,
    stored: u64,
    lag: f64,
}

/// What one load came to; times are milliseconds.
struct Load {
    mb_per_second: f64,
    p50: f64,
    p99: f64,
    most: f64,
    /// From issue to acknowledgement, 99 of 100 writes.
    write_p99: f64,
    /// The agent's own word for it, in the middle.
    lag: f64,
    /// Between two questions, in the middle and 99 of 100.
    asked: [f64; 2],
}

/// One round at one age.
struct Round {
    /// MB/s that the path took.
    full: f64,
    half: Load,
    light: Load,
    /// Most memory of gateway and agent.
    peaks: [u64; 2],
}

/// Runs the section.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut rounds = AGES.map(|_| Vec::new());
    for _ in 0..bench.runs {
        for ((age, ..), rounds) in AGES.iter().zip(&mut rounds) {
            let round = round(bench, age).with_context(|| format!("segments of {age}"))?;
            let (half, light) = (&round.half, &round.light);
            eprintln!(
                "  segments of {age}: {:.0} MB/s at most; at {:.0} p50 {:.0} ms, p99 {:.0} ms; at {:.0} p50 {:.0} ms, p99 {:.0} ms",
                round.full, half.mb_per_second, half.p50, half.p99, light.mb_per_second, light.p50, light.p99
            );
            rounds.push(round);
        }
    }
    for ((age, p50, p99), rounds) in AGES.iter().zip(&rounds) {
        let of = |figure: fn(&Load) -> f64| Spread::of(rounds.iter().map(|round| figure(&round.half))).median;
        if let Some(limit) = p50 {
            let what = format!("acknowledged to `stored` at half load, segments of {age}: p50");
            report.claim(what, Target::AtMost(*limit), of(|load| load.p50), " ms");
        }
        let what = format!("acknowledged to `stored` at half load, segments of {age}: p99");
        report.claim(what, Target::AtMost(*p99), of(|load| load.p99), " ms");
        rounds.iter().for_each(|round| report.saw_peaks(round.peaks[0], round.peaks[1]));
    }
    report.section("From a write to `stored`", &text(bench), &table(&rounds));
    Ok(())
}

fn round(bench: &Bench, age: &str) -> Result<Round> {
    let source = bench.dir.join("protected");
    std::fs::copy(&bench.inputs.database, &source)?;
    let site = Site::make_with(bench, "latency", &source, &format!("segment_age = \"{age}\"\n"))?;
    let gateway = site.start_process_server()?;
    let mut agent = site.start(&["agent", MACHINE])?;
    site.wait_stored(&mut agent)?;
    let count = bench.inputs.bytes / 2 / PAGE as u64;
    let begun = Instant::now();
    bench.runtime.block_on(write_pages(&site.export(), DISK, count, 31, 0))?;
    site.run(&["mark", MACHINE, "--label", "full load"])?;
    site.wait_stored(&mut agent)?;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let half = load(bench, &site, &mut agent, rate / 2.0, HALF_LOAD)?;
    let light = load(bench, &site, &mut agent, LIGHT_RATE, LIGHT_LOAD)?;
    let peaks = [gateway.peak()?, agent.peak()?];
    agent.stop()?;
    gateway.stop()?;
    std::fs::remove_dir_all(&site.dir)?;
    std::fs::remove_file(&source)?;
    Ok(Round { full: rate * PAGE as f64 / 1e6, half, light, peaks })
}

/// One load, from everything stored until everything is again.
fn load(bench: &Bench, site: &Site, agent: &mut Role, rate: f64, lasts: Duration) -> Result<Load> {
    let before = site.wait_stored(agent)?;
    let count = (rate * (lasts + GOES_ON).as_secs_f64()) as u64;
    let done = AtomicBool::new(false);
    let (told, after, answers) = std::thread::scope(|scope| -> Result<_> {
        let asking = scope.spawn(|| ask(site, &done));
        let told = bench.runtime.block_on(write_at(site, rate, count));
        let after = site.wait_stored(agent);
        // Relaxed: a flag polled in a loop; nothing else is published through it.
        done.store(true, Ordering::Relaxed);
        Ok((told?, after?, asking.join().expect("asking does not panic")?))
    })?;
    let base = number(&before, "next_seq")? - 1;
    let numbers = number(&after, "next_seq")? - 1 - base;
    ensure!(numbers == count, "{count} writes took {numbers} numbers: one each is what this section counts on");
    ensure!(
        before["counters"]["drained_bytes"] == after["counters"]["drained_bytes"],
        "the load did not stay in data mode"
    );
    let first = told.first().context("a load has writes")?.issued_at;
    let counted: Vec<Told> = told.into_iter().filter(|write| write.at < first + lasts).collect();
    summary(base, &counted, &answers)
}

fn number(status: &Value, name: &str) -> Result<u64> {
    status[name].as_u64().with_context(|| format!("an agent's status has {name}"))
}

/// Asks the agent again and again, and once more when the load is done.
fn ask(site: &Site, done: &AtomicBool) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    loop {
        // Relaxed: see where it is set.
        let last = done.load(Ordering::Relaxed);
        let asked = Instant::now();
        let status = site.status(&format!("agent-{MACHINE}"))?;
        let lag = status["rpo_seconds"].as_f64().context("an agent knows its lag")?;
        answers.push(Answer { asked, at: Instant::now(), stored: number(&status["stored"], "seq")?, lag });
        if last {
            return Ok(answers);
        }
        std::thread::park_timeout(ASK);
    }
}

/// So many writes at a rate, on two connections, each when it is due and no matter what has been answered.
async fn write_at(site: &Site, rate: f64, count: u64) -> Result<Vec<Told>> {
    let clients = [Client::connect(&site.export(), DISK).await?, Client::connect(&site.export(), DISK).await?];
    let mut writes = Writes::new(33, 0, clients[0].size());
    let (mut in_flight, mut told, mut issued) = (FuturesUnordered::new(), Vec::with_capacity(count as usize), 0);
    let begun = Instant::now();
    while told.len() < count as usize {
        let due = begun + Duration::from_secs_f64(issued as f64 / rate);
        tokio::select! {
            biased;
            Some(written) = in_flight.next() => {
                told.push(Told { issued_at: written?, at: Instant::now(), issued });
            }
            () = sleep_until(due.into()), if issued < count => {
                let (client, (offset, page)) = (&clients[issued as usize % clients.len()], writes.next());
                issued += 1;
                let issued_at = Instant::now();
                in_flight.push(async move { client.write(offset, page, false).await.map(|()| issued_at) });
            }
        }
    }
    drop(in_flight);
    for client in clients {
        client.disconnect().await?;
    }
    Ok(told)
}

/// Turns what was told and what was answered into times.
fn summary(base: u64, told: &[Told], answers: &[Answer]) -> Result<Load> {
    let mut waits = Vec::with_capacity(told.len());
    for write in told {
        let first = answers.partition_point(|answer| answer.stored < base + write.issued);
        let answer = answers.get(first).context("the last answer covers every write")?;
        waits.push(millis(write.at, answer.at));
    }
    let (first, last) = told.first().zip(told.last()).context("a load has writes")?;
    let writes = sorted(told.iter().map(|write| millis(write.issued_at, write.at)).collect());
    let gaps = sorted(answers.windows(2).map(|pair| millis(pair[0].asked, pair[1].at)).collect());
    let loaded = answers.iter().filter(|answer| (first.at..=last.at).contains(&answer.at));
    let lags = sorted(loaded.map(|answer| answer.lag * 1e3).collect());
    let waits = sorted(waits);
    Ok(Load {
        mb_per_second: (told.len() * PAGE) as f64 / 1e3 / millis(first.issued_at, last.at),
        p50: quantile(&waits, 0.5),
        p99: quantile(&waits, 0.99),
        most: quantile(&waits, 1.0),
        write_p99: quantile(&writes, 0.99),
        lag: quantile(&lags, 0.5),
        asked: [quantile(&gaps, 0.5), quantile(&gaps, 0.99)],
    })
}

fn millis(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

fn text(bench: &Bench) -> String {
    format!(
        "4 KiB writes at random places of a disk of {} MiB through agent, TLS, process server and local store, on two connections. \
         The full load keeps 128 writes in flight until a mark behind {} of them is `stored`; half of the rate that it came to is \
         then sent for {} s, and 1 MB/s for {} s, each write when it is due. A time is from when the client has the acknowledgement of a \
         write until the agent, asked every few milliseconds, has answered that it is `stored`: of every write, never too short, and too long by \
         \"a question\" at most (from one question to the answer of the next, in the middle and 99 of 100) and by what came while the \
         write was in flight. Under half load a segment of 1 s is full long before it is old; the light load shows what the age does. \
         \"Lag\" is what the agent says of itself, in the middle. The client that writes and the one that asks take their share of the \
         same cores. Medians of {} rounds.",
        bench.inputs.bytes >> 22,
        bench.inputs.bytes / 2 / PAGE as u64,
        HALF_LOAD.as_secs(),
        LIGHT_LOAD.as_secs(),
        bench.runs
    )
}

fn table(rounds: &[Vec<Round>]) -> Table {
    let mut table = Table::new(&[
        "segment_age",
        "full load MB/s",
        "load MB/s",
        "p50 ms",
        "p99 ms",
        "range of p99",
        "most ms",
        "lag ms",
        "the write itself, p99 ms",
        "a question ms",
    ]);
    for ((age, ..), rounds) in AGES.iter().zip(rounds) {
        let full = Spread::of(rounds.iter().map(|round| round.full)).median;
        for pick in [(|round| &round.half) as fn(&Round) -> &Load, |round| &round.light] {
            let of = |figure: fn(&Load) -> f64| Spread::of(rounds.iter().map(|round| figure(pick(round))));
            let cell = |figure| shown(of(figure).median);
            let p99 = of(|load| load.p99);
            table.row([
                (*age).to_owned(),
                shown(full),
                cell(|load| load.mb_per_second),
                cell(|load| load.p50),
                shown(p99.median),
                format!("{} to {}", shown(p99.low), shown(p99.high)),
                cell(|load| load.most),
                cell(|load| load.lag),
                cell(|load| load.write_p99),
                format!("{}, {}", cell(|load| load.asked[0]), cell(|load| load.asked[1])),
            ]);
        }
    }
    table
}
