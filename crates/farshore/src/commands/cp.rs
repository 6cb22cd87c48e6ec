//! `farshore cp`: a file, a link or a tree out of a position.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use filesystem::{InodeKind, Volume};
use serde_json::{Value, json};

use super::{ls, point};
use crate::cli::{CpArgs, Global};
use crate::failure::usage;
use crate::files::{Copier, CopyReport, Found, Place, Target, on_its_own_thread, volume_of};
use crate::output::{Output, bytes_text};
use crate::roles::until_stopped;

/// What is copied where.
struct Job {
    place: Place,
    volume: Arc<dyn Volume>,
    from: PathBuf,
    to: PathBuf,
    recursive: bool,
    force: bool,
    stopped: Arc<AtomicBool>,
}

/// Copies; on SIGINT or SIGTERM it removes what it has copied.
pub async fn run(global: &Global, args: &CpArgs, output: Output) -> anyhow::Result<()> {
    let stop = until_stopped()?;
    let reader = point::open_cached(global, &args.machine, &args.at, None).await?;
    let place = ls::place(&reader, args.disk.as_ref(), args.partition)?;
    let stopped = Arc::new(AtomicBool::new(false));
    let job = Job {
        volume: volume_of(reader.disk(&place.disk)?),
        place: place.clone(),
        from: args.from.clone(),
        to: args.to.clone(),
        recursive: args.recursive,
        force: args.force,
        stopped: stopped.clone(),
    };
    let work = on_its_own_thread(move || copy(job));
    tokio::pin!(work);
    let (partition, path, report) = tokio::select! {
        biased;
        done = &mut work => done?,
        () = stop => {
            // Relaxed, as its partner in `Copier::go_on`.
            stopped.store(true, Ordering::Relaxed);
            work.await?
        }
    };
    let skipped = report.skipped.iter().map(|(path, kind)| json!({ "path": path.to_string_lossy(), "type": kind }));
    let object = json!({
        "machine": args.machine,
        "position": point::position(reader.at()),
        "disk": place.disk,
        "partition": partition,
        "path": path.display().to_string(),
        "files": report.files,
        "directories": report.directories,
        "links": report.links,
        "bytes_written": report.bytes_written,
        "skipped_count": report.skipped_count,
        "skipped": skipped.collect::<Vec<Value>>(),
    });
    output.print(&object, || text(&path, &report));
    Ok(())
}

fn copy(job: Job) -> anyhow::Result<(Option<u32>, PathBuf, CopyReport)> {
    let Found { partition, fs } = job.place.open(job.volume)?;
    let from = job.from.as_os_str().as_bytes();
    let shown = from.escape_ascii();
    // A link is copied as a link, unless a slash behind it says that its target is meant.
    let inode = fs.resolve(from, from.ends_with(b"/"))?;
    match inode.kind {
        InodeKind::Directory if !job.recursive => {
            return Err(usage(format!("{shown} is a directory: copy it with --recursive")));
        }
        InodeKind::File | InodeKind::Directory | InodeKind::Link => {}
        kind => return Err(usage(format!("{shown} is a {}, which is not copied", kind.name()))),
    }
    let target = Target::new(&job.to, job.from.file_name(), job.force)?;
    if inode.kind == InodeKind::Directory && target.replaces() {
        return Err(usage(format!("{} is there, and a directory replaces nothing", target.path().display())));
    }
    let partial = target.partial();
    let report = Copier::new(&fs, &partial, job.stopped).copy(inode)?;
    let path = target.publish(&report.restricted)?;
    Ok((partition, path, report))
}

fn text(path: &Path, report: &CopyReport) -> String {
    let mut text = format!("Copied to {}: {} files", path.display(), report.files);
    for (count, what) in [(report.directories, "directories"), (report.links, "links")] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text += &format!(", {} written\n", bytes_text(report.bytes_written));
    for (path, kind) in &report.skipped {
        text += &format!("  skipped {:?}: a {kind}\n", path);
    }
    let unnamed = report.skipped_count - report.skipped.len() as u64;
    if unnamed > 0 {
        text += &format!("  skipped {unnamed} more\n");
    }
    text
}
