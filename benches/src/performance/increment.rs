//! What is stored of the first image and of what changed in it later. One round: bytes hardly differ between rounds.
//!
//! Farshore gets the changes as it gets everything: as writes on the disk it protects, here in order of offset. The others
//! read the later image as a whole. What Farshore gives back is compared with the later image.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::Bench;
use crate::inputs::different;
use crate::measure::bytes_below;
use crate::peers::PEERS;
use crate::report::{Report, Table, Target, shown};
use crate::site::{DISK, MACHINE, Site};

/// Runs the section.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut table = Table::new(&["", "full MB", "increment MB", "of the bytes changed"]);
    let changed = bench.inputs.changed as f64;
    let mut line = |name: &str, (full, increment): (u64, u64)| {
        let mb = |bytes: u64| shown(bytes as f64 / 1e6);
        table.row([name.to_owned(), mb(full), mb(increment), shown(increment as f64 / changed)]);
    };
    let ours = farshore(bench)?;
    line("Farshore", ours);
    for peer in PEERS.iter().filter(|peer| peer.increments && peer.installed()) {
        let dir = peer.prepare(bench)?;
        let image = dir.join("image");
        let mut stored = [0; 2];
        for (now, bytes) in [&bench.inputs.image, &bench.inputs.later].into_iter().zip(&mut stored) {
            std::fs::copy(now, &image)?;
            *bytes = peer.store(&dir, &image).with_context(|| peer.name.to_owned())?.stored;
        }
        line(peer.name, (stored[0], stored[1] - stored[0]));
        std::fs::remove_dir_all(&dir)?;
    }
    let what = "stored bytes of the increment, of the bytes changed";
    report.claim(what, Target::AtMost(0.40), ours.1 as f64 / changed, "");
    let text = format!(
        "A tenth of the database's 4 KiB blocks changed at random (half of them by 64 bytes), and new files: {:.0} MB of blocks \
         that differ. What Farshore restored afterwards equals the later image.",
        changed / 1e6
    );
    report.section("Stored bytes", &text, &table);
    Ok(())
}

/// Bytes of the full image in the store, and of the increment.
fn farshore(bench: &Bench) -> Result<(u64, u64)> {
    let source = bench.dir.join("protected");
    std::fs::copy(&bench.inputs.image, &source)?;
    let site = Site::make(bench, "increment", &source)?;
    let gateway = site.start_process_server()?;
    let mut agent = site.start(&["agent", MACHINE])?;
    site.wait_stored(&mut agent)?;
    let full = bytes_below(&site.path("store"))?;
    bench.runtime.block_on(write_changes(bench, &site))?;
    site.wait_stored(&mut agent)?;
    let increment = bytes_below(&site.path("store"))? - full;
    agent.stop()?;
    gateway.stop()?;
    let out = site.path("out");
    site.run(&["restore", MACHINE, "--at", "latest", "--to", &out.to_string_lossy(), "--format", "raw"])?;
    let restored = out.join(format!("{MACHINE}-{DISK}.raw"));
    let same = Command::new("cmp").arg(&bench.inputs.later).arg(&restored).status()?;
    ensure!(same.success(), "what was restored differs from the later image");
    std::fs::remove_dir_all(&site.dir)?;
    std::fs::remove_file(&source)?;
    Ok((full, increment))
}

/// Writes what differs through the export.
async fn write_changes(bench: &Bench, site: &Site) -> Result<()> {
    let later = File::open(&bench.inputs.later)?;
    let client = nbd::Client::connect(&site.export(), DISK).await?;
    for (offset, len) in different(&bench.inputs.image, &bench.inputs.later)? {
        let mut data = vec![0; len as usize];
        later.read_exact_at(&mut data, offset)?;
        client.write(offset, Bytes::from(data), false).await?;
    }
    client.flush().await?;
    Ok(client.disconnect().await?)
}
