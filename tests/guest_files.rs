//! Single files out of XFS and NTFS, through libguestfs: what `ls` and `cp` show of a position equals what the kernel shows of the
//! restored image after it has recovered it.
//!
//! libguestfs starts a virtual machine and needs packages that the other tests do not, so this is a chore of its own,
//! `cargo xtask libguestfs`; without it the test only says so.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::harness::mounted::Mounted;
use crate::harness::tools::{run, text};
use crate::harness::{Site, SiteOptions};
use crate::trees::{Tree, difference, tree_of_directory};

const XFS_DISK_BYTES: u64 = 512 << 20;
const NTFS_DISK_BYTES: u64 = 64 << 20;

/// Where the XFS file system begins: the second partition.
const XFS_OFFSET: u64 = 4 << 20;

/// A machine with XFS in the second partition of one disk, and NTFS on the whole of another.
fn site() -> Site {
    let disks = vec![("root", XFS_DISK_BYTES), ("win", NTFS_DISK_BYTES)];
    let site = Site::new(SiteOptions { machines: vec![("db", disks)], ..SiteOptions::default() });
    let (root, win) = (site.source("db", "root"), site.source("db", "win"));
    let script = site.path("script");
    std::fs::write(&script, "label: gpt\nstart=2048,size=2048,type=U,name=boot\nstart=8192,type=L,name=data\n")
        .expect("written");
    run("sh", &["-c", &format!("sfdisk -q {} < {}", text(&root), text(&script))]);
    let below = Mounted::attach(&root, XFS_OFFSET, &site.path("made"));
    // The end of the disk is the spare table.
    run("mkfs.xfs", &["-q", "-d", "size=500m", &below.device]);
    drop(below);
    run("mkfs.ntfs", &["-q", "-F", "--fast", text(&win)]);
    site
}

/// Names and contents that a shell, a listing or a copy may stumble over.
fn furnish(root: &Path) {
    let file = |name: &str, bytes: &[u8]| std::fs::write(root.join(name), bytes).expect("file is written");
    std::fs::create_dir_all(root.join("a $(dir) \"x\"/deep")).expect("directories are made");
    file("a $(dir) \"x\"/deep/bottom", b"deep");
    file("back\\slash | pipe\nline", b"odd");
    file("changed", b"before");
    let large: Vec<u8> = (0..9_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    file("large", &large);
    file("empty", b"");
    symlink("changed", root.join("link")).expect("link is made");
    symlink("/etc/passwd", root.join("link out")).expect("link is made");
    std::fs::hard_link(root.join("changed"), root.join("second name")).expect("link is made");
}

fn copy(site: &Site, at: &str, disk: &str, to: &Path) -> Tree {
    site.json(&["cp", "db", "--at", at, "--disk", disk, "--recursive", "/", text(to)]);
    tree_of_directory(to)
}

/// The tree at a position as the kernel recovers it, as a copy shows it.
fn recovered(site: &Site, at: &str, disk: &str, offset: u64, name: &str) -> Tree {
    let restored: Vec<(String, PathBuf)> = site.restore("db", at, name);
    let image = &restored.iter().find(|(restored, _)| restored == disk).expect("the disk is restored").1;
    let mounted = Mounted::attach(image, offset, &site.path(&format!("{name}-mount")));
    mounted.mount();
    let mut tree = tree_of_directory(&mounted.dir);
    mounted.unmount();
    tree.values_mut().for_each(|seen| seen.permissions &= 0o1777);
    tree
}

#[test]
fn xfs_and_ntfs_are_read_through_libguestfs() {
    if std::env::var_os("FARSHORE_LIBGUESTFS").is_none() {
        eprintln!("not asked for: `cargo xtask libguestfs` installs what this needs and runs it");
        return;
    }
    let site = site();
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    let xfs = Mounted::attach_export(&site.socket("db", "root"), XFS_OFFSET, &site.path("xfs"));
    xfs.mount();
    furnish(&xfs.dir);
    run("sync", &["-f", text(&xfs.dir)]);
    let ntfs = Mounted::attach_export(&site.socket("db", "win"), 0, &site.path("ntfs"));
    run("mount", &["-t", "ntfs-3g", &ntfs.device, text(&ntfs.dir)]);
    std::fs::create_dir(ntfs.dir.join("Program Files")).expect("directory is made");
    std::fs::write(ntfs.dir.join("Program Files/app.ini"), b"[app]").expect("file is written");
    run("umount", &[text(&ntfs.dir)]);
    let before = site.json(&["mark", "db", "--label", "before"])["seq"].as_u64().expect("a position");
    std::fs::write(xfs.dir.join("changed"), b"after, and longer").expect("file is changed");
    run("sync", &["-f", text(&xfs.dir)]);
    let after = site.json(&["mark", "db", "--label", "after"])["seq"].as_u64().expect("a position");
    site.wait_stored("db");
    // The kernel mounts no two of one UUID.
    xfs.unmount();
    drop(xfs);

    let mut contents = Vec::new();
    for (index, seq) in [before, after].into_iter().enumerate() {
        let at = format!("seq:{seq}");
        // The log of a mounted XFS is not clean: it is replayed by whoever reads it.
        let expected = recovered(&site, &at, "root", XFS_OFFSET, &format!("restored-{index}"));
        let to = site.path(&format!("copied-{index}"));
        assert_eq!(difference(&copy(&site, &at, "root", &to), &expected), None, "{at}");
        let ino = |name: &str| to.join(name).metadata().expect("is there").ino();
        assert_eq!(ino("changed"), ino("second name"), "{at}: one file with two names");
        contents.push(std::fs::read(to.join("changed")).expect("file is read"));
    }
    // The control: an earlier point shows an earlier file.
    assert_eq!(contents, [&b"before"[..], b"after, and longer"]);
    let at = format!("seq:{after}");
    let win = site.path("win");
    copy(&site, &at, "win", &win);
    assert_eq!(std::fs::read(win.join("Program Files/app.ini")).expect("file is read"), b"[app]");
    lists_and_refuses(&site, &at);
}

fn lists_and_refuses(site: &Site, at: &str) {
    let listed = site.json(&["ls", "db", "--at", at, "--disk", "root", "/"]);
    let names: Vec<_> = listed["entries"].as_array().expect("entries").iter().map(|e| e["name"].clone()).collect();
    assert_eq!(names.len(), 8, "{names:?}");
    assert!(names.contains(&"back\\slash | pipe\nline".into()), "{names:?}");
    let link = &listed["entries"].as_array().expect("entries")[5];
    assert_eq!((&link["type"], &link["target"]), (&"symlink".into(), &"changed".into()), "{listed}");
    let one = site.json(&["ls", "db", "--at", at, "--disk", "root", "--partition", "2", "/link/"]);
    assert_eq!(one["entries"][0]["size"], 17, "a slash behind a link means its target");
    let missing = site.run(&["ls", "db", "--at", at, "--disk", "root", "/nothing"]);
    assert_eq!(missing.code, 1, "{missing:?}");
    assert!(missing.stderr.contains("No such file") && missing.stderr.lines().count() == 1, "{missing:?}");
}
