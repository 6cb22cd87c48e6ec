//! How fast a disk comes back: `farshore restore` beside `qemu-img convert` and `restic restore`, of the same data, on
//! the same file system, in the same run.
//!
//! Run with `cargo run --profile ci -p benches --bin hydration` once the workspace is built with that profile; `qemu-img`
//! and `restic` must be installed (Debian packages qemu-utils and restic). `FARSHORE_HYDRATION_MIB` is the size of the
//! data, 1024 unless it says otherwise: a third each of table pages, bytes that do not compress, and holes. Files lie
//! below TMPDIR.
//!
//! Then how many GETs a restore takes ([`gets`]), and how fast a served point answers random reads ([`served`]). Each section can
//! be had alone: behind `--`, name `restore`, `gets` or `served`.
//!
//! All read what a warm page cache holds and all end with `sync -f`. Farshore's figures are of whole processes that open
//! a sealed store with the vault key. It is shown with its read-back, which reads everything once more from the medium and which the
//! others do not have, and without. qemu-img reads a qcow2 image that is compressed and not encrypted.

mod gets;
mod served;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use benches::{random, table_pages};

/// Clock ticks of /proc a second, on every Linux that there is.
const TICKS: f64 = 100.0;

/// Runs of which the fastest counts.
const RUNS: usize = 2;

/// How long everything may take to be stored.
const PATIENCE: Duration = Duration::from_secs(600);

struct Bench {
    dir: PathBuf,
    farshore: PathBuf,
    bytes: u64,
}

fn main() -> Result<()> {
    let mib: u64 = std::env::var("FARSHORE_HYDRATION_MIB").map_or(Ok(1024), |text| text.parse())?;
    let farshore = std::env::current_exe()?.with_file_name("farshore");
    ensure!(farshore.is_file(), "{} is not there: build the workspace with this profile first", farshore.display());
    let dir = tempfile::Builder::new().prefix("farshore-hydration-").tempdir()?;
    let bench = Bench { dir: dir.path().to_owned(), farshore, bytes: mib << 20 };
    bench.make_source()?;
    bench.replicate()?;
    // Sections by name, all of them without one.
    let sections: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |section: &str| sections.is_empty() || sections.iter().any(|one| one == section);
    if wanted("restore") {
        restored(&bench, mib)?;
    }
    if wanted("gets") {
        gets::report(&bench)?;
    }
    if wanted("served") {
        served::report(&bench)?;
    }
    Ok(())
}

/// Restores, beside what others do.
fn restored(bench: &Bench, mib: u64) -> Result<()> {
    bench.run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "source", "image"],
    )?;
    bench.run("restic", &["-q", "init"])?;
    bench.run("restic", &["-q", "backup", "source"])?;
    println!("{mib} MiB, a third of it holes; best of {RUNS} runs; MB are 10^6 bytes of the disk");
    println!("{:<36}{:>8}{:>12}{:>14}", "", "MB/s", "CPU-s/GB", "stored MiB");
    let restore =
        ["--config", "site/farshore.toml", "restore", "db", "--at", "latest", "--format", "raw", "--to", "out"];
    let unread = [&restore[..], &["--no-verify"]].concat();
    let own = bench.farshore.to_string_lossy().into_owned();
    let raw = ["convert", "-f", "raw", "-O", "raw", "source", "out"];
    bench.report("farshore restore", &own, &restore, "site/store", "out/db-root.raw")?;
    bench.report("farshore restore --no-verify", &own, &unread, "site/store", "out/db-root.raw")?;
    bench.report(
        "qemu-img convert, zstd qcow2 to raw",
        "qemu-img",
        &["convert", "-O", "raw", "image", "out"],
        "image",
        "out",
    )?;
    bench.report("qemu-img convert, raw to raw", "qemu-img", &raw, "source", "out")?;
    let restic = ["-q", "restore", "latest", "--target", "out"];
    bench.report("restic restore", "restic", &restic, "repo", "out/source")
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn make_source(&self) -> Result<()> {
        const PART: usize = 4 << 20;
        let mut file = File::create(self.path("source"))?;
        for part in 0..self.bytes / PART as u64 {
            match part % 3 {
                0 => file.write_all(&table_pages(PART, part))?,
                1 => file.write_all(&random(PART, part))?,
                _ => std::io::Seek::seek_relative(&mut file, PART as i64)?,
            }
        }
        Ok(file.set_len(self.bytes)?)
    }

    /// Runs a program in our directory; its output is part of the error.
    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        command.env("RESTIC_REPOSITORY", "repo").env("RESTIC_PASSWORD", "bench").env("RESTIC_CACHE_DIR", "cache");
        let out = command.output().with_context(|| format!("cannot run {program}: install it"))?;
        if !out.status.success() {
            bail!("{program} {args:?} failed: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Brings the source into a store: a site of its own, until everything is stored and in the manifest.
    fn replicate(&self) -> Result<()> {
        let farshore = self.farshore.to_string_lossy();
        self.run(&farshore, &["init", "site"])?;
        let at = |name: &str| self.path(name).display().to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = format!(
            "[site]\nname = \"bench\"\ndata_dir = \"{}\"\n[store]\ncache = \"file://{}\"\n[process_server]\n\
             listen = \"127.0.0.1:{port}\"\n[[machine]]\nname = \"db\"\nprocess_server = [\"127.0.0.1:{port}\"]\n\
             [[machine.disk]]\nname = \"root\"\nsource = \"{}\"\nlisten = \"unix:{}\"\n",
            at("site/data"),
            at("site/store"),
            at("source"),
            at("root.sock")
        );
        std::fs::write(self.path("site/farshore.toml"), config)?;
        let log = File::create(self.path("up.log"))?;
        let mut up = Command::new(&self.farshore);
        up.args(["--config", "site/farshore.toml", "up"]).current_dir(&self.dir).stdin(Stdio::null());
        let mut up = up.stdout(log.try_clone()?).stderr(log).spawn()?;
        let stored = self.wait_stored();
        up.kill()?;
        up.wait()?;
        stored.with_context(|| std::fs::read_to_string(self.path("up.log")).unwrap_or_default())
    }

    fn wait_stored(&self) -> Result<()> {
        let farshore = self.farshore.to_string_lossy();
        let begun = Instant::now();
        loop {
            match self.run(&farshore, &["--config", "site/farshore.toml", "mark", "db", "--label", "bench"]) {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::park_timeout(Duration::from_millis(200)),
            }
        }
    }

    /// One line of the table. The result is compared with the source each time.
    fn report(&self, what: &str, program: &str, args: &[&str], stored: &str, result: &str) -> Result<()> {
        let (mut wall, mut cpu) = (f64::MAX, f64::MAX);
        for _ in 0..RUNS {
            let out = self.path("out");
            if out.is_dir() {
                std::fs::remove_dir_all(&out)?;
            } else if out.exists() {
                std::fs::remove_file(&out)?;
            }
            let (begun, cpu_begun) = (Instant::now(), children_cpu()?);
            self.run(program, args)?;
            let used = children_cpu()? - cpu_begun;
            self.run("sync", &["-f", "."])?;
            wall = wall.min(begun.elapsed().as_secs_f64());
            cpu = cpu.min(used);
            self.run("cmp", &["source", result])?;
        }
        let (mb, stored) = (self.bytes as f64 / 1e6, bytes_below(&self.path(stored))? >> 20);
        println!("{what:<36}{:>8.0}{:>12.2}{stored:>14}", mb / wall, cpu / (mb / 1e3));
        Ok(())
    }
}

/// CPU seconds of all children that were waited for.
fn children_cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("/proc/self/stat has a name in parentheses")?;
    let ticks = |n: usize| fields.split(' ').nth(n).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = ticks(13).zip(ticks(14)).context("/proc/self/stat has times of children")?;
    Ok((user + system) as f64 / TICKS)
}

/// Bytes on the medium of a file or of everything below a directory.
fn bytes_below(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(path)?;
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            bytes += bytes_below(&entry?.path())?;
        }
    }
    Ok(bytes)
}
