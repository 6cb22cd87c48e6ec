//! The report: sections with their tables, and claims, each with its target, what was measured, and whether it is met.

use crate::measure::Side;

/// A table of Markdown.
pub struct Table {
    lines: Vec<String>,
}

impl Table {
    pub fn new(heads: &[&str]) -> Self {
        Self { lines: vec![format!("| {} |", heads.join(" | ")), "|---".repeat(heads.len()) + "|"] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.lines.push(format!("| {} |", cells.into_iter().collect::<Vec<_>>().join(" | ")));
    }
}

/// What a figure may be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// A target and the figure beside it.
struct Claim {
    what: String,
    target: Target,
    measured: f64,
    unit: &'static str,
}

impl Claim {
    fn met(&self) -> bool {
        match self.target {
            Target::AtMost(limit) => self.measured <= limit,
            Target::AtLeast(limit) => self.measured >= limit,
        }
    }
}

/// Everything measured so far.
#[derive(Default)]
pub struct Report {
    claims: Vec<Claim>,
    sections: Vec<String>,
    /// Most memory of a role, in any section: gateway, then agent.
    peaks: [u64; 2],
}

impl Report {
    /// A section: title, what was done, a table.
    pub fn section(&mut self, title: &str, text: &str, table: &Table) {
        eprintln!("{title}");
        self.sections.push(format!("## {title}\n\n{text}\n\n{}\n", table.lines.join("\n")));
    }

    /// A target and what was measured.
    pub fn claim(&mut self, what: impl Into<String>, target: Target, measured: f64, unit: &'static str) {
        self.claims.push(Claim { what: what.into(), target, measured, unit });
    }

    /// What gateway and agent took at most in some round.
    pub fn saw_peaks(&mut self, gateway: u64, agent: u64) {
        self.peaks = [self.peaks[0].max(gateway), self.peaks[1].max(agent)];
    }

    /// The claims on memory, once every section has been.
    pub fn memory(&mut self) {
        let [gateway, agent] = self.peaks.map(|bytes| bytes as f64 / f64::from(1 << 20));
        if gateway > 0.0 {
            self.claim("peak memory of the gateway, one machine", Target::AtMost(258.0), gateway, " MiB");
        }
        if agent > 0.0 {
            self.claim("peak memory of the agent", Target::AtMost(128.0), agent, " MiB");
        }
    }

    /// The whole text; `machine` says where and how it was measured.
    pub fn text(&self, machine: &str) -> String {
        let mut table = Table::new(&["target", "at most or at least", "measured", ""]);
        for claim in &self.claims {
            let (word, limit) = match claim.target {
                Target::AtMost(limit) => ("at most", limit),
                Target::AtLeast(limit) => ("at least", limit),
            };
            let verdict = if claim.met() { "met" } else { "**missed**" };
            let [limit, measured] = [limit, claim.measured].map(|figure| shown(figure) + claim.unit);
            table.row([claim.what.clone(), format!("{word} {limit}"), measured, verdict.to_owned()]);
        }
        let met = self.claims.iter().filter(|claim| claim.met()).count();
        format!(
            "# Performance\n\nWritten by `cargo xtask bench`. Ratios are of medians of the same run; absolute figures \
             belong to the machine.\nMB and GB are powers of ten, of data of the source, unless MiB is said.\n\n{machine}\n\
             ## Targets: {met} of {} met\n\n{}\n\n{}",
            self.claims.len(),
            table.lines.join("\n"),
            self.sections.join("\n")
        )
    }
}

/// Three digits that mean something.
pub fn shown(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// The table of sides that did the same work on so many bytes; ratios are of the wall time to the first side's.
pub fn sides(sides: &[Side], bytes: u64) -> Table {
    let heads = ["", "wall s", "range", "times ours", "MB/s", "CPU s", "CPU-s/GB", "peak MiB", "stored MB"];
    let mut table = Table::new(&heads);
    let first = sides.first().map_or(1.0, |side| side.wall().median);
    for side in sides {
        let (wall, cpu, mb) = (side.wall(), side.cpu(), bytes as f64 / 1e6);
        table.row([
            side.name.clone(),
            shown(wall.median),
            format!("{} to {}", shown(wall.low), shown(wall.high)),
            shown(wall.median / first),
            shown(mb / wall.median),
            shown(cpu.median),
            shown(cpu.median / (mb / 1e3)),
            if side.peak() == 0 { String::new() } else { (side.peak() >> 20).to_string() },
            if side.stored() == 0.0 { String::new() } else { shown(side.stored() / 1e6) },
        ]);
    }
    table
}
