//! Restores that die, fail and go on: whenever a restore is killed or fails, the same command ends with the images that an
//! undisturbed one makes, and what changed on the medium meanwhile is found.
//!
//! `FARSHORE_KILL_ROUNDS` sets the restores of each format that are killed, `FARSHORE_SEED` the seed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::judge::wait;
use crate::harness::mounted::Mounted;
use crate::harness::site::Ran;
use crate::harness::tools::run;
use crate::harness::{PATIENCE, Proc, Seed, Site, SiteOptions};

/// Restores of each format in continuous integration, each killed several times.
const ROUNDS: u64 = 3;

/// Restores beyond these, where a machine is so fast that all kills come too late.
const MORE_ROUNDS: u64 = 30;

/// Kills of one restore, at most; then it may come to its end.
const KILLS: u64 = 6;

/// Disks of the machine, with their sizes, and the bytes of each that hold noise.
const DISKS: [(&str, u64, usize); 2] = [("root", 200 << 20, 120 << 20), ("data", (48 << 20) + 512, 24 << 20)];

/// The formats: name, and what qemu-img calls it.
const FORMATS: [(&str, &str); 3] = [("raw", "raw"), ("qcow2", "qcow2"), ("vhd", "vpc")];

/// The journal's name.
const STATE: &str = "farshore-restore.state";

/// Length of a journal with at least one of some 40 pieces, and of one with half of them.
const SOME_DURABLE: u64 = 300;
const HALF_DURABLE: u64 = 950;

/// A machine with noise on its disks, recorded; the roles are gone.
fn recorded(seed: &mut Seed) -> Site {
    let disks = DISKS.map(|(name, size, _)| (name, size)).to_vec();
    let site = Site::new(SiteOptions { machines: vec![("db", disks)], ..SiteOptions::default() });
    for (disk, size, noise) in DISKS {
        let bytes: Vec<u8> = (0..noise / 8).flat_map(|_| seed.next().to_le_bytes()).collect();
        // Two parts with a hole between them, not at round places.
        let file = std::fs::File::options().write(true).open(site.source("db", disk)).expect("source opens");
        let (first, second) = bytes.split_at(noise / 3 / 512 * 512);
        std::os::unix::fs::FileExt::write_all_at(&file, first, 1536).expect("source is filled");
        std::os::unix::fs::FileExt::write_all_at(&file, second, size - second.len() as u64).expect("source is filled");
    }
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    site.wait_stored("db");
    site
}

/// One restore: where to, and in which format.
struct Restore<'a> {
    site: &'a Site,
    to: PathBuf,
    format: &'a str,
}

impl<'a> Restore<'a> {
    fn new(site: &'a Site, to: &str, format: &'a str) -> Self {
        Restore { site, to: site.path(to), format }
    }

    fn args(&self) -> Vec<&str> {
        let to = self.to.to_str().expect("the path is text");
        vec!["restore", "db", "--at", "latest", "--to", to, "--format", self.format]
    }

    fn run(&self) -> Ran {
        self.site.run(&self.args())
    }

    /// How long it takes here when nothing befalls it: the measure of the moments of kills.
    fn time(&self) -> Duration {
        let start = Instant::now();
        let ran = self.run();
        assert_eq!(ran.code, 0, "{ran:?}");
        let whole = start.elapsed();
        std::fs::remove_dir_all(&self.to).expect("the images are removed");
        whole
    }

    /// Looks without a pause until the journal is longer than this or the process has ended: a restore is over soon.
    fn wait_journal(&self, process: &mut Proc, bytes: u64) {
        let start = Instant::now();
        while self.state_bytes() <= bytes && process.running().is_ok() {
            assert!(start.elapsed() < PATIENCE, "the journal does not get longer than {bytes} bytes");
            std::thread::yield_now();
        }
    }

    fn start(&self) -> Proc {
        self.site.start(&self.args())
    }

    fn image(&self, disk: &str) -> PathBuf {
        self.to.join(format!("db-{disk}.{}", self.format))
    }

    fn partial(&self, disk: &str) -> PathBuf {
        self.to.join(format!("db-{disk}.{}.partial", self.format))
    }

    fn state_bytes(&self) -> u64 {
        std::fs::metadata(self.to.join(STATE)).map_or(0, |state| state.len())
    }

    /// Runs it to its end and checks what it made; returns its report.
    fn end(&self) -> Value {
        let report = self.site.json(&self.args());
        self.check();
        let (written, resumed) = (number(&report, "bytes_written"), number(&report, "bytes_resumed"));
        let data: u64 = DISKS.iter().map(|(_, _, noise)| *noise as u64).sum();
        assert!((data..data + (1 << 20)).contains(&(written + resumed)), "{report:#}");
        assert_eq!(number(&report, "bytes_verified"), written + resumed, "{report:#}");
        report
    }

    /// The images equal the sources, and are all that is there.
    fn check(&self) {
        let names: Vec<_> =
            std::fs::read_dir(&self.to).expect("listed").map(|e| e.expect("entry").file_name()).collect();
        assert_eq!(names.len(), DISKS.len(), "the images and nothing else: {names:?}");
        let qemu = FORMATS.iter().find(|(name, _)| *name == self.format).expect("a format").1;
        for (disk, ..) in DISKS {
            let (source, image) = (self.site.source("db", disk), self.image(disk));
            let (source, image) = (source.to_string_lossy(), image.to_string_lossy());
            run("qemu-img", &["compare", "-f", "raw", "-F", qemu, &source, &image]);
            if qemu == "qcow2" {
                let said = run("qemu-img", &["check", "-f", "qcow2", &image]);
                assert!(said.contains("No errors"), "{said}");
            }
        }
    }

    /// Runs it until some pieces are durable, and stops it there, when others are not even begun. `None` when it was
    /// faster than we look.
    fn held(&self) -> Option<Proc> {
        let mut process = self.start();
        self.wait_journal(&mut process, SOME_DURABLE);
        process.running().ok()?;
        process.signal("STOP");
        (SOME_DURABLE..HALF_DURABLE).contains(&self.state_bytes()).then_some(process)
    }

    /// As [`Restore::held`], in a new directory each time until it is.
    fn held_at_last(&mut self) -> Proc {
        let first = self.to.clone();
        for attempt in 0..20 {
            self.to = first.join(attempt.to_string());
            if let Some(process) = self.held() {
                return process;
            }
            std::fs::remove_dir_all(&self.to).expect("the images are removed");
        }
        panic!("a restore is never seen at work");
    }
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} is a number: {report:#}"))
}

fn refused(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(words.iter().all(|word| ran.stderr.contains(word)), "{words:?}: {ran:?}");
}

fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let mut byte = [0];
    let file = std::fs::File::options().read(true).write(true).open(path).expect("file opens");
    file.read_exact_at(&mut byte, at).expect("file is long enough");
    file.write_all_at(&[byte[0] ^ 0x20], at).expect("file is written");
    file.sync_all().expect("file is synced");
}

#[test]
fn a_restore_killed_at_any_moment_goes_on_in_every_format() {
    let mut seed = Seed::from_environment(401);
    let site = recorded(&mut seed);
    let rounds = std::env::var("FARSHORE_KILL_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(ROUNDS);
    for (format, _) in FORMATS {
        let (mut round, mut kills, mut resumed) = (0, 0, 0);
        let whole = Restore::new(&site, &format!("{format}-whole"), format).time();
        while round < rounds || (kills == 0 || resumed == 0) && round < rounds + MORE_ROUNDS {
            round += 1;
            let restore = Restore::new(&site, &format!("{format}-{round}"), format);
            for kill in 0..KILLS {
                let (mut process, before) = (restore.start(), restore.state_bytes());
                // Half of the kills come once it has got on by something, wherever it is then.
                let within = if kill % 2 == 0 {
                    whole
                } else {
                    restore.wait_journal(&mut process, before.max(SOME_DURABLE));
                    whole / 8
                };
                wait(Duration::from_micros(seed.below(within.as_micros() as u64)));
                if process.running().is_err() {
                    break;
                }
                process.kill();
                kills += 1;
                // Now and then nothing more befalls it: however fast the machine, some restore goes on to its end from here.
                if restore.state_bytes() > SOME_DURABLE && (resumed == 0 || seed.below(3) == 0) {
                    break;
                }
            }
            if restore.to.join(STATE).exists() || !restore.image("root").exists() {
                resumed += number(&restore.end(), "bytes_resumed");
            } else {
                restore.check();
            }
            std::fs::remove_dir_all(&restore.to).expect("the images are removed");
        }
        eprintln!("{format}: {kills} kills in {round} restores of {whole:?}, {resumed} bytes gone on with at the last");
        assert!(kills > 0 && resumed > 0, "{format}: {kills} kills, and {resumed} bytes gone on with");
    }
}

/// What is not read back is not found: the same damage passes with `--no-verify`, and the image is wrong.
#[test]
fn a_byte_flipped_while_no_restore_ran_is_found_and_named() {
    let mut seed = Seed::from_environment(402);
    let site = recorded(&mut seed);
    for (format, _) in FORMATS {
        let restore = Restore::new(&site, format, format);
        let died = site.start_armed(&restore.args(), "restore-image-complete", 2).wait_ended(PATIENCE);
        assert!(!died.success(), "it died with everything durable");
        let image = restore.partial("root");
        let len = std::fs::metadata(&image).expect("the partial image is there").len();
        // In data; and where every format but qcow2 has a hole.
        for (at, wanted) in [(len - (9 << 20) - 7, None), (72 << 20, (format != "qcow2").then_some(72u64 << 20))] {
            flip(&image, at);
            let ran = restore.run();
            refused(&ran, 1, &[&image.to_string_lossy(), "is not what was written to it", "restore to a medium"]);
            let named = |at: u64| ran.stderr.contains(&format!("from offset {at} of the disk"));
            assert!(wanted.is_none_or(|at| named(at / (4 << 20) * (4 << 20))), "{ran:?}");
            assert!(!restore.image("root").exists() && !restore.image("data").exists(), "no image got its name");
            flip(&image, at);
        }
        flip(&image, len - (9 << 20) - 7);
        let ran = site.run(&[&restore.args()[..], &["--no-verify"]].concat());
        assert!(ran.code == 0 && ran.stdout.contains("not read back"), "{ran:?}");
        flip(&restore.image("root"), len - (9 << 20) - 7);
        restore.check();
    }
}

#[test]
fn a_full_disk_or_a_lost_store_ends_a_restore_that_goes_on_later() {
    let mut seed = Seed::from_environment(403);
    let site = recorded(&mut seed);
    let place = tempfile::tempdir().expect("temporary directory");
    let small = Mounted::small(place.path(), 240 << 20);
    for (format, _) in FORMATS {
        let mut restore = Restore::new(&site, "unused", format);
        restore.to = small.dir.clone();
        let process = restore.held_at_last();
        let ballast = small.fill();
        process.signal("CONT");
        assert_eq!(process.wait_ended(PATIENCE).code(), Some(1), "{format}: the disk is full");
        let log = std::fs::read_to_string(site.path("restore-db.log")).expect("log");
        assert!(log.contains("No space left") && log.contains(".partial"), "{log}");
        refused(&restore.run(), 1, &["too small", "bytes are needed"]);
        std::fs::remove_file(&ballast).expect("room is made");
        assert!(number(&restore.end(), "bytes_resumed") > 0, "{format}: what was written was kept");
        std::fs::remove_dir_all(&restore.to).expect("the images are removed");
    }
    let (folder, away) = (site.path("site/store/machine"), site.path("site/store/away"));
    let mut restore = Restore::new(&site, "outage", "raw");
    let process = restore.held_at_last();
    std::fs::rename(&folder, &away).expect("store is taken away");
    process.signal("CONT");
    assert!(!process.wait_ended(PATIENCE).success(), "the store is gone");
    std::fs::rename(&away, &folder).expect("store comes back");
    assert!(number(&restore.end(), "bytes_resumed") > 0, "what was written was kept");
}

#[test]
fn a_directory_of_something_else_is_refused_in_words() {
    let mut seed = Seed::from_environment(404);
    let site = recorded(&mut seed);
    let mut restore = Restore::new(&site, "held", "raw");
    let held = restore.held_at_last();
    refused(&restore.run(), 2, &["is being written by another restore"]);
    held.kill();
    let before = tree(&restore.to);
    let as_vhd = Restore { site: &site, to: restore.to.clone(), format: "vhd" };
    refused(&as_vhd.run(), 2, &["unfinished restore of db at seq:", "as raw", "as vhd", "give another directory"]);
    let stranger = restore.to.join("letter.txt");
    std::fs::write(&stranger, b"dear").expect("written");
    refused(&restore.run(), 2, &["holds files that are not of this restore"]);
    std::fs::remove_file(&stranger).expect("removed");
    assert_eq!(tree(&restore.to), before, "nothing was changed");

    // Another point: one more write.
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x51 1M 1M", "-c", "flush", &site.nbd_uri("db", "root")]);
    site.wait_stored("db");
    refused(&restore.run(), 2, &["unfinished restore of db at seq:", "asked for is db at seq:"]);
    assert_eq!(tree(&restore.to), before, "nothing was changed");
}

#[test]
fn a_damaged_journal_means_to_begin_anew_and_is_said() {
    let mut seed = Seed::from_environment(405);
    let site = recorded(&mut seed);
    for (format, _) in FORMATS {
        let mut restore = Restore::new(&site, &format!("head-{format}"), format);
        restore.held_at_last().kill();
        flip(&restore.to.join(STATE), 20);
        let ran = restore.run();
        assert!(ran.code == 0 && ran.stderr.contains("all images are begun anew"), "{ran:?}");
        restore.check();

        // Its last byte: one block is not whole, those before it count.
        let mut restore = Restore::new(&site, &format!("tail-{format}"), format);
        restore.held_at_last().kill();
        flip(&restore.to.join(STATE), restore.state_bytes() - 1);
        let ran = restore.run();
        assert!(ran.code == 0 && ran.stderr.contains("its end is not whole"), "{ran:?}");
        restore.check();

        // An image that is gone, or cut, under a sound journal.
        let mut restore = Restore::new(&site, &format!("gone-{format}"), format);
        restore.held_at_last().kill();
        std::fs::remove_file(restore.partial("root")).expect("removed");
        let data = std::fs::File::options().write(true).open(restore.partial("data")).expect("opens");
        data.set_len(512).expect("cut");
        let ran = restore.run();
        assert!(ran.code == 0 && ran.stderr.contains("begun anew"), "{ran:?}");
        restore.check();
    }
    // A finished image that no journal vouches for is never written over.
    let restore = Restore::new(&site, "named", "raw");
    site.start_armed(&restore.args(), "restore-image-renamed", 1).wait_ended(PATIENCE);
    flip(&restore.to.join(STATE), 20);
    let before = tree(&restore.to);
    refused(&restore.run(), 2, &["holds a finished image", "move it away"]);
    assert_eq!(tree(&restore.to), before, "nothing was changed");
}

/// Names in a directory, with a digest of each file.
fn tree(dir: &Path) -> Vec<(std::ffi::OsString, String)> {
    let files = std::fs::read_dir(dir).expect("listed").map(|entry| entry.expect("entry"));
    let sum = |path: PathBuf| run("sha256sum", &[&path.to_string_lossy()]).split_whitespace().next().map(str::to_owned);
    let mut files: Vec<_> = files.map(|file| (file.file_name(), sum(file.path()).unwrap_or_default())).collect();
    files.sort();
    files
}
