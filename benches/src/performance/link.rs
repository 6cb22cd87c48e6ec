//! A long or lossy link in user space: two network namespaces, a TUN device in each, and two threads that carry packets
//! from one to the other, each by a [`Lane`].
//!
//! The namespaces have no names and the devices belong to open files: a namespace lives as long as a `cat` in it, which ends
//! with our end of its pipe, so that whatever ends this process ends them too. It needs root, ip (iproute2) and Linux.

use std::fs::File;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use benches::thread_cpu;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tappers::Tun;

use crate::lane::{Fate, Lane, Path};

/// Addresses of the two ends, which nobody outside the namespaces sees: the agent's and the process server's.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 231, 0, 1);
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 231, 0, 2);

/// Between looks at the devices: far below the delays that are emulated, and long enough that packets come in bunches.
const TICK: Duration = Duration::from_micros(200);

/// Packets taken from a device before those that are due are looked at.
const BUNCH: usize = 64;

/// Largest packet of a device.
const PACKET_BYTES_MAX: usize = 1500;

/// Packets that wait in a device until a thread takes them: all loss is to be the lane's.
const DEVICE_QUEUE: &str = "20000";

/// Why there can be no link here, if so.
pub fn missing() -> Option<&'static str> {
    let runs = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).output().is_ok_and(|out| out.status.success())
    };
    if !(runs(&["ip", "-V"]) && runs(&["nsenter", "--version"]) && runs(&["unshare", "--version"])) {
        return Some("ip (iproute2), nsenter and unshare (util-linux) are needed");
    }
    if !runs(&["unshare", "--net", "true"]) {
        return Some("it takes root to make network namespaces");
    }
    if File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        return Some("there is no /dev/net/tun that can be opened");
    }
    None
}

/// A network namespace, until dropped.
pub struct Namespace(Child);

impl Namespace {
    fn make() -> Result<Self> {
        let mut command = Command::new("unshare");
        let made = Self(command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?);
        let ours = std::fs::read_link("/proc/self/ns/net")?;
        let begun = Instant::now();
        while std::fs::read_link(made.link())? == ours {
            ensure!(begun.elapsed().as_secs() < 10, "unshare made no network namespace");
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ok(made)
    }

    fn link(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// What runs a program in it, before the program's name; the process becomes the program's.
    pub fn prefix(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net={}", self.link())]
    }

    /// Moves the calling thread into it, for good.
    pub fn enter(&self) -> Result<()> {
        let link = File::open(self.link())?;
        Ok(move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Moves a device into it, gives it the address and sets it up.
    fn take(&self, device: &str, own: Ipv4Addr, peer: Ipv4Addr) -> Result<()> {
        run(&["ip", "link", "set", device, "netns", &self.0.id().to_string()])?;
        let [nsenter, net] = self.prefix();
        let (own, peer) = (own.to_string(), peer.to_string());
        for words in [
            &["link", "set", "lo", "up"][..],
            &["addr", "add", &own, "peer", &peer, "dev", device],
            &["link", "set", device, "mtu", "1500", "txqueuelen", DEVICE_QUEUE, "up"],
        ] {
            run(&[&[nsenter.as_str(), &net, "ip"], words].concat())?;
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _gone_already = self.0.wait();
    }
}

fn run(words: &[&str]) -> Result<()> {
    let out = Command::new(words[0]).args(&words[1..]).output().with_context(|| format!("cannot run {}", words[0]))?;
    if !out.status.success() {
        bail!("{} failed: {}", words.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// The link, until dropped.
pub struct Link {
    /// Of the agent and of the process server.
    pub ends: [Arc<Namespace>; 2],
    stop: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<Result<Carried>>>,
}

/// What a direction has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Carried {
    pub fate: Fate,
    /// CPU seconds of the thread.
    pub cpu: f64,
}

impl Link {
    pub fn make(path: Path, seed: u64) -> Result<Self> {
        let ends = [Arc::new(Namespace::make()?), Arc::new(Namespace::make()?)];
        let devices = [Arc::new(device(&ends[0], NEAR, FAR)?), Arc::new(device(&ends[1], FAR, NEAR)?)];
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let carrier = |from: usize, to: usize| {
            let (from, to, stop) = (devices[from].clone(), devices[to].clone(), stop.clone());
            let lane = Lane::new(path, seed * 2 + u64::from(Arc::ptr_eq(&from, &devices[0])));
            std::thread::spawn(move || carry(&from, &to, lane, begun, &stop))
        };
        let carriers = vec![carrier(0, 1), carrier(1, 0)];
        Ok(Self { ends, stop, carriers })
    }

    /// Takes the link down; what it did towards the process server and back.
    pub fn end(mut self) -> Result<[Carried; 2]> {
        // Relaxed: a flag polled in a loop; what the threads have done comes by their join.
        self.stop.store(true, Ordering::Relaxed);
        let mut done = [Carried::default(); 2];
        for (carrier, done) in self.carriers.drain(..).zip(&mut done) {
            *done = carrier.join().map_err(|_| anyhow!("a thread of the link panicked"))??;
        }
        Ok(done)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Relaxed: see `end`.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn device(end: &Namespace, own: Ipv4Addr, peer: Ipv4Addr) -> Result<Tun> {
    let mut device = Tun::new().context("cannot make a TUN device")?;
    device.set_nonblocking(true)?;
    let name = device.name()?.name();
    end.take(&name.to_string_lossy(), own, peer)?;
    Ok(device)
}

/// Carries packets until stopped.
fn carry(from: &Tun, to: &Tun, mut lane: Lane, begun: Instant, stop: &AtomicBool) -> Result<Carried> {
    let mut buffer = [0; PACKET_BYTES_MAX];
    // Relaxed: see `Link::end`.
    while !stop.load(Ordering::Relaxed) {
        let mut taken = 0;
        while taken < BUNCH {
            match from.recv(&mut buffer) {
                Ok(bytes) => lane.take(begun.elapsed(), &buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("a TUN device cannot be read"),
            }
            taken += 1;
        }
        while let Some(packet) = lane.arrived(begun.elapsed()) {
            to.send(&packet).context("a TUN device cannot be written")?;
        }
        if taken < BUNCH {
            std::thread::park_timeout(TICK);
        }
    }
    Ok(Carried { fate: lane.fate, cpu: thread_cpu().as_secs_f64() })
}
