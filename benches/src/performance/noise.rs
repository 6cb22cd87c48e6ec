//! Bytes that do not compress: nothing is left to do but to carry, hash, seal and write them.

use anyhow::Result;

use crate::Bench;
use crate::full::replicate;
use crate::limits;
use crate::measure::rounds;
use crate::report::{Report, Target, sides};

/// Rounds of their own, with the two limits that bound it.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let data = limits::sample(bench)?;
    let mut peaks = Vec::new();
    let mut runners = limits::runners(bench, &data).split_off(limits::TLS);
    // The program's store writes through the page cache: the way past it is no bound of its.
    runners.truncate(2);
    runners.insert(
        0,
        (
            "Farshore".to_owned(),
            Box::new(|| {
                let one = replicate(bench, &bench.inputs.noise)?;
                peaks.push((one.gateway_peak, one.agent_peak));
                Ok(one.cost)
            }),
        ),
    );
    let done = rounds(bench.runs, runners)?;
    peaks.iter().for_each(|(gateway, agent)| report.saw_peaks(*gateway, *agent));
    // TLS carries an image, the disk takes half of one, as Farshore does.
    let half = bench.inputs.bytes as f64 / 2e6;
    let speeds = [half / done[0].wall().median, 2.0 * half / done[1].wall().median, half / done[2].wall().median];
    let bound = speeds[1].min(speeds[2]);
    let share = speeds[0] / bound * 100.0;
    let what = "incompressible data: speed, of the slower of TLS over loopback and the disk";
    report.claim(what, Target::AtLeast(70.0), share, " %");
    let text = format!(
        "As above, of {half:.0} MB that do not compress. In the same rounds TLS over loopback carried {:.0} MB/s with nothing \
         behind it, and the disk took {:.0} MB/s with one fsync at the end; the program syncs every object.",
        speeds[1], speeds[2]
    );
    report.section("Incompressible data", &text, &sides(&done[..1], bench.inputs.bytes / 2));
    Ok(())
}
