//! `farshore ls`: what is on the disks of a position: partitions, or the files of one of them.

use std::os::unix::ffi::OsStrExt;

use applier::recover::PointReader;
use filesystem::{Ext4, FsKind, Inode, InodeKind, TableKind, Time};
use model::DiskName;
use serde_json::{Value, json};

use super::point;
use crate::cli::{Global, LsArgs};
use crate::failure::usage;
use crate::files::{DiskLayout, Found, Place, layout, on_its_own_thread, volume_of};
use crate::output::{Output, bytes_text};

/// Lists partitions, or files when a partition or a path was given.
pub async fn run(global: &Global, args: &LsArgs, output: Output) -> anyhow::Result<()> {
    let reader = point::open_cached(global, &args.machine, &args.at, None).await?;
    let mut object = json!({ "machine": args.machine, "position": point::position(reader.at()) });
    if args.path.is_none() && args.partition.is_none() {
        let disks = disks(&reader, args.disk.as_ref()).await?;
        object["disks"] = disks.iter().map(layout_value).collect();
        output.print(&object, || disks.iter().map(layout_text).collect());
        return Ok(());
    }
    let place = place(&reader, args.disk.as_ref(), args.partition)?;
    let path = args.path.clone().unwrap_or_else(|| "/".into());
    let volume = volume_of(reader.disk(&place.disk)?);
    object["disk"] = json!(place.disk);
    let shown = path.as_os_str().as_bytes().to_vec();
    let (partition, entries) = on_its_own_thread(move || {
        let Found { partition, fs } = place.open(volume)?;
        Ok((partition, entries(&fs, &shown)?))
    })
    .await?;
    object["partition"] = json!(partition);
    object["path"] = json!(path.to_string_lossy());
    object["entries"] = entries.iter().map(Entry::value).collect();
    output.print(&object, || entries.iter().map(Entry::text).collect());
    Ok(())
}

/// The place that flags name. A machine with one disk needs no `--disk`.
pub fn place(reader: &PointReader, disk: Option<&DiskName>, partition: Option<u32>) -> anyhow::Result<Place> {
    let disk = match (disk, &reader.disks()[..]) {
        (Some(disk), _) => disk.clone(),
        (None, [only]) => only.name.clone(),
        (None, disks) => {
            let names: Vec<_> = disks.iter().map(|disk| disk.name.as_str()).collect();
            return Err(usage(format!("choose a disk with --disk; there are: {}", names.join(", "))));
        }
    };
    Ok(Place { disk, partition })
}

async fn disks(reader: &PointReader, only: Option<&DiskName>) -> anyhow::Result<Vec<DiskLayout>> {
    let names = match only {
        Some(disk) => vec![disk.clone()],
        None => reader.disks().into_iter().map(|disk| disk.name).collect(),
    };
    let mut layouts = Vec::new();
    for name in names {
        let volume = volume_of(reader.disk(&name)?);
        layouts.push(on_its_own_thread(move || layout(name, &volume)).await?);
    }
    Ok(layouts)
}

fn layout_value(layout: &DiskLayout) -> Value {
    let kind = |holds: &Option<FsKind>| json!(holds.map(FsKind::name));
    let partitions = layout.table.partitions.iter().zip(&layout.holds).map(|(p, holds)| {
        json!({
            "number": p.number,
            "offset": p.offset,
            "size": p.size,
            "type": p.table_type,
            "name": p.name,
            "file_system": kind(holds),
        })
    });
    json!({
        "disk": layout.disk,
        "size": layout.size,
        "table": table_name(layout.table.kind),
        "file_system": kind(&layout.whole),
        "partitions": partitions.collect::<Vec<_>>(),
    })
}

fn table_name(kind: TableKind) -> Option<&'static str> {
    match kind {
        TableKind::Gpt => Some("gpt"),
        TableKind::Mbr => Some("mbr"),
        TableKind::None => None,
    }
}

fn layout_text(layout: &DiskLayout) -> String {
    let known = |holds: Option<FsKind>| holds.map_or("unknown", FsKind::name);
    let divided = table_name(layout.table.kind).unwrap_or_else(|| known(layout.whole));
    let mut text = format!("{}: {}, {divided}\n", layout.disk, bytes_text(layout.size));
    for (p, holds) in layout.table.partitions.iter().zip(&layout.holds) {
        let (size, name) = (bytes_text(p.size), printable(p.name.as_bytes()));
        text += &format!("  {:>3}  {size:>10}  {:<8}  {}  {name}\n", p.number, known(*holds), p.table_type);
    }
    text
}

/// A line of the listing.
struct Entry {
    name: Vec<u8>,
    inode: Inode,
    target: Option<Vec<u8>>,
}

impl Entry {
    fn new(fs: &Ext4, name: Vec<u8>, inode: Inode) -> anyhow::Result<Self> {
        let target = match inode.kind {
            InodeKind::Link => Some(fs.link_target(&inode)?),
            _ => None,
        };
        Ok(Self { name, inode, target })
    }

    fn value(&self) -> Value {
        let mut value = json!({
            "name": String::from_utf8_lossy(&self.name),
            "type": self.inode.kind.name(),
            "mode": format!("{:04o}", self.inode.permissions),
            "uid": self.inode.uid,
            "gid": self.inode.gid,
            "links": self.inode.links,
            "size": self.inode.size,
            "modified": time_text(self.inode.modified),
        });
        if std::str::from_utf8(&self.name).is_err() {
            value["name_hex"] = json!(self.name.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        }
        if let Some(target) = &self.target {
            value["target"] = json!(String::from_utf8_lossy(target));
        }
        value
    }

    fn text(&self) -> String {
        let inode = &self.inode;
        let (mode, time, name) = (mode_text(inode), time_text(inode.modified), printable(&self.name));
        let arrow = self.target.as_ref().map(|target| format!(" -> {}", printable(target))).unwrap_or_default();
        format!("{mode} {:>3} {:>5} {:>5} {:>12} {time} {name}{arrow}\n", inode.links, inode.uid, inode.gid, inode.size)
    }
}

/// What a path names: the names in a directory by name, or one line for anything else.
fn entries(fs: &Ext4, path: &[u8]) -> anyhow::Result<Vec<Entry>> {
    let inode = fs.resolve(path, path.ends_with(b"/"))?;
    if inode.kind != InodeKind::Directory {
        return Ok(vec![Entry::new(fs, path.to_vec(), inode)?]);
    }
    let mut names = fs.list(&inode)?;
    names.sort_by(|a, b| a.name.cmp(&b.name));
    names.into_iter().map(|entry| Entry::new(fs, entry.name, fs.inode(entry.inode)?)).collect()
}

/// As `ls -l` shows it.
fn mode_text(inode: &Inode) -> String {
    let kind = match inode.kind {
        InodeKind::File => '-',
        InodeKind::Directory => 'd',
        InodeKind::Link => 'l',
        InodeKind::CharDevice => 'c',
        InodeKind::BlockDevice => 'b',
        InodeKind::Fifo => 'p',
        InodeKind::Socket => 's',
    };
    let bit = |bit: u32| inode.permissions >> bit & 1 == 1;
    let mut text = String::from(kind);
    for (group, special, letter) in [(6, 11, 's'), (3, 10, 's'), (0, 9, 't')] {
        text.push(if bit(group + 2) { 'r' } else { '-' });
        text.push(if bit(group + 1) { 'w' } else { '-' });
        text.push(match (bit(group), bit(special)) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// RFC 3339, or `@` and the seconds for a time before 1970.
fn time_text(time: Time) -> String {
    match u64::try_from(time.seconds) {
        Ok(seconds) => {
            let since = std::time::Duration::new(seconds, time.nanos);
            humantime::format_rfc3339_micros(std::time::UNIX_EPOCH + since).to_string()
        }
        Err(_) => format!("@{}", time.seconds),
    }
}

/// A name for a terminal: what could steer it is escaped.
fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}
