//! Writes the map file while the agent runs: group commit of new bits, and now and then a lazy write of cleared ones.
//!
//! One task writes. Writers of cold regions pile up while one sync is in flight, and the next commit serves them all.
//! Clearing is never needed for safety, so cleared pages ride along with the next commit or wait for the tick. If the
//! file fails, the map is spoiled by every means left and the agent goes on with bits in memory.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{MissedTickBehavior, interval};

use super::layout::{DiskEntry, HEADER_SLOT_BYTES, Header, PAGE_BYTES, PAGES_OFFSET, encode_header, encode_page};
use super::state::Commit;
use crate::core::Core;
use crate::regions::Batch;
use crate::shared::Shared;
use crate::state_dir::StateFile;

/// How often cleared bits and the last `stored` head are written when nothing else is.
const LAZY_COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// Name of the map file.
pub(crate) const MAP_FILE: &str = "map";

/// The bytes of one commit.
struct Work {
    commit: Commit,
    /// Pages by number, each one sector.
    pages: BTreeMap<u64, Bytes>,
    header: Option<Header>,
}

/// Runs for the life of the agent.
pub(crate) async fn run(shared: &Shared) {
    let Some(file) = &shared.map_file else { return };
    let mut tick = interval(LAZY_COMMIT_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let lazy = tokio::select! {
            biased;
            () = shared.map_bell.notified() => false,
            _ = tick.tick() => true,
        };
        let _writing = shared.map_writer.lock().await;
        if shared.core().map.failed() || *shared.map_closed.borrow() {
            return;
        }
        if let Err(e) = commit_waiting(shared, file.as_ref(), lazy).await {
            fail(shared, &e).await;
            return;
        }
    }
}

async fn commit_waiting(shared: &Shared, file: &dyn StateFile, lazy: bool) -> io::Result<()> {
    loop {
        let work = {
            let mut core = shared.core();
            let waiting = core.disks.iter().any(|d| d.regions.pages_waiting().1);
            let cleared = core.disks.iter().any(|d| d.regions.pages_waiting().0);
            let raise = core.map.version_waits();
            if !waiting && !raise && !(lazy && (cleared || core.map.header_waits())) {
                return Ok(());
            }
            let with_header = lazy && core.map.header_waits();
            compose(shared, &mut core, waiting, with_header, false)
        };
        probe::failpoint!("agent-map-commit-before");
        write(file, &work).await?;
        probe::failpoint!("agent-map-commit-synced");
        finish(shared, work.commit);
    }
}

fn finish(shared: &Shared, commit: Commit) {
    {
        let mut core = shared.core();
        core.map.committed(commit);
        for disk in &mut core.disks {
            disk.regions.committed(commit.batch);
        }
    }
    shared.metrics.map_commits.increment(1);
    shared.committed.send_replace(commit.batch);
}

fn compose(shared: &Shared, core: &mut Core, sets_bits: bool, with_header: bool, clean: bool) -> Work {
    let commit = core.map.take(sets_bits, with_header);
    let mut pages = BTreeMap::new();
    let mut first_page = 0;
    for disk in &mut core.disks {
        for page in disk.regions.take_changed_pages() {
            let mut bytes = BytesMut::with_capacity(PAGE_BYTES);
            encode_page(first_page, page, commit.version, disk.regions.image(), &mut bytes);
            pages.insert(first_page + page, bytes.freeze());
        }
        first_page += entry(disk).pages();
    }
    let header = commit.header.then(|| header_of(shared, core, commit.version, clean));
    Work { commit, pages, header }
}

fn entry(disk: &crate::core::CoreDisk) -> DiskEntry {
    let (size, region_bytes) = (disk.regions.size(), disk.regions.region_bytes());
    DiskEntry { name: disk.name.clone(), size, region_bytes }
}

/// The header as it stands now. Its generation comes from the core, so that each is higher than the one before.
pub(crate) fn header_of(shared: &Shared, core: &mut Core, map_version: u64, clean: bool) -> Header {
    Header {
        generation: core.map.next_generation(),
        map_version,
        incarnation: core.sequencer.incarnation(),
        stored: core.stored,
        clean,
        machine: shared.config.machine.clone(),
        disks: core.disks.iter().map(entry).collect(),
    }
}

async fn write(file: &dyn StateFile, work: &Work) -> io::Result<()> {
    if let Some(header) = &work.header {
        write_header(file, header).await?;
    }
    let mut run: Option<(u64, BytesMut)> = None;
    for (number, page) in &work.pages {
        match &mut run {
            Some((first, bytes)) if *first + (bytes.len() / PAGE_BYTES) as u64 == *number => {
                bytes.extend_from_slice(page)
            }
            _ => {
                flush_run(file, run.take()).await?;
                run = Some((*number, BytesMut::from(&page[..])));
            }
        }
    }
    flush_run(file, run).await?;
    probe::failpoint!("agent-map-commit-written");
    file.sync().await
}

async fn flush_run(file: &dyn StateFile, run: Option<(u64, BytesMut)>) -> io::Result<()> {
    let Some((first, bytes)) = run else { return Ok(()) };
    file.write_at(PAGES_OFFSET + first * PAGE_BYTES as u64, bytes.freeze()).await
}

async fn write_header(file: &dyn StateFile, header: &Header) -> io::Result<()> {
    let slot = header.generation % 2;
    file.write_at(slot * HEADER_SLOT_BYTES as u64, encode_header(header)).await
}

async fn fail(shared: &Shared, error: &io::Error) {
    let now = shared.now();
    let mark_id = shared.random.bits();
    shared.core().map_failed(now, mark_id, &error.to_string());
    if let Some(dir) = &shared.state_dir
        && let Err(e) = dir.spoil(MAP_FILE, PAGES_OFFSET as usize).await
    {
        tracing::error!("the dirty map could not be spoiled either: {e}");
    }
    shared.committed.send_replace(Batch::MAX);
    shared.ring_all();
}

/// Makes the clean-stop marker durable. The caller holds the agent still: no write is in flight, the committer is no
/// more, and the core is clean. Pages first, and only when they are durable the header that says they are all clear.
pub(crate) async fn commit_clean_stop(shared: &Shared) -> io::Result<()> {
    let Some(file) = &shared.map_file else { return Err(io::Error::other("there is no dirty map")) };
    let pages = {
        let mut core = shared.core();
        if core.map.failed() {
            return Err(io::Error::other("the dirty map failed"));
        }
        compose(shared, &mut core, false, false, false)
    };
    probe::failpoint!("agent-marker-before");
    write(file.as_ref(), &pages).await?;
    probe::failpoint!("agent-marker-pages-durable");
    let marker = {
        let mut core = shared.core();
        compose(shared, &mut core, false, true, true)
    };
    write(file.as_ref(), &marker).await?;
    probe::failpoint!("agent-marker-durable");
    Ok(())
}
