//! A client under whose writes roles die: it keeps several operations in flight on every disk of a machine, overlapping
//! ones too, and connects again when its server goes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nbd::ListenAddress;

use super::{Seed, Site};

/// What a writer does.
#[derive(Debug, Clone)]
pub struct Load {
    /// Operations in flight at once.
    pub in_flight: usize,
    /// First byte of the part of each disk that is written.
    pub start: u64,
    /// Bytes of that part.
    pub bytes: u64,
    /// Most blocks of 4 KiB in one operation.
    pub blocks_max: u64,
    /// Least time between two operations of a lane; nothing: as fast as they are answered.
    pub pace: Option<Duration>,
}

/// The client, on a thread of its own.
pub struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    connected: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    /// Starts writing to both disks of machine `db`.
    pub fn start(site: &Site, load: Load, seed: Seed) -> Writer {
        Self::start_on(["root", "data"].map(|disk| (site.nbd("db", disk), disk)), load, seed)
    }

    /// Starts writing to these exports.
    pub fn start_on(disks: [(ListenAddress, &'static str); 2], load: Load, mut seed: Seed) -> Writer {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let connected = Arc::new(AtomicU64::new(0));
        let flags = (stop.clone(), written.clone(), connected.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
            // Relaxed: a flag polled in a loop and a count for display; nothing else is published through them.
            while !flags.0.load(Ordering::Relaxed) {
                flags.2.fetch_add(1, Ordering::Relaxed);
                let work = write_until_error(&disks, &load, &mut seed, &flags.0, &flags.1);
                let _served_again_later = runtime.block_on(work);
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        Writer { stop, written, connected, thread: Some(thread) }
    }

    /// Operations answered so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Times it connected, or tried to: once as long as no operation fails.
    pub fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }

    /// Stops when what is in flight is answered; says how many operations were.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("writer does not panic");
        }
        self.written()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A test that fails must not wait for answers of a server that it stopped: the thread ends by itself.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Keeps several operations in flight on both disks until one fails.
async fn write_until_error(
    disks: &[(ListenAddress, &'static str); 2],
    load: &Load,
    seed: &mut Seed,
    stop: &AtomicBool,
    written: &AtomicU64,
) -> std::io::Result<()> {
    let clients =
        [nbd::Client::connect(&disks[0].0, disks[0].1).await?, nbd::Client::connect(&disks[1].0, disks[1].1).await?];
    let lanes = (0..load.in_flight).map(|_| write_lane(&clients, load, seed.fork(), stop, written));
    futures::future::try_join_all(lanes).await.map(|_| ())
}

/// One operation after the other.
async fn write_lane(
    clients: &[nbd::Client; 2],
    load: &Load,
    mut seed: Seed,
    stop: &AtomicBool,
    written: &AtomicU64,
) -> std::io::Result<()> {
    let mut pace = load.pace.map(tokio::time::interval);
    while !stop.load(Ordering::Relaxed) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let client = &clients[seed.below(2) as usize];
        let blocks = load.bytes / 4096;
        let at = load.start + seed.below(blocks - load.blocks_max) * 4096;
        let len = (1 + seed.below(load.blocks_max)) * 4096;
        match seed.below(20) {
            0 => client.flush().await?,
            1 => client.trim(at, len as u32).await?,
            2 => client.write_zeroes(at, len as u32, false).await?,
            _ => {
                let fill = seed.next().to_le_bytes();
                let block: Vec<u8> = fill.iter().copied().cycle().take(len as usize).collect();
                client.write(at, block.into(), seed.below(30) == 0).await?;
            }
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
