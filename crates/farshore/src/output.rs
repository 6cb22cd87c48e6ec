//! What a command says: text or one JSON object on standard output, progress on standard error.
//!
//! A closed standard output (`| head`) is not a failure of the command.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work shorter than this shows no progress bar.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// Standard output in the form the user asked for.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Text, or JSON.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON was asked for.
    pub fn json(self) -> bool {
        self.json
    }

    /// Prints the object, or the text that says the same.
    pub fn print(self, object: &serde_json::Value, text: impl FnOnce() -> String) {
        let line = if self.json { object.to_string() } else { text() };
        let mut out = std::io::stdout().lock();
        // Nobody is left to be told when standard output is gone.
        let _closed =
            out.write_all(line.trim_end().as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    }

    /// Prints a line of a story as it happens; nothing when JSON was asked for.
    pub fn say(self, line: &str) {
        if !self.json {
            let mut out = std::io::stdout().lock();
            let _closed = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }
}

/// A progress bar, shown on a terminal only and after a second only.
pub struct Progress {
    bar: ProgressBar,
    since: std::time::Instant,
}

impl Progress {
    /// A bar for work on `what`, counted in bytes.
    pub fn new(what: &str) -> Self {
        Self::with_template(what, "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    }

    /// A bar for work counted in things.
    pub fn counting(what: &str) -> Self {
        Self::with_template(what, "{prefix} {wide_bar} {pos}/{len} {eta}")
    }

    fn with_template(what: &str, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        Self { bar, since: std::time::Instant::now() }
    }

    /// Begins a part of the work, with so many units done before it: rate and ETA are of this part alone.
    pub fn begin(&self, what: &'static str, done: u64) {
        self.bar.set_prefix(what);
        self.bar.set_position(done);
        self.bar.tick();
        self.bar.reset_eta();
    }

    /// How far: units done of units in all.
    pub fn set(&self, done: u64, total: u64) {
        if self.bar.is_hidden() && self.since.elapsed() > PROGRESS_AFTER && std::io::stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Bytes as people read them: `1.5 GiB`.
pub fn bytes_text(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}
