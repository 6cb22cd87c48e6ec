//! What it takes to open a point and read its first byte: GETs, bytes, time and memory, for disks of 2 GiB, 200 GiB and
//! 4 TiB, the oldest point and the newest.
//!
//! Run with `cargo run --profile ci -p benches --bin opening`; takes some minutes, most of them to make the histories: thirty
//! days of scattered writes each, in real segments, taken in by a real applier that makes points and maps. The disks are
//! sparse, as the histories are, so their size is a number. Stores are directories below TMPDIR. Each point is
//! opened by a process of its own, so that its peak of memory is that of the opening alone; the kernel has the store's
//! files in its cache. `FARSHORE_OPENING_SEGMENTS` is the number of segments in a history, 8640 unless it says otherwise:
//! one for each five minutes, of 512 records.

mod history;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use applier::recover::{History, LoadOptions};
use format::keys::{Keys, VaultKey};
use model::{Extent, Selector};
use store::{CountingStore, Store};

/// Most memory that an opening may take, whatever the disk's size.
const RSS_KIB_MAX: u64 = 256 << 10;

const SIZES: [(&str, u64); 3] = [("2 GiB", 2 << 30), ("200 GiB", 200 << 30), ("4 TiB", 4 << 40)];

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => runtime.block_on(table()),
        [dir, at] => runtime.block_on(open(Path::new(dir), at)),
        _ => anyhow::bail!("usage: opening"),
    }
}

/// The vault of all these stores: nothing in them is worth a secret.
fn keys() -> Arc<Keys> {
    Arc::new(Keys::new(&VaultKey::from_bytes([7; 32].into())))
}

fn store_of(dir: &Path) -> Result<Store> {
    Ok(Store::open(&format!("file://{}", dir.display()))?)
}

async fn table() -> Result<()> {
    let segments = std::env::var("FARSHORE_OPENING_SEGMENTS").map_or(Ok(8640), |text| text.parse())?;
    println!("{segments} segments of {} records over 30 days", history::RECORDS);
    println!(
        "{:<10}{:<8}{:>12}{:>8}{:>12}{:>10}{:>12}",
        "disk", "point", "position", "GETs", "bytes", "ms", "peak MiB"
    );
    for (name, size) in SIZES {
        let dir = tempfile::Builder::new().prefix("farshore-opening-").tempdir()?;
        let points = history::make(&store_of(dir.path())?, &keys(), size, segments).await?;
        for (age, at) in [("oldest", points.oldest), ("newest", points.newest)] {
            let out = Command::new(std::env::current_exe()?).arg(dir.path()).arg(format!("seq:{at}")).output()?;
            let text = String::from_utf8(out.stdout)?;
            ensure!(out.status.success(), "opening {at}: {}", String::from_utf8_lossy(&out.stderr));
            let fields: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            let [gets, bytes, micros, kib] = fields[..] else { anyhow::bail!("{text:?} is not four numbers") };
            let (ms, mib) = (micros as f64 / 1e3, kib >> 10);
            println!("{name:<10}{age:<8}{:>12}{gets:>8}{bytes:>12}{ms:>10.1}{mib:>12}", at.to_string());
            ensure!(kib < RSS_KIB_MAX, "{kib} KiB of memory");
        }
    }
    Ok(())
}

/// Opens one position, reads its first block, and prints GETs, bytes, microseconds and KiB.
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
    println!("{gets} {bytes} {} {}", took.as_micros(), peak_kib()?);
    Ok(())
}

/// The most memory this process has had.
fn peak_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("/proc/self/status has VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
