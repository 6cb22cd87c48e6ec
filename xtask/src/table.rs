//! Stages with their times: so that the slow one has a name.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Times stages and prints them as a table.
#[derive(Default)]
pub struct Stages {
    done: Vec<(&'static str, Duration)>,
}

impl Stages {
    /// Runs a stage; its failure is the whole run's.
    pub fn run(&mut self, name: &'static str, stage: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = stage();
        self.done.push((name, start.elapsed()));
        if result.is_err() {
            self.print();
        }
        result.with_context(|| format!("stage {name} failed"))
    }

    /// Prints the table.
    pub fn print(&self) {
        println!("\n{:<28}{:>9}", "stage", "time");
        for (name, took) in &self.done {
            println!("{name:<28}{:>7.1} s", took.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|(_, took)| *took).sum();
        println!("{:<28}{:>7.1} s", "total", total.as_secs_f64());
    }
}
