//! One recorded life of a machine, and its power cut at a hundred moments: 50 flushes and 50 moments at random.
//!
//! ```text
//!   life under load ─► at each moment the agent is stopped: how far each device's log is, what the store holds,
//!                      what the client knows ─► it goes on
//!   each moment     ─► devices rebuilt as a cut leaves them, the store as it was ─► a new life ─► judged
//! ```
//! The devices are those of `power_cut`: the sources, and a file system with the agent's map and spool. The process server
//! is away for parts of the life, so that the spool is in use. What the cut at a moment leaves depends on the recording
//! and the seed alone: at a flush everything that it does not cover is lost; at random each write since is kept, lost or
//! torn. What must hold: flushed writes are there, the new life is welcome and drains, `latest` then equals the rebuilt
//! sources, and the log is whole.
//!
//! `FARSHORE_SEED` sets the seed, `FARSHORE_CUT` the number of the one moment to cut at.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::judge::wait;
use crate::harness::tools::{run, try_run};
use crate::harness::{Proc, Seed, Site, SiteOptions, eventually};
use crate::power_cut::{Client, DISKS, Fate, Host, Known, LogCursor, Recorded, SECTOR};

/// Moments of each kind.
const MOMENTS: usize = 50;

/// Cuts judged side by side.
const SIDE_BY_SIDE: usize = 2;

/// Least time between two steps of the client: keeps the recording small.
const PACE: Duration = Duration::from_millis(15);

/// Of every so many moments the process server is away for some.
const OUTAGE_EVERY: usize = 20;

/// How many those are.
const OUTAGE_MOMENTS: usize = 7;

fn options() -> SiteOptions {
    SiteOptions {
        machines: vec![("db", DISKS.to_vec())],
        queue_bytes: "1MiB",
        spool_bytes: "8MiB",
        ..SiteOptions::default()
    }
}

/// What is noted at one moment of the life.
struct Moment {
    fate: Fate,
    /// Of each device: entries vouched for, and entries written.
    logs: Vec<(u64, usize)>,
    /// Files of the store, relative to its root.
    store: BTreeSet<String>,
    known: Vec<Known>,
    spooled: bool,
}

/// A whole life: its devices, and the moments in it.
struct Recording {
    devices: Vec<Recorded>,
    moments: Vec<Moment>,
}

/// Objects below a directory. A file whose name has a `#` is on its way to becoming one: to the log it is not there. What
/// a role that starts tries the store with goes again.
fn files(root: &Path, below: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(below).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            files(root, &path, found);
        } else if let Ok(name) = path.strip_prefix(root)
            && !name.to_string_lossy().contains('#')
            && !name.starts_with("probe")
        {
            found.insert(name.to_string_lossy().into_owned());
        }
    }
}

/// Stops the agent for the time that `note` takes, as a power cut would stop it for good.
fn at_standstill<T>(agent: &Proc, note: impl FnOnce() -> T) -> T {
    agent.signal("STOP");
    let stat = format!("/proc/{}/stat", agent.id());
    eventually("the agent stands still", || {
        let text = std::fs::read_to_string(&stat).map_err(|e| e.to_string())?;
        // The state stands behind the name, which is in parentheses.
        if text.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) { Ok(()) } else { Err(text) }
    });
    let noted = note();
    agent.signal("CONT");
    noted
}

/// Waits for the next flush of any device, but not for long: at rest there is none.
fn wait_flush(host: &Host) {
    let vouched = || host.running.iter().map(|device| device.vouched_for()).collect::<Vec<_>>();
    let (before, started) = (vouched(), Instant::now());
    while vouched() == before && started.elapsed() < Duration::from_secs(2) {
        wait(Duration::from_micros(500));
    }
}

/// Notes the moment. What the logs vouch for is read first: it can only grow, and an entry that is vouched for is written.
fn note(site: &Site, host: &Host, cursors: &mut [LogCursor], client: &Mutex<Vec<Known>>, fate: Fate) -> Moment {
    let logs = host.running.iter().zip(cursors).map(|(device, cursor)| {
        let vouched = device.vouched_for();
        let written = eventually("what is vouched for is written", || match cursor.advance(&device.path("log")) {
            written if written as u64 >= vouched => Ok(written),
            written => Err(format!("{written} of {vouched}")),
        });
        (vouched, written)
    });
    let logs = logs.collect();
    let (root, mut store) = (site.path("site/store"), BTreeSet::new());
    files(&root, &root, &mut store);
    let spool = site.data_dir().join("agent/db/spool");
    let spooled = std::fs::metadata(spool).is_ok_and(|file| file.len() > 0);
    Moment { fate, logs, store, known: client.lock().expect("not poisoned").clone(), spooled }
}

/// Leads a life and notes its moments.
fn record(site: &Site, seed: &mut Seed) -> Recording {
    let mut server = Some(site.start(&["process-server"]));
    let mut host = Host::new(site, true);
    host.power_on();
    let agent = site.start_agent("db");
    site.wait_stored("db");
    let mut client = Client::new(&host, seed);
    let (known, stop) = (client.known.clone(), Arc::new(AtomicBool::new(false)));
    let addresses = DISKS.map(|(disk, _)| (site.nbd("db", disk), disk));
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime starts");
        runtime.block_on(async {
            let mut clients = Vec::new();
            for (address, disk) in &addresses {
                clients.push(nbd::Client::connect(address, disk).await.expect("client connects"));
            }
            let mut pace = tokio::time::interval(PACE);
            // Relaxed: a flag polled in a loop; nothing else is published through it.
            while !stopped.load(Ordering::Relaxed) {
                pace.tick().await;
                client.step(&clients).await.expect("the agent serves for all of its life");
            }
        });
    });
    let mut cursors: Vec<LogCursor> = host.running.iter().map(|_| LogCursor::default()).collect();
    let mut moments = Vec::new();
    for number in 0..2 * MOMENTS {
        let away = number % OUTAGE_EVERY >= OUTAGE_EVERY - OUTAGE_MOMENTS;
        if away && let Some(server) = server.take() {
            server.kill();
        }
        if !away && server.is_none() {
            server = Some(site.start(&["process-server"]));
        }
        let fate = if number % 2 == 0 { Fate::AllLost } else { Fate::Chosen };
        match fate {
            Fate::AllLost => wait_flush(&host),
            Fate::Chosen => wait(Duration::from_millis(seed.below(120))),
        }
        moments.push(at_standstill(&agent, || note(site, &host, &mut cursors, &known, fate)));
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the client is served");
    agent.kill();
    Recording { devices: host.running.drain(..).map(|device| device.recorded()).collect(), moments }
}

/// What a cut at a moment left, and what it took.
struct Left {
    images: Vec<Vec<u8>>,
    state: Vec<u8>,
    unflushed: usize,
    lost: usize,
    torn: usize,
}

impl Recording {
    fn cut(&self, moment: &Moment, mut seed: Seed) -> Left {
        let cuts = self.devices.iter().zip(&moment.logs);
        let mut cuts: Vec<_> =
            cuts.map(|(device, (vouched, written))| device.cut(*vouched, *written, moment.fate, &mut seed)).collect();
        let sum = |of: fn(&crate::power_cut::Cut) -> usize| cuts.iter().map(of).sum();
        let (unflushed, lost, torn) = (sum(|cut| cut.unflushed), sum(|cut| cut.lost), sum(|cut| cut.torn));
        let state = cuts.pop().expect("the last device is the state's").image;
        Left { images: cuts.into_iter().map(|cut| cut.image).collect(), state, unflushed, lost, torn }
    }
}

/// A machine after a cut, beside the store as it was then.
struct Afterlife {
    site: Site,
    mount: std::path::PathBuf,
}

impl Afterlife {
    fn new(site: &Site, name: &str, moment: &Moment, left: &Left) -> Afterlife {
        let store = site.path(&format!("{name}-store"));
        for file in &moment.store {
            let to = store.join(file);
            std::fs::create_dir_all(to.parent().expect("files lie in the store")).expect("directory is made");
            std::fs::hard_link(site.path("site/store").join(file), to).expect("objects are never changed");
        }
        let url = format!("file://{}", store.to_string_lossy());
        let site = site.sibling(name, SiteOptions { store: Some(url), ..options() });
        for ((disk, _), image) in DISKS.iter().zip(&left.images) {
            std::fs::write(site.source("db", disk), image).expect("source is written");
        }
        let (image, mount) = (site.path(&format!("{name}-state.img")), site.data_dir().join("agent"));
        std::fs::write(&image, &left.state).expect("state is written");
        std::fs::create_dir_all(&mount).expect("mount point is made");
        run("mount", &["-t", "ext4", "-o", "loop", &image.to_string_lossy(), &mount.to_string_lossy()]);
        Afterlife { site, mount }
    }

    /// How `latest` differs from the sources once everything is stored; or the refusal that the agent met.
    fn judge(&self, name: &str, left: &Left) -> Result<(), String> {
        let _server = self.site.start(&["process-server"]);
        let _agent = self.site.start_agent("db");
        eventually("the new life is welcome, or refused", || {
            let status = self.site.agent_status("db")?;
            let (next, stored) = (status["next_seq"].as_u64().unwrap_or(0), status["stored"]["seq"].as_u64());
            let settled =
                status["mode"] == "data" && status["to_drain_bytes"] == 0 && stored.map(|seq| seq + 1) == Some(next);
            match status["refusal"]["needs_compare"] == true {
                true => Ok(Err(status["refusal"].to_string())),
                false if settled => Ok(Ok(())),
                false => Err(format!("{status:#}")),
            }
        })?;
        let out = format!("{name}-out");
        for ((disk, restored), image) in self.site.restore("db", "latest", &out).iter().zip(&left.images) {
            let bytes = std::fs::read(restored).expect("restored disk is read");
            let mut sectors = bytes.chunks(SECTOR).zip(image.chunks(SECTOR));
            if let Some(first) = sectors.position(|(a, b)| a != b).or((bytes.len() != image.len()).then_some(0)) {
                return Err(format!("disk {disk} differs from sector {first}"));
            }
        }
        std::fs::remove_dir_all(self.site.path(&out)).expect("restored files are removed");
        let verify = self.site.run(&["verify", "db"]);
        if verify.code == 0 { Ok(()) } else { Err(format!("verify: {verify:?}")) }
    }
}

impl Drop for Afterlife {
    fn drop(&mut self) {
        try_run("umount", &["-l", &self.mount.to_string_lossy()]);
    }
}

/// Cuts at one moment and judges the life behind it.
fn cut_and_judge(site: &Site, recording: &Recording, number: usize, seed: Seed) -> Result<Left, String> {
    let moment = &recording.moments[number];
    let left = recording.cut(moment, seed);
    moment.known.iter().zip(&left.images).for_each(|(known, image)| known.assert_survived(image));
    let name = format!("cut-{number}");
    Afterlife::new(site, &name, moment, &left).judge(&name, &left)?;
    Ok(left)
}

/// The negative controls: a cut that takes what was flushed is found, and so is one sector that is not as it was left.
fn refuses_what_is_wrong(site: &Site, recording: &Recording, seed: &Seed) {
    let last = recording.moments.last().expect("there are moments");
    let from_before = recording.devices[0].cut(0, 0, Fate::AllLost, &mut seed.clone()).image;
    let survived = std::panic::catch_unwind(|| last.known[0].assert_survived(&from_before));
    assert!(survived.is_err(), "a disk without its flushed writes is found out");
    let mut left = recording.cut(last, seed.clone());
    let life = Afterlife::new(site, "changed", last, &left);
    left.images[0][SECTOR] ^= 1;
    let why = life.judge("changed", &left).expect_err("a changed sector is found");
    assert_eq!(why, "disk root differs from sector 1");
}

#[test]
fn power_cut_at_any_recorded_moment_loses_nothing_that_was_flushed() {
    let mut seed = Seed::from_environment(205);
    let site = Site::new(options());
    let started = Instant::now();
    let recording = record(&site, &mut seed);
    let recorded = started.elapsed();
    let seeds: Vec<Seed> = recording.moments.iter().map(|_| seed.fork()).collect();
    assert_reproducible(&recording, &seeds);
    let only: Option<usize> = std::env::var("FARSHORE_CUT").ok().and_then(|number| number.parse().ok());
    let (next, sums) = (AtomicUsize::new(0), Mutex::new([0; 3]));
    std::thread::scope(|scope| {
        let judge = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= recording.moments.len() {
                    return;
                }
                if only.is_none_or(|only| only == number) {
                    let left = cut_and_judge(&site, &recording, number, seeds[number].clone());
                    let left =
                        left.unwrap_or_else(|why| panic!("cut {number} ({:?}): {why}", recording.moments[number].fate));
                    let mut sums = sums.lock().expect("not poisoned");
                    [left.unflushed, left.lost, left.torn].iter().zip(sums.iter_mut()).for_each(|(n, sum)| *sum += n);
                }
            }
        };
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(judge);
        }
    });
    refuses_what_is_wrong(&site, &recording, &seed);
    let spooled = recording.moments.iter().filter(|moment| moment.spooled).count();
    let [unflushed, lost, torn] = *sums.lock().expect("not poisoned");
    eprintln!(
        "{} cuts of one life of {recorded:?}, {spooled} with the spool in use, in {:?}: of {unflushed} writes without a flush \
         {lost} were lost and {torn} torn",
        only.map_or(recording.moments.len(), |_| 1),
        started.elapsed()
    );
    assert!(only.is_some() || (spooled >= 10 && lost > 0 && torn > 0), "the cuts were cuts, and the spool was in use");
}

/// The same seed cuts the same way, another one another way.
fn assert_reproducible(recording: &Recording, seeds: &[Seed]) {
    let mut other = Seed::from_environment(206);
    let mut differ = 0;
    for (moment, seed) in recording.moments.iter().zip(seeds).filter(|(moment, _)| moment.fate == Fate::Chosen).take(10)
    {
        let (a, b, c) = (
            recording.cut(moment, seed.clone()),
            recording.cut(moment, seed.clone()),
            recording.cut(moment, other.fork()),
        );
        assert!(a.images == b.images && a.state == b.state, "one seed, one cut");
        differ += usize::from(a.images != c.images || a.state != c.state);
    }
    assert!(differ > 0, "another seed cuts another way");
}
