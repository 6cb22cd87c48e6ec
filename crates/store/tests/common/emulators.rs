//! Servers that speak the protocols of cloud stores, for tests: Azurite for Azure Blob, moto for S3. They prove the shape
//! of the requests and of the answers, not the consistency of the real services.
//!
//! Where their programs are is said by `FARSHORE_AZURITE` and `FARSHORE_MOTO`; `cargo xtask test` installs them and sets
//! both. Used by the tests of this crate and by the end-to-end tests.

use std::fs::File;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use waiting::Deadline;

use crate::ports::free_port;

/// How long an emulator may take to listen. The machines of continuous integration are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The account and key that every Azurite has (learn.microsoft.com, "Use the Azurite emulator").
const AZURITE_ACCOUNT: &str = "devstoreaccount1";
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Creates a container with a signed request (REST "Create Container", "Authorize with Shared Key").
const CREATE_CONTAINER: &str = r#"
import base64, hashlib, hmac, sys, urllib.request, email.utils
port, account, key, name = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
path = f"/{account}/{name}"
text = "PUT\n\n\n\n\n\n\n\n\n\n\n\n" + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n" + f"/{account}{path}\nrestype:container"
mac = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
request = urllib.request.Request(f"http://127.0.0.1:{port}{path}?restype=container", method="PUT")
for k, v in {"x-ms-date": date, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {account}:{mac}"}.items():
    request.add_header(k, v)
print(urllib.request.urlopen(request).status)
"#;

/// Creates a bucket; moto takes unsigned requests.
const CREATE_BUCKET: &str = r#"
import sys, urllib.request
print(urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/farshore", method="PUT")).status)
"#;

/// moto looks whether the object exists and then puts it, in two steps: with a thread for each request, two creates can
/// both win. One request at a time keeps what S3 promises.
const MOTO_ONE_BY_ONE: &str = r#"
import sys, moto.server
serve = moto.server.run_simple
moto.server.run_simple = lambda *args, **more: serve(*args, **{**more, "threaded": False})
moto.server.main(sys.argv[1:])
"#;

/// A running emulator with an empty container or bucket. Killed when dropped.
pub struct Emulator {
    server: Child,
    dir: tempfile::TempDir,
    /// URL of a store in it.
    pub url: &'static str,
    /// The environment in which that URL means this emulator.
    pub environment: Vec<(String, String)>,
}

impl Emulator {
    /// Azure Blob, by the program that `FARSHORE_AZURITE` names; none when it names none.
    pub fn azurite() -> Option<Self> {
        let program = std::env::var("FARSHORE_AZURITE").ok()?;
        let (dir, port) = (temporary(), free_port());
        let text = port.to_string();
        let mut command = Command::new(program);
        command.args([
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            &text,
            "--silent",
            "--skipApiVersionCheck",
            "--location",
        ]);
        command.arg(dir.path());
        let endpoint = format!("http://127.0.0.1:{port}");
        let environment = [
            ("AZURE_STORAGE_USE_EMULATOR", "true"),
            ("AZURITE_BLOB_STORAGE_URL", &endpoint),
            ("AZURE_STORAGE_ACCOUNT_NAME", AZURITE_ACCOUNT),
            ("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY),
        ];
        let emulator = Self::start(command, dir, port, "az://farshore/site", &environment);
        python(CREATE_CONTAINER, &[&text, AZURITE_ACCOUNT, AZURITE_KEY, "farshore"]);
        Some(emulator)
    }

    /// S3, by the program that `FARSHORE_MOTO` names; none when it names none.
    pub fn moto() -> Option<Self> {
        let program = std::env::var("FARSHORE_MOTO").ok()?;
        let (dir, port) = (temporary(), free_port());
        let text = port.to_string();
        // The interpreter that moto was installed for lies beside its program.
        let mut command = Command::new(Path::new(&program).with_file_name("python"));
        command.args(["-c", MOTO_ONE_BY_ONE, "-H", "127.0.0.1", "-p", &text]);
        let endpoint = format!("http://127.0.0.1:{port}");
        let environment = [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
        ];
        let emulator = Self::start(command, dir, port, "s3://farshore/site", &environment);
        python(CREATE_BUCKET, &[&text]);
        Some(emulator)
    }

    fn start(
        mut command: Command,
        dir: tempfile::TempDir,
        port: u16,
        url: &'static str,
        environment: &[(&str, &str)],
    ) -> Self {
        let log = File::create(log_of(dir.path())).expect("a log file");
        let errors = log.try_clone().expect("the log file's handle");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let server = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut emulator = Self { server, dir, url, environment };
        let deadline = Deadline::after(PATIENCE);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = emulator.server.try_wait().expect("the emulator can be asked");
            assert!(ended.is_none(), "{command:?} does not listen ({ended:?}):\n{}", emulator.output());
            deadline.look_again_blocking(format_args!("{command:?} listens:\n{}", emulator.output()));
        }
        emulator
    }

    /// What it has printed so far.
    fn output(&self) -> String {
        std::fs::read_to_string(log_of(self.dir.path())).unwrap_or_default()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            eprintln!("--- end of the emulator's output:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        let _gone_already = self.server.kill();
        let _gone_already = self.server.wait();
    }
}

fn log_of(dir: &Path) -> std::path::PathBuf {
    dir.join("emulator.log")
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary directory")
}

fn python(script: &str, args: &[&str]) {
    let out = Command::new("python3").arg("-c").arg(script).args(args).output().expect("python3 starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
