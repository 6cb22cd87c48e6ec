//! Random reads of 4 KiB from a served point, 32 in flight, beside nbdkit's file plugin on the raw image.
//!
//! `fio` (with its nbd engine) and `nbdkit` must be installed (Debian packages of these names). Places are the same in every run: 4000
//! all over the disk for what is cold or on disk, so that most of them ask for a frame of their own; for what is in memory, 48
//! MiB of it over and over. A third of them meet holes.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Bench, PATIENCE};

const COLD: [&str; 1] = ["--number_ios=4000"];
const WARM: [&str; 3] = ["--size=48m", "--time_based", "--runtime=5"];

/// A server, until it is dropped.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prints the table.
pub fn report(bench: &Bench) -> Result<()> {
    println!("{:<36}{:>8}{:>12}", "4 KiB at random, 32 in flight", "IOPS", "mean us");
    let cache = bench.path("read-cache");
    {
        let _served = serve(bench, &cache)?;
        line(bench, "farshore serve, cold", &COLD)?;
        fio(bench, &WARM)?;
        line(bench, "farshore serve, in memory", &WARM)?;
    }
    // What was read first would be fetched early: here only what lies in the cache is to count.
    for entry in std::fs::read_dir(&cache)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "trace") {
            std::fs::remove_file(path)?;
        }
    }
    {
        let _served = serve(bench, &cache)?;
        line(bench, "farshore serve, cached on disk", &COLD)?;
    }
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--exit-with-parent", "-U", "served.sock", "-e", "root", "file", "source"]);
    let _served = start(bench, nbdkit)?;
    line(bench, "nbdkit file, raw image, all over", &COLD)?;
    line(bench, "nbdkit file, raw image, 48 MiB", &WARM)
}

fn serve(bench: &Bench, cache: &Path) -> Result<Served> {
    let mut command = Command::new(&bench.farshore);
    command.args(["--config", "site/farshore.toml", "serve", "db", "--disk", "root", "--at", "latest"]);
    command.args(["--listen", "unix:served.sock", "--cache"]).arg(cache);
    start(bench, command)
}

/// Starts a server and waits until it takes clients.
fn start(bench: &Bench, mut command: Command) -> Result<Served> {
    let socket = bench.path("served.sock");
    let _ = std::fs::remove_file(&socket);
    let log = File::create(bench.path("served.log"))?;
    command.current_dir(&bench.dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut served = Served(command.spawn().with_context(|| format!("cannot start {command:?}"))?);
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        if served.0.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
            bail!("{command:?} does not serve: {}", std::fs::read_to_string(bench.path("served.log"))?);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Ok(served)
}

fn line(bench: &Bench, what: &str, extra: &[&str]) -> Result<()> {
    let (iops, mean) = fio(bench, extra)?;
    println!("{what:<36}{iops:>8.0}{mean:>12.0}");
    Ok(())
}

/// Runs a job; reads a second and the mean time of one in microseconds.
fn fio(bench: &Bench, extra: &[&str]) -> Result<(f64, f64)> {
    let uri = "--uri=nbd+unix:///root?socket=served.sock";
    let common = ["--name=reads", "--ioengine=nbd", uri, "--rw=randread", "--bs=4k", "--iodepth=32", "--randrepeat=1"];
    let out = bench.run("fio", &[&common[..], &["--output-format=terse", "--terse-version=3"], extra].concat())?;
    let line = out.lines().find(|line| line.starts_with("3;")).with_context(|| format!("fio said: {out}"))?;
    let field = |n: usize| line.split(';').nth(n).and_then(|field| field.parse::<f64>().ok());
    field(7).zip(field(15)).with_context(|| format!("fio said: {line}"))
}
