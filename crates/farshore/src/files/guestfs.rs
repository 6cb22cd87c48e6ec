//! File systems that `filesystem` does not read, through libguestfs where it is installed: its program `guestfish` starts a
//! small virtual machine, whose kernel mounts the disk and answers.
//!
//! The disk is given as an NBD export on a socket that only we can reach. The machine writes into a layer of its own, which is
//! thrown away, so that a journal can be replayed and the point stays as it is; whatever a file system made to harm does, it
//! does to that machine. It ends when we end: guestfish ends with its input.
//!
//! What must hold: of what comes back nothing is trusted. Names are read NUL by NUL, numbers are parsed, sizes are bounded;
//! paths go in with every byte but letters and digits escaped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow, bail};
use async_trait::async_trait;
use bytes::Bytes;
use filesystem::{Time, Volume};
use nbd::{BlockStatus, Errno, Export, ListenAddress, Server, ServerConfig, Threads, ZeroFlags};
use tokio::runtime::Handle;

/// The program of libguestfs.
const GUESTFISH: &str = "guestfish";

/// How libguestfs is told how to start its machine.
const SETTINGS: &str = "LIBGUESTFS_BACKEND_SETTINGS";

/// What makes it do without the processor's help.
const INTERPRETED: &str = "force_tcg";

/// Bytes of a file read at once.
const PIECE_BYTES: u64 = 4 << 20;

/// Bytes of one answer that is not the content of a file.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Bytes of what it complains.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// Where guestfish puts answers, in its working directory.
const ANSWER: &str = "answer";

/// Requests in flight of the virtual machine.
const INFLIGHT_MAX: usize = 16;

/// What is known of a path.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// Number of its inode.
    pub inode: u64,
    /// Kind and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Names it has.
    pub links: u64,
    /// When it was last changed.
    pub modified: Time,
}

/// A file system in a virtual machine.
pub struct Guestfs {
    session: Mutex<Session>,
    /// Held for as long as the machine runs.
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Guestfs {
    /// Starts a machine with the disk and mounts a partition, or the disk as a whole. To be called, as all of this, where a
    /// thread may block and the runtime goes on. Errors: libguestfs is not installed, or says why not.
    pub fn open(whole: Arc<dyn Volume>, partition: Option<u32>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("farshore-guestfs-").tempdir()?;
        let socket = directory.path().join("disk");
        let config = ServerConfig {
            name: String::new(),
            listen: ListenAddress::Unix(socket.clone()),
            tls: None,
            inflight_max: INFLIGHT_MAX,
            connections_max: 4,
            threads: Threads::Shared,
        };
        let server = Handle::current().block_on(Server::start(config, Arc::new(VolumeExport(whole))))?;
        let mut session = match Session::start(directory.path(), &socket, None) {
            Err(error) if std::env::var_os(SETTINGS).is_none() && is_installed() => {
                tracing::info!("libguestfs did not start, trying without the processor's help: {error:#}");
                Session::start(directory.path(), &socket, Some(INTERPRETED))?
            }
            started => started?,
        };
        let device = format!("/dev/sda{}", partition.map(|number| number.to_string()).unwrap_or_default());
        session
            .run(&format!("mount-options ro {device} /"))
            .with_context(|| format!("libguestfs cannot mount {device}"))?;
        Ok(Self { session: Mutex::new(session), _server: server, _directory: directory })
    }

    fn session(&self) -> std::sync::MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a path.
    pub fn stat(&self, path: &[u8], follow: bool) -> anyhow::Result<Stat> {
        let command = if follow { "statns" } else { "lstatns" };
        let said = self.session().ask(&format!("{command} {} | cat >{ANSWER}", quoted(path)))?;
        let said = String::from_utf8(said).context("libguestfs answered something that is no text")?;
        parse_stat(&said).with_context(|| format!("libguestfs says nothing of use about {}", path.escape_ascii()))
    }

    /// The names in a directory.
    pub fn list(&self, path: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let said = self.session().ask(&format!("ls0 {} {ANSWER}", quoted(path)))?;
        let names = said.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(<[u8]>::to_vec).collect())
    }

    /// Where a symbolic link points.
    pub fn link_target(&self, path: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut said = self.session().ask(&format!("readlink {} | cat >{ANSWER}", quoted(path)))?;
        // The line that guestfish prints ends in one; the target may have others.
        match said.pop() {
            Some(b'\n') if !said.is_empty() && !said.contains(&0) => Ok(said),
            _ => bail!("libguestfs names no target of the link {}", path.escape_ascii()),
        }
    }

    /// Gives the `size` bytes of a file to `sink`.
    pub fn read_file(
        &self,
        path: &[u8],
        size: u64,
        sink: &mut dyn FnMut(u64, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for offset in (0..size).step_by(PIECE_BYTES as usize) {
            let len = PIECE_BYTES.min(size - offset);
            let said = self.session().ask(&format!("download-offset {} {ANSWER} {offset} {len}", quoted(path)))?;
            if said.len() as u64 != len {
                bail!("libguestfs gave {} of {len} bytes at {offset} of {}", said.len(), path.escape_ascii());
            }
            sink(offset, &said)?;
        }
        Ok(())
    }
}

/// Whether libguestfs is installed.
pub fn is_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(GUESTFISH).is_file())
}

/// A running guestfish: commands go into its input one at a time.
struct Session {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Where it puts answers.
    answer: PathBuf,
    /// What it complains goes here.
    complaints: File,
}

impl Session {
    fn start(directory: &Path, socket: &Path, settings: Option<&str>) -> anyhow::Result<Self> {
        let complaints = directory.join("complaints");
        let sink = File::create(&complaints)?;
        let url = format!("nbd://?socket={}", socket.display());
        let mut command = Command::new(GUESTFISH);
        command.args(["--ro", "--format=raw", "-a", &url]);
        command.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(sink);
        command.envs(settings.map(|settings| (SETTINGS, settings)));
        let mut child = command.spawn().context("cannot run guestfish, which libguestfs brings")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("guestfish has no output")?);
        let answer = directory.join(ANSWER);
        let mut session = Self { child, input, output, answer, complaints: File::open(&complaints)? };
        session.run("run").context("libguestfs cannot start its virtual machine")?;
        Ok(session)
    }

    /// Runs a command. Errors: what it complained.
    fn run(&mut self, command: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("guestfish has ended")?;
        // The sign before a command lets the session go on after an error; the second line tells that the first is done. A child
        // says it, for what guestfish itself prints waits in a buffer.
        let asked = write!(input, "-{command}\n!echo done\n").and_then(|()| input.flush());
        let mut line = String::new();
        let answered = asked.and_then(|()| (&mut self.output).take(64).read_line(&mut line));
        let mut complaint = String::new();
        let told = (&mut self.complaints).take(COMPLAINT_BYTES_MAX).read_to_string(&mut complaint);
        self.complaints.seek(SeekFrom::End(0))?;
        let complaint = complaint.lines().next().unwrap_or_default().trim();
        if told.is_err() || !complaint.is_empty() {
            bail!("{}", complaint.split_once("libguestfs: error: ").map_or(complaint, |(_, why)| why));
        }
        match answered {
            Ok(_) if line == "done\n" => Ok(()),
            _ => Err(anyhow!("guestfish ended in the middle of a command")),
        }
    }

    /// Runs a command that puts its answer into the file [`ANSWER`], and reads it.
    fn ask(&mut self, command: &str) -> anyhow::Result<Vec<u8>> {
        self.run(command)?;
        let mut said = Vec::new();
        let read = File::open(&self.answer)?.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut said)?;
        std::fs::remove_file(&self.answer)?;
        if read as u64 > ANSWER_BYTES_MAX {
            bail!("libguestfs answers with more than {ANSWER_BYTES_MAX} bytes");
        }
        Ok(said)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It ends with its input; killed, it would leave its machine behind.
        self.input = None;
        let _ended_or_gone = self.child.wait();
    }
}

/// A word of guestfish's language that means these bytes and nothing else.
fn quoted(bytes: &[u8]) -> String {
    let escape = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => char::from(*byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    format!("\"{}\"", bytes.iter().map(escape).collect::<String>())
}

/// What `statns` prints: a name and a number in each line.
fn parse_stat(said: &str) -> anyhow::Result<Stat> {
    let field = |name: &str| -> anyhow::Result<i64> {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(line.with_context(|| format!("no {name}"))?.trim().parse()?)
    };
    Ok(Stat {
        inode: field("st_ino")? as u64,
        mode: u16::try_from(field("st_mode")?)?,
        uid: u32::try_from(field("st_uid")?)?,
        gid: u32::try_from(field("st_gid")?)?,
        size: u64::try_from(field("st_size")?)?,
        links: u64::try_from(field("st_nlink")?)?,
        modified: Time { seconds: field("st_mtime_sec")?, nanos: u32::try_from(field("st_mtime_nsec")?)? },
    })
}

/// A volume as a disk that can only be read.
struct VolumeExport(Arc<dyn Volume>);

#[async_trait]
impl Export for VolumeExport {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let volume = self.0.clone();
        let read = move || {
            let mut bytes = vec![0; len as usize];
            volume.read_at(offset, &mut bytes).map(|()| bytes)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(bytes)) => Ok(bytes.into()),
            Ok(Err(error)) => {
                tracing::error!("cannot read {len} bytes at {offset} of the disk: {error}");
                Err(Errno::Io)
            }
            Err(_) => Err(Errno::Io),
        }
    }

    async fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> Result<(), Errno> {
        Err(Errno::Permission)
    }

    async fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    async fn trim(&self, _offset: u64, _len: u64, _fua: bool) -> Result<(), Errno> {
        Err(Errno::Permission)
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64, _flags: ZeroFlags) -> Result<(), Errno> {
        Err(Errno::Permission)
    }

    async fn block_status(&self, _offset: u64, len: u64) -> Result<Vec<BlockStatus>, Errno> {
        Ok(vec![BlockStatus { len, hole: false, zero: false }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_more_than_a_word() {
        assert_eq!(quoted(b"/a b\n\"$|\\\xff"), "\"/a\\x20b\\x0a\\x22\\x24\\x7c\\x5c\\xff\"");
    }

    #[test]
    fn an_answer_that_lacks_something_is_refused() {
        let whole = "st_ino: 7\nst_mode: 33188\nst_nlink: 2\nst_uid: 0\nst_gid: 5\nst_size: 12\nst_mtime_sec: -3\nst_mtime_nsec: 9\n";
        let stat = parse_stat(whole).expect("is read");
        assert_eq!((stat.inode, stat.mode, stat.links, stat.size, stat.modified.seconds), (7, 0o100_644, 2, 12, -3));
        assert!(parse_stat(&whole.replace("st_size: 12\n", "")).is_err());
        assert!(parse_stat(&whole.replace("st_size: 12", "st_size: -12")).is_err());
        assert!(parse_stat(&whole.replace("33188", "4294967296")).is_err());
    }
}
