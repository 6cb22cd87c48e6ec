//! Points served through a cache on disk, in real processes: killed while they fill it, with every file of it damaged, two
//! at once, and on a disk without room. What is read is always the point.
//!
//! `FARSHORE_SEED` sets the seed.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::mounted::Mounted;
use crate::harness::site::assert_same;
use crate::harness::tools::run;
use crate::harness::{PATIENCE, Proc, Seed, Site, SiteOptions, eventually};

const DISK_BYTES: u64 = 48 << 20;
const NOISE_BYTES: usize = 40 << 20;

/// A machine with noise on its disk, recorded; the roles are gone.
fn recorded(seed: &mut Seed) -> Site {
    let site = Site::new(SiteOptions { machines: vec![("db", vec![("root", DISK_BYTES)])], ..SiteOptions::default() });
    let noise: Vec<u8> = (0..NOISE_BYTES / 8).flat_map(|_| seed.next().to_le_bytes()).collect();
    let file = std::fs::File::options().write(true).open(site.source("db", "root")).expect("source opens");
    std::os::unix::fs::FileExt::write_all_at(&file, &noise, 1 << 20).expect("source is filled");
    let server = site.start(&["process-server"]);
    let agent = site.start_agent("db");
    site.wait_stored("db");
    assert!(agent.stop(PATIENCE).success() && server.stop(PATIENCE).success());
    site
}

/// Serves the newest point through a cache; returns when clients can connect.
fn serve(site: &Site, cache: &Path, name: &str) -> (Proc, PathBuf) {
    let socket = site.path(&format!("{name}.sock"));
    // A killed export leaves its socket.
    let _ = std::fs::remove_file(&socket);
    let mut command = site.command();
    command.arg("--config").arg(site.config());
    command.args(["serve", "db", "--disk", "root", "--at", "latest", "--listen"]);
    command.arg(format!("unix:{}", socket.display())).arg("--cache").arg(cache);
    let mut served = Proc::start(name, command, &site.path(&format!("{name}.log")));
    eventually("the point is served", || {
        served.running()?;
        UnixStream::connect(&socket).map_err(|e| e.to_string())
    });
    (served, socket)
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///root?socket={}", socket.display())
}

/// Copies all of an export and compares it with the source.
fn assert_serves_the_source(site: &Site, socket: &Path) {
    let copy = socket.with_extension("copy");
    let _ = std::fs::remove_file(&copy);
    run("nbdcopy", &[&uri(socket), &copy.to_string_lossy()]);
    assert_same(&site.source("db", "root"), &copy);
}

fn sealed_files(cache: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache).expect("the cache is there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "sealed"));
    files.sort();
    files
}

fn bytes_in(cache: &Path) -> u64 {
    sealed_files(cache).iter().map(|path| path.metadata().map_or(0, |meta| meta.blocks() * 512)).sum()
}

#[test]
fn a_cache_that_was_killed_over_and_damaged_never_shows() {
    let mut seed = Seed::from_environment(41);
    let site = recorded(&mut seed);
    let cache = site.path("cache");
    // Killed while a client reads and the cache fills.
    let (served, socket) = serve(&site, &cache, "killed");
    let copy = socket.with_extension("copy");
    let mut client = Command::new("nbdcopy");
    client.arg(uri(&socket)).arg(&copy).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut client = client.spawn().expect("nbdcopy starts: `cargo xtask test` installs it");
    eventually("the cache fills", || match bytes_in(&cache) {
        bytes if bytes >= 4 << 20 => Ok(()),
        bytes => Err(format!("{bytes} bytes")),
    });
    served.kill();
    client.wait().expect("the client ends");

    let (served, socket) = serve(&site, &cache, "after-kill");
    assert_serves_the_source(&site, &socket);
    assert!(served.stop(PATIENCE).success());
    assert!(bytes_in(&cache) >= NOISE_BYTES as u64 / 2, "most of it is cached");

    // Damage of every kind, in every file.
    let files = sealed_files(&cache);
    assert!(files.len() >= 4, "{files:?}");
    let whole: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).expect("read")).collect();
    for (n, path) in files.iter().enumerate() {
        let mut bytes = whole[n].clone();
        let at = seed.below(bytes.len() as u64) as usize;
        match n % 4 {
            0 => bytes.iter_mut().step_by(10_007).for_each(|byte| *byte ^= 0x40),
            1 => bytes.truncate(at),
            2 => bytes = whole[(n + 1) % whole.len()].clone(),
            _ => bytes[at / 2..].fill(0),
        }
        std::fs::write(path, bytes).expect("damaged");
    }
    let (served, socket) = serve(&site, &cache, "damaged");
    // Another shares the directory meanwhile.
    let (other, other_socket) = serve(&site, &cache, "shared");
    std::thread::scope(|scope| {
        scope.spawn(|| assert_serves_the_source(&site, &socket));
        scope.spawn(|| assert_serves_the_source(&site, &other_socket));
    });
    assert!(served.stop(PATIENCE).success() && other.stop(PATIENCE).success());
    for (path, whole) in files.iter().zip(&whole) {
        let mended = std::fs::read(path).expect("read");
        let same = mended.iter().zip(whole).filter(|(mended, whole)| mended == whole).count();
        assert!(same > whole.len() / 2, "{} was not written over", path.display());
    }
}

#[test]
fn a_cache_on_a_full_disk_says_so_once_and_fails_no_read() {
    let mut seed = Seed::from_environment(42);
    let site = recorded(&mut seed);
    let small = Mounted::small(&site.path("small"), 16 << 20);
    let cache = small.dir.join("cache");
    std::fs::create_dir(&cache).expect("made");
    small.fill();
    let (served, socket) = serve(&site, &cache, "full");
    assert_serves_the_source(&site, &socket);
    assert_serves_the_source(&site, &socket);
    assert!(served.stop(PATIENCE).success());
    let log = std::fs::read_to_string(site.path("full.log")).expect("the log");
    assert_eq!(log.matches("the read cache fails").count(), 1, "{log}");
    drop(small);
}
