//! What is stored of the first image, of scattered pages that changed in it, and of new files. One round: bytes hardly differ between rounds.
//!
//! Farshore gets the changes as it gets everything: as writes on the disk it protects, here in order of offset. The others
//! read the later image as a whole. What Farshore gives back is compared with the later image.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::Bench;
use crate::inputs::{Inputs, different};
use crate::measure::bytes_below;
use crate::peers::PEERS;
use crate::report::{Report, Table, Target, shown};
use crate::site::{DISK, MACHINE, Site};

/// Bytes stored of the full image, of the scattered pages, and of the new files.
type Stored = [u64; 3];

/// Runs the section.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let heads = ["", "full MB", "scattered pages MB", "of the bytes changed", "new files MB", "of the bytes changed"];
    let mut table = Table::new(&heads);
    let of_changed = |stored: &Stored, step: usize| stored[step] as f64 / bench.inputs.changed[step - 1] as f64;
    let mut line = |name: &str, stored: &Stored| {
        let [full, pages, files] = stored.map(|bytes| shown(bytes as f64 / 1e6));
        let [of_pages, of_files] = [1, 2].map(|step| shown(of_changed(stored, step)));
        table.row([name.to_owned(), full, pages, of_pages, files, of_files]);
    };
    let ours = farshore(bench)?;
    line("Farshore", &ours);
    for peer in PEERS.iter().filter(|peer| peer.increments && peer.installed()) {
        let dir = peer.prepare(bench)?;
        let image = dir.join("image");
        let (mut before, mut stored) = (0, [0; 3]);
        for (now, bytes) in [&bench.inputs.image, &bench.inputs.paged, &bench.inputs.later].into_iter().zip(&mut stored)
        {
            std::fs::copy(now, &image)?;
            let all = peer.store(&dir, &image).with_context(|| peer.name.to_owned())?.stored;
            *bytes = all - before;
            before = all;
        }
        line(peer.name, &stored);
        std::fs::remove_dir_all(&dir)?;
    }
    let what = "stored bytes of scattered 4 KiB changes, of the bytes changed";
    report.claim(what, Target::AtMost(0.40), of_changed(&ours, 1), "");
    let [pages, files] = bench.inputs.changed.map(|bytes| shown(bytes as f64 / 1e6));
    let text = format!(
        "First a tenth of the database's 4 KiB blocks changed at random (half of them by 64 bytes): {pages} MB of blocks that \
         differ. Then new files: {files} MB. What Farshore restored afterwards equals the last image."
    );
    report.section("Stored bytes", &text, &table);
    Ok(())
}

/// What Farshore stores.
fn farshore(bench: &Bench) -> Result<Stored> {
    let source = bench.dir.join("protected");
    std::fs::copy(&bench.inputs.image, &source)?;
    let site = Site::make(bench, "increment", &source)?;
    let gateway = site.start_process_server()?;
    let mut agent = site.start(&["agent", MACHINE])?;
    site.wait_stored(&mut agent)?;
    let Inputs { image, paged, later, .. } = &bench.inputs;
    let mut all = vec![bytes_below(&site.path("store"))?];
    for (before, after) in [(image, paged), (paged, later)] {
        bench.runtime.block_on(write_changes(&site, before, after))?;
        site.wait_stored(&mut agent)?;
        all.push(bytes_below(&site.path("store"))?);
    }
    agent.stop()?;
    gateway.stop()?;
    let out = site.path("out");
    site.run(&["restore", MACHINE, "--at", "latest", "--to", &out.to_string_lossy(), "--format", "raw"])?;
    let restored = out.join(format!("{MACHINE}-{DISK}.raw"));
    let same = Command::new("cmp").arg(&bench.inputs.later).arg(&restored).status()?;
    ensure!(same.success(), "what was restored differs from the later image");
    std::fs::remove_dir_all(&site.dir)?;
    std::fs::remove_file(&source)?;
    Ok([all[0], all[1] - all[0], all[2] - all[1]])
}

/// Writes what differs through the export.
async fn write_changes(site: &Site, before: &Path, after: &Path) -> Result<()> {
    let later = File::open(after)?;
    let client = nbd::Client::connect(&site.export(), DISK).await?;
    for (offset, len) in different(before, after)? {
        let mut data = vec![0; len as usize];
        later.read_exact_at(&mut data, offset)?;
        client.write(offset, Bytes::from(data), false).await?;
    }
    client.flush().await?;
    Ok(client.disconnect().await?)
}
