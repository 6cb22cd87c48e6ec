//! fio's nbd engine as a client: a job on an export, and what fio found of it.

use std::ops::Range;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Seconds of each job.
pub const SECONDS: u32 = 4;

/// What fio found of one job.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub iops: f64,
    /// Microseconds that half of the requests, and 99 of 100, take.
    pub p50: f64,
    pub p99: f64,
}

/// How a job loads the export.
pub enum Load {
    /// So many 4 KiB writes at random places in flight.
    Depth(u32),
    /// So many of them a second, 32 in flight at the most.
    Rate(u32),
    /// Writes of a MiB one after the other, 4 in flight.
    Sequential,
    /// 32 reads of 4 KiB in flight, at random places of a range.
    Reads(Range<u64>),
    /// Reads the range once, a MiB after the other, however long it takes.
    Once(Range<u64>),
}

/// Runs fio on an export.
pub fn fio(dir: &Path, socket: &Path, export: &str, load: &Load) -> Result<Job> {
    let mut command = Command::new("fio");
    command.current_dir(dir).args(["--name=bench", "--ioengine=nbd", "--output-format=json"]);
    command.arg(format!("--uri=nbd+unix:///{export}?socket={}", socket.display()));
    command.args(["--randrepeat=0", "--norandommap"]);
    let timed = ["--time_based".to_owned(), format!("--runtime={SECONDS}")];
    match load {
        Load::Depth(depth) => command.args(["--rw=randwrite", "--bs=4k"]).arg(format!("--iodepth={depth}")).args(timed),
        Load::Rate(rate) => {
            command.args(["--rw=randwrite", "--bs=4k", "--iodepth=32"]).arg(format!("--rate_iops={rate}")).args(timed)
        }
        Load::Sequential => command.args(["--rw=write", "--bs=1M", "--iodepth=4"]).args(timed),
        Load::Reads(range) => {
            command.args(["--rw=randread", "--bs=4k", "--iodepth=32"]).args(within(range)).args(timed)
        }
        Load::Once(range) => command.args(["--rw=read", "--bs=1M", "--iodepth=4"]).args(within(range)),
    };
    let out = command.output().context("cannot run fio: install it")?;
    ensure!(out.status.success(), "fio failed: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    // fio says in front of its JSON what it thinks of the options.
    let json: Value = serde_json::from_str(&text[text.find('{').context("fio printed no JSON")?..])?;
    let reads = matches!(load, Load::Reads(_) | Load::Once(_));
    let side = &json["jobs"][0][if reads { "read" } else { "write" }];
    let number = |value: &Value| value.as_f64().with_context(|| format!("fio's JSON lacks a figure: {side}"));
    let percentile = |of: &str| number(&side["clat_ns"]["percentile"][of]).map(|ns| ns / 1e3);
    Ok(Job { iops: number(&side["iops"])?, p50: percentile("50.000000")?, p99: percentile("99.000000")? })
}

fn within(range: &Range<u64>) -> [String; 2] {
    [format!("--offset={}", range.start), format!("--size={}", range.end - range.start)]
}
