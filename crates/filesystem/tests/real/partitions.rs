//! Partition tables that sfdisk writes are read as sfdisk reads them, from either end of the disk; broken ones are not.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{Image, run, text};
use filesystem::{FsKind, TableKind, Volume, Window, kind_of, partitions};

const DISK_BYTES: u64 = 64 << 20;

fn write_table(image: &Path, script: &str) {
    std::fs::File::create(image).and_then(|f| f.set_len(DISK_BYTES)).expect("image is made");
    let mut sfdisk = Command::new("sfdisk")
        .args(["-q", text(image)])
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run sfdisk ({e}): `cargo xtask test` installs it"));
    sfdisk.stdin.take().expect("is piped").write_all(script.as_bytes()).expect("script is written");
    assert!(sfdisk.wait().expect("sfdisk ends").success(), "{script}");
}

/// Number, first byte, size and type of each partition, as `sfdisk --dump` says.
fn told_by_sfdisk(image: &Path) -> Vec<(u32, u64, u64, String)> {
    let dump = run("sfdisk", &["--dump", text(image)]);
    let lines = dump.lines().filter(|line| line.contains("start="));
    let field = |line: &str, key: &str| {
        let rest = line.split_once(key).unwrap_or_else(|| panic!("{line} has {key}")).1;
        rest.split(',').next().expect("a value").trim().to_owned()
    };
    lines
        .filter(|line| !["5", "f", "85"].contains(&field(line, "type=").as_str()))
        .map(|line| {
            let device = line.split_once(" :").expect("a device").0;
            let number =
                device.rsplit(|c: char| !c.is_ascii_digit()).next().expect("a number").parse().expect("digits");
            let sectors = |key| field(line, key).parse::<u64>().expect("digits") * 512;
            (number, sectors("start="), sectors("size="), field(line, "type=").to_lowercase())
        })
        .collect()
}

fn found(volume: &dyn Volume) -> (TableKind, Vec<(u32, u64, u64, String)>) {
    let table = partitions(volume).expect("the disk is read");
    let parts = table.partitions.iter().map(|p| {
        let table_type = p.table_type.to_lowercase();
        (p.number, p.offset, p.size, table_type.trim_start_matches("0x").trim_start_matches('0').to_owned())
    });
    (table.kind, parts.collect())
}

fn trimmed(parts: Vec<(u32, u64, u64, String)>) -> Vec<(u32, u64, u64, String)> {
    parts.into_iter().map(|(n, o, s, t)| (n, o, s, t.trim_start_matches('0').to_owned())).collect()
}

const GPT: &str = "label: gpt\nstart=2048,size=2048,type=U,name=\"EFI ünïcode\"\nstart=8192,size=40000,type=L\nstart=60000,size=9000,type=L,name=third\n";

#[test]
fn a_gpt_is_read_as_sfdisk_reads_it_from_either_end() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = dir.path().join("image");
    write_table(&image, GPT);
    let expected = trimmed(told_by_sfdisk(&image));
    assert_eq!(expected.len(), 3);
    assert_eq!(found(&*Image::open(&image)), (TableKind::Gpt, expected.clone()));
    let table = partitions(&*Image::open(&image)).expect("is read");
    let names: Vec<_> = table.partitions.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["EFI ünïcode", "", "third"]);
    let file = std::fs::File::options().write(true).open(&image).expect("image opens");
    file.write_all_at(&[0x55; 512], 512).expect("the front is destroyed");
    assert_eq!(found(&*Image::open(&image)), (TableKind::Gpt, expected));
    file.write_all_at(&[0x55; 512], DISK_BYTES - 512).expect("the end is destroyed");
    let (kind, parts) = found(&*Image::open(&image));
    assert_eq!((kind, parts.len()), (TableKind::Mbr, 1), "the protective record is left: {parts:?}");
}

#[test]
fn a_gpt_with_a_wrong_entry_is_not_believed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = dir.path().join("image");
    write_table(&image, GPT);
    let file = std::fs::File::options().write(true).open(&image).expect("image opens");
    file.write_all_at(&[1], 1024 + 0x20).expect("an entry's first sector is changed");
    file.write_all_at(&[1], DISK_BYTES - 33 * 512 + 0x20).expect("and its copy");
    assert_eq!(found(&*Image::open(&image)).0, TableKind::Mbr);
}

#[test]
fn an_mbr_with_logical_partitions_is_read_as_sfdisk_reads_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = dir.path().join("image");
    let script = "label: dos\nstart=2048,size=4096,type=83\nstart=8192,size=80000,type=f\nstart=10240,size=4096,type=83\n\
                  start=20480,size=8192,type=82\nstart=40960,size=2048,type=7\nstart=100000,size=5000,type=b\n";
    write_table(&image, script);
    let mut expected = trimmed(told_by_sfdisk(&image));
    expected.sort();
    assert_eq!(expected.len(), 5, "two primary and three logical: {expected:?}");
    assert_eq!(found(&*Image::open(&image)), (TableKind::Mbr, expected));
    // A chain that comes back to where it began ends.
    let file = std::fs::File::options().read(true).write(true).open(&image).expect("image opens");
    let mut record = [0; 512];
    file.read_exact_at(&mut record, 8192 * 512).expect("first logical record");
    record[446 + 16 + 4] = 5;
    record[446 + 16 + 8..446 + 16 + 12].copy_from_slice(&1u32.to_le_bytes());
    file.write_all_at(&record, 8192 * 512).expect("is changed");
    record[446 + 16 + 8..446 + 16 + 12].copy_from_slice(&1u32.to_le_bytes());
    file.write_all_at(&record, 8193 * 512).expect("the next is itself");
    assert_eq!(found(&*Image::open(&image)).1.len(), 2 + 256);
}

#[test]
fn a_disk_without_a_table_is_one_file_system() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = dir.path().join("image");
    for (program, options, kind) in [
        ("mke2fs", &["-q", "-F", "-t", "ext4"][..], FsKind::Ext),
        ("mkfs.xfs", &["-q", "-f"], FsKind::Xfs),
        ("mkswap", &[], FsKind::Swap),
    ] {
        std::fs::File::create(&image).and_then(|f| f.set_len(400 << 20)).expect("image is made");
        run(program, &[options, &[text(&image)]].concat());
        let volume = Image::open(&image);
        assert_eq!(found(&*volume), (TableKind::None, Vec::new()), "{program}");
        assert_eq!(kind_of(&*volume).expect("is read"), Some(kind), "{program}");
        assert_eq!(
            kind_of(&Window::new(volume, 512, 1 << 20)).expect("is read"),
            None,
            "{program}, a sector further on"
        );
    }
}
