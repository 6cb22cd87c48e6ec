//! What others use for the same work. Each is a few lines of the shell, which are shown in the report as they were run.
//!
//! All of them end with what they wrote on the medium: restic, borg and rustic sync by themselves, the others are told to.
//! Not all do what Farshore does: only restic, borg and rustic encrypt and deduplicate, and nobody else keeps every write.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Bench;
use crate::measure::{Cost, bytes_below, empty_dir, shell};

/// A peer; `$IMAGE` is the image in its lines.
pub struct Peer {
    pub name: &'static str,
    /// Programs that it needs.
    programs: &'static [&'static str],
    /// Arguments that make the first of them say its version.
    version: &'static [&'static str],
    /// Not timed.
    prepare: &'static str,
    /// Timed.
    pub line: &'static str,
    /// What it stored, below its directory.
    stored: &'static str,
    /// Whether a second run of the line stores an increment.
    pub increments: bool,
}

/// Which are compared by name.
pub const PIPELINE: &str = "zstd -1 -T2 \\| openssl";
pub const RESTIC: &str = "restic";

/// In the order of the tables.
pub const PEERS: [Peer; 6] = [
    Peer {
        name: PIPELINE,
        programs: &["zstd", "openssl"],
        version: &["--version"],
        prepare: "",
        line: "zstd -q -1 -T2 -c $IMAGE | openssl enc -aes-256-ctr -K $KEY -iv 00 -out out 2>/dev/null; sync out",
        stored: "out",
        increments: false,
    },
    Peer {
        name: RESTIC,
        programs: &["restic"],
        version: &["version"],
        prepare: "restic -q init",
        line: "restic -q backup $IMAGE",
        stored: "repo",
        increments: true,
    },
    Peer {
        name: "borg",
        programs: &["borg"],
        version: &["--version"],
        prepare: "borg init -e repokey-blake2 repo",
        line: "borg create repo::{utcnow:%s%f} $IMAGE",
        stored: "repo",
        increments: true,
    },
    Peer {
        name: "rustic",
        programs: &["rustic"],
        version: &["--version"],
        prepare: "rustic --no-progress init",
        line: "rustic --no-progress backup $IMAGE",
        stored: "repo",
        increments: true,
    },
    Peer {
        name: "qemu-img convert, zstd",
        programs: &["qemu-img"],
        version: &["--version"],
        prepare: "",
        line: "qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd $IMAGE out; sync out",
        stored: "out",
        increments: false,
    },
    Peer {
        name: "nbdcopy, nothing but copying",
        programs: &["nbdcopy", "nbdkit"],
        version: &["--version"],
        prepare: "",
        line: "nbdkit -f -U s file $IMAGE & until [ -S s ]; do sleep 0.01; done; \
               nbdcopy --flush 'nbd+unix:///?socket=s' out; kill $!; wait $! || true; sync out",
        stored: "out",
        increments: false,
    },
];

impl Peer {
    /// Whether all its programs can be found.
    pub fn installed(&self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        self.programs.iter().all(|program| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
    }

    /// What it says its version is, in one line.
    pub fn said_version(&self) -> String {
        let out = Command::new(self.programs[0]).args(self.version).output();
        let text = out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("no version said").trim_matches(['*', ' ']).to_owned()
    }

    /// An empty repository, or an empty directory.
    pub fn prepare(&self, bench: &Bench) -> Result<PathBuf> {
        let dir = bench.dir.join("peer");
        empty_dir(&dir)?;
        if !self.prepare.is_empty() {
            shell(&with_environment(self.prepare, Path::new("none")), &dir)?;
        }
        Ok(dir)
    }

    /// Stores an image.
    pub fn store(&self, dir: &Path, image: &Path) -> Result<Cost> {
        let cost = shell(&with_environment(self.line, image), dir)?;
        let stored = bytes_below(&dir.join(self.stored))?;
        ensure!(stored > std::fs::metadata(image)?.len() / 100, "{} stored only {stored} bytes", self.name);
        Ok(Cost { stored, ..cost })
    }

    /// One round: an empty repository, and the image in it.
    pub fn round(&self, bench: &Bench, image: &Path) -> Result<Cost> {
        let dir = self.prepare(bench)?;
        let cost = self.store(&dir, image)?;
        std::fs::remove_dir_all(&dir).context("cannot remove what a peer stored")?;
        Ok(cost)
    }
}

/// Where repositories and caches lie: below the directory that the line runs in.
fn with_environment(line: &str, image: &Path) -> String {
    format!(
        "export IMAGE={} KEY=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f; \
         export RESTIC_REPOSITORY=repo RESTIC_PASSWORD=bench RESTIC_CACHE_DIR=cache; \
         export BORG_PASSPHRASE=bench BORG_BASE_DIR=base RUSTIC_REPOSITORY=repo RUSTIC_PASSWORD=bench RUSTIC_CACHE_DIR=cache; \
         {line}",
        image.display()
    )
}
