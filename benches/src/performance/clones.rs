//! What each of ten clones of one template adds to the store, when machines share what drains bring in (`share_entries`).
//!
//! One process server; one machine after the other is replicated from a disk that holds the image. One round: bytes hardly
//! differ between rounds.

use anyhow::Result;

use crate::Bench;
use crate::measure::bytes_below;
use crate::report::{Report, Table, Target, shown};
use crate::site::Site;

/// Machines.
const CLONES: usize = 10;

/// More chunks than an image of the usual size has.
const SHARE: &str = "share_entries = 1000000\n";

/// Runs the section.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let source = bench.dir.join("protected");
    std::fs::copy(&bench.inputs.image, &source)?;
    let site = Site::make_with(bench, "clones", &source, SHARE)?;
    let names: Vec<String> = (1..=CLONES).map(|n| format!("clone{n}")).collect();
    site.add_machines(&names, &source)?;
    let gateway = site.start_process_server()?;
    let mut added = Vec::new();
    for name in &names {
        let before = bytes_below(&site.path("store"))?;
        let mut agent = site.start(&["agent", name])?;
        site.wait_stored_of(name, &mut agent)?;
        agent.stop()?;
        added.push((bytes_below(&site.path("store"))? - before) as f64);
    }
    gateway.stop()?;
    std::fs::remove_dir_all(&site.dir)?;
    std::fs::remove_file(&source)?;
    let (first, clones) = (added[0], &added[1..]);
    let most = clones.iter().copied().fold(0.0, f64::max);
    report.claim(
        "a clone of a template: stored bytes, of the first's",
        Target::AtMost(3.0),
        most / first * 100.0,
        " %",
    );
    let mut table = Table::new(&["", "added MB", "of the first's"]);
    table.row(["the first".to_owned(), shown(first / 1e6), String::new()]);
    let mean = clones.iter().sum::<f64>() / clones.len() as f64;
    for (what, bytes) in [("a clone, mean of nine", mean), ("the clone that added most", most)] {
        table.row([what.to_owned(), shown(bytes / 1e6), format!("{} %", shown(bytes / first * 100.0))]);
    }
    let text = "Ten machines of one process server with `share_entries = 1000000`, each replicated from a disk that holds the \
                same image, one after the other.";
    report.section("Clones", text, &table);
    Ok(())
}
