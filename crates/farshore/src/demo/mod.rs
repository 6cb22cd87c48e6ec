//! `farshore demo`: a disaster from beginning to end, judged by an oracle that trusts only the client's own notes.
//!
//! - [`stamps`]: blocks that say what they are;
//! - [`workload`]: concurrent writers over NBD that note what they asked for and when they were answered;
//! - [`oracle`]: whether a recovered image is a prefix of those notes;
//! - [`children`]: the roles as processes of their own, so that they can really be killed;
//! - [`story`]: the plot and the figures; [`recovery`]: the positions brought back and judged.
//!
//! The first three know nothing of Farshore and serve the end-to-end tests too.

pub mod oracle;
pub mod stamps;
pub mod workload;

mod children;
mod evidence;
mod recovery;
pub mod story;

use anyhow::Context;

use crate::cli::DemoArgs;
use crate::output::Output;

/// `farshore demo`: returns whether everything was proved. A temporary directory is kept when it was not.
pub async fn run(args: &DemoArgs, output: Output) -> anyhow::Result<bool> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let (dir, temporary) = match &args.dir {
        Some(dir) => (dir.clone(), None),
        None => {
            let made = tempfile::Builder::new().prefix("farshore-demo-").tempdir();
            let made = made.context("cannot make a temporary directory: give one with --dir DIR")?;
            (made.path().to_owned(), Some(made))
        }
    };
    let (report, outcome) = story::play(&dir, exe, output).await?;
    if output.json() {
        output.print(&serde_json::to_value(&report)?, String::new);
    }
    let proved = outcome.is_ok() && report.verdict == "proved";
    if !proved && let Some(temporary) = temporary {
        let _kept_as_dir = temporary.keep();
    }
    if !proved || args.dir.is_some() {
        output.say(&format!("Everything is kept in {}.", dir.display()));
    }
    outcome.with_context(|| format!("the demo ended early; its logs are in {}", dir.join("logs").display()))?;
    Ok(proved)
}
