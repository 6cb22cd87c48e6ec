//! Single files out of points: what `ls` and `cp` show of a position equals what the kernel shows of the restored image
//! after it has recovered it, at marked points and in the middle of writing.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::mounted::Mounted;
use crate::harness::tools::{run, text};
use crate::harness::{PATIENCE, Seed, Site, SiteOptions, eventually};
use crate::trees::{Tree, difference, tree_of_directory};

const DISK_BYTES: u64 = 256 << 20;

/// Where the file system begins: the second partition.
const OFFSET: u64 = 4 << 20;

/// Positions judged in the middle of writing.
const POSITIONS: usize = 5;

/// A site whose one disk has a GPT with an ext4 file system in its second partition.
fn partitioned() -> Site {
    let site = Site::new(SiteOptions { machines: vec![("db", vec![("root", DISK_BYTES)])], ..SiteOptions::default() });
    let (image, script) = (site.path("image"), site.path("script"));
    std::fs::File::create(&image).and_then(|f| f.set_len(DISK_BYTES)).expect("image is made");
    let table = "label: gpt\nstart=2048,size=2048,type=U,name=boot\nstart=8192,size=480000,type=L,name=data\n";
    std::fs::write(&script, table).expect("script is written");
    run("sh", &["-c", &format!("sfdisk -q {} < {}", text(&image), text(&script))]);
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-E", &format!("offset={OFFSET}"), text(&image), "234M"]);
    run(
        "dd",
        &[&format!("if={}", text(&image)), &format!("of={}", text(&site.source("db", "root"))), "bs=1M", "status=none"],
    );
    site
}

/// Deep and wide, large and sparse, linked both ways.
fn furnish(root: &Path) {
    let file = |name: &str, bytes: &[u8]| std::fs::write(root.join(name), bytes).expect("file is written");
    let deep: PathBuf = (0..40).map(|i| format!("level{i}")).collect();
    std::fs::create_dir_all(root.join(&deep)).expect("directories are made");
    file(&format!("{}/bottom", deep.display()), b"deep");
    std::fs::create_dir(root.join("many")).expect("directory is made");
    for i in 0..10_000 {
        file(&format!("many/name {i}"), i.to_string().as_bytes());
    }
    file(&"n".repeat(255), b"long name");
    file("changed", b"before");
    symlink("changed", root.join("link")).expect("link is made");
    symlink("/etc/passwd", root.join("link out")).expect("link is made");
    std::fs::hard_link(root.join("changed"), root.join("second name")).expect("link is made");
    let sparse = std::fs::File::create(root.join("sparse")).expect("file is made");
    sparse.write_all_at(&[7; 10_000], 20_000_001).expect("piece is written");
    sparse.set_len(64 << 20).expect("length is set");
    run("fallocate", &["-l", "9M", text(&root.join("preallocated"))]);
    run("mkfifo", &[text(&root.join("pipe"))]);
    for name in ["closed", "closed/inner"] {
        std::fs::create_dir(root.join(name)).expect("directory is made");
    }
    file("closed/inner/file", b"behind closed doors");
    for name in ["closed/inner", "closed"] {
        std::fs::set_permissions(root.join(name), PermissionsExt::from_mode(0o555)).expect("mode is set");
    }
    std::fs::set_permissions(root.join("changed"), PermissionsExt::from_mode(0o4640)).expect("mode");
}

/// The tree at a position as the kernel recovers it, and whether there was a journal to replay.
fn recovered(site: &Site, at: &str, name: &str) -> (Tree, bool) {
    let restored = site.restore("db", at, name);
    let mut features = [0; 4];
    let image = std::fs::File::open(&restored[0].1).expect("image opens");
    image.read_exact_at(&mut features, OFFSET + 1024 + 0x60).expect("superblock is read");
    let mounted = Mounted::attach(&restored[0].1, OFFSET, &site.path(&format!("{name}-mount")));
    mounted.mount();
    let tree = tree_of_directory(&mounted.dir);
    mounted.unmount();
    drop(mounted);
    std::fs::remove_dir_all(site.path(name)).expect("restored files are removed");
    (tree, features[0] & 4 != 0)
}

/// The same tree as a copy shows it: without what is not copied. The copy belongs to whoever runs the test: root.
fn as_copied(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    tree.retain(|_, seen| seen.kind != "fifo");
    tree.values_mut().for_each(|seen| seen.permissions &= 0o1777);
    tree
}

/// Copies without any privilege: the superuser without capabilities is a user like others.
fn copy(site: &Site, at: &str, from: &str, to: &Path) -> Value {
    let farshore = site.command().get_program().to_owned();
    let said = run(
        "setpriv",
        &[
            &["--bounding-set=-all", "--inh-caps=-all", "--", farshore.to_str().expect("path is text")][..],
            &["--config", text(&site.config()), "--json", "cp", "db", "--at", at, "--recursive", from, text(to)],
        ]
        .concat(),
    );
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("one object is printed ({e}): {said}"))
}

#[test]
fn ls_and_cp_show_a_point_as_the_kernel_recovers_it() {
    let site = partitioned();
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    let source = Mounted::attach_export(&site.socket("db", "root"), OFFSET, &site.path("mount"));
    source.mount();
    furnish(&source.dir);
    run("sync", &["-f", text(&source.dir)]);
    let before = site.json(&["mark", "db", "--label", "before"])["seq"].as_u64().expect("a position");
    std::fs::write(source.dir.join("changed"), b"after, and longer").expect("file is changed");
    run("sync", &["-f", text(&source.dir)]);
    let after = site.json(&["mark", "db", "--label", "after"])["seq"].as_u64().expect("a position");
    churn(&source.dir, 307);
    site.wait_stored("db");
    let end = site.wait_stored("db");
    source.unmount();
    drop(source);

    lists_partitions(&site, before);
    let mut contents = Vec::new();
    let between = (1..=POSITIONS as u64).map(|i| after + (end - after) * i / POSITIONS as u64);
    for (index, seq) in [before, after].into_iter().chain(between).enumerate() {
        let at = format!("seq:{seq}");
        let (expected, in_use) = recovered(&site, &at, &format!("restored-{index}"));
        assert!(in_use, "{at}: the file system was mounted");
        let to = site.path(&format!("copied-{index}"));
        let report = copy(&site, &at, "/", &to);
        assert_eq!(difference(&tree_of_directory(&to), &as_copied(&expected)), None, "{at}");
        assert_eq!(report["skipped"], serde_json::json!([{ "path": "pipe", "type": "fifo" }]), "{at}");
        assert!(
            report["bytes_written"].as_u64().is_some_and(|bytes| bytes < 64 << 20),
            "{at}: holes stay holes: {report}"
        );
        let ino = |name: &str| to.join(name).metadata().expect("is there").ino();
        assert_eq!(ino("changed"), ino("second name"), "{at}: one file with two names");
        lists_files(&site, &at, &expected);
        contents.push(std::fs::read(to.join("changed")).expect("file is read"));
        std::fs::remove_dir_all(&to).expect("the copy is removed");
    }
    let closed = site.path("closed");
    copy(&site, &format!("seq:{after}"), "/closed", &closed);
    assert_eq!(closed.metadata().expect("is there").mode() & 0o7777, 0o555);
    assert_eq!(std::fs::read(closed.join("inner/file")).expect("file is read"), b"behind closed doors");
    // The control: an earlier point shows an earlier file.
    assert_eq!(contents[0], b"before");
    assert!(contents[1..].iter().all(|later| later == b"after, and longer"), "{contents:?}");
    refuses(&site, &format!("seq:{after}"));
}

/// Files made and removed until the writer is told to stop: most positions lie in the middle of something.
fn churn(root: &Path, seed: u64) {
    let mut seed = Seed::from_environment(seed);
    for round in 0..60u64 {
        let dir = root.join(format!("round{}", round % 5));
        if dir.exists() {
            std::fs::remove_dir_all(&dir).expect("directory is removed");
        }
        std::fs::create_dir(&dir).expect("directory is made");
        for i in 0..seed.below(30) {
            let bytes: Vec<u8> = (0..seed.below(20_000)).map(|at| (at ^ i ^ round) as u8).collect();
            std::fs::write(dir.join(format!("file{i}")), bytes).expect("file is written");
        }
        std::fs::File::create(dir.join("synced")).and_then(|f| f.sync_all()).expect("a commit");
    }
}

fn lists_partitions(site: &Site, seq: u64) {
    let listed = site.json(&["ls", "db", "--at", &format!("seq:{seq}")]);
    let disk = &listed["disks"][0];
    assert_eq!((&disk["disk"], &disk["table"], &disk["size"]), (&"root".into(), &"gpt".into(), &DISK_BYTES.into()));
    let parts = disk["partitions"].as_array().expect("partitions");
    let told: Vec<_> = parts.iter().map(|p| (p["number"].as_u64(), p["offset"].as_u64(), p["size"].as_u64())).collect();
    assert_eq!(told, [(Some(1), Some(1 << 20), Some(1 << 20)), (Some(2), Some(OFFSET), Some(480_000 * 512))]);
    assert_eq!((&parts[1]["file_system"], &parts[1]["name"]), (&"ext4".into(), &"data".into()));
    assert_eq!(parts[0]["file_system"], Value::Null);
}

/// `ls` of two directories and of one file, against the tree.
fn lists_files(site: &Site, at: &str, expected: &Tree) {
    for dir in ["", "many"] {
        let listed = site.json(&["ls", "db", "--at", at, "--disk", "root", "--partition", "2", &format!("/{dir}")]);
        let entries = listed["entries"].as_array().expect("entries");
        let below = expected.keys().filter(|path| path.parent() == Some(Path::new(dir)));
        assert_eq!(entries.len(), below.count(), "{at} {dir:?}");
        for entry in entries {
            let seen = &expected[&Path::new(dir).join(entry["name"].as_str().expect("a name"))];
            assert_eq!(entry["type"], seen.kind, "{entry}");
            assert_eq!(entry["mode"], format!("{:04o}", seen.permissions), "{entry}");
            assert_eq!((entry["uid"].as_u64(), entry["gid"].as_u64()), (Some(0), Some(0)), "{entry}");
            if seen.kind != "directory" {
                assert_eq!(entry["size"], seen.size, "{entry}");
            }
            if seen.kind == "symlink" {
                assert_eq!(entry["target"].as_str().expect("a target").as_bytes(), seen.contents, "{entry}");
            }
        }
    }
    let one = site.json(&["ls", "db", "--at", at, "/link"]);
    assert_eq!((&one["entries"][0]["type"], &one["entries"][0]["target"]), (&"symlink".into(), &"changed".into()));
}

/// What must not be done is not done, and nothing is left of it.
fn refuses(site: &Site, at: &str) {
    let here = site.path("here");
    std::fs::create_dir(&here).expect("directory is made");
    std::fs::write(here.join("changed"), b"mine").expect("file is written");
    std::fs::write(here.join("precious"), b"mine").expect("file is written");
    symlink("precious", here.join("link")).expect("link is made");
    let cp = |args: &[&str]| site.run(&[&["cp", "db", "--at", at], args].concat());
    let to = text(&here);
    for (args, code, why) in [
        (&["/changed", to][..], 2, "--force"),
        (&["/link", to], 2, "--force"),
        (&["/many", to], 2, "--recursive"),
        (&["/nothing", to], 1, "no such file"),
        (&["/pipe", to], 2, "fifo"),
        (&["--recursive", "/", to], 2, "directory"),
        (&["--partition", "1", "/changed", to], 1, "farshore serve"),
        (&["--partition", "7", "/changed", to], 2, "2 (ext4)"),
        (&["/changed", "/nonexistent/x"], 2, "make it first"),
    ] {
        let ran = cp(args);
        assert_eq!(ran.code, code, "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(why) && ran.stderr.lines().count() == 1, "{args:?}: {ran:?}");
    }
    let names = || std::fs::read_dir(&here).expect("directory is read").count();
    assert_eq!(names(), 3, "nothing was made and nothing is left");
    assert_eq!(std::fs::read(here.join("changed")).expect("file is read"), b"mine");
    assert_eq!(cp(&["--force", "/changed", text(&here.join("link"))]).code, 0);
    assert!(here.join("link").symlink_metadata().expect("is there").is_file(), "the link is replaced");
    assert_eq!(std::fs::read(here.join("precious")).expect("file is read"), b"mine", "and not followed");
    assert_eq!(cp(&["/link/", to]).code, 2, "a slash behind a link means its target, which has the link's name");
    assert_eq!(names(), 3);
}

/// A copy that is told to stop removes what it has made.
#[test]
fn a_stopped_copy_leaves_nothing() {
    let site = partitioned();
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    let source = Mounted::attach_export(&site.socket("db", "root"), OFFSET, &site.path("mount"));
    source.mount();
    furnish(&source.dir);
    run("sync", &["-f", text(&source.dir)]);
    site.json(&["mark", "db", "--label", "full"]);
    source.unmount();
    drop(source);
    let here = site.path("here");
    std::fs::create_dir(&here).expect("directory is made");
    let names = || std::fs::read_dir(&here).expect("directory is read").count();
    let to = here.join("copy");
    let cp = site.start(&["cp", "db", "--at", "latest", "--recursive", "/", text(&to)]);
    eventually("the copy begins", || if names() == 1 { Ok(()) } else { Err("nothing is there".into()) });
    assert!(!cp.stop(PATIENCE).success(), "a stopped copy is no success");
    assert_eq!(names(), 0, "nothing is left");
}
