//! Replica disks of every kind, kept by the shipping binary and read by QEMU: on a block device, in qcow2, in a VHD, or not
//! at all. Needs root for loop devices.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::site::{assert_same, difference};
use crate::harness::tools::{run, try_run};
use crate::harness::{PATIENCE, Proc, Site, SiteOptions, eventually};

const ROOT_BYTES: u64 = 16 << 20;
const DATA_BYTES: u64 = (8 << 20) + 512;
const DEVICE_BYTES: u64 = 20 << 20;

/// A loop device on a file of its own; detached when dropped.
struct Loop {
    device: String,
}

impl Loop {
    fn attach(file: &Path, bytes: u64) -> Self {
        std::fs::File::create(file).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        let device = run("losetup", &["--find", "--show", &file.to_string_lossy()]).trim().to_owned();
        Self { device }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        try_run("losetup", &["-d", &self.device]);
    }
}

fn site() -> Site {
    let machines = vec![("db", vec![("root", ROOT_BYTES), ("data", DATA_BYTES)])];
    Site::new(SiteOptions { machines, ..SiteOptions::default() })
}

/// Changes the site's configuration, for roles that start from now on.
fn configure(site: &Site, from: &str, to: &str) {
    let text = std::fs::read_to_string(site.config()).expect("config");
    assert!(text.contains(from), "{from:?} in {text}");
    std::fs::write(site.config(), text.replacen(from, to, 1)).expect("config is written");
}

fn write(site: &Site, disk: &str, commands: &[&str]) {
    let uri = site.nbd_uri("db", disk);
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(&uri);
    run("qemu-io", &args);
}

fn replica(site: &Site) -> Result<Value, String> {
    Ok(site.control("applier", "GET", "/status", "")?["machines"][0]["replica"].clone())
}

/// Waits until the replica claims the end of the stream, then stops the applier: nobody holds the disks.
fn at_the_end(site: &Site, applier: Proc) {
    let seq = site.wait_stored("db");
    eventually("the replica stands at the end", || {
        let replica = replica(site)?;
        let there = replica["seq"] == seq && replica["moving_to"].is_null();
        if there { Ok(()) } else { Err(format!("{replica:#}")) }
    });
    assert!(applier.stop(PATIENCE).success());
}

/// Waits until the applier says why the replica cannot move.
fn refused(site: &Site, words: &[&str]) {
    eventually("the replica is refused", || {
        let error = replica(site)?["last_error"].to_string();
        if words.iter().all(|word| error.contains(word)) { Ok(()) } else { Err(error) }
    });
}

/// Whether QEMU finds an image equal to a source. What an image has beyond the source must be zeros.
fn qemu_says_equal(source: &Path, format: &str, image: &Path) -> bool {
    let (source, image) = (source.to_string_lossy(), image.to_string_lossy());
    try_run("qemu-img", &["compare", "-f", "raw", "-F", format, &source, &image]).status.success()
}

fn device_holds(path: &Path, at: u64, wanted: &[u8]) -> bool {
    let mut found = vec![0; wanted.len()];
    std::fs::File::open(path).and_then(|file| file.read_exact_at(&mut found, at)).expect("read");
    found == wanted
}

#[test]
fn a_block_device_is_taken_when_it_is_blank_and_follows_through_kills_and_rebuilds() {
    let site = site();
    let device = Loop::attach(&site.path("device"), DEVICE_BYTES);
    let small = Loop::attach(&site.path("small"), ROOT_BYTES - 512);
    let path = PathBuf::from(&device.device);
    let source = site.source("db", "root");
    let source_key = format!("source = \"{}\"\n", source.to_string_lossy());
    let on = |device: &str| format!("{source_key}replica_device = \"{device}\"\n");
    configure(&site, &source_key, &on(&small.device));
    configure(&site, "crash_every", "replica_lag = \"1s\"\ncrash_every");
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    write(&site, "root", &["write -P 0xa1 0 1M", "write -P 0xa2 8M 64k", "flush"]);
    write(&site, "data", &["write -P 0xb1 4M 512k", "flush"]);
    site.wait_stored("db");

    // Too small: both sizes are named.
    let applier = site.start(&["applier"]);
    refused(&site, &[&small.device, &ROOT_BYTES.to_string(), &(ROOT_BYTES - 512).to_string()]);
    assert!(applier.stop(PATIENCE).success());

    // Holding something: it is left as it is.
    let precious = b"precious";
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    file.write_all_at(precious, DEVICE_BYTES - 512).and_then(|()| file.sync_all()).expect("written");
    configure(&site, &on(&small.device), &on(&device.device));
    let applier = site.start(&["applier"]);
    refused(&site, &[&device.device, "not taken", &(DEVICE_BYTES - 512).to_string(), "blkdiscard"]);
    let status = site.run(&["status"]);
    assert!(status.stdout.contains("not taken for replica disk root"), "{status:?}");
    assert!(device_holds(&path, DEVICE_BYTES - 512, precious) && device_holds(&path, 0, &[0; 4096]));

    // Blank: it is taken, and follows.
    file.write_all_at(&[0; 8], DEVICE_BYTES - 512).and_then(|()| file.sync_all()).expect("written");
    drop(file);
    at_the_end(&site, applier);
    assert!(qemu_says_equal(&source, "raw", &path));
    assert_same(&site.source("db", "data"), &site.data_dir().join("replica/db/data.raw"));

    // Killed under load, again and again; what it left is gone on with, by records or by maps.
    for round in 0..4u64 {
        let applier = site.start(&["applier"]);
        for piece in 0..12 {
            let at = (round * 12 + piece) * 4;
            write(
                &site,
                "root",
                &[&format!("write -P {} {}k 16k", 1 + round * 12 + piece, 256 * at / 4), "discard 64k 32k"],
            );
        }
        applier.kill();
    }
    at_the_end(&site, site.start(&["applier"]));
    assert!(qemu_says_equal(&source, "raw", &path));

    // The control: one byte on the device.
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    file.write_all_at(&[0xa3], (8 << 20) + 5000).and_then(|()| file.sync_all()).expect("written");
    assert!(!qemu_says_equal(&source, "raw", &path));

    // The state is lost, not what says that the device is ours: it is built anew.
    std::fs::write(site.data_dir().join("replica/db/state"), b"rubbish").expect("written");
    at_the_end(&site, site.start(&["applier"]));
    assert!(qemu_says_equal(&source, "raw", &path));

    // All of it is lost: whose the device is, is not known any more.
    std::fs::remove_dir_all(site.data_dir().join("replica/db")).expect("removed");
    let applier = site.start(&["applier"]);
    refused(&site, &[&device.device, "not taken"]);
    drop(applier);
}

#[test]
fn replica_images_are_what_qemu_takes_for_the_source() {
    let site = site();
    configure(&site, "queue_bytes", "replica_format = \"qcow2\"\nqueue_bytes");
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    write(&site, "root", &["write -P 0xa1 0 1M", "write -P 0xa2 8M 64k", "flush"]);
    write(&site, "data", &["write -P 0xb1 4M 512k", "write -P 0xb2 8M 512", "flush"]);
    let mut before = "qcow2";
    for (format, qemu) in [("qcow2", "qcow2"), ("vhd", "vpc")] {
        configure(&site, &format!("replica_format = \"{before}\""), &format!("replica_format = \"{format}\""));
        before = format;
        let applier = site.start(&["applier"]);
        write(&site, "root", &[&format!("write -P 0x{} 2M 128k", format.len()), "write -z 128k 64k", "flush"]);
        applier.kill();
        at_the_end(&site, site.start(&["applier"]));
        for disk in ["root", "data"] {
            let (source, image) = (site.source("db", disk), replica_file(&site, disk, format));
            assert!(qemu_says_equal(&source, qemu, &image), "{}", image.display());
            if format == "qcow2" {
                run("qemu-img", &["check", "-f", "qcow2", &image.to_string_lossy()]);
            }
            // The control: another byte in the source's copy.
            let other = site.path("other");
            std::fs::copy(&source, &other).expect("copied");
            let file = OpenOptions::new().write(true).open(&other).expect("opened");
            file.write_all_at(&[0x77], 4 << 20).expect("written");
            assert!(difference(&source, &other).is_some() && !qemu_says_equal(&other, qemu, &image));
        }
        let others = ["raw", "qcow2", "vhd"].into_iter().filter(|other| *other != format);
        assert!(others.into_iter().all(|other| !replica_file(&site, "root", other).exists()), "one replica is kept");
    }
}

fn replica_file(site: &Site, disk: &str, extension: &str) -> PathBuf {
    site.data_dir().join("replica/db").join(format!("{disk}.{extension}"))
}

#[test]
fn a_machine_without_replica_has_points_and_says_that_it_has_none() {
    let site = site();
    configure(&site, "queue_bytes", "replica = \"none\"\nqueue_bytes");
    let _server = site.start(&["process-server"]);
    let _applier = site.start(&["applier"]);
    let _agent = site.start_agent("db");
    write(&site, "root", &["write -P 0xa1 0 1M", "flush"]);
    let seq = site.wait_stored("db");
    eventually("the applier takes everything in", || {
        let status = site.control("applier", "GET", "/status", "")?;
        if status["machines"][0]["processed_seq"] == seq { Ok(()) } else { Err(format!("{status:#}")) }
    });
    assert!(replica(&site).expect("answers").is_null());
    let status = site.run(&["status"]);
    assert!(status.stdout.contains("db: no replica is kept (replica = \"none\")"), "{status:?}");
    let to = site.path("out").to_string_lossy().into_owned();
    let source = site.source("db", "root").to_string_lossy().into_owned();
    for command in [
        vec!["restore", "db", "--at", "latest-processed", "--to", &to, "--format", "raw"],
        vec!["compare", "db", "--disk", "root", "--at", "latest-processed", "--with", &source],
    ] {
        let ran = site.run(&command);
        assert!(ran.code == 2 && ran.stderr.contains("keeps no replica") && ran.stderr.contains("latest"), "{ran:?}");
    }
    site.assert_equals_source("db", &site.restore("db", "latest", "restored"));
    assert!(!site.data_dir().join("replica").exists());
}
