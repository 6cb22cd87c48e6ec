//! Real NBD clients against our server: libnbd (nbdinfo, nbdcopy), QEMU (qemu-io, qemu-img) and fio.
//!
//! What each client says about its own checks counts, and so does the disk compared from outside. Each of these oracles
//! has a control that runs the same check on an export that loses one write, and must fail there. A tool that is not
//! installed fails the test and names the package.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nbd::memory::MemoryExport;
use nbd::{BlockStatus, Errno, Export, ListenAddress, Server, ServerConfig, Threads, ZeroFlags};
use tokio::process::Command;

const MIB: u64 = 1 << 20;
/// No tool takes nearly as long unless it hangs.
const TOOL_TIME_MAX: Duration = Duration::from_secs(60);

/// Passes everything on and counts it; loses the write that reaches byte `lost`, if there is one.
struct Watched {
    inner: MemoryExport,
    lost: Option<u64>,
    writes: AtomicU64,
    fua_writes: AtomicU64,
    trims: AtomicU64,
    zeroes: AtomicU64,
}

impl Watched {
    fn new(inner: MemoryExport, lost: Option<u64>) -> Arc<Self> {
        let count = AtomicU64::default;
        Arc::new(Self { inner, lost, writes: count(), fua_writes: count(), trims: count(), zeroes: count() })
    }

    fn loses(&self, offset: u64, len: u64) -> bool {
        self.lost.is_some_and(|lost| (offset..offset + len).contains(&lost))
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[async_trait]
impl Export for Watched {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        self.inner.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.fua_writes.fetch_add(u64::from(fua), Ordering::Relaxed);
        if self.loses(offset, data.len() as u64) {
            return Ok(());
        }
        self.inner.write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.inner.flush().await
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.trims.fetch_add(1, Ordering::Relaxed);
        self.inner.trim(offset, len, fua).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        self.zeroes.fetch_add(1, Ordering::Relaxed);
        self.inner.write_zeroes(offset, len, flags).await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockStatus>, Errno> {
        self.inner.block_status(offset, len).await
    }
}

/// A server on a Unix socket, and a folder for the files of a test.
struct Site {
    dir: tempfile::TempDir,
    server: Server,
}

impl Site {
    async fn serve(export: Arc<dyn Export>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = ListenAddress::Unix(dir.path().join("nbd.sock"));
        let config = ServerConfig {
            name: "disk".into(),
            listen,
            tls: None,
            inflight_max: 64,
            connections_max: 32,
            threads: Threads::Own { began: || () },
        };
        let server = Server::start(config, export).await.unwrap();
        Self { dir, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.text("nbd.sock"))
    }

    async fn tool(&self, tool: &str, arguments: &[&str]) -> Output {
        run(self.dir.path(), tool, arguments).await
    }

    async fn succeeds(&self, tool: &str, arguments: &[&str]) -> String {
        let output = self.tool(tool, arguments).await;
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{tool} {arguments:?}: {}\n{said}\n{complained}", output.status);
        said.into_owned()
    }
}

async fn run(dir: &Path, tool: &str, arguments: &[&str]) -> Output {
    let package = match tool {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "qemu-io" | "qemu-img" => "qemu-utils",
        other => other,
    };
    let mut command = Command::new(tool);
    command.args(arguments).current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(TOOL_TIME_MAX, command.output()).await {
        Err(_) => panic!("{tool} {arguments:?} did not finish in {TOOL_TIME_MAX:?}"),
        Ok(Err(error)) => panic!("could not run {tool} ({error}): install the Debian package {package}"),
        Ok(Ok(output)) => output,
    }
}

/// Bytes with holes: no two blocks alike, every third run of 64 KiB is zeros.
fn pattern(len: u64) -> Vec<u8> {
    let block = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
    let word = |at: u64| if (at / (64 << 10)).is_multiple_of(3) { 0 } else { block(at) | 1 };
    (0..len / 8).flat_map(|at| word(at * 8).to_le_bytes()).collect()
}

/// A byte that `pattern` makes non-zero.
const LOST: u64 = MIB + 200 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_reads_size_flags_blocks_contexts_and_the_list() {
    let site = Site::serve(Arc::new(MemoryExport::new(8 * MIB))).await;
    let said: serde_json::Value =
        serde_json::from_str(&site.succeeds("nbdinfo", &["--json", &site.uri()]).await).unwrap();
    let export = &said["exports"][0];
    assert_eq!(said["protocol"], "newstyle-fixed");
    assert_eq!(said["structured"], true);
    assert_eq!(export["export-name"], "disk");
    assert_eq!(export["export-size"], 8 * MIB);
    assert_eq!(export["contexts"][0], "base:allocation");
    for (key, expected) in [
        ("is_read_only", false),
        ("can_flush", true),
        ("can_fua", true),
        ("can_trim", true),
        ("can_zero", true),
        ("can_df", true),
        ("can_multi_conn", true),
        ("can_cache", false),
        ("can_fast_zero", false),
    ] {
        assert_eq!(export[key], expected, "{key}");
    }
    let blocks =
        ["block_size_minimum", "block_size_preferred", "block_size_maximum"].map(|key| export[key].as_u64().unwrap());
    assert_eq!(blocks, [512, 4096, 32 * MIB]);
    let list = site.succeeds("nbdinfo", &["--list", "--json", &site.uri()]).await;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["exports"][0]["export-name"], "disk");
    let other = site.uri().replace("/disk", "/other");
    assert!(!site.tool("nbdinfo", &[&other]).await.status.success(), "an unknown export is refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_and_qemu_img_map_the_holes_of_the_disk() {
    let disk = MemoryExport::new(4 * MIB);
    disk.write(MIB, Bytes::from(vec![1; 65536]), false).await.unwrap();
    let site = Site::serve(Arc::new(disk)).await;
    let map: serde_json::Value =
        serde_json::from_str(&site.succeeds("nbdinfo", &["--map", "--json", &site.uri()]).await).unwrap();
    let runs: Vec<_> =
        map.as_array().unwrap().iter().map(|run| (run["offset"].as_u64(), run["type"].as_u64())).collect();
    assert_eq!(runs, [(Some(0), Some(3)), (Some(MIB), Some(0)), (Some(MIB + 65536), Some(3))]);
    let map = site.succeeds("qemu-img", &["map", "-f", "raw", "--output=json", &site.uri()]).await;
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let runs: Vec<_> =
        map.as_array().unwrap().iter().map(|run| (run["start"].as_u64(), run["zero"].as_bool())).collect();
    assert_eq!(runs, [(Some(0), Some(true)), (Some(MIB), Some(false)), (Some(MIB + 65536), Some(true))]);
}

/// Copies a file in and out again by nbdcopy; whether the copy and the disk equal the file.
async fn nbdcopy_there_and_back(lost: Option<u64>) -> (bool, bool) {
    let contents = pattern(16 * MIB);
    let export = Watched::new(MemoryExport::new(16 * MIB), lost);
    let site = Site::serve(export.clone()).await;
    std::fs::write(site.path("in"), &contents).unwrap();
    site.succeeds("nbdcopy", &["--flush", &site.text("in"), &site.uri()]).await;
    site.succeeds("nbdcopy", &[&site.uri(), &site.text("out")]).await;
    assert!(export.inner.flushes() > 0);
    (std::fs::read(site.path("out")).unwrap() == contents, export.inner.contents() == contents)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_brings_a_disk_in_and_out_unchanged() {
    assert_eq!(nbdcopy_there_and_back(None).await, (true, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopys_comparison_finds_a_lost_write() {
    assert_eq!(nbdcopy_there_and_back(Some(LOST)).await, (false, false));
}

/// Runs qemu-io without host caching; it reports failed pattern checks by its exit status or in words.
async fn qemu_io(site: &Site, commands: &[&str]) -> Result<(), String> {
    let uri = site.uri();
    let mut arguments = vec!["-t", "none", "-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(&uri);
    let output = site.tool("qemu-io", &arguments).await;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let good = output.status.success() && !said.contains("failed") && !said.contains("error");
    if good { Ok(()) } else { Err(said) }
}

const QEMU_IO: [&str; 14] = [
    "write -P 0x11 0 1M",
    "write -f -P 0x22 1M 512k",
    "aio_write -P 0x33 2M 1M",
    "aio_write -P 0x44 3M 64k",
    "aio_flush",
    "write -z 256k 64k",
    "write -z -u 512k 64k",
    "discard 768k 64k",
    "flush",
    "read -P 0x11 0 256k",
    "read -P 0 256k 64k",
    "read -P 0x22 1M 512k",
    "read -P 0x33 2M 1M",
    "read -P 0x44 3M 64k",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_finds_every_pattern_it_wrote() {
    let export = Watched::new(MemoryExport::new(8 * MIB), None);
    let site = Site::serve(export.clone()).await;
    qemu_io(&site, &QEMU_IO).await.unwrap();
    assert!(count(&export.fua_writes) > 0, "write -f arrives as FUA");
    assert!(count(&export.trims) > 0, "discard arrives as TRIM");
    assert!(count(&export.zeroes) >= 2, "write -z arrives as WRITE_ZEROES");
    assert!(export.inner.flushes() > count(&export.fua_writes), "flush arrives as FLUSH");
    let disk = export.inner.contents();
    assert!(disk[..256 << 10].iter().all(|byte| *byte == 0x11));
    assert!(disk[256 << 10..320 << 10].iter().all(|byte| *byte == 0));
    assert!(disk[2 << 20..3 << 20].iter().all(|byte| *byte == 0x33));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_ios_patterns_find_a_lost_write() {
    let site = Site::serve(Watched::new(MemoryExport::new(8 * MIB), Some(2 * MIB + 4096))).await;
    let said = qemu_io(&site, &QEMU_IO).await.unwrap_err();
    assert!(said.contains("Pattern verification failed"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_is_told_that_a_read_only_disk_is_one() {
    let site = Site::serve(Arc::new(MemoryExport::from_contents(&pattern(MIB)).into_read_only())).await;
    let said = qemu_io(&site, &["write 0 4k"]).await.unwrap_err();
    assert!(said.contains("Permission denied"), "{said}");
    site.succeeds("qemu-io", &["-r", "-t", "none", "-f", "raw", "-c", "read 0 1M", &site.uri()]).await;
}

/// Converts qcow2 to the export and the export to qcow2; what qemu-img compare says of both.
async fn qemu_img_there_and_back(lost: Option<u64>) -> (bool, bool) {
    let contents = pattern(16 * MIB);
    let export = Watched::new(MemoryExport::new(16 * MIB), lost);
    let site = Site::serve(export.clone()).await;
    std::fs::write(site.path("raw"), &contents).unwrap();
    let (raw, first, second, uri) = (site.text("raw"), site.text("first"), site.text("second"), site.uri());
    site.succeeds("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &first]).await;
    site.succeeds("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", &first, &uri]).await;
    site.succeeds("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &second]).await;
    let there = site.tool("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &first, &uri]).await;
    let back = site.tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &raw, &second]).await;
    for compared in [&there, &back] {
        assert!(matches!(compared.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&compared.stderr));
    }
    (there.status.success(), back.status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_converts_a_disk_in_and_out_unchanged() {
    assert_eq!(qemu_img_there_and_back(None).await, (true, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_imgs_comparison_finds_a_lost_write() {
    assert_eq!(qemu_img_there_and_back(Some(LOST)).await, (false, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_info_knows_the_size_over_tcp_too() {
    let dir = tempfile::tempdir().unwrap();
    let listen = "tcp:127.0.0.1:0".parse().unwrap();
    let config = ServerConfig {
        name: "disk".into(),
        listen,
        tls: None,
        inflight_max: 8,
        connections_max: 8,
        threads: Threads::Shared,
    };
    let server = Server::start(config, Arc::new(MemoryExport::new(8 * MIB))).await.unwrap();
    let host_port = server.address().to_string().replace("tcp:", "");
    let uri = format!("nbd://{host_port}/disk");
    let said = run(dir.path(), "qemu-img", &["info", "--output=json", &uri]).await.stdout;
    let info: serde_json::Value = serde_json::from_slice(&said).unwrap();
    assert_eq!((&info["virtual-size"], &info["format"]), (&(8 * MIB).into(), &"raw".into()));
    server.stop().await;
}

/// Runs a fio job; `Err` with what it said if it found a fault.
async fn fio(site: &Site, extra: &[&str]) -> Result<(), String> {
    let uri = format!("--uri={}", site.uri());
    let common =
        ["--name=job", "--ioengine=nbd", &uri, "--bsrange=4k-64k", "--iodepth=16", "--size=16m", "--randseed=7"];
    let output = site.tool("fio", &[&common[..], extra].concat()).await;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

const VERIFY: [&str; 5] =
    ["--rw=randrw", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--serialize_overlap=1"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_verifies_every_block_it_wrote() {
    let export = Watched::new(MemoryExport::new(16 * MIB), None);
    let site = Site::serve(export.clone()).await;
    fio(&site, &[&VERIFY[..], &["--fsync=32"]].concat()).await.unwrap();
    assert!(count(&export.writes) > 100);
    assert!(export.inner.flushes() > 0, "fsync arrives as FLUSH");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fios_verification_finds_a_lost_write() {
    let site = Site::serve(Watched::new(MemoryExport::new(16 * MIB), Some(5 * MIB))).await;
    let said = fio(&site, &["--rw=write", VERIFY[1], VERIFY[2], VERIFY[3]]).await.unwrap_err();
    assert!(said.contains("bad magic header") || said.contains("verify failed"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_trims_and_writes_from_several_jobs_at_once() {
    let export = Watched::new(MemoryExport::new(16 * MIB), None);
    let site = Site::serve(export.clone()).await;
    fio(&site, &["--rw=randtrimwrite", "--numjobs=3"]).await.unwrap();
    assert!(count(&export.trims) > 100 && count(&export.writes) > 100);
    site.server.stop().await;
}
