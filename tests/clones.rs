//! Machines cloned from one template: ten cost little more than one, each comes back as itself, and what others read cannot be
//! purged.

use std::path::{Path, PathBuf};

use crate::harness::tools::run;
use crate::harness::{PATIENCE, Site, SiteOptions};

/// Bytes of real files in the template.
const FILES_BYTES: u64 = 72 << 20;

/// Bytes of each disk.
const DISK_BYTES: u64 = 160 << 20;

const NAMES: [&str; 10] = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9"];

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// Files of this machine's own /usr, up to some bytes.
fn real_files(to: &Path, bytes: u64) {
    std::fs::create_dir(to).expect("folder is made");
    let mut left = bytes;
    let mut folders = vec![PathBuf::from("/usr/bin"), PathBuf::from("/usr/lib")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let Ok(kind) = entry.file_type() else { continue };
            let size = entry.metadata().map_or(0, |found| found.len());
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && (1..=left.min(16 << 20)).contains(&size) {
                let name = format!("{left}-{}", entry.file_name().to_string_lossy());
                left -= std::fs::copy(entry.path(), to.join(name)).unwrap_or(0);
            }
        }
    }
    assert!(left < bytes / 2, "this machine has {} bytes of files", bytes - left);
}

/// An ext4 image of real files.
fn template(site: &Site, files: u64, disk: u64) -> PathBuf {
    let (folder, image) = (site.path("files"), site.path("template"));
    real_files(&folder, files);
    std::fs::File::create(&image).and_then(|file| file.set_len(disk)).expect("image is made");
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", text(&folder), text(&image)]);
    image
}

/// A clone: the template with a few changes of its own.
fn clone(site: &Site, image: &Path, machine: &str) {
    let source = site.source(machine, "root");
    run(
        "dd",
        &[
            &format!("if={}", text(image)),
            &format!("of={}", text(&source)),
            "bs=1M",
            "conv=sparse,notrunc",
            "status=none",
        ],
    );
    let own = site.path(&format!("{machine}-hostname"));
    std::fs::write(&own, format!("{machine}\n").repeat(4000)).expect("file is written");
    run("debugfs", &["-w", "-R", &format!("write {} hostname", text(&own)), text(&source)]);
}

/// Streams of this site share what drains bring in.
pub(crate) fn share(site: &Site) {
    let config = std::fs::read_to_string(site.config()).expect("config");
    let config = config.replacen("[process_server]\n", "[process_server]\nshare_entries = 65536\n", 1);
    std::fs::write(site.config(), config).expect("config is written");
}

/// Bytes of all objects in the store.
fn store_bytes(site: &Site) -> u64 {
    let mut folders = vec![PathBuf::from(site.store_url().trim_start_matches("file://"))];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("folder is read").flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => bytes += entry.metadata().map_or(0, |found| found.len()),
            }
        }
    }
    bytes
}

fn comes_back(site: &Site, machine: &str) {
    let restored = site.restore(machine, "latest", &format!("{machine}-restored"));
    site.assert_equals_source(machine, &restored);
    std::fs::remove_dir_all(site.path(&format!("{machine}-restored"))).expect("restored files are removed");
}

#[test]
fn ten_clones_cost_little_more_than_one() {
    let machines = NAMES.iter().map(|name| (*name, vec![("root", DISK_BYTES)])).collect();
    let site = Site::new(SiteOptions { machines, ..SiteOptions::default() });
    share(&site);
    let image = template(&site, FILES_BYTES, DISK_BYTES);
    let _server = site.start(&["process-server"]);
    let (mut agents, mut costs) = (Vec::new(), Vec::new());
    let mut before = store_bytes(&site);
    for machine in NAMES {
        clone(&site, &image, machine);
        agents.push(site.start_agent(machine));
        site.wait_stored(machine);
        let now = store_bytes(&site);
        costs.push(now - before);
        before = now;
    }
    let one = costs[0];
    println!(
        "the first costs {one} bytes, the others {:?}; all {:.3} times the first",
        &costs[1..],
        before as f64 / one as f64
    );
    assert!(one > FILES_BYTES / 8, "{one} bytes: there is something to share");
    assert!(before < one * 13 / 10, "{before} bytes for ten, {one} for one");
    assert!(costs[1..].iter().all(|cost| *cost < one * 3 / 100), "{costs:?}");
    NAMES.iter().for_each(|machine| comes_back(&site, machine));
    let verified = site.run(&["verify", "c7"]);
    assert_eq!(verified.code, 0, "{verified:?}");

    // The first is needed by all others, and stays as it is when it is refused.
    agents.remove(0).stop(PATIENCE);
    let refused = site.run(&["unprotect", "c0", "--purge"]);
    assert!(refused.code == 1 && refused.stderr.contains("c1, c2") && refused.stderr.contains("c9"), "{refused:?}");
    comes_back(&site, "c3");
    // The last is not: the agents of the others go on meanwhile, each in a new epoch. Changes of their own may be alike, so that
    // later ones read from earlier ones.
    for machine in NAMES[1..].iter().rev() {
        agents.pop().expect("one for each").stop(PATIENCE);
        let purged = site.run(&["unprotect", machine, "--purge"]);
        assert_eq!(purged.code, 0, "{purged:?}");
    }
    comes_back(&site, "c0");
    let purged = site.run(&["unprotect", "c0", "--purge"]);
    assert_eq!(purged.code, 0, "{purged:?}");
    assert!(store_bytes(&site) < 1 << 20, "{} bytes are left", store_bytes(&site));
}
