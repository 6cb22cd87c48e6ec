//! How long until a kernel has read the disk: from the start of `farshore serve` to a prompt on the serial console of a QEMU
//! machine whose drive is the served export, and for comparison the same machine over a raw file.
//!
//! The kernel is Debian's own. Its first program is a shell of klibc out of a tiny initramfs made here, which loads the
//! drivers, prints the first sector of the disk and then its prompt. QEMU interprets the kernel's instructions (TCG), which
//! takes most of the time and is the same for both.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// What the machine's shell prints at its end.
const PROMPT: &[u8] = b"farshore#";

/// Bytes that it prints of the disk before that.
const SECTOR: usize = 512;

/// How long a start may take: an interpreted kernel beside other work is slow.
const PATIENCE: Duration = Duration::from_secs(300);

/// Drivers on the way to a virtio disk, in the order in which they are loaded.
const MODULES: [&str; 6] = [
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];

const KLIBC: &str = "/usr/lib/klibc/bin";

/// A kernel and what it starts.
pub struct Kernel {
    image: PathBuf,
    initramfs: PathBuf,
}

impl Kernel {
    /// The newest of this host, with an initramfs written into `dir`. None, with the reason, where something is missing.
    pub fn find(dir: &Path) -> Result<Result<Self, String>> {
        if Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err() {
            return Ok(Err("qemu-system-x86_64 is not there (Debian package qemu-system-x86)".to_owned()));
        }
        let Some((image, version)) = newest_kernel() else {
            return Ok(Err("no /boot/vmlinuz-* (Debian package linux-image-amd64)".to_owned()));
        };
        if !Path::new(KLIBC).join("sh").is_file() {
            return Ok(Err(format!("no {KLIBC}/sh (Debian package klibc-utils)")));
        }
        let initramfs = dir.join("initramfs");
        File::create(&initramfs)?.write_all(&make_initramfs(&version)?)?;
        Ok(Ok(Self { image, initramfs }))
    }

    /// Time from the start of `farshore serve` of that position to the prompt.
    pub fn over_served(&self, farshore: &Path, store: &Path, key: &str, at: &str, first: u8) -> Result<Duration> {
        let dir = tempfile::Builder::new().prefix("farshore-boot-").tempdir()?;
        let (socket, begun) = (dir.path().join("s"), Instant::now());
        let log = File::create(dir.path().join("serve.log"))?;
        let mut serve = Command::new(farshore);
        serve.arg("--store").arg(format!("file://{}", store.display())).args(["--key", "-", "serve", "bench"]);
        serve.args(["--disk", "root", "--at", at, "--listen", &format!("unix:{}", socket.display())]);
        serve.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let mut served = Running(serve.spawn().context("cannot start farshore serve")?);
        served.0.stdin.take().context("its input is a pipe")?.write_all(key.as_bytes())?;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if served.0.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                bail!("it does not serve: {}", std::fs::read_to_string(dir.path().join("serve.log"))?);
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let drive = format!("driver=nbd,node-name=root,server.type=unix,server.path={},export=root", socket.display());
        self.start(&drive, dir.path(), begun, first)
    }

    /// Time from the start of QEMU to the prompt, over a raw file of that size.
    pub fn over_file(&self, size: u64, first: u8) -> Result<Duration> {
        let dir = tempfile::Builder::new().prefix("farshore-boot-").tempdir()?;
        let path = dir.path().join("raw");
        let mut file = File::create(&path)?;
        file.write_all(&[first; SECTOR])?;
        file.set_len(size)?;
        let begun = Instant::now();
        let drive = format!("driver=raw,node-name=root,file.driver=file,file.filename={}", path.display());
        self.start(&drive, dir.path(), begun, first)
    }

    /// Runs the machine up to its prompt; the sector that it read must be the one that was written.
    fn start(&self, drive: &str, dir: &Path, begun: Instant, first: u8) -> Result<Duration> {
        let console = dir.join("console");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "256", "-nic", "none"]);
        command.args(["-display", "none", "-no-reboot"]).arg("-kernel").arg(&self.image);
        command.arg("-initrd").arg(&self.initramfs);
        command.args(["-append", "console=ttyS0 quiet no_timer_check nowatchdog panic=-1"]);
        command.args(["-blockdev", drive, "-device", "virtio-blk-pci,drive=root"]);
        command.arg("-serial").arg(prefixed("file:", &console));
        let log = File::create(dir.join("qemu.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut qemu = Running(command.spawn().context("cannot start qemu-system-x86_64")?);
        loop {
            let said = std::fs::read(&console).unwrap_or_default();
            if said.windows(PROMPT.len()).any(|part| part == PROMPT) {
                let took = begun.elapsed();
                let run = said.split(|byte| *byte != first).map(<[u8]>::len).max();
                ensure!(run >= Some(SECTOR), "the kernel read another sector than was written");
                return Ok(took);
            }
            if qemu.0.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(dir.join("qemu.log"))?;
                bail!("no prompt within {PATIENCE:?}: {log}{}", String::from_utf8_lossy(&said));
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// A process, until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}

/// The last kernel by name, and its version.
fn newest_kernel() -> Option<(PathBuf, String)> {
    let names = std::fs::read_dir("/boot").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let version = names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned)).max()?;
    Some((Path::new("/boot").join(format!("vmlinuz-{version}")), version))
}

/// A shell, the drivers, and what they are for.
fn make_initramfs(version: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "lib", "dev"] {
        archive.add(folder, 0o040755, &[]);
    }
    for program in ["sh", "dd", "insmod", "mount", "sleep"] {
        archive.add_file(&format!("bin/{program}"), &Path::new(KLIBC).join(program))?;
    }
    for entry in std::fs::read_dir("/usr/lib")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("klibc-") && name.ends_with(".so") {
            archive.add_file(&format!("lib/{name}"), &Path::new("/usr/lib").join(&name))?;
        }
    }
    let (drivers, mut names) = (format!("/lib/modules/{version}/kernel/drivers"), Vec::new());
    for module in MODULES {
        let name = format!("lib/{}.ko", module.rsplit('/').next().unwrap_or(module));
        archive.add_file(&name, Path::new(&format!("{drivers}/{module}.ko")))?;
        names.push(format!("/{name}"));
    }
    let prompt = String::from_utf8_lossy(PROMPT).into_owned();
    let script = format!(
        "#!/bin/sh\nmount -t devtmpfs dev /dev\nfor module in {}; do insmod $module; done\n\
         until [ -b /dev/vda ]; do sleep 1; done\ndd if=/dev/vda of=/dev/ttyS0 bs={SECTOR} count=1\n\
         echo\necho \"{prompt}\"\nexec sh\n",
        names.join(" ")
    );
    archive.add("init", 0o100755, script.as_bytes());
    Ok(archive.end())
}

/// A cpio archive as the kernel unpacks it ("newc").
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add_file(&mut self, name: &str, from: &Path) -> Result<()> {
        let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.add(name, 0o100755, &bytes);
        Ok(())
    }

    fn add(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        let number = self.0.len();
        // Number, mode, owner, group, links, time, bytes, four numbers of devices, bytes of the name with its zero, checksum.
        let fields = [number, mode as usize, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.0.extend_from_slice(b"070701");
        fields.iter().for_each(|field| self.0.extend_from_slice(format!("{field:08x}").as_bytes()));
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.0
    }
}
