//! The tables and slopes of a run, as Markdown.

use std::fmt::Write;

use crate::rounds::{Part, Round};

const MIB: f64 = (1 << 20) as f64;

/// A straight line through figures of several numbers of machines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// At no machine.
    pub base: f64,
    /// For each machine.
    pub slope: f64,
    /// Share of the figures' variance that the line accounts for.
    pub fit: f64,
}

impl Line {
    /// By least squares; level where there are not two numbers.
    pub fn through(points: &[(f64, f64)]) -> Self {
        let count = points.len().max(1) as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
        let both: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
        let slope = if spread > 0.0 { both / spread } else { 0.0 };
        let base = y - slope * x;
        let all: f64 = points.iter().map(|point| (point.1 - y).powi(2)).sum();
        let left: f64 = points.iter().map(|point| (point.1 - base - slope * point.0).powi(2)).sum();
        Self { base, slope, fit: if all > 0.0 { 1.0 - left / all } else { 1.0 } }
    }
}

/// The whole report.
pub fn text(rounds: &[Round]) -> String {
    [idle(rounds), busy(rounds), loud(rounds), slopes(rounds)].join("\n")
}

fn table(title: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = format!("### {title}\n\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        writeln!(text, "| {} |", row.join(" | ")).expect("a string takes all");
    }
    text
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / MIB)
}

fn ms(seconds: f64) -> String {
    format!("{:.0}", seconds * 1e3)
}

/// Of a part: so much an hour.
fn hourly(part: &Part, figure: f64) -> f64 {
    figure * 3600.0 / part.seconds
}

/// Machines that hold a stream, the loud one too.
fn streams(round: &Round) -> f64 {
    round.machines as f64 + 1.0
}

fn idle(rounds: &[Round]) -> String {
    let head = [
        "machines",
        "resident MiB",
        "peak MiB",
        "CPU s/h",
        "PUTs/h of a machine",
        "other requests/h of a machine",
        "all new ones connected, s",
        "all back after a kill, s",
        "CPU s for that",
    ];
    table(
        "Mostly idle",
        &head,
        rounds.iter().map(|round| {
            let (part, of) = (&round.idle, streams(round));
            vec![
                round.machines.to_string(),
                mib(part.resident),
                mib(part.peak),
                format!("{:.0}", hourly(part, part.used.cpu)),
                format!("{:.1}", hourly(part, part.used.puts()) / of),
                format!("{:.0}", hourly(part, part.used.reads()) / of),
                format!("{:.2}", round.connected),
                format!("{:.2}", round.again),
                format!("{:.2}", round.again_cpu),
            ]
        }),
    )
}

fn busy(rounds: &[Round]) -> String {
    let head = [
        "machines",
        "MB/s",
        "peak MiB",
        "CPU s/GB",
        "PUTs/h of a machine",
        "other requests/h of a machine",
        "stored after, p50 ms",
        "p99 ms",
        "worst machine's p99 ms",
    ];
    table(
        "All busy",
        &head,
        rounds.iter().map(|round| {
            let (part, of) = (&round.busy, round.machines as f64);
            vec![
                round.machines.to_string(),
                format!("{:.1}", part.used.bytes / 1e6 / part.seconds),
                mib(part.peak),
                format!("{:.2}", part.used.cpu / (part.used.bytes / 1e9)),
                format!("{:.0}", hourly(part, part.used.puts()) / of),
                format!("{:.0}", hourly(part, part.used.reads()) / of),
                ms(part.half),
                ms(part.most),
                ms(part.worst),
            ]
        }),
    )
}

fn loud(rounds: &[Round]) -> String {
    let head = ["machines", "the loud one's MB/s", "peak MiB", "others: p50 ms", "p99 ms", "worst machine's p99 ms"];
    table(
        "All busy beside a loud one",
        &head,
        rounds.iter().map(|round| {
            let part = &round.loud;
            vec![
                round.machines.to_string(),
                format!("{:.0}", part.loud_bytes / 1e6 / part.seconds),
                mib(part.peak),
                ms(part.half),
                ms(part.most),
                ms(part.worst),
            ]
        }),
    )
}

fn slopes(rounds: &[Round]) -> String {
    type Figure = fn(&Round) -> f64;
    let figures: [(&str, Figure); 8] = [
        ("idle: resident MiB", |round| round.idle.resident as f64 / MIB),
        ("idle: CPU s/h", |round| hourly(&round.idle, round.idle.used.cpu)),
        ("idle: PUTs/h", |round| hourly(&round.idle, round.idle.used.puts())),
        ("idle: other requests/h", |round| hourly(&round.idle, round.idle.used.reads())),
        ("all back after a kill: s", |round| round.again),
        ("busy: peak MiB", |round| round.busy.peak as f64 / MIB),
        ("busy: PUTs/h", |round| hourly(&round.busy, round.busy.used.puts())),
        ("busy: CPU s/h", |round| hourly(&round.busy, round.busy.used.cpu)),
    ];
    let rows = figures.iter().map(|(name, figure)| {
        let points: Vec<_> = rounds.iter().map(|round| (streams(round), figure(round))).collect();
        let line = Line::through(&points);
        vec![(*name).to_owned(), format!("{:.1}", line.base), format!("{:.4}", line.slope), format!("{:.3}", line.fit)]
    });
    table("Slopes", &["figure", "base", "for each machine", "R²"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_its_points() {
        let line = Line::through(&[(1.0, 5.0), (10.0, 23.0), (100.0, 203.0)]);
        assert!((line.slope - 2.0).abs() < 1e-9 && (line.base - 3.0).abs() < 1e-9 && line.fit > 0.999, "{line:?}");
        let bent = Line::through(&[(1.0, 1.0), (10.0, 100.0), (100.0, 1.0)]);
        assert!(bent.fit < 0.5, "{bent:?}");
    }
}
