//! Prefix oracle over the whole stack: whatever dies or overflows, every position is a prefix of what clients saw.
//!
//! Concurrent writers with overlaps, trims, zeroes, flushes and FUA drive two disks over NBD and note issue and answer
//! of each operation. Meanwhile the process server is killed, the agent is killed, the queue overflows, or the source
//! itself refuses writes. Then positions spread over all valid ranges, and every mark, are restored by the shipped
//! command and judged. The judge gets the notes, the restored bytes, and the moments at which marks were asked for and
//! answered: a mark holds everything acknowledged before it was asked for and nothing issued after it was answered, and
//! a position between two marks lies between their bounds. It never gets anything that Farshore says of a position but
//! its number. Each test then damages its own images in every way a prefix can be missed, and the judge must refuse.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use farshore::demo::oracle::{self, Action, Bounds, History, Image, Operation, Tick, Violation};
use farshore::demo::stamps::{self, BLOCK_BYTES, Content, Stamp};
use farshore::demo::workload::{Notes, Plan, Workload};
use nbd::Client;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::harness::tools::{run, try_run};
use crate::harness::{PATIENCE, Proc, Seed, Site, SiteOptions, eventually};

/// The disks, by the index that stamps carry.
const DISKS: [&str; 2] = ["root", "data"];

/// Their sizes: small, so that writers meet and every position can be read in full.
const SIZES: [u64; 2] = [12 << 20, 6 << 20];

/// Positions by number in each test, besides its marks.
const POSITIONS: u64 = 16;

/// Lost writes tried on each image of a mark, and swaps on each image.
const CONTROLS_PER_IMAGE: usize = 3;

/// Writers at once.
const WRITERS: u64 = 12;

/// Operations a kill may leave unanswered: what each writer has in flight and a few it begins before it is told to stop.
/// More would blunt the judge, who must allow each of them either way.
const UNANSWERED_PER_KILL_MAX: usize = 40 * WRITERS as usize;

fn options() -> SiteOptions {
    let disks = DISKS.into_iter().zip(SIZES).collect();
    SiteOptions { machines: vec![("db", disks)], ..SiteOptions::default() }
}

/// A flush that the test made itself: everything acknowledged before it was issued is before everything issued after it
/// was answered.
#[derive(Debug, Clone, Copy)]
struct Flush {
    issued: Tick,
    answered: Tick,
}

/// A mark as the client saw it.
#[derive(Debug, Clone)]
struct Mark {
    id: String,
    seq: u64,
    asked: Tick,
    answered: Tick,
}

impl Mark {
    fn bounds(&self) -> Bounds {
        Bounds { after: Some(self.asked), before: Some(self.answered) }
    }
}

/// A position restored and found to be a prefix.
struct Judged {
    seq: u64,
    image: Image,
    bounds: Bounds,
    marked: bool,
}

/// The writers and everything they noted.
struct Load<'a> {
    site: &'a Site,
    runtime: Runtime,
    notes: Arc<Notes>,
    seed: Seed,
    pace: Duration,
    running: Option<Workload>,
    marks: Vec<Mark>,
    flushes: Vec<Flush>,
    acknowledged: u64,
    failures: u64,
}

impl<'a> Load<'a> {
    fn new(site: &'a Site, seed: u64, pace: Duration) -> Self {
        Load {
            site,
            runtime: Runtime::new().expect("runtime starts"),
            notes: Arc::new(Notes::default()),
            seed: Seed::from_environment(seed),
            pace,
            running: None,
            marks: Vec::new(),
            flushes: Vec::new(),
            acknowledged: 0,
            failures: 0,
        }
    }

    fn connect(&self, disk: usize) -> Client {
        let address = self.site.nbd("db", DISKS[disk]);
        eventually("a client connects", || {
            self.runtime.block_on(Client::connect(&address, DISKS[disk])).map_err(|e| e.to_string())
        })
    }

    fn start(&mut self) {
        let clients = Arc::new(vec![self.connect(0), self.connect(1)]);
        let plan = Plan { writers: WRITERS, seed: self.seed.next(), hot_blocks: 192, pace: self.pace };
        let _inside = self.runtime.enter();
        self.running = Some(Workload::start(self.notes.clone(), clients, &plan));
    }

    /// Lets the writers go on until so many more operations are acknowledged; the seed adds up to half as many again.
    fn run_on(&mut self, operations: u64) {
        let counts = self.running.as_ref().expect("writers run").counts.clone();
        let wanted = counts.operations.load(Ordering::Relaxed) + operations + self.seed.below(operations / 2 + 1);
        eventually("the writers go on", || match counts.operations.load(Ordering::Relaxed) {
            done if done >= wanted => Ok(()),
            done => Err(format!("{done} of {wanted} operations")),
        });
    }

    fn stop(&mut self) {
        let workload = self.running.take().expect("writers run");
        let counts = self.runtime.block_on(workload.stop());
        self.acknowledged += counts.operations.load(Ordering::Relaxed);
        self.failures += counts.failures.load(Ordering::Relaxed);
    }

    fn flush(&mut self) {
        let clients = [self.connect(0), self.connect(1)];
        let issued = self.notes.now();
        for client in &clients {
            self.runtime.block_on(client.flush()).expect("a flush of a sound source succeeds");
        }
        let answered = self.notes.now();
        self.flushes.push(Flush { issued, answered });
    }

    /// Asks once for a mark; the reason when it is refused.
    fn try_mark(&self, label: &str) -> Result<Mark, String> {
        let asked = self.notes.now();
        let ran = self.site.run(&["--json", "mark", "db", "--label", label]);
        let answered = self.notes.now();
        if ran.code != 0 {
            assert!(ran.stderr.contains("drain"), "a mark is refused for a drain only: {ran:?}");
            return Err(ran.stderr);
        }
        let answer: Value = serde_json::from_str(&ran.stdout).expect("mark prints one object");
        let id = answer["id"].as_str().expect("a mark has an id").to_owned();
        Ok(Mark { id, seq: answer["seq"].as_u64().expect("a mark has a seq"), asked, answered })
    }

    /// Asks for a mark until no drain is in its way.
    fn mark(&mut self, label: &str) {
        let mark = eventually("a mark is stored", || self.try_mark(label));
        self.marks.push(mark);
    }

    /// One write of one block, by its number in the notes.
    fn write_one(&mut self, disk: usize) -> usize {
        let client = self.connect(disk);
        let block = self.seed.below(SIZES[disk] / BLOCK_BYTES as u64);
        let number = self.notes.begin(disk as u32, block, 1, Action::Write).expect("nothing else is in flight");
        let data = stamps::payload(Stamp { disk: disk as u32, block, write: number }, 1);
        let written = self.runtime.block_on(client.write(block * BLOCK_BYTES as u64, Bytes::from(data), false));
        written.expect("a write to a sound source succeeds");
        self.notes.end(number, true);
        usize::try_from(number).expect("fits")
    }

    fn unanswered(&self) -> usize {
        self.notes.history().operations.iter().filter(|o| !o.acknowledged).count()
    }

    /// What is known of a position from the marks around it.
    fn bounds_of(&self, seq: u64) -> Bounds {
        let after = self.marks.iter().filter(|m| m.seq <= seq).map(|m| m.asked).max();
        let before = self.marks.iter().filter(|m| m.seq >= seq).map(|m| m.answered).min();
        Bounds { after, before }
    }
}

fn read_image(files: &[(String, PathBuf)]) -> Image {
    let blocks = |path: &Path| Image::blocks_of(&std::fs::read(path).expect("restored file is read"));
    Image { disks: files.iter().map(|(_, path)| blocks(path)).collect() }
}

fn restore(site: &Site, at: &str) -> Image {
    let files = site.restore("db", at, "restored");
    let image = read_image(&files);
    std::fs::remove_dir_all(site.path("restored")).expect("restored files are removed");
    image
}

/// The valid ranges that `points` lists.
fn ranges(site: &Site) -> Vec<(u64, u64)> {
    let points = site.json(&["points", "db"]);
    let number = |v: &Value| v.as_u64().expect("a range has numbers");
    let ranges = points["ranges"].as_array().expect("points lists ranges");
    ranges.iter().map(|r| (number(&r["from_seq"]), number(&r["to_seq"]))).collect()
}

/// Ends of all ranges, and others spread over all valid positions.
fn choose(ranges: &[(u64, u64)], seed: &mut Seed) -> Vec<u64> {
    let total: u64 = ranges.iter().map(|(from, to)| to - from + 1).sum();
    let ends = ranges.iter().rev().take(3).flat_map(|(from, to)| [*from, *to]);
    let mut chosen: Vec<u64> = ends.collect();
    let left = POSITIONS.saturating_sub(chosen.len() as u64).max(4);
    for n in 0..left {
        let mut nth = (n * total + seed.below(total)) / left;
        for (from, to) in ranges {
            if nth <= to - from {
                chosen.push(from + nth);
                break;
            }
            nth -= to - from + 1;
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

fn judge(history: &History, image: &Image, bounds: Bounds, what: &str) -> oracle::Cut {
    oracle::check(history, image, bounds).unwrap_or_else(|why| panic!("{what} is no prefix within {bounds:?}: {why}"))
}

/// Restores and judges marks and positions; the writers are stopped and everything is stored.
fn judge_positions(load: &mut Load<'_>) -> Vec<Judged> {
    let (site, history) = (load.site, load.notes.history());
    let ranges = ranges(site);
    assert_invalid_positions_are_refused(site, &ranges, &mut load.seed);
    let by_seq = choose(&ranges, &mut load.seed).into_iter().map(|seq| (format!("seq:{seq}"), seq, None));
    let by_mark = load.marks.iter().map(|m| (format!("id:{}", m.id), m.seq, Some(m.bounds())));
    let mut judged: Vec<Judged> = Vec::new();
    for (at, seq, bounds) in by_seq.chain(by_mark) {
        let marked = bounds.is_some();
        let bounds = bounds.unwrap_or_else(|| load.bounds_of(seq));
        let image = restore(site, &at);
        judge(&history, &image, bounds, &at);
        judged.push(Judged { seq, image, bounds, marked });
    }
    let files = site.restore("db", "latest", "latest");
    site.assert_equals_source("db", &files);
    let everything = Bounds { after: Some(load.notes.now()), before: None };
    let cut = judge(&history, &read_image(&files), everything, "latest");
    eprintln!(
        "{} positions judged, {} of them marks, in {} valid ranges; {} operations, {} of them failed or unanswered; \
         {} in the last cut",
        judged.len() + 1,
        load.marks.len(),
        ranges.len(),
        history.operations.len(),
        load.unanswered(),
        cut.included
    );
    judged
}

/// Positions inside a drain are refused as usage, by a line that names the nearest valid ones; nothing is made.
fn assert_invalid_positions_are_refused(site: &Site, ranges: &[(u64, u64)], seed: &mut Seed) {
    let mut last_valid = None;
    for (from, to) in ranges {
        let gap = last_valid.map_or(1, |last| last + 1)..*from;
        let (before, after) = (last_valid.map_or("none".to_owned(), |s| format!("seq:{s} (")), format!("seq:{from} ("));
        last_valid = Some(*to);
        if gap.is_empty() {
            continue;
        }
        for seq in [gap.start, gap.end - 1, gap.start + seed.below(gap.end - gap.start)] {
            let target = site.path("refused");
            let at = format!("seq:{seq}");
            let ran = site.run(&["restore", "db", "--at", &at, "--to", &target.to_string_lossy(), "--format", "raw"]);
            assert_eq!(ran.code, 2, "{at} inside a drain is refused: {ran:?}");
            let named = ran.stderr.contains(&before) && ran.stderr.contains(&after);
            assert!(named, "the nearest valid positions {before} and {after} are named: {ran:?}");
            assert_eq!(ran.stderr.trim().lines().count(), 1, "one line: {ran:?}");
            assert!(!target.exists(), "a refused restore makes nothing");
        }
    }
}

// Negative controls: each does to an image what a broken product would, and the judge must refuse it.

/// The image without one write: its blocks show again what they did before. None when the write shows nowhere, or what
/// else happened there leaves room for doubt.
fn without(history: &History, image: &Image, lost: usize) -> Option<Image> {
    let ops = &history.operations;
    let write = &ops[lost];
    let precedes = |a: &Operation, b: &Operation| a.acknowledged && a.answered < b.issued;
    let mut changed = None;
    for block in write.block..write.block + write.blocks {
        let at = (write.disk as usize, usize::try_from(block).ok()?);
        let Content::Stamped(stamp) = image.disks[at.0][at.1] else { continue };
        if stamp.write != lost as u64 {
            continue;
        }
        let touches = |o: &Operation| o.disk == write.disk && (o.block..o.block + o.blocks).contains(&block);
        let others = ops.iter().enumerate().filter(|(i, o)| *i != lost && touches(o));
        if others.clone().any(|(_, o)| !o.acknowledged || (o.action == Action::Zero && !precedes(o, write))) {
            return None;
        }
        let earlier = others.clone().filter(|(_, o)| precedes(o, write)).max_by_key(|(_, o)| o.issued);
        // Writes in flight together may have come in either order, so nobody knows which was there before.
        if earlier
            .is_some_and(|(n, e)| others.clone().any(|(i, o)| i != n && precedes(o, write) && o.answered > e.issued))
        {
            return None;
        }
        let back = match earlier {
            Some((n, op)) if op.action == Action::Write => {
                Content::Stamped(Stamp { disk: op.disk, block, write: n as u64 })
            }
            _ => Content::Zeros,
        };
        changed.get_or_insert_with(|| image.clone()).disks[at.0][at.1] = back;
    }
    changed
}

fn acknowledged_writes(history: &History) -> impl DoubleEndedIterator<Item = (usize, &Operation)> {
    history.operations.iter().enumerate().filter(|(_, o)| o.acknowledged && o.action == Action::Write)
}

/// Writes in a seeded order, so that controls are not always the same kind of write.
fn shuffled(history: &History, seed: &mut Seed, wanted: impl Fn(&Operation) -> bool) -> Vec<usize> {
    let mut writes: Vec<(u64, usize)> =
        acknowledged_writes(history).filter(|(_, o)| wanted(o)).map(|(i, _)| (seed.next(), i)).collect();
    writes.sort_unstable();
    writes.into_iter().map(|(_, i)| i).collect()
}

/// A mark that lacks one write acknowledged before it was asked for.
fn lost_writes_are_refused(history: &History, judged: &Judged, seed: &mut Seed) -> usize {
    let asked = judged.bounds.after.expect("a mark has bounds");
    let images = shuffled(history, seed, |o| o.answered < asked)
        .into_iter()
        .filter_map(|lost| without(history, &judged.image, lost).map(|image| (lost, image)))
        .take(CONTROLS_PER_IMAGE);
    let mut tried = 0;
    for (lost, image) in images {
        let verdict = oracle::check(history, &image, judged.bounds);
        assert!(verdict.is_err(), "position {} without acknowledged write {lost} passed: {verdict:?}", judged.seq);
        tried += 1;
    }
    tried
}

/// A position that holds a write from behind a flush, and lacks one from before it: the two were swapped. No bounds.
fn swaps_across_a_flush_are_refused(history: &History, judged: &Judged, flush: Flush, seed: &mut Seed) -> usize {
    let shown = |n: usize| {
        let shows = |c: &Content| matches!(c, Content::Stamped(s) if s.write == n as u64);
        judged.image.disks.iter().flatten().any(shows)
    };
    let Some((behind, _)) = acknowledged_writes(history).find(|(n, o)| o.issued > flush.answered && shown(*n)) else {
        return 0;
    };
    let images = shuffled(history, seed, |o| o.answered < flush.issued)
        .into_iter()
        .filter_map(|early| without(history, &judged.image, early).map(|image| (early, image)))
        .take(CONTROLS_PER_IMAGE);
    let mut tried = 0;
    for (early, image) in images {
        let verdict = oracle::check(history, &image, Bounds::default());
        assert!(verdict.is_err(), "position {}: {early} and {behind} swapped across a flush passed", judged.seq);
        tried += 1;
    }
    tried
}

/// Each mark's image within the bounds of the next and the one before, and disks of two marks put together.
fn neighbours_are_refused(history: &History, marks: &[&Judged]) {
    for pair in marks.windows(2) {
        let [earlier, later] = pair else { continue };
        let verdict = oracle::check(history, &later.image, earlier.bounds);
        assert!(matches!(verdict, Err(Violation::TooNew { .. })), "a later position passed for a mark: {verdict:?}");
        let verdict = oracle::check(history, &earlier.image, later.bounds);
        assert!(verdict.is_err(), "an earlier position passed for a mark: {verdict:?}");
        for newer in 0..DISKS.len() {
            let mut mixed = earlier.image.clone();
            mixed.disks[newer] = later.image.disks[newer].clone();
            let verdict = oracle::check(history, &mixed, Bounds::default());
            assert!(verdict.is_err(), "disks of two positions passed for one: {verdict:?}");
        }
    }
}

/// One write, a mark, one write, with nothing beside them: the mark's own position is the only one that passes for it,
/// besides the write's, which holds the same.
fn off_by_one_is_refused(load: &mut Load<'_>) {
    let head = load.site.wait_stored("db");
    let in_it = load.write_one(0);
    load.mark("off-by-one");
    let not_in_it = load.write_one(1);
    load.site.wait_stored("db");
    let mark = load.marks.last().expect("a mark was made").clone();
    assert_eq!(mark.seq, head + 2, "the write and the mark are the next two records");
    let history = load.notes.history();
    let at = |seq: u64| oracle::check(&history, &restore(load.site, &format!("seq:{seq}")), mark.bounds());
    assert!(at(mark.seq).is_ok() && at(mark.seq - 1).is_ok(), "the mark and its write are within its bounds");
    let one_less = at(mark.seq - 2);
    assert!(matches!(one_less, Err(Violation::Stale { lacks, .. }) if lacks == in_it), "one less: {one_less:?}");
    assert_eq!(at(mark.seq + 1), Err(Violation::TooNew { operation: not_in_it }), "one more");
}

/// One byte of a restored file turned over.
fn flipped_byte_is_refused(load: &mut Load<'_>) {
    let mark = load.marks.first().expect("there are marks").clone();
    let files = load.site.restore("db", &format!("id:{}", mark.id), "flipped");
    let history = load.notes.history();
    let whole = read_image(&files);
    judge(&history, &whole, mark.bounds(), "the image before the damage");
    for (disk, (_, path)) in files.iter().enumerate() {
        let stamped: Vec<usize> =
            (0..whole.disks[disk].len()).filter(|b| matches!(whole.disks[disk][*b], Content::Stamped(_))).collect();
        let block = stamped[load.seed.below(stamped.len() as u64) as usize];
        let mut bytes = std::fs::read(path).expect("restored file is read");
        bytes[block * BLOCK_BYTES + load.seed.below(BLOCK_BYTES as u64) as usize] ^= 1 << load.seed.below(8);
        let mut image = whole.clone();
        image.disks[disk] = Image::blocks_of(&bytes);
        let found = Err(Violation::Foreign { disk: disk as u32, block: block as u64 });
        assert_eq!(oracle::check(&history, &image, mark.bounds()), found);
    }
}

/// Judges all positions, then the judge.
fn judge_and_control(load: &mut Load<'_>) {
    let judged = judge_positions(load);
    let history = load.notes.history();
    let mut marks: Vec<&Judged> = judged.iter().filter(|j| j.marked).collect();
    marks.sort_by_key(|j| j.seq);
    assert!(marks.len() >= 3, "there are marks to control by");
    let lost: usize = marks.iter().map(|j| lost_writes_are_refused(&history, j, &mut load.seed)).sum();
    let flush = load.flushes[load.flushes.len() / 2];
    let swapped: usize =
        judged.iter().map(|j| swaps_across_a_flush_are_refused(&history, j, flush, &mut load.seed)).sum();
    neighbours_are_refused(&history, &marks);
    flipped_byte_is_refused(load);
    off_by_one_is_refused(load);
    assert!(lost >= marks.len() && swapped >= 3, "controls were made: {lost} lost writes, {swapped} swaps");
    eprintln!("refused: {lost} lost writes, {swapped} swaps across a flush, {} pairs of marks", marks.len() - 1);
}

#[test]
fn positions_are_prefixes_while_the_process_server_is_killed() {
    let site = Site::new(options());
    let mut load = Load::new(&site, 201, Duration::from_millis(5));
    let mut server = site.start(&["process-server"]);
    let _applier = site.start(&["applier"]);
    let _agent = site.start_agent("db");
    load.start();
    for round in 0..4 {
        load.run_on(200);
        load.mark(&format!("before-{round}"));
        load.flush();
        load.run_on(60);
        server.kill();
        load.run_on(150);
        // A mark asked for while there is nobody to store it.
        let (started, mark) = std::thread::scope(|scope| {
            let marking = scope.spawn(|| load.try_mark(&format!("during-{round}")));
            let started = site.start(&["process-server"]);
            (started, marking.join().expect("marking does not panic"))
        });
        server = started;
        load.marks.push(mark.expect("without a drain a mark waits for the process server"));
    }
    load.run_on(100);
    load.stop();
    site.wait_stored("db");
    assert_eq!(load.unanswered(), 0, "the application never sees a process server die");
    assert_eq!(load.failures, 0);
    assert_eq!(ranges(&site).len(), 1, "nothing overflowed, so nothing was drained: {:?}", ranges(&site));
    judge_and_control(&mut load);
}

#[test]
fn positions_are_prefixes_while_the_agent_is_killed() {
    let site = Site::new(options());
    let mut load = Load::new(&site, 202, Duration::from_millis(5));
    let _server = site.start(&["process-server"]);
    let mut agent = site.start_agent("db");
    let rounds = 4;
    for round in 0..rounds {
        load.start();
        load.run_on(150);
        load.mark(&format!("round-{round}"));
        load.flush();
        load.run_on(150);
        agent.kill();
        load.stop();
        agent = site.start_agent("db");
    }
    load.start();
    load.run_on(200);
    load.mark("after");
    load.run_on(50);
    load.stop();
    site.wait_stored("db");
    let unanswered = load.unanswered();
    assert!((1..=rounds * UNANSWERED_PER_KILL_MAX).contains(&unanswered), "{unanswered} operations in flight");
    assert!(ranges(&site).len() > rounds, "each new life began with a drain");
    judge_and_control(&mut load);
    drop(agent);
}

fn wait_mode(site: &Site, wanted: &str) {
    eventually(&format!("mode {wanted}"), || match site.agent_status("db")?["mode"].as_str() {
        Some(mode) if mode == wanted => Ok(()),
        mode => Err(format!("{mode:?}")),
    });
}

#[test]
fn positions_are_prefixes_through_overflow_bitmap_mode_and_drains() {
    let site = Site::new(SiteOptions { queue_bytes: "1MiB", spool_bytes: "1MiB", ..options() });
    // Slow enough for the small queue while the server answers, and soon too fast for it when it does not.
    let mut load = Load::new(&site, 203, Duration::from_millis(60));
    let mut server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    load.start();
    for round in 0..3 {
        load.run_on(60);
        load.mark(&format!("round-{round}"));
        load.flush();
        load.run_on(20);
        server = overflow(&site, &mut load, server, round % 2 == 0);
    }
    load.run_on(60);
    load.mark("after");
    load.run_on(20);
    load.stop();
    site.wait_stored("db");
    assert_eq!(load.unanswered(), 0, "the application never waits for us");
    assert!(ranges(&site).len() > 3, "each overflow became a drain: {:?}", ranges(&site));
    judge_and_control(&mut load);
    drop(server);
}

/// Kills or pauses the process server until bitmap mode, and lets it come back in the middle of the load.
fn overflow(site: &Site, load: &mut Load<'_>, server: Proc, kill: bool) -> Proc {
    let paused = if kill {
        server.kill();
        None
    } else {
        server.signal("STOP");
        Some(server)
    };
    wait_mode(site, "bitmap");
    load.run_on(50);
    let refused = load.try_mark("in-bitmap-mode");
    assert!(refused.is_err(), "there is no consistent position in bitmap mode");
    let server = match paused {
        Some(server) => {
            server.signal("CONT");
            server
        }
        None => site.start(&["process-server"]),
    };
    wait_mode(site, "data");
    server
}

/// A file system with less room than the disk in it.
struct SmallDisk {
    mount: PathBuf,
}

impl SmallDisk {
    /// Blocks of 4 KiB, so that a write that fails half-way is never torn within a block of the workload; space is taken
    /// when the write is made, so that it is the write that fails, not a later flush.
    fn new(dir: &Path, bytes: u64) -> Self {
        let (image, mount) = (dir.join("small.img"), dir.join("small"));
        std::fs::File::create(&image).and_then(|f| f.set_len(bytes)).expect("image is made");
        std::fs::create_dir_all(&mount).expect("mount point is made");
        run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", "-O", "^has_journal", &image.to_string_lossy()]);
        run("mount", &["-o", "loop,nodelalloc", &image.to_string_lossy(), &mount.to_string_lossy()]);
        Self { mount }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The loop device goes with the mount.
        try_run("umount", &["-l", &self.mount.to_string_lossy()]);
    }
}

#[test]
fn positions_are_prefixes_when_the_source_fails_writes() {
    let place = tempfile::tempdir().expect("temporary directory");
    let small = SmallDisk::new(place.path(), 4 << 20);
    let site = Site::new(options());
    let source = small.mount.join("root.source");
    std::fs::rename(site.source("db", "root"), place.path().join("unused")).expect("the roomy source goes");
    std::fs::File::create(&source).and_then(|f| f.set_len(SIZES[0])).expect("source is made");
    std::os::unix::fs::symlink(&source, site.source("db", "root")).expect("source is linked");

    let mut load = Load::new(&site, 204, Duration::from_millis(5));
    let _server = site.start(&["process-server"]);
    let agent = site.start_agent("db");
    for round in 0..6 {
        load.start();
        load.run_on(150);
        load.stop();
        site.wait_stored("db");
        load.mark(&format!("round-{round}"));
        load.flush();
    }
    let events = site.agent_status("db").expect("agent answers")["events"].to_string();
    assert!(load.failures > 20, "the source was full: {} failures", load.failures);
    assert!(load.acknowledged > load.failures, "and took most: {} of {}", load.acknowledged, load.failures);
    assert!(events.contains("source-error"), "failed writes are events: {events}");
    // Room is made before the controls: their writes must not fail.
    grow(&site, &load);
    judge_and_control(&mut load);
    assert!(agent.stop(PATIENCE).success(), "the agent stops cleanly");
    drop(small);
}

/// Trims the first half of the small disk, so that there is room again.
fn grow(site: &Site, load: &Load<'_>) {
    let client = load.connect(0);
    let blocks = SIZES[0] / 2 / BLOCK_BYTES as u64;
    let number = load.notes.begin(0, 0, blocks, Action::Zero).expect("nothing else is in flight");
    load.runtime.block_on(client.trim(0, (SIZES[0] / 2) as u32)).expect("a trim needs no room");
    load.notes.end(number, true);
    site.wait_stored("db");
}
