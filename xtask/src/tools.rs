//! What tests and benches need beside Rust and a C compiler, installed by name: Debian packages, npm and PyPI packages, cargo tools.
//!
//! Without root or sudo the line to run is printed and the exit code is 2. Everything that is not a system package goes
//! below `target/tools`.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use crate::command::{on_path, output, run};

/// What the tests need: (program or absolute path of a file, Debian package).
const DEBIAN: [(&str, &str); 19] = [
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdfuse", "nbdfuse"),
    ("fusermount3", "fuse3"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("fio", "fio"),
    ("mkfs.ext4", "e2fsprogs"),
    ("fsck.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("sqlite3", "sqlite3"),
    ("losetup", "mount"),
    ("sfdisk", "fdisk"),
    ("npm", "npm"),
    ("python3", "python3"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("debootstrap", "debootstrap"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
];

/// What `bench` cannot do without.
const BENCH: [(&str, &str); 5] =
    [("mkfs.ext4", "e2fsprogs"), ("debugfs", "e2fsprogs"), ("nbdkit", "nbdkit"), ("fio", "fio"), ("ip", "iproute2")];

/// What `bench` compares with; it goes on without those that cannot be installed, and names them.
const PEERS: [(&str, &str); 6] = [
    ("zstd", "zstd"),
    ("openssl", "openssl"),
    ("restic", "restic"),
    ("borg", "borgbackup"),
    ("qemu-img", "qemu-utils"),
    ("nbdcopy", "libnbd-bin"),
];

/// rustic, from crates.io.
const RUSTIC: &str = "0.11.4";

/// What `libguestfs` needs beside the packages of the tests: it makes its virtual machine out of the system's own kernel and tools.
const LIBGUESTFS: [(&str, &str); 4] = [
    ("guestfish", "guestfish"),
    ("/usr/lib/x86_64-linux-gnu/guestfs/supermin.d/packages-xfs", "libguestfs-xfs"),
    ("/vmlinuz", "linux-image-amd64"),
    ("mkfs.ntfs", "ntfs-3g"),
];

/// The Azure Blob emulator, from npm.
const AZURITE: &str = "azurite@3.35.0";

/// An S3 server, from PyPI.
const MOTO: &str = "moto[server]==5.2.5";

/// cargo-deny, from crates.io.
const CARGO_DENY: &str = "0.20.2";

/// Where tools of our own are put.
fn tools_dir() -> PathBuf {
    crate::command::root().join("target").join("tools")
}

/// Installs missing Debian packages of the tests.
pub fn debian() -> Result<()> {
    install(&DEBIAN, if python_has_venv() { &[] } else { &["python3-venv"] })
}

/// Installs missing Debian packages of `libguestfs`.
pub fn libguestfs() -> Result<()> {
    install(&LIBGUESTFS, &[])
}

/// Installs what `bench` needs, and what peers it can; building rustic takes minutes and is asked for.
pub fn bench(rustic: bool) -> Result<()> {
    install(&BENCH, &[])?;
    for peer in PEERS.iter().filter(|(program, _)| !found(program)) {
        let tried = if may_install()? { install(&[*peer], &[]) } else { Err(anyhow!("it takes root to install it")) };
        if let Err(error) = tried {
            println!("{} will be missing: {error:#}", peer.0);
        }
    }
    if rustic && !on_path("rustic") {
        run("cargo", &["install", "--quiet", "--locked", "--version", RUSTIC, "--no-default-features", "rustic-rs"])?;
    }
    Ok(())
}

/// Whether we are root or can be without a question.
fn may_install() -> Result<bool> {
    Ok(is_root()? || (on_path("sudo") && run("sudo", &["-n", "true"]).is_ok()))
}

fn is_root() -> Result<bool> {
    Ok(output("id", &["-u"])?.trim() == "0")
}

/// Installs what is not found, and `more`. One package may take another away that it cannot stand beside (the tools of QEMU
/// from another release, say): what is missing then is installed once more.
fn install(wanted: &[(&str, &'static str)], more: &[&'static str]) -> Result<()> {
    install_missing(wanted, more)?;
    install_missing(wanted, &[])?;
    match wanted.iter().find(|(program, _)| !found(program)) {
        Some((program, package)) => bail!("{program} is still missing after installing {package}"),
        None => Ok(()),
    }
}

fn install_missing(wanted: &[(&str, &'static str)], more: &[&'static str]) -> Result<()> {
    let mut packages: Vec<&str> = wanted.iter().filter(|(program, _)| !found(program)).map(|(_, p)| *p).collect();
    packages.extend(more);
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let sudo = !is_root()?;
    if !may_install()? {
        eprintln!("the tests need root once, to install packages; run: apt-get install {}", packages.join(" "));
        std::process::exit(2);
    }
    let apt = |args: &[&str]| {
        let full: Vec<&str> = if sudo {
            ["sudo", "apt-get"].iter().chain(args).copied().collect()
        } else {
            [&["apt-get"], args].concat()
        };
        run(full[0], &full[1..])
    };
    apt(&["-q", "update"])?;
    let mut install = vec!["-q", "install", "-y", "--no-install-recommends"];
    install.extend(&packages);
    apt(&install)
}

/// Programs for administrators may lie outside an ordinary user's path.
fn found(program: &str) -> bool {
    on_path(program) || ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).is_file())
}

fn python_has_venv() -> bool {
    on_path("python3") && output("python3", &["-c", "import ensurepip, venv"]).is_ok()
}

/// Installs Azurite; returns the program.
pub fn azurite() -> Result<PathBuf> {
    let dir = tools_dir().join("azurite");
    let program = dir.join("node_modules/.bin/azurite-blob");
    if !program.exists() {
        std::fs::create_dir_all(&dir)?;
        let dir = dir.to_string_lossy();
        run("npm", &["install", "--no-fund", "--no-audit", "--loglevel=error", "--prefix", &dir, AZURITE])?;
    }
    Ok(program)
}

/// Installs moto's S3 server; returns the program.
pub fn moto() -> Result<PathBuf> {
    let dir = tools_dir().join("moto");
    let program = dir.join("bin/moto_server");
    if !program.exists() {
        run("python3", &["-m", "venv", &dir.to_string_lossy()])?;
        run(&dir.join("bin/pip").to_string_lossy(), &["install", "--quiet", "--disable-pip-version-check", MOTO])?;
    }
    Ok(program)
}

/// Installs cargo-deny. Not optimised: it is built in two minutes less and takes a few seconds.
pub fn cargo_deny() -> Result<()> {
    cargo_tool("cargo-deny", CARGO_DENY, &["--no-default-features", "--debug"])
}

fn cargo_tool(name: &str, version: &str, more: &[&str]) -> Result<()> {
    if on_path(name) {
        return Ok(());
    }
    let mut args = vec!["install", "--quiet", "--locked", "--version", version, name];
    args.extend(more);
    run("cargo", &args)
}
