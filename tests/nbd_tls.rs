//! NBD over TLS with real clients: those that hold the site's credentials write and read, all others get nothing.
//!
//! QEMU and libnbd verify the server by their own library (GnuTLS), the server verifies them; every refusal is judged by
//! what the client or the server said, and by the disk, which stays as it was.
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use transport::Authority;

use crate::harness::site::{assert_same, difference};
use crate::harness::tools::{run, try_run};
use crate::harness::{Proc, Seed, Site, SiteOptions, eventually};
use crate::ports::free_port;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

/// A site whose exports are offered over TLS.
struct TlsSite {
    site: Site,
    ports: [u16; 2],
}

impl TlsSite {
    /// `root` is offered at localhost, `data` at `data_host`.
    fn new(data_host: &str) -> Self {
        let disks = vec![("root", SIZE), ("data", SIZE)];
        let site = Site::new(SiteOptions { machines: vec![("db", disks)], ..SiteOptions::default() });
        let ports = [free_port(), free_port()];
        let mut text = std::fs::read_to_string(site.config()).expect("config is read");
        for (disk, host, port) in [("root", "localhost", ports[0]), ("data", data_host, ports[1])] {
            let unix = format!("unix:{}", site.socket("db", disk).to_string_lossy());
            assert!(text.contains(&unix), "{text}");
            text = text.replace(&unix, &format!("tls:{host}:{port}"));
        }
        std::fs::write(site.config(), text).expect("config is written");
        Self { site, ports }
    }

    /// The process server and the agent, once both exports accept connections.
    fn start(&self) -> [Proc; 2] {
        let server = self.site.start(&["process-server"]);
        let mut agent = self.site.start(&["agent", "db"]);
        for port in self.ports {
            eventually("the disk is served", || {
                agent.running()?;
                TcpStream::connect(("localhost", port)).map(drop).map_err(|e| e.to_string())
            });
        }
        [server, agent]
    }

    fn pki(&self) -> PathBuf {
        self.site.path("site/pki")
    }

    /// What the documentation tells to hand to clients.
    fn credentials(&self) -> PathBuf {
        self.pki().join("nbd-client")
    }

    /// A directory of credentials made of a CA's certificate, a certificate and a key.
    fn credentials_of(&self, name: &str, ca: &str, certificate: &str, key: &str) -> PathBuf {
        let dir = self.site.path(name);
        std::fs::create_dir(&dir).expect("directory is made");
        for (file, text) in [("ca-cert.pem", ca), ("client-cert.pem", certificate), ("client-key.pem", key)] {
            std::fs::write(dir.join(file), text).expect("credential is written");
        }
        dir
    }

    /// Handshakes that the agent says have failed.
    fn refusals(&self) -> usize {
        self.agent_log().lines().filter(|line| line.contains("TLS failed")).count()
    }

    fn wait_refusals(&self, wanted: usize) {
        eventually("the agent says whom it refused", || match self.refusals() {
            found if found >= wanted => Ok(()),
            found => Err(format!("{found} of {wanted}:\n{}", self.agent_log())),
        });
    }

    fn agent_log(&self) -> String {
        std::fs::read_to_string(self.site.path("agent-db.log")).expect("the agent's log is read")
    }
}

/// One export as real clients name it.
#[derive(Clone, Copy)]
struct Export<'a> {
    host: &'a str,
    port: u16,
    disk: &'a str,
    credentials: &'a Path,
    /// Whether QEMU looks at its own certificate before it connects.
    sanity_check: bool,
}

impl Export<'_> {
    /// libnbd's form.
    fn uri(&self) -> String {
        let credentials = self.credentials.to_string_lossy();
        format!("nbds://{}:{}/{}?tls-certificates={credentials}", self.host, self.port, self.disk)
    }

    /// The same without TLS.
    fn plain_uri(&self) -> String {
        format!("nbd://{}:{}/{}", self.host, self.port, self.disk)
    }

    /// QEMU's credentials object.
    fn object(&self) -> String {
        let credentials = self.credentials.to_string_lossy();
        let check = if self.sanity_check { "yes" } else { "no" };
        format!("tls-creds-x509,id=tls0,dir={credentials},endpoint=client,verify-peer=yes,sanity-check={check}")
    }

    /// QEMU's form.
    fn options(&self) -> String {
        format!(
            "driver=raw,file.driver=nbd,file.host={},file.port={},file.export={},file.tls-creds=tls0",
            self.host, self.port, self.disk
        )
    }

    fn qemu_io(&self, commands: &[&str]) -> Output {
        let (object, options) = (self.object(), self.options());
        let mut args = vec!["-t", "none", "--object", &object, "--image-opts"];
        commands.iter().for_each(|c| args.extend(["-c", c]));
        args.push(&options);
        try_run("qemu-io", &args)
    }

    /// Copies an image into the export.
    fn qemu_img_write(&self, from: &Path) {
        let (object, options, from) = (self.object(), self.options(), from.to_string_lossy());
        run("qemu-img", &["convert", "-n", "--object", &object, "-f", "raw", "--target-image-opts", &from, &options]);
    }

    /// Whether the export holds what a raw file holds.
    fn qemu_img_compare(&self, with: &Path) -> bool {
        let (object, options) = (self.object(), self.options());
        let with = format!("driver=raw,file.driver=file,file.filename={}", with.to_string_lossy());
        let out = try_run("qemu-img", &["compare", "--object", &object, "--image-opts", &with, &options]);
        assert!(matches!(out.status.code(), Some(0 | 1)), "qemu-img can compare: {}", said(&out));
        out.status.success()
    }
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Asserts that a client failed, and that it gave one of these reasons.
fn refused(what: &str, out: &Output, reasons: &[&str]) {
    let said = said(out);
    assert!(!out.status.success(), "{what} is refused: {said}");
    assert!(reasons.iter().any(|reason| said.contains(reason)), "{what} is refused for one of {reasons:?}: {said}");
}

/// A file of random bytes with a hole in it.
fn image(path: &Path, seed: u64) {
    let mut seed = Seed::from_environment(seed);
    let mut bytes: Vec<u8> = (0..SIZE / 8).flat_map(|_| seed.next().to_le_bytes()).collect();
    bytes[(8 * MIB) as usize..(12 * MIB) as usize].fill(0);
    std::fs::write(path, bytes).expect("image is written");
}

#[test]
fn what_real_clients_wrote_over_tls_comes_back() {
    let tls = TlsSite::new("0.0.0.0");
    let _roles = tls.start();
    let (site, credentials) = (&tls.site, tls.credentials());
    let root =
        Export { host: "localhost", port: tls.ports[0], disk: "root", credentials: &credentials, sanity_check: true };
    let data =
        Export { host: "127.0.0.1", port: tls.ports[1], disk: "data", credentials: &credentials, sanity_check: true };
    let (first, second) = (site.path("first.raw"), site.path("second.raw"));
    image(&first, 0x71_5001);
    image(&second, 0x71_5002);

    let info: serde_json::Value = serde_json::from_str(&run("nbdinfo", &["--json", &root.uri()])).expect("JSON");
    assert_eq!((&info["TLS"], &info["exports"][0]["export-size"]), (&true.into(), &SIZE.into()), "{info:#}");

    root.qemu_img_write(&first);
    run("nbdcopy", &["--flush", &second.to_string_lossy(), &data.uri()]);
    let out = root.qemu_io(&[
        "aio_write -P 0xa1 1M 2M",
        "aio_write -P 0xa2 5M 64k",
        "aio_flush",
        "write -f -P 0xa3 4k 512",
        "write -z 16M 1M",
        "discard 20M 1M",
        "flush",
        "read -P 0xa1 1M 2M",
        "read -P 0 16M 1M",
    ]);
    assert!(out.status.success() && !said(&out).contains("failed"), "qemu-io works: {}", said(&out));
    site.wait_stored("db");

    let restored = site.restore("db", "latest", "restored");
    site.assert_equals_source("db", &restored);
    assert_same(&second, &restored[1].1);
    assert!(root.qemu_img_compare(&restored[0].1), "root reads over TLS as it was restored");
    assert!(!root.qemu_img_compare(&first), "the comparison finds what qemu-io changed");
    let out = site.path("out.raw");
    run("nbdcopy", &[&data.uri(), &out.to_string_lossy()]);
    assert_same(&second, &out);
}

#[test]
fn clients_without_the_sites_credentials_get_nothing() {
    let tls = TlsSite::new("localhost");
    let _roles = tls.start();
    let good = tls.credentials();
    let export =
        |credentials| Export { host: "localhost", port: tls.ports[0], disk: "root", credentials, sanity_check: true };
    run("nbdinfo", &[&export(&good).uri()]);

    let plain = export(&good).plain_uri();
    refused("nbdinfo without TLS", &try_run("nbdinfo", &[&plain]), &["TLS", "tls"]);
    refused("a list without TLS", &try_run("nbdinfo", &["--list", &plain]), &["not supported"]);
    let out = try_run("qemu-io", &["-f", "raw", "-c", "write -P 0x66 0 1M", &plain]);
    refused("qemu-io without TLS", &out, &["TLS", "tls"]);

    let read = |file: &str| std::fs::read_to_string(tls.pki().join(file)).expect(file);
    let ca = read("ca.crt");
    let other = Authority::generate("other").expect("another CA");
    let theirs = other.issue_nbd_client(Duration::from_secs(3600)).expect("a certificate of another CA");
    let stranger = tls.credentials_of("stranger", &ca, &theirs.certificate_pem, &theirs.key_pem);
    let agent = tls.credentials_of("agent", &ca, &read("agent-db.crt"), &read("agent-db.key"));
    let both = ["stranger", "agent"].into_iter().zip([&stranger, &agent]);
    for (what, credentials) in both {
        let export = Export { sanity_check: false, ..export(credentials) };
        // Under TLS 1.3 a client learns of its refusal late, as an alert or as the end of the connection in the middle of
        // something: which is a matter of timing, so the server's word counts.
        let refusals = tls.refusals();
        let out = export.qemu_io(&["write -P 0x66 0 1M", "flush"]);
        assert!(!out.status.success(), "{what} is refused: {}", said(&out));
        tls.wait_refusals(refusals + 1);
        let out = try_run("nbdinfo", &[&export.uri()]);
        assert!(!out.status.success(), "{what} is refused: {}", said(&out));
        tls.wait_refusals(refusals + 2);
    }
    assert!(tls.agent_log().contains("not for NBD clients"), "the agent's certificate is known and refused");

    // The server's certificate is of this site's CA and for localhost: a client that expects another finds out.
    let elsewhere = tls.credentials_of("elsewhere", other.certificate_pem(), &theirs.certificate_pem, &theirs.key_pem);
    refused("another server", &try_run("nbdinfo", &[&export(&elsewhere).uri()]), &["ertificate", "verif"]);
    let by_address = Export { host: "127.0.0.1", ..export(&good) };
    if TcpStream::connect(("127.0.0.1", tls.ports[0])).is_ok() {
        refused("another name", &try_run("nbdinfo", &[&by_address.uri()]), &["ertificate", "verif"]);
    }

    let zeros = tls.site.path("zeros");
    std::fs::File::create(&zeros).and_then(|f| f.set_len(SIZE)).expect("zeros are made");
    assert_same(&zeros, &tls.site.source("db", "root"));
    // The check above can fail: the same write with the site's credentials arrives.
    assert!(export(&good).qemu_io(&["write -P 0x66 0 1M", "flush"]).status.success());
    assert!(difference(&zeros, &tls.site.source("db", "root")).is_some());
}

#[test]
fn a_position_is_served_over_tls() {
    let tls = TlsSite::new("localhost");
    let _roles = tls.start();
    let (site, credentials) = (&tls.site, tls.credentials());
    let root =
        Export { host: "localhost", port: tls.ports[0], disk: "root", credentials: &credentials, sanity_check: true };
    assert!(root.qemu_io(&["write -P 0x11 1M 3M", "flush"]).status.success());
    let seq = site.wait_stored("db");
    let kept = site.path("kept.raw");
    std::fs::copy(site.source("db", "root"), &kept).expect("source is copied");
    assert!(root.qemu_io(&["write -P 0x22 2M 1M", "flush"]).status.success());
    site.wait_stored("db");

    // Another host than the agent's: the certificate has to be issued for both.
    let port = free_port();
    let (at, listen) = (format!("seq:{seq}"), format!("tls:127.0.0.1:{port}"));
    let serve = ["serve", "db", "--disk", "root", "--at", &at, "--listen", &listen];
    let mut serving = site.start(&serve);
    eventually("the position is served", || {
        serving.running()?;
        TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|e| e.to_string())
    });
    let served = Export { host: "127.0.0.1", port, disk: "root", credentials: &credentials, sanity_check: true };
    assert!(served.qemu_img_compare(&kept), "the position is as the source was then");
    assert!(!served.qemu_img_compare(&site.source("db", "root")), "and not as the source is now");
    refused("a client without TLS", &try_run("nbdinfo", &[&served.plain_uri()]), &["TLS", "tls"]);
    let out = served.qemu_io(&["write -P 0x33 0 64k", "read -P 0x33 0 64k", "read -P 0x11 1M 3M"]);
    assert!(out.status.success() && !said(&out).contains("failed"), "the overlay takes writes: {}", said(&out));
    assert!(serving.stop(crate::harness::PATIENCE).success(), "a stop by signal is clean");

    // Without the configuration there are no certificates, and nothing is served in the clear instead.
    let store = site.store_url();
    let key = site.path("site/vault.key");
    let nowhere = site.path("no.toml");
    let bare = ["--config", &nowhere.to_string_lossy(), "--store", &store, "--key", &key.to_string_lossy()];
    let ran = site.run_bare(&[&bare[..], &serve[..]].concat());
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("certificates of the site"), "{ran:?}");
}

#[test]
fn a_revoked_client_is_cut_off_and_refused_while_the_export_runs() {
    let tls = TlsSite::new("localhost");
    let _roles = tls.start();
    let credentials = tls.credentials();
    let root =
        Export { host: "localhost", port: tls.ports[0], disk: "root", credentials: &credentials, sanity_check: true };
    run("nbdinfo", &[&root.uri()]);
    // A client that stays connected: it asks for a block now and then until it is cut off.
    let object = root.object();
    let sleepy = "aio_write -P 0x11 0 64k\naio_flush\n".to_owned() + &"sleep 500\nread 0 4k\n".repeat(60);
    let script = tls.site.path("script");
    std::fs::write(&script, sleepy).expect("written");
    let mut command = std::process::Command::new("qemu-io");
    command.args(["-t", "none", "--object", &object, "--image-opts", &root.options()]);
    let input = std::fs::File::open(&script).expect("script opens");
    let mut client = command
        .stdin(input)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("qemu-io starts");
    eventually("the client has written", || {
        let mut byte = [0];
        use std::os::unix::fs::FileExt;
        let source = std::fs::File::open(tls.site.source("db", "root")).map_err(|e| e.to_string())?;
        source.read_exact_at(&mut byte, 0).map_err(|e| e.to_string())?;
        if byte == [0x11] { Ok(()) } else { Err("not yet".into()) }
    });
    let ran = tls.site.run(&["revoke", &credentials.join("client-cert.pem").to_string_lossy()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    eventually("the client is cut off", || {
        let log = tls.agent_log();
        if log.contains("certificate was revoked: it is cut off") { Ok(()) } else { Err(log) }
    });
    let refusals = tls.refusals();
    assert!(!try_run("nbdinfo", &[&root.uri()]).status.success(), "a revoked client is refused");
    tls.wait_refusals(refusals + 1);
    let _gone_already = client.kill();
    client.wait().expect("waited for");
}
