//! How many GETs a disk takes: restored, where neighbouring frames come together, and read 64 KiB at a time, where each read
//! asks for itself.

use std::sync::Arc;

use anyhow::Result;
use applier::recover::{History, LoadOptions, PointReader, RestoreOptions, restore};
use disk::ImageFormat;
use format::keys::{Keys, VaultKey};
use model::{Extent, Selector};
use store::{CountingStore, Store};

use super::Bench;

/// What is asked for at a time.
const READ_BYTES: u64 = 64 << 10;

/// Prints the table. A GET is counted from the open point on: what opening takes is in the `opening` bench.
pub fn report(bench: &Bench) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let key = VaultKey::parse(&std::fs::read_to_string(bench.path("site/vault.key"))?)?;
        let keys = Arc::new(Keys::new(&key));
        let opened = Store::open(&format!("file://{}", bench.path("site/store").display()))?;
        let counting = CountingStore::new(opened.object_store().clone());
        let store = Store::from_object_store(Arc::new(counting.clone()));
        println!("{:<36}{:>8}{:>12}{:>14}", "", "GETs", "GETs/MiB", "read MiB");
        let data = {
            let point = open(&store, &keys).await?;
            counting.take();
            let options = RestoreOptions { format: ImageFormat::Raw, read_back: false, progress: None };
            let report = restore(&point, None, &bench.path("counted"), options).await?;
            std::fs::remove_dir_all(bench.path("counted"))?;
            let data = report.bytes_written;
            line("restore", counting.take(), data);
            data
        };
        let point = open(&store, &keys).await?;
        counting.take();
        for info in point.disks() {
            let disk = point.disk(&info.name)?;
            for part in Extent::new(0, info.size)?.split_at_multiples(READ_BYTES) {
                disk.read(part).await?;
            }
        }
        line("64 KiB at a time", counting.take(), data);
        Ok(())
    })
}

async fn open(store: &Store, keys: &Arc<Keys>) -> Result<PointReader> {
    let history = History::load(store, keys.clone(), &"db".parse()?, LoadOptions::default()).await?;
    Ok(history.open(&history.resolve(&Selector::Latest, None).await?).await?)
}

fn line(what: &str, (gets, bytes): (u64, u64), data: u64) {
    let mib = (1 << 20) as f64;
    println!("{what:<36}{gets:>8}{:>12.2}{:>14.0}", gets as f64 / (data as f64 / mib), bytes as f64 / mib);
}
