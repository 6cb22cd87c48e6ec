//! What it takes to open a point and read its first byte: GETs, bytes, time and memory, for disks of 2 GiB, 200 GiB and
//! 4 TiB, the oldest point and the newest.
//!
//! Run with `cargo run --profile ci -p benches --bin opening` once the workspace is built with that profile. It makes histories of thirty
//! days of scattered writes, in real segments, taken in by a real applier that makes points and maps. The disks are
//! sparse, as the histories are, so their size is a number. Stores are directories below TMPDIR. Each point is
//! opened by a process of its own, so that its peak of memory is that of the opening alone; the kernel has the store's
//! files in its cache. `FARSHORE_OPENING_SEGMENTS` is the number of segments in a history, of 512 records each: unless it says
//! otherwise as many as fill 64 leaves, which are merged into one map, and one more. Then both points lie in a full leaf, and
//! GETs must be equal and bytes within a fifth.
//!
//! Where QEMU and a kernel are installed, the disks of 2 GiB and 200 GiB are then served and a kernel is started over them
//! ([`boot`]); `FARSHORE_OPENING_BOOT=0` leaves that out.

mod boot;
mod history;

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use applier::recover::{History, LoadOptions};
use format::keys::{Keys, VaultKey};
use format::map::FANOUT;
use model::{Extent, Selector, Seq};
use store::{CountingStore, Store};
use tempfile::TempDir;

use boot::Kernel;
use history::Ends;

/// Most memory that an opening may take, whatever the disk's size.
const RSS_KIB_MAX: u64 = 256 << 10;

/// Segments of a history: a map of the second level and one leaf.
const SEGMENTS: u64 = ((FANOUT * FANOUT + 1) * history::LEAF) as u64;

/// Disks that a kernel is started over.
const BOOTED: [&str; 2] = ["2 GiB", "200 GiB"];

const SIZES: [(&str, u64); 3] = [("2 GiB", 2 << 30), ("200 GiB", 200 << 30), ("4 TiB", 4 << 40)];

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => runtime.block_on(table()),
        [dir, at] => runtime.block_on(open(Path::new(dir), at)),
        _ => anyhow::bail!("usage: opening"),
    }
}

fn vault_key() -> VaultKey {
    VaultKey::from_bytes([7; 32].into())
}

/// The vault of all these stores: nothing in them is worth a secret.
fn keys() -> Arc<Keys> {
    Arc::new(Keys::new(&vault_key()))
}

fn store_of(dir: &Path) -> Result<Store> {
    Ok(Store::open(&format!("file://{}", dir.display()))?)
}

async fn table() -> Result<()> {
    let asked = std::env::var("FARSHORE_OPENING_SEGMENTS").ok().map(|text| text.parse()).transpose()?;
    let segments = asked.unwrap_or(SEGMENTS);
    println!("{segments} segments of {} records over 30 days, {} to a leaf", history::RECORDS, history::LEAF);
    println!(
        "{:<10}{:<8}{:>12}{:>8}{:>12}{:>10}{:>12}  GETs by folder",
        "disk", "point", "position", "GETs", "bytes", "ms", "peak MiB"
    );
    let mut stores = Vec::new();
    for (name, size) in SIZES {
        let dir = tempfile::Builder::new().prefix("farshore-opening-").tempdir()?;
        let points = history::make(&store_of(dir.path())?, &keys(), size, segments).await?;
        let [oldest, newest] = [("oldest", points.oldest), ("newest", points.newest)].map(|(age, at)| {
            let opened = opened(dir.path(), at)?;
            println!("{name:<10}{age:<8}{opened}");
            ensure!(opened.kib < RSS_KIB_MAX, "{} KiB of memory", opened.kib);
            Ok(opened)
        });
        let (oldest, newest) = (oldest?, newest?);
        if asked.is_none() {
            ensure!(oldest.gets == newest.gets, "GETs depend on the age of the point");
            ensure!(oldest.bytes.abs_diff(newest.bytes) * 5 <= oldest.bytes.min(newest.bytes), "bytes depend on it");
        }
        if BOOTED.contains(&name) {
            stores.push((name, size, dir, points));
        }
    }
    match std::env::var("FARSHORE_OPENING_BOOT").as_deref() {
        Ok("0") => Ok(()),
        _ => booted(&stores),
    }
}

/// Prints how long a kernel takes to its prompt.
fn booted(stores: &[(&str, u64, TempDir, Ends)]) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("farshore-kernel-").tempdir()?;
    let kernel = match Kernel::find(dir.path())? {
        Ok(kernel) => kernel,
        Err(missing) => {
            println!("no kernel is started: {missing}");
            return Ok(());
        }
    };
    let farshore = std::env::current_exe()?.with_file_name("farshore");
    ensure!(farshore.is_file(), "{} is not there: build the workspace with this profile first", farshore.display());
    println!("{:<10}{:<8}{:>24}", "disk", "point", "seconds to the prompt");
    for (name, size, store, points) in stores {
        let key = vault_key().to_text();
        for (age, at) in [("oldest", points.oldest), ("newest", points.newest)] {
            let took = kernel.over_served(&farshore, store.path(), &key, &format!("seq:{at}"), history::FIRST)?;
            println!("{name:<10}{age:<8}{:>24.1}", took.as_secs_f64());
        }
        println!("{name:<10}{:<8}{:>24.1}", "raw", kernel.over_file(*size, history::FIRST)?.as_secs_f64());
    }
    Ok(())
}

/// What it took to open a position and read the first block.
struct Opened {
    at: Seq,
    gets: u64,
    bytes: u64,
    micros: u64,
    kib: u64,
    /// GETs by folder.
    folders: String,
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, gets, bytes, micros, kib, folders } = self;
        let (ms, mib) = (*micros as f64 / 1e3, kib >> 10);
        write!(f, "{:>12}{gets:>8}{bytes:>12}{ms:>10.1}{mib:>12}  {folders}", at.to_string())
    }
}

/// Opens a position in a process of its own.
fn opened(dir: &Path, at: Seq) -> Result<Opened> {
    let out = Command::new(std::env::current_exe()?).arg(dir).arg(format!("seq:{at}")).output()?;
    let text = String::from_utf8(out.stdout)?;
    ensure!(out.status.success(), "opening {at}: {}", String::from_utf8_lossy(&out.stderr));
    let (numbers, folders) = text.trim().split_once(';').context("numbers and folders")?;
    let fields: Vec<u64> = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [gets, bytes, micros, kib] = fields[..] else { anyhow::bail!("{text:?} is not four numbers") };
    Ok(Opened { at, gets, bytes, micros, kib, folders: folders.to_owned() })
}

/// Opens one position, reads its first block, and prints GETs, bytes, microseconds and KiB, and GETs by folder.
async fn open(dir: &Path, at: &str) -> Result<()> {
    let counting = CountingStore::new(store_of(dir)?.object_store().clone());
    let store = Store::from_object_store(Arc::new(counting.clone()));
    let begun = Instant::now();
    let options = LoadOptions { settle: Duration::ZERO, ..LoadOptions::default() };
    let loaded = History::load(&store, keys(), &history::machine(), options).await?;
    let position = loaded.resolve(&at.parse::<Selector>()?, None).await?;
    let disk = loaded.open(&position).await?.disk(&history::disk())?;
    let first = disk.read(Extent::new(0, 4096)?).await?;
    let took = begun.elapsed();
    ensure!(first[..] == [history::FIRST; 4096], "the first block is not what was written");
    let (gets, bytes) = counting.take();
    let folders = counting.take_folders().into_iter().map(|(folder, gets)| format!("{folder} {gets}"));
    println!("{gets} {bytes} {} {};{}", took.as_micros(), peak_kib()?, folders.collect::<Vec<_>>().join(", "));
    Ok(())
}

/// The most memory this process has had.
fn peak_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("/proc/self/status has VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
