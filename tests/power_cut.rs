//! The host loses its power: sources, and in one test the agent's own state, drop back to what their last flush kept.
//!
//! ```text
//!   agent ─► loop device ─► nbdfuse ─► qemu-nbd with blklogwrites ─► every write and flush, in order, in a log
//! ```
//! The agent is killed at a seeded moment, and the disks of its next life are rebuilt from the log: everything up to the
//! last flush that completed, and of the later writes a seeded choice, some of them torn between sectors. What must hold:
//! after the drain `latest` equals the rebuilt sources byte for byte, although the store had writes that they lost; marks
//! made before the cut restore to what the client had written by then; and what the client flushed is still there.
//! Two negative controls take something from the dirty map, and must be found out.
//!
//! `FARSHORE_KILL_ROUNDS` sets the rounds of each test, `FARSHORE_SEED` the seed.
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::harness::judge::wait;
use crate::harness::tools::{run, try_run};
use crate::harness::{PATIENCE, Proc, Seed, Site, SiteOptions, eventually};

/// Cuts of each test in continuous integration.
const ROUNDS: u64 = 10;

/// The smallest unit that a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// Bytes of a region of the dirty map, as agents have it by default.
const REGION: u64 = 1 << 20;

/// The disks of the machine, with their sizes.
pub const DISKS: [(&str, u64); 2] = [("root", 16 << 20), ("data", 8 << 20)];

/// Bytes of the file system under the agent's state.
const STATE_BYTES: u64 = 32 << 20;

/// The second sector of ext4's superblock. ext4 takes its superblock to be written whole: torn from the sector before, its
/// checksum is wrong and the host's own file system does not mount, which no agent can make good. So these two share
/// their fate; every other sector of every device has its own.
const EXT4_SUPERBLOCK_SECOND: usize = 3;

/// Room of a write log; sparse.
const LOG_BYTES: u64 = 4 << 30;

fn rounds() -> u64 {
    std::env::var("FARSHORE_KILL_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(ROUNDS)
}

/// One entry of a write log, in the format of dm-log-writes that QEMU's blklogwrites keeps too.
struct Entry {
    /// First byte on the disk.
    offset: usize,
    /// Bytes on the disk.
    len: usize,
    flags: u64,
    /// What was written; nothing for flushes and discards.
    data: Vec<u8>,
}

const LOG_MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// How many entries the log's own first sector vouches for: written before the reply to each flush, so that no flush
/// that was answered lies behind it.
fn entries_vouched_for(log: &Path) -> u64 {
    let mut head = [0; SECTOR];
    File::open(log).and_then(|f| f.read_exact_at(&mut head, 0)).expect("log has a first sector");
    if head[..24].iter().all(|byte| *byte == 0) {
        return 0;
    }
    assert_eq!((u64_at(&head, 0), u64_at(&head, 8)), (LOG_MAGIC, 1), "a write log, version 1");
    assert_eq!(head[24..28], (SECTOR as u32).to_le_bytes(), "sectors of the log");
    u64_at(&head, 16)
}

/// All entries of a log that nobody writes any more.
fn read_log(log: &Path) -> Vec<Entry> {
    let file = File::open(log).expect("log opens");
    let (mut entries, mut at) = (Vec::new(), SECTOR as u64);
    loop {
        let mut head = [0; 32];
        file.read_exact_at(&mut head, at).expect("log has room behind its last entry");
        if head.iter().all(|byte| *byte == 0) {
            assert!(entries.len() as u64 >= entries_vouched_for(log), "the log has a hole at {at}");
            return entries;
        }
        at += SECTOR as u64;
        let (offset, len) = (u64_at(&head, 0) as usize * SECTOR, u64_at(&head, 8) as usize * SECTOR);
        let flags = u64_at(&head, 16);
        let mut data = vec![0; if flags & DISCARD == 0 { len } else { 0 }];
        file.read_exact_at(&mut data, at).expect("log has the data of its entries");
        at += data.len() as u64;
        entries.push(Entry { offset, len, flags, data });
    }
}

/// How far a log that is being written has been read.
pub struct LogCursor {
    at: u64,
    entries: usize,
}

impl Default for LogCursor {
    fn default() -> LogCursor {
        LogCursor { at: SECTOR as u64, entries: 0 }
    }
}

impl LogCursor {
    /// Entries that the log has by now, up to the first that is still being written.
    pub fn advance(&mut self, log: &Path) -> usize {
        let file = File::open(log).expect("log opens");
        loop {
            let mut head = [0; 32];
            file.read_exact_at(&mut head, self.at).expect("log has room behind its last entry");
            if head.iter().all(|byte| *byte == 0) {
                return self.entries;
            }
            let data = if u64_at(&head, 16) & DISCARD == 0 { u64_at(&head, 8) * SECTOR as u64 } else { 0 };
            self.at += SECTOR as u64 + data;
            self.entries += 1;
        }
    }
}

impl Entry {
    fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    fn apply(&self, image: &mut [u8]) {
        self.apply_where(image, |_| true);
    }

    /// Applies the sectors that `keep` chooses by their number in the write.
    fn apply_where(&self, image: &mut [u8], mut keep: impl FnMut(usize) -> bool) {
        for (number, sector) in image[self.offset..self.offset + self.len].chunks_mut(SECTOR).enumerate() {
            if !keep(number) {
                continue;
            }
            match self.data.get(number * SECTOR..(number + 1) * SECTOR) {
                Some(data) => sector.copy_from_slice(data),
                None => sector.fill(0),
            }
        }
    }
}

/// What becomes of writes that no flush covered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    AllLost,
    /// Each is kept, lost or torn by the seed.
    Chosen,
}

/// What a cut left of one device.
pub struct Cut {
    /// The device's bytes.
    pub image: Vec<u8>,
    /// Writes that no flush covered.
    pub unflushed: usize,
    /// Of these, lost whole.
    pub lost: usize,
    /// Of these, torn between sectors.
    pub torn: usize,
}

/// A block device whose every write and flush goes to a log.
pub struct LoggedDevice {
    place: tempfile::TempDir,
    base: Vec<u8>,
    device: String,
    mount: Option<PathBuf>,
    /// It holds an ext4.
    ext4: bool,
    processes: Vec<Proc>,
}

impl LoggedDevice {
    fn start(base: Vec<u8>) -> LoggedDevice {
        let place = tempfile::Builder::new().prefix("farshore-power-").tempdir().expect("temporary directory");
        let mut this =
            LoggedDevice { place, base, device: String::new(), mount: None, ext4: false, processes: Vec::new() };
        std::fs::write(this.path("disk"), &this.base).expect("disk is written");
        File::create(this.path("log")).and_then(|f| f.set_len(LOG_BYTES)).expect("log is made");
        let dir = this.place.path().to_owned();
        let text = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let layers = format!(
            "driver=blklogwrites,file.driver=file,file.filename={},log.driver=file,log.filename={}",
            text("disk"),
            text("log")
        );
        let mut serve = Command::new("qemu-nbd");
        serve.args(["--persistent", "--shared=4", "--discard=unmap", "--export-name=disk"]);
        serve.args(["--socket", &text("socket"), "--image-opts", &layers]);
        let server = Proc::start("qemu-nbd", serve, &this.path("qemu-nbd.output"));
        eventually("qemu-nbd serves", || UnixStream::connect(this.path("socket")).map_err(|e| e.to_string()));
        File::create(this.path("fuse")).expect("mount point is made");
        let mut fuse = Command::new("nbdfuse");
        fuse.args([text("fuse"), format!("nbd+unix:///disk?socket={}", text("socket"))]);
        let fuse = Proc::start("nbdfuse", fuse, &this.path("nbdfuse.output"));
        this.processes = vec![fuse, server];
        eventually("nbdfuse serves", || match std::fs::metadata(this.path("fuse")) {
            Ok(file) if file.len() == this.base.len() as u64 => Ok(()),
            other => Err(format!("{other:?}\n{}", this.processes[0].tail())),
        });
        this.device = run("losetup", &["--find", "--show", "--direct-io=on", &text("fuse")]).trim().to_owned();
        this
    }

    /// One of its files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn mount(&mut self, at: &Path) {
        std::fs::create_dir_all(at).expect("mount point is made");
        run("mount", &["-t", "ext4", &self.device, &at.to_string_lossy()]);
        self.mount = Some(at.to_owned());
        self.ext4 = true;
    }

    /// Entries that its log vouches for.
    pub fn vouched_for(&self) -> u64 {
        entries_vouched_for(&self.path("log"))
    }

    /// Takes everything down in order. The writes that this causes come too late to count.
    fn take_down(&mut self, flags: &str) {
        if let Some(mount) = self.mount.take() {
            try_run("umount", &[flags, &mount.to_string_lossy()]);
        }
        if !self.device.is_empty() {
            try_run("losetup", &["-d", &self.device]);
            self.device.clear();
            eventually("nbdfuse is unmounted", || {
                let out = try_run("umount", &[flags, &self.path("fuse").to_string_lossy()]);
                let text = String::from_utf8_lossy(&out.stderr).into_owned();
                if out.status.success() || text.contains("not mounted") { Ok(()) } else { Err(text) }
            });
        }
        self.processes.drain(..).for_each(Proc::kill);
    }

    /// Takes the device down for good; what is left is what it was and all that was written to it.
    pub fn recorded(mut self) -> Recorded {
        self.take_down("-v");
        let entries = read_log(&self.path("log"));
        let mut all = self.base.clone();
        entries.iter().for_each(|entry| entry.apply(&mut all));
        let disk = std::fs::read(self.path("disk")).expect("disk is read");
        assert!(all == disk, "the log, replayed whole, is the disk");
        Recorded { base: std::mem::take(&mut self.base), entries, ext4: self.ext4 }
    }
}

/// A device's life: what it held at first, and every write and flush since.
pub struct Recorded {
    base: Vec<u8>,
    entries: Vec<Entry>,
    ext4: bool,
}

impl Recorded {
    /// Entries of its log.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Rebuilds the disk as a power cut leaves it when the log had `written` entries and vouched for `vouched` of them: the
    /// writes that count are those before the first flush that was not answered by then.
    pub fn cut(&self, vouched: u64, written: usize, fate: Fate, seed: &mut Seed) -> Cut {
        let entries = &self.entries[..written];
        let flushed = entries[..vouched as usize].iter().rposition(Entry::is_flush).map_or(0, |last| last + 1);
        let mut cut = Cut { image: self.base.clone(), unflushed: 0, lost: 0, torn: 0 };
        entries[..flushed].iter().for_each(|entry| entry.apply(&mut cut.image));
        for entry in entries[flushed..].iter().take_while(|entry| !entry.is_flush()) {
            cut.unflushed += 1;
            match seed.below(3) {
                _ if entry.flags & FUA != 0 => entry.apply(&mut cut.image),
                0 if fate == Fate::Chosen => entry.apply(&mut cut.image),
                1 if fate == Fate::Chosen => {
                    let (first, mut kept) = (entry.offset / SECTOR, false);
                    entry.apply_where(&mut cut.image, |number| {
                        let bound = self.ext4 && number > 0 && first + number == EXT4_SUPERBLOCK_SECOND;
                        kept = if bound { kept } else { seed.below(2) == 0 };
                        kept
                    });
                    cut.torn += 1;
                }
                _ => cut.lost += 1,
            }
        }
        cut
    }
}

impl Drop for LoggedDevice {
    fn drop(&mut self) {
        self.take_down("-l");
    }
}

/// The protected machine: its disks between lives, and the devices of the life it leads.
pub struct Host<'a> {
    site: &'a Site,
    images: Vec<Vec<u8>>,
    /// The file system under the agent's state; nothing if that survives every cut whole.
    state: Option<Vec<u8>>,
    /// The devices of the life it leads: its disks, then that of its state.
    pub running: Vec<LoggedDevice>,
    unflushed: usize,
    lost: usize,
    torn: usize,
    state_lost: usize,
}

impl<'a> Host<'a> {
    /// Whether the cuts met writes that were under way: some were lost, some torn, and `behind` times it showed.
    fn was_cut(&self, with_state: bool, behind: u64) -> bool {
        self.lost > 0 && self.torn > 0 && behind > 0 && (!with_state || self.state_lost > 0)
    }

    /// A machine with blank disks.
    pub fn new(site: &'a Site, with_state: bool) -> Host<'a> {
        let state = with_state.then(|| {
            let image = site.path("state.img");
            File::create(&image).and_then(|f| f.set_len(STATE_BYTES)).expect("state image is made");
            run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", &image.to_string_lossy()]);
            std::fs::read(&image).expect("state image is read")
        });
        let images = DISKS.iter().map(|(_, size)| vec![0; *size as usize]).collect();
        Host { site, images, state, running: Vec::new(), unflushed: 0, lost: 0, torn: 0, state_lost: 0 }
    }

    /// Begins a life.
    pub fn power_on(&mut self) {
        for ((disk, _), image) in DISKS.iter().zip(&self.images) {
            let device = LoggedDevice::start(image.clone());
            let source = self.site.source("db", disk);
            std::fs::remove_file(&source).expect("old source is removed");
            std::os::unix::fs::symlink(&device.device, &source).expect("source names the device");
            self.running.push(device);
        }
        if let Some(state) = &self.state {
            let mut device = LoggedDevice::start(state.clone());
            device.mount(&self.site.data_dir().join("agent"));
            self.running.push(device);
        }
    }

    /// Everything goes at once: the agent with all it had in memory, then what its devices had not made durable.
    fn power_cut(&mut self, agent: Proc, fate: Fate, seed: &mut Seed) {
        agent.kill();
        let vouched: Vec<u64> = self.running.iter().map(LoggedDevice::vouched_for).collect();
        for (number, (device, vouched)) in self.running.drain(..).zip(vouched).enumerate() {
            let recorded = device.recorded();
            let cut = recorded.cut(vouched, recorded.len(), fate, seed);
            match self.images.get_mut(number) {
                Some(image) => {
                    *image = cut.image;
                    self.unflushed += cut.unflushed;
                    self.lost += cut.lost;
                    self.torn += cut.torn;
                }
                None => {
                    self.state = Some(cut.image);
                    self.state_lost += cut.lost + cut.torn;
                }
            }
        }
    }

    /// The block devices of the sources, through which a client has caches written back without a flush.
    fn source_devices(&self) -> Vec<String> {
        self.running.iter().take(DISKS.len()).map(|device| device.device.clone()).collect()
    }

    /// How a restored point differs from the sources, if it does.
    fn difference(&self, restored: &[(String, PathBuf)]) -> Option<String> {
        restored.iter().zip(&self.images).find_map(|((disk, path), image)| {
            let bytes = std::fs::read(path).expect("restored disk is read");
            assert_eq!(bytes.len(), image.len(), "size of the restored disk {disk}");
            let mut sectors = bytes.chunks(SECTOR).zip(image.chunks(SECTOR));
            sectors.position(|(a, b)| a != b).map(|first| format!("disk {disk} from sector {first}"))
        })
    }
}

/// What a client knows of a disk: one number for each sector, which holds it 64 times.
#[derive(Clone)]
pub struct Known {
    now: Vec<u64>,
    durable: Vec<u64>,
    /// Numbers issued since the sector was last durable.
    loose: BTreeMap<usize, Vec<u64>>,
}

/// One number for each sector of an image of which every sector was written by [`Known`].
fn numbers(image: &[u8]) -> Vec<u64> {
    let number = |(at, sector): (usize, &[u8])| {
        assert!(sector.chunks(8).all(|word| word == &sector[..8]), "sector {at} was written by nobody");
        u64_at(sector, 0)
    };
    image.chunks(SECTOR).enumerate().map(number).collect()
}

impl Known {
    fn of(image: &[u8]) -> Known {
        let now = numbers(image);
        Known { durable: now.clone(), now, loose: BTreeMap::new() }
    }

    fn issued(&mut self, at: usize, wanted: &[u64]) {
        wanted.iter().enumerate().for_each(|(i, number)| self.loose.entry(at + i).or_default().push(*number));
    }

    fn acknowledged(&mut self, at: usize, found: &[u64], durable: bool) {
        self.now[at..at + found.len()].copy_from_slice(found);
        if durable {
            self.durable[at..at + found.len()].copy_from_slice(found);
            (at..at + found.len()).for_each(|sector| drop(self.loose.remove(&sector)));
        }
    }

    fn flushed(&mut self) {
        for sector in std::mem::take(&mut self.loose).into_keys() {
            self.durable[sector] = self.now[sector];
        }
    }

    /// Asserts that a disk after a cut has what was flushed, or something issued later.
    pub fn assert_survived(&self, image: &[u8]) {
        for (sector, number) in numbers(image).into_iter().enumerate() {
            let later = self.loose.get(&sector).is_some_and(|numbers| numbers.contains(&number));
            assert!(later || number == self.durable[sector], "sector {sector} lost a flushed write: {number:#x}");
        }
    }
}

/// A client of both disks. Up to eight operations that do not overlap are in flight.
pub struct Client {
    /// By disk.
    pub known: Arc<Mutex<Vec<Known>>>,
    seed: Seed,
    /// The regions it writes to, by disk.
    regions: Vec<(usize, u64)>,
    devices: Vec<String>,
    acknowledged: Arc<AtomicU64>,
}

/// Sectors of one of the parts of a region that operations in flight share out.
const SLOT_SECTORS: u64 = REGION / SECTOR as u64 / 16;

impl Client {
    /// A client of the life that the host leads.
    pub fn new(host: &Host, seed: &mut Seed) -> Client {
        let regions = (0..6).map(|_| {
            let disk = seed.below(DISKS.len() as u64) as usize;
            (disk, seed.below(DISKS[disk].1 / REGION))
        });
        Client {
            regions: regions.collect(),
            known: Arc::new(Mutex::new(host.images.iter().map(|image| Known::of(image)).collect())),
            seed: seed.fork(),
            devices: host.source_devices(),
            acknowledged: Arc::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().expect("nothing panics while it holds this")
    }

    /// Writes until `most` operations are acknowledged, or the server is gone.
    fn write(&mut self, site: &Site, most: u64) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let addresses = DISKS.map(|(disk, _)| (site.nbd("db", disk), disk));
        runtime.block_on(async {
            let mut clients = Vec::new();
            for (address, disk) in &addresses {
                clients.push(nbd::Client::connect(address, disk).await?);
            }
            let end = self.acknowledged.load(Ordering::Relaxed) + most;
            while self.acknowledged.load(Ordering::Relaxed) < end {
                self.step(&clients).await?;
            }
            Ok(())
        })
    }

    /// One batch of operations, or a flush.
    pub async fn step(&mut self, clients: &[nbd::Client]) -> io::Result<()> {
        match self.seed.below(40) {
            0 => {
                let disk = self.seed.below(DISKS.len() as u64) as usize;
                clients[disk].flush().await?;
                self.known()[disk].flushed();
            }
            1 => {
                let device = &self.devices[self.seed.below(DISKS.len() as u64) as usize];
                run("blockdev", &["--flushbufs", device]);
            }
            _ => self.batch(clients).await?,
        }
        Ok(())
    }

    async fn batch(&mut self, clients: &[nbd::Client]) -> io::Result<()> {
        let (disk, region) = self.regions[self.seed.below(self.regions.len() as u64) as usize];
        let mut operations = Vec::new();
        let first_slot = self.seed.below(16);
        for slot in 0..1 + self.seed.below(8) {
            let start = self.seed.below(SLOT_SECTORS);
            let len = 1 + self.seed.below(SLOT_SECTORS - start);
            let at = (region * 16 + (first_slot + slot) % 16) * SLOT_SECTORS + start;
            let kind = self.seed.below(16);
            let fill = self.seed.next();
            let wanted: Vec<u64> = (0..len).map(|i| if kind < 2 { 0 } else { fill.wrapping_add(at + i) }).collect();
            self.known()[disk].issued(at as usize, &wanted);
            operations.push((at as usize, kind, wanted));
        }
        let done = operations.iter().map(|(at, kind, wanted)| operate(&clients[disk], *at, *kind, wanted));
        let done = futures::future::join_all(done).await;
        for ((at, kind, _), found) in operations.iter().zip(done) {
            self.known()[disk].acknowledged(*at, &found?, *kind == 2);
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// One operation; the numbers that its sectors hold afterwards.
async fn operate(client: &nbd::Client, at: usize, kind: u64, wanted: &[u64]) -> io::Result<Vec<u64>> {
    let (offset, len) = ((at * SECTOR) as u64, (wanted.len() * SECTOR) as u32);
    match kind {
        0 => {
            client.trim(offset, len).await?;
            // A trimmed range may hold anything.
            return Ok(numbers(&client.read(offset, len).await?));
        }
        1 => client.write_zeroes(offset, len, false).await?,
        _ => {
            let data: Vec<u8> = wanted.iter().flat_map(|number| number.to_le_bytes().repeat(SECTOR / 8)).collect();
            client.write(offset, data.into(), kind == 2).await?;
        }
    }
    Ok(wanted.to_vec())
}

/// A mark, with what the client had written when it asked for it.
struct Marked {
    id: String,
    known: Vec<Vec<u64>>,
}

impl Marked {
    fn make(site: &Site, client: &Client, label: &str) -> Marked {
        let mark = site.json(&["mark", "db", "--label", label]);
        let id = mark["id"].as_str().expect("a mark has an id").to_owned();
        Marked { id, known: client.known().iter().map(|known| known.now.clone()).collect() }
    }

    fn assert_restores(&self, site: &Site) {
        for ((disk, path), known) in restore(site, &format!("id:{}", self.id)).iter().zip(&self.known) {
            let restored = numbers(&std::fs::read(path).expect("restored disk is read"));
            let wrong = restored.iter().zip(known).position(|(a, b)| a != b);
            assert!(wrong.is_none(), "mark {}, disk {disk}: sector {wrong:?} is not what it was", self.id);
        }
    }
}

/// Restores over what was restored before.
fn restore(site: &Site, at: &str) -> Vec<(String, PathBuf)> {
    let to = site.path("restored");
    if to.exists() {
        std::fs::remove_dir_all(&to).expect("restored files are removed");
    }
    site.restore("db", at, "restored")
}

fn options() -> SiteOptions {
    SiteOptions {
        machines: vec![("db", DISKS.to_vec())],
        queue_bytes: "4MiB",
        spool_bytes: "8MiB",
        ..SiteOptions::default()
    }
}

/// A life that ends while the agent still starts or drains; no client was there to change anything.
fn short_life(host: &mut Host, seed: &mut Seed) {
    let agent = host.site.start(&["agent", "db"]);
    wait(Duration::from_micros(seed.below(120_000)));
    let before = host.images.clone();
    host.power_cut(agent, Fate::Chosen, seed);
    assert!(host.images == before, "an agent without clients does not write to its sources");
}

/// A life that begins with a drain and ends under load.
fn long_life(host: &mut Host, round: u64, seed: &mut Seed) -> Marked {
    let site = host.site;
    let agent = site.start_agent("db");
    site.wait_stored("db");
    let restored = restore(site, "latest");
    assert_eq!(host.difference(&restored), None, "round {round}: the drain makes the store equal the source");
    let mut client = Client::new(host, seed);
    client.write(site, 1 + seed.below(200)).expect("the agent serves");
    let marked = Marked::make(site, &client, &format!("round-{round}"));
    marked.assert_restores(site);
    let goal = client.acknowledged.load(Ordering::Relaxed) + seed.below(600);
    let acknowledged = client.acknowledged.clone();
    let known = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            client.write(site, u64::MAX / 2).expect_err("it writes until the power goes");
            client.known().clone()
        });
        eventually("the client writes", || match acknowledged.load(Ordering::Relaxed) {
            count if count >= goal => Ok(()),
            count => Err(format!("{count} of {goal}")),
        });
        let fate = if seed.below(3) == 0 { Fate::AllLost } else { Fate::Chosen };
        host.power_cut(agent, fate, seed);
        writer.join().expect("writer does not panic")
    });
    known.iter().zip(&host.images).for_each(|(known, image)| known.assert_survived(image));
    marked
}

/// So many times as many rounds, at most, as were asked for.
const LUCKY_ROUNDS_MAX: u64 = 4;

fn cut_rounds(with_state: bool, seed: u64) {
    let mut seed = Seed::from_environment(seed);
    let site = Site::new(options());
    let mut server = Some(site.start(&["process-server"]));
    let mut host = Host::new(&site, with_state);
    let (mut marks, mut behind) = (Vec::<Marked>::new(), 0);
    let (started, mut round) = (Instant::now(), 0);
    // What is under way at a cut is up to the machine: some more rounds, should all of these have been lucky.
    while round < rounds() || (round < LUCKY_ROUNDS_MAX * rounds() && !host.was_cut(with_state, behind)) {
        host.power_on();
        if seed.below(4) == 0 {
            short_life(&mut host, &mut seed);
        } else {
            marks.push(long_life(&mut host, round, &mut seed));
            // The store is ahead of a source that lost writes: it must be seen to go back with it.
            behind += u64::from(host.difference(&restore(&site, "latest")).is_some());
        }
        if seed.below(3) == 0 {
            server.take().expect("process server runs").kill();
            server = Some(site.start(&["process-server"]));
        }
        marks.iter().rev().take(1).for_each(|mark| mark.assert_restores(&site));
        round += 1;
    }
    host.power_on();
    let _agent = site.start_agent("db");
    site.wait_stored("db");
    assert_eq!(host.difference(&restore(&site, "latest")), None, "after the last drain the store equals the source");
    marks.iter().for_each(|mark| mark.assert_restores(&site));
    assert_eq!(site.run(&["verify", "db"]).code, 0, "the log is whole after every cut");
    eprintln!(
        "{} cuts in {:?}, {} marks: of {} writes without a flush {} were lost and {} torn, {} lost or torn below the \
         agent's state; {behind} times the store was not what the source came back with",
        round,
        started.elapsed(),
        marks.len(),
        host.unflushed,
        host.lost,
        host.torn,
        host.state_lost
    );
    assert!(host.was_cut(with_state, behind), "the cuts were cuts");
}

#[test]
fn sources_that_lost_unflushed_writes_are_drained_after_a_power_cut() {
    cut_rounds(false, 201);
}

#[test]
fn agent_state_that_lost_unflushed_writes_still_knows_what_to_drain() {
    cut_rounds(true, 202);
}

/// How long a write has to reach the process server before the cut: well below [`slow_segments`], because the agent
/// flushes its sources once it hears that a write is stored.
const UNDER_WAY: Duration = Duration::from_millis(150);

fn slow_segments() -> SiteOptions {
    SiteOptions { segment_age: "1s", ..options() }
}

/// Makes a machine whose store has a write that its source lost, in the region of `root` that this returns.
fn lose_a_stored_write(host: &mut Host, seed: &mut Seed) -> u64 {
    for region in 3..8 {
        let agent = host.site.start_agent("db");
        host.site.wait_stored("db");
        let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
        runtime.block_on(async {
            let client = nbd::Client::connect(&host.site.nbd("db", "root"), "root").await.expect("client connects");
            client.flush().await.expect("the source is flushed");
            client.write(region * REGION, vec![0x77; 256 << 10].into(), false).await.expect("the source is written");
        });
        wait(UNDER_WAY);
        host.power_cut(agent, Fate::AllLost, seed);
        if host.images[0][(region * REGION) as usize] == 0 {
            eventually("the store has what the source lost", || {
                host.difference(&restore(host.site, "latest")).map(drop).ok_or_else(|| "not yet".to_owned())
            });
            return region;
        }
        // The agent's own flush, every few seconds, came between.
        host.power_on();
    }
    panic!("a flush came between every time");
}

fn map_file(site: &Site) -> PathBuf {
    site.data_dir().join("agent/db/map")
}

/// CRC-32C (Castagnoli), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// Clears the bit of one region of the first disk, with a right checksum, as a map that forgot it would look.
fn wipe_region(map: &Path, region: u64) {
    let region = region as usize;
    const PAGES: usize = 32 << 10;
    let mut bytes = std::fs::read(map).expect("map is read");
    let page = &mut bytes[PAGES..PAGES + 512];
    assert_eq!(page[..4], crc32c(&page[4..]).to_le_bytes(), "the first page of the map is where it is taken to be");
    assert!(page[24 + region / 8] & (1 << (region % 8)) != 0, "the region was set, as it must be");
    page[24 + region / 8] &= !(1 << (region % 8));
    let sum = crc32c(&page[4..]).to_le_bytes();
    page[..4].copy_from_slice(&sum);
    std::fs::write(map, bytes).expect("map is written");
}

/// The detector of silent divergence finds what was lost, and its result feeds a drain.
fn heal_and_check(host: &Host) {
    for (disk, found) in [("root", "Different: 256.0 KiB in 1 ranges"), ("data", "")] {
        let source = host.site.source("db", disk);
        let with = source.to_string_lossy();
        let ran = host.site.run(&["compare", "db", "--disk", disk, "--at", "latest", "--with", &with, "--drain"]);
        assert!(ran.code == 0 && ran.stdout.contains(found), "compare finds exactly what was lost: {ran:?}");
    }
    host.site.wait_stored("db");
    assert_eq!(host.difference(&restore(host.site, "latest")), None, "a compare heals it");
}

#[test]
fn map_that_forgets_a_region_is_found_out() {
    let mut seed = Seed::from_environment(203);
    let site = Site::new(slow_segments());
    let _server = site.start(&["process-server"]);
    let mut host = Host::new(&site, false);
    host.power_on();
    let region = lose_a_stored_write(&mut host, &mut seed);
    wipe_region(&map_file(&site), region);
    host.power_on();
    let _agent = site.start_agent("db");
    site.wait_stored("db");
    let differs = host.difference(&restore(&site, "latest"));
    assert!(differs.is_some(), "what the checks of this file compare does differ when a region was not drained");
    heal_and_check(&host);
}

#[test]
fn map_of_an_earlier_clean_stop_is_refused_after_a_power_cut() {
    let mut seed = Seed::from_environment(204);
    let site = Site::new(slow_segments());
    let _server = site.start(&["process-server"]);
    let mut host = Host::new(&site, false);
    host.power_on();
    let agent = site.start_agent("db");
    site.wait_stored("db");
    assert!(agent.stop(PATIENCE).success(), "the first life stops cleanly");
    let clean = std::fs::read(map_file(&site)).expect("map is read");
    lose_a_stored_write(&mut host, &mut seed);
    std::fs::write(map_file(&site), clean).expect("map is put back");
    host.power_on();
    let _agent = site.start_agent("db");
    let reason = eventually("the agent is refused until a compare", || {
        let status = site.agent_status("db")?;
        let refusal = &status["refusal"];
        let reason = refusal["reason"].as_str().filter(|_| refusal["needs_compare"] == true);
        reason.map(str::to_owned).ok_or_else(|| format!("{status:#}"))
    });
    assert!(["RevertedDisk", "RevertedMemory"].contains(&reason.as_str()), "refused by name: {reason}");
    heal_and_check(&host);
}
